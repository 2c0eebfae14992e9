"""`.pdr` as a source of rows: what a mips compiler said of the frames of its functions."""

from __future__ import annotations

from struct import iter_unpack

from unwind.frames import Trust
from unwind.pdr import extent, is_jump
from unwind.rules import CfaRegister, NoRow, Offset, Origin, Row, Undefined

__all__ = ["PdrSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.architecture import Architecture
    from unwind.image import Image
    from unwind.pdr import Procedure
    from unwind.rules import Rule
    from unwind.snapshot import Place

_SP, _RA = 29, 31

# addiu sp, sp, n; subu and addu sp, sp, r; sw r, n(base); addu or or r, sp, zero; lw r, n(sp)
_ADDIU_SP, _SUBU_SP, _SW, _ADDU_SP, _LW_SP = 0x27BD, 0x03A0_E823, 0xAC00_0000, 0x03A0_0021, 0x8FA0
_ADDU_SP_SP = 0x03A0_E821
_BRANCHES = frozenset((1, 4, 5, 6, 7, 20, 21, 22, 23))
_LARGEST = 1 << 20  # of what is looked at, in bytes


class PdrSource:
    """Rows of the body of functions.

    An entry tells of the frame as it is between prologue and epilogue. A call lies there as a
    rule; at another place the instructions before it must have made the frame and not yet undone
    it. Where they have not, or that is not to be seen, there is no row.
    """

    trust = Trust.PDR
    shared = True

    def __init__(self, arch: Architecture):
        self.byteorder = arch.byteorder
        self.column = arch.return_address

    def row(self, place: Place) -> Row | NoRow:
        """The row of the function that the place lies in."""
        image = place.image
        if image is None:
            return NoRow("no file")
        table = image.procedures
        if table is None:
            return NoRow("the module has no .pdr")
        rules: dict[int, Rule]
        procedure = table.find(place.vaddr)
        if procedure is None or not image.executable(place.vaddr):
            return NoRow(f"no entry of .pdr covers {place.vaddr:#x}")
        end = self._end(image, procedure, place.vaddr, table.end(procedure))
        if place.vaddr >= end or not self._goes_on(image, procedure, place.vaddr):
            return NoRow(f"no entry of .pdr covers {place.vaddr:#x}")
        if procedure.start == image.elf.header.entry:
            # glibc's __start is said to have a frame, as any function; what lies where its return
            # address would be is argc and the arguments, and nobody has called it.
            note = f"{procedure.start:#x} is where the program is entered: it has no caller"
            rules = {self.column: Undefined()}
            return Row(
                procedure.start,
                end,
                CfaRegister(_SP, 0),
                rules,
                self.column,
                Origin(".pdr", note=note),
            )
        if procedure.frame_register not in range(16, 32) or procedure.return_register != _RA:
            return NoRow("the entry of .pdr names no frame")  # assembler code without .frame
        saved = procedure.saved()
        if place.called and self.column not in saved:
            return NoRow("by .pdr the function calls nothing: it does not save ra")
        if place.called and not self._saves_ra(image, procedure, place.vaddr):
            return NoRow("the code does not save ra, whatever .pdr says")
        if not place.called and not self._is_body(image, procedure, place.vaddr):
            return NoRow("the frame that .pdr describes is not whole at this place")
        rules = {number: Offset(n) for number, n in saved.items()}
        return Row(
            procedure.start,
            end,
            CfaRegister(procedure.frame_register, procedure.frame_size),
            rules,
            self.column,
            Origin(".pdr", note=f"the entry of {procedure.start:#x}"),
        )

    def _end(self, image: Image, procedure: Procedure, vaddr: int, limit: int | None) -> int:
        """Where the function ends at the latest: an entry does not tell.

        Not every function has an entry, glibc's __start for one.
        """
        symbol = image.symbols.find(vaddr)
        ends = [procedure.start + image.reach(procedure.start), limit, image.elf.header.entry]
        ends.append(symbol.vaddr if symbol is not None else None)
        return min(end for end in ends if end is not None and end > procedure.start)

    def _goes_on(self, image: Image, procedure: Procedure, vaddr: int) -> bool:
        """Whether the function reaches as far as `vaddr`, by its branches and returns."""
        if procedure.compressed or vaddr - procedure.start > _LARGEST:
            return True
        code = image.at(procedure.start, vaddr + 4 - procedure.start)
        return vaddr - procedure.start < extent(code, self.byteorder)

    def _saves_ra(self, image: Image, procedure: Procedure, vaddr: int) -> bool:
        """Whether the instructions up to `vaddr` store ra.

        The entry of glibc's __start says so, as a macro for assembler files has it.
        """
        if procedure.compressed or vaddr - procedure.start > _LARGEST:
            return True
        # The delay slot of the call may be what stores it.
        words = self._words(image, procedure.start, vaddr + 8)
        return any(word & 0xFC1F_0000 == _SW | _RA << 16 for word in words)

    def _is_body(self, image: Image, procedure: Procedure, vaddr: int) -> bool:
        """Whether the instructions up to `vaddr` have made the frame and undone nothing."""
        if procedure.compressed or vaddr - procedure.start > _LARGEST:
            return not (procedure.mask or procedure.frame_size)  # there is no frame to make
        register = procedure.frame_register
        missing, size = procedure.mask, 0
        framed, undone = register == _SP, False
        leaving = 0  # 2 at a jump that nothing follows, 1 in its delay slot
        for word in self._words(image, procedure.start, vaddr):
            upper = word >> 16
            whole = framed and not missing and size == procedure.frame_size
            if leaving == 1:
                undone = False
            leaving = max(0, leaving - 1)
            if is_jump(word):
                leaving = 2
            elif upper == _ADDIU_SP:
                amount = (word & 0xFFFF ^ 0x8000) - 0x8000
                size -= min(amount, 0)
                undone = undone or amount > 0
            elif word & 0xFFE0_FFFF == _SUBU_SP and not whole:
                size = procedure.frame_size  # a large frame, by a register
            elif word & 0xFC00_0000 == _SW and upper >> 5 & 31 in (_SP, register):
                missing &= ~(1 << (upper & 31))
            elif word & ~4 == _ADDU_SP | register << 11:
                framed = True
            elif upper == _LW_SP | register or word & 0xFFE0_FFFF == _ADDU_SP_SP:
                undone = True
            if not whole and (leaving == 2 or word >> 26 in _BRANCHES):
                return False  # the prologue stands on one path only
        return framed and not missing and size == procedure.frame_size and not undone

    def _words(self, image: Image, start: int, end: int) -> Iterator[int]:
        code = image.at(start, end - start & -4)
        form = "<I" if self.byteorder == "little" else ">I"
        return (word for (word,) in iter_unpack(form, code[: len(code) & -4]))
