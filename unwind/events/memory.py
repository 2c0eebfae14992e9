"""The memory of one event: the stack that was copied then, and the code that files have."""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["EventMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.events.event import Event
    from unwind.space import AddressSpace


class EventMemory:
    """What can be read of the process as it was at the event."""

    __slots__ = ("cut", "end", "space", "stack", "start")

    def __init__(self, event: Event, space: AddressSpace):
        self.start, self.stack, self.space, self.cut = event.start, event.stack, space, event.cut
        self.end = event.start + len(event.stack)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; the MemoryFault says what was not copied."""
        if self.start <= address and address + size <= self.end and size >= 0:
            return bytes(self.stack[address - self.start : address - self.start + size])
        module = self.space.find(address)
        if module is not None and module.image is not None:
            return module.image.read(module.to_vaddr(address), size)
        raise MemoryFault(address, size, self._reason(address))

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stack, without a copy."""
        return (self.start, self.stack) if self.start <= address < self.end else None

    def _reason(self, address: int) -> str:
        if not self.stack:
            return "nothing could be copied of the stack"
        if address < self.start:
            return "the copy begins at the page of the stack pointer"
        if self.cut:
            return "the stack ends before, or that page was not in memory at the event"
        return f"{len(self.stack)} bytes of the stack were copied; --stack-size takes more"
