"""Ranges of a process' memory in, copies of them out, as far as time and the kernel allow."""

from __future__ import annotations

import os
from errno import EFAULT, ENOSYS, EPERM, ESRCH
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from unwind.live import ptrace

__all__ = ["Copier", "Stretch"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Range = tuple[int, int]

_FIRST = 1 << 16  # bytes of each range that are copied before the rest of any
_AT_ONCE = 1 << 22  # bytes of one call: between two of them the clock is looked at
_MOST = 1 << 29  # bytes of all copies

UNREADABLE = "the kernel does not read it"
TOO_MUCH = f"more than {_MOST >> 20} MB of stacks are not copied"
ENDED = "the process ended before it was copied"
OUT_OF_TIME = "not copied, as the process was not to be stopped for longer: --max-stop gives time"


class Stretch:
    """A copy of [start, start + filled); `lacking` says why what lies behind that, to `end`, is not
    there. `data`, which takes the bytes, lies at `place` in our memory.
    """

    __slots__ = ("data", "end", "filled", "lacking", "place", "start")

    def __init__(self, start: int, end: int, data: memoryview, place: int = 0):
        self.start, self.end, self.data, self.place = start, end, data, place
        self.filled = 0
        self.lacking = OUT_OF_TIME


class Copier:
    """Copies memory of the process `pid`, whose /proc/PID/mem is open as `handle`."""

    def __init__(self, pid: int, handle: int):
        self.pid, self.handle = pid, handle
        self._vectors = True  # whether process_vm_readv is allowed: containers may forbid it

    def copy(self, ranges: Iterable[Range], go_on: Callable[[], bool]) -> list[Stretch]:
        """Copies of the ranges, ascending, overlapping ones as one, until `go_on` says no.

        The beginnings come first: the innermost frames of every thread lie there.
        """
        stretches = _stretches(ranges)
        for limit in (_FIRST, _MOST):
            for batch in _batches(stretches, limit):
                if not go_on():
                    return stretches
                if not self._fill(batch):
                    break
        for stretch in stretches:
            if stretch.lacking == OUT_OF_TIME:
                whole = stretch.filled == len(stretch.data)
                stretch.lacking = TOO_MUCH if whole else ENDED
        return stretches

    def _fill(self, batch: list[tuple[Stretch, int]]) -> bool:
        """Read so many more bytes of each stretch; False where the process has ended."""
        while batch:
            try:
                found = self._read(batch)
            except OSError as error:
                if error.errno == ESRCH:
                    return False
                raise
            done = 0
            for stretch, size in batch:
                piece = min(size, found)
                stretch.filled += piece
                found -= piece
                if piece < size:
                    stretch.lacking = UNREADABLE
                    stretch.data = stretch.data[: stretch.filled]
                    break
                done += 1
            batch = batch[done + 1 :]
        return True

    def _read(self, batch: list[tuple[Stretch, int]]) -> int:
        """Read so many more bytes of each stretch; how many came, in their order."""
        if self._vectors:
            pieces = [(s.start + s.filled, s.place + s.filled, size) for s, size in batch]
            try:
                return ptrace.read_memory(self.pid, pieces)
            except OSError as error:
                if error.errno == EFAULT:
                    return 0
                if error.errno not in (EPERM, ENOSYS) or self.handle < 0:
                    raise
                self._vectors = False
        found = 0
        for s, size in batch:
            room = s.data[s.filled : s.filled + size]
            piece = _read_into(self.handle, s.start + s.filled, room)
            found += piece
            if piece < size:
                break
        return found

    def later(self, address: int, room: memoryview) -> int:
        """Fill `room` with what lies there by now; 0 where another program runs, or none.

        Without a handle nobody can say for sure which program that is: code of the same program,
        started anew, lies elsewhere, unless the kernel was told not to.
        """
        if self.handle >= 0:
            return _read_into(self.handle, address, room)
        try:
            place = ptrace.address_of(room)
            return ptrace.read_memory(self.pid, [(address, place, len(room))])
        except OSError:
            return 0


def _read_into(handle: int, address: int, room: memoryview) -> int:
    """Fill `room` from /proc/PID/mem; how many bytes came, 0 where none can be read."""
    found = 0
    while found < len(room):
        try:
            piece = os.preadv(handle, [room[found:]], address + found)
        except (OSError, OverflowError):
            break
        if not piece:
            break
        found += piece
    return found


def _stretches(ranges: Iterable[Range]) -> list[Stretch]:
    """The ranges, joined where they meet, with room for their bytes."""
    joined: list[list[int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        elif start < end:
            joined.append([start, end])
    left, rooms = _MOST, []
    for start, end in joined:
        rooms.append(min(end - start, left))
        left -= rooms[-1]
    if not sum(rooms):
        return []
    whole = memoryview(mmap(-1, sum(rooms), MAP_PRIVATE | MAP_ANONYMOUS))
    place = ptrace.address_of(whole)
    found, at = [], 0
    for (start, end), size in zip(joined, rooms, strict=True):
        found.append(Stretch(start, end, whole[at : at + size], place + at))
        at += size
    return found


def _batches(stretches: list[Stretch], limit: int) -> Iterator[list[tuple[Stretch, int]]]:
    """What is to be read of which stretch, so that `limit` bytes of each are there."""
    batch: list[tuple[Stretch, int]] = []
    room = _AT_ONCE
    for stretch in stretches:
        wanted = min(limit, len(stretch.data)) - stretch.filled
        while wanted > 0:
            size = min(wanted, room)
            batch.append((stretch, size))
            wanted, room = wanted - size, room - size
            if not room or len(batch) == ptrace.MOST_VECTORS:
                yield batch
                batch, room = [], _AT_ONCE
                wanted = min(limit, len(stretch.data)) - stretch.filled
    if batch:
        yield batch
