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
from itertools import count
from pathlib import Path

from unwind.architecture import Architecture
from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.emulate import CFA, CONSTANT, RETURN_ADDRESS, CodeModel, State
from unwind.errors import MemoryFault, UnwindError
from unwind.functions import Functions, find_starts
from unwind.image import Image
from unwind.registers import Registers
from unwind.registry import architecture
from unwind.rules import CfaRegister, Row, Undefined
from unwind.step import apply

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
    fdes = list(_fdes(image))
    starts = [fde.start for fde in fdes] if told else find_starts(image, model, untold=True)
    functions = Functions(image, model, disassembler(model), starts)
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


def _fdes(image: Image) -> Iterator[Fde]:
    """The FDEs of the first section that has some, one for each start."""
    seen = set()
    for section in image.frame_sections:
        for entry in section.entries():
            if isinstance(entry, Fde) and entry.start < entry.end and entry.start not in seen:
                if image.executable(entry.start):
                    seen.add(entry.start)
                    yield entry
        if seen:
            return


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
        state = table.state(vaddr) if table is not None else None
        mine = table.row(vaddr, mnemonic in judge.model.calls) if table is not None else None
        what = judge.difference(row, state, mine, vaddr)
        kind = "PLT" if is_stub else _kind(row, body)
        result.places[kind] += 1
        result.agreed[kind] += not what
        if mnemonic in judge.model.calls:
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


class Judge:
    """Compares rows by value, in a world that is made after the emulation's state."""

    def __init__(self, arch: Architecture, model: CodeModel):
        self.arch = arch
        self.model = model
        self._known: dict[tuple[int, ...], str] = {}
        self._kept: list[object] = []  # what the keys' ids stand for stays alive

    def difference(self, cfi: Row, state: State | None, mine: Row | None, vaddr: int) -> str:
        """What the two rows disagree about, "" if nothing."""
        if mine is None or state is None:
            return "no row"
        key = (
            id(cfi),
            id(state),
            id(mine.rules),
            vaddr if not isinstance(cfi.cfa, CfaRegister) else 0,
        )
        if key not in self._known:
            self._kept += [cfi, state, mine.rules]
            self._known[key] = self._difference(cfi, state, mine, vaddr)
        return self._known[key]

    def _difference(self, cfi: Row, state: State, mine: Row, vaddr: int) -> str:
        registers, memory = self._world(state, vaddr)
        try:
            theirs = apply(cfi, registers, memory, self.arch)
        except UnwindError as error:
            return f"cannot apply the CFI: {type(error).__name__}"
        try:
            ours = apply(mine, registers, memory, self.arch)
        except UnwindError as error:
            return f"cannot apply the row: {type(error).__name__}"
        if theirs.pc is None:
            return ""  # the outermost function: there is no caller to be found
        if theirs.cfa != ours.cfa:
            return "CFA"
        if theirs.pc != ours.pc:
            return "return address"
        for register in self.model.saved:
            if isinstance(cfi.rules.get(register), Undefined):
                continue
            if theirs.registers.get(register) != ours.registers.get(register):
                return self.arch.register_name(register)
        return ""

    def _world(self, state: State, vaddr: int) -> tuple[Registers, Slots]:
        """Numbers for all that the state knows, and others for what it does not."""
        bases: dict[int, int] = {CONSTANT: 0}
        fresh = count(1)

        def number(symbol: int) -> int:
            if symbol not in bases:
                bases[symbol] = 0x10_0000 * next(fresh)
            return bases[symbol]

        word = (1 << 8 * self.arch.word) - 1
        number(CFA), number(RETURN_ADDRESS)
        registers = Registers()
        for register in range(max(self.arch.word * 4, 34)):
            value = state.registers.get(register)
            known = number(value[0]) + value[1] if value is not None else 0x777 + 16 * register
            registers[register] = known & word
        registers[self.arch.pc] = vaddr
        slots = {
            (number(base) + offset) & word: (number(symbol) + more) & word
            for (base, offset), (symbol, more) in state.slots.items()
        }
        return registers, Slots(slots, self.arch)


class Slots:
    """The memory of such a world: what no slot is known to hold reads as a number of its own."""

    def __init__(self, slots: dict[int, int], arch: Architecture):
        self.slots = slots
        self.arch = arch

    def read(self, address: int, size: int) -> bytes:
        if size != self.arch.word:
            raise MemoryFault(address, size)
        value = self.slots.get(address, 0x999 ^ address)
        return value.to_bytes(size, self.arch.byteorder)


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
