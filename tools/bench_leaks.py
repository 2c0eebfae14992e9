"""What it costs a program to be watched by unwind-memleak, beside bcc's; and whether that lasts.

    churn (tests/programs) ──a line──> 200,000 pairs of malloc and free ──> nanoseconds of a pair

A part `overhead` attaches nothing, unwind-memleak and bcc's memleak in turns, to one process that
runs on, each with all allocations and one of a hundred. A part `lasting` watches so many events a
second for so long (`--seconds`), and fails if the memory of unwind-memleak grows, if it drops
anything, or if what it counts is not what the program has done.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.bench import ROOT, machine, write

PAGE = ROOT / "BENCHMARKS.md"
MARKERS = "<!-- made by tools/bench_leaks.py: begin -->", "<!-- unwind-memleak: end -->"
PROGRAM = ROOT / "tests/programs/churn.c"
FLAGS = ("-O2", "-fomit-frame-pointer", "-pthread")
DEPTH = 50
PATIENCE = 60  # seconds for a tool to attach
GROWTH = 0.10  # of its memory, between a quarter of the time and the end
BCC = ("memleak-bpfcc", "memleak")  # Debian's name, others'


@dataclass(frozen=True)
class Tool:
    """A command that watches process PID, and prints a report each second."""

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


def build(where: Path) -> Path:
    """The program that allocates."""
    made = where / "churn"
    subprocess.run(["gcc", *FLAGS, PROGRAM, "-o", made], check=True)
    return made


@contextmanager
def churning(program: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The program, waiting for lines; it ends with this, whatever happens."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([program, *words], stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def watching(tool: Tool, pid: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A tool that is attached: it has printed its first report."""
    words = [word.replace("PID", str(pid)) for word in tool.command]
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=file, cwd=ROOT, env=os.environ | dict(tool.environment)
        )
    try:
        end = time.monotonic() + PATIENCE
        while b"\n[" not in b"\n" + log.read_bytes() and b'{"schema' not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{tool.name} does not attach:\n{log.read_text()}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def once(process: subprocess.Popen[str]) -> tuple[int, float]:
    """One round of the program: pairs, and nanoseconds of one."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    pairs, cost = process.stdout.readline().split()
    return int(pairs), float(cost)


def tools_of(where: Path) -> Iterator[Tool]:
    """Those that there are, in the order of the table."""
    for every in (1, 100):
        words = (sys.executable, "-m", "unwind.cli.memleak", "-p", "PID", "-s", str(every), "1")
        yield Tool(f"unwind-memleak, 1 of {every}", words, (("PYTHONPATH", str(ROOT)),))
    found = next(filter(None, map(shutil.which, BCC)), None)
    if found is None:
        print("no bcc: apt install bpfcc-tools", file=sys.stderr)
        return
    headers = _headers(where)
    for every in (1, 100):
        words = (found, "-p", "PID", "-s", str(every), "1")
        yield Tool(f"bcc's memleak, 1 of {every}", words, headers)


def _headers(where: Path) -> tuple[tuple[str, str], ...]:
    """bcc compiles against headers of a kernel: Debian's, where there are none of the running one.

    Debian has them in two halves. What memleak looks at, pt_regs, is the same in all.
    """
    own = Path(f"/lib/modules/{os.uname().release}/build")
    if own.exists() or Path("/sys/kernel/kheaders.tar.xz").exists():
        return ()
    halves = sorted(Path("/usr/src").glob("linux-headers-*-common"))
    if not halves:
        print("no headers for bcc: apt install linux-headers-amd64", file=sys.stderr)
        return ()
    whole = where / "headers"
    for half in (halves[-1], *sorted(halves[-1].parent.glob("linux-headers-*-amd64"))[-1:]):
        for part in ("include", "arch"):
            shutil.copytree(half / part, whole / part, symlinks=True, dirs_exist_ok=True)
    return (("BCC_KERNEL_SOURCE", str(whole)),)


def overhead(options: argparse.Namespace, where: Path) -> str:
    """The table: nanoseconds of a pair, with nothing and with each tool, the median of turns."""
    program = build(where)
    tools = list(tools_of(where))
    costs: dict[str, list[float]] = {"nothing": [], **{tool.name: [] for tool in tools}}
    for turn in range(options.turns):
        with churning(program, "1", "0", "0", str(DEPTH)) as process:
            once(process)  # the heap is there
            costs["nothing"].append(once(process)[1])
            for tool in tools:
                print(f"turn {turn + 1}: {tool.name}", file=sys.stderr)
                with watching(tool, process.pid, where / "log"):
                    once(process)  # the stacks are known
                    costs[tool.name].append(once(process)[1])
                    print(f"  {costs[tool.name][-1]:,.0f} ns", file=sys.stderr)
    lines = ["| watched by | ns a pair (median, least to most) | added |", "| --- | ---: | ---: |"]
    base = median(costs["nothing"])
    for name, found in costs.items():
        added = median(found) - base
        more = f"{added:,.0f} ns" if name != "nothing" else ""
        lines.append(
            f"| {name} | {median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f}) | {more} |"
        )
    return (
        f"200,000 pairs of malloc and free by one thread, {DEPTH} depths of calls, "
        f"{options.turns} turns:\n\n" + "\n".join(lines)
    )


def resident(pid: int) -> int:
    """Bytes of memory that are a process' own now.

    The ring has its size from the beginning, and counts as resident page by page as it is read.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def lasting(options: argparse.Namespace, where: Path) -> str:
    """A sentence on a long run; SystemExit if its memory grew, or if anything was lost."""
    program = build(where)
    words = (sys.executable, "-m", "unwind.cli.memleak", "-p", "PID", "--json", "1")
    tool = Tool("unwind-memleak", words, (("PYTHONPATH", str(ROOT)),))
    seconds, rate, sizes = options.seconds, options.rate, []
    arguments = ("2", str(rate), str(seconds), str(DEPTH))
    log = where / "log"
    with churning(program, *arguments) as process, watching(tool, process.pid, log) as watcher:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        begin = time.monotonic()
        while time.monotonic() < begin + seconds - 0.5:
            time.sleep(min(1.0, seconds / 40))
            sizes.append(resident(watcher.pid))
        pairs = int(process.stdout.readline().split()[0])
        time.sleep(2)
    found = json.loads(log.read_text().splitlines()[-1])
    early, late = max(sizes[: len(sizes) // 4 + 1]), max(sizes)
    faults = []
    if late > early * (1 + GROWTH):
        faults.append(f"its memory grew from {early >> 20} MB to {late >> 20} MB")
    if found["dropped"]:
        faults.append(f"{found['dropped']} allocations were dropped")
    # Threads and their stacks are allocated, too.
    if not pairs <= found["events"] <= pairs + 16:
        faults.append(f"{found['events']} allocations were seen, of {pairs}")
    if found["complete"] < 0.99 * found["events"]:
        faults.append(f"{found['complete']} of {found['events']} stacks are complete")
    text = (
        f"{rate:,} allocations and as many frees a second for {seconds} s, two threads: "
        f"{found['events']:,} seen, {found['dropped']} dropped, "
        f"{100 * found['complete'] / found['events']:.2f} % of the stacks complete; "
        f"{early >> 20} MB in the first quarter, {late >> 20} MB at most."
    )
    if faults:
        raise SystemExit("\n".join([text, *faults]))
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--turns", type=int, default=5, help="of each tool (5)")
    parser.add_argument("--seconds", type=int, default=600, help="of the long run (600)")
    parser.add_argument("--rate", type=int, default=5000, help="events a second of that (5,000)")
    parser.add_argument("--print", action="store_true", help="do not write the page")
    parser.add_argument("parts", nargs="*", metavar="PART", help="of overhead, lasting [all]")
    options = parser.parse_args(arguments)
    parts = {"overhead": overhead, "lasting": lasting}
    if wrong := set(options.parts) - parts.keys():
        parser.error(f"no part {min(wrong)!r}")
    now = time.gmtime()
    with tempfile.TemporaryDirectory(prefix="unwind-bench-") as name:
        texts = [parts[part](options, Path(name)) for part in options.parts or parts]
    whole = "\n\n".join([machine(now), *texts])
    print(whole)
    if options.print:
        return
    if set(options.parts or parts) != parts.keys():
        raise SystemExit("the page wants all parts: --print for some of them")
    write(whole, PAGE, MARKERS)


if __name__ == "__main__":
    main()
