"""Processes as they come and go: what the kernel tells of them in, their address spaces out.

A process that ends at once has no /proc/PID/maps any more when its event is looked at. So the
kernel tells of every fork, exec and mapping as it happens (perf_event_open(2)), and what was there
before that is read from /proc.
"""

from __future__ import annotations

import os
import sys
from struct import Struct

from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.events.files import DELETED, EventFiles
from unwind.events.perf_event import EventRing, open_task_events, processors
from unwind.live.proc import Proc, mapped
from unwind.perf.changes import Changes
from unwind.perf.constants import MISC, RECORD
from unwind.perf.files import CodeFiles
from unwind.perf.processes import Mapped, Processes

__all__ = ["Spaces"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.live.proc import Mapped as Code
    from unwind.perf.processes import ProcessSpace

_OF_A_PROCESS = frozenset(
    {RECORD.mmap, RECORD.mmap2, RECORD.comm, RECORD.fork, RECORD.exit}
)  # these begin with its id
_LIVES = (RECORD.fork, RECORD.exit)
_PID = Struct("=8xI")
# Of PERF_RECORD_MMAP2: who, where, how much; the file's device and number; and its name.
_MAP, _IDENTITY, _NAME = Struct("=8xI4xQQ8xIIQ"), 40, 72
_TID = Struct("=16xI")  # in the record of one of these, its header included
# Nanoseconds for which an ended thread keeps its mappings: the kernel tells of an end before it
# comes to some places that are of interest, as the tracepoint sched_process_exit of Linux 6.1.192.
_LINGER = 1_000_000_000
_ROOM = 1 << 19  # bytes of records for each processor
_HEAD = 1 << 16  # bytes of a file, where its build-id lies
_MOST_UNKNOWN = 1 << 16  # processes that were looked at and had gone


class Spaces:
    """The address spaces of all processes of the machine, or of `only` one, as of the last `until`.

    A busy machine has thousands of processes a minute: of others, nothing is kept then.
    """

    def __init__(self, arch: Architecture, files: Files, only: int | None = None):
        self._only = only
        self.files = EventFiles(files)
        self.processes = Processes(arch, CodeFiles(self.files, {}, os.uname().release))
        order = "<" if sys.byteorder == "little" else ">"
        self.changes = Changes(self.processes, order)
        self._rings: list[EventRing] = []
        self._waiting: list[tuple[int, int, int, bytes]] = []
        self._unknown: set[int] = set()
        self._ended: dict[int, tuple[int, int, int, bytes]] = {}
        try:
            for cpu in processors():
                self._rings.append(EventRing(open_task_events(cpu), _ROOM))
        except BaseException:
            self.close()
            raise
        self._look_around()

    def close(self) -> None:
        """Have nothing told any more."""
        while self._rings:
            self._rings.pop().close()

    def collect(self) -> None:
        """Take what the kernel has told since, before it runs out of room."""
        found = [record for ring in self._rings for record in ring.records() if self._wants(record)]
        found.sort(key=lambda record: record[0])
        for n, (time, kind, misc, record) in enumerate(found):  # while they are there, if they are
            if kind == RECORD.mmap2:
                found[n] = time, kind, *self._identified(misc, record)
            elif (kind == RECORD.comm and misc & MISC.comm_exec) or (
                kind == RECORD.exit and record[8:12] == record[16:20]  # of the leader
            ):
                self.files.changed(*_PID.unpack_from(record))
        self._waiting += found
        self._waiting.sort(key=lambda record: record[0])

    def _wants(self, record: tuple[int, int, int, bytes]) -> bool:
        """Whether what a record tells of is looked at."""
        _, kind, _, data = record
        if self._only is None or kind not in _OF_A_PROCESS:
            return True
        return bool(_PID.unpack_from(data)[0] == self._only)

    def _identified(self, misc: int, record: bytes) -> tuple[int, bytes]:
        """A PERF_RECORD_MMAP2 with the build-id of its file, as the kernel could have told it.

        The name of a file that cannot be had is that of one which is no more.
        """
        pid, start, size, major, minor, inode = _MAP.unpack_from(record)
        plain = record[_NAME : record.find(b"\0", _NAME)]
        name, misc = os.fsdecode(plain), misc & ~MISC.mmap_build_id
        if misc & MISC.mmap_data or name[:1] != "/" or name[:2] == "//":
            return misc, record
        self.files.met(pid, name, start, start + size)
        device = os.makedev(major, minor)
        found, build_id = self.files.identity(pid, name, start, start + size, device, inode)
        if build_id is not None:
            told = bytes([len(build_id), 0, 0, 0]) + build_id
            if len(told) <= 24:
                misc |= MISC.mmap_build_id
                return misc, record[:_IDENTITY] + told.ljust(24, b"\0") + record[_IDENTITY + 24 :]
        if not found:
            plain = os.fsencode(name.removesuffix(DELETED) + DELETED)
            return misc, record[:_NAME] + plain + b"\0"
        return misc, record

    def until(self, time: int) -> None:
        """Bring everything to what it was at `time`: nanoseconds of CLOCK_MONOTONIC."""
        waiting, done, ended = self._waiting, 0, self._ended
        while done < len(waiting) and waiting[done][0] <= time:
            when, kind, misc, record = waiting[done]
            tid = _TID.unpack_from(record)[0] if kind in _LIVES else 0
            if tid in ended:  # its number is taken again
                self._take(*ended.pop(tid)[1:])
            if kind == RECORD.exit:
                ended[tid] = when, kind, misc, record
            else:
                self._take(kind, misc, record)
            done += 1
        del waiting[:done]
        while ended and (oldest := next(iter(ended.values())))[0] + _LINGER < time:
            del ended[_TID.unpack_from(oldest[3])[0]]
            self._take(*oldest[1:])

    def of(self, pid: int, tid: int) -> ProcessSpace:
        """The address space of a process."""
        process = self.processes.task(pid, tid).process
        if not process.mapped and pid not in self._unknown:
            if len(self._unknown) >= _MOST_UNKNOWN:
                self._unknown.clear()
            self._unknown.add(pid)  # the kernel had no room to tell of it: perhaps it still runs
            self._look_at(pid)
        return process.space or process.current()

    def _take(self, kind: int, misc: int, record: bytes) -> None:
        self.changes.take(kind, misc, memoryview(record))

    def _look_around(self) -> None:
        for name in os.listdir("/proc") if self._only is None else [str(self._only)]:
            if name.isdigit():
                self._look_at(int(name))

    def _look_at(self, pid: int) -> None:
        """What code a process has mapped, and which threads it has, if it is still there."""
        found: list[Code] = []
        ids: list[tuple[str, bytes | None]] = []
        try:
            with Proc(pid) as proc:
                threads = proc.threads()  # none, once all have ended
            for tid in threads:
                self.processes.task(pid, tid)
            for tid in threads:  # a leader that has ended shows nothing
                with Proc(pid, tid) as proc:
                    found = [code for code in mapped(proc.read("maps")) if code.executable]
                    ids = [_identity(proc, code) for code in found]
                if found:
                    break
        except OSError:
            return
        for code, (name, build_id) in zip(found, ids, strict=True):
            new = Mapped(code.start, code.end, code.offset, name, build_id)
            self.processes.map(pid, new, True)
            self.files.met(pid, code.name, code.start, code.end)


def _identity(proc: Proc, code: Code) -> tuple[str, bytes | None]:
    """The name of what is mapped, and its build-id where at that path lies another file.

    So it is in containers, and where a file has been replaced. The kernel tells of later mappings
    with their build-ids. Without one, the name is that of a file that is no more.
    """
    name = code.name
    if name[:1] != "/" or _is_at(name, code.inode):
        return name, None
    try:
        handle = proc.open(f"map_files/{code.start:x}-{code.end:x}")
        try:
            found = Elf(os.pread(handle, _HEAD, 0), name).build_id
        finally:
            os.close(handle)
    except (OSError, FormatError):
        found = None
    return (name, found) if found else (name.removesuffix(DELETED) + DELETED, None)


def _is_at(path: str, inode: int) -> bool:
    try:
        return os.stat(path).st_ino == inode
    except (OSError, ValueError):
        return False
