"""Recordings: records and samples in, the bytes of a perf.data file or stream out.

The layout is that of Linux v6.13 tools/perf/Documentation/perf.data-file-format.txt and
include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from unwind.perf.constants import FEATURE, MISC, RECORD, SAMPLE
from unwind.testing.damage import Area, Field

if TYPE_CHECKING:
    from unwind.architecture import Architecture

__all__ = ["FIELDS", "Recording", "Sampled"]

_MAGIC = b"PERFILE2"
_ATTR = 136  # bytes of struct perf_event_attr, as of Linux 6.13
_SOFTWARE, _CPU_CLOCK = 1, 0
_SAMPLE_ID_ALL, _COMM_EXEC = 18, 24  # their bits among the flags
_ENABLED, _RUNNING, _ID, _GROUP, _LOST = 1, 2, 4, 8, 16  # PERF_FORMAT_…
_PROT_READ_EXEC = 5
_ABI_64, _ABI_32 = 2, 1
_UNAMES = {"arm64": "aarch64", "mips32": "mips", "mips32el": "mips"}

FIELDS = (
    *(SAMPLE.identifier, SAMPLE.addr, SAMPLE.id, SAMPLE.stream_id, SAMPLE.cpu, SAMPLE.period),
    *(SAMPLE.read, SAMPLE.callchain, SAMPLE.raw, SAMPLE.branch_stack),
)
"""What a sample may hold beside what a stack needs: bits of `Recording.kinds`."""


@dataclass(frozen=True)
class Sampled:
    """A thread at one instant, as a sample has it: `stack` begins at its stack pointer."""

    pid: int
    tid: int
    time: int  # ns
    registers: Mapping[int, int]
    stack: bytes = field(repr=False)
    cpu: int = 0
    period: int = 1
    callchain: tuple[int, ...] = ()


@dataclass
class Recording:
    """What perf recorded of one event, and how: build it by the methods, then take the bytes.

    `kinds` are bits of SAMPLE beside those that a stack needs, `read_format` those of what READ
    holds; `dump` is how many bytes of stack each sample has room for. `registers` are the DWARF
    numbers of those that samples have, None for all that perf knows.
    """

    arch: Architecture
    kinds: int = SAMPLE.cpu | SAMPLE.period | SAMPLE.callchain
    dump: int = 8192
    sample_id_all: bool = True
    read_format: int = 0
    registers: Collection[int] | None = None
    records: list[bytes] = field(default_factory=list)

    @property
    def order(self) -> str:
        return "<" if self.arch.byteorder == "little" else ">"

    @property
    def sample_type(self) -> int:
        """What each sample holds."""
        needed = SAMPLE.ip | SAMPLE.tid | SAMPLE.time | SAMPLE.regs_user | SAMPLE.stack_user
        return self.kinds | needed

    def mapping(
        self, pid: int, time: int, start: int, length: int, name: str, offset: int = 0
    ) -> None:
        """A file is mapped executable from its byte `offset` on."""
        numbers = self._pack("IIQQQ", pid, pid, start, length, offset)
        inode = self._pack("IIQQ", 0, 0, 0, 0)
        body = numbers + inode + self._pack("II", _PROT_READ_EXEC, 2) + _padded(name)
        self._record(RECORD.mmap2, MISC.user, body + self._trailer(pid, pid, time))

    def comm(self, pid: int, tid: int, time: int, name: str, exec: bool = False) -> None:
        """A thread is called `name` from now on, because its process was exec'd or not."""
        misc = MISC.comm_exec if exec else 0
        body = self._pack("II", pid, tid) + _padded(name)
        self._record(RECORD.comm, misc, body + self._trailer(pid, tid, time))

    def fork(self, pid: int, tid: int, parent: int, time: int) -> None:
        """A process or, if `pid` is its parent's, a thread begins."""
        body = self._pack("IIIIQ", pid, parent, tid, parent, time)
        self._record(RECORD.fork, 0, body + self._trailer(parent, parent, time))

    def exit(self, pid: int, tid: int, parent: int, time: int) -> None:
        """A thread ends."""
        body = self._pack("IIIIQ", pid, parent, tid, parent, time)
        self._record(RECORD.exit, 0, body + self._trailer(pid, tid, time))

    def kernel_symbol(self, time: int, start: int, size: int, name: str) -> None:
        """The kernel has made code of a BPF program."""
        body = self._pack("QIHH", start, size, 1, 0) + _padded(name)
        self._record(RECORD.ksymbol, 0, body + self._trailer(0, 0, time))

    def round(self) -> None:
        """What comes later is not earlier than what came before the last round."""
        self._record(RECORD.finished_round, 0, b"")

    def sample(self, sampled: Sampled) -> None:
        """One sample; registers that are not known have a value all the same."""
        kinds, arch = self.sample_type, self.arch
        numbers = (
            (SAMPLE.identifier, self._pack("Q", 1)),
            (SAMPLE.ip, self._pack("Q", sampled.registers[arch.pc])),
            (SAMPLE.tid, self._pack("II", sampled.pid, sampled.tid)),
            (SAMPLE.time, self._pack("Q", sampled.time)),
            (SAMPLE.addr, self._pack("Q", 0)),
            (SAMPLE.id, self._pack("Q", 1)),
            (SAMPLE.stream_id, self._pack("Q", 1)),
            (SAMPLE.cpu, self._pack("II", sampled.cpu, 0)),
            (SAMPLE.period, self._pack("Q", sampled.period)),
            (SAMPLE.read, self._read(sampled.period)),
        )
        body = b"".join(packed for bit, packed in numbers if kinds & bit)
        if kinds & SAMPLE.callchain:
            chain = sampled.callchain
            body += self._pack(f"{1 + len(chain)}Q", len(chain), *chain)
        if kinds & SAMPLE.raw:
            body += self._pack("I", 4) + b"rawd"
        if kinds & SAMPLE.branch_stack:
            body += self._pack("7Q", 2, *range(6))  # two of them, each from, to and flags
        values = [sampled.registers.get(number, 0x5A5A) for _, number in self._layout()]
        body += self._pack(f"Q{len(values)}Q", self._abi(), *values)
        dump = sampled.stack[: self.dump]
        body += self._pack("Q", self.dump) + dump.ljust(self.dump, b"\xa5")
        body += self._pack("Q", len(dump))
        self._record(RECORD.sample, MISC.user, body)

    def build(self, stream: bool = False) -> bytes:
        """A file, or what `perf record -o -` writes."""
        records, attr = b"".join(self.records), self._attr()
        uname = _UNAMES.get(self.arch.name, self.arch.name)
        told = self._pack("I", 64) + uname.encode().ljust(64, b"\0")
        magic = _MAGIC if self.order == "<" else _MAGIC[::-1]
        if stream:
            attr = self._packed(RECORD.header_attr, 0, attr + self._pack("Q", 1))
            arch = self._packed(RECORD.header_feature, 0, self._pack("Q", FEATURE.arch) + told)
            return magic + self._pack("Q", 16) + attr + arch + records
        ids, attrs = 104, 112
        data = attrs + len(attr) + 16
        features = [0, 0, 0, 0]
        features[FEATURE.arch >> 6] |= 1 << (FEATURE.arch & 63)
        head = self._pack(
            "QQQQQQQ", 104, len(attr) + 16, attrs, len(attr) + 16, data, len(records), 0
        )
        head += self._pack("Q4Q", 0, *features)
        table = data + len(records)
        whole = magic + head + self._pack("Q", 1) + attr + self._pack("QQ", ids, 8) + records
        return whole + self._pack("QQ", table + 16, len(told)) + told

    def areas(self) -> tuple[Area, ...]:
        """Where in the file the numbers lie by which records are found and read."""
        at = 112 + _ATTR + 16
        header = [Field("size", 8 * n, 8) for n in range(1, 9)]
        attr = [Field("attr", 112 + n, 8) for n in (8, 16, 24, 32, 80)]
        found = [Area("header", 0, 104, tuple(header)), Area("attr", 112, 112 + _ATTR, tuple(attr))]
        for record in self.records:
            numbers = [Field("kind", at, 4), Field("size", at + 6, 2)]
            numbers += [Field("word", at + n, 8) for n in range(8, min(len(record) - 7, 120), 8)]
            found.append(Area("record", at, at + len(record), tuple(numbers)))
            at += len(record)
        return tuple(found)

    def _attr(self) -> bytes:
        flags = self.sample_id_all << _SAMPLE_ID_ALL | 1 << _COMM_EXEC
        if self.order == ">":  # bit fields begin with the highest bit there
            flags = int(f"{flags:064b}"[::-1], 2)
        bits = sum(1 << offset // 8 for offset, _ in self._layout())
        what = _SOFTWARE, _ATTR, _CPU_CLOCK, 1, self.sample_type, self.read_format, flags
        attr = self._pack("IIQQQQQ", *what)
        return (attr.ljust(80, b"\0") + self._pack("QI", bits, self.dump)).ljust(_ATTR, b"\0")

    def _layout(self) -> list[tuple[int, int]]:
        """The registers of a sample as (offset among all that perf knows, DWARF number)."""
        offsets = self.arch.layouts["perf"].offsets
        wanted = offsets if self.registers is None else self.registers
        return sorted((offsets[number], number) for number in wanted)

    def _read(self, count: int) -> bytes:
        """What READ holds; of a group there are two events."""
        form = self.read_format
        times = self._pack("Q", 1) * (bool(form & _ENABLED) + bool(form & _RUNNING))
        more = self._pack("Q", 1) * (bool(form & _ID) + bool(form & _LOST))
        one = self._pack("Q", count)
        if form & _GROUP:
            return self._pack("Q", 2) + times + (one + more) * 2
        return one + times + more

    def _trailer(self, pid: int, tid: int, time: int) -> bytes:
        """The sample_id behind other records."""
        kinds = self.sample_type if self.sample_id_all else 0
        numbers = (
            (SAMPLE.tid, self._pack("II", pid, tid)),
            (SAMPLE.time, self._pack("Q", time)),
            (SAMPLE.id, self._pack("Q", 1)),
            (SAMPLE.stream_id, self._pack("Q", 1)),
            (SAMPLE.cpu, self._pack("II", 0, 0)),
            (SAMPLE.identifier, self._pack("Q", 1)),
        )
        return b"".join(packed for bit, packed in numbers if kinds & bit)

    def _abi(self) -> int:
        return _ABI_64 if self.arch.word == 8 else _ABI_32

    def _record(self, kind: int, misc: int, body: bytes) -> None:
        self.records.append(self._packed(kind, misc, body))

    def _packed(self, kind: int, misc: int, body: bytes) -> bytes:
        body = body.ljust(-(-len(body) // 8) * 8, b"\0")
        return self._pack("IHH", kind, misc, 8 + len(body)) + body

    def _pack(self, format: str, *values: int) -> bytes:
        return struct.pack(self.order + format, *values)


def _padded(name: str) -> bytes:
    text = name.encode() + b"\0"
    return text.ljust(-(-len(text) // 8) * 8, b"\0")
