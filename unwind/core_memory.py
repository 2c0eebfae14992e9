"""A core's memory: its program headers and bytes in; what the process had at an address out."""

from __future__ import annotations

from bisect import bisect_right

from unwind.errors import MemoryFault

__all__ = ["CoreMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from mmap import mmap

_PF_X, _PF_W = 1, 2
_TOP = 1 << 64
_SHORT = 1 << 16  # bytes that are sooner read than looked at where they are mapped
_LARGEST = 1 << 30  # bytes read at once: a sparse core may claim to hold terabytes of zeroes


class CoreMemory:
    """What a core dumped, then what files hold of the mappings that it left out.

    `loads` are the PT_LOADs as `Elf.program_rows` has them. Pages that were not dumped are
    unreadable until `back` lends them the bytes of the file that was mapped there. `read` reads
    at an offset of the core, where that is better than a look at `data`.
    """

    def __init__(
        self,
        data: mmap | bytes,
        loads: Iterable[tuple[int, ...]],
        read: Callable[[int, int], bytes] | None = None,
    ):
        self._data = data
        self._read = read
        self._view = memoryview(data)
        self.size = size = len(data)  # bytes of the core that are there
        self.expected = 0  # and that its program headers speak of
        self._starts: list[int] = []
        self._ends: list[int] = []  # of what is there
        self._promised: list[int] = []  # of what would be there if the core were whole
        self._mapped: list[int] = []  # of the mapping
        self._shifts: list[int] = []  # from an address to the offset in the core
        self._flags: list[int] = []
        for _, flags, offset, start, file_size, memory_size, _ in sorted(loads, key=_by_address):
            if not (file_size or memory_size):
                continue
            held = file_size
            if offset + file_size > size:  # the core is truncated
                held = max(size - offset, 0)
            if file_size and offset + file_size > self.expected:
                self.expected = offset + file_size
            if memory_size < file_size:
                memory_size = file_size
            self._starts.append(start)
            self._ends.append(start + held)
            self._promised.append(start + file_size)
            self._mapped.append(start + memory_size)
            self._shifts.append(offset - start)
            self._flags.append(flags)
        for ends in (self._ends, self._promised, self._mapped):
            if ends and max(ends) > _TOP:
                ends[:] = [min(end, _TOP) for end in ends]
        self.names: dict[int, str] = {}  # what was mapped at the start of a mapping
        self._file_starts: list[int] = []
        self._files: list[memoryview] = []

    @property
    def holds_data(self) -> bool:
        """Whether any writable mapping was dumped: private pages that changed are in the core.

        Where none was, a file's writable part may have looked otherwise in memory.
        """
        return any(
            flags & _PF_W and promised > start
            for flags, promised, start in zip(
                self._flags, self._promised, self._starts, strict=True
            )
        )

    def mappings(self) -> list[tuple[int, int, bool]]:
        """The (start, end, executable) of each mapping, ascending and without overlap."""
        found, rows = [], zip(self._starts, self._mapped, self._flags, strict=True)
        limits = [*self._starts, _TOP][1:]  # none where nothing is mapped
        for (start, end, flags), limit in zip(rows, limits, strict=True):
            if start < (end := min(end, limit)):
                found.append((start, end, bool(flags & _PF_X)))
        return found

    def executable(self, address: int) -> bool | None:
        """Whether code may run at `address`; None where no program header tells."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._mapped[at]:
            return None
        return bool(self._flags[at] & _PF_X)

    def code(self, address: int) -> tuple[int, int] | None:
        """The mapping around `address`, from where to where, if code may run there, or None."""
        starts = self._starts
        at = bisect_right(starts, address) - 1
        if at < 0 or address >= self._mapped[at] or not self._flags[at] & _PF_X:
            return None
        end = self._mapped[at]
        return starts[at], min(end, starts[at + 1]) if at + 1 < len(starts) else end

    def back(self, start: int, data: memoryview) -> None:
        """Lend the bytes of a file to the pages from `start` on that were not dumped."""
        if len(data):
            at = bisect_right(self._file_starts, start)
            self._file_starts.insert(at, start)
            self._files.insert(at, data)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; MemoryFault says why where one of them is not there."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address + size <= self._ends[at] and 0 <= size <= _LARGEST:
            begin = address + self._shifts[at]
            return self._data[begin : begin + size]
        if not 0 <= size <= _LARGEST:
            raise MemoryFault(address, size, "more than is read at once")
        pieces, here, end = [], address, address + size
        while here < end:
            piece = self._stretch(here)
            if isinstance(piece, str):
                raise MemoryFault(address, size, piece)
            pieces.append(bytes(piece[: end - here]))
            here += len(pieces[-1])
        return b"".join(pieces)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The dumped or file-backed stretch around `address`, or from there on, or None."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and address < self._ends[at]:
            start, end, shift = self._starts[at], self._ends[at], self._shifts[at]
            if end - address <= _SHORT and self._read is not None:
                return address, memoryview(self._read(address + shift, end - address))
            return start, self._view[start + shift : end + shift]
        piece = self._stretch(address)
        return None if isinstance(piece, str) else (address, piece)

    def dumped(self, address: int) -> bool:
        """Whether the core itself holds the byte at `address`."""
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address < self._ends[at]

    def _stretch(self, address: int) -> memoryview | str:
        """The bytes from `address` on as far as one piece holds them, or why there are none."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._mapped[at]:
            limit = self._starts[at + 1] if at + 1 < len(self._starts) else _TOP
            return self._of_file(address, limit) or "nothing was mapped there"
        if address < self._ends[at]:
            shift = self._shifts[at]
            return self._view[address + shift : self._ends[at] + shift]
        flags = self._flags[at]
        # What the core was to hold may differ from the file, unless it is code.
        if address < self._promised[at] and flags & (_PF_X | _PF_W) != _PF_X:
            return self._truncated()
        found = self._of_file(address, self._mapped[at])
        if found is not None:
            return found
        if address < self._promised[at]:
            return self._truncated()
        if not flags:
            return "a guard page: mapped without any right of access"
        name = self.names.get(self._starts[at])
        return (
            f"the core leaves this part of {name} out, as coredump_filter has it, "
            "and no file serves in its place"
            if name
            else "the core leaves this mapping out, as coredump_filter or madvise(2) has it"
        )

    def _of_file(self, address: int, limit: int) -> memoryview | None:
        at = bisect_right(self._file_starts, address) - 1
        if at < 0:
            return None
        data, skip = self._files[at], address - self._file_starts[at]
        return data[skip : skip + limit - address] if skip < len(data) else None

    def _truncated(self) -> str:
        return f"the core is truncated there ({self.size} of {self.expected} bytes present)"

    def close(self) -> None:
        """Give the core's bytes back; views that were handed out keep them alive."""
        self._view.release()
        self._starts.clear()
        self._file_starts.clear()
        self._files.clear()


def _by_address(row: tuple[int, ...]) -> int:
    return row[3]
