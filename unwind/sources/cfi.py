"""CFI as a source of rows: `.eh_frame`, then `.debug_frame`, of the place's image."""

from __future__ import annotations

from unwind.dwarf.rows import row_at
from unwind.errors import UnwindError
from unwind.frames import Trust
from unwind.rules import NoRow

__all__ = ["CfiSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture, Trampoline
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
        self.call_size = arch.call_size
        self.code_alignment = arch.code_alignment

    def row(self, place: Place) -> Row | NoRow:
        """The row of the FDE that covers the place; a broken FDE is a failed NoRow."""
        image = place.image
        if image is None:
            return NoRow("no file")
        if not place.called and place.vaddr % self.code_alignment:
            return NoRow("no instruction can run here: a branch led here and nowhere else")
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
            if row.signal:
                # mips's vdso states no rule at all (Linux v6.13 arch/mips/vdso/sigreturn.S).
                # arm64's states x29 and x30 and calls x30 the return address; the row of the
                # trampoline's bytes has the pc, and x30 beside it, which an interrupted leaf needs.
                known = self._trampoline_at(image, place)
                if known is not None and known.row.return_address != row.return_address:
                    return NoRow("the bytes of the trampoline tell more than its CFI")
                if not row.rules:
                    return NoRow("the CFI of a trampoline does not tell where registers are")
            elif place.called and row.end <= place.vaddr + self.call_size:
                # The FDE ends right before the return address. After a call of a noreturn
                # function that is as it should be; but musl's restorer has no CFI, and the byte
                # before it belongs to whichever function the linker put there.
                if self._trampoline_at(image, place) is not None:
                    return NoRow("the return address is a signal trampoline's first byte")
            return row
        return NoRow(f"no FDE covers {place.vaddr:#x}")

    def _trampoline_at(self, image: Image, place: Place) -> Trampoline | None:
        """The trampoline whose bytes lie at the place's pc."""
        vaddr = place.vaddr + self.call_size if place.called else place.vaddr
        for known in self.trampolines:
            for entry in (0,) if place.called else known.entries:
                if image.at(vaddr - entry)[: len(known.pattern)] == known.pattern:
                    return known
        return None
