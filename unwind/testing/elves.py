"""Strategies of small ELF files: any class and byte order, segments, sections and symbols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from unwind.elf import ET, PT, SHT
from unwind.testing.damage import Area, Field
from unwind.testing.damaged import wounded
from unwind.testing.elf_files import SHAPES, Sect, Seg, Sym, make_elf, symbol_bytes

if TYPE_CHECKING:
    from unwind.protocols import ByteOrder

__all__ = ["ElfMade", "damaged_elf_files", "elf_areas", "elf_files"]

_NAMES = st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=12)
_TEXT = 0x1000


@dataclass(frozen=True)
class ElfMade:
    """A file and what was put into it."""

    data: bytes
    shape: tuple[int, ByteOrder]
    segments: tuple[Seg, ...]
    sections: tuple[Sect, ...]
    symbols: tuple[Sym, ...]


@st.composite
def elf_files(draw: st.DrawFn) -> ElfMade:
    """An ELF file with code from vaddr 0x1000 on, perhaps other segments, sections and symbols."""
    shape = draw(st.sampled_from(SHAPES))
    code = draw(st.binary(min_size=1, max_size=64))
    segments = [Seg(PT.LOAD, code, _TEXT)]
    if draw(st.booleans()):
        data, more = draw(st.binary(max_size=64)), draw(st.integers(0, 64))
        segments.append(Seg(PT.LOAD, data, 0x3000, 6, memory_size=len(data) + more))
    sections, symbols = list[Sect](), list[Sym]()
    if draw(st.booleans()):
        symbols = draw(_symbols(len(code)))
        sections = [Sect(".text", SHT.PROGBITS, code, _TEXT, 6)]
        table, strings = symbol_bytes(symbols, shape)
        first = 1 + sum(symbol.binding == 0 for symbol in symbols)
        sections.append(Sect(".symtab", SHT.SYMTAB, table, link=3, info=first))
        sections.append(Sect(".strtab", SHT.STRTAB, strings))
        names = draw(st.lists(_NAMES, max_size=3))
        sections += [Sect(f".{name}", data=draw(st.binary(max_size=30))) for name in names]
    machine = draw(st.sampled_from([62, 183, 8, 3, 40, 0, 0xFFFF]))
    kind = draw(st.sampled_from([ET.EXEC, ET.DYN]))
    data = make_elf(segments, sections, shape=shape, type=kind, machine=machine)
    return ElfMade(data, shape, tuple(segments), tuple(sections), tuple(symbols))


@st.composite
def _symbols(draw: st.DrawFn, size: int) -> list[Sym]:
    places = st.integers(0, (size - 1) // 4).map(lambda n: _TEXT + 4 * n)  # MIPS: bit 0 tells more
    made = st.builds(Sym, _NAMES, places, st.integers(0, size), st.just(2), st.sampled_from([1, 0]))
    found = draw(st.lists(made, max_size=6))
    return sorted(found, key=lambda symbol: symbol.binding)  # local ones come first: gABI 4.1


def elf_areas(data: bytes) -> Sequence[Area]:
    """The header and the tables of program and section headers of a sound file, as fields."""
    wide = data[4] == 2
    order: ByteOrder = "little" if data[5] == 1 else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    word = 8 if wide else 4
    head, entry, section = (64, 56, 64) if wide else (52, 32, 40)
    phoff, shoff = number(24 + word, word), number(24 + 2 * word, word)
    phnum, shnum = number(head - 8, 2), number(head - 4, 2)
    header = [Field("half", at, 2) for at in range(16, 20, 2)]
    header += [Field("word", 24 + n * word, word) for n in range(3)]
    header += [Field("half", at, 2) for at in range(head - 12, head, 2)]
    found = [Area("ELF header", 0, head, tuple(header))]
    for kind, start, size, count in (
        ("program header", phoff, entry, phnum),
        ("section header", shoff, section, shnum if shoff else 0),
    ):
        for at in range(start, start + size * count, size):
            fields = [Field("word", here, 4) for here in range(at, at + 8, 4)]
            fields += [Field("word", here, word) for here in range(at + 8, at + size, word)]
            found.append(Area(kind, at, at + size, tuple(fields)))
    return found


@st.composite
def damaged_elf_files(draw: st.DrawFn) -> bytes:
    """An ELF file with something wrong in its header, its tables, or anywhere."""
    made = draw(elf_files())
    return draw(wounded(made.data, elf_areas(made.data), made.shape[1]))
