"""Other readers as oracles: the rows of every FDE of many files, as five programs make them.

    file ──┬── unwind.dwarf.rows ─────────┐
           ├── unwind.testing.model ──────┤
           ├── readelf (tools.oracle) ────┼── equal in every column, or a difference
           ├── llvm-dwarfdump 19 ─────────┤
           └── pyelftools ────────────────┘   counted by kind: its errors are known

`make oracle-tables` runs it over the files of this machine and over Debian's packages for arm64
and mipsel, which are unpacked below .agreement and not installed; `make oracle-tables-large` over
the large files of this machine. llvm-dwarfdump 14 prints wrong
CFAs behind DW_CFA_restore_state; 19 is the first that is known to be right.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools import oracle
from tools.foreign_packages import fetch
from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.constants import op_name
from unwind.dwarf.expression import operations
from unwind.dwarf.rows import rows
from unwind.elf import EM, Elf
from unwind.errors import UnsupportedArchitecture, UnwindError
from unwind.image import Image
from unwind.registry import architecture
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    Offset,
    Row,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.testing import model

LLVM = "llvm-dwarfdump-19"
ROOT = Path(__file__).resolve().parent.parent
# What a machine of another kind has: libraries in C, C++, Rust and assembler.
PACKAGES = (
    *("libc6", "libstdc++6", "libgcc-s1", "libssl3", "python3.11-minimal", "perl-base"),
    *("libgnutls30", "libsqlite3-0", "libglib2.0-0", "libcurl4", "coreutils", "bash", "zlib1g"),
    *("libx11-6", "librsvg2-2", "libicu72", "libxml2", "gdb", "git"),
)
FOREIGN = ("arm64", "mipsel")
_SHOWN = 3  # differences of one file and reader
_PYELFTOOLS_SIZE = 1 << 20  # bytes of a file: it opens larger ones in minutes

# Bytes of what is compared in a run of its own: a hundred such files have four rows of five.
_LARGE = 8 << 20

# A row in words that all readers can be brought to: where it starts, the CFA, the registers.
Words = tuple[int, str, tuple[tuple[int, str], ...]]

_X86_64 = {
    name: number
    for number, name in enumerate(
        "RAX RDX RCX RBX RSI RDI RBP RSP R8 R9 R10 R11 R12 R13 R14 R15 RIP".split()
    )
} | {f"XMM{n}": 17 + n for n in range(16)}
_ARM64 = (
    {f"{kind}{n}": n for kind in "WX" for n in range(31)}
    | {"WSP": 31, "SP": 31, "FP": 29, "LR": 30}
    | {f"{kind}{n}": 64 + n for kind in "BDQV" for n in range(32)}
)
_MIPS_NAMES = (
    "ZERO AT V0 V1 A0 A1 A2 A3 T0 T1 T2 T3 T4 T5 T6 T7 S0 S1 S2 S3 S4 S5 S6 S7 T8 T9 K0 K1 GP SP "
    "FP RA"
).split()
_MIPS = {f"{name}{suffix}": n for n, name in enumerate(_MIPS_NAMES) for suffix in ("", "_64")}
_MIPS |= {
    f"{kind}{n}{suffix}": 32 + n for kind in "FD" for n in range(32) for suffix in ("", "_64")
}
NAMES = {EM.X86_64: _X86_64, EM.AARCH64: _ARM64, EM.MIPS: _MIPS}


@dataclass
class Comparison:
    """What came of one file, or of many; by reader: rows compared, and differences."""

    files: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    differing: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    """What others are known to get wrong."""

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.files + other.files,
            self.rows + other.rows,
            self.differing + other.differing,
            self.shown + other.shown,
            self.kinds + other.kinds,
        )

    def differ(self, reader: str, path: str, what: str) -> None:
        """Note a difference, and keep the first few in words."""
        self.differing[reader] += 1
        if self.differing[reader] <= _SHOWN:
            self.shown.append(f"{path}: {what}")


@dataclass(frozen=True)
class Task:
    """A file, and whether readelf and pyelftools are asked about it too."""

    path: str
    readelf: bool
    pyelftools: bool


def compare(task: Task) -> Comparison:
    """What all readers make of one ELF file."""
    found = Comparison()
    with open(task.path, "rb") as file:
        elf = Elf(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)), task.path)
    if elf.header.machine not in NAMES or elf.header.type == 1:  # relocatable: others patch it
        return found
    image = Image(elf)
    ours: dict[tuple[str, int], tuple[Fde, list[Row]]] = {}
    for section in image.frame_sections:
        ours |= _ours(elf, section)
    if not ours:
        return found
    found.files = 1
    found.rows["unwind"] = sum(len(made) for _, made in ours.values())
    _against_model(task.path, elf, image, ours, found)
    _against_llvm(task.path, elf, ours, found)
    if task.readelf:
        said = oracle.compare(task.path)
        found.rows["readelf"] += said.theirs.rows
        for difference in said.differences:
            found.differ("readelf", task.path, str(difference))
    if task.pyelftools:
        _against_pyelftools(task.path, elf, ours, found)
    return found


def _ours(elf: Elf, section: FrameSection) -> dict[tuple[str, int], tuple[Fde, list[Row]]]:
    arch = _arch(elf)
    found: dict[tuple[str, int], tuple[Fde, list[Row]]] = {}
    for entry in section.entries():
        if isinstance(entry, Fde):
            try:
                made = list(rows(entry, arch.vendor_opcodes if arch else {}))
            except UnwindError:
                made = []
            found[section.kind, entry.offset] = entry, made
    return found


def _arch(elf: Elf) -> Any:
    try:
        return architecture(elf)
    except UnsupportedArchitecture:
        return None


# ------------------------------------------------------------------------------- the plain model


def _against_model(
    path: str,
    elf: Elf,
    image: Image,
    ours: dict[tuple[str, int], tuple[Fde, list[Row]]],
    found: Comparison,
) -> None:
    def word_at(vaddr: int) -> int:
        size = elf.header.elf_class // 8
        return int.from_bytes(image.read(vaddr, size), elf.header.byteorder)

    for kind in ("eh_frame", "debug_frame"):
        section = elf.section(f".{kind}")
        if section is None or not any(key[0] == kind for key in ours):
            continue
        entries = model.read(
            bytes(elf.data(section)),
            section.vaddr,
            kind,
            elf.header.byteorder,
            elf.header.elf_class // 8,
            word_at=word_at,
        )
        seen = set()
        for entry in entries:
            if not isinstance(entry, model.Fde):
                continue
            seen.add((kind, entry.offset))
            try:
                theirs = model.rows(entry, aarch64=elf.header.machine == EM.AARCH64)
            except model.Invalid:
                theirs = []
            mine = ours.get((kind, entry.offset))
            found.rows["model"] += len(theirs)
            if mine is None or list(map(_facts, mine[1])) != list(map(_facts, theirs)):
                found.differ("model", path, f".{kind} {entry.offset:#x}: the model has other rows")
        for key in ours.keys() - seen:
            if key[0] == kind:
                found.differ("model", path, f".{kind} {key[1]:#x}: the model has no such FDE")


def _facts(row: Row) -> tuple[object, ...]:
    facts = row.start, row.end, row.cfa, dict(row.rules), row.return_address
    return (*facts, row.signal, row.ra_signed)


# -------------------------------------------------------------------------------- llvm-dwarfdump


def _against_llvm(
    path: str, elf: Elf, ours: dict[tuple[str, int], tuple[Fde, list[Row]]], found: Comparison
) -> None:
    seen = set()
    names = NAMES[elf.header.machine]
    word, order = elf.header.elf_class // 8, elf.header.byteorder
    for key, theirs in _by_llvm(path, names):
        seen.add(key)
        mine = ours.get(key)
        if mine is None:
            found.differ("llvm", path, f".{key[0]} {key[1]:#x}: llvm has an FDE that we have not")
            continue
        fde, made = mine
        inside = [row for row in theirs if row[0] < fde.end]
        found.rows["llvm"] += len(inside)
        wanted = [_words(row, word, order) for row in made]
        if inside != wanted and inside == _without_offsets(wanted):
            found.kinds[_NO_OFFSET] += 1
        elif inside != wanted:
            pairs = zip([*wanted, None], [*inside, None], strict=False)
            first = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
            told = f"unwind {first[0]}, llvm {first[1]}"
            found.differ("llvm", path, f".{key[0]} {key[1]:#x}: {told}")
    for key in ours.keys() - seen:
        found.differ("llvm", path, f".{key[0]} {key[1]:#x}: llvm has no such FDE")


# readelf and libgcc, and we, take the offset from before the expression, and the code of the
# functions proves them right: libgcrypt's return with the CFA 8 bytes above the stack pointer.
_NO_OFFSET = "llvm: DW_CFA_def_cfa_register behind a CFA by expression has no offset"


def _without_offsets(made: list[Words]) -> list[Words]:
    """Rows as llvm-dwarfdump 19 has them: it forgets the CFA's offset with the expression."""
    found, before, forgotten = list[Words](), "", ""
    for start, cfa, registers in made:
        if "DW_OP_" in before and "DW_OP_" not in cfa:
            forgotten = cfa  # until the program says something else
        before = cfa
        bare = re.sub(r"[+-]\d+$", "+0", cfa) if cfa == forgotten else cfa
        found.append((start, bare, registers))
    return found


def _by_llvm(path: str, names: dict[str, int]) -> Iterator[tuple[tuple[str, int], list[Words]]]:
    """The rows of each FDE, as llvm-dwarfdump prints them."""
    command = [LLVM, "--eh-frame", "--debug-frame", path]
    known: dict[str, tuple[str, tuple[tuple[int, str], ...]]] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        kind, at, made = "", -1, dict[int, Words]()
        for line in process.stdout:
            if line[:4] == "  0x":
                start, _, told = line.strip().partition(": ")
                parsed = known.get(told)
                if parsed is None:
                    parsed = known[told] = _parsed(told, names)
                # What has no extent is replaced.
                made[int(start, 16)] = (int(start, 16), *parsed)
            elif head := re.match(r"([0-9a-f]{8,16}) [0-9a-f]+ [0-9a-f]+ (FDE|CIE)", line):
                if at >= 0:
                    yield (kind, at), sorted(made.values())
                at, made = int(head[1], 16) if head[2] == "FDE" else -1, {}
            elif line[:1] == ".":
                if at >= 0:
                    yield (kind, at), sorted(made.values())
                at, made = -1, {}
                kind = "debug_frame" if line.startswith(".debug_frame") else "eh_frame"
        if at >= 0:
            yield (kind, at), sorted(made.values())


def _parsed(told: str, names: dict[str, int]) -> tuple[str, tuple[tuple[int, str], ...]]:
    """`CFA=RSP+8: RBX=[CFA-16], RIP=[CFA-8]` in our words."""
    cfa, _, registers = told.partition(": ")
    found = {}
    for part in re.split(r", (?=\w+=)", registers) if registers else ():
        name, _, rule = part.partition("=")
        number = _number(name, names)
        if number != _RA_SIGN_STATE:
            found[number] = _llvm_rule(rule, names)
    return _llvm_rule(cfa.removeprefix("CFA="), names), tuple(sorted(found.items()))


_RA_SIGN_STATE = 34  # AArch64's pseudo register; the model is asked about it


def _llvm_rule(rule: str, names: dict[str, int]) -> str:
    inside = rule[1:-1] if rule[:1] == "[" else rule
    brackets = "[{}]" if rule[:1] == "[" else "{}"
    if "DW_OP_" in inside:
        return brackets.format(" ".join(re.findall(r"DW_OP_\w+", inside)))
    if inside in ("undefined", "same", "unspecified"):
        return inside
    base, sign, offset = re.fullmatch(r"(\w+?)(?:([+-])(\d+))?", inside).groups()  # type: ignore[union-attr]
    n = int(offset or 0) * (-1 if sign == "-" else 1)
    where = "CFA" if base == "CFA" else f"r{_number(base, names)}"
    return brackets.format(f"{where}{n:+d}")


def _number(name: str, names: dict[str, int]) -> int:
    if name in names:
        return names[name]
    return int(name.removeprefix("reg"))


def _words(row: Row, word: int, order: Any) -> Words:
    """A row of ours in the words that others are brought to."""

    def names(code: bytes) -> str:
        return " ".join(op_name(one.opcode) for one in operations(code, word, order))

    match row.cfa:
        case CfaRegister(number=number, offset=offset):
            cfa = f"r{number}{offset:+d}"
        case CfaExpression(code=code):
            cfa = names(code)
        case None:
            cfa = "unspecified"
    found = []
    for number, rule in sorted(row.rules.items()):
        match rule:
            case Undefined():
                text = "undefined"
            case SameValue():
                text = "same"
            case Offset(n=n):
                text = f"[CFA{n:+d}]"
            case ValOffset(n=n):
                text = f"CFA{n:+d}"
            case InRegister(number=other):
                text = f"r{other}+0"
            case Expression(code=code):
                text = f"[{names(code)}]"
            case ValExpression(code=code):
                text = names(code)
        found.append((number, text))
    return row.start, cfa, tuple(found)


# ------------------------------------------------------------------------------------ pyelftools


def _against_pyelftools(
    path: str, elf: Elf, ours: dict[tuple[str, int], tuple[Fde, list[Row]]], found: Comparison
) -> None:
    """Its tables; its errors are counted by kind, see tests/test_pyelftools.py for each of them."""
    from elftools.dwarf.callframe import FDE
    from elftools.elf.elffile import ELFFile

    word, order = elf.header.elf_class // 8, elf.header.byteorder
    with open(path, "rb") as file:
        try:
            info = ELFFile(file).get_dwarf_info()
            tables = {"eh_frame": info.EH_CFI_entries} if info.has_EH_CFI() else {}
            tables |= {"debug_frame": info.CFI_entries} if info.has_CFI() else {}
        except Exception as error:
            found.kinds[f"pyelftools, opening: {type(error).__name__}"] += 1
            return
        for kind, entries_of in tables.items():
            try:
                entries = [entry for entry in entries_of() if isinstance(entry, FDE)]
            except Exception as error:
                found.kinds[f"pyelftools, reading .{kind}: {type(error).__name__}"] += 1
                continue
            for entry in entries:
                mine = ours.get((kind, entry.offset))
                try:
                    theirs = list(_by_pyelftools(entry))
                except Exception as error:
                    found.kinds[f"pyelftools: {type(error).__name__}: {error}"] += 1
                    continue
                found.rows["pyelftools"] += len(theirs)
                if mine is None:
                    found.kinds["pyelftools: an FDE that nobody else has"] += 1
                    continue
                wanted = [_plain(_words(row, word, order)) for row in mine[1]]
                inside = [row for row in theirs if row[0] < mine[0].end]
                if inside != wanted:
                    found.differing["pyelftools"] += 1
                    found.kinds[f"pyelftools: {_kind(wanted, inside)}"] += 1


def _plain(row: Words) -> Words:
    """A row without the expressions, which it leaves as bytes."""
    start, cfa, registers = row
    cfa = "expression" if "DW_OP_" in cfa else cfa
    return start, cfa, tuple((n, "expression" if "DW_OP_" in r else r) for n, r in registers)


def _by_pyelftools(entry: Any) -> Iterator[Words]:
    made: dict[int, Words] = {}
    for line in entry.get_decoded().table:
        cfa = line["cfa"]
        text = "expression" if cfa.expr is not None else f"r{cfa.reg}{cfa.offset:+d}"
        registers = []
        for number, rule in line.items():
            if isinstance(number, int):
                registers.append((number, _pyelftools_rule(rule)))
        made[line["pc"]] = (line["pc"], text, tuple(sorted(registers)))
    yield from sorted(made.values())


def _pyelftools_rule(rule: Any) -> str:
    match rule.type:
        case "UNDEFINED":
            return "undefined"
        case "SAME_VALUE":
            return "same"
        case "OFFSET":
            return f"[CFA{rule.arg:+d}]"
        case "VAL_OFFSET":
            return f"CFA{rule.arg:+d}"
        case "REGISTER":
            return f"r{rule.arg}+0"
        case "EXPRESSION" | "VAL_EXPRESSION":
            return "expression"
        case other:
            return str(other)


def _kind(wanted: Sequence[Words], found: Sequence[Words]) -> str:
    """In what two tables differ first."""
    for one, other in zip(wanted, found, strict=False):
        if one[0] != other[0]:
            return "the places of rows"
        if one[1] != other[1]:
            return "the CFA"
        if one[2] != other[2]:
            return "the registers"
    return "the number of rows"


# ------------------------------------------------------------------------------------------ all


def tasks(paths: Sequence[str], readelf: bool, every: int) -> list[Task]:
    """The work: pyelftools gets one file in `every`, by chance from a seed, if it is small."""
    chance = random.Random(0)
    return [
        Task(
            path,
            readelf,
            chance.randrange(every) == 0 and os.path.getsize(path) < _PYELFTOOLS_SIZE,
        )
        for path in paths
    ]


def _of_this_machine(large: bool, every: int) -> list[Task]:
    """Its large files, or the others; readelf reads them all in `make oracle-rows`."""
    paths = oracle.elf_files(oracle.PLACES)
    return tasks(
        [path for path in paths if (os.path.getsize(path) >= _LARGE) == large], False, every
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all files of all machines; 0 where nothing differs but pyelftools."""
    parser = argparse.ArgumentParser(prog="python -m tools.tables", description=__doc__)
    parser.add_argument("places", nargs="*", help="files and directories in place of the corpus")
    parser.add_argument("--keep", type=Path, default=ROOT / ".agreement", metavar="DIR")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    parser.add_argument("--large", action="store_true", help="this machine's large files alone")
    parser.add_argument("--every", type=int, default=8, help="pyelftools reads one file in so many")
    parser.add_argument("--minutes", type=float, default=28, help="stop then, and say how far")
    options = parser.parse_args(argv)
    limit = time.monotonic() + 60 * options.minutes
    if options.large:
        corpus = {"x86_64": _of_this_machine(True, options.every)}
    elif options.places:
        corpus = {"": tasks(oracle.elf_files(options.places), True, options.every)}
    else:
        corpus = {}
        for name in FOREIGN:
            root = fetch(name, PACKAGES, options.keep / "tables" / name)
            corpus[name] = tasks(oracle.elf_files([str(root)]), True, options.every)
        corpus["x86_64"] = _of_this_machine(False, options.every)
    bad = 0
    for name, work in corpus.items():
        start, total, done = time.monotonic(), Comparison(), 0
        with multiprocessing.Pool(options.jobs) as pool:
            for found in pool.imap_unordered(compare, work):
                for line in found.shown:
                    print(line, flush=True)
                total, done = total + found, done + 1
                if time.monotonic() > limit:
                    break
        left = f", {len(work) - done} files left out" if done < len(work) else ""
        print(f"{name}: {total.files} files with CFI{left}, {time.monotonic() - start:.0f} s")
        for reader in ("unwind", "model", "llvm", "readelf", "pyelftools"):
            if total.rows[reader]:
                count, differing = total.rows[reader], total.differing[reader]
                print(f"  {reader:<12}{count:>14,} rows, {differing:,} FDEs differ", flush=True)
                bad += differing if reader != "pyelftools" else 0
        for kind, count in total.kinds.most_common():
            print(f"    {kind}: {count:,} FDEs")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
