"""Recordings put together by hand: any byte order, any fields, a file or a stream."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unwind.architecture import Architecture
from unwind.perf.constants import CONTEXT, FEATURE, MISC, RECORD, SAMPLE

__all__ = ["FIELDS", "KERNEL_CHAIN", "Built"]

_PROT_EXEC = 4
_COMM_EXEC = 1 << 24  # of perf_event_attr's flags: comm_exec
_SAMPLE_ID_ALL = 1 << 18

# Those that a recording may have beside tid, time, registers and stack, with what READ holds.
FIELDS = (
    *(SAMPLE.identifier, SAMPLE.ip, SAMPLE.addr, SAMPLE.id, SAMPLE.stream_id, SAMPLE.cpu),
    *(SAMPLE.period, SAMPLE.read, SAMPLE.callchain, SAMPLE.raw, SAMPLE.branch_stack),
)


@dataclass
class Built:
    """A recording of one event: records are added in the order of the file.

    `fields` are bits of SAMPLE beside the usual ones. `read_format` is what READ holds.
    """

    arch: Architecture
    fields: int = 0
    read_format: int = 0
    machine: str = ""
    is_stream: bool = False
    identifier: int = 77
    records: list[bytes] = field(default_factory=list)
    registers: tuple[int, ...] = ()
    """The DWARF numbers of the registers in samples."""

    @property
    def order(self) -> str:
        return "<" if self.arch.byteorder == "little" else ">"

    @property
    def kinds(self) -> int:
        usual = SAMPLE.tid | SAMPLE.time | SAMPLE.regs_user | SAMPLE.stack_user
        return self.fields | usual

    @property
    def bits(self) -> list[int]:
        """The registers' places in the kernel's enumeration, ascending."""
        offsets = self.arch.layouts["perf"].offsets
        return sorted(offsets[number] // 8 for number in self.registers)

    def add(self, kind: int, body: bytes, misc: int = MISC.user, time: int | None = None) -> None:
        """A record; one of the kernel's has who and when behind it."""
        if time is not None:
            body += self._trailer(time)
        head = struct.pack(f"{self.order}IHH", kind, misc, 8 + len(body))
        self.records.append(head + body)

    def comm(self, pid: int, name: str, time: int, exec: bool = False) -> None:
        text = name.encode().ljust(16, b"\0")
        misc = MISC.user | (MISC.comm_exec if exec else 0)
        self.add(RECORD.comm, self._pack("II", pid, pid) + text, misc, time)

    def fork(self, pid: int, parent: int, time: int) -> None:
        self.add(RECORD.fork, self._pack("IIIIQ", pid, parent, pid, parent, time), time=time)

    def map(self, pid: int, start: int, size: int, name: str, time: int, offset: int = 0) -> None:
        text = name.encode() + b"\0"
        body = self._pack("IIQQQIIQQII", pid, pid, start, size, offset, 8, 1, 5, 0, _PROT_EXEC, 2)
        body += text.ljust(-(-len(text) // 8) * 8, b"\0")
        self.add(RECORD.mmap2, body, time=time)

    def sample(
        self,
        pid: int,
        time: int,
        registers: Mapping[int, int],
        stack: bytes,
        chain: Sequence[int] = (),
    ) -> None:
        """A sample with all fields; the stack is padded to a dump of 8-byte words."""
        kinds, one = self.kinds, bytes(8)
        offsets = self.arch.layouts["perf"].offsets
        number = {offsets[n] // 8: registers[n] for n in self.registers}
        fields: list[tuple[int, bytes]] = [
            (SAMPLE.identifier, self._pack("Q", self.identifier)),
            (SAMPLE.ip, self._pack("Q", registers[self.arch.pc])),
            (SAMPLE.tid, self._pack("II", pid, pid)),
            (SAMPLE.time, self._pack("Q", time)),
            (SAMPLE.addr, one),
            (SAMPLE.id, self._pack("Q", self.identifier)),
            (SAMPLE.stream_id, one),
            (SAMPLE.cpu, self._pack("II", 3, 0)),
            (SAMPLE.period, self._pack("Q", 1000)),
            (SAMPLE.read, self._read()),
            (SAMPLE.callchain, self._pack(f"{1 + len(chain)}Q", len(chain), *chain)),
            (SAMPLE.raw, self._pack("I", 12) + bytes(12)),
            (SAMPLE.branch_stack, self._pack("7Q", 2, *range(6))),
            (SAMPLE.regs_user, self._pack("Q", 2 if self.arch.word == 8 else 1)),
            (SAMPLE.regs_user, self._pack(f"{len(number)}Q", *(number[b] for b in self.bits))),
            (SAMPLE.stack_user, self._stack(stack)),
        ]
        self.add(RECORD.sample, b"".join(data for bit, data in fields if kinds & bit))

    def round(self) -> None:
        self.add(RECORD.finished_round, b"", 0)

    def build(self) -> bytes:
        """The bytes of the recording."""
        magic = struct.pack(self.order + "Q", int.from_bytes(b"PERFILE2", "little"))
        records, attr = b"".join(self.records), self._attr()
        name = self.machine.encode() + b"\0"
        machine = self._pack("I", len(name)) + name
        if self.is_stream:
            heads = Built(self.arch)
            heads.add(RECORD.header_attr, attr + self._pack("Q", self.identifier), 0)
            heads.add(RECORD.header_feature, self._pack("Q", FEATURE.arch) + machine, 0)
            return magic + self._pack("Q", 16) + b"".join(heads.records) + records
        ids, entry = 104, 112
        begin = entry + len(attr) + 16
        table = begin + len(records)
        head = magic + self._pack("QQ", 104, len(attr) + 16)
        head += self._pack("QQQQQQ", entry, len(attr) + 16, begin, len(records), 0, 0)
        head += self._pack("4Q", 1 << FEATURE.arch, 0, 0, 0)
        assert len(head) == ids
        made = head + self._pack("Q", self.identifier) + attr + self._pack("QQ", ids, 8) + records
        return made + self._pack("QQ", table + 16, len(machine)) + machine

    def _attr(self) -> bytes:
        mask = sum(1 << bit for bit in self.bits)
        flags = _SAMPLE_ID_ALL | _COMM_EXEC
        if self.order == ">":  # C's bit fields begin at the other end
            flags = int(f"{flags:064b}"[::-1], 2)
        head = self._pack("IIQQQQQ", 1, 112, 0, 250_000, self.kinds, self.read_format, flags)
        return head.ljust(80, b"\0") + self._pack("QI", mask, 65528) + bytes(20)

    def _read(self) -> bytes:
        """What READ holds, of two events where they are a group."""
        form, one = self.read_format, bytes(8)
        times = one * bool(form & 1) + one * bool(form & 2)
        value = one * (1 + bool(form & 4) + bool(form & 16))
        return self._pack("Q", 2) + times + value * 2 if form & 8 else one + times + value[8:]

    def _stack(self, stack: bytes) -> bytes:
        size = -(-len(stack) // 8) * 8
        if not size:
            return bytes(8)
        return self._pack("Q", size) + stack.ljust(size, b"\0") + self._pack("Q", len(stack))

    def _trailer(self, time: int) -> bytes:
        kinds = self.kinds
        fields = [
            (SAMPLE.tid, self._pack("II", 1, 1)),
            (SAMPLE.time, self._pack("Q", time)),
            (SAMPLE.id, self._pack("Q", self.identifier)),
            (SAMPLE.stream_id, bytes(8)),
            (SAMPLE.cpu, bytes(8)),
            (SAMPLE.identifier, self._pack("Q", self.identifier)),
        ]
        return b"".join(data for bit, data in fields if kinds & bit)

    def _pack(self, format: str, *values: int) -> bytes:
        return struct.pack(self.order + format, *values)


KERNEL_CHAIN = (CONTEXT.kernel, 0xFFFF_FFFF_8100_0010, 0xFFFF_FFFF_8100_0020)
