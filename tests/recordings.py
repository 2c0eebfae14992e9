"""Programs that perf records, and what perf itself makes of a recording: the judge of our frames.

`record` makes a recording on the spot, where this machine permits it. `perf_stacks` has perf's
frames, `our_stacks` ours, both as addresses in files, so that they can be compared one by one.
"""

from __future__ import annotations

import enum
import functools
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import TypeAlias

from tests.perf_model import MOST, Model
from tests.support import cannot, need, run
from unwind.elf import PT
from unwind.files import Files
from unwind.frames import End
from unwind.sampling import Sampler, split_callchain
from unwind.space import AddressSpace
from unwind.transports.perf_data import TRANSPORT
from unwind.unwinder import Unwinder

_PAGE = 4096
_MOST_FILES = 5  # of a stack, whose CFI perf may have lost

PROGRAMS = Path(__file__).parent / "programs"


Frames: TypeAlias = tuple[tuple[str, int], ...]
BOGUS = ("[unknown]", (1 << 64) - 1)


@dataclass(frozen=True)
class Ours:
    """One sample as we walk it: frames as (file, offset in the file), innermost first."""

    comm: str | None
    pid: int
    tid: int
    time: int
    event: str
    kernel: tuple[int, ...]
    frames: Frames
    end: str
    trusts: tuple[str, ...] | None = None
    last_word: bool = False
    """Whether the return address that led to the last frame is the last word perf copied."""
    called: tuple[bool, ...] = ()
    """Of each frame whether it made a call, so that its place is that of the call."""
    modelled: tuple[tuple[tuple[str, ...], Frames], ...] = ()
    """The frames that perf would find without the CFI of these files (tests/perf_model.py)."""


@dataclass(frozen=True)
class Theirs:
    """One sample as perf prints it: each frame's address and file."""

    comm: str
    pid: int
    tid: int
    time: int
    event: str
    frames: Frames


def record(
    output: Path,
    *command: str | Path,
    options: Sequence[str] = (),
    dump: int = 8192,
    graph: str = "",
    stream: bool = False,
) -> Path:
    """A recording of `command`; the test is skipped where recording is not permitted.

    `stream`: as perf writes it into a pipe.
    """
    need("perf")
    argv = ["perf", "record", "-q", "-e", "cpu-clock:u", "-F", "2000"]
    argv += [] if graph == "none" else ["--call-graph", graph or f"dwarf,{dump}"]
    argv += options
    argv += ["-o", "-" if stream else str(output), "--", *map(str, command)]
    for _ in range(2):
        with output.open("wb") if stream else nullcontext(subprocess.DEVNULL) as out:
            done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
        if "build-id.c" not in done.stderr:
            break
        argv.insert(2, "-B")  # perf 6.1 dies of build-ids while others load BPF programs, it seems
    if "permitted" in done.stderr or "permission" in done.stderr:
        cannot(f"perf may not record here: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    return output


def build(directory: Path, source: str, *flags: str, name: str = "program") -> Path:
    """A program of tests/programs, built by gcc."""
    compiler = "g++" if source.endswith(".cc") else "gcc"
    need(compiler)
    made = directory / name
    argv = [compiler, "-O2", "-fomit-frame-pointer", *flags, "-o", str(made)]
    subprocess.run([*argv, str(PROGRAMS / source)], check=True)
    return made


def our_stacks(
    path: Path, modules: dict[str, str] | None = None, against: Sequence[Theirs] = ()
) -> list[Ours]:
    """Every sample of a recording, walked; `modules` are files in place of recorded ones.

    Where the frames differ from those that perf has, in `against`, they are modelled too.
    """
    with Files(module_map=modules) as files, TRANSPORT.open(str(path), files) as source:
        sampler = Sampler(source.snapshot, Unwinder(source.arch))
        model = Model(sampler.unwinder)
        found = []
        for n, sample in enumerate(source.samples()):
            pcs, end, how, _ = sampler.walk(sample)
            space, task = sample[6], sample[0]
            called = [n > 0 if how is None else how[n][1] for n in range(len(pcs))]
            frames = _in_files(space, pcs, called)
            modelled = []
            differs = n < len(against) and not _same(frames, against[n].frames)
            if differs and sample[11] is not None:
                snapshot = source.snapshot(sample)
                for lost in _subsets(frames):
                    walk = model.pcs(snapshot, lost)
                    modelled.append((lost, _in_files(space, walk, _plain(walk))))
            found.append(
                Ours(
                    task.comm,
                    task.pid,
                    task.tid,
                    sample[1] // 1000,
                    sample[2].name,
                    split_callchain(sample[5])[0],
                    frames,
                    end,
                    None if how is None else tuple(trust for trust, _ in how),
                    bool(pcs and sample[11] and sample[11][-1] == pcs[-1]),
                    tuple(called),
                    tuple(modelled),
                )
            )
        return found


def _subsets(frames: Frames) -> Iterator[tuple[str, ...]]:
    """The sets of files whose CFI may be lost to perf, the smaller ones first."""
    files = sorted({name for name, _ in frames if name})[:_MOST_FILES]
    return chain.from_iterable(combinations(files, size) for size in range(len(files) + 1))


def _plain(pcs: Sequence[int]) -> list[bool]:
    return [n > 0 for n in range(len(pcs))]


def _in_files(space: AddressSpace, pcs: Sequence[int], called: Sequence[bool]) -> Frames:
    """The frames as perf has them: the file, and the offset in it, of the call that was made."""
    frames = []
    for pc, is_behind in zip(pcs, called, strict=True):
        module = space.find(pc - is_behind)
        if module is None:
            frames.append(("", pc - is_behind))
            continue
        vaddr, offset = module.to_vaddr(pc - is_behind), pc - is_behind
        for row in module.image.elf.program_rows if module.image is not None else ():
            if row[0] == PT.LOAD and row[3] <= vaddr < row[3] + row[4]:
                offset = vaddr - row[3] + row[2]
        frames.append((module.name, offset))
    return tuple(frames)


class Difference(enum.Enum):
    """How perf's frames of a sample differ from ours, each class by what it takes to belong to it.

    Every one but the last is proved for the sample at hand: not a frame may be left over.
    """

    NONE = "the same frames"
    LAST_WORD = "perf does not read the last word of its copy of the stack"
    BOGUS = "perf ends a stack that was cut short with a frame at 2**64 - 1"
    NO_CFI = "code without CFI: perf takes rbp for a frame pointer"
    LOST_CFI = "after fork and exec perf finds no CFI of libraries: rbp taken for a frame pointer"
    TRAMPOLINE = "perf prints the byte before what returns from a signal's handler"
    RUN_TIME = "code made at run time: perf does not walk on"
    TOO_DEEP = "perf prints 127 frames and no more"
    OTHER = "something else"


def difference(mine: Ours, its: Theirs) -> Difference:
    """The class of difference between two walks of one sample; `mine` is `against` perf's."""
    ours, frames = mine.frames, its.frames
    if _same(ours, frames):
        return Difference.NONE
    # A trampoline made no call, and neither did the frame behind it, which was interrupted.
    trampolines = [not any(pair) for pair in zip(mine.called[1:], mine.called[2:], strict=False)]
    shifts = [False, *trampolines, False]
    if frames == tuple([(f, at - n) for (f, at), n in zip(ours, shifts, strict=False)]):
        return Difference.TRAMPOLINE
    if frames[-1:] == (BOGUS,):
        frames = frames[:-1]
    if _same(ours[:-1] if mine.last_word else ours, frames):
        if mine.last_word or mine.end == End.MEMORY_FAULT:
            return Difference.LAST_WORD if mine.last_word else Difference.BOGUS
    if len(its.frames) == MOST and _same(ours[:MOST], its.frames):
        return Difference.TOO_DEEP
    if ours[0][0] == "" and len(frames) == 1:
        return Difference.RUN_TIME
    for lost, walk in mine.modelled:
        if _same(walk, frames) or (mine.last_word and _same(walk[:-1], frames)):
            return Difference.LOST_CFI if lost else Difference.NO_CFI
    return Difference.OTHER


def _same(ours: Frames, theirs: Frames) -> bool:
    """Whether frames are the same.

    perf has several names for what lies in no file. Where it took a word for a return address that
    points at data of a file, it prints an offset there: of that the place in its page is compared.
    """
    if len(ours) != len(theirs):
        return False
    for (name, place), (its_name, its_place) in zip(ours, theirs, strict=True):
        in_file = name == "" and its_name[:1] == "/"
        if name not in ("", its_name) or (place ^ its_place) & (_PAGE - 1 if in_file else -1):
            return False
    return True


_HEAD = re.compile(r"^(.*?)\s+(\d+)/(\d+)\s+(\d+)\.(\d+):\s+(\S+):\s*$")
_FRAME = re.compile(r"^\t\s*([0-9a-f]+) .*?\(([^()]*?(?: \(deleted\))?)(?:\+0x([0-9a-f]+))?\)$")


def perf_stacks(path: Path) -> list[Theirs]:
    """Every sample as `perf script` prints it, the inlined frames left out.

    Where perf knows `dsoff` (6.4 and newer), `ip` is the address in the process, and that field the
    offset in the file. Before it, `ip` is that offset.
    """
    argv = ["perf", "script", "-i", path, "--no-inline", "-F"]
    done = run(*argv, "comm,pid,tid,time,event,ip,sym,dso,dsoff", timeout=120)
    if "Invalid field" in done.stderr:
        done = run(*argv, "comm,pid,tid,time,event,ip,sym,dso", timeout=120)
    assert done.returncode == 0, done.stderr
    return list(_parse(done.stdout))


def _parse(text: str) -> Iterator[Theirs]:
    for block in text.split("\n\n"):
        lines = block.strip("\n").split("\n")
        head = _HEAD.match(lines[0])
        if head is None:
            continue
        comm, pid, tid, seconds, micros, event = head.groups()
        frames = [_FRAME.match(line) for line in lines[1:]]
        assert all(frames), lines
        yield Theirs(
            comm.strip(),
            int(pid),
            int(tid),
            int(seconds) * 1_000_000 + int(micros),
            event,
            tuple((frame[2], int(frame[3] or frame[1], 16)) for frame in frames if frame),
        )


def complete(stacks: list[Ours]) -> float:
    """The share of stacks that reach their outermost frame."""
    return sum(stack.end == End.OUTERMOST for stack in stacks) / len(stacks)


@functools.cache
def shipped() -> dict[str, bytes]:
    """The small recordings under tests/data, and the `program` that they are of, by their names.

    They were made with Linux 6.18 and perf 6.1 of programs/burn.c, in an empty environment.
    """
    with tarfile.open(Path(__file__).parent / "data/perf.tar.xz") as archive:
        members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in members.items() if file is not None}
