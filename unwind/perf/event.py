"""An event's perf_event_attr in, where each field of its samples lies out.

The order of the fields is that of Linux v6.13 include/uapi/linux/perf_event.h, in the comment on
PERF_RECORD_SAMPLE.
"""

from __future__ import annotations

from struct import Struct

from unwind.errors import FormatError
from unwind.perf.constants import SAMPLE, event_name
from unwind.values import Value

__all__ = ["Event", "SampleLayout", "Trailer", "read_event"]

_READ_ENABLED, _READ_RUNNING = 1 << 0, 1 << 1  # PERF_FORMAT_TOTAL_TIME_…
_READ_ID, _READ_GROUP, _READ_LOST = 1 << 2, 1 << 3, 1 << 4
_HW_INDEX = 1 << 17  # PERF_SAMPLE_BRANCH_HW_INDEX
_BRANCH_COUNTERS = 1 << 19
_FREQ, _SAMPLE_ID_ALL = 10, 18  # bits of perf_event_attr's flags
_OLDEST = 64  # PERF_ATTR_SIZE_VER0
_WHERE = "perf.data"
_ABSENT = "0s"  # yields b"" in place of a field that a sample lacks
# The fields of a sample that come first, each of 8 bytes: struct's format for it, and without it.
_FIXED = (
    (SAMPLE.identifier, "8x", ""),
    (SAMPLE.ip, "Q", _ABSENT),
    (SAMPLE.tid, "II", _ABSENT * 2),
    (SAMPLE.time, "Q", _ABSENT),
    (SAMPLE.addr, "8x", ""),
    (SAMPLE.id, "8x", ""),
    (SAMPLE.stream_id, "8x", ""),
    (SAMPLE.cpu, "I4x", _ABSENT),
    (SAMPLE.period, "Q", _ABSENT),
)


class Event(Value):
    """What was sampled, and how its records look.

    `ids` are those that its samples name. `regs` is the mask of the user registers in a sample,
    `stack` how many bytes of stack were asked for. `period` is the weight of a sample that states
    none. `sample_id_all`: the kernel's other records end in who, when and what event.
    """

    name: str
    kind: int
    config: int
    ids: tuple[int, ...]
    sample_type: int
    read_format: int
    regs: int
    stack: int
    period: int
    sample_id_all: bool
    branch_type: int

    @property
    def unit(self) -> str:
        """What a period counts: nanoseconds for clocks, else the event itself."""
        return "nanoseconds" if self.kind == 1 and self.config < 2 else self.name


def read_event(
    attr: memoryview, order: str, ids: tuple[int, ...] = (), name: str | None = None
) -> Event:
    """The Event of a struct perf_event_attr, of any version; `order` is struct's `<` or `>`.

    What an old version lacks is zero. FormatError where it is shorter than the oldest.
    """
    if len(attr) < _OLDEST:
        raise FormatError(f"an event's attributes take {len(attr)} bytes", _WHERE)
    data = bytes(attr[:104]).ljust(104, b"\0")
    kind, _, config, period, sample_type, read_format, flags = Struct(order + "IIQQQQQ").unpack(
        data[:48]
    )
    branch_type, regs, stack = Struct(order + "QQI").unpack_from(data, 72)
    if order == ">":  # there the first of C's bit fields is the highest bit
        flags = int(f"{flags:064b}"[::-1], 2)
    return Event(
        name or event_name(kind, config),
        kind,
        config,
        ids,
        sample_type,
        read_format,
        regs if sample_type & SAMPLE.regs_user else 0,
        stack if sample_type & SAMPLE.stack_user else 0,
        1 if flags >> _FREQ & 1 else max(period, 1),
        bool(flags >> _SAMPLE_ID_ALL & 1),
        branch_type,
    )


class SampleLayout:
    """Where the fields of one event's samples lie.

    `head` reads, by `format`, from the record's first byte on, (ip, pid, tid, time, cpu, period,
    nr), b"" for what such samples lack; `nr` is the length of the callchain where nothing of
    unknown size lies before it. `time` and `id` are offsets into the record, None where there is
    none.
    """

    def __init__(self, event: Event, order: str):
        kinds = self.kinds = event.sample_type
        self.event = event
        self.time: int | None = None
        self.id: int | None = None
        formats, at = [order, "8x"], 8
        for bit, format, absent in _FIXED:
            if not kinds & bit:
                formats.append(absent)
                continue
            if bit == SAMPLE.time:
                self.time = at
            if bit in (SAMPLE.identifier, SAMPLE.id) and self.id is None:
                self.id = at
            formats.append(format)
            at += 8
        self.fixed = at  # bytes up to what has no place of its own
        counted = kinds & SAMPLE.callchain and not kinds & SAMPLE.read
        formats.append("Q" if counted else _ABSENT)
        self.format = "".join(formats)
        struct = Struct(self.format)
        self.head, self.head_size = struct.unpack_from, struct.size
        # The registers lie right behind the callchain, and that behind the head.
        self.is_plain = bool(counted) and not kinds & (SAMPLE.raw | SAMPLE.branch_stack)
        self.has_tid, self.has_cpu = bool(kinds & SAMPLE.tid), bool(kinds & SAMPLE.cpu)
        self.has_regs = bool(kinds & SAMPLE.regs_user)
        self.has_stack = bool(kinds & SAMPLE.stack_user)
        self._u32, self._u64 = Struct(order + "I").unpack_from, Struct(order + "Q").unpack_from

    def callchain(self, data: memoryview, at: int, end: int) -> tuple[int, int]:
        """Where the addresses of the callchain lie, and how many, of the sample in [at, end).

        FormatError where the sample ends before they do; so for the other methods.
        """
        here = at + self.fixed
        if self.kinds & SAMPLE.read:
            here += self._read_size(data, here, end)
        if not self.kinds & SAMPLE.callchain:
            if here > end:  # many values of READ_GROUP
                raise FormatError("a sample ends within its fields", _WHERE, at)
            return here, 0
        count = self._number(data, here, end)
        if here + 8 + 8 * count > end:
            raise FormatError(f"a callchain of {count} addresses does not fit", _WHERE, at)
        return here + 8, count

    def registers(self, data: memoryview, at: int, end: int) -> int:
        """Where the ABI of the user registers lies, `at` being the end of the callchain."""
        if self.kinds & SAMPLE.raw:
            if at + 4 > end:
                raise FormatError("a sample ends within its fields", _WHERE, at)
            at += 4 + int(self._u32(data, at)[0])
        if self.kinds & SAMPLE.branch_stack:
            count, branch_type = self._number(data, at, end), self.event.branch_type
            at += 8 + 8 * bool(branch_type & _HW_INDEX) + 24 * count
            if branch_type & _BRANCH_COUNTERS:
                at += 8 * count
        if at > end:
            raise FormatError("a sample ends within its fields", _WHERE, at)
        return at

    def _read_size(self, data: memoryview, at: int, end: int) -> int:
        """The size of what `read_format` puts into a sample."""
        format = self.event.read_format
        times = 8 * bool(format & _READ_ENABLED) + 8 * bool(format & _READ_RUNNING)
        one = 8 + 8 * bool(format & _READ_ID) + 8 * bool(format & _READ_LOST)
        if format & _READ_GROUP:
            return 8 + times + one * self._number(data, at, end)
        return times + one

    def _number(self, data: memoryview, at: int, end: int) -> int:
        if at + 8 > end:
            raise FormatError("a sample ends within its fields", _WHERE, at)
        return int(self._u64(data, at)[0])


class Trailer:
    """The sample_id at the end of the kernel's other records, where `sample_id_all` is set.

    `time` counts back from the record's end; None where there is none.
    """

    def __init__(self, event: Event):
        kinds = event.sample_type
        order = (SAMPLE.tid, SAMPLE.time, SAMPLE.id, SAMPLE.stream_id, SAMPLE.cpu)
        present = [bit for bit in (*order, SAMPLE.identifier) if kinds & bit]
        self.size = 8 * len(present) if event.sample_id_all else 0
        self.time: int | None = None
        if event.sample_id_all and kinds & SAMPLE.time:
            self.time = 8 * (len(present) - present.index(SAMPLE.time))
