"""Events of the clock in, the profile of what they met out: counted as unwind-perf counts."""

from __future__ import annotations

import sys

from unwind.cli.names import names_of
from unwind.cli.options import Options
from unwind.cli.perf_profiles import Counting, joined
from unwind.cli.plumbing import warn
from unwind.cli.profiles import write_profiles
from unwind.cli.stacks import files_of, sources_of
from unwind.errors import SourceError
from unwind.perf.event import Event as SampledEvent
from unwind.perf.jit import JitMaps
from unwind.perf.processes import Task
from unwind.places import Places
from unwind.sampling import Sampler
from unwind.unwinder import DEFAULT_LIMIT, Unwinder

__all__ = ["ProfilerReport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.events.event import Event
    from unwind.files import Files
    from unwind.perf.samples import Sample
    from unwind.profile import Profile
    from unwind.snapshot import Snapshot
    from unwind.transports.ring_buffer import RingBufferSource

_SECOND = 1_000_000_000  # nanoseconds
_MOST_TASKS = 1 << 16  # whose names are kept
_EMPTY = memoryview(b"")
_NO_RECORD = (_EMPTY, 0, 0, 0)  # it has come in another way than by perf.data
# As perf record -e cpu-clock has it.
_CLOCK = SampledEvent("cpu-clock", 1, 0, (), 0, 0, 0, 0, 0, False, 0)


class ProfilerReport:
    """One run of the command over one opened source."""

    def __init__(self, prog: str, options: Options, source: RingBufferSource, files: Files):
        self.prog, self.options, self.source = prog, options, source
        limit = options.max_frames or DEFAULT_LIMIT
        unwinder = Unwinder(source.arch, sources_of(options, source.arch), limit)
        self.names = names_of(options, files, many=True)
        self._event: Event | None = None  # that of the sample which is looked at
        sampler = Sampler(self._snapshot, unwinder)
        places = Places(self.names, JitMaps(options.perf_map))
        self.counting = Counting(places, sampler, options)
        source.processes.gone = self.counting.forget
        self._weight = _SECOND // options.frequency
        self._tasks: dict[tuple[int, int, str], Task] = {}
        self._comms, self._tids = set(options.comm or ()), set(options.tid or ())
        self.odd: dict[str, int] = {}  # samples without a stack to unwind, by what they are
        self.filtered = self.counted = 0

    def print(self) -> int:
        """Print the profile when the time is over; 1 when strictness was not met."""
        options = self.options
        for event in self.source.events(options.duration):
            self._take(event)
        profiles = joined(self.counting.profiles(), [_CLOCK])
        title = f"process {options.pid}" if options.pid else "all processes"
        if not profiles:
            self._complain()
            raise SourceError("no sample: nothing of it has run", title)
        path = options.differential
        base = self._of_recording(path) if path else None
        write_profiles(options, profiles, title, base, [path or ""], live=True)
        self._complain()
        return 1 if options.strict and not self.counting.is_complete else 0

    def _take(self, event: Event) -> None:
        kind = "kernel thread" if event.is_kernel_thread else "32-bit" if event.is_compat else ""
        if (self._comms and event.comm not in self._comms) or (
            self._tids and event.tid not in self._tids
        ):
            self.filtered += 1
        elif kind:
            self.odd[kind] = self.odd.get(kind, 0) + 1
        else:
            self._event = event
            self.counting.add(self.counted, self._sample(event))
            self.counted += 1

    def _sample(self, event: Event) -> Sample:
        """An event as those of a recording are."""
        arch, find = self.source.arch, event.registers.get
        space, sp = self.source.space(event), find(arch.sp, 0)
        stack = event.stack[max(sp - event.start, 0) :]
        stack = stack[: len(stack) // arch.word * arch.word]
        words = stack.cast("Q") if arch.word == 8 else stack.cast("I")
        pc, fp, lr = find(arch.pc, 0), find(arch.fp, 0), find(arch.return_address, 0)
        place = space, pc, sp, fp, lr, words, _NO_RECORD
        return self._task(event), event.time, _CLOCK, None, self._weight, (), *place

    def _task(self, event: Event) -> Task:
        """Who was met, by the name he had then; the same object for the same one."""
        key = event.pid, event.tid, event.comm
        task = self._tasks.get(key)
        if task is None:
            if len(self._tasks) >= _MOST_TASKS:
                self._tasks.clear()
            process = self.source.processes.process(event.pid)
            task = self._tasks[key] = Task(process, event.tid, event.comm)
        return task

    def _snapshot(self, _sample: Sample) -> Snapshot:
        assert self._event is not None, "it has just been taken"
        return self.source.snapshot(self._event)

    def _of_recording(self, path: str) -> Profile:
        """The profile of a recording of perf record, to be compared with."""
        from unwind.cli.perf_report import Report
        from unwind.transports.perf_data import TRANSPORT

        whole = dict.fromkeys(("kallsyms", "max_stack", "comm", "pid", "tid", "event", "time"))
        options = Options({**vars(self.options), **whole, "jobs": 1})
        with files_of(options) as files, TRANSPORT.open(path, files) as source:
            found = Report(self.prog, options, source, files).profiles()
        if len(found) != 1:
            raise SourceError(f"--differential: a recording of one event, not {len(found)}", path)
        return found[0]

    def _complain(self) -> None:
        """What came, and what did not, on standard error: the profile may go anywhere."""
        source = self.source
        parts = [f"{source.received} samples", f"{source.dropped()} dropped"]
        parts += [f"{count} of {kind}s not unwound" for kind, count in sorted(self.odd.items())]
        parts += [f"{self.filtered} not asked for"] if self.filtered else []
        parts += [f"{count}: {why}" for why, count in sorted(source.damaged.items())]
        if source.lost:
            parts.append(f"not told of mappings or processes {source.lost} times")
        sys.stdout.flush()
        print(f"{self.prog}: {', '.join(parts)}", file=sys.stderr)
        for text in dict.fromkeys(source.warnings):
            self._warn(text)
        for name, problem in self.names.problems.items():
            self._warn(f"{name}: no symbols: {problem}")

    def _warn(self, text: str) -> None:
        from unwind.writers.escape import escape

        warn(self.prog, escape(text))
