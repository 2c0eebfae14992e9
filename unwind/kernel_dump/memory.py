"""The memory of a process that is being dumped, as /proc/PID/mem shows it, behind a core's head.

It stands still: all of its threads have ended but the one that waits for us.
"""

from __future__ import annotations

import os
from bisect import bisect_right

from unwind.core_memory import CoreMemory
from unwind.errors import MemoryFault

__all__ = ["DumpMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PAGE = 4096
_MOST_PAGES = 1 << 14  # that are kept
_LARGEST = 1 << 28  # bytes of one read
_LARGEST_VIEW = 1 << 23  # a stack, as a rule

_GONE = "the kernel does not read it, or did not wait for us with the end of the process"


class DumpMemory(CoreMemory):
    """What the program headers `loads` speak of is read from `handle`, what they leave out too."""

    def __init__(self, loads: Iterable[tuple[int, ...]], handle: int):
        super().__init__(b"", loads)
        self._handle = handle
        self._pages: dict[int, bytes] = {}
        self.size = self.expected  # nothing is cut off

    @property
    def holds_data(self) -> bool:
        """All that the process had is there."""
        return True

    def is_there(self) -> bool:
        """Whether any mapping can be read."""
        rows = zip(self._starts, self._flags, strict=True)
        return any(flags and self._page(start) for start, flags in rows)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; MemoryFault says why where one of them is not there."""
        if not 0 <= size <= _LARGEST:
            raise MemoryFault(address, size, "more than is read at once")
        pieces, here, end = [], address, address + size
        while here < end:
            page = here & -_PAGE
            piece = self._page(page)[here - page : end - page] or self._lent(here, end)
            if not piece:
                raise MemoryFault(address, size, self._lacking(here))
            pieces.append(piece)
            here += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """A copy from `address` on, to the end of the mapping or a bound, or None."""
        flags, end = self._mapping(address)
        if not flags:
            return None
        data = _pread(self._handle, min(end - address, _LARGEST_VIEW), address)
        return (address, memoryview(data)) if data else super().view(address)

    def dumped(self, address: int) -> bool:
        """Whether `address` lies in a mapping."""
        return self._mapping(address)[1] > address

    def _mapping(self, address: int) -> tuple[int, int]:
        """The rights and the end of the mapping there; no end where nothing is mapped."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._mapped[at]:
            return 0, 0
        return self._flags[at], self._mapped[at]

    def _page(self, start: int) -> bytes:
        data = self._pages.get(start)
        if data is None:
            if len(self._pages) >= _MOST_PAGES:
                self._pages.clear()
            data = _pread(self._handle, _PAGE, start)
            if data:
                self._pages[start] = data
        return data

    def _lent(self, address: int, end: int) -> bytes:
        """What a file has, if that can stand for it: of code."""
        piece = self._stretch(address)
        return b"" if isinstance(piece, str) else bytes(piece[: end - address])

    def _lacking(self, address: int) -> str:
        reason = self._stretch(address)
        is_readable = self._mapping(address)[0] != 0
        return _GONE if is_readable or not isinstance(reason, str) else reason


def _pread(handle: int, size: int, address: int) -> bytes:
    """The bytes at `address`, as far as they can be read; b"" where none can."""
    try:
        return os.pread(handle, size, address)
    except (OSError, OverflowError):
        return b""
