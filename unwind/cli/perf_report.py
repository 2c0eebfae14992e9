"""A recording and options in, what they ask for of its samples printed out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Progress, wants_colour, warn
from unwind.cli.profiles import ids_wanted, profile_wanted, times_wanted, write_profiles
from unwind.cli.stacks import sources_of
from unwind.errors import SourceError
from unwind.frames import End
from unwind.perf.jit import JitMaps
from unwind.places import Places
from unwind.sampling import Sampler, split_callchain
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.unwinder import DEFAULT_LIMIT, Unwinder

__all__ = ["Report"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from unwind.cli.options import Options
    from unwind.frames import Frame
    from unwind.perf.event import Event
    from unwind.perf.processes import ProcessSpace, Task
    from unwind.perf.samples import Sample
    from unwind.profile import Counts, Profile, Table
    from unwind.space import AddressSpace
    from unwind.transports.perf_data import PerfSource

_AT_ONCE = 256  # samples whose text is put out together


class Report:
    """One run of the command over one opened recording."""

    def __init__(self, prog: str, options: Options, source: PerfSource):
        self.prog, self.options, self.source = prog, options, source
        limit = options.max_frames or DEFAULT_LIMIT
        unwinder = Unwinder(source.arch, sources_of(options, source.arch), limit)
        self.sampler = Sampler(source.snapshot, unwinder, options.max_stack)
        self.names = Names(TableSymbolizer())
        kallsyms = None
        if options.kallsyms is not None:
            from unwind.perf.kallsyms import read_kallsyms

            kallsyms = read_kallsyms(options.kallsyms)
        self.places = Places(self.names, JitMaps(options.perf_map), kallsyms)
        self.is_complete = True

    def print(self) -> int:
        """Print what was asked for; 1 when strictness was asked for and not met."""
        options = self.options
        if options.script or options.json or options.explain is not None:
            if profile_wanted(options):
                raise SourceError("one of --script, --json, --explain and the profiles")
            if options.script:
                self._put(self._script())
            elif options.json:
                self._put(_bundled(self._json()))
            else:
                self._explain(options.explain)
        else:
            self._profiles()
        self._complain()
        return 1 if options.strict and not self.is_complete else 0

    def _samples(self) -> Iterator[Sample]:
        """The samples that the options choose."""
        chosen = _chooser(self.options)
        if chosen is None and not sys.stderr.isatty():
            return self.source.samples()
        return self._watched(chosen or (lambda _: True))

    def _watched(self, chosen: Callable[[Sample], bool]) -> Iterator[Sample]:
        """The samples that are `chosen`, while a bar shows how far they have come."""
        progress, records = Progress("unwinding"), self.source.records
        for n, sample in enumerate(self.source.samples()):
            if not n & 0xFF:
                progress(records.done, len(records.data))
            if chosen(sample):
                yield sample
        progress.close()

    def _put(self, texts: Iterator[str]) -> None:
        """Print texts, many at a time: into --output, if that was given."""
        from unwind.cli.profiles import write_text

        write_text(self.options.output, texts)

    def _script(self) -> Iterator[str]:
        """The text of the samples, many at a time; by several processes, if that was asked for."""
        jobs = self.options.jobs
        if jobs == 1:
            return self._texts(0, 1)
        from unwind.cli.jobs import dealt

        return dealt(jobs, lambda n: self._texts(n, jobs), self._state, self._learn)

    def _texts(self, number: int, jobs: int) -> Iterator[str]:
        """Of `jobs` processes, this is what the one with that number makes: each `jobs`-th piece.

        Each of them reads the whole recording: what a process has mapped must be known.
        """
        from unwind.writers.perf_script import DEFAULT_FIELDS, ScriptWriter

        fields = self.options.fields
        writer = ScriptWriter(
            fields.split(",") if fields else DEFAULT_FIELDS,
            self.places.site,
            self.places.kernel_site,
        )
        walk, text = self.sampler.walk, writer.sample
        texts: list[str] = []
        for n, sample in enumerate(self._samples()):
            if jobs > 1 and n // _AT_ONCE % jobs != number:
                continue
            pcs, end, how, _ = walk(sample)
            if end != End.OUTERMOST:
                self.is_complete = False
            kernel = split_callchain(sample[5])[0] if sample[5] else ()
            texts.append(text(sample, kernel, pcs, how))
            if len(texts) >= _AT_ONCE:
                yield "".join(texts)
                texts.clear()
        if texts:
            yield "".join(texts)

    def _state(self) -> tuple[object, ...]:
        """What the first process must know of another one, which has read the whole recording."""
        source, changes = self.source, self.source.changes
        losses = changes.lost, changes.lost_samples, changes.throttled, changes.damaged
        of_source = source.warnings, source.skipped, losses, changes.unknown
        return self.is_complete, self.names.problems, of_source

    def _learn(self, state: tuple[bool, dict[str, str], tuple[Any, ...]]) -> None:
        """Take over what `_state` gave in another process."""
        is_complete, problems, (warnings, skipped, losses, unknown) = state
        self.is_complete = self.is_complete and is_complete
        self.names.problems |= problems
        source, changes = self.source, self.source.changes
        source.warnings, source.skipped, changes.unknown = warnings, skipped, unknown
        changes.lost, changes.lost_samples, changes.throttled, changes.damaged = losses

    def _json(self) -> Iterator[str]:
        """A document without threads, then a line for each sample."""
        from unwind.writers.sample_lines import SampleLines

        places = self.places
        writer = SampleLines(self.source, self.names.name, places.site, places.kernel_site)

        def gone(space: ProcessSpace) -> None:
            writer.forget(space)
            places.forget(space)

        self.source.processes.gone = gone
        for sample in self._samples():
            walked = self.sampler.walk(sample)
            if walked[1] != End.OUTERMOST:
                self.is_complete = False
            detail = self.sampler.detail(sample, walked)
            kernel = split_callchain(sample[5])[0]
            yield from writer.sample(sample, kernel, walked, detail)
        yield from writer.begin()

    def _profiles(self) -> None:
        """The profile of each event, in the format that was asked for, or their summary."""
        profiles = self.profiles()
        path, base = self.options.differential, None
        if path is not None:
            before = self._of_base(path)
            events = [profile.event for profile in profiles]
            base = next((profile for profile in before if profile.event in events), None)
            if base is None:
                raise SourceError("it has no samples of the same event", path)
        title = self.source.command or self.source.path
        write_profiles(self.options, profiles, title, base, [self.source.path, path or ""])

    def _of_base(self, path: str) -> list[Profile]:
        """The profiles of another recording, by the same options."""
        from unwind.cli.stacks import files_of
        from unwind.transports.perf_data import TRANSPORT

        with files_of(self.options) as files, TRANSPORT.open(path, files) as source:
            return Report(self.prog, self.options, source).profiles()

    def profiles(self) -> list[Profile]:
        """The profile of each event."""
        from unwind.profile import Counts, Thread

        places, timed = self.places, times_wanted(self.options)
        has_ids = ids_wanted(self.options)
        by_event: dict[Event, Counts] = {}
        tables: dict[AddressSpace, dict[tuple[Task, int], tuple[Event, Counts, Table]]] = {}
        explained: set[tuple[str, str | None]] = set()

        def gone(space: ProcessSpace) -> None:
            tables.pop(space, None)
            for counts in by_event.values():
                counts.forget(space)
            places.forget(space)

        def table(space: AddressSpace, task: Task, event: Event) -> tuple[Counts, Table]:
            """Where samples of a thread are counted."""
            known = tables.setdefault(space, {}).get((task, id(event)))
            if known is None:
                counts = by_event.get(event)
                if counts is None:
                    counts = by_event[event] = Counts(
                        event.name, event.unit, places.site, places.kernel_site, timed
                    )
                pid, tid = (task.pid, task.tid) if has_ids else (None, None)
                thread = Thread(pid, tid, task.comm)
                known = tables[space][task, id(event)] = event, counts, counts.table(space, thread)
            return known[1:]

        self.source.processes.gone = gone
        last: tuple[AddressSpace, Task, Event] | None = None
        for sample in self._samples():
            task, time, event, _, weight, chain, space = sample[:7]
            if last is None or last[0] is not space or last[1] is not task or last[2] is not event:
                last = space, task, event
                counts, counted = table(*last)
            walked = self.sampler.walk(sample)
            pcs, end, how, _ = walked
            detail = ""
            if end != End.OUTERMOST:
                self.is_complete = False
                module = space.find(pcs[-1]) if pcs else None
                cut = end, module.name if module is not None else None
                if cut not in explained:  # one sentence for all that end so
                    explained.add(cut)
                    detail = self.sampler.detail(sample, walked)
            kernel = split_callchain(chain)[0] if chain else ()
            counts.add(counted, tuple(pcs), end, weight, how, kernel, detail, time / 1e9)
        return [counts.profile() for counts in by_event.values()]

    def _explain(self, wanted: str) -> None:
        """One sample, frame by frame, as unwind-core --explain does."""
        from unwind.explain import explain
        from unwind.writers.explanation import explanation_lines
        from unwind.writers.text import TextWriter

        snapshot = self.source.snapshot(self._find(wanted))
        unwinder = self.sampler.unwinder
        writer = TextWriter(
            self.source.arch,
            self.names.name,
            colour=wants_colour(),
        )

        def notes(frame: Frame) -> Iterator[str]:
            place = unwinder.place(snapshot, frame)
            return explanation_lines(frame, explain(unwinder, place))

        stack = unwinder.unwind(snapshot)
        lines = [writer.thread(snapshot), *writer.stack(stack, notes)]
        self._put(f"{line}\n" for line in lines)

    def _find(self, wanted: str) -> Sample:
        """The sample of that number or time among those that the options choose."""
        from unwind.cli.perf import nanoseconds

        try:
            number = int(wanted) if wanted.isdecimal() else None
            time = None if number is not None else nanoseconds(wanted) // 1000
        except ValueError:
            raise SourceError(f"--explain: {wanted!r} is neither a number nor a time") from None
        for n, sample in enumerate(self._samples()):
            if n == number or sample[1] // 1000 == time:
                if sample[11] is None:
                    raise SourceError("the sample has no registers of a 64-bit user")
                return sample
        raise SourceError(f"no sample {wanted}", self.source.path)

    def _complain(self) -> None:
        """Say on standard error what was lost on the way."""
        source, changes = self.source, self.source.changes
        for warning in source.warnings:
            self._warn(warning)
        if changes.lost or changes.lost_samples:
            self._warn(
                f"{changes.lost} events and {changes.lost_samples} samples were lost while "
                "recording: record less (-F), or into memory (-m)"
            )
        if changes.throttled:
            self._warn(f"the kernel slowed an event down {changes.throttled} times")
        for reason, count in source.skipped.items():
            self._warn(f"{count} samples: {reason}")
        for kind, count in sorted(changes.unknown.items()):
            self._warn(f"{count} records of the unknown kind {kind} were skipped")
        if changes.damaged:
            self._warn(f"{changes.damaged} records are damaged and were skipped")
        for name, problem in self.names.problems.items():
            self._warn(f"{name}: no symbols: {problem}")

    def _warn(self, text: str) -> None:
        from unwind.writers.escape import escape

        warn(self.prog, escape(text))


def _chooser(options: Options) -> Callable[[Sample], bool] | None:
    """Tells whether the options choose a sample; None where they choose all."""
    comms, pids, tids = (set(given or ()) for given in (options.comm, options.pid, options.tid))
    events, span = set(options.event or ()), options.time
    if not (comms or pids or tids or events or span):
        return None

    def chosen(sample: Sample) -> bool:
        task, time, event = sample[:3]
        return (
            (not comms or task.comm in comms)
            and (not pids or task.pid in pids)
            and (not tids or task.tid in tids)
            and (not events or event.name in events)
            and (span is None or span[0] <= time <= span[1])
        )

    return chosen


def _bundled(texts: Iterator[str]) -> Iterator[str]:
    """The same text in fewer pieces."""
    pieces: list[str] = []
    for text in texts:
        pieces.append(text)
        if len(pieces) >= _AT_ONCE:
            yield "".join(pieces)
            pieces.clear()
    yield "".join(pieces)
