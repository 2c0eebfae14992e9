"""Small files with debug info, kept in tests/data: what reads them needs no compiler.

lines.tar.xz has its source, small.c, as gcc 12 (DWARF 3 and 5) and clang 14 (DWARF 5, and split,
with the .dwo sections and their index put into the same file) compile it with -O2.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Sequence
from pathlib import Path

from unwind.elf import Elf
from unwind.lines.location import Location
from unwind.lines.lookup import Lines
from unwind.lines.split import unit_in_file, unit_in_package
from unwind.testing.damage import Area, Field

__all__ = ["asked", "debug_areas", "debug_files", "lines_of"]


@functools.cache
def debug_files() -> dict[str, bytes]:
    """The files by their names."""
    with tarfile.open(Path(__file__).parent / "data/lines.tar.xz") as archive:
        members = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        found = {name: file.read() for name, file in members.items() if file is not None}
    return {Path(name).name: data for name, data in found.items() if name.endswith(".debug")}


def lines_of(data: bytes) -> Lines:
    """The lines of such a file, which is its own supplement and has its split parts in itself."""
    elf = Elf(data, "file")
    return Lines(
        elf,
        lambda: elf,
        lambda unit: unit_in_package(unit, elf) or unit_in_file(unit, elf),
    )


def asked(lines: Lines) -> list[tuple[Location, ...]]:
    """What is said of the places in .text, and of some outside it."""
    text = lines.sections.elf.section(".text")
    start, size = (text.vaddr, min(text.size, 256)) if text is not None else (0, 0)
    return [lines.at(vaddr) for vaddr in (*range(start, start + size, 8), 0, 1 << 63)]


def debug_areas(data: bytes) -> Sequence[Area]:
    """The debug sections, every word of 1, 2 and 4 bytes at their beginnings."""
    found = []
    for section in Elf(data).sections:
        if section.name.startswith(".debug"):
            head = range(section.offset, section.offset + min(section.size, 64))
            fields = [Field("number", at, size) for at in head for size in (1, 2, 4)]
            end = section.offset + section.size
            found.append(Area(section.name, section.offset, end, tuple(fields)))
    return found
