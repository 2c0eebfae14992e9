"""Lines and inlined functions of programs built in many ways, as the debuggers' tools have them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.support import cannot, need, run
from tools.lines import LLVM, addresses, by_addr2line, by_llvm, compare, opened
from unwind.lines.lookup import Lines
from unwind.symbols.demangle import demangle

PROGRAM = Path(__file__).parent / "programs/inlined.cc"


@dataclass(frozen=True)
class Build:
    """A way to build the program."""

    name: str
    compiler: str
    flags: tuple[str, ...] = ()
    addr2line: str = ""
    """Why addr2line 2.40 is not asked."""

    def __str__(self) -> str:
        return self.name


BUILDS = (
    *(Build(f"gcc dwarf {n}", "g++", (f"-gdwarf-{n}",)) for n in (2, 3, 4, 5)),
    Build("clang dwarf 4", "clang++", ("-gdwarf-4",)),
    Build("clang dwarf 5", "clang++", ("-gdwarf-5",), "it misses ranges by DW_FORM_rnglistx"),
    Build("64-bit dwarf", "g++", ("-g", "-gdwarf64"), "it knows no line of it"),
    Build("strict dwarf 3", "g++", ("-gdwarf-3", "-gstrict-dwarf")),
    Build("types apart", "g++", ("-gdwarf-4", "-fdebug-types-section"), "it inlines nothing"),
    Build("compressed", "g++", ("-g", "-gz=zlib")),
    Build("mips", "mips-linux-gnu-g++", ("-g",)),
    Build("arm64", "aarch64-linux-gnu-g++", ("-g",)),
    Build("no inlining", "g++", ("-g", "-O0")),
    Build("whole program", "g++", ("-g", "-flto")),
)


def built(build: Build, folder: Path) -> Path:
    """The program, built so."""
    need(build.compiler)
    program = folder / "program"
    command = [build.compiler, "-O2", *build.flags, str(PROGRAM), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True)
    return program


def llvm() -> str:
    found = next((name for name in LLVM if shutil.which(name)), None)
    if found is None:
        need(LLVM[-1])
    return found or ""


@pytest.mark.parametrize("build", BUILDS, ids=str)
def test_every_place_is_where_the_tools_have_it(build: Build, tmp_path: Path) -> None:
    program = built(build, tmp_path)
    vaddrs = addresses(opened(program), 250, 5)
    lines = Lines(opened(program))
    mine = [tuple((place.file, place.line) for place in lines.at(vaddr)) for vaddr in vaddrs]
    assert list(lines.problems) == []
    scores = [compare("llvm", vaddrs, mine, by_llvm(llvm())(program, vaddrs), 0, True)]
    if not build.addr2line:
        scores.append(compare("addr2line", vaddrs, mine, by_addr2line(program, vaddrs), 0, False))
    for score in scores:
        assert score.counted > 100
        assert score.share >= 0.998, score.differences


@pytest.mark.parametrize("kind", ["zlib", "zlib-gnu", "zstd"])
def test_compressed_sections_say_the_same(kind: str, tmp_path: Path) -> None:
    need("objcopy")
    program, packed = built(BUILDS[3], tmp_path), tmp_path / "packed"
    command = ["objcopy", f"--compress-debug-sections={kind}", str(program), str(packed)]
    subprocess.run(command, check=True, timeout=60)
    assert packed.stat().st_size < 0.9 * program.stat().st_size
    plain, unpacked = Lines(opened(program)), Lines(opened(packed))
    chains = [(plain.at(v), unpacked.at(v)) for v in addresses(opened(program), 250, 5)]
    assert [a for a, b in chains if a != b] == []
    assert sum(len(chain) > 1 for chain, _ in chains) > 50


def test_each_row_is_the_one_that_pyelftools_has(tmp_path: Path) -> None:
    program = built(BUILDS[3], tmp_path)
    lines, met = Lines(opened(program)), 0
    with program.open("rb") as file:
        dwarf = ELFFile(file).get_dwarf_info()
        for unit in dwarf.iter_CUs():
            entries = dwarf.line_program_for_CU(unit).get_entries()
            states = [entry.state for entry in entries if entry.state is not None]
            for row, following in pairwise(states):
                if not row.end_sequence and following.address > row.address:
                    place = lines.at(row.address)[0]
                    assert (place.line or 0, place.column or 0) == (row.line, row.column)
                    met += 1
    assert met > 300


def test_the_chain_of_inlined_calls_is_the_sources(tmp_path: Path) -> None:
    program = built(BUILDS[3], tmp_path)
    text = PROGRAM.read_text().splitlines()
    call = next(n for n, line in enumerate(text, 1) if "__builtin_trap" in line)
    lines = Lines(opened(program))
    run = opened(program).section(".text")
    assert run is not None
    chains = [lines.at(vaddr) for vaddr in range(run.vaddr, run.vaddr + run.size)]
    chain = next(found for found in chains if found and found[0].line == call)
    assert [place.file for place in chain] == [str(PROGRAM)] * 4
    assert [text[place.line - 1].strip() for place in chain if place.line] == [
        "__builtin_trap();",
        "return deepest(value + 1);",
        "return function(value) * 2;",
        "return apply(n, [](int value) __attribute__((always_inline)) {",
    ]
    names = [demangle(place.function or "") for place in chain]
    assert names[-1] == "shop::run(int)"
    assert names[0] in ("shop::deepest(int)", "deepest")  # gcc gives it no linkage name
    assert all(place.column for place in chain)


def test_libcs_places_are_where_the_tools_have_them() -> None:
    """A sample of what `make oracle-lines` does."""
    found = sorted(
        Path("/usr/lib/debug/.build-id").glob("*/*.debug"), key=lambda p: p.stat().st_size
    )
    if not found:
        cannot("libc6-dbg is not installed")
    program = found[-1]
    vaddrs = addresses(opened(program), 200, 11)
    lines = Lines(opened(program))
    mine = [tuple((place.file, place.line) for place in lines.at(vaddr)) for vaddr in vaddrs]
    version = re.search(r"LLVM version (\d+)", run(llvm(), "--version").stdout)
    # Up to 14 it writes a relative directory twice: ./nptl/./nptl/cancellation.c.
    files = version is not None and int(version[1]) > 14
    score = compare("llvm", vaddrs, mine, by_llvm(llvm())(program, vaddrs), 0, files)
    assert score.counted > 150
    assert score.share >= 0.995, score.differences
