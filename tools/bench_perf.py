"""The measurements of unwind-perf behind BENCHMARKS.md: records programs, times whole processes.

    programs ──perf record──> recordings ──commands in turn──> times ──> a table and a plot

What tools/bench.py says of turns and of "net" holds here too. Each recording is read by perf and by
unwind-perf with the same fields; `samples` and `frames` are counted in what both print.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tools.bench import ENVIRONMENT, ROOT, Command, Interpreter, Times, interpreter, machine, run
from tools.bench_plot import Panel, Series, plot

PAGE = ROOT / "BENCHMARKS.md"
PICTURE = ROOT / "docs/cost.svg"
BEGIN, END = "<!-- made by tools/bench_perf.py: begin -->", "<!-- unwind-perf: end -->"
RATE = 10_000  # samples a second of the processor's time
LIMIT = 60  # seconds, after which perf with its defaults is not waited for any longer

CODE = """\
#include <regex>
#include <map>
#include <functional>
#include <future>
#include <iostream>
#include <algorithm>
using All = std::map<std::string, std::function<int(int)>>;
template <int N> struct Step {{ static int of(All &all) {{
    all[std::to_string(N)] = [](int n) {{ return n * N; }}; return Step<N - 1>::of(all); }} }};
template <> struct Step<0> {{ static int of(All &all) {{ return (int)all.size(); }} }};
int main(int count, char **words) {{
    std::regex form("(a|b)*c[0-9]+"); std::wregex wide(L"x+y*"); std::smatch match;
    std::string first(words[0]); All all;
    std::sort(words, words + count);
    auto later = std::async([&] {{ return std::regex_search(first, match, form); }});
    return later.get() + Step<{steps}>::of(all);
}}
"""

PYTHON = """\
import ast, json, time
tree = lambda n: [tree(n - 1), {{"name": str(n), "more": tree(n - 2)}}] if n > 1 else n
def depth(value):
    if isinstance(value, dict): return max(map(depth, value.values()), default=0) + 1
    return max((depth(v) for v in value), default=0) + 1 if isinstance(value, list) else 0
code = open(ast.__file__).read()
while time.process_time() < {seconds}:
    value = json.loads(json.dumps(tree(12), indent=1))
    found = depth(value), sum(1 for _ in ast.walk(ast.parse(code)))
"""


@dataclass(frozen=True)
class Recorded:
    """A recording: its file, and what was asked of perf."""

    title: str
    path: Path
    samples: int

    def ours(self, python: Interpreter, fields: str, *more: str) -> Command:
        return python.command("unwind-perf", self.path, "--script", "-F", fields, *more)

    def perf(self, fields: str) -> Command:
        argv = ("perf", "script", "-i", str(self.path), "-F", fields, "--no-inline")
        return Command(f"perf {fields}", (_which("perf"), *argv[1:]))

    def usual(self, where: Path) -> str:
        """How long perf takes with its defaults, which look for inlined functions."""
        argv = [_which("perf"), "script", "-i", str(self.path)]
        start = time.perf_counter()
        try:
            with (where / "output").open("wb") as output:
                subprocess.run(
                    argv, env=ENVIRONMENT, stdout=output, stderr=subprocess.DEVNULL, timeout=LIMIT
                )
        except subprocess.TimeoutExpired:
            return f"more than {LIMIT} s"
        return f"{time.perf_counter() - start:.1f} s"


# -------------------------------------------------------------------------------- the recordings


def record(
    title: str, path: Path, dump: int, argv: Sequence[str | Path], rate: int = RATE
) -> Recorded:
    """What perf samples of a command, `rate` times a second, with `dump` bytes of stack each."""
    options = ["-q", "-F", str(rate), "-e", "cpu-clock:u", "--call-graph", f"dwarf,{dump}"]
    command = [_which("perf"), "record", *options, "-o", str(path), "--", *map(str, argv)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if "build-id.c" in done.stderr:  # of perf 6.1, where others load BPF programs
        command.insert(2, "-B")
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode != 0 or not path.exists():
        raise SystemExit(f"perf record: {done.stderr.strip()[-300:]}")
    return Recorded(title, path, _count(path))


def _count(path: Path) -> int:
    """The samples of a recording, as perf counts them."""
    argv = [_which("perf"), "script", "-i", str(path), "-G", "-F", "tid"]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True)
    return len(done.stdout.split())


def recursive(where: Path) -> Path:
    """tests/programs/recursive.cc as a program in `where`."""
    program = where / "recursive"
    source = ROOT / "tests/programs/recursive.cc"
    flags = ["-O2", "-fomit-frame-pointer", "-o", str(program)]
    subprocess.run(["g++", *flags, str(source)], check=True)
    return program


def three_programs(where: Path, samples: int) -> Iterator[Recorded]:
    """About as many samples each of a compiler's back end, of Python, and of deep recursion."""
    seconds = samples / RATE
    compiler = subprocess.check_output(["g++", "-print-prog-name=cc1plus"], text=True).strip()
    code, assembly = where / "code.cc", where / "code.s"
    argv = [compiler, "-quiet", "-imultiarch", _multiarch(), "-D_GNU_SOURCE", "-O2"]
    argv += [str(code), "-o", str(assembly)]
    code.write_text(CODE.format(steps=50))
    rate = round(samples / _processor_seconds(argv))
    yield record("cc1plus, 8 kB", where / "cc1plus.data", 8192, argv, min(rate, 2 * RATE))
    script = where / "program.py"
    script.write_text(PYTHON.format(seconds=seconds))
    python = os.path.realpath(shutil.which("python3", path="/usr/bin") or sys.executable)
    yield record("python, 16 kB", where / "python.data", 16384, [python, script])
    argv = [str(recursive(where)), str(seconds)]
    yield record("recursive C++, 16 kB", where / "recursive.data", 16384, argv)


def _multiarch() -> str:
    return subprocess.check_output(["gcc", "-print-multiarch"], text=True).strip()


def _processor_seconds(argv: Sequence[str]) -> float:
    before = os.times()
    subprocess.run(argv, check=True)
    after = os.times()
    return after.children_user - before.children_user


def large(where: Path, samples: int) -> Recorded:
    """One long recording: the compiler, again and again, each time in a process of its own."""
    code = where / "code.cc"
    code.write_text(CODE.format(steps=50))
    compiler = subprocess.check_output(["g++", "-print-prog-name=cc1plus"], text=True).strip()
    argv = [compiler, "-quiet", "-imultiarch", _multiarch(), "-D_GNU_SOURCE", "-O2", str(code)]
    argv += ["-o", "/dev/null"]
    times = max(1, round(samples / RATE / _processor_seconds(argv)))
    loop = f"for n in $(seq {times}); do {' '.join(argv)}; done"
    return record("the large one, 8 kB", where / "large.data", 8192, ["sh", "-c", loop])


# ------------------------------------------------------------------------------------ how it grows

_FUNCTION = """\
int f{n}(state *s, int depth) {{
    volatile int own[{words}]; own[0] = {n};
    if (depth <= 0) {{ for (int i = 0; i < 300; i++) own[i % {words}] += i; return own[0]; }}
    s->seed = s->seed * 1664525 + 1013904223;
    return s->table[(s->seed >> 8) % s->count](s, depth - 1) + own[0];
}}
"""


def library(where: Path, functions: int) -> Path:
    """A library of so many functions for tests/programs/growth.c."""
    made = where / f"functions{functions}.so"
    if not made.exists():
        names = ", ".join(f"f{n}" for n in range(functions))
        source = "typedef struct state state;\n"
        source += "struct state { int (**table)(state *, int); unsigned count, seed; };\n"
        bodies = (_FUNCTION.format(n=n, words=1 + n % 7) for n in range(functions))
        source += "".join(bodies) + f"const unsigned count = {functions};\n"
        source += f"int (*functions[])(state *, int) = {{{names}}};\n"
        argv = ["gcc", "-O1", "-fomit-frame-pointer", "-fPIC", "-shared", "-x", "c", "-"]
        subprocess.run([*argv, "-o", str(made)], input=source, text=True, check=True)
    return made


def growth(where: Path, samples: int) -> Iterator[tuple[str, int, Recorded]]:
    """What grows, how large it is, and a recording of that."""
    program = where / "growth"
    source = ROOT / "tests/programs/growth.c"
    argv = ["gcc", "-O2", "-fomit-frame-pointer", "-o", str(program), str(source), "-ldl"]
    subprocess.run(argv, check=True)

    def recorded(what: str, size: int, count: int, depth: int, libraries: list[Path]) -> Recorded:
        path = where / f"{what.replace(' ', '-')}-{size}.data"
        command = [program, str(count / RATE), str(depth), *libraries]
        return record(f"{what} {size}", path, 8192, command)

    usual = [library(where, 100)]
    for n in (1, 4, 16, 64):
        size = samples * n // 16
        yield "samples", size, recorded("samples", size, size, 20, usual)
    for n in (10, 100, 1000, 10_000):
        yield "functions", n, recorded("functions", n, samples, 20, [library(where, n)])
    for n in (1, 8, 64, 256):
        copies = [where / f"copy{i}.so" for i in range(n)]
        for copy in copies:
            shutil.copy(library(where, 10), copy)
        yield "modules", n, recorded("modules", n, samples, 20, copies)
    for n in (4, 16, 48, 96):
        yield "depth", n, recorded("depth", n, samples, n, usual)


# ------------------------------------------------------------------------------------- measuring


def measure(commands: Sequence[Command], turns: int, where: Path) -> Times:
    """All commands in turn, there and back, after a first turn that only fills the caches."""
    output, times = where / "output", Times({command: [] for command in commands})
    for turn in range(-1, turns):
        for command in commands[:: -1 if turn % 2 else 1]:
            if command.turns is not None and not 0 <= turn < command.turns:
                continue
            seconds = run(command, output)
            if turn < 0 or command.turns is not None:
                times.frames[command] = _lines(output)
            if turn >= 0:
                times.seconds[command].append(seconds)
    return times


def _lines(output: Path) -> int:
    """The frames in the text of samples."""
    count = 0
    with output.open("rb") as file:
        while piece := file.read(1 << 22):
            count += piece.count(b"\n\t") + piece.startswith(b"\t")
    return count


def beyond(command: Command, path: Path) -> float:
    """The most memory that a run had, without the resident pages of the recording, in MB.

    What the kernel knows of a process' largest size has those pages in it, so smaps is read over
    and over while it runs; of a process' children too.
    """
    most = 0
    process = subprocess.Popen(
        command.argv, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        most = max(most, sum(_resident(pid, path) for pid in _family(process.pid)))
        time.sleep(0.005)
    return most / 1e6


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(n for child in children for n in _family(int(child)))]


def _resident(pid: int, path: Path) -> int:
    """Resident bytes but those of a file; of pages that processes share each has its part."""
    total, name = 0, ""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Rss:" if name != str(path) else "-"):
            total += int(line.split()[1]) * 1024
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = "/" + line.partition("/")[2]
    return total


# -------------------------------------------------------------------------------------- the tables


@dataclass
class Figures:
    """What was found of one recording."""

    recorded: Recorded
    times: Times
    python: Interpreter
    usual: str
    """How long perf takes with its defaults."""

    def faster(self, fields: str) -> float:
        """How many times longer perf takes than unwind-perf, net, by the median of the turns."""
        ours, other = self.recorded.ours(self.python, fields), self.recorded.perf(fields)
        return self.times.ratio(other, self.times.net(ours))

    def row(self, fields: str) -> str:
        ours, other = self.recorded.ours(self.python, fields), self.recorded.perf(fields)
        mine, its = median(self.times.net(ours)), median(self.times.seconds[other])
        frames = self.times.frames[ours] / max(self.recorded.samples, 1)
        size = self.recorded.path.stat().st_size / 1e6
        return _row(
            self.recorded.title,
            f"{self.recorded.samples:,}",
            f"{frames:.1f}",
            f"{size:,.0f} MB",
            f"-F {fields}",
            f"{its:.2f} s",
            f"{mine:.2f} s",
            f"{self.faster(fields):.2f} ×",
        )


def programs_table(found: Sequence[Figures]) -> Iterator[str]:
    yield _row("recording", "samples", "frames each", "size", "", "perf", "ours, net", "faster")
    yield _row("---", *["---:"] * 7)
    for fields in ("ip", "ip,sym"):
        yield from (figures.row(fields) for figures in found)
    yield ""
    for fields, least, mean in (("ip", 2.2, 3.0), ("ip,sym", 0.0, 2.5)):
        ratios = [figures.faster(fields) for figures in found]
        geometric = math.prod(ratios) ** (1 / len(ratios))
        said = f"`-F {fields}`: geometric mean {_kept(geometric, mean)}"
        yield said + (f", the least {_kept(min(ratios), least)}." if least else ".") + "\n"
    usual = ", ".join(figures.usual for figures in found)
    yield f"perf with its defaults, which look for inlined functions, once, in this order: {usual}."


def _kept(value: float, least: float) -> str:
    return f"{value:.2f} × (at least {least:g} promised: {'✓' if value >= least else '✗'})"


def large_table(recorded: Recorded, python: Interpreter, turns: int, where: Path) -> Iterator[str]:
    jobs = os.cpu_count() or 1
    alone, perf = recorded.ours(python, "ip"), recorded.perf("ip")
    several = recorded.ours(python, "ip", "--jobs", str(jobs))
    named, its_names = recorded.ours(python, "ip,sym"), recorded.perf("ip,sym")
    commands = [python.bare(), alone, several, perf, named, its_names]
    times = measure(commands, turns, where)
    yield _row(f"{recorded.samples:,} samples, {_size(recorded)}", "median", "faster", "memory")
    yield _row("---", "---:", "---:", "---:")
    for command in commands[1:]:
        other = its_names if command in (named, its_names) else perf
        is_ours = bool(command.python)
        seconds = times.net(command) if is_ours else times.seconds[command]
        yield _row(
            f"`{_shown(command)}`" + (", net" if is_ours else ""),
            f"{median(seconds):.2f} s",
            f"{times.ratio(other, seconds):.2f} ×" if is_ours else "",
            f"{beyond(command, recorded.path):.1f} MB",
        )
    yield ""
    ratio = times.ratio(perf, times.net(alone))
    yield f"`-F ip`: {_kept(ratio, 4.5)}; memory is the peak beyond the pages of the recording."
    yield f"`--jobs {jobs}`: {times.ratio(alone, times.seconds[several]):.2f} times as fast as one."


def _size(recorded: Recorded) -> str:
    return f"{recorded.path.stat().st_size / 1e9:.2f} GB"


def _shown(command: Command) -> str:
    words = [word.rpartition("/")[2] if word[:1] == "/" else word for word in command.argv]
    return " ".join(words)


def growth_panels(
    where: Path, python: Interpreter, samples: int, turns: int
) -> Iterator[tuple[Panel, str]]:
    """A panel of the plot for each thing that grows, and its figures."""
    panels: dict[str, list[tuple[int, float, float]]] = {}
    for what, size, recorded in growth(where, samples):
        ours, perf = recorded.ours(python, "ip"), recorded.perf("ip")
        times = measure([python.bare(), ours, perf], turns, where)
        each = 1e6 / max(recorded.samples, 1)
        mine, its = median(times.net(ours)) * each, median(times.seconds[perf]) * each
        panels.setdefault(what, []).append((size, mine, its))
        recorded.path.unlink()
    for what, points in panels.items():
        ours_line = Series("unwind-perf", [(size, mine) for size, mine, _ in points])
        perf_line = Series("perf", [(size, its) for size, _, its in points])
        figures = ", ".join(f"{size:,}: {mine:.0f} ({its:.0f})" for size, mine, its in points)
        yield Panel(what, [ours_line, perf_line]), f"- {what}: {figures}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _which(program: str) -> str:
    if (found := shutil.which(program)) is None:
        raise SystemExit(f"{program} is not installed")
    return found


def write(text: str, page: Path = PAGE) -> None:
    """Put `text` between the markers of `page`."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{page} has lost its markers")
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}")


def _parts(
    options: argparse.Namespace, where: Path, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """The text of each part, and the picture with the last of them."""
    python = interpreter(Path(options.bin))
    if "programs" in options.parts:
        found = []
        for recorded in three_programs(where, options.samples):
            say(recorded.title)
            commands = [python.bare()]
            for fields in ("ip", "ip,sym"):
                commands += [recorded.ours(python, fields), recorded.perf(fields)]
            times = measure(commands, options.turns, where)
            found.append(Figures(recorded, times, python, recorded.usual(where)))
        yield "\n".join(programs_table(found)), ""
        for figures in found:
            figures.recorded.path.unlink()
    if "large" in options.parts:
        say("the large one")
        recorded = large(where, options.large)
        turns = max(1, options.turns // 3)
        yield "\n".join(large_table(recorded, python, turns, where)), ""
        recorded.path.unlink()
    if "growth" in options.parts:
        say("how it grows")
        turns = max(1, options.turns // 3)
        panels, lines = zip(*growth_panels(where, python, options.samples // 3, turns), strict=True)
        told = "Microseconds a sample with `-F ip`, perf's in brackets:"
        yield "\n".join([told, "", *lines, "", "![cost of a sample](docs/cost.svg)"]), plot(panels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", "--turns", type=int, default=11, help="of each recording (11)")
    parser.add_argument("--samples", type=int, default=15_000, help="of a recording (15,000)")
    parser.add_argument("--large", type=int, default=170_000, help="of the large one (170,000)")
    parser.add_argument("--print", action="store_true", help="write neither page nor picture")
    parser.add_argument(
        "--bin", default=ROOT / ".venv/bin", help="where unwind-perf is [.venv/bin]"
    )
    parser.add_argument("--at", metavar="DIR", help="recordings are made there [/tmp]")
    parts = ("programs", "large", "growth")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)} [all]")
    options = parser.parse_args()
    options.parts = options.parts or parts
    if wrong := set(options.parts) - set(parts):
        parser.error(f"no part {min(wrong)!r}")
    now, texts, picture = time.gmtime(), [], ""
    with tempfile.TemporaryDirectory(prefix="unwind-bench-", dir=options.at) as name:
        for text, made in _parts(options, Path(name), lambda s: print(s, file=sys.stderr)):
            texts.append(text)
            picture = made or picture
    version = subprocess.check_output([_which("perf"), "--version"], text=True).strip()
    whole = "\n\n".join([f"{machine(now)} {version}.", *texts])
    print(whole)
    if options.print:
        return
    if set(options.parts) != set(parts):
        raise SystemExit("the page wants all parts: --print for some of them")
    PICTURE.write_text(picture)
    write(whole)


if __name__ == "__main__":
    main()
