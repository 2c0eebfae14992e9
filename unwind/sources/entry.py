"""The state at a function's entry, for a pc to which a wild call led."""

from __future__ import annotations

from unwind.frames import Trust
from unwind.rules import NoRow

__all__ = ["EntrySource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.rules import Row
    from unwind.snapshot import Place


class EntrySource:
    """The row that holds right after a call: the caller is where the call left it.

    It answers for an innermost (or interrupted) pc where no code can run, as after a call
    through a null pointer: nothing has touched the stack since the call. A fixed region such as
    vsyscall counts too: its few instructions do not touch the stack either.
    """

    trust = Trust.LINK_REGISTER
    shared = False

    def __init__(self, arch: Architecture):
        self.arch = arch

    def row(self, place: Place) -> Row | NoRow:
        """The architecture's entry row, where no instruction can have run since the call."""
        if place.called:
            return NoRow("only the innermost or an interrupted frame can be at a call's target")
        fixed = any(start <= place.pc < end for start, end, _ in self.arch.fixed_regions)
        if place.space.executable(place.pc) and not fixed:
            return NoRow("pc lies in executable memory")
        return self.arch.entry_row
