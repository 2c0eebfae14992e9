"""perf.data, a file or a stream: its path in; samples in the order of time out."""

from __future__ import annotations

import sys
from mmap import PAGESIZE, mmap
from struct import Struct

from unwind.errors import FormatError, SourceError, UnsupportedArchitecture
from unwind.perf.changes import Changes
from unwind.perf.constants import CONTEXT, FEATURE, MISC, RECORD
from unwind.perf.event import Trailer
from unwind.perf.files import CodeFiles
from unwind.perf.header import is_recording, read_header
from unwind.perf.memory import SampleMemory
from unwind.perf.order import MOST_WAITING, Rounds
from unwind.perf.processes import Processes
from unwind.perf.records import Records
from unwind.perf.samples import (
    ABI,
    ABI_32,
    COUNT,
    CPU,
    IP,
    PERIOD,
    PID,
    SIZE,
    TID,
    TIME,
    SampleReader,
    stack_bounds,
)
from unwind.registers import Registers
from unwind.registry import architectures
from unwind.snapshot import Snapshot, Source
from unwind.unpack import load

__all__ = ["TRANSPORT", "PerfSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.perf.event import Event
    from unwind.perf.header import Header
    from unwind.perf.order import Timed
    from unwind.perf.processes import Task
    from unwind.perf.samples import Fields, Sample
    from unwind.space import AddressSpace
    from unwind.unpack import Input

    Who: TypeAlias = tuple[Task, int, Event, int | None, int]  # what a Sample begins with
    Wanted: TypeAlias = Callable[[Task, int, Event], bool]

_MACHINES = {"aarch64": "arm64"}  # as uname calls it -> the name of our architecture
_MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it
_SYNTHETIC = (0, 0xFFFF_FFFF_FFFF_FFFF)  # times of what perf itself tells of
_MOST_READ = 1 << 16  # samples that wait for others with all that is in them
_MOST_CHAINS = 1024  # lengths of callchains that are met
_NO_CHAIN: tuple[int, ...] = ()
_MOST_HEADERS = 100_000  # of a stream, before its first record of the kernel's


class PerfSource(Source):
    """An open recording. `samples` runs through it, and counts meanwhile what is lost on the way.

    `skipped` are numbers of samples by the reason why their user's stack cannot be had, or they
    themselves; the records' losses are in `changes`.
    """

    kind = "perf"

    def __init__(self, arch: Architecture, path: str, data: Input, header: Header, files: Files):
        super().__init__(arch, path)
        self._input = data
        self.header = header
        self.command = header.command
        self.warnings += [*data.warnings, *header.warnings]
        self.skipped: dict[str, int] = {}
        release = header.facts.get(FEATURE.osrelease)
        self.processes = Processes(arch, CodeFiles(files, header.build_ids, release))
        self.changes = Changes(self.processes, header.order)
        self.records = Records(header.data, header.order, self.warnings.append, self._soon)
        self._u64 = Struct(header.order + "Q")
        self._unmapped = False  # whether the kernel maps pages one by one
        self._readers: list[SampleReader] = []
        self._by_id: dict[int, SampleReader] = {}
        self._trailing: int | None = None
        self._chains: dict[int, Callable[[memoryview, int], tuple[int, ...]]] = {}
        self._set_events()

    def close(self) -> None:
        """Give back the recording; the Snapshots' memory is gone then."""
        self._input.close()

    def snapshots(self) -> Iterator[Snapshot]:
        """Each sample that has registers of the user, in the order of time."""
        for sample in self.samples():
            if sample[11] is not None:
                yield self.snapshot(sample)

    def samples(self, wanted: Wanted | None = None) -> Iterator[Sample]:
        """The samples in the order of time, once; a space is as it was then until the next.

        `wanted` tells by a sample's thread, time and event whether it is to be read any further.
        """
        tasks, of_task, take = self.processes.tasks, self.processes.task, self.changes.take
        direct = self.arch.word == 8 and self.header.byteorder == sys.byteorder
        native = ABI_32 if self.arch.word < 8 else ABI_32 + 1
        buffer, words = memoryview(b""), memoryview(b"")
        only = self._readers[0] if len(self._readers) == 1 else None
        last = None
        for batch in self._batches():
            for time, kind, misc, data, at, end, fields in batch:
                if kind != RECORD.sample:
                    take(kind, misc, data[at:end])
                    continue
                reader = only or self._reader(data, at, end)
                if reader is not last:
                    last, event, layout = reader, reader.event, reader.layout
                    pc, sp, fp, lr = reader.pc, reader.sp, reader.fp, reader.lr
                chain, here = _NO_CHAIN, at + layout.head_size
                if fields is None or fields[COUNT]:
                    read = self._read(reader, data, at, end)
                    if read is None:
                        continue
                    fields, chain, here = read
                pid, tid = fields[PID], fields[TID]
                task = tasks.get(tid)
                if task is None or task.pid != pid:
                    task = of_task(pid or 0, tid or 0)  # b"" stands for what is not there
                if wanted is not None and not wanted(task, time, event):
                    continue
                cpu = fields[CPU] if layout.has_cpu else None
                space = task.process.space or task.process.current()
                who = task, time, event, cpu, fields[PERIOD] or event.period
                if fields[ABI] < native:
                    known = fields[pc] if fields[ABI] else 0
                    place = data, at, end, here
                    yield self._bare(who, chain, space, known, fields[IP], misc, place)
                    continue
                start = here + reader.size
                stop = start + (fields[SIZE] or 0)
                if direct and not (start | stop) & 7:
                    if data is not buffer:
                        buffer, words = data, data[: len(data) & -8].cast("Q")
                    if not start < stop <= end - 8:
                        stop = start
                    elif (size := words[stop >> 3]) < stop - start:  # what the kernel could copy
                        stop = start + size
                    stack = words[start >> 3 : stop >> 3]
                else:
                    stack = self._words(data, start, stop, end)
                registers = fields[pc], fields[sp], fields[fp], fields[lr]
                yield *who, chain, space, *registers, stack, (data, at, end, here)

    def _read(
        self, reader: SampleReader, data: memoryview, at: int, end: int
    ) -> tuple[Fields, tuple[int, ...], int] | None:
        """The fields of a sample in [at, end), its callchain, and where its registers lie.

        None, and it is counted, where the record ends before they do.
        """
        layout, chain = reader.layout, _NO_CHAIN
        here = at + layout.head_size
        if here > end:
            self._skip("a sample is cut off")
            return None
        head = layout.head(data, at)
        if head[COUNT] or not layout.is_plain:
            try:
                here, count = layout.callchain(data, at, end)
                chain = self._addresses(count)(data, here)
                here = layout.registers(data, here + 8 * count, end)
            except FormatError as error:
                self._skip(error.reason)
                return None
        if not reader.usable or here + reader.size > end:
            return (*head, 0), chain, here
        return (*head, *reader.registers(data, here)), chain, here

    def _addresses(self, count: int) -> Callable[[memoryview, int], tuple[int, ...]]:
        """What reads a callchain of so many addresses."""
        known = self._chains.get(count)
        if known is None:
            if len(self._chains) >= _MOST_CHAINS:
                self._chains.clear()
            known = self._chains[count] = Struct(f"{self.header.order}{count}Q").unpack_from
        return known

    def _bare(
        self,
        who: Who,
        chain: tuple[int, ...],
        space: AddressSpace,
        pc: int,
        ip: int,
        misc: int,
        place: tuple[memoryview, int, int, int],
    ) -> Sample:
        """A sample with which no walk can begin: it has a callchain, or tells where it stood."""
        if pc:
            self._skip("a 32-bit task")
        elif ip and not chain:  # nobody asked for more than where it stood
            if misc & MISC.cpumode == MISC.user:
                pc = ip
            else:
                chain = CONTEXT.kernel, ip
        return *who, chain, space, pc, 0, 0, 0, None, place

    def snapshot(self, sample: Sample) -> Snapshot:
        """A sample as the exact walk wants it; SourceError where it has no registers."""
        task, time, event, space = sample[0], sample[1], sample[2], sample[6]
        if sample[11] is None:
            raise SourceError("the sample has no registers of the user", self.path)
        data, at, end, here = sample[-1]
        reader = self._reader(data, at, end)
        registers = Registers(reader.all_registers(data, here))
        start = here + reader.size
        asked = self._u64.unpack_from(data, start - 8)[0] if reader.layout.has_stack else 0
        first, last = stack_bounds(data, start, asked, end, self._u64)
        memory = SampleMemory(registers[self.arch.sp], data[first:last], asked, space)
        who = task.tid, task.pid, task.comm
        return Snapshot(registers, memory, space, *who, False, time / 1e9, event.name)

    def _batches(self) -> Iterator[list[Timed]]:
        """The kernel's records, sorted by time, some at a time."""
        rounds = Rounds()
        waiting = rounds.waiting
        u64, taken = self._u64.unpack_from, self.header.take
        is_stream = self.header.is_stream
        first = self._readers[0]
        timed, whole, size = first.layout.time, first.whole, first.whole_size
        if len(self._readers) > 1:  # of which one a sample is takes a look at it
            whole = None
        for kind, misc, data, at, end in self.records:
            if kind == RECORD.sample and whole is not None and at + size <= end:
                fields = whole(data, at)
                waiting.append((fields[TIME], kind, misc, data, at, end, fields))
            elif kind == RECORD.sample and timed is not None:
                time = u64(data, at + timed)[0] if at + timed + 8 <= end else 0
                waiting.append((time, kind, misc, data, at, end, None))
            elif kind < RECORD.header_attr:
                time, trailing = 0, self._trailing
                if kind != RECORD.sample and trailing is not None and end - at >= 8 + trailing:
                    time = u64(data, end - trailing)[0]
                if time in _SYNTHETIC:
                    yield [(0, kind, misc, data, at, end, None)]
                else:
                    waiting.append((time, kind, misc, data, at, end, None))
            elif kind == RECORD.finished_round:
                yield rounds.finished()
            elif is_stream and taken(kind, misc, data[at:end]):
                self._set_events()
            elif kind > RECORD.compressed2:
                unknown = self.changes.unknown
                unknown[kind] = unknown.get(kind, 0) + 1
            if len(waiting) >= MOST_WAITING:
                yield rounds.older()
            elif len(waiting) == _MOST_READ:
                whole = None
        yield rounds.rest()

    def _soon(self, at: int, size: int) -> None:
        """Have the kernel map what is read next at one go: each page by itself takes 1 us."""
        data = self._input.data
        if not isinstance(data, mmap) or self._unmapped:
            return
        start = self.header.begin + at & -PAGESIZE
        size = min(self.header.begin + at + size, len(data)) - start
        try:
            data.madvise(_MADV_POPULATE_READ, start, size)
        except OSError:  # a kernel before 5.14
            self._unmapped = True

    def _set_events(self) -> None:
        """The readers of what the header says of events."""
        events = self.header.events
        self._readers = [SampleReader(event, self.arch, self.header.order) for event in events]
        self._by_id = {n: reader for reader in self._readers for n in reader.event.ids}
        self._trailing = Trailer(events[0]).time

    def _reader(self, data: memoryview, at: int, end: int) -> SampleReader:
        """The reader of the event that a sample names, of the first where it names none."""
        first = self._readers[0]
        where = first.layout.id
        if len(self._readers) == 1 or where is None or at + where + 8 > end:
            return first
        return self._by_id.get(self._u64.unpack_from(data, at + where)[0], first)

    def _words(self, data: memoryview, start: int, stop: int, end: int) -> memoryview:
        """The words of a piece of a stack that cannot be taken as they lie there."""
        word = self.arch.word
        first, last = stack_bounds(data, start, stop - start, end, self._u64)
        whole = bytes(data[first : first + (last - first) // word * word])
        words = memoryview(whole).cast("Q" if word == 8 else "I")
        if self.header.byteorder == sys.byteorder:
            return words
        from array import array

        swapped = array(words.format, whole)
        swapped.byteswap()
        return memoryview(swapped)

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


class _PerfTransport:
    kind = "perf"

    def detect(self, head: bytes) -> bool:
        """Whether a file begins as perf.data does."""
        return is_recording(head)

    def open(self, path: str, files: Files) -> PerfSource:
        """The recording at `path` (`-`: standard input), which may be compressed as a whole.

        Raises SourceError where there is none, FormatError where its header is damaged,
        UnsupportedArchitecture for a machine that no file in arch/ describes.
        """
        return self.read(load(path, files.progress), path, files)

    def read(self, data: Input, path: str, files: Files) -> PerfSource:
        """The recording in `data`, which is closed with it; errors as of `open`."""
        try:
            header = read_header(memoryview(data.data), path)
            if header.is_stream:
                _read_ahead(header)
            return PerfSource(_architecture(header), path, data, header, files)
        except BaseException:
            data.close()
            raise


def _read_ahead(header: Header) -> None:
    """Learn what a stream says of itself before it says anything of processes."""
    for n, (kind, misc, data, at, end) in enumerate(Records(header.data, header.order, _quietly)):
        if kind in (RECORD.sample, RECORD.compressed) or n > _MOST_HEADERS:
            break
        header.take(kind, misc, data[at:end])
    if not header.events:
        raise FormatError("the stream tells of no event", "perf.data")


def _quietly(_sentence: str) -> None:
    """Said again when the records are read for good."""


def _architecture(header: Header) -> Architecture:
    """That of the machine on which it was recorded.

    Where the recording does not tell (perf was killed before it wrote that), the set of registers
    in its samples does.
    """
    name = header.facts.get(FEATURE.arch)
    bits = max(event.regs.bit_length() for event in header.events)
    for arch in architectures(likely=_MACHINES.get(name or "", name or "")):
        layout = arch.layouts.get("perf")
        if layout is None or arch.byteorder != header.byteorder:
            continue
        if name is None and bits in (0, len(layout.offsets)):
            return arch
        if name is not None and arch.name.startswith(_MACHINES.get(name, name)):
            return arch
    raise UnsupportedArchitecture(f"machine {name or 'unknown'}, {header.byteorder} endian")


TRANSPORT = _PerfTransport()
