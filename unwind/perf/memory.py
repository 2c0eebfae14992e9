"""The memory of one sample: its piece of the stack, and the code that files have."""

from __future__ import annotations

from unwind.stack_copy import StackCopy

__all__ = ["SampleMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.space import AddressSpace


class SampleMemory(StackCopy):
    """The stack of a sample; `asked` is how many bytes perf was to copy of it."""

    __slots__ = ("asked",)

    def __init__(self, start: int, stack: memoryview, asked: int, space: AddressSpace):
        super().__init__(start, stack, space)
        self.asked = asked

    def reason(self, address: int) -> str:
        """Why the copy does not hold an address."""
        if address < self.start:
            return "the sample begins at its stack pointer"
        if len(self.stack) < self.asked:
            return "the stack ends before, or was paged out when perf copied it"
        return (
            f"perf copied {self.asked} bytes of the stack; "
            f"`perf record --call-graph dwarf,{min(2 * self.asked, 65528)}` takes more"
        )
