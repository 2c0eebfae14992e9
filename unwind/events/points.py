"""Where to look: the name of a place in, the program attached to it out.

do_exit                     a function of the kernel (kprobe)
sched:sched_process_exit    a tracepoint, by its category and name
raw:sched_process_exit      the same as a raw tracepoint, btf:... as one with types
fentry:do_exit              a function of the kernel, without kprobes but with ftrace's calls
/usr/lib/libc.so.6:malloc   a function of a program or library (uprobe), perhaps with +OFFSET
ret:/bin/bash:readline      where such a function returns to, as it does (uretprobe)
cpu-clock@99                whatever runs, so many times a second on each processor
"""

from __future__ import annotations

import os

from unwind.bpf.libbpf import BpfError
from unwind.errors import SourceError
from unwind.events.perf_event import open_cpu_clock, processors
from unwind.events.refusals import TRACEFS, explained, has_kprobes, no_kprobes
from unwind.values import Value

__all__ = ["Point", "kernel_point", "point"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from unwind.bpf.libbpf import BpfObject, Link, Program

_CLOCK = "cpu-clock@"
_RETURN = "ret:"
_PREFIXES = {"raw:": "raw_tracepoint", "btf:": "btf_tracepoint", "fentry:": "fentry"}
_TYPED = ("btf_tracepoint", "fentry")
_FASTEST = 100_000  # samples a second
# What serves in place of a function where the kernel has no kprobes.
_TRACEPOINTS = {"do_exit": ("sched", "sched_process_exit")}


if TYPE_CHECKING:

    class Attached(Protocol):
        """A program in its place, until it is closed."""

        def close(self) -> None: ...

    class Watched(Protocol):
        """What a RingBufferSource attaches to: programs of an object that is built in."""

        @property
        def name(self) -> str: ...
        @property
        def kind(self) -> str: ...
        @property
        def object_name(self) -> str: ...
        @property
        def programs(self) -> tuple[str, ...]: ...
        def prepare(self, object: BpfObject) -> None: ...
        def attach(self, object: BpfObject, pid: int | None, cookie: int) -> Sequence[Attached]: ...


class Point(Value):
    """A place to attach to: `kind` of kprobe, tracepoint, raw_tracepoint, btf_tracepoint, fentry,
    uprobe, uretprobe, perf_event.

    `name` is a function, a tracepoint or a file, `inside` a tracepoint's category or a function of
    the file, and `number` an offset or a frequency.
    """

    kind: str
    name: str
    inside: str = ""
    number: int = 0

    @property
    def program(self) -> str:
        """The program that is attached there."""
        return "on_uprobe" if self.kind == "uretprobe" else f"on_{self.kind}"

    @property
    def object_name(self) -> str:
        """The object that has them, of those that are built in."""
        return "unwind"

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that are to be loaded."""
        return (self.program,)

    def prepare(self, object: BpfObject) -> None:
        """What the program has to be told before it is loaded."""
        if self.kind in _TYPED:
            self._program(object).aim(self.name)

    def _program(self, object: BpfObject) -> Program:
        program = object.programs.get(self.program)
        if program is None:
            raise SourceError(f"it has no program {self.program!r}", object.path)
        return program

    def attach(self, object: BpfObject, pid: int | None, cookie: int) -> list[Link]:
        """Attach the program, once for each processor if need be; BpfError where that fails."""
        program = self._program(object)
        match self.kind:
            case "btf_tracepoint" | "fentry":
                return [program.attach_trace(self.name)]
            case "kprobe":
                return [program.attach_kprobe(self.name)]
            case "tracepoint":
                return [program.attach_tracepoint(self.inside, self.name)]
            case "raw_tracepoint":
                return [program.attach_raw_tracepoint(self.name)]
            case "uprobe" | "uretprobe":
                where = self.name, self.inside or None, self.number
                returning = self.kind == "uretprobe"
                try:
                    return [program.attach_uprobe(*where, pid, cookie, returning=returning)]
                except BpfError as error:
                    raise explained(error, self.kind, self.inside) from None
        handles = [open_cpu_clock(cpu, self.number) for cpu in processors()]
        return [program.attach_perf_event(handle) for handle in handles]


def point(text: str) -> Point:
    """The place that `text` names, as above; SourceError for none."""
    if text.startswith(_CLOCK):
        number = text.removeprefix(_CLOCK)
        if not number.isdecimal() or not 0 < int(number) <= _FASTEST:
            raise SourceError("no number of samples a second", text, "as in cpu-clock@99")
        return Point("perf_event", "cpu-clock", number=int(number))
    if text.startswith(_RETURN):
        entry = point(text.removeprefix(_RETURN))
        if entry.kind != "uprobe":
            raise SourceError("no function of a file", text, "ret:PATH:FUNCTION")
        return Point("uretprobe", entry.name, entry.inside, entry.number)
    if "/" in text:
        path, colon, inside = text.rpartition(":")
        function, _, more = inside.partition("+")
        if not colon or not inside:
            raise SourceError("no place in a file", text, "PATH:FUNCTION, as in /bin/bash:main")
        try:
            offset = int(more or "0", 0)
            if function[:2] == "0x":
                function, offset = "", int(function, 16) + offset
        except ValueError:
            raise SourceError("no offset", text, "PATH:FUNCTION+OFFSET") from None
        return Point("uprobe", os.path.realpath(path), function, offset)
    for prefix, kind in _PREFIXES.items():
        if text.startswith(prefix):
            return Point(kind, text.removeprefix(prefix))
    category, colon, name = text.partition(":")
    return Point("tracepoint", name, category) if colon else kernel_point(text)


def kernel_point(function: str) -> Point:
    """A function of the kernel, or the tracepoint in its place; SourceError where neither is."""
    if has_kprobes():
        return Point("kprobe", function)
    instead = _TRACEPOINTS.get(function)
    if instead is None:
        raise no_kprobes(function)
    category, name = instead
    if any(os.path.exists(f"{directory}/{category}/{name}") for directory in TRACEFS):
        return Point("tracepoint", name, category)
    return Point("raw_tracepoint", name)
