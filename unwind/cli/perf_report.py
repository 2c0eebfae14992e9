"""A recording and options in, what they ask for of its samples printed out."""

from __future__ import annotations

import sys

from unwind.cli.hints import print_hints
from unwind.cli.names import names_of
from unwind.cli.perf_samples import AT_ONCE, Chooser, is_in
from unwind.cli.plumbing import Progress, wants_colour, warn
from unwind.cli.profiles import profile_wanted, write_profiles
from unwind.cli.stacks import sources_of
from unwind.errors import SourceError
from unwind.frames import End
from unwind.sampling import Sampler, split_callchain
from unwind.unwinder import DEFAULT_LIMIT, Unwinder

__all__ = ["Report"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeAlias

    from unwind.cli.options import Options
    from unwind.cli.perf_samples import Share
    from unwind.files import Files
    from unwind.frames import Frame
    from unwind.perf.kallsyms import Kallsyms
    from unwind.perf.processes import ProcessSpace
    from unwind.perf.samples import Sample
    from unwind.perf.vmlinux import Vmlinux
    from unwind.places import Places
    from unwind.profile import Profile
    from unwind.transports.perf_data import PerfSource

    # What comes first; the text that must stand before a sample, whoever writes that; what puts a
    # sample's text behind others.
    Texts: TypeAlias = tuple[
        str, Callable[[Sample], str] | None, Callable[[Sample, list[str]], None]
    ]

_ALL: Share = 0, 1
_MOST_HINTS = 3  # modules that are said to have no names


class Report:
    """One run of the command over one opened recording."""

    def __init__(self, prog: str, options: Options, source: PerfSource, files: Files | None = None):
        self.prog, self.options, self.source = prog, options, source
        limit = options.max_frames or DEFAULT_LIMIT
        unwinder = Unwinder(source.arch, sources_of(options, source.arch), limit)
        self.sampler = Sampler(source.snapshot, unwinder, options.max_stack)
        self._files = files
        self._places: Places | None = None
        self._kallsyms: Kallsyms | Vmlinux | None = None
        if options.kallsyms is not None:
            from unwind.cli.kernel_names import kernel_names

            self._kallsyms = kernel_names(options, source, files)
        self.is_complete = True

    @property
    def places(self) -> Places:
        """What names pcs; it is loaded when a name is asked for."""
        if self._places is None:
            from unwind.perf.jit import JitMaps
            from unwind.places import Places

            options, made = self.options, self.source.processes.kernel_symbols
            names = names_of(options, self._files, many=True)
            self._places = Places(names, JitMaps(options.perf_map), self._kallsyms, made)
        return self._places

    def print(self) -> int:
        """Print what was asked for; 1 when strictness was asked for and not met."""
        options = self.options
        if options.script or options.json or options.explain is not None:
            if profile_wanted(options):
                raise SourceError("one of --script, --json, --explain and the profiles")
            if options.explain is not None:
                self._explain(options.explain)
            else:
                self._put(self._texts())
        else:
            self._profiles()
        self._complain()
        return 1 if options.strict and not self.is_complete else 0

    def _samples(self, chooser: Chooser) -> Iterator[Sample]:
        """The samples that are wanted; a bar shows how far they have come."""
        samples = self.source.samples(chooser.wanted)
        if chooser.share[0] == 0 and sys.stderr.isatty():
            return self._watched(samples)
        return samples

    def _watched(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples, while a bar shows how far they have come."""
        progress, records = Progress("unwinding"), self.source.records
        for n, sample in enumerate(samples):
            if not n & 0xFF:
                progress(records.done, len(records.data))
            yield sample
        progress.close()

    def _put(self, texts: Iterator[str]) -> None:
        """Print texts, many at a time: into --output, if that was given."""
        from unwind.cli.profiles import write_text

        write_text(self.options.output, texts)

    def _texts(self) -> Iterator[str]:
        """The text of the samples, many at a time; by several processes, if that was asked for."""
        jobs = self.options.jobs
        if jobs == 1:
            return self._texts_of(_ALL)
        from unwind.cli.jobs import dealt

        return dealt(jobs, lambda n: self._texts_of((n, jobs)), self._state, self._learn)

    def _texts_of(self, share: Share) -> Iterator[str]:
        """What one of several processes makes of its share, as many texts at a time as it has.

        Each of them reads the whole recording: what a process has mapped must be known.
        """
        head, meet, put = self._json() if self.options.json else self._script()
        texts = [head] if share[0] == 0 else []
        chooser = Chooser(self.options, share if meet is None else _ALL)
        left = AT_ONCE
        for n, sample in chooser.numbered(self._samples(chooser)):
            if meet is not None:
                news = meet(sample)
                if not is_in(n, share):
                    continue
                if news:
                    texts.append(news)
            put(sample, texts)
            left -= 1
            if not left:
                yield "".join(texts)
                texts.clear()
                left = AT_ONCE
        if texts:
            yield "".join(texts)

    def _script(self) -> Texts:
        """The text of perf script for each sample."""
        from unwind.writers.perf_script import DEFAULT_FIELDS, ScriptWriter

        fields = self.options.fields
        writer = ScriptWriter(
            fields.split(",") if fields else DEFAULT_FIELDS,
            lambda space, pc, called: self.places.site(space, pc, called),
            lambda pc, called: self.places.kernel_site(pc, called),
        )
        walk, write = self.sampler.walk, writer.write

        def put(sample: Sample, texts: list[str]) -> None:
            pcs, end, how, _ = walk(sample)
            if end != End.OUTERMOST:
                self.is_complete = False
            write(sample, split_callchain(sample[5])[0] if sample[5] else (), pcs, how, texts)

        return "", None, put

    def _json(self) -> Texts:
        """A document without threads, then a line for each sample, and lines of modules."""
        from unwind.writers.sample_lines import SampleLines

        places = self.places
        name = places.names.name
        writer = SampleLines(self.source, name, places.site, places.kernel_site)

        def gone(space: ProcessSpace) -> None:
            writer.forget(space)
            places.forget(space)

        def put(sample: Sample, texts: list[str]) -> None:
            walked = self.sampler.walk(sample)
            if walked[1] != End.OUTERMOST:
                self.is_complete = False
            detail = self.sampler.detail(sample, walked)
            extents = self.sampler.extents(sample, walked)
            kernel, _ = split_callchain(sample[5])
            texts.append(writer.sample(sample, kernel, walked, extents, detail))

        self.source.processes.gone = gone
        return writer.head(), writer.meet, put

    def _state(self) -> tuple[object, ...]:
        """What the first process must know of another one, which has read the whole recording."""
        source, changes = self.source, self.source.changes
        losses = changes.lost, changes.lost_samples, changes.throttled, changes.damaged
        of_source = source.warnings, source.skipped, losses, changes.unknown
        problems = self._places.names.problems if self._places is not None else {}
        return self.is_complete, problems, of_source

    def _learn(self, state: tuple[bool, dict[str, str], tuple[Any, ...]]) -> None:
        """Take over what `_state` gave in another process."""
        is_complete, problems, (warnings, skipped, losses, unknown) = state
        self.is_complete = self.is_complete and is_complete
        if problems:
            self.places.names.problems |= problems
        source, changes = self.source, self.source.changes
        source.warnings, source.skipped, changes.unknown = warnings, skipped, unknown
        changes.lost, changes.lost_samples, changes.throttled, changes.damaged = losses

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
            return Report(self.prog, self.options, source, files).profiles()

    def profiles(self) -> list[Profile]:
        """The profile of each event."""
        from unwind.cli.perf_profiles import joined

        jobs, events = self.options.jobs, self.source.header.events
        made: list[Profile] = []
        if jobs == 1:
            return joined(self._profiles_of(_ALL), events)
        from unwind.cli.jobs import dealt

        def count(number: int) -> Iterator[str]:
            made.extend(self._profiles_of((number, jobs)))
            yield from ()

        def take(result: tuple[tuple[Any, ...], list[Profile]]) -> None:
            self._learn(result[0])
            made.extend(result[1])

        for _ in dealt(jobs, count, lambda: (self._state(), made), take):
            pass
        return joined(made, events)

    def _profiles_of(self, share: Share) -> list[Profile]:
        """The profile of each event, of a share of the samples."""
        from unwind.cli.perf_profiles import Counting

        counting = Counting(self.places, self.sampler, self.options)
        self.source.processes.gone = counting.forget
        chooser = Chooser(self.options, share)
        for n, sample in chooser.numbered(self._samples(chooser)):
            counting.add(n, sample)
        self.is_complete = self.is_complete and counting.is_complete
        return counting.profiles()

    def _explain(self, wanted: tuple[str, int | None, int]) -> None:
        """One sample, frame by frame, as unwind-core --explain does."""
        from unwind.explain import explain
        from unwind.writers.explanation import explanation_lines
        from unwind.writers.text import TextWriter

        snapshot = self.source.snapshot(self._find(wanted))
        unwinder = self.sampler.unwinder
        writer = TextWriter(
            self.source.arch,
            self.places.names.name,
            colour=wants_colour(),
        )

        def notes(frame: Frame) -> Iterator[str]:
            place = unwinder.place(snapshot, frame)
            return explanation_lines(frame, explain(unwinder, place))

        stack = unwinder.unwind(snapshot)
        lines = [writer.thread(snapshot), *writer.stack(stack, notes)]
        self._put(f"{line}\n" for line in lines)

    def _find(self, wanted: tuple[str, int | None, int]) -> Sample:
        """The sample of that number or time among those that the options choose."""
        text, number, time = wanted
        chooser = Chooser(self.options, _ALL)
        for n, sample in chooser.numbered(self._samples(chooser)):
            if n == number if number is not None else sample[1] // 1000 == time // 1000:
                if sample[11] is None:
                    raise SourceError("the sample has no registers of a 64-bit user")
                return sample
        raise SourceError(f"no sample {text}", self.source.path)

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
        if self._places is None:
            return
        names = self._places.names
        for name, problem in names.problems.items():
            self._warn(f"{name}: no symbols: {problem}")
        # To look up which package has names takes as long as five thousand samples: not where
        # the lines are for a program. What other processes could not name, they keep.
        for_people = not (self.options.script or self.options.json) or sys.stderr.isatty()
        if self.options.jobs == 1 and for_people:
            print_hints(self.prog, self.options, names.unnamed, most=_MOST_HINTS)

    def _warn(self, text: str) -> None:
        from unwind.writers.escape import escape

        warn(self.prog, escape(text))
