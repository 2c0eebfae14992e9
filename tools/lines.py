"""Lines and inlined functions against llvm-symbolizer and addr2line, at random addresses.

    file ──> random vaddrs of .text ──┬── unwind.lines ──────┐
                                      ├── llvm-symbolizer ───┼── line and depth at every level;
                                      ├── addr2line -i ──────┤   with LLVM the file, too
                                      └── symbolic's cache ──┘

`make oracle-lines` runs it over libc, libstdc++ and python with the debug info that Debian has of
them (unpacked below .agreement, not installed) and over programs of tests/programs. Places of which
neither knows a line do not count. Names are not compared: a place has several where symbols are
aliases. addr2line 2.40 names another file at 4 % of libc's places, so its files are not compared.
"""

from __future__ import annotations

import argparse
import mmap
import posixpath
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.foreign_packages import fetch
from unwind.elf import Elf
from unwind.errors import UnwindError
from unwind.files import Files
from unwind.image import Image
from unwind.lines.lookup import Lines
from unwind.symbols.symcache import SymbolicSymbolizer

# file, line of each level, the innermost first; None is unknown
Chain = tuple[tuple[str | None, int | None], ...]

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("libc6-dbg", "libstdc++6-12-dbg", "python3.11-dbg", "libpython3.11-dbg")
PROGRAMS = {
    "gcc-5": "g++ -O2 -gdwarf-5",
    "gcc-3": "g++ -O2 -gdwarf-3",
    "gcc-lto": "g++ -O3 -g -flto",
    "clang-5": "clang++ -O2 -gdwarf-5",
    "clang-4": "clang++ -O2 -gdwarf-4",
}
# Where addr2line 2.40 itself falls short: it misses ranges that DW_FORM_rnglistx tells.
NOT_ADDR2LINES = ("clang-5",)
LLVM = ("llvm-symbolizer-19", "llvm-symbolizer")
_AT_LEAST = 0.998
_SHOWN = 20
_LARGE = 1 << 20  # bytes: what Debian splits off of extension modules is smaller


@dataclass
class Score:
    """How one reader's answers agree with ours."""

    reader: str
    same: int
    counted: int
    seconds: float
    differences: list[str]

    @property
    def share(self) -> float:
        return self.same / self.counted if self.counted else 0.0

    def __str__(self) -> str:
        return (
            f"{self.reader:<18} {self.same}/{self.counted} ({self.share:.2%}), {self.seconds:.2f} s"
        )


def addresses(elf: Elf, count: int, seed: int) -> list[int]:
    """`count` random vaddrs of .text, the same ones each time."""
    text = elf.section(".text")
    if text is None:
        raise UnwindError(f"{elf.path}: no .text")
    choice = random.Random(seed)
    return [choice.randrange(text.vaddr, text.vaddr + text.size) for _ in range(count)]


def ours(path: Path, vaddrs: Sequence[int]) -> list[Chain]:
    """What `unwind.lines` says."""
    lines = Lines(opened(path))
    found = [tuple((place.file, place.line) for place in lines.at(vaddr)) for vaddr in vaddrs]
    for problem in lines.problems:
        print(f"    {problem}")
    return found


def opened(path: Path) -> Elf:
    """The ELF file, mapped."""
    with path.open("rb") as file:
        return Elf(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)), str(path))


def by_llvm(program: str) -> Callable[[Path, Sequence[int]], list[Chain]]:
    """What llvm-symbolizer says."""

    def read(path: Path, vaddrs: Sequence[int]) -> list[Chain]:
        command = [program, f"--obj={path}", "--inlines"]
        blocks = _asked(command, vaddrs).split("\n\n")
        return [_chain(block.strip("\n").split("\n")) for block in blocks[: len(vaddrs)]]

    return read


def by_symbolic(path: Path, vaddrs: Sequence[int]) -> list[Chain]:
    """What our symbolizer on top of symbolic's cache says; it makes that when there is none."""
    with Files() as files:
        image = files.image(str(path)).image or Image(opened(path), str(path))
        symbolizer = SymbolicSymbolizer(files)
        found = [symbolizer.locations(image, vaddr) for vaddr in vaddrs]
        return [tuple((place.file, place.line) for place in chain) for chain in found]


def by_addr2line(path: Path, vaddrs: Sequence[int]) -> list[Chain]:
    """What addr2line says."""
    lines = _asked(["addr2line", "-a", "-i", "-f", "-e", str(path)], vaddrs).splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("0x")]
    ends = [*starts[1:], len(lines)]
    return [_chain(lines[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]


def _asked(command: Sequence[str], vaddrs: Sequence[int]) -> str:
    text = "".join(f"{vaddr:#x}\n" for vaddr in vaddrs)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def _chain(lines: Sequence[str]) -> Chain:
    """Pairs of lines: the function, then its file:line[:column]."""
    return tuple(_place(line) for line in lines[1::2])


def _place(text: str) -> tuple[str | None, int | None]:
    text = text.partition(" (discriminator")[0]
    parts = text.split(":")
    if len(parts) > 2 and parts[-1].isdigit():  # LLVM's column
        parts.pop()
    line = int(parts.pop()) if parts[-1].isdigit() else (parts.pop() and 0)
    file = ":".join(parts)
    return (file if file != "??" else None), line or None


def compare(
    reader: str,
    vaddrs: Sequence[int],
    mine: Sequence[Chain],
    theirs: Sequence[Chain],
    seconds: float,
    files: bool,
) -> Score:
    """How many of the answers are the same; without `files` only lines and depths count."""
    score = Score(reader, 0, 0, seconds, [])
    for vaddr, own, other in zip(vaddrs, mine, theirs, strict=True):
        if not _known(own) and not _known(other):
            continue
        score.counted += 1
        if (_plain(own) == _plain(other)) if files else _lines(own) == _lines(other):
            score.same += 1
        else:
            score.differences.append(f"{vaddr:#x}: {_shown(own)} here, {_shown(other)} there")
    return score


def _known(chain: Chain) -> bool:
    return any(line is not None for _, line in chain)


def _plain(chain: Chain) -> Chain:
    """Paths without `.` and `..`, which symbolic leaves out."""
    return tuple((file and posixpath.normpath(file), line) for file, line in chain)


def _lines(chain: Chain) -> tuple[int | None, ...]:
    return tuple(line for _, line in chain)


def _shown(chain: Chain) -> str:
    return " < ".join(f"{file}:{line}" for file, line in chain) or "nothing"


def debian_files() -> list[Path]:
    """The debug info of libc, libstdc++ and python, as Debian has it."""
    asked = ["dpkg", "--print-architecture"]
    machine = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    root = fetch(machine, PACKAGES, ROOT / ".agreement/lines")
    found = [*root.glob("usr/lib/debug/.build-id/*/*.debug")]
    found += root.glob("usr/lib/*/debug/libstdc++.so.6.*[0-9]")
    return sorted(path for path in found if path.stat().st_size > _LARGE)


def own_programs() -> list[Path]:
    """A program of tests/programs as each compiler builds it."""
    folder = ROOT / ".agreement/lines/programs"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, command in PROGRAMS.items():
        path = folder / name
        source = str(ROOT / "tests/programs/inlined.cc")
        subprocess.run([*command.split(), source, "-o", str(path)], check=True, timeout=120)
        made.append(path)
    return made


def examined(path: Path, count: int, seed: int, llvm: str) -> Iterator[Score]:
    """Each reader's score over one file."""
    vaddrs = addresses(opened(path), count, seed)
    start = time.perf_counter()
    mine = ours(path, vaddrs)
    print(f"    {sum(map(_known, mine))} of {count} with a line, {_since(start):.2f} s")
    readers = (
        (llvm, by_llvm(llvm), True),
        ("addr2line -i", by_addr2line, False),
        ("symbolic", by_symbolic, True),
        ("symbolic, warm", by_symbolic, True),
    )
    with_lines = list(map(_known, mine))
    for name, read, files in readers:
        if read is by_addr2line and path.name in NOT_ADDR2LINES:
            print(f"    {name}: does not know how")
            continue
        start = time.perf_counter()
        theirs = read(path, vaddrs)
        seconds = _since(start)
        if name == llvm:
            with_lines = [a or _known(b) for a, b in zip(with_lines, theirs, strict=True)]
        # addr2line tells the last line before a gap that no unit covers.
        beyond = [
            v for v, a, b in zip(vaddrs, with_lines, theirs, strict=True) if not a and _known(b)
        ]
        if beyond:
            print(f"    {name}: lines of {len(beyond)} places that no unit covers, not counted")
        chosen = [n for n, known in enumerate(with_lines) if known]
        picked = [[column[n] for n in chosen] for column in (vaddrs, mine, theirs)]
        yield compare(name, *picked, seconds, files)


def _since(start: float) -> float:
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; 1 where a file's agreement is below what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="with debug info (those of Debian)"
    )
    parser.add_argument("--count", type=int, default=1000, help="addresses of each file")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--llvm", default="llvm-symbolizer-19", help="which llvm-symbolizer")
    options = parser.parse_args(argv)
    bad = 0
    for path in options.files or [*debian_files(), *own_programs()]:
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path, flush=True)
        for score in examined(path, options.count, options.seed, options.llvm):
            print(f"    {score}")
            for difference in score.differences[:_SHOWN]:
                print(f"        {difference}")
            bad += score.share < _AT_LEAST or score.counted < options.count / 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
