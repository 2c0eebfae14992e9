"""Frames of whole recordings against perf's own: the table of BENCHMARKS.md.

    programs ──perf record──> recordings ──perf script, our walk──> a class for each sample

tests/recordings.py has the classes, and proves of each sample that it belongs to its class.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.recordings import BOGUS, Difference, Ours, Theirs, difference, our_stacks, perf_stacks
from tools.bench import ENVIRONMENT, ROOT
from tools.bench_perf import Recorded, record, recursive, three_programs

PAGE = ROOT / "BENCHMARKS.md"
BEGIN, END = "<!-- made by tools/perf_frames.py: begin -->", "<!-- perf's frames: end -->"
HEADS = {
    Difference.NONE: "same",
    Difference.LAST_WORD: "last word",
    Difference.BOGUS: "bogus end",
    Difference.NO_CFI: "no CFI",
    Difference.LOST_CFI: "lost CFI",
    Difference.TRAMPOLINE: "trampoline",
    Difference.RUN_TIME: "run-time code",
    Difference.TOO_DEEP: "127 frames",
    Difference.OTHER: "unexplained",
}


def recordings(where: Path, samples: int) -> Iterator[Recorded]:
    """Programs that perf starts itself, then such as another program starts by fork and exec."""
    yield from three_programs(where, samples)
    deep = recursive(where)
    burn, burners = where / "burn", where / "burners"
    sources = ROOT / "tests/programs"
    flags = ["-O2", "-fomit-frame-pointer", "-pthread"]
    for program, source in ((burn, "burn.c"), (burners, "burners.c")):
        subprocess.run(["gcc", *flags, "-o", program, sources / source], check=True)
    yield record("threads", where / "threads.data", 8192, [burners, "threads"])
    yield record("2 kB of stack", where / "cut.data", 2048, [burn, "2000"])
    for n in range(4):
        title = f"fork, exec: burn, {n + 1}"
        yield record(title, where / f"exec{n}.data", 8192, [burners, "exec", burn, "1000"])
    shell = f"for n in 1 2 3 4; do {burn} 400; {deep} 0.05; done"
    yield record("fork, exec: a shell's loop", where / "shell.data", 16384, ["sh", "-c", shell])


def row(recorded: Recorded) -> tuple[str, Counter[Difference]]:
    """A row of the table, and the classes of its samples."""
    theirs = perf_stacks(recorded.path)
    ours = our_stacks(recorded.path, against=theirs)
    assert len(ours) == len(theirs)
    found = list(zip(ours, theirs, strict=True))
    classes = Counter(difference(mine, its) for mine, its in found)
    whole = [pair for pair in found if pair[0].end == "outermost"]
    reached = sum(_reaches(mine, its) for mine, its in whole)
    shares = [f"{n / max(len(found), 1):.2%}" for n in (len(whole), reached)]
    counts = [f"{classes[one]:,}" if classes[one] else "–" for one in HEADS]
    return _row(recorded.title, f"{len(found):,}", *shares, *counts), classes


def _reaches(mine: Ours, its: Theirs) -> bool:
    """Whether perf's walk gets to the outermost frame, which ours has."""
    return its.frames[-1:] == mine.frames[-1:] and its.frames[-1:] != (BOGUS,)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4000, help="of the larger recordings (4000)")
    parser.add_argument("--print", action="store_true", help="do not write BENCHMARKS.md")
    options = parser.parse_args()
    version = subprocess.check_output(["perf", "--version"], env=ENVIRONMENT, text=True).strip()
    lines = [f"With {version}:", ""]
    lines += [_row("recording", "samples", "ours complete", "perf complete", *HEADS.values())]
    lines += [_row("---", *["---:"] * (3 + len(HEADS)))]
    total: Counter[Difference] = Counter()
    with tempfile.TemporaryDirectory(prefix="unwind-frames-") as name:
        for recorded in recordings(Path(name), options.samples):
            line, classes = row(recorded)
            lines.append(line)
            total += classes
            print(line, flush=True)
            recorded.path.unlink()
    lines += ["", *(f"- **{head}**: {one.value}." for one, head in HEADS.items() if total[one])]
    text = "\n".join(lines)
    print(text)
    if not options.print:
        before, begin, rest = PAGE.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise SystemExit(f"{PAGE} has lost its markers")
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
