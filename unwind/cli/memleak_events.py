"""The stack of each event of a source in, printed, with what became of all of them, out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import warn
from unwind.cli.stacks import sources_of

__all__ = ["EventReport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.cli.options import Options
    from unwind.events.event import Event
    from unwind.frames import Stack
    from unwind.transports.ring_buffer import RingBufferSource

_PROG = "unwind-memleak"
_SECONDS = 10.0


class EventReport:
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

        for event in self.source.events(self.options.duration or _SECONDS):
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


def _reasons(counts: dict[str, int]) -> str:
    """The counts by their reasons, the largest first, in brackets; nothing of nothing."""
    if not counts:
        return ""
    parts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{reason} {count}' for reason, count in parts)})"
