"""Events of the kernel: a place to attach to in, the stacks of whoever comes by out, as of then.

BPF programs copy registers and stack at the event itself; what they send comes through a ring
buffer. Nothing of a process is held open, and none is stopped.
"""

from __future__ import annotations

import os

from unwind.bpf.libbpf import BpfError, BpfObject, Ring
from unwind.bpf.objects import built_in
from unwind.elf import Elf
from unwind.errors import FormatError, SourceError, UnsupportedArchitecture
from unwind.events.event import read_layout
from unwind.events.late import late_stack
from unwind.events.memory import EventMemory
from unwind.events.points import point
from unwind.events.refusals import explained
from unwind.events.settings import settings
from unwind.events.spaces import Spaces
from unwind.registry import architectures
from unwind.snapshot import Snapshot, Source

__all__ = ["TRANSPORT", "RingBufferSource", "RingOptions"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.architecture import Architecture
    from unwind.events.event import Event
    from unwind.events.points import Attached, Watched
    from unwind.files import Files
    from unwind.perf.processes import Processes, ProcessSpace

_MACHINES = {"aarch64": "arm64", "mips": "mips32"}  # as uname calls it -> our name
_MOST_STACK = 1 << 23  # bytes: bpf/event.h
_MOST_WAITING = 1 << 26  # bytes of events that wait to be looked at; the rest waits in the kernel
_AT_ONCE = 0.1  # seconds between two looks at what processes do
_SETTLED = 1_000_000_000  # nanoseconds after which no event of then is on its way any more
_COLLECT = 64  # events between two looks, where there are many


class RingOptions:
    """How events are taken: bytes of stack, bytes of the ring (a power of 2), whose events.

    `object` is a BPF object in place of the one that is built in; `buckets`: as on kernels before
    5.19, which want to know the length of a record beforehand.
    """

    def __init__(
        self,
        *,
        object: str | None = None,
        pid: int | None = None,
        stack_size: int = 1 << 15,
        ring_size: int = 1 << 25,
        cookie: int = 0,
        buckets: bool = False,
    ):
        if not 4096 <= stack_size <= _MOST_STACK:
            raise SourceError(f"a stack of {stack_size} bytes is not between 4 kB and 8 MB")
        self.object, self.pid, self.cookie, self.buckets = object, pid, cookie, buckets
        self.stack_size, self.ring_size = stack_size, ring_size


class RingBufferSource(Source):
    """Programs that run in the kernel, and what they send. `point` is where they are attached.

    `received` counts events, `damaged` those that were skipped, by reason.
    """

    kind = "ringbuf"

    def __init__(self, arch: Architecture, where: Watched, options: RingOptions, files: Files):
        super().__init__(arch, where.name)
        self.point = where
        self.received = 0
        self.damaged: dict[str, int] = {}
        self._stopped = False
        self._stack_size = options.stack_size
        self._queue: list[bytes] = []
        self._queued = 0
        self._links: list[Attached] = []
        self._ring: Ring | None = None
        self._spaces: Spaces | None = None
        path = options.object or built_in(arch.name, where.object_name)
        with open(path, "rb") as file:
            data = file.read()
        self._layout, btf = read_layout(Elf(data, path), arch)
        self._counts = btf.struct("counts")
        self._object = BpfObject(data, path)
        try:
            told = settings(
                btf,
                pid=options.pid or 0,
                stack_size=options.stack_size,
                buckets=options.buckets,
            )
            self._object.preset(".rodata", told)
            self._object.resize("events", options.ring_size)
            where.prepare(self._object)
            self._object.load(where.programs)
            self._spaces = Spaces(arch, files, options.pid)
            self._ring = self._object.ring("events", self._take)
            self._links = [*where.attach(self._object, options.pid, options.cookie)]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the programs out of the kernel again."""
        while self._links:
            self._links.pop().close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._spaces is not None:
            self._spaces.close()
            self._spaces = None
        self._object.close()

    def stop(self) -> None:
        """No more events are caught; `events` ends with those that were. For signal handlers."""
        self._stopped = True

    def snapshots(self) -> Iterator[Snapshot]:
        """The events that have user stacks, until `stop` is called."""
        for event in self.events():
            if not (event.is_kernel_thread or event.is_compat):
                yield self.snapshot(event)

    def events(self, seconds: float | None = None, pausing: bool = False) -> Iterator[Event]:
        """The events for so long, in the order of time; `pausing`: more are caught meanwhile.

        An address space is as it was at an event until the next one is asked for.
        """
        from time import monotonic

        ring, spaces = self._ring, self._spaces
        assert ring is not None, "the source is open"
        assert spaces is not None, "the source is open"
        end = float("inf") if seconds is None else monotonic() + seconds
        over = done = False
        while not done:
            over = self._stopped or monotonic() >= end
            last = self._stopped or (over and not pausing)
            while last and self._links:
                self._links.pop().close()
            before = int(1e9 * monotonic()) - _SETTLED
            if over or self._queued:
                ring.consume()
            else:
                ring.poll(max(min(_AT_ONCE, end - monotonic()), 0.001))
            spaces.collect()
            batch = self._batch()
            for n, event in enumerate(batch, 1):
                spaces.until(event.time)
                yield event
                if n % _COLLECT == 0:
                    spaces.collect()
            done = over and not (last and batch)
            if not batch:
                spaces.until(before)

    @property
    def processes(self) -> Processes:
        """The processes of the machine, as of the last event."""
        assert self._spaces is not None, "the source is open"
        return self._spaces.processes

    def space(self, event: Event) -> ProcessSpace:
        """The address space that an event was met in, before the next one is asked for."""
        assert self._spaces is not None, "the source is open"
        return self._spaces.of(event.pid, event.tid)

    def snapshot(self, event: Event) -> Snapshot:
        """An event as the walk wants it."""
        space = self.space(event)
        if not event.stack:
            self._look_late(event)
        return Snapshot(
            event.registers,
            EventMemory(event, space),
            space,
            event.tid,
            event.pid,
            event.comm,
            False,
            event.time / 1e9,
            self.point.name,
            event.cookie,
        )

    def sent(self) -> int:
        """How many events the programs have put into the ring."""
        return self._sum("sent")

    def dropped(self) -> int:
        """For how many events the ring had no room."""
        return self._sum("dropped")

    @property
    def lost(self) -> int:
        """Of how many mappings, forks, execs and ends we were not told."""
        return self._spaces.changes.lost if self._spaces is not None else 0

    def _look_late(self, event: Event) -> None:
        """The stack of an event that has brought none, if it still lies there."""
        pc, sp = (event.registers.get(number, 0) for number in (self.arch.pc, self.arch.sp))
        try:
            found = late_stack(event.pid, event.tid, pc, sp, event.start, self._stack_size)
        except OSError:
            self.warnings.append(f"open /proc/{event.pid}/mem failed")
            return
        if found is None:
            self.warnings.append(f"the stack of process {event.pid} was not there, and it goes on")
        else:
            event.stack = memoryview(found)

    def _sum(self, name: str) -> int:
        member, order = self._counts.members[name], self.arch.byteorder
        return sum(
            int.from_bytes(data[member.offset : member.offset + member.size], order)
            for data in self._object.each_cpu("counts")
        )

    def _take(self, data: bytes) -> bool:
        """Keep a record for later; False where no more of them may wait."""
        self._queue.append(data)
        self._queued += len(data)
        return self._queued < _MOST_WAITING

    def _batch(self) -> list[Event]:
        """The events that wait, in the order of time."""
        queue, self._queue, self._queued = self._queue, [], 0
        self.received += len(queue)
        found = []
        for data in queue:
            try:
                found.append(self._layout.decode(data))
            except FormatError as error:
                self.damaged[error.reason] = self.damaged.get(error.reason, 0) + 1
        return sorted(found, key=lambda event: event.time)


class _RingBufferTransport:
    kind = "ringbuf"

    def detect(self, head: bytes) -> bool:
        """No file is of this kind."""
        return False

    def open(self, path: str, files: Files, options: RingOptions | None = None) -> RingBufferSource:
        """The events at the place that `path` names (unwind/events/points.py).

        Raises SourceError where the kernel has no such place or lets nobody look, or where what
        that takes is not installed.
        """
        return self.watch(point(path), files, options or RingOptions())

    def watch(self, where: Watched, files: Files, options: RingOptions) -> RingBufferSource:
        """The events of whatever is attached to; raises as `open`."""
        try:
            return RingBufferSource(_architecture(), where, options, files)
        except BpfError as error:
            raise explained(error, where.kind) from None


def _architecture() -> Architecture:
    """That of the running kernel."""
    from sys import byteorder

    machine = os.uname().machine
    name = _MACHINES.get(machine, machine)
    for arch in architectures(likely=name):
        if arch.name.startswith(name) and arch.byteorder == byteorder:
            return arch
    raise UnsupportedArchitecture(f"machine {machine}")


TRANSPORT = _RingBufferTransport()
