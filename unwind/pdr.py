"""The `.pdr` section: an ELF file of mips in; what its compiler said of each function's frame out.

gas writes an entry for each function from the directives .frame, .mask and .fmask. The section is
not loaded, but strip keeps it.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct, iter_unpack

from unwind.elf import EM, SHT
from unwind.errors import UnwindError
from unwind.values import Value

__all__ = ["Procedure", "Procedures", "extent", "is_jump", "procedures"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf

_SIZE = 32
_COMPRESSED = 1  # bit 0 of an address: the function is microMIPS or MIPS16
_JR_RA, _JR_T9, _ADDIU_SP, _LUI_GP = 0x03E0_0008, 0x0320_0008, 0x27BD, 0x3C1C
_BRANCHES = frozenset((1, 4, 5, 6, 7, 20, 21, 22, 23))


class Procedure(Value):
    """One entry (binutils, gas/config/tc-mips.c s_mips_end).

    CFA = register `frame_register` + `frame_size`. The registers whose bits are set in
    `mask` lie below one another, the highest number at CFA + `offset`.
    """

    start: int
    mask: int
    offset: int
    frame_size: int
    frame_register: int
    return_register: int
    compressed: bool

    def saved(self) -> dict[int, int]:
        """Where each general register is saved, from the CFA on."""
        numbers = [n for n in range(31, -1, -1) if self.mask >> n & 1]
        return {number: self.offset - 4 * n for n, number in enumerate(numbers)}


class Procedures:
    """The entries of one file by their addresses, which linkers have relocated to vaddrs."""

    def __init__(self, data: memoryview, byteorder: str):
        self._form = Struct("<IIiIiiii" if byteorder == "little" else ">IIiIiiii")
        rows = sorted(self._form.iter_unpack(data[: len(data) // _SIZE * _SIZE]))
        self._rows = [row for row in rows if row[0] & -2]  # a discarded function has address 0
        self.starts = [row[0] & -2 for row in self._rows]

    def find(self, vaddr: int) -> Procedure | None:
        """The entry that begins nearest below `vaddr`; how far it reaches nobody says."""
        at = bisect_right(self.starts, vaddr) - 1
        if at < 0:
            return None
        start, mask, offset, _, _, size, register, returned = self._rows[at]
        compressed = bool(start & _COMPRESSED)
        return Procedure(start & -2, mask, offset, size, register, returned, compressed)

    def record(self, vaddr: int) -> bytes:
        """The entry that `find` gives and the next one, as they lie in the section."""
        at = bisect_right(self.starts, vaddr) - 1
        return b"".join([self._form.pack(*row) for row in self._rows[max(at, 0) : at + 2]])

    def end(self, procedure: Procedure) -> int | None:
        """Where the next entry begins, None behind the last."""
        at = bisect_right(self.starts, procedure.start)
        return self.starts[at] if at < len(self.starts) else None


def procedures(elf: Elf) -> Procedures | None:
    """The .pdr section of a linked file, None where there is none that can be read."""
    if elf.header.machine != EM.MIPS or elf.header.elf_class != 32:
        return None
    section = elf.section(".pdr")
    if section is None or section.type == SHT.NOBITS or section.size < _SIZE:
        return None
    try:
        found = Procedures(elf.data(section), elf.header.byteorder)
    except UnwindError:
        return None
    return found if found.starts else None


def extent(code: memoryview, byteorder: str) -> int:
    """How much of `code`, in bytes, the function at its beginning takes: no entry tells.

    It ends behind a jump over which none of its branches leads, or behind a call from which it
    does not return: there another one sets up its gp, or makes a frame where one was made. All of
    it is taken where a jump by a table, over which a branch leads, goes nobody knows where.
    """
    form = "<I" if byteorder == "little" else ">I"
    words = [word for (word,) in iter_unpack(form, code[: len(code) & -4])]
    furthest, framed = 0, False
    for n, word in enumerate(words):
        at = 4 * n
        if furthest < at and n >= 2 and _is_call(words[n - 2]):
            if word >> 16 == _LUI_GP or (framed and _makes_frame(word)):
                return at
        framed = framed or _makes_frame(word)
        if word >> 26 in _BRANCHES and not _is_call(word):
            furthest = max(furthest, at + 4 + 4 * ((word & 0xFFFF ^ 0x8000) - 0x8000))
        if is_jump(word) and furthest < at + 8:
            return min(at + 8, len(code))
        if word & 0xFC1F_FFFF == 8 and word not in (_JR_RA, _JR_T9):
            break
    return len(code)


def _is_call(word: int) -> bool:
    """jal, jalr or bal."""
    return word >> 26 == 3 or word & 0xFC00_003F == 9 or word >> 16 == 0x0411


def _makes_frame(word: int) -> bool:
    """addiu sp, sp, -n."""
    return word >> 16 == _ADDIU_SP and bool(word & 0x8000)


def is_jump(word: int) -> bool:
    """jr, b or j: what follows the delay slot is reached from elsewhere only."""
    return word & 0xFC1F_FFFF == 8 or word >> 16 == 0x1000 or word >> 26 == 2
