"""perf_event_open(2): what is asked for in, the descriptor of an event, and its records, out."""

from __future__ import annotations

import os
from mmap import MAP_SHARED, PAGESIZE, PROT_READ, PROT_WRITE, mmap
from struct import Struct, pack

__all__ = ["EventRing", "open_cpu_clock", "open_task_events", "processors"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = {"x86_64": 298, "aarch64": 241, "mips": 4333}  # of the system call
_SOFTWARE, _CPU_CLOCK, _DUMMY = 1, 0, 9  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_…
_SAMPLE_TIME = 1 << 2
# Bits of perf_event_attr's flags, Linux v6.13 include/uapi/linux/perf_event.h.
_MMAP, _COMM, _FREQ, _TASK, _SAMPLE_ID_ALL = 1 << 8, 1 << 9, 1 << 10, 1 << 13, 1 << 18
_MMAP2, _COMM_EXEC, _USE_CLOCKID = 1 << 23, 1 << 24, 1 << 25
_CLOEXEC = 1 << 3  # PERF_FLAG_FD_CLOEXEC
_CLOCK_MONOTONIC = 1
_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
_HEAD = 1024  # of data_head in the first page; data_tail lies behind it
_LONGEST = 1 << 16  # of a record, whose size has 16 bits

_header = Struct("=IHH")
_word = Struct("=Q")


def processors() -> list[int]:
    """The processors that are online."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        text = file.read()
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def open_task_events(cpu: int) -> int:
    """What happens to processes on a processor: forks, execs, mappings of code, ends.

    The kernel is not asked for build-ids: it would give them to others, too, who take them for
    something else. (Linux v6.18 perf_event_mmap_output() leaves PERF_RECORD_MISC_MMAP_BUILD_ID in
    the record that goes to everybody; seen: perf record on the same machine aborts.)
    """
    flags = _MMAP | _COMM | _TASK | _SAMPLE_ID_ALL | _MMAP2 | _COMM_EXEC | _USE_CLOCKID
    return _open(_DUMMY, 0, _SAMPLE_TIME, flags, -1, cpu)


def open_cpu_clock(cpu: int, frequency: int) -> int:
    """So many samples a second of whatever runs on a processor."""
    return _open(_CPU_CLOCK, frequency, 0, _FREQ, -1, cpu)


def _open(config: int, period: int, sample: int, flags: int, pid: int, cpu: int) -> int:
    import ctypes

    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(f"perf_event_open: unknown on {os.uname().machine}")
    head = pack("=IIQQQQQ", _SOFTWARE, _ATTR_SIZE, config, period, sample, 0, flags)
    attr = bytearray(head.ljust(_ATTR_SIZE, b"\0"))
    attr[92:96] = pack("=i", _CLOCK_MONOTONIC if flags & _USE_CLOCKID else 0)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    address = ctypes.addressof(ctypes.c_char.from_buffer(attr))
    words = [ctypes.c_long(word) for word in (number, address, pid, cpu, -1, _CLOEXEC)]
    handle = int(call(*words))
    if handle < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "perf_event_open")
    return handle


class EventRing:
    """The records of an event, of which the kernel keeps the last `size` bytes (a power of 2).

    What does not fit the kernel counts, and says so in a record (PERF_RECORD_LOST).
    """

    def __init__(self, handle: int, size: int):
        self._handle, self._size = handle, size
        try:
            self._map = mmap(handle, PAGESIZE + size, MAP_SHARED, PROT_READ | PROT_WRITE)
        except BaseException:
            os.close(handle)
            raise

    def close(self) -> None:
        """Give memory and descriptor back."""
        self._map.close()
        os.close(self._handle)

    def records(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Those that have come since: time (nanoseconds), kind, misc, and all of the record."""
        whole, size = self._map, self._size
        head = _word.unpack_from(whole, _HEAD)[0]
        tail = _word.unpack_from(whole, _HEAD + 8)[0]
        at, end = tail % size, tail % size + head - tail
        data = whole[PAGESIZE + at : PAGESIZE + min(end, size)]
        if end > size:
            data += whole[PAGESIZE : PAGESIZE + end - size]
        _word.pack_into(whole, _HEAD + 8, head)
        at = 0
        while at + 8 <= len(data):
            kind, misc, length = _header.unpack_from(data, at)
            if length < 16 or at + length > len(data):
                return
            time = _word.unpack_from(data, at + length - 8)[0]
            yield time, kind, misc, data[at : at + length]
            at += length
