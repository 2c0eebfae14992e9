"""The search table of .eh_frame_hdr: a vaddr in, the vaddr of the FDE that should cover it out."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right

from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.reader import Encoding, Reader
from unwind.errors import FormatError

__all__ = ["SearchTable"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from unwind.protocols import ByteOrder

# How memoryview calls a number of so many bytes, unsigned or signed.
_CODES: dict[tuple[int, bool], Literal["H", "h", "I", "i", "Q", "q"]] = {
    (2, False): "H",
    (4, False): "I",
    (8, False): "Q",
    (2, True): "h",
    (4, True): "i",
    (8, True): "q",
}


class SearchTable:
    """What .eh_frame_hdr says (LSB Core 5.0 §10.6.2), believed by nobody before it is checked.

    `eh_frame` is the vaddr of .eh_frame, or None where it is omitted. `count` is the number of
    entries that `find` searches: 0 where the table is omitted, empty or of a variable width.
    FormatError when even the header cannot be read.
    """

    __slots__ = (
        "_data",
        "_encoding",
        "_first",
        "_mask",
        "_numbers",
        "_table",
        "_width",
        "count",
        "eh_frame",
    )

    def __init__(
        self,
        data: bytes | memoryview,
        vaddr: int,
        byteorder: ByteOrder,
        address_size: int,
        *,
        where: str = ".eh_frame_hdr",
    ):
        # datarel means relative to this very header: LSB Core 5.0 §10.6.2.
        encoding = Encoding(byteorder, address_size, vaddr, data_base=vaddr, where=where)
        reader = Reader(data, encoding)
        version, frame, count, table = reader.take(4)
        if version != 1:
            raise FormatError(f"version {version} of the search table, not 1", where, 0)
        self.eh_frame = reader.pointer(frame)
        entries = reader.pointer(count) or 0
        width = reader.stored_size(table)
        if width is None or table & DW_EH_PE.indirect or self._pads(table, width, address_size):
            entries, width = 0, 1  # omitted, or nothing that any linker writes
        self.count = max(0, min(entries, (len(data) - reader.at) // (2 * width)))
        self._data = data
        self._encoding = encoding
        self._table = table
        self._width = width
        self._first = reader.at  # where the first entry lies
        # What linkers write is searched as it lies, where numbers sort as addresses do and are in
        # this machine's byte order; the rest is read pointer by pointer.
        signed = (table & DW_EH_PE.signed) != 0
        sorts = {(DW_EH_PE.absptr, False): 0, (DW_EH_PE.datarel, True): vaddr}
        base, code = sorts.get((table & 0x70, signed)), _CODES.get((width, signed))
        self._numbers: tuple[int, memoryview] | None = None
        if base is not None and code is not None and byteorder == sys.byteorder:
            end = self._first + 2 * width * self.count
            self._numbers = base, memoryview(data)[self._first : end].cast(code)
        self._mask = (1 << 8 * address_size) - 1

    def find(self, vaddr: int) -> tuple[int, int] | None:
        """The last entry (start of the code, vaddr of its FDE) that starts at or before `vaddr`.

        None where there is none. In an unsorted table the answer is any entry, so the caller
        compares it with the FDE it leads to.
        """
        if self._numbers is not None:
            base, numbers = self._numbers
            entry = bisect_right(numbers[::2], vaddr - base) - 1
            if entry < 0:
                return None
            start, place = numbers[2 * entry] + base, numbers[2 * entry + 1] + base
            return start & self._mask, place & self._mask
        try:
            entry = bisect_right(range(self.count), vaddr, key=lambda n: self._pointer(2 * n)) - 1
            return (self._pointer(2 * entry), self._pointer(2 * entry + 1)) if entry >= 0 else None
        except FormatError:
            return None

    @property
    def is_sorted(self) -> bool:
        """Whether the table is as linkers write it, of numbers that sort as addresses do."""
        return self._numbers is not None and self.count > 0

    def around(self, vaddr: int) -> tuple[int, int, int | None] | None:
        """What `find` gives, and the next start; None where it gives none, or no sorted table."""
        if self._numbers is None:
            return None
        base, numbers = self._numbers
        entry = 2 * bisect_right(numbers[::2], vaddr - base) - 2
        if entry < 0:
            return None
        beyond = numbers[entry + 2] + base & self._mask if entry + 2 < len(numbers) else None
        return numbers[entry] + base & self._mask, numbers[entry + 1] + base & self._mask, beyond

    def starts(self, low: int, high: int) -> list[int]:
        """The starts in [low, high), as far as the table is sorted."""
        if self._numbers is None:
            try:
                return [start for start, _ in self.entries() if low <= start < high]
            except FormatError:
                return []
        base, numbers = self._numbers
        starts = numbers[::2]
        first, last = bisect_left(starts, low - base), bisect_left(starts, high - base)
        return [start + base & self._mask for start in starts[first:last]]

    def entries(self) -> Iterator[tuple[int, int]]:
        """The whole table as (start of the code, vaddr of its FDE); FormatError where it is bad."""
        for entry in range(self.count):
            yield self._pointer(2 * entry), self._pointer(2 * entry + 1)

    @staticmethod
    def _pads(table: int, width: int, address_size: int) -> bool:
        """Whether aligned pointers are narrower than what they are aligned to."""
        return table & 0x70 == DW_EH_PE.aligned and width % address_size != 0

    def _pointer(self, n: int) -> int:
        """The n-th pointer of the table, whose entries are pairs of them."""
        reader = Reader(self._data, self._encoding, at=self._first + n * self._width)
        return reader.pointer(self._table) or 0
