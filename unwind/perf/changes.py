"""The kernel's records other than samples in; processes change, losses are counted."""

from __future__ import annotations

import os
from struct import Struct

from unwind.perf.constants import MISC, RECORD
from unwind.perf.processes import Mapped

__all__ = ["Changes"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.perf.processes import Processes

_PROT_EXEC = 4
_SKIPPED = frozenset(
    {
        RECORD.unthrottle,
        RECORD.read,
        RECORD.aux,
        RECORD.itrace_start,
        RECORD.switch,
        RECORD.switch_cpu_wide,
        RECORD.namespaces,
        RECORD.bpf_event,
        RECORD.cgroup,
        RECORD.text_poke,
        RECORD.aux_output_hw_id,
    }
)


class Changes:
    """Applies records to `processes`.

    `lost` are the records that perf could not keep up with, `lost_samples` the samples of which
    the kernel says so, `throttled` how often it slowed an event down. `unknown` counts by its kind
    what is no record of the kernel's that is known here, `damaged` what is too short.
    """

    def __init__(self, processes: Processes, order: str):
        self.processes = processes
        self.lost = self.lost_samples = self.throttled = self.damaged = 0
        self.unknown: dict[int, int] = {}
        self._map = Struct(order + "IIQQQ")
        self._two = Struct(order + "II")
        self._four = Struct(order + "IIII")
        self._u64 = Struct(order + "Q")
        self._symbol = Struct(order + "QIHH")

    def take(self, kind: int, misc: int, record: memoryview) -> None:
        """Apply one record, its header included."""
        try:
            self._take(kind, misc, record[8:])
        except _TooShort:
            self.damaged += 1

    def _take(self, kind: int, misc: int, body: memoryview) -> None:
        match kind:
            case RECORD.mmap | RECORD.mmap2:
                self._mmap(kind, misc, body)
            case RECORD.comm:
                pid, tid = self._read(self._two, body)
                name = _text(body[8:])
                self.processes.comm(pid, tid, name, exec=bool(misc & MISC.comm_exec))
            case RECORD.fork:
                pid, parent, tid, parent_tid = self._read(self._four, body)
                # perf sets the bit in what it tells of processes that were there before.
                self.processes.fork(pid, tid, parent, parent_tid, bare=bool(misc & MISC.comm_exec))
            case RECORD.exit:
                pid, _, tid, _ = self._read(self._four, body)
                self.processes.exit(pid, tid)
            case RECORD.lost:
                self.lost += self._read(self._u64, body[8:])[0]
            case RECORD.lost_samples:
                self.lost_samples += self._read(self._u64, body)[0]
            case RECORD.ksymbol:
                # Samples that are named later met what is taken away: it stays known.
                start, size, _, _ = self._read(self._symbol, body)
                self.processes.kernel_symbol(start, size, _text(body[self._symbol.size :]))
            case RECORD.throttle:
                self.throttled += 1
            case _ if kind not in _SKIPPED:
                self.unknown[kind] = self.unknown.get(kind, 0) + 1

    def _mmap(self, kind: int, misc: int, body: memoryview) -> None:
        pid, _, start, length, offset = self._read(self._map, body)
        build_id, at, executable = None, self._map.size, not misc & MISC.mmap_data
        if kind == RECORD.mmap2:
            if misc & MISC.mmap_build_id and len(body) >= at + 24:
                build_id = _build_id(body[at : at + 24])
            protection, _ = self._read(self._two, body[at + 24 :])
            executable, at = bool(protection & _PROT_EXEC), at + 32
        end = min(start + length, (1 << 64) - 1)
        new = Mapped(start, end, offset, _text(body[at:]), build_id)
        self.processes.map(pid, new, executable)

    def _read(self, struct: Struct, body: memoryview) -> tuple[int, ...]:
        if len(body) < struct.size:
            raise _TooShort
        return struct.unpack_from(body)


class _TooShort(Exception):
    """A record has no room for what its kind has."""


def _build_id(data: memoryview) -> bytes | None:
    """The build-id where MMAP2 may have one, None for a device and an inode.

    Where somebody else on the machine asks the kernel for build-ids, it says of all records that
    they have one (Linux v6.18 perf_event_mmap_output). Device numbers are no sizes of a SHA-1 or
    an MD5, and what lies behind those is zero.
    """
    size = data[0]
    if not 16 <= size <= 20 or any(data[1:4]):
        return None
    return bytes(data[4 : 4 + size])


def _text(data: memoryview) -> str:
    return os.fsdecode(bytes(data).partition(b"\0")[0])
