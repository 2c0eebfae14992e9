"""How well rows made from code agree with CFI: files with CFI in, shares and causes out.

    python -m tools.agreement /usr/lib/x86_64-linux-gnu/libc.so.6
    python -m tools.agreement --causes 20 FILE...

The CFI of a file is taken away, rows are made from its code alone, and both are compared at every
instruction, by value: each register and slot gets a number of its own, after what the emulation
knows of it, both rows are applied, and CFA, return address and each callee-saved register must come
out the same. A place for which no row is made disagrees; a register that a row does not mention
counts as kept.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.functions import Functions
from unwind.image import Image
from unwind.judge import Judge
from unwind.machine import CodeModel
from unwind.registry import architecture
from unwind.rules import CfaRegister, Row
from unwind.starts import FoundStarts, Starts, find_starts

KINDS = ("prologue", "body", "epilogue", "PLT")


@dataclass
class Difference:
    """A place where the two rows disagree, and about what."""

    vaddr: int
    function: int
    what: str
    text: str
    cfi: str
    code: str


@dataclass
class Result:
    """What came of one file."""

    path: str
    places: Counter[str] = field(default_factory=Counter)  # by kind
    agreed: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    agreed_calls: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of all instructions."""
        return sum(self.agreed.values()) / max(1, sum(self.places.values()))

    @property
    def share_of_calls(self) -> float:
        """Of the places that a backtrace looks up: calls."""
        return self.agreed_calls / max(1, self.calls)


def compare(path: str, told: bool = True) -> Result:
    """Compare rows from the code of one file with its CFI; `told`: with the starts of functions."""
    image = Image(Elf(Path(path).read_bytes(), path))
    arch = architecture(image.elf)
    assert arch.code_model is not None, f"no code model for {arch.name}"
    model = arch.code_model()
    fdes = list(each_fde(image))
    disassemble = disassembler(model)
    starts = (
        Starts(image, _starts(image, fdes, model))
        if told
        else FoundStarts(image, model, disassemble, untold=True)
    )
    functions = Functions(image, model, disassemble, starts)
    result = Result(path)
    judge = Judge(arch, model)
    stubs = [
        (section.vaddr, section.vaddr + section.size)
        for section in image.elf.sections
        if section.name.startswith((".plt", ".MIPS.stubs", ".iplt"))
    ]
    for fde in fdes:
        is_stub = any(low <= fde.start < high for low, high in stubs)
        _compare_function(fde, is_stub, functions, judge, result)
    return result


def each_fde(image: Image) -> Iterator[Fde]:
    """The FDEs of all sections, one for each start: mips has C's in .debug_frame only."""
    seen = set()
    for section in image.frame_sections:
        for entry in section.entries():
            if isinstance(entry, Fde) and entry.start < entry.end and entry.start not in seen:
                if image.executable(entry.start):
                    seen.add(entry.start)
                    yield entry


def _starts(image: Image, fdes: list[Fde], model: CodeModel) -> Iterator[int]:
    """Where functions start: FDEs, and symbols of what has none (C's on mips, as a rule)."""
    yield from (fde.start for fde in fdes)
    ranges = sorted((fde.start, fde.end) for fde in fdes)
    for start in find_starts(image, model):
        at = bisect_right(ranges, (start, 1 << 64)) - 1
        if at < 0 or start >= ranges[at][1]:
            yield start


def _compare_function(
    fde: Fde, is_stub: bool, functions: Functions, judge: Judge, result: Result
) -> None:
    table_rows = list(rows(fde, judge.arch.vendor_opcodes))
    if not table_rows:
        return
    starts = [row.start for row in table_rows]
    body = max(table_rows, key=lambda row: row.end - row.start)
    code = bytes(functions.image.at(fde.start, fde.end - fde.start))
    for vaddr, _size, mnemonic, operands in functions.disassemble(code, fde.start):
        row = table_rows[max(0, bisect_right(starts, vaddr) - 1)]
        table = functions.table(vaddr)
        called = mnemonic in judge.model.calls
        state = table.state(vaddr, called) if table is not None else None
        mine = table.row(vaddr, called) if table is not None else None
        verdict = judge.difference(row, state, mine, vaddr)
        what = verdict.what if verdict is not None else ""
        kind = "PLT" if is_stub else _kind(row, body)
        result.places[kind] += 1
        result.agreed[kind] += not what
        if called:
            result.calls += 1
            result.agreed_calls += not what
        if what:
            result.differences.append(
                Difference(
                    vaddr,
                    fde.start,
                    f"{what} ({kind})",
                    f"{mnemonic} {operands}",
                    str(row.cfa),
                    str(mine.cfa if mine is not None else None),
                )
            )


def _kind(row: Row, body: Row) -> str:
    if row.cfa == body.cfa or not isinstance(row.cfa, CfaRegister):
        return "body"
    return "prologue" if row.start < body.start else "epilogue"


def table(results: Iterable[Result]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| file | call returns | all pcs | " + " | ".join(KINDS) + " |"
    yield "| --- " * (3 + len(KINDS)) + "|"
    for result in results:
        shares = [
            f"{100 * result.agreed[kind] / result.places[kind]:.2f} %"
            if result.places[kind]
            else ""
            for kind in KINDS
        ]
        yield (
            f"| {result.path.rpartition('/')[2]} | {100 * result.share_of_calls:.2f} % "
            f"of {result.calls} | {100 * result.share:.2f} % of {result.places.total()} | "
            + " | ".join(shares)
            + " |"
        )


def causes(result: Result, most: int) -> Iterator[str]:
    """What disagrees, the largest cause first, with an example of each."""
    found: dict[str, list[Difference]] = {}
    for difference in result.differences:
        found.setdefault(difference.what, []).append(difference)
    for what, differences in sorted(found.items(), key=lambda item: -len(item[1]))[:8]:
        yield f"  {len(differences):6} {what}"
        step = max(1, len(differences) // most)
        for d in differences[::step][:most]:
            yield f"           {d.vaddr:#x} in {d.function:#x}: {d.text}; {d.cfi} against {d.code}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--causes", type=int, default=0, metavar="N", help="N examples of each")
    parser.add_argument("--untold", action="store_true", help="without the starts of functions")
    options = parser.parse_args()
    results = []
    for path in options.files:
        results.append(compare(path, not options.untold))
        if options.causes:
            print(path)
            print("\n".join(causes(results[-1], options.causes)))
    print("\n".join(table(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
