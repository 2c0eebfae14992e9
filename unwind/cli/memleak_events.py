"""The stack of each event of a source in, printed, with what became of all of them, out."""

from __future__ import annotations

import sys

from unwind.cli.names import names_of
from unwind.cli.plumbing import warn
from unwind.cli.stacks import sources_of, write_record

__all__ = ["EventReport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.cli.options import Options
    from unwind.events.event import Event
    from unwind.files import Files
    from unwind.frames import Stack
    from unwind.snapshot import Snapshot
    from unwind.transports.ring_buffer import RingBufferSource

_PROG = "unwind-memleak"
_SECONDS = 10.0
_MOST_KEPT = 10_000  # events, each of which has a copy of a stack


class EventReport:
    """One run: events are counted, and printed as they come."""

    def __init__(self, options: Options, source: RingBufferSource, files: Files):
        from unwind.fast import FastUnwinder
        from unwind.unwinder import DEFAULT_LIMIT, Unwinder

        self.options, self.source = options, source
        sources = sources_of(options, source.arch)
        self.unwinder = Unwinder(source.arch, sources, options.max_frames or DEFAULT_LIMIT)
        self.fast = FastUnwinder(self.unwinder)
        self.names = names_of(options, files, many=True)
        self.kept: list[tuple[Snapshot, Stack]] = []
        self.missed = 0  # events that there was no room to keep
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
            print(line, file=sys.stderr if self.options.json else sys.stdout)
        self._write()
        return 1 if self.options.strict and self.ends else 0

    def _event(self, event: Event) -> None:
        from unwind.writers.events import event_line

        kind = "kernel-thread" if event.is_kernel_thread else "32-bit" if event.is_compat else ""
        pc = event.ip or event.registers.get(self.source.arch.pc)
        head = event_line(event.pid, event.comm, pc, event.cookie, kind)
        if kind:
            self.odd[kind] = self.odd.get(kind, 0) + 1
            if not (self.options.quiet or self.options.json):
                print(head)
            return
        before = len(self.source.warnings)
        snapshot = self.source.snapshot(event)
        for warning in self.source.warnings[before:]:
            sys.stdout.flush()
            print(f"[warn] {warning}", file=sys.stderr)
        del self.source.warnings[before:]
        if self.options.quiet and not self._keeps:
            self._count(self.fast.trace(snapshot).end)
            return
        stack = self.unwinder.unwind(snapshot)
        self._count(stack.end)
        if self._keeps:
            if len(self.kept) < _MOST_KEPT:
                self.kept.append((snapshot, stack))
            else:
                self.missed += 1
        if not (self.options.quiet or self.options.json):
            print("\n".join([head, *self._frames(stack)]))

    @property
    def _keeps(self) -> bool:
        return self.options.json or self.options.record is not None

    def _write(self) -> None:
        """What is made of all events at once: the JSON document, the snapshot file."""
        options, source = self.options, self.source
        if self.missed:
            warn(_PROG, f"the first {_MOST_KEPT} events are kept, {self.missed} are not")
        if options.json:
            from unwind.writers.json_document import document, dumps

            modules = {id(m): m for snapshot, _ in self.kept for m in snapshot.space.modules}
            print(dumps(document(source, modules.values(), self.kept, self.names.name)))
        if options.record is not None:
            kept = [snapshot for snapshot, _ in self.kept]
            write_record(options, source, kept, self.unwinder, self.names)

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
