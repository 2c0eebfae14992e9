"""The head of a recording in: its byte order, its events, and what its feature sections say."""

from __future__ import annotations

import os
from struct import Struct

from unwind.errors import FormatError, SourceError
from unwind.perf.constants import FEATURE, MISC, RECORD
from unwind.perf.event import Event, read_event

__all__ = ["BuildIds", "Header", "is_recording", "read_header"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    BuildIds: TypeAlias = dict[str, bytes]

_MAGIC = b"PERFILE2"
_WHERE = "perf.data"
_MOST_EVENTS = 4096
_PIPE_HEADER = 16  # the size of a header that only a stream has
_NAMED_EVENT = 2  # PERF_EVENT_UPDATE__NAME
_ZSTD = 1  # PERF_COMP_ZSTD


class Header:
    """What a recording says of itself.

    `data` is the section of the records, from `begin` on in the file. `facts` are those of
    `FEATURE` that are one string; `build_ids` are those of files by the names in mappings. A
    stream (`perf record -o -`) tells all of this in records: `take` learns from one.
    """

    def __init__(self, order: str, data: memoryview, begin: int, is_stream: bool):
        self.order = order
        self.data, self.begin = data, begin
        self.is_stream = is_stream
        self.events: list[Event] = []
        self.facts: dict[int, str] = {}
        self.command: str | None = None
        self.build_ids: BuildIds = {}
        self.warnings: list[str] = []

    @property
    def byteorder(self) -> str:
        """`little` or `big`."""
        return "little" if self.order == "<" else "big"

    def take(self, kind: int, misc: int, record: memoryview) -> bool:
        """Learn from one of a stream's records; True where the events are others from now on."""
        body, order = record[8:], self.order
        if kind == RECORD.header_attr:
            size = Struct(order + "I").unpack_from(body, 4)[0] if len(body) >= 8 else 0
            if size > len(body) or len(self.events) >= _MOST_EVENTS:
                raise FormatError("an event's attributes do not fit their record", _WHERE)
            ids = _words(body[size:], order)
            self.events.append(read_event(body[:size], order, ids))
            return True
        if kind == RECORD.event_update and len(body) > 16:
            what, number = Struct(order + "QQ").unpack_from(body)
            if what == _NAMED_EVENT:
                self._rename(number, _text(bytes(body[16:])))
                return True
        elif kind == RECORD.header_build_id:
            self._add_build_id(misc, body)
        elif kind == RECORD.header_feature and len(body) >= 8:
            feature: int = Struct(order + "Q").unpack_from(body)[0]
            self.feature(feature, body[8:])
        return False

    def feature(self, number: int, data: memoryview) -> None:
        """Learn from a feature section; one that is damaged is left out, with a warning."""
        reader = _Reader(data, self.order)
        try:
            match number:
                case FEATURE.hostname | FEATURE.osrelease | FEATURE.arch:
                    self.facts[number] = reader.string()
                case FEATURE.cmdline:
                    count = reader.number()
                    words = [reader.string() for _ in range(min(count, len(data) // 4))]
                    self.command = " ".join(words)
                case FEATURE.event_desc:
                    self._describe(reader)
                case FEATURE.compressed:
                    _, method = reader.number(), reader.number()  # the version, which is 1
                    if method not in (0, _ZSTD):
                        told = f"records are compressed by method {method}, which is not zstd"
                        self.warnings.append(told)
                case FEATURE.build_id:
                    while reader.left() >= 8:
                        misc, entry = reader.record()
                        self._add_build_id(misc, entry)
        except FormatError as error:
            self.warnings.append(f"feature section {number}: {error}")

    def _describe(self, reader: _Reader) -> None:
        """HEADER_EVENT_DESC: the names of the events, in their order."""
        count, size = reader.number(), reader.number()
        for n in range(min(count, len(self.events))):
            reader.take(size)
            ids = reader.number()
            name = reader.string()
            reader.take(8 * ids)
            self.events[n] = self.events[n].replace(name=name or self.events[n].name)

    def _rename(self, number: int, name: str) -> None:
        for n, event in enumerate(self.events):
            if number in event.ids:
                self.events[n] = event.replace(name=name or event.name)

    def _add_build_id(self, misc: int, entry: memoryview) -> None:
        """One of HEADER_BUILD_ID: pid, 24 bytes that hold the build-id, the file's name."""
        if len(entry) < 28:
            return
        size = entry[24] if misc & MISC.build_id_size else 20
        build_id = bytes(entry[4 : 4 + min(size, 20)])
        name = _text(bytes(entry[28:]))
        if name and any(build_id):
            self.build_ids[name] = build_id


def is_recording(head: bytes) -> bool:
    """Whether a file begins as perf.data does, in either byte order."""
    return head[:8] in (_MAGIC, _MAGIC[::-1])


def read_header(data: memoryview, path: str = "") -> Header:
    """The header of a recording; SourceError where it is none, FormatError where it is damaged."""
    magic = bytes(data[:8])
    if not is_recording(magic):
        reason = "no recording of perf: it does not begin with PERFILE2"
        if magic == b"PERFFILE":
            reason = "a recording of perf before Linux 2.6.39, in a format of its own"
        raise SourceError(reason, path)
    order = "<" if magic == _MAGIC else ">"
    if len(data) < 16:
        raise FormatError("the header is truncated", path or _WHERE, len(data))
    size: int = Struct(order + "Q").unpack_from(data, 8)[0]
    if size == _PIPE_HEADER:
        return Header(order, data[16:], 16, True)
    if len(data) < 104 or size < 104:
        raise FormatError("the header is truncated", path or _WHERE, len(data))
    entry, attrs, attrs_size, begin, length = Struct(order + "QQQQQ").unpack_from(data, 16)
    if begin + length > len(data) or length == 0:
        # perf fills in the size when it ends: it was killed, or what came after was cut off.
        records, warning = data[begin:], "perf did not finish this recording, or it is truncated"
    else:
        records, warning = data[begin : begin + length], ""
    header = Header(order, records, begin, False)
    if warning:
        header.warnings.append(warning)
    _read_events(header, data, entry, data[attrs : attrs + attrs_size])
    if not warning:
        bits = int.from_bytes(data[72:104], "little") if order == "<" else _bits(data[72:104])
        for number, section in _features(data, begin + length, bits, order):
            header.feature(number, section)
    return header


def _read_events(header: Header, data: memoryview, entry: int, attrs: memoryview) -> None:
    """The attributes of each event, with the place of its ids behind them."""
    section = Struct(header.order + "QQ").unpack_from
    if not 16 < entry <= 4096:
        raise FormatError(f"attributes of {entry} bytes", _WHERE, 16)
    for at in range(0, min(len(attrs) // entry, _MOST_EVENTS) * entry, entry):
        offset, size = section(attrs, at + entry - 16)
        ids = _words(data[offset : offset + size], header.order)
        header.events.append(read_event(attrs[at : at + entry - 16], header.order, ids))
    if not header.events:
        raise FormatError("no events were recorded", _WHERE, 16)


def _features(
    data: memoryview, table: int, bits: int, order: str
) -> Iterator[tuple[int, memoryview]]:
    """The feature sections, whose table lies behind the records."""
    section, at = Struct(order + "QQ").unpack_from, table
    for number in range(256):
        if bits >> number & 1 and at + 16 <= len(data):
            offset, size = section(data, at)
            yield number, data[offset : offset + size]
            at += 16


def _bits(data: memoryview) -> int:
    """A bitmap of 64-bit words of the other byte order."""
    return sum(int.from_bytes(data[8 * n : 8 * n + 8], "big") << 64 * n for n in range(4))


def _words(data: memoryview, order: str) -> tuple[int, ...]:
    count = len(data) // 8
    return Struct(f"{order}{count}Q").unpack(data[: 8 * count])


def _text(data: bytes) -> str:
    return os.fsdecode(data.partition(b"\0")[0])


class _Reader:
    """Reads the numbers and strings of a feature section; FormatError at its end."""

    def __init__(self, data: memoryview, order: str):
        self.data, self.order, self.at = data, order, 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> memoryview:
        if size > self.left():
            raise FormatError("it ends early", _WHERE)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        found: int = Struct(self.order + "I").unpack(self.take(4))[0]
        return found

    def string(self) -> str:
        """A length, padding included, and so many bytes."""
        return _text(bytes(self.take(self.number())))

    def record(self) -> tuple[int, memoryview]:
        """The `misc` and the body of a record."""
        _, misc, size = Struct(self.order + "IHH").unpack(self.take(8))
        return misc, self.take(max(size - 8, 0))
