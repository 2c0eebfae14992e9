"""The memory of one sample: its piece of the stack, and the code that files have."""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["SampleMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.space import AddressSpace


class SampleMemory:
    """`stack` lies at `start`; `asked` is how many bytes perf was to copy of it."""

    __slots__ = ("asked", "end", "space", "stack", "start")

    def __init__(self, start: int, stack: memoryview, asked: int, space: AddressSpace):
        self.start, self.stack, self.asked, self.space = start, stack, asked, space
        self.end = start + len(stack)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; the MemoryFault says what `perf record` left out."""
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
        if address < self.start:
            return "the sample begins at its stack pointer"
        if len(self.stack) < self.asked:
            return "the stack ends before, or was paged out when perf copied it"
        return (
            f"perf copied {self.asked} bytes of the stack; "
            f"`perf record --call-graph dwarf,{min(2 * self.asked, 65528)}` takes more"
        )
