"""Generated programs as an oracle: random programs in, the crashes whose stacks are wrong out.

    seed ──tests.generate──> C text ──> executable ──> points ──> cores + records ──> differences

Each program is compiled once and crashed at several of its points; what `unwind-core` prints of
the core is compared with the record of the program. A failing program is reduced for as long as
some crash of it fails, and its text is kept. `make oracle-programs` runs it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tests import crashes, foreign, generate
from tests.crashes import PROGRAMS, Case, Crash
from tests.foreign import ForeignCase, Target
from tests.generate import Program
from tests.test_crashes import assert_truth, unwound

FOREIGN: dict[str, Target] = {
    target.name: target for target in (foreign.ARM64, foreign.MIPSEL, foreign.MIPS)
}
TARGETS = ("x86_64", *FOREIGN)
# One thread, and calls nested as deep as the fuel of a program lets them be.
SMALL = ("-DTRUTH_THREADS=1", "-DTRUTH_DEPTH=1024")
REDUCING = 16  # crashes of a candidate: the points of a smaller program have other numbers


@dataclass(frozen=True)
class Outcome:
    """What came of a program: how often it crashed, with how many frames, what was wrong."""

    program: Program
    crashes: int = 0
    frames: int = 0
    failures: tuple[str, ...] = ()


def attempt(program: Program, directory: Path, most: int) -> Outcome:
    """Compiles the program in `directory` and crashes it at `most` of its points."""
    directory.mkdir(parents=True, exist_ok=True)
    case = case_of(program, directory)
    build = foreign.build if isinstance(case, ForeignCase) else crashes.build
    try:
        executable = build(case, directory)  # type: ignore[arg-type]
        points = count_points(case, executable)
    except (AssertionError, subprocess.SubprocessError, ValueError) as error:
        return Outcome(program, failures=(f"it cannot be built or run: {error}",))
    chosen = Random(program.name).sample(range(1, points + 1), min(most, points))
    frames, failures = 0, []
    for point in chosen:
        try:
            crash = crash_at(case, executable, directory / str(point), point)
            frames += sum(len(stack.frames) for stack in crash.stacks.values())
            assert_truth(unwound(crash), crash)
        except (AssertionError, subprocess.SubprocessError) as error:
            failures.append(f"point {point}: {error}")
    return Outcome(program, len(chosen), frames, tuple(failures))


def case_of(program: Program, directory: Path) -> Case:
    """The program as a case of the crash tests; its text is written into `directory`."""
    text = directory / "program.c"
    text.write_text(generate.source(program))
    perhaps = ["trampoline", "link_register"]
    target = FOREIGN.get(program.target)
    if not program.keeps_cfi or (target and not target.cfi):
        perhaps += ["emulation", "pdr"]
    words = {
        "name": program.name,
        "sources": (str(text),),
        "compiler": program.compiler,
        "flags": (*program.flags, *SMALL, "-w", "-I", str(PROGRAMS)),
        # What calls back on behalf of pthread_once is a local function of libc.
        "nameless": ("pthread_once", *("*",) * program.strip),
        "perhaps": tuple(perhaps),
    }
    if target:
        return ForeignCase(**words, target=target, bare=("--strip-all",) * program.strip)  # type: ignore[arg-type]
    return Case(**words, finish=(crashes.strip,) * program.strip)  # type: ignore[arg-type]


def count_points(case: Case, executable: Path) -> int:
    """How many points the program comes by when it runs to its end."""
    command = [str(executable)]
    if isinstance(case, ForeignCase):
        command = [case.target.qemu, "-L", case.target.sysroot, *command]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(ran.stdout)


def crash_at(case: Case, executable: Path, directory: Path, point: int) -> Crash:
    """Lets the built program crash at that point."""
    directory.mkdir(exist_ok=True)
    case = replace(case, arguments=(str(point),))
    if isinstance(case, ForeignCase):
        return foreign.crash_built(case, executable, directory)
    return crashes.crash_built(case, executable, directory)


def reduced(program: Program, fails: Callable[[Program], bool]) -> Program:
    """A program from which nothing more can be taken that still fails."""
    while (less := next(filter(fails, generate.smaller(program)), None)) is not None:
        program = less
    return program


def attempt_all(
    programs: Sequence[Program], directory: Path, most: int, jobs: int
) -> Iterator[Outcome]:
    """What comes of each program, in their order; nothing is left of those that are right."""

    def one(program: Program) -> Outcome:
        with TemporaryDirectory(dir=directory) as scratch:
            return attempt(program, Path(scratch) / program.name, most)

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(one, programs)


def keep(outcome: Outcome, directory: Path, most: int) -> str:
    """Reduces a failing program; its text and its failure go to `directory`, and a line back."""

    def fails(program: Program) -> bool:
        return bool(_again(program, directory, max(most, REDUCING)).failures)

    smallest = reduced(outcome.program, fails)
    again = _again(smallest, directory, max(most, REDUCING))
    path = directory / f"{smallest.name}.c"
    path.write_text(generate.source(smallest))
    (directory / f"{smallest.name}.txt").write_text("\n\n".join(again.failures))
    words = f"{smallest.compiler} {' '.join(smallest.flags)}{' (stripped)' * smallest.strip}"
    return f"reduced: {path}, by {words}\n{next(iter(again.failures), 'it does not fail again')}"


def _again(program: Program, directory: Path, most: int) -> Outcome:
    with TemporaryDirectory(dir=directory) as scratch:
        return attempt(program, Path(scratch), most)


def main(argv: Sequence[str] | None = None) -> int:
    """Try programs of all targets; 0 where all their stacks are right."""
    parser = argparse.ArgumentParser(prog="python -m tools.programs", description=__doc__)
    parser.add_argument("--targets", nargs="*", default=TARGETS, metavar="TARGET")
    parser.add_argument("--programs", type=int, default=200, metavar="N", help="a target")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--crashes", type=int, default=4, metavar="N", help="a program")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="reduce what fails, into DIR")
    options = parser.parse_args(argv)
    seeds = range(options.first, options.first + options.programs)
    print(f"{'':<10}{'programs':>10}{'crashes':>10}{'frames':>10}{'wrong':>8}{'seconds':>9}")
    bad = 0
    with TemporaryDirectory() as scratch:
        home = options.keep or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        for target in options.targets:
            start, wrong, made, frames = time.monotonic(), 0, 0, 0
            programs = [generate.program(seed, target) for seed in seeds]
            for outcome in attempt_all(programs, home, options.crashes, options.jobs):
                made, frames = made + outcome.crashes, frames + outcome.frames
                if not outcome.failures:
                    continue
                wrong += len(outcome.failures)
                said = keep(outcome, home, options.crashes) if options.keep else ""
                name = outcome.program.name
                print(f"=== {name}\n{said or outcome.failures[0]}\n", file=sys.stderr, flush=True)
            line = f"{target:<10}{len(programs):>10,}{made:>10,}{frames:>10,}{wrong:>8,}"
            print(f"{line}{time.monotonic() - start:>9.0f}", flush=True)
            bad += wrong
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
