"""Symbol sections: an ELF file, and its separate debug file, in; their symbol tables out."""

from __future__ import annotations

from struct import Struct

from unwind.elf import DT, EM, SHT, Elf
from unwind.symbol_search import SymbolTable
from unwind.symtab import Table

__all__ = ["section_table", "symbols_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.elf import Section

_EVEN = frozenset({EM.MIPS, EM.ARM})  # where bit 0 of a symbol's value marks the code
_ODD = bytes(value & 1 for value in range(256))
_LONGEST_CHAIN = 1 << 16  # bytes of one bucket's chain in DT_GNU_HASH


def symbols_of(elf: Elf, debug: Callable[[], Elf | None]) -> SymbolTable:
    """The symbols of `elf`, and of its separate debug file, which `debug` finds if it is needed.

    .symtab holds all that .dynsym holds; where it was stripped away, the debug file has it, or
    .gnu_debugdata the part of it that .dynsym lacks.
    """
    source = elf if _find(elf, SHT.SYMTAB) is not None else debug()

    def full() -> Iterator[Table]:
        section = _find(source, SHT.SYMTAB) if source is not None else None
        if source is not None and section is not None:
            yield section_table(source, section)

    def reduced() -> Iterator[Table]:
        section = _find(elf, SHT.DYNSYM)
        yield from [section_table(elf, section)] if section is not None else _dynamic_table(elf)
        packed = elf.section(".gnu_debugdata")
        if packed is not None:
            from unwind.compression import unxz

            inner = Elf(unxz(elf.data(packed), packed.name), f"{elf.path}: .gnu_debugdata")
            section = _find(inner, SHT.SYMTAB)
            if section is not None:
                yield section_table(inner, section)

    return SymbolTable([full, reduced])


def _find(elf: Elf, kind: int) -> Section | None:
    return next((section for section in elf.sections if section.type == kind), None)


def section_table(elf: Elf, section: Section) -> Table:
    header, sections = elf.header, elf.sections
    strings = elf.data(sections[section.link]) if section.link < len(sections) else b""
    return Table(
        elf.data(section),
        strings,
        header.elf_class,
        header.byteorder,
        first_global=section.info,
        section_at=_section_finder(elf),
        even=header.machine in _EVEN,
    )


def _section_finder(elf: Elf) -> Callable[[int], int | None]:
    def section_at(vaddr: int) -> int | None:
        for section in elf.sections:
            if section.flags & 2 and section.vaddr <= vaddr < section.vaddr + section.size:
                return section.index
        return None

    return section_at


def _dynamic_table(elf: Elf) -> Iterator[Table]:
    """The table that PT_DYNAMIC leads to, for images without section headers."""
    dynamic = dict(reversed(elf.dynamic))  # of a tag given twice the first counts
    places = [elf.to_vaddr(dynamic.get(tag, 0)) for tag in (DT.SYMTAB, DT.STRTAB)]
    symbols, strings = places
    if symbols is None or strings is None:
        return
    header = elf.header
    count = _count(elf, dynamic)
    if count is None:  # every linker puts the strings right behind the symbols
        size = max(strings - symbols, 0)
    else:
        size = count * (24 if header.elf_class == 64 else 16)
    yield Table(
        elf.at(symbols, size),
        elf.at(strings, dynamic.get(DT.STRSZ)),
        header.elf_class,
        header.byteorder,
        even=header.machine in _EVEN,
    )


def _count(elf: Elf, dynamic: dict[int, int]) -> int | None:
    """The number of symbols, which only the hash tables tell; None without any."""
    u32 = Struct("<I" if elf.header.byteorder == "little" else ">I")
    place = elf.to_vaddr(dynamic.get(DT.HASH, 0))
    if place is not None and DT.HASH in dynamic:
        head = elf.at(place, 8)  # nbucket, nchain: gABI 5 "Hash Table"
        return int(u32.unpack_from(head, 4)[0]) if len(head) == 8 else None
    place = elf.to_vaddr(dynamic.get(DT.GNU_HASH, 0))
    if place is None or DT.GNU_HASH not in dynamic:
        return None
    head = elf.at(place, 16)  # nbuckets, symoffset, bloom_size, bloom_shift
    if len(head) < 16:
        return None
    first: int
    buckets, first, bloom, _ = [number for (number,) in u32.iter_unpack(head)]
    place += 16 + bloom * elf.header.elf_class // 8
    data = elf.at(place, 4 * buckets)
    last: int = max([n for (n,) in u32.iter_unpack(data[: len(data) & ~3])], default=0)
    if last < first:
        return first
    # The chain of the last bucket ends with the last symbol: its hash has bit 0 set.
    chain = bytes(elf.at(place + 4 * (buckets + last - first), _LONGEST_CHAIN))
    low = chain[0::4] if elf.header.byteorder == "little" else chain[3::4]
    return last + 1 + max(low.translate(_ODD).find(1), 0)
