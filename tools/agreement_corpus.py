"""The files that BENCHMARKS.md compares code and CFI on: `python -m tools.agreement_corpus`.

x86_64 is the machine's own libraries, arm64 the same ones from Debian's packages, mips32 is
compiled here with -g, since Debian's gcc describes C in .debug_frame alone: a program of ours, and
lua and bzip2, from -O0 to -Os, position independent and not, in both byte orders. Nothing is
installed.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

from tools.agreement import KINDS, Result, causes, compare
from tools.foreign_packages import fetch, fetch_source

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- made by tools/agreement_corpus.py: begin -->", "<!-- end of agreement -->"

LIBRARIES = ("libc.so.6", "libstdc++.so.6", "libcrypto.so.3")
ARM64 = ("libc6", "libstdc++6", "libssl3", "python3.11-minimal")
LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os")
MODES = {"PIC": ("-fPIC", "-pie"), "no PIC": ("-fno-pic", "-mno-abicalls", "-no-pie", "-static")}
TARGETS = {"mips32el": "mipsel-linux-gnu", "mips32": "mips-linux-gnu"}


@dataclass
class Group:
    """Files that make one row of the table."""

    name: str
    files: list[Path]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--keep", type=Path, default=ROOT / ".agreement", metavar="DIR")
    parser.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    options = parser.parse_args()
    text = "\n".join(report(list(corpus(options.keep))))
    if options.print:
        print(text)
    else:
        write(text)
    return 0


def corpus(home: Path) -> Iterator[Group]:
    """All groups, fetched and compiled below `home` where they are not there yet."""
    home.mkdir(exist_ok=True)
    for name in LIBRARIES:
        yield Group(f"x86_64 {name}", [Path("/usr/lib/x86_64-linux-gnu", name)])
    yield Group("x86_64 python3.11", [Path("/usr/bin/python3.11")])
    root = fetch("arm64", ARM64, home / "arm64")
    for name in LIBRARIES:
        [library] = root.glob(f"**/aarch64-linux-gnu/{name}")
        yield Group(f"arm64 {name}", [library])
    yield Group("arm64 python3.11", [root / "usr/bin/python3.11"])
    sources = programs(home / "sources")
    for arch, triple in TARGETS.items():
        for mode in MODES:
            for level in LEVELS:
                files = [
                    compiled(triple, mode, level, name, words, home)
                    for name, words in sources.items()
                ]
                yield Group(f"{arch} {mode} {level}", files)


def programs(home: Path) -> dict[str, list[str]]:
    """What each program is compiled from: sources, options and libraries."""
    home.mkdir(exist_ok=True)
    lua, bzip2 = fetch_source("lua5.4", home), fetch_source("bzip2", home)
    # Debian's build makes this header; what it says is for the search path of modules.
    (lua / "src/lua5.4-deb-multiarch.h").write_text('#define DEB_HOST_MULTIARCH "any"\n')
    stems = "blocksort huffman crctable randtable compress decompress bzlib bzip2".split()
    return {
        "lua": [str(path) for path in (lua / "src").glob("*.c") if path.stem != "luac"] + ["-lm"],
        "bzip2": [str(bzip2 / f"{stem}.c") for stem in stems],
        "bench": [str(ROOT / "tests/programs/bench.c"), "-pthread"],
    }


def compiled(triple: str, mode: str, level: str, name: str, words: list[str], home: Path) -> Path:
    """The program `name` for one target, position independent or not, at one level."""
    output = home / triple / mode.replace(" ", "-") / f"{name}{level}"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        command = [f"{triple}-gcc", "-g", "-w", level, *MODES[mode], "-o", str(output), *words]
        subprocess.run(command, check=True)
    return output


def report(groups: list[Group]) -> Iterator[str]:
    """The two tables, and what still disagrees in the first by cause."""
    tasks = [
        (str(file), told) for told in (True, False) for group in groups for file in group.files
    ]
    with Pool() as pool:
        found = iter(pool.starmap(compare, tasks, chunksize=1))
    told, untold = (
        {group.name: [next(found) for _ in group.files] for group in groups} for _ in range(2)
    )
    yield "With the starts of functions told:"
    yield ""
    yield from rows(told)
    yield ""
    yield "With no start told (no symbols, and the FDEs and `.eh_frame_hdr` gone with the CFI):"
    yield ""
    yield from rows(untold)
    yield ""
    yield "What still disagrees, starts told, by cause, each with an example:"
    yield ""
    for name, results in told.items():
        worst = max(results, key=lambda result: len(result.differences))
        if worst.differences:
            yield f"    {name}{f' ({Path(worst.path).name})' if len(results) > 1 else ''}"
            yield from (f"    {line}"[:118] for line in causes(worst, 1))


def rows(results: dict[str, list[Result]]) -> Iterator[str]:
    """The lines of a table: the files of a group are taken together."""
    yield f"| | call returns | all pcs | {' | '.join(KINDS)} |"
    yield "| --- " * (3 + len(KINDS)) + "|"
    for name, found in results.items():
        calls = share(sum(r.agreed_calls for r in found), sum(r.calls for r in found), True)
        every = share(
            sum(r.agreed.total() for r in found), sum(r.places.total() for r in found), True
        )
        kinds = [
            share(sum(r.agreed[kind] for r in found), sum(r.places[kind] for r in found))
            for kind in KINDS
        ]
        yield f"| {name} | {calls} | {every} | {' | '.join(kinds)} |"


def share(agreed: int, places: int, counted: bool = False) -> str:
    """A percentage, with what it is taken of; nothing of nothing."""
    if not places:
        return ""
    return f"{100 * agreed / places:.2f} %" + (f" of {places:,}" if counted else "")


def write(text: str) -> None:
    """Put the report between the marks in BENCHMARKS.md, with date and commit."""
    from datetime import UTC, datetime

    page = ROOT / "BENCHMARKS.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    stamp = f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}."
    page.write_text(f"{before}{BEGIN}\n\n{stamp}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    raise SystemExit(main())
