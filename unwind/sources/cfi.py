"""CFI as a source of rows: `.eh_frame`, then `.debug_frame`, of the place's image."""

from __future__ import annotations

from bisect import bisect_right, insort

from unwind.dwarf.outlines import entry_outline, outlines
from unwind.dwarf.rows import row_at, rows
from unwind.errors import FormatError, UnwindError
from unwind.frames import Trust
from unwind.rules import NoRow

__all__ = ["CfiSource"]

# A row costs the reading of its FDE's program. Compilers write some hundred bytes; a stack of
# many different places in programs of many thousands, which only malice writes, has its limit.
_PLAIN, _BUDGET = 4096, 64 << 20
_MOST_KEPT = 10_000  # FDEs whose rows are kept at once
# A function of 120 kB, such as a switch over all kinds of expressions, has programs of 20 kB. Of
# those the outlines are kept too, as far as that goes.
_LONG, _LONG_KEPT = 1 << 16, 1 << 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from unwind.architecture import Architecture, Trampoline
    from unwind.dwarf.cfi import Fde, FrameSection
    from unwind.dwarf.outlines import Outline
    from unwind.image import Image
    from unwind.rules import Row
    from unwind.snapshot import Place

    _Entry: TypeAlias = tuple[int, list[int], list[Outline]]


class CfiSource:
    """Rows from the CFI that compilers write (DWARF 5 §6.4, LSB Core 5.0 §10.6)."""

    trust = Trust.CFI
    shared = True

    def __init__(self, arch: Architecture):
        self.vendor_opcodes = arch.vendor_opcodes
        self.trampolines = arch.trampolines
        self.call_size = arch.call_size
        self.code_alignment = arch.code_alignment
        self.slot_moves_stack = arch.slot_moves_stack
        self.fp, self.sp = arch.fp, arch.sp
        self._spent = 0
        self._rows: dict[tuple[FrameSection, int], tuple[Row, ...]] = {}
        self._outlined: dict[Image, _Outlined] = {}
        self._outlines_kept = self._long_kept = 0  # FDEs; bytes of those that are long

    def row(self, place: Place) -> Row | NoRow:
        """The row of the FDE that covers the place; a broken FDE is a failed NoRow."""
        image = place.image
        if image is None:
            return NoRow("no file")
        if not place.called and place.vaddr % self.code_alignment:
            return NoRow("no instruction can run here: a branch led here and nowhere else")
        try:
            row = self._row(image, self._vaddr(image, place))
        except UnwindError as error:
            return NoRow(str(error), failed=True)
        if row is None:
            known = f"no FDE covers {place.vaddr:#x}"
            return NoRow(known if image.frame_sections else "the module has no CFI")
        objection = self._objection(row, image, place)
        return NoRow(objection) if objection else row

    def outline(self, image: Image, vaddr: int, called: bool) -> Outline | None:
        """What the row that `row` gives comes to, at a fraction of its price.

        None where only `row` can tell: whether there is a row, too.
        """
        if self.slot_moves_stack is not None or (not called and vaddr % self.code_alignment):
            return None
        known = self._outlined.get(image)
        if known is None:
            known = self._outlined[image] = _Outlined(image)
        n = bisect_right(known.starts, vaddr)
        entry = known.entries[known.starts[n - 1]] if n else None
        if entry is None or vaddr >= entry[0]:
            entry = self._read_outlines(known, image, vaddr)
            if entry is None:
                return None
        end, starts, found = entry
        n = bisect_right(starts, vaddr)
        behind = vaddr + self.call_size
        if called and (starts[n] if n < len(starts) else end) <= behind:
            if self._trampoline_at(image, behind, called) is not None:
                return None
        return found[n - 1]

    def _read_outlines(self, known: _Outlined, image: Image, vaddr: int) -> _Entry | None:
        """What covers `vaddr`, read now; None where there is nothing of the kind."""
        section = known.section
        if section is None:
            return None
        try:
            program = section.program(vaddr)
            if program is None:
                fde = section.find(vaddr)
                program = section.program(vaddr) if fde is not None else None
        except UnwindError:
            return None
        if program is None or program.cie.signal:
            return None
        size = len(program.instructions)
        if size > _PLAIN and (size > _LONG or self._long_kept + size > _LONG_KEPT):
            return None
        first = known.first.get(program.cie.offset)
        if first is None:
            try:
                first = entry_outline(program.cie, self.fp, self.sp)
            except FormatError:
                return None
            known.first[program.cie.offset] = first
        read = outlines(program, self.fp, self.sp, first)
        if read is None:
            return None
        if self._outlines_kept >= _MOST_KEPT:
            self._outlined.clear()
            self._outlines_kept = self._long_kept = 0
            known = self._outlined[image] = _Outlined(image)
        self._outlines_kept += 1
        self._long_kept += size if size > _PLAIN else 0
        return known.add(program.start, program.end, *read)

    def _vaddr(self, image: Image, place: Place) -> int:
        """Where to look: for a call, at the call itself.

        But what its delay slot does to the stack pointer gcc's CFI has only behind it.
        """
        vaddr, behind = place.vaddr, place.vaddr + self.call_size
        if self.slot_moves_stack is None or place.pc - place.lookup_pc != self.call_size:
            return vaddr
        return behind if self.slot_moves_stack(image.read(vaddr, self.call_size)) else vaddr

    def _row(self, image: Image, vaddr: int) -> Row | None:
        """The row of the first section that covers `vaddr`."""
        for section in image.frame_sections:
            fde = section.find(vaddr)
            if fde is None:
                continue
            self._spent += max(0, len(fde.instructions) - _PLAIN)
            if self._spent > _BUDGET:
                raise FormatError("too much CFI to read", section.name, fde.offset)
            row = self._row_of(section, fde, vaddr)
            if row is not None:
                return row
        return None

    def _row_of(self, section: FrameSection, fde: Fde, vaddr: int) -> Row | None:
        """The row of an FDE, whose rows are kept: a stack meets many calls of few functions."""
        known = self._rows.get((section, fde.offset))
        if known is None:
            if len(fde.instructions) > _PLAIN:
                return row_at(fde, vaddr, self.vendor_opcodes)
            try:
                known = tuple(rows(fde, self.vendor_opcodes))
            except FormatError:  # what comes before the place may be good
                return row_at(fde, vaddr, self.vendor_opcodes)
            if len(self._rows) >= _MOST_KEPT:
                self._rows.clear()
            self._rows[section, fde.offset] = known
        return next((row for row in known if row.start <= vaddr < row.end), None)

    def _objection(self, row: Row, image: Image, place: Place) -> str:
        """Why a row is not to be taken although it covers the place, "" if nothing speaks."""
        if row.signal:
            # mips's vdso states no rule at all (Linux v6.13 arch/mips/vdso/sigreturn.S). arm64's
            # states x29 and x30 and calls x30 the return address; the row of the trampoline's
            # bytes has the pc, and x30 beside it, which an interrupted leaf needs.
            behind = place.vaddr + self.call_size if place.called else place.vaddr
            known = self._trampoline_at(image, behind, place.called)
            if known is not None and known.row.return_address != row.return_address:
                return "the bytes of the trampoline tell more than its CFI"
            if not row.rules:
                return "the CFI of a trampoline does not tell where registers are"
        elif place.called and row.end <= place.vaddr + self.call_size:
            # The FDE ends right before the return address. After a call of a noreturn function
            # that is as it should be; but musl's restorer has no CFI, and the byte before it
            # belongs to whichever function the linker put there.
            behind = place.vaddr + self.call_size
            if self._trampoline_at(image, behind, called=True) is not None:
                return "the return address is a signal trampoline's first byte"
        return ""

    def _trampoline_at(self, image: Image, vaddr: int, called: bool) -> Trampoline | None:
        """The trampoline whose bytes lie at `vaddr`; where that was called into, its first ones."""
        for known in self.trampolines:
            for entry in (0,) if called else known.entries:
                if image.at(vaddr - entry, len(known.pattern)) == known.pattern:
                    return known
        return None


class _Outlined:
    """The outlines of an image that were read so far.

    `starts` are where their FDEs start, ascending; the entry of each has the end, the starts of
    the rows, and the rows. `first` has what CIEs, by their offsets, begin with. `section` is where
    they lie, None where it has no search table that is sorted. Functions share their rows: a
    compiler's six thousand have 120,000, but three hundred different ones.
    """

    __slots__ = ("_alike", "entries", "first", "section", "starts")

    def __init__(self, image: Image) -> None:
        section = next(iter(image.frame_sections), None)
        search = getattr(section, "search", None)  # what was recorded of a section has none
        is_sorted = search is not None and search.is_sorted
        self.section: FrameSection | None = section if is_sorted else None
        self.starts: list[int] = []
        self.entries: dict[int, _Entry] = {}
        self.first: dict[int, Outline] = {}
        self._alike: dict[Outline, Outline] = {}

    def add(self, start: int, end: int, starts: list[int], found: list[Outline]) -> _Entry:
        """Keep the outlines of one FDE."""
        share = self._alike.setdefault
        insort(self.starts, start)
        entry = self.entries[start] = end, starts, [share(row, row) for row in found]
        return entry
