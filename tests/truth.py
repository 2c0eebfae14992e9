"""The truth about the stacks of a crash, and how far an unwinder agrees with it.

A program of tests/programs keeps the record of its calls (tests/programs/truth.h); here it becomes
the frames that have to be found, and frames that were found are compared with it.

    record ──read_record──> Record ──expected──> Stack ──differences──> what is wrong, in words
"""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import zip_longest
from pathlib import Path

# ---------------------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Frame:
    """A frame that has to be there."""

    names: tuple[str, ...]
    """Base names of its function, see `base_name`; empty where no function is."""
    pc: int | None
    """None where the program has no way to know."""
    named: bool = True
    """False: the symbol table may hold no name for it; a wrong name is wrong all the same."""
    signal: bool = False
    """A signal trampoline."""
    span: bool = False
    """Stands for one or more frames of libraries, the outermost of which is this one."""


@dataclass(frozen=True)
class Ends:
    """What an unwinder may say of a stack's end, and whether it may end early."""

    complete: tuple[str, ...] = ("outermost",)
    """Reasons, when all frames were found."""
    short: tuple[str, ...] = ()
    """Reasons, when some were not."""
    words: tuple[str, ...] = ()
    """What the sentence about a short stack must speak of."""
    at_least: int | None = None
    """How many frames there must be; None: all."""


@dataclass(frozen=True)
class Stack:
    """The truth about one thread."""

    tid: int
    crashed: bool
    frames: tuple[Frame, ...]
    ends: Ends


# --------------------------------------------------------------------- the record, made stacks


class Kind(IntEnum):
    """enum truth_kind of tests/programs/truth.h, where each is explained."""

    CALLED = 0
    SIGNAL = 1
    FOREIGN = 2
    WILD = 3
    OUTERMOST = 4
    CONTEXT = 5


class State(IntEnum):
    """enum truth_state."""

    RUNNING = 0
    PARKED = 1
    SPINNING = 2
    CRASHED = 3
    GONE = 4
    OVERFLOWED = 5


# The tail that a program cannot record, innermost first. The libraries' local symbols are in
# their debug files only, so these names may be absent; names that are there must be right.
GLIBC_MAIN = (
    Frame(("__libc_start_call_main",), None, named=False),
    Frame(("__libc_start_main", "__libc_start_main_impl"), None),
    Frame(("_start", "__start", "_ftext"), None),
)
# Off x86, a thread begins within clone at a label of its own.
CLONE = ("__clone3", "clone3", "__clone", "clone", "thread_start", "__thread_start")
GLIBC_THREAD = (
    Frame(("start_thread",), None, named=False),
    Frame(CLONE, None, named=False),
)
# Its MIPS code lies inside makecontext, and its symbol is local.
GLIBC_CONTEXT = (Frame(("__start_context", "makecontext"), None, named=False),)
MUSL_MAIN = (
    Frame(("libc_start_main_stage2",), None),
    Frame(("_start",), None),
)
MUSL_THREAD = (Frame(("start",), None), Frame(("__clone", "clone"), None))
TAILS = {
    ("glibc", "main"): GLIBC_MAIN,
    ("glibc", "thread"): GLIBC_THREAD,
    ("glibc", "context"): GLIBC_CONTEXT,
    ("musl", "main"): MUSL_MAIN,
    ("musl", "thread"): MUSL_THREAD,
}


@dataclass(frozen=True)
class Entry:
    """One struct truth_frame."""

    kind: int
    ra: int
    name: str


@dataclass(frozen=True)
class Record:
    """One struct truth_thread; entries innermost first."""

    tid: int
    state: int
    pc: int
    entries: tuple[Entry, ...]


def read_record(path: Path) -> Iterator[Record]:
    """The threads of a struct truth_file, in the byte order and word size it was written in."""
    image = path.read_bytes()
    assert image.startswith(b"truth/1\0"), f"{path} is no record"
    order = "<" if image[8:12] == b"\x04\x03\x02\x01" else ">"
    word, depth, threads = struct.unpack_from(f"{order}3I", image, 12)
    code = {4: "I", 8: "Q"}[word]
    head = struct.Struct(f"{order}4{code}")
    frame = struct.Struct(f"{order}2{code}48s")
    for index in range(threads):
        start = 24 + index * (head.size + depth * frame.size)
        tid, state, pc, used = head.unpack_from(image, start)
        frames = image[start + head.size : start + head.size + used * frame.size]
        entries = [
            Entry(kind, ra, name[: name.index(0)].decode())
            for kind, ra, name in frame.iter_unpack(frames)
        ]
        yield Record(tid, state, pc, tuple(reversed(entries)))


def expected(
    record: Path, executable: Path, libc: str, nameless: tuple[str, ...], ends: Ends
) -> Iterator[Stack]:
    """The stacks that a core has to show when the program of `record` has left it.

    `nameless` functions may have lost their symbols; `ends` is how a stack may end.
    """
    for thread in read_record(record):
        if thread.state != State.GONE:
            thread = _with_unrecorded_entry(thread, executable)
            tail = TAILS[libc, _beginning(thread)]
            frames = tuple(
                replace(frame, named=frame.named and not set(nameless) & {"*", *frame.names})
                for frame in _frames(thread, tail)
            )
            if libc == "musl":
                # As far as CFI leads, and into libc's first frame.
                ends = replace(ends, at_least=len(frames) - len(tail) + 1)
            crashed = thread.state in (State.CRASHED, State.OVERFLOWED)
            yield Stack(thread.tid, crashed, frames, ends)


def _frames(thread: Record, tail: tuple[Frame, ...]) -> Iterator[Frame]:
    """Innermost first; a frame's pc is what the entry before it returns to."""
    pc: int | None = thread.pc or None
    for entry in thread.entries:
        match entry.kind:
            case Kind.CALLED:
                yield Frame((entry.name,), pc)
            case Kind.SIGNAL:
                yield Frame(("__restore_rt",), pc, named=False, signal=True)
            case Kind.FOREIGN:
                yield Frame(tuple(entry.name.split("|")), pc, span=True)
            case Kind.WILD:
                yield Frame((), pc)
            case Kind.OUTERMOST:
                yield Frame((entry.name,), pc)
                return
            case Kind.CONTEXT:
                break
        pc = entry.ra or None
    yield replace(tail[0], pc=pc)
    yield from tail[1:]


def _beginning(thread: Record) -> str:
    if any(entry.kind == Kind.CONTEXT for entry in thread.entries):
        return "context"
    return "main" if thread.entries[-1].name == "main" else "thread"


def _with_unrecorded_entry(thread: Record, executable: Path) -> Record:
    """Adds the function that overflowed the stack before it could record itself.

    Its caller is at the place where it has called that function each time before.
    """
    top = thread.entries[0]
    if thread.state != State.OVERFLOWED:
        return thread
    name = _function_at(executable, thread.pc)
    if name == top.name:
        return thread
    before = next(entry for entry in thread.entries if entry.name == name)
    return replace(thread, entries=(before, *thread.entries))


def _function_at(executable: Path, vaddr: int) -> str:
    listing = subprocess.check_output(["nm", "-S", executable], text=True)
    for start, size, _, name in (
        words for words in map(str.split, listing.splitlines()) if words[3:]
    ):
        if int(start, 16) <= vaddr < int(start, 16) + int(size, 16):
            return name
    raise AssertionError(f"no function at {vaddr:#x}")


# ---------------------------------------------------------------------------------- the names


def base_name(name: str) -> str:
    """What remains of a demangled name without scope, return type, arguments, and clone suffix.

    Demanglers differ in all of these; compilers differ in how they name a lambda's scope.
    """
    name = re.sub(r" ?\[(clone .*|cold)\]", "", name).partition("@")[0]
    name = re.sub(r"\.(cold|part|constprop|isra|llvm)\b.*", "", name)
    name = re.sub(r"( (const|volatile|noexcept|&&?))+$", "", name)
    if name.endswith(")") and not name.endswith("operator()"):
        name = name[: _opening(name)]
    if name.endswith(">") and not re.search(r"operator(>|>>|->)$", name):
        name = name[: _opening(name)]
    if operator := re.search(r"(?:^|::)(operator[^:]*)$", name):
        return operator[1]
    return name.rpartition("::")[2].rpartition(" ")[2]


def library_name(name: str) -> str:
    """One of a library function's aliases: libc's `__libc_pause`, `__pause`, `pause` are one."""
    return re.sub(r"^(__GI_|__libc_(?!start)|__vdso_|_+)+", "", base_name(name))


def _opening(name: str) -> int:
    """Where the bracket that the last character closes was opened."""
    depth = 0
    for index in range(len(name) - 1, -1, -1):
        if name[index] in ")>":
            depth += 1
        elif name[index] in "(<":
            depth -= 1
            if depth == 0:
                return index
    return len(name)


# ---------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Found:
    """A frame as some unwinder found it."""

    pc: int
    name: str | None
    """Demangled, or as in the symbol table."""
    signal: bool = False

    def __str__(self) -> str:
        return f"{self.pc:#018x} {'<signal>' if self.signal else self.name or '?'}"


def differences(stack: Stack, found: Sequence[Found]) -> list[str]:
    """What is wrong with the frames that an unwinder found, in words; nothing, if nothing is."""
    at = 0
    for number, frame in enumerate(stack.frames):
        if at >= len(found):
            least = stack.ends.at_least
            if least is not None and at >= least:
                return []
            return [f"ends after {at} frames: {describe(frame)} is missing"]
        if frame.span:
            after = stack.frames[number + 1]
            stop = next(
                (
                    index
                    for index in range(at + 1, len(found))
                    if _is(after, found[index]) and _is(replace(frame, pc=None), found[index - 1])
                ),
                None,
            )
            if stop is None and stack.ends.at_least is not None:
                return []  # cut short within the library: nothing known is contradicted
            if stop is None:
                return [
                    f"frame {at}: {describe(frame)}, and after that {describe(after)}: not found"
                ]
            if frame.pc is not None and frame.pc != found[at].pc:
                return [f"frame {at} should be at {frame.pc:#x}, not {found[at]}"]
            at = stop
        elif _is(frame, found[at]):
            at += 1
        else:
            return [f"frame {at} should be {describe(frame)}, not {found[at]}"]
    return [f"a frame too many: {extra}" for extra in found[at:]]


def _is(frame: Frame, found: Found) -> bool:
    if frame.pc is not None and frame.pc != found.pc:
        return False
    if frame.signal or found.signal:
        return frame.signal and found.signal
    if not frame.names:
        return True
    if not found.name:
        return not frame.named
    if frame.span:
        return library_name(found.name) in map(library_name, frame.names)
    return base_name(found.name) in frame.names


def describe(frame: Frame) -> str:
    """A frame for a person to read."""
    where = f"{frame.pc:#018x}" if frame.pc is not None else "0x".ljust(18, ".")
    name = " or ".join(frame.names) or "(no function)"
    marks = "<signal> " * frame.signal + "... " * frame.span
    return f"{where} {marks}{name if frame.named else f'({name})'}"


def columns(left: Sequence[object], right: Sequence[object]) -> Iterator[str]:
    """Two stacks side by side, the middle of deep ones left out."""
    for index, pair in enumerate(zip_longest(left, right, fillvalue="")):
        if 20 < index < max(len(left), len(right)) - 6:
            continue
        yield f"    {pair[0]!s:70} | {pair[1]}"
