"""unwind-memleak: a place in the kernel or in a program in, the stack of whoever comes by out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, add_common_options, warn
from unwind.cli.stacks import add_file_options, add_walk_options, files_of, sources_of
from unwind.errors import SourceError

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from unwind.cli.options import Options, Parser
    from unwind.events.event import Event
    from unwind.frames import Stack
    from unwind.transports.ring_buffer import RingBufferSource

_PROG = "unwind-memleak"
_DEFAULT = "do_exit"
_EXAMPLES = """\
examples:
  unwind-memleak --symbol do_exit --duration 10
      for ten seconds, the stack of each thread that ends
  unwind-memleak --symbol /lib/x86_64-linux-gnu/libc.so.6:malloc -p 1234
      the stack of each allocation of process 1234
  unwind-memleak --symbol sched:sched_process_fork --quiet
      how many stacks of forks are complete, and why the others are not
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread that comes by a place in the kernel, or in a program. A "
        "BPF program copies registers and stack at that very moment, so that also processes that "
        "end at once have theirs. This takes root, and nothing is stopped."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to watch")
    group.add_argument(
        "--symbol",
        metavar="PLACE",
        help="a function of the kernel (do_exit, the default with --bpf), a tracepoint "
        "(CATEGORY:NAME, raw:NAME or btf:NAME), a function of a file (PATH:FUNCTION, perhaps "
        "+OFFSET), or cpu-clock@N: whatever runs, N times a second",
    )
    group.add_argument(
        "--bpf", metavar="FILE", help="a BPF object in place of the one that is built in"
    )
    group.add_argument("-p", "--pid", type=_count, metavar="PID", help="of this process only")
    group.add_argument(
        "--duration",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="for so many seconds (10); ^C ends it before",
    )
    group.add_argument(
        "--stack-size",
        type=_count,
        default=32,
        metavar="KB",
        help="how much of each stack is copied, 4 to 8192 kB (32)",
    )
    group.add_argument(
        "--ring-size",
        type=_count,
        default=32,
        metavar="MB",
        help="how much the kernel keeps until it is looked at (32, and up to a power of 2); "
        "events that do not fit it counts",
    )
    group = parser.add_argument_group("what to print")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no events: only warnings and the counts"
    )
    add_file_options(parser)
    add_walk_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    if options.symbol is None and options.bpf is None:
        raise SourceError(
            "nothing to watch", hint="--symbol PLACE, or --bpf FILE: the stack at each event"
        )
    from unwind.bpf.libbpf import BpfError
    from unwind.events.points import point
    from unwind.transports.ring_buffer import TRANSPORT, RingOptions

    place = options.symbol or _DEFAULT
    where = point(place)
    ring = RingOptions(
        object=options.bpf,
        pid=options.pid,
        stack_size=options.stack_size << 10,
        ring_size=options.ring_size << 20,
    )
    try:
        with (
            _Signals() as signals,
            files_of(options) as files,
            TRANSPORT.open(place, files, ring) as source,
        ):
            signals.end(source)
            if where.kind != "kprobe" and place.isidentifier():
                instead = ":".join(filter(None, (where.inside, where.name)))
                warn(_PROG, f"this kernel has no kprobes: attached to the tracepoint {instead}")
            return _Report(options, source).print()
    except BpfError as error:
        print(error.log, file=sys.stderr)
        raise


class _Report:
    """One run: events are counted, and printed as they come."""

    def __init__(self, options: Options, source: RingBufferSource):
        from unwind.fast import FastUnwinder
        from unwind.symbols.names import Names
        from unwind.symbols.table import TableSymbolizer
        from unwind.unwinder import DEFAULT_LIMIT, Unwinder

        self.options, self.source = options, source
        sources = sources_of(options, source.arch)
        self.unwinder = Unwinder(source.arch, sources, options.max_frames or DEFAULT_LIMIT)
        self.fast = FastUnwinder(self.unwinder)
        self.names = Names(TableSymbolizer())
        self.ends: dict[str, int] = {}
        self.odd: dict[str, int] = {}  # events without a stack to unwind, by what they are

    def print(self) -> int:
        """Print until the time is over or a signal ends it; 1 when strictness was not met."""
        from unwind.frames import End

        for event in self.source.events(self.options.duration):
            self._event(event)
        complete = self.ends.pop(End.OUTERMOST, 0)
        for warning in self.source.warnings:
            warn(_PROG, warning)
        for name, problem in self.names.problems.items():
            warn(_PROG, f"{name}: no symbols: {problem}")
        for line in self._counts(complete):
            print(line)
        return 1 if self.options.strict and self.ends else 0

    def _event(self, event: Event) -> None:
        from unwind.writers.events import event_line

        kind = "kernel-thread" if event.is_kernel_thread else "32-bit" if event.is_compat else ""
        pc = event.ip or event.registers.get(self.source.arch.pc)
        head = event_line(event.pid, event.comm, pc, event.cookie, kind)
        if kind:
            self.odd[kind] = self.odd.get(kind, 0) + 1
            if not self.options.quiet:
                print(head)
            return
        before = len(self.source.warnings)
        snapshot = self.source.snapshot(event)
        for warning in self.source.warnings[before:]:
            sys.stdout.flush()
            print(f"[warn] {warning}", file=sys.stderr)
        del self.source.warnings[before:]
        if self.options.quiet:
            self._count(self.fast.trace(snapshot).end)
            return
        stack = self.unwinder.unwind(snapshot)
        self._count(stack.end)
        print("\n".join([head, *self._frames(stack)]))

    def _frames(self, stack: Stack) -> Iterator[str]:
        from unwind.writers.events import frame_lines

        return frame_lines(self.source.arch, stack, self.names.name)

    def _count(self, end: str) -> None:
        self.ends[end] = self.ends.get(end, 0) + 1

    def _counts(self, complete: int) -> Iterator[str]:
        """What came, and what did not; a number that is no good news has its reasons with it."""
        source = self.source
        yield f"events: {source.received}"
        yield f"complete: {complete}"
        yield f"partial: {sum(self.ends.values())}{_reasons(self.ends)}"
        yield f"dropped: {source.dropped()}"
        if self.odd:
            yield f"without a 64-bit user: {sum(self.odd.values())}{_reasons(self.odd)}"
        if source.damaged:
            yield f"damaged: {sum(source.damaged.values())}{_reasons(source.damaged)}"
        if source.lost:
            yield f"not told of mappings or processes: {source.lost} times"


class _Signals:
    """While this is entered, SIGINT and SIGTERM end the events, and no more than that."""

    def __init__(self) -> None:
        self._source: RingBufferSource | None = None
        self._came = False

    def end(self, source: RingBufferSource) -> None:
        """It is this source's events that they end, or have ended."""
        self._source = source
        if self._came:
            source.stop()

    def __enter__(self) -> Self:
        import signal

        self._numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = [signal.signal(number, self._stop) for number in self._numbers]
        return self

    def __exit__(self, *_error: object) -> None:
        import signal

        for number, before in zip(self._numbers, self._before, strict=True):
            signal.signal(number, before)

    def _stop(self, _number: int, _frame: object) -> None:
        self._came = True
        if self._source is not None:
            self._source.stop()


def _reasons(counts: dict[str, int]) -> str:
    """The counts by their reasons, the largest first, in brackets; nothing of nothing."""
    if not counts:
        return ""
    parts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{reason} {count}' for reason, count in parts)})"


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    """argparse: a positive number."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
