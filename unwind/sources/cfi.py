"""CFI as a source of rows: `.eh_frame`, then `.debug_frame`, of the place's image."""

from __future__ import annotations

from unwind.dwarf.rows import row_at
from unwind.errors import UnwindError
from unwind.frames import Trust
from unwind.rules import NoRow

__all__ = ["CfiSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.image import Image
    from unwind.rules import Row
    from unwind.snapshot import Place


class CfiSource:
    """Rows from the CFI that compilers write (DWARF 5 §6.4, LSB Core 5.0 §10.6)."""

    trust = Trust.CFI
    shared = True

    def __init__(self, arch: Architecture):
        self.vendor_opcodes = arch.vendor_opcodes
        self.trampolines = arch.trampolines

    def row(self, place: Place) -> Row | NoRow:
        """The row of the FDE that covers the place; a broken FDE is a failed NoRow."""
        image = place.image
        if image is None:
            return NoRow("no file")
        try:
            sections = image.frame_sections
        except UnwindError as error:
            return NoRow(str(error), failed=True)
        if not sections:
            return NoRow("the module has no CFI")
        for section in sections:
            try:
                fde = section.find(place.vaddr)
                if fde is None:
                    continue
                row = row_at(fde, place.vaddr, self.vendor_opcodes)
            except UnwindError as error:
                return NoRow(str(error), failed=True)
            if row is None:
                continue
            if place.called and row.end == place.vaddr + 1 and not row.signal:
                # The FDE ends right before the return address. After a call of a noreturn
                # function that is as it should be; but musl's restorer has no CFI, and the byte
                # before it belongs to whichever function the linker put there.
                if self._trampoline_at(image, place.vaddr + 1):
                    return NoRow("the return address is a signal trampoline's first byte")
            return row
        return NoRow(f"no FDE covers {place.vaddr:#x}")

    def _trampoline_at(self, image: Image, vaddr: int) -> bool:
        code = image.at(vaddr)
        return any(
            0 in known.entries and code[: len(known.pattern)] == known.pattern
            for known in self.trampolines
        )
