"""ELF files for tests: small ones (unwind/testing/elf_files.py), built ones, the machine's own."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from tests.support import cannot, need, run
from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.testing.elf_files import (
    SHAPES,
    Sect,
    Seg,
    Sym,
    make_elf,
    symbol_bytes,
    with_symbols,
    without_sections,
)

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


def loaded(elf: Elf) -> bytearray:
    """The memory that the segments of `elf` make, from vaddr 0 on."""
    memory = bytearray(max(s.vaddr + s.memory_size for s in elf.segments))
    for segment in elf.segments:
        memory[segment.vaddr : segment.vaddr + len(segment.data)] = segment.data
    return memory


def mapped(path: Path) -> Elf:
    """The ELF file at `path`; FormatError when it is none."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise FormatError("empty", str(path))
        return Elf(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), str(path))


def library(name: str) -> Path:
    """A library of this machine, by the beginning of its file's name; skips where it has none."""
    found = sorted(LIBRARIES.glob(name + "*"))
    if not found:
        cannot(f"there is no {LIBRARIES / name}*")
    return found[0].resolve()


def elf_files(limit: int) -> Iterator[Path]:
    """Some ELF files of this machine, always the same, spread over its programs and libraries."""
    paths = [*sorted(Path("/usr/bin").iterdir()), *sorted(LIBRARIES.glob("*.so*"))]
    files = list(dict.fromkeys(path.resolve() for path in paths if path.is_file()))
    step = max(len(files) // limit, 1)
    for path in files[::step]:
        with path.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                yield path


PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) static int inner(int n) { volatile char room[64]; room[n & 63] = 1;
    return room[(n + 1) & 63] + getpid_like(n); }
__attribute__((noinline)) int outer(int n) { return inner(n) + inner(n + 1); }
int main(int argc, char **argv) { printf("%d\n", outer(argc)); return 0; }
"""


def build(directory: Path, *options: str, name: str = "program", source: str = "") -> Path:
    """A program (or what the options make of it) that gcc builds in `directory`."""
    need("gcc")
    text = source or PROGRAM.replace("getpid_like(n)", 'atoi("1")')
    (directory / "program.c").write_text(text)
    done = run("gcc", "-O1", "-o", name, "program.c", *options, cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / name


__all__ = [
    "LIBRARIES",
    "PROGRAM",
    "SHAPES",
    "Sect",
    "Seg",
    "Sym",
    "build",
    "elf_files",
    "library",
    "loaded",
    "make_elf",
    "mapped",
    "symbol_bytes",
    "with_symbols",
    "without_sections",
]
