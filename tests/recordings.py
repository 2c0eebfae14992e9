"""Programs that perf records, and what perf itself makes of a recording: the judge of our frames.

`record` makes a recording on the spot, where this machine permits it. `perf_stacks` has perf's
frames, `our_stacks` ours, both as addresses in files, so that they can be compared one by one.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.support import cannot, need, run
from unwind.elf import PT
from unwind.files import Files
from unwind.frames import End
from unwind.sampling import Sampler, split_callchain
from unwind.transports.perf_data import TRANSPORT
from unwind.unwinder import Unwinder

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Ours:
    """One sample as we walk it: frames as (file, offset in the file), innermost first."""

    comm: str | None
    pid: int
    tid: int
    time: int
    event: str
    kernel: tuple[int, ...]
    frames: tuple[tuple[str, int], ...]
    end: str
    trusts: tuple[str, ...] | None = None
    last_word: bool = False
    """Whether the return address that led to the last frame is the last word perf copied."""


@dataclass(frozen=True)
class Theirs:
    """One sample as perf prints it: each frame's address and file."""

    comm: str
    pid: int
    tid: int
    time: int
    event: str
    frames: tuple[tuple[str, int], ...]


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
    argv += ["--call-graph", graph or f"dwarf,{dump}", *options]
    argv += ["-o", "-" if stream else str(output), "--", *map(str, command)]
    with output.open("wb") if stream else nullcontext(subprocess.DEVNULL) as out:
        done = subprocess.run(argv, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
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


def our_stacks(path: Path, modules: dict[str, str] | None = None) -> list[Ours]:
    """Every sample of a recording, walked; `modules` are files in place of recorded ones."""
    with Files(module_map=modules) as files, TRANSPORT.open(str(path), files) as source:
        sampler = Sampler(source.snapshot, Unwinder(source.arch))
        found = []
        for sample in source.samples():
            pcs, end, how, _ = sampler.walk(sample)
            space = sample[6]
            frames = []
            for n, pc in enumerate(pcs):
                called = n > 0 if how is None else how[n][1]
                module = space.find(pc - called)
                if module is None:
                    frames.append(("", pc - called))
                    continue
                vaddr, offset = module.to_vaddr(pc - called), pc - called
                for row in module.image.elf.program_rows if module.image is not None else ():
                    if row[0] == PT.LOAD and row[3] <= vaddr < row[3] + row[4]:
                        offset = vaddr - row[3] + row[2]
                frames.append((module.name, offset))
            task = sample[0]
            kernel = split_callchain(sample[5])[0]
            trusts = None if how is None else tuple(trust for trust, _ in how)
            found.append(
                Ours(
                    task.comm,
                    task.pid,
                    task.tid,
                    sample[1] // 1000,
                    sample[2].name,
                    kernel,
                    tuple(frames),
                    end,
                    trusts,
                    bool(pcs and sample[11] and sample[11][-1] == pcs[-1]),
                )
            )
        return found


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
