"""The measurements behind BENCHMARKS.md: crashes tests/programs/bench.c, times whole processes.

    bench.c ──crash──> cores ──commands run in turn──> times ──> the tables of BENCHMARKS.md

The commands of one case take turns (A B C, C B A, ...), so that whatever else the machine does
falls on all of them, and ratios are taken turn by turn. "Net" is what a command takes beyond the
bare start of its interpreter in the same turn. Standard output goes to a file: all of it is made.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from unwind.elf import Elf
from unwind.errors import UnwindError

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "BENCHMARKS.md"
BEGIN, END = "<!-- made by tools/bench.py: begin -->", "<!-- end -->"

# What could change a figure unseen: PYTHONDONTWRITEBYTECODE, PYTHONUNBUFFERED, debuginfod.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "DEBUGINFOD", "LC_", "MALLOC_"))
} | {"LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Interpreter:
    """An environment with the wheel in it, and what its Python calls itself."""

    name: str
    bin: Path

    def bare(self) -> Command:
        return Command("bare start", (f"{self.bin}/python", "-c", "pass"), self.name)

    def command(self, name: str, *arguments: str | Path) -> Command:
        return Command(name, (f"{self.bin}/{name}", *map(str, arguments)), self.name)


@dataclass(frozen=True)
class Command:
    """One contestant of a case."""

    name: str
    argv: tuple[str, ...]
    python: str = ""
    """The Interpreter's name, empty for tools that need none."""
    turns: int | None = None
    """In how many turns it takes part; None: in all."""

    @property
    def is_bare(self) -> bool:
        return self.name == "bare start"


@dataclass
class Times:
    """The seconds that each command of a case took, turn by turn, and what else was seen."""

    seconds: dict[Command, list[float]]
    frames: dict[Command, int] = field(default_factory=dict)
    peaks: dict[Command, Peak] = field(default_factory=dict)

    def find(self, name: str, python: str = "") -> Command | None:
        found = [c for c in self.seconds if (c.name, c.python) == (name, python)]
        return found[0] if found else None

    def bare(self, command: Command) -> list[float]:
        """The bare starts of the command's interpreter in the turns it took part in."""
        bare = self.find("bare start", command.python)
        return self.seconds[bare] if bare is not None else [0.0] * len(self.seconds[command])

    def net(self, command: Command) -> list[float]:
        return [a - b for a, b in zip(self.seconds[command], self.bare(command), strict=False)]

    def ratio(self, other: Command, ours: Sequence[float]) -> float:
        """How many times longer `other` takes, by the median of the turns.

        Of a tool that ran in fewer turns the last one stands for the rest.
        """
        theirs = self.seconds[other]
        theirs = theirs + theirs[-1:] * (len(ours) - len(theirs))
        return median(a / max(b, 1e-6) for a, b in zip(theirs, ours, strict=False))


@dataclass(frozen=True)
class Peak:
    """The memory of a process at its highest, in bytes."""

    resident: int
    beyond: int
    """Without the resident pages of the core's mapping, which are the file's."""


@dataclass(frozen=True)
class Case:
    """Commands to compare, and what the project promises of them."""

    title: str
    commands: tuple[Command, ...]
    promises: tuple[Promise, ...] = ()
    core: Path | None = None


@dataclass(frozen=True)
class Promise:
    """A figure with a limit: `measure` gives it for the interpreter of a name."""

    text: str
    unit: str
    limit: float
    measure: Callable[[Times, str], float | None]
    at_least: bool = False
    only: str = ""
    """The one interpreter that it is about; empty: each."""

    def verdict(self, times: Times, python: str) -> str:
        """The figure and whether the promise is kept, or a dash where it was not measured."""
        value = self.measure(times, python) if self.only in ("", python) else None
        if value is None:
            return "–"
        kept = value >= self.limit if self.at_least else value <= self.limit
        return f"{_number(value)} {self.unit} {'✓' if kept else '✗'}"


# ---------------------------------------------------------------------------------- measuring


def run(command: Command, output: Path) -> float:
    """The seconds from start to end of a process whose standard output goes to `output`."""
    output.unlink(missing_ok=True)  # to cut off what the one before wrote takes milliseconds
    redirections = [
        (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    start = time.perf_counter()
    pid = os.posix_spawn(command.argv[0], command.argv, ENVIRONMENT, file_actions=redirections)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(command.argv)}: exit status {status}")
    return seconds


def measure(case: Case, turns: int, where: Path) -> Times:
    """All commands of `case` in turn, after a first turn that only fills the caches.

    Every other turn goes backwards: who follows a large process finds the CPU's caches cold.
    """
    output = where / "output"
    times = Times({command: [] for command in case.commands})
    for turn in range(-1, turns):
        for command in case.commands[:: -1 if turn % 2 else 1]:
            if command.turns is not None and not 0 <= turn < command.turns:
                continue
            seconds = run(command, output)
            times.frames[command] = output.read_bytes().count(b"\n#")
            if turn >= 0:
                times.seconds[command].append(seconds)
    if case.core is not None:
        for command in case.commands:
            if command.python and not command.is_bare:
                times.peaks[command] = peak_memory(command, case.core)
    return times


def peak_memory(command: Command, core: Path) -> Peak:
    """The highest resident size of a run, whole (VmHWM) and beyond the mapped core.

    The kernel keeps no high-water mark of single mappings, so smaps is read over and over while
    the process runs; and ru_maxrss would begin with the size of whoever started the process.
    """
    resident = beyond = 0
    process = subprocess.Popen(
        command.argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    proc = Path(f"/proc/{process.pid}")
    while process.poll() is None:
        try:
            smaps, status = (proc / "smaps").read_text(), (proc / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            break
        of_core = all_ = 0
        name = ""
        for line in smaps.splitlines():
            if line.startswith("Rss:"):
                size = int(line.split()[1]) * 1024
                all_ += size
                of_core += size if name == str(core) else 0
            elif not line[0].isupper():
                name = line.partition("/")[1] + line.partition("/")[2]
        beyond = max(beyond, all_ - of_core)
        highest = re.search(r"VmHWM:\s+(\d+)", status)
        resident = max(resident, int(highest[1]) * 1024 if highest else 0)
    process.wait()
    return Peak(resident, beyond)


# ----------------------------------------------------------------------- programs and libraries


def build(where: Path) -> Path:
    """tests/programs/bench.c as a program in `where`."""
    program = where / "bench"
    source = ROOT / "tests/programs/bench.c"
    subprocess.run(["cc", "-O2", "-pthread", "-o", program, source], check=True)
    return program


def crash(program: Path, threads: int, frames: int) -> Path:
    """A core of `program`: the kernel's, or where cores are taken elsewhere gdb's."""
    where = program.parent / f"core-{threads}"
    where.mkdir()
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    argv = [str(program), str(threads), str(frames)]
    subprocess.run(
        argv,
        cwd=where,
        env=ENVIRONMENT | {"MALLOC_ARENA_MAX": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )
    found = list(where.glob("core*"))
    if not found:
        orders = ["-ex", "run", "-ex", f"generate-core-file {where}/core"]
        subprocess.run(
            ["gdb", "-nx", "-batch", *orders, "--args", *argv],
            cwd=where,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found = list(where.glob("core*"))
    if not found:
        raise SystemExit("neither the kernel nor gdb leaves a core here")
    return found[0]


def largest_library(under: Path = Path("/usr/lib")) -> tuple[Path, int] | None:
    """The library with the largest .eh_frame below `under`, and a vaddr in the middle of it."""
    paths = [path for path in under.rglob("*.so*") if path.is_file() and not path.is_symlink()]
    best: tuple[int, Path] | None = None
    for path in sorted(paths, key=lambda path: path.stat().st_size, reverse=True):
        if best is not None and path.stat().st_size <= best[0]:
            break
        try:
            section = Elf(memoryview(path.read_bytes()), str(path)).section(".eh_frame")
        except UnwindError:
            continue
        if section is not None and (best is None or section.size > best[0]):
            best = section.size, path
    return None if best is None else (best[1], _middle(best[1]))


def _middle(path: Path) -> int:
    """Where the function in the middle of .eh_frame_hdr's table begins."""
    elf = Elf(memoryview(path.read_bytes()), str(path))
    header = elf.section(".eh_frame_hdr")
    if header is None:
        raise SystemExit(f"{path} has no .eh_frame_hdr")
    data = elf.data(header)
    _, _, count_encoding, table_encoding, _, count = struct.unpack_from("<4BiI", data)
    if (count_encoding, table_encoding) != (0x03, 0x3B):  # udata4; datarel sdata4, as ld makes it
        raise SystemExit(f"{path}: an .eh_frame_hdr of another making")
    return int(header.vaddr + struct.unpack_from("<i", data, 12 + count // 2 * 8)[0])


# --------------------------------------------------------------------------------- interpreters


def interpreters(where: Path) -> list[Interpreter]:
    """`.venv` that `make` has made, and environments like it for the other Pythons of the machine.

    The others are Debian's python3 and the one that `python3` starts; each stands here once.
    """
    first = interpreter(ROOT / ".venv/bin")
    found = {_origin(first.bin / "python"): first}
    for candidate in ("/usr/bin/python3", shutil.which("python3", path=_path_outside())):
        if candidate is None or (origin := _origin(Path(candidate))) in found:
            continue
        tree = where / f"tree-{len(found)}"
        unwanted = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=unwanted)
        make = ["make", "--silent", f"PYTHON={candidate}", ".venv/ready"]
        subprocess.run(make, cwd=tree, check=True, env=ENVIRONMENT)
        found[origin] = interpreter(tree / ".venv/bin")
    return list(found.values())


def interpreter(bin: Path) -> Interpreter:
    code = "import platform, sys; print(platform.python_version(), sys.base_prefix)"
    version, prefix = _said(bin / "python", code).split(maxsplit=1)
    return Interpreter(version + (" (Debian)" if prefix == "/usr" else ""), bin)


def _origin(python: Path) -> str:
    return _said(python, "import sys; print(sys.base_prefix, sys.version)")


def _said(python: Path, code: str) -> str:
    return subprocess.check_output([python, "-c", code], env=ENVIRONMENT, text=True).strip()


def _path_outside() -> str:
    """$PATH without the environment that this process runs in."""
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(path for path in paths if path != str(Path(sys.executable).parent))


# --------------------------------------------------------------------------------------- cases


def cases(pythons: Sequence[Interpreter], where: Path) -> Iterable[Case]:
    """What is measured; each core is made when its case is asked for."""
    program = build(where)
    yield many_threads(pythons, crash(program, 1001, 31_000), program)
    yield some_threads(pythons, crash(program, 64, 1_500))
    yield two_threads(pythons, crash(program, 2, 50), program)
    yield starts(pythons)
    if (found := largest_library()) is not None:
        yield one_row(pythons, *found)


def many_threads(pythons: Sequence[Interpreter], core: Path, program: Path) -> Case:
    return Case(
        "1,001 threads, 31,000 frames",
        (*_with_bare(pythons, "unwind-core", core), gdb(program, core), eu_stack(core, turns=1)),
        (
            Promise("net, times faster than gdb", "×", 25, _net_against("gdb"), at_least=True),
            Promise("net, times faster than eu-stack", "×", 300, _net_against("eu-stack"), True),
            Promise("peak memory beyond the mapped core", "MB", 50, _beyond),
        ),
        core,
    )


def some_threads(pythons: Sequence[Interpreter], core: Path) -> Case:
    debian = next((python.name for python in pythons if python.name.endswith("(Debian)")), "none")
    return Case(
        "64 threads, 1,500 frames",
        (*_with_bare(pythons, "unwind-core", core), eu_stack(core)),
        (
            Promise(
                "whole process, times faster than eu-stack",
                "×",
                1,
                _whole_against("eu-stack"),
                at_least=True,
                only=debian,
            ),
        ),
        core,
    )


def two_threads(pythons: Sequence[Interpreter], core: Path, program: Path) -> Case:
    return Case(
        "2 threads",
        (*_with_bare(pythons, "unwind-core", core), gdb(program, core), eu_stack(core)),
        (
            Promise("net", "ms", 15, _net),
            Promise("whole process, times faster than gdb", "×", 3, _whole_against("gdb"), True),
        ),
        core,
    )


def starts(pythons: Sequence[Interpreter]) -> Case:
    commands = _with_bare(pythons, "unwind-core", "--version")
    return Case("start", commands, (Promise("net", "ms", 8, _net),))


def one_row(pythons: Sequence[Interpreter], library: Path, vaddr: int) -> Case:
    commands = _with_bare(pythons, "unwind-cfi", "--address", f"{vaddr:#x}", library)
    title = f"one row of {library.name}, the library with most CFI here"
    return Case(title, commands, (Promise("net", "ms", 12, _net),))


def gdb(program: Path, core: Path) -> Command:
    order = "thread apply all bt"
    return Command("gdb", (_which("gdb"), "-batch", "-ex", order, str(program), str(core)))


def eu_stack(core: Path, turns: int | None = None) -> Command:
    return Command("eu-stack", (_which("eu-stack"), f"--core={core}"), turns=turns)


def _which(program: str) -> str:
    if (found := shutil.which(program)) is None:
        raise SystemExit(f"{program} is not installed")
    return found


def _with_bare(pythons: Sequence[Interpreter], name: str, *rest: str | Path) -> tuple[Command, ...]:
    return tuple(
        command for python in pythons for command in (python.bare(), python.command(name, *rest))
    )


def _ours(times: Times, python: str) -> Command:
    [found] = [c for c in times.seconds if c.python == python and not c.is_bare]
    return found


def _net(times: Times, python: str) -> float:
    return median(times.net(_ours(times, python))) * 1000


def _net_against(name: str) -> Callable[[Times, str], float | None]:
    def ratio(times: Times, python: str) -> float | None:
        other = times.find(name)
        return None if other is None else times.ratio(other, times.net(_ours(times, python)))

    return ratio


def _whole_against(name: str) -> Callable[[Times, str], float | None]:
    def ratio(times: Times, python: str) -> float | None:
        other = times.find(name)
        return None if other is None else times.ratio(other, times.seconds[_ours(times, python)])

    return ratio


def _beyond(times: Times, python: str) -> float | None:
    peak = times.peaks.get(_ours(times, python))
    return None if peak is None else peak.beyond / 1e6


# ------------------------------------------------------------------------------------ the tables


def report(measured: Sequence[tuple[Case, Times]], pythons: Sequence[Interpreter]) -> str:
    """The tables, as Markdown."""
    return "\n".join([*_promises(measured, pythons), "", *_figures(measured)])


def _promises(
    measured: Sequence[tuple[Case, Times]], pythons: Sequence[Interpreter]
) -> Iterable[str]:
    names = [python.name for python in pythons]
    yield _row("", "promised", *(f"Python {name}" for name in names))
    yield _row("---", "---:", *("---:" for _ in names))
    for case, times in measured:
        for promise in case.promises:
            bound = "at least" if promise.at_least else "under"
            yield _row(
                f"{case.title}: {promise.text}",
                f"{bound} {promise.limit:g} {promise.unit}",
                *(promise.verdict(times, name) for name in names),
            )


def _figures(measured: Sequence[tuple[Case, Times]]) -> Iterable[str]:
    for case, times in measured:
        yield f"### {case.title[0].upper()}{case.title[1:]}"
        yield ""
        heads = ["", "turns", "frames", "median", "fastest", "bare start", "net", "peak", "beyond"]
        yield _row(*heads)
        yield _row("---", *["---:"] * (len(heads) - 1))
        for command in case.commands:
            if not command.is_bare:
                yield _figure(command, times)
        yield ""
        for text in dict.fromkeys(_shown(command) for command in case.commands):
            yield f"    {text}"
        yield ""


def _figure(command: Command, times: Times) -> str:
    seconds, peak = times.seconds[command], times.peaks.get(command)
    frames = times.frames[command]
    python = f", Python {command.python}" if command.python else ""
    return _row(
        command.name + python,
        str(len(seconds)),
        f"{frames:,}" if frames else "–",
        _ms(seconds),
        _ms(seconds, min),
        _ms(times.bare(command)) if python else "–",
        _ms(times.net(command)) if python else "–",
        f"{peak.resident / 1e6:.1f} MB" if peak else "–",
        f"{peak.beyond / 1e6:.1f} MB" if peak else "–",
    )


def _shown(command: Command) -> str:
    """The command as one would type it, without the paths of this machine's directories."""
    words = [command.argv[0].rpartition("/")[2]]
    for word in command.argv[1:]:
        option, equals, value = word.rpartition("=")
        name = value.rpartition("/")[2] if value.startswith(tempfile.gettempdir()) else value
        words.append(f"'{word}'" if " " in word else option + equals + name)
    return " ".join(words)


def _ms(seconds: Sequence[float], which: Callable[[Sequence[float]], float] = median) -> str:
    return f"{_number(which(seconds) * 1000)} ms"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{round(value, 1) + 0.0:.1f}"  # no -0.0


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def machine(now: time.struct_time) -> str:
    """When and where this was measured."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    git = ["git", "-C", str(ROOT)]
    commit = _output(*git, "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = "changed since " if _output(*git, "status", "--porcelain", "-uno") else ""
    tools = [_output(name, "--version").partition("\n")[0] for name in ("gdb", "eu-stack")]
    return (
        f"Measured {time.strftime('%Y-%m-%d %H:%M', now)} UTC, tree {changed}{commit}, "
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, {', '.join(filter(None, tools))}."
    )


def _output(*argv: str) -> str:
    if shutil.which(argv[0]) is None:
        return ""
    return subprocess.run(argv, capture_output=True, text=True).stdout.strip()


def write(text: str, page: Path = PAGE, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put `text` between the markers of `page`."""
    before, begin, rest = page.read_text().partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not (begin and end):
        raise SystemExit(f"{page} has lost its markers")
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--turns", type=int, default=21, help="of each case (21)")
    parser.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    options = parser.parse_args()
    now = time.gmtime()
    measured = []
    with tempfile.TemporaryDirectory(prefix="unwind-bench-") as name:
        where = Path(name)
        pythons = interpreters(where)
        for case in cases(pythons, where):
            print(case.title, file=sys.stderr)
            measured.append((case, measure(case, options.turns, where)))
        text = f"{machine(now)}\n\n{report(measured, pythons)}"
    print(text)
    if not options.print:
        write(text)


if __name__ == "__main__":
    main()
