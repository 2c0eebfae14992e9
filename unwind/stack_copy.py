"""The memory of a moment that has passed: the piece of a stack copied then, and files' code."""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["StackCopy"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.space import AddressSpace


class StackCopy:
    """`stack` lies at `start`; all else that can be read is what the files of `space` hold."""

    __slots__ = ("end", "space", "stack", "start")

    def __init__(self, start: int, stack: memoryview, space: AddressSpace):
        self.start, self.stack, self.space = start, stack, space
        self.end = start + len(stack)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; the MemoryFault says why they were not copied."""
        if self.start <= address and address + size <= self.end and size >= 0:
            return bytes(self.stack[address - self.start : address - self.start + size])
        module = self.space.find(address)
        if module is not None and module.image is not None:
            return module.image.read(module.to_vaddr(address), size)
        raise MemoryFault(address, size, self.reason(address))

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stack, without a copy."""
        return (self.start, self.stack) if self.start <= address < self.end else None

    def reason(self, address: int) -> str:
        """Why the copy does not hold an address; who made the copy knows more."""
        return "it was not copied"
