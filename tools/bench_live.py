"""The measurements of live processes behind BENCHMARKS.md: for how long a target stands still.

    program that watches the clock ──commands in turn──> its longest gap, and what each command says

The gap is the target's own: one of its threads does nothing but look at the clock. Without any
command it has gaps, too, when others run; they stand beside the rest.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tools.bench import ROOT, Command, Interpreter, interpreter, machine, run, write

PAGE = ROOT / "BENCHMARKS.md"
BEGIN, END = "<!-- made by tools/bench_live.py: begin -->", "<!-- unwind-live: end -->"
PROGRAM = ROOT / "tests/programs/watched.c"
THREADS = (1, 65, 1001)
IDLE = 0.2  # seconds without a command


@dataclass
class Figures:
    """Of one command and one target, in seconds, turn by turn."""

    whole: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    """The target's longest."""
    said: list[float] = field(default_factory=list)
    """What unwind-live itself says."""
    frames: int = 0


@contextmanager
def target(program: Path, threads: int, where: Path) -> Iterator[tuple[int, mmap.mmap]]:
    """A process with so many threads, and where it notes its longest gap."""
    notes = where / "gap"
    notes.write_bytes(bytes(mmap.PAGESIZE))
    with (
        open(notes, "r+b") as file,
        mmap.mmap(file.fileno(), mmap.PAGESIZE) as shared,
        subprocess.Popen([program, notes, str(threads)]) as process,
    ):
        try:
            end = time.monotonic() + 30
            while time.monotonic() < end and process.poll() is None:
                made = len(os.listdir(f"/proc/{process.pid}/task")) == threads
                if made and struct.unpack_from("=q", shared)[0]:
                    break
                time.sleep(0.01)
            else:
                raise SystemExit(f"{program} does not come to run")
            time.sleep(0.1)  # all of them are asleep
            yield process.pid, shared
        finally:
            process.kill()


def commands(python: Interpreter, pid: int, threads: int) -> list[Command]:
    """Who looks at a process; gdb and eu-stack where they are installed."""
    found = [
        python.command("unwind-live", "--json", "--explain", "--thread", str(pid), str(pid)),
        python.command("unwind-live", str(pid)),
    ]
    if threads > 1:  # the first one is never blocked
        found.append(python.command("unwind-live", "--no-stop", str(pid)))
    gdb, eu_stack = shutil.which("gdb"), shutil.which("eu-stack")
    if gdb:
        all = ("-ex", "thread apply all bt", "-p", str(pid))
        found.append(Command("gdb", (gdb, "-nx", "-batch", *all)))
    if eu_stack:
        found.append(Command("eu-stack", (eu_stack, "-p", str(pid)), turns=1))
    return found


def measure(
    python: Interpreter, program: Path, threads: int, turns: int, where: Path
) -> dict[str, Figures]:
    """The figures by what a reader calls the command."""
    found: dict[str, Figures] = {}
    output = where / "output"
    with target(program, threads, where) as (pid, shared):
        idle = found["(nobody)"] = Figures()
        for turn in range(-1, turns):
            struct.pack_into("=q", shared, 0, 0)
            time.sleep(IDLE)
            if turn >= 0:
                idle.gap.append(struct.unpack_from("=q", shared)[0] / 1e9)
            for command in commands(python, pid, threads):
                if command.turns is not None and not 0 <= turn < command.turns:
                    continue
                struct.pack_into("=q", shared, 0, 0)
                seconds = run(command, output)
                gap = struct.unpack_from("=q", shared)[0] / 1e9
                if turn < 0:
                    continue
                figures = found.setdefault(_shown(command), Figures())
                figures.whole.append(seconds)
                figures.gap.append(gap)
                text = output.read_bytes()
                figures.frames = text.count(b"\n#") or text.count(b'"pc":')
                if "--explain" in command.argv:
                    figures.said.append(json.loads(text)["source"]["stopped"])
    return found


def _shown(command: Command) -> str:
    """Its name, with what matters of its options."""
    if "--explain" in command.argv:
        return "unwind-live --explain, of one thread"
    return f"{command.name} --no-stop" if "--no-stop" in command.argv else command.name


def report(measured: dict[int, dict[str, Figures]]) -> str:
    """The table."""
    lines = [
        "| threads | command | frames | stood still: the target's longest gap | as it says itself "
        "| whole command |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for threads, found in measured.items():
        for name, figures in found.items():
            cells = (_ms(figures.gap), _ms(figures.said), _ms(figures.whole))
            frames = f"{figures.frames:,}" if figures.frames else ""
            lines.append(f"| {threads:,} | {name} | {frames} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    value = 1000 * median(seconds)
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--turns", type=int, default=11, help="of each target (11)")
    parser.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    options = parser.parse_args()
    now = time.gmtime()
    python = interpreter(ROOT / ".venv/bin")
    measured = {}
    with tempfile.TemporaryDirectory(prefix="unwind-bench-") as name:
        where = Path(name)
        program = build(where)
        for threads in THREADS:
            print(f"{threads} threads", file=sys.stderr)
            measured[threads] = measure(python, program, threads, options.turns, where)
    text = f"{machine(now)}\n\n{report(measured)}"
    print(text)
    if not options.print:
        write(text, PAGE, (BEGIN, END))


def build(where: Path) -> Path:
    """The target."""
    made = where / "watched"
    subprocess.run(["cc", "-O2", "-pthread", "-o", made, PROGRAM], check=True)
    return made


if __name__ == "__main__":
    main()
