"""The state at a function's entry, for a pc to which a wild call led."""

from __future__ import annotations

from unwind.errors import UnwindError
from unwind.frames import Trust
from unwind.rules import NoRow, Origin, Undefined

__all__ = ["EntrySource", "is_planted"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.modules import Module
    from unwind.protocols import Memory
    from unwind.rules import Row
    from unwind.snapshot import Place


class EntrySource:
    """The row that holds right after a call: the caller is where the call left it.

    It answers for an innermost (or interrupted) pc where no code can run, as after a call
    through a null pointer: nothing has touched the stack since the call. So does a pc that is not
    aligned as instructions are. A fixed region such as vsyscall counts too: its few instructions
    do not touch the stack either.

    It also knows the end of a stack that was made by hand: a return address that is a function's
    first byte, behind no call (makecontext's `__start_context`), has no caller.
    """

    trust = Trust.LINK_REGISTER
    shared = False

    def __init__(self, arch: Architecture):
        self.arch = arch
        self.row_of_planted: Row = arch.entry_row.replace(
            rules={arch.entry_row.return_address: Undefined()},
            origin=Origin("abi", note="a function's first byte, put there as a return address"),
        )

    def row(self, place: Place) -> Row | NoRow:
        """The architecture's entry row, where no instruction can have run since the call."""
        if place.called:
            if is_planted(self.arch, place.module, place.memory, place.pc):
                return self.row_of_planted
            return NoRow("only the innermost or an interrupted frame can be at a call's target")
        fixed = any(start <= place.pc < end for start, end, _ in self.arch.fixed_regions)
        aligned = place.pc % self.arch.code_alignment == 0
        if aligned and place.space.executable(place.pc) and not fixed:
            return NoRow("pc lies in executable memory")
        return self.arch.entry_row


def is_planted(arch: Architecture, module: Module | None, memory: Memory, pc: int) -> bool:
    """Whether a return address is where an FDE starts, and what lies before it is no call."""
    if module is None or module.image is None:
        return False
    vaddr = module.to_vaddr(pc)
    try:
        if arch.follows_call(memory.read(pc - arch.call_window, arch.call_window)):
            return False
        found = (section.find(vaddr) for section in module.image.frame_sections)
        return any(fde is not None and fde.start == vaddr for fde in found)
    except UnwindError:
        return False
