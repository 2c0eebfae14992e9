"""The allocator of a process in, reports of what it has not freed out."""

from __future__ import annotations

import sys

from unwind.cli.names import names_of
from unwind.cli.plumbing import warn
from unwind.cli.profiles import profile_wanted, write_profiles
from unwind.cli.stacks import sources_of
from unwind.errors import SourceError

__all__ = ["print_leaks"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.cli.memleak_target import Command, Running
    from unwind.cli.options import Options
    from unwind.cli.stopping import Stopping
    from unwind.files import Files
    from unwind.leaks.known import KnownStack
    from unwind.leaks.probes import Probes
    from unwind.leaks.report import Report
    from unwind.profile import Profile
    from unwind.transports.ring_buffer import RingBufferSource

_PROG = "unwind-memleak"
_OLD_ENOUGH = 500  # milliseconds: what is younger may well be freed yet
_INTERVAL = 5.0  # seconds between reports of a process that was there before
_TOP = 10
# MB: a program shows most of its kinds of stacks in its first moments, before the kernel is told
# how to know them. Where there is no memory for that, less must do.
_RING_SIZES = (128, 32, 8)
_MOST_KEYS = 48_000  # of 65,536 for which the kernel has room
_MOST_STACK = 256 << 10  # bytes: MOST_PAGES of bpf/leaks.bpf.c
_AT_ONCE = 0.1  # seconds between two looks at the process
_LARGEST = (1 << 64) - 1


def print_leaks(options: Options, stopping: Stopping, files: Files) -> int:
    """Print the reports that the options ask for; 1 when strictness was not met."""
    from unwind.cli.memleak_target import target_of
    from unwind.leaks.probes import Probes, Wanted

    _check(options)
    with target_of(options) as target:
        wanted = Wanted(
            options.min_size or 0,
            _LARGEST if options.max_size is None else options.max_size,
            options.sample_rate,
            options.max_blocks,
            options.trace,
        )
        probes = Probes(target.pid, target.objects, wanted, only=options.obj is not None)
        with _source(options, probes, files) as source:
            stopping.end(source.stop)
            try:
                return _Watch(options, target, probes, source, files).print(stopping)
            finally:
                probes.close()


def _source(options: Options, probes: Probes, files: Files) -> RingBufferSource:
    """What sends the stacks, with the largest ring that there is memory for."""
    from errno import ENOMEM

    from unwind.bpf.libbpf import BpfError
    from unwind.transports.ring_buffer import TRANSPORT, RingOptions

    *larger, smallest = [options.ring_size] if options.ring_size else _RING_SIZES

    def opened(size: int) -> RingBufferSource:
        stack_size = min(options.stack_size << 10, _MOST_STACK)
        ring = RingOptions(pid=probes.pid, stack_size=stack_size, ring_size=size << 20)
        return TRANSPORT.watch(probes, files, ring)

    for size in larger:
        try:
            return opened(size)
        except BpfError as error:
            if error.number != ENOMEM:
                raise
    return opened(smallest)


def _check(options: Options) -> None:
    """SourceError for options that say nothing together."""
    if options.combined_only:
        for name, flag in (("older", "-o"), ("show_allocs", "-a")):
            if getattr(options, name):
                raise SourceError(f"{flag} asks for single allocations, --combined-only for none")
    if options.trace and options.json:
        raise SourceError("-t prints lines, --json documents")
    if profile_wanted(options) and (options.interval or options.json):
        raise SourceError("a profile is made of the last report, and of no other format")


class _Watch:
    """One run: stacks are walked as they come, and reported from time to time."""

    def __init__(
        self,
        options: Options,
        target: Running | Command,
        probes: Probes,
        source: RingBufferSource,
        files: Files,
    ):
        from time import monotonic

        from unwind.leaks.stacks import Stacks
        from unwind.unwinder import DEFAULT_LIMIT, Unwinder

        self.options, self.target, self.probes, self.source = options, target, probes, source
        limit = options.max_frames or DEFAULT_LIMIT
        self.stacks = Stacks(Unwinder(source.arch, sources_of(options, source.arch), limit))
        self.names = names_of(options, files, many=True)
        self._begin = monotonic()
        self._told: dict[KnownStack, int] = {}  # whose steps the kernel has, of which generation
        self._complete = 0  # allocations with complete stacks, of keys that were forgotten
        self.comm: str | None = None
        self._has_put = False

    def print(self, stopping: Stopping) -> int:
        """All reports, the last when the process ends, the time is over, or a signal comes."""
        from time import monotonic

        options = self.options
        self.target.begin()
        interval, left = self._pace()
        end = self._begin + options.duration if options.duration else float("inf")
        due = self._begin + interval
        while left and not stopping.came:
            now = monotonic()
            self._take(max(min(_AT_ONCE, due - now, end - now), 0.001))
            now = monotonic()
            if self.target.has_ended() or now >= end:
                break
            if now >= due:
                left -= 1
                due += interval
                if left:
                    self._put(self._report(False))
        report = self._report(self.target.has_ended())
        self.source.stop()
        if profile_wanted(options):
            write_profiles(options, [self._profile(report)], f"outstanding of pid {report.pid}")
        else:
            self._put(report)
        self._warn()
        return 1 if options.strict and report.complete < report.totals.allocations else 0

    def _pace(self) -> tuple[float, int]:
        """Seconds between reports, and how many; of a command the last one alone, unless asked."""
        options = self.options
        given = options.interval
        if profile_wanted(options) or (given is None and options.command is not None):
            return float("inf"), 1
        return given or _INTERVAL, options.count or sys.maxsize

    def _take(self, seconds: float) -> None:
        """Walk what the kernel sends, for so long."""
        from unwind.leaks.steps import steps_of
        from unwind.writers.leaks import call_line

        source, probes = self.source, self.probes
        for event in source.events(seconds, pausing=True):
            probes.settle()
            self.comm = event.comm
            known = self.stacks.take(event.cookie, source.snapshot(event))
            if self._told.get(known) != probes.generation:
                self._told[known] = probes.generation
                for step in steps_of(known, self.stacks.unwinder.lookup.outline):
                    probes.learn(step)
        probes.settle()
        if self.stacks.keys > _MOST_KEYS:
            self._forget()
        for call in probes.calls():
            print(call_line(call, probes.pid))

    def _forget(self) -> None:
        """Make room for the stacks to come: those go of which nothing is outstanding."""
        kept = set()
        for site in list(self.probes.sites()):
            if site.count and site.current:
                kept.add(site.stack)
            else:
                known = self.stacks.get(site.stack)
                self._complete += site.events if known is not None and known.complete else 0
                self.probes.forget(site)
        kept.update([block.stack for block in self.probes.blocks().values()])
        self.stacks.keep(kept)
        self._told.clear()

    def _report(self, has_ended: bool) -> Report:
        from time import monotonic, monotonic_ns, time

        from unwind.leaks.report import Left, Report, by_block, by_site

        options, probes, get = self.options, self.probes, self.stacks.get
        now = monotonic_ns()
        blocks = {} if options.combined_only else probes.blocks()
        sites, totals = list(probes.sites()), probes.totals()
        self._take(0)  # a stack was sent before the first of its blocks was there
        if options.combined_only:
            leaks, young = by_site(sites, get), Left(0, 0)
        else:
            age = options.older if options.older is not None else 0 if has_ended else _OLD_ENOUGH
            leaks, young = by_block(blocks.values(), get, now, round(age * 1e6))
        known = [(get(site.stack), site.events) for site in sites]
        complete = self._complete + sum(
            [events for stack, events in known if stack is not None and stack.complete]
        )
        return Report(
            probes.pid,
            time(),
            monotonic() - self._begin,
            leaks,
            young,
            totals,
            complete,
            probes.gone,
            self.stacks.checked,
            self.stacks.mistaken,
        )

    def _put(self, report: Report) -> None:
        lines = list(self._lines(report))
        if self.options.output:  # from the first report on, whatever was there
            with open(self.options.output, "a" if self._has_put else "w", encoding="utf-8") as file:
                file.write("\n".join([*lines, ""]))
            self._has_put = True
        else:
            print("\n".join(lines), flush=True)

    def _lines(self, report: Report) -> Iterator[str]:
        options, name = self.options, self.names.name
        if options.json:
            from unwind.writers.json_document import dumps
            from unwind.writers.leaks_document import leaks_document

            found = leaks_document(
                report, self.source.arch, name, options.top, blocks=options.show_allocs
            )
            yield dumps(found)
        else:
            from unwind.writers.leaks import report_lines

            top = options.top or _TOP
            yield from report_lines(report, name, top, options.show_allocs, options.sample_rate)

    def _profile(self, report: Report) -> Profile:
        """The outstanding bytes as a profile."""
        from unwind.profile import Counts, Thread
        from unwind.sites import Sites

        counts = Counts("outstanding", "bytes", Sites(self.names.name))
        for leak in report.leaks:
            stack = leak.stack
            if stack is None:
                continue
            table = counts.table(stack.space, Thread(report.pid, None, self.comm))
            counts.add(
                table, stack.pcs, stack.end, leak.size, _how(stack), (), stack.detail, 0, leak.count
            )
        return counts.profile()

    def _warn(self) -> None:
        for name in self.probes.late:
            warn(_PROG, f"{name} was mapped later: what was allocated there at first is not known")
        for warning in self.source.warnings:
            warn(_PROG, warning)
        for name, problem in self.names.problems.items():
            warn(_PROG, f"{name}: no symbols: {problem}")
        if dropped := self.source.dropped():
            warn(_PROG, f"{dropped} times the ring had no room for a stack; --ring-size")
        if self.source.damaged:
            warn(_PROG, f"damaged events: {sum(self.source.damaged.values())}")


def _how(stack: KnownStack) -> tuple[tuple[str, bool], ...] | None:
    """As Counts wants it: no call leads to what a signal interrupted."""
    if stack.how is None:
        return None
    return tuple(
        [(trust, called and n not in stack.signals) for n, (trust, called) in enumerate(stack.how)]
    )
