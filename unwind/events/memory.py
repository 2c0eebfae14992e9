"""The memory of one event: the stack that was copied then, and the code that files have."""

from __future__ import annotations

from unwind.stack_copy import StackCopy

__all__ = ["EventMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.events.event import Event
    from unwind.space import AddressSpace


class EventMemory(StackCopy):
    """What can be read of the process as it was at the event."""

    __slots__ = ("cut",)

    def __init__(self, event: Event, space: AddressSpace):
        super().__init__(event.start, event.stack, space)
        self.cut = event.cut

    def reason(self, address: int) -> str:
        """Why the copy does not hold an address."""
        if not self.stack:
            return "nothing could be copied of the stack"
        if address < self.start:
            return "the copy begins at the page of the stack pointer"
        if self.cut:
            return "the stack ends before, or that page was not in memory at the event"
        return f"{len(self.stack)} bytes of the stack were copied; --stack-size takes more"
