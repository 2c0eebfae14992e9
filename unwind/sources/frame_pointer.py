"""The frame-pointer convention as a source of rows, for code without CFI."""

from __future__ import annotations

from unwind.frames import Trust
from unwind.rules import CfaRegister, NoRow, Offset, Origin, Undefined
from unwind.sources.cfi import CfiSource

__all__ = ["FramePointerSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.rules import Row
    from unwind.snapshot import Place


class FramePointerSource:
    """The architecture's row for the body of a function that keeps a frame pointer.

    It is a guess about code nobody described, so the walker checks what it finds.
    """

    trust = Trust.FRAME_POINTER
    shared = False

    def __init__(self, arch: Architecture):
        self.row_of_body = row = arch.frame_pointer_row
        self.fp, self.sp, self.word = arch.fp, arch.sp, arch.word
        self.data_address = arch.data_address
        self.cfi = CfiSource(arch)
        if row is not None:
            self.row_of_outermost: Row = row.replace(rules={row.return_address: Undefined()})

    def row(self, place: Place) -> Row | NoRow:
        """The row, or why the frame pointer can be none."""
        if self.row_of_body is None:
            return NoRow("the ABI has no frame pointer by which a caller could be found")
        if place.image is None and not place.space.executable(place.pc):
            return NoRow("pc lies in no executable memory")
        fp = place.registers.get(self.fp)
        sp = place.registers.get(self.sp)
        if fp is None:
            return NoRow("the frame pointer is not known")
        fp = self.data_address(fp)
        if fp == 0:
            # x86-64 psABI 1.0 §3.4.1: start-up code zeroes it to mark the deepest frame.
            return self.row_of_outermost
        if fp % self.word:
            return NoRow(f"the frame pointer {fp:#x} is not aligned")
        if sp is None:
            return self._by_record(place) or self.row_of_body
        if fp < self.data_address(sp):
            return NoRow(f"the frame pointer {fp:#x} lies below the stack pointer {sp:#x}")
        return self.row_of_body

    def _by_record(self, place: Place) -> Row | None:
        """The CFI's rules with the CFA by the frame pointer, where the stack pointer is lost.

        Where the frame pointer points is where CFI says that the caller's is saved: that gives the
        CFA, and with it all that a frame pointer alone does not tell.
        """
        row, body = self.cfi.row(place), self.row_of_body
        if isinstance(row, NoRow) or body is None or not isinstance(row.cfa, CfaRegister):
            return None
        saved, ours = row.rules.get(self.fp), body.rules.get(self.fp)
        column, returns = row.rules.get(row.return_address), body.rules.get(body.return_address)
        match saved, ours, column, returns, body.cfa:
            case Offset(n=a), Offset(n=b), Offset(n=c), Offset(n=d), CfaRegister(offset=offset):
                if row.cfa.number == self.sp and c - a == d - b:
                    note = "the rules of the CFI, its CFA by the frame pointer"
                    cfa = CfaRegister(self.fp, offset + b - a)
                    return row.replace(cfa=cfa, origin=Origin("abi", note=note))  # type: ignore[no-any-return]
        return None
