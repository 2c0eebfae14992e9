"""Copies of stacks in, with what never changes of a process that runs on; a Memory out.

What the process may write to, and what was not copied while it stood still, is unreadable:
by now other things may lie there. But code that it has made itself (a JIT) is read: it can be
written to as a rule, lies still for longer than a walk takes, and no value of a frame is in it.
"""

from __future__ import annotations

from bisect import bisect_right

from unwind.errors import MemoryFault

__all__ = ["LiveMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from unwind.live.copies import Stretch
    from unwind.live.proc import Mapped

_PAGE = 4096
_LARGEST = 1 << 26  # bytes of one read
_MOST = 1 << 28  # bytes that are read of a process that runs on

_CHANGES = "only stacks are copied of what the process writes to, and this is in none of them"


class LiveMemory:
    """The memory of a process as it was.

    `read` fills a buffer with what lies at an address now, and gives how many bytes came.
    """

    def __init__(
        self,
        stretches: Iterable[Stretch],
        mappings: Sequence[Mapped],
        read: Callable[[int, memoryview], int],
    ):
        self._stretches = [stretch for stretch in stretches if stretch.start < stretch.end]
        self._starts = [stretch.start for stretch in self._stretches]
        self._mappings = mappings
        self._changing = [
            # Where a stack lies, all is a stack: of programs with an executable one, too.
            m.writable and not (m.executable and not self._has_copies(m.start, m.end))
            for m in mappings
        ]
        self._mapped = [mapping.start for mapping in mappings]
        self._read: Callable[[int, memoryview], int] | None = read
        self._pages: dict[int, bytes] = {}
        self._file_starts: list[int] = []
        self._files: list[memoryview] = []

    def back(self, start: int, data: memoryview) -> None:
        """Lend the bytes of a file to what is mapped of it at `start`.

        They serve where the process has ended meanwhile, or runs another program.
        """
        if len(data):
            at = bisect_right(self._file_starts, start)
            self._file_starts.insert(at, start)
            self._files.insert(at, data)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`, or the MemoryFault that says why they cannot be had."""
        if not 0 <= size <= _LARGEST:
            raise MemoryFault(address, size, "more than is read at once")
        pieces, here, end = [], address, address + size
        while here < end:
            piece = self._piece(here, end)
            if isinstance(piece, str):
                raise MemoryFault(address, size, piece)
            pieces.append(piece)
            here += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The copy around `address`, None where there is none."""
        stretch = self._stretch(address)
        if stretch is None or address >= stretch.start + stretch.filled:
            return None
        return stretch.start, stretch.data[: stretch.filled]

    def close(self) -> None:
        """Forget what was read; nothing more is."""
        self._read = None
        self._pages.clear()
        self._file_starts.clear()
        self._files.clear()

    def _stretch(self, address: int) -> Stretch | None:
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._stretches[at].end:
            return None
        return self._stretches[at]

    def _has_copies(self, start: int, end: int) -> bool:
        """Whether a copy lies in [start, end)."""
        at = bisect_right(self._starts, end - 1) - 1
        return at >= 0 and self._stretches[at].end > start

    def _piece(self, address: int, end: int) -> bytes | str:
        """Some of the bytes from `address` on, or why there are none."""
        stretch = self._stretch(address)
        if stretch is not None:
            at = address - stretch.start
            found = bytes(stretch.data[at : min(stretch.filled, end - stretch.start)])
            if found:
                return found
        at = bisect_right(self._mapped, address) - 1
        if at < 0 or address >= self._mappings[at].end:
            return "nothing was mapped there"
        mapping = self._mappings[at]
        if self._changing[at]:
            return stretch.lacking if stretch is not None else _CHANGES
        if not mapping.readable and not mapping.executable:
            return "a guard page: mapped without any right of access"
        page = address & -_PAGE
        data = self._page(page)
        return data[address - page : end - page] or (
            "the kernel does not read it, or the process has ended"
        )

    def _page(self, start: int) -> bytes:
        """A page that the process cannot write to, as it was when it was first asked for."""
        data = self._pages.get(start)
        if data is None:
            if self._read is None or len(self._pages) * _PAGE >= _MOST:
                return b""
            room = bytearray(_PAGE)
            data = bytes(room[: self._read(start, memoryview(room))])
            self._pages[start] = data = data or self._of_file(start)
        return data

    def _of_file(self, address: int) -> bytes:
        at = bisect_right(self._file_starts, address) - 1
        if at < 0:
            return b""
        skip = address - self._file_starts[at]
        return bytes(self._files[at][skip : skip + _PAGE])
