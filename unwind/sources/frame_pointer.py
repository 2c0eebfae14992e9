"""The frame-pointer convention as a source of rows, for code without CFI."""

from __future__ import annotations

from unwind.frames import Trust
from unwind.rules import NoRow, Undefined

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
        if fp == 0:
            # x86-64 psABI 1.0 §3.4.1: start-up code zeroes it to mark the deepest frame.
            return self.row_of_outermost
        if fp % self.word:
            return NoRow(f"the frame pointer {fp:#x} is not aligned")
        if sp is not None and fp < sp:
            return NoRow(f"the frame pointer {fp:#x} lies below the stack pointer {sp:#x}")
        return self.row_of_body
