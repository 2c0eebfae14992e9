"""The `.pdr` section: an ELF file of mips in; what its compiler said of each function's frame out.

gas writes an entry for each function from the directives .frame, .mask and .fmask. The section is
not loaded, but strip keeps it.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from unwind.elf import EM, SHT
from unwind.errors import UnwindError
from unwind.values import Value

__all__ = ["Procedure", "Procedures", "procedures"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf

_SIZE = 32
_COMPRESSED = 1  # bit 0 of an address: the function is microMIPS or MIPS16


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
