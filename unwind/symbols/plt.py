"""Procedure linkage tables: the vaddr of a stub in, the name of what it jumps to out."""

from __future__ import annotations

from unwind.elf import SHT
from unwind.symbol_sections import section_table
from unwind.symtab import STB, STT, Symbol

__all__ = ["plt_symbol"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf, Section

_MOST_STUBS = 1 << 20


def plt_symbol(elf: Elf, vaddr: int) -> Symbol | None:
    """The stub at `vaddr` as `name@plt`, as objdump and gdb call it, or None.

    No symbol table tells of stubs, but linkers write them in the order of their relocations.
    Where the sizes do not bear that out there is no name.
    """
    for name in (".plt.sec", ".plt"):
        section = elf.section(name)
        if section is not None and 0 <= vaddr - section.vaddr < section.size:
            return _stub(elf, section, vaddr)
    return None


def _stub(elf: Elf, section: Section, vaddr: int) -> Symbol | None:
    relocations = elf.section(".rela.plt") or elf.section(".rel.plt")
    step = section.entry_size
    if relocations is None or not step or relocations.link >= len(elf.sections):
        return None
    infos = _infos(elf, relocations, section.size // step + 1)
    # Only .plt begins with a stub of another kind, which the lazy ones jump to.
    head = section.size - step * len(infos)
    if head not in ((0,) if section.name == ".plt.sec" else (step, 2 * step)):
        return None
    bits = 32 if elf.header.elf_class == 64 else 8
    if len({info & (1 << bits) - 1 for info in infos}) != 1:
        return None  # TLS descriptors and resolvers have stubs of other sizes, or none
    number = (vaddr - section.vaddr - head) // step
    symbols = section_table(elf, elf.sections[relocations.link])
    if number < 0 or not 0 < infos[number] >> bits < symbols.count:
        return None
    name = symbols.symbol(infos[number] >> bits).name
    start = section.vaddr + head + number * step
    return Symbol(f"{name}@plt", start, step, STT.FUNC, STB.LOCAL, section.index)


def _infos(elf: Elf, section: Section, most: int) -> list[int]:
    """The r_info of each relocation in `section` (gABI 4.1 "Relocation"); at most `most`."""
    word = elf.header.elf_class // 8
    size = word * (3 if section.type == SHT.RELA else 2)
    data, order = elf.data(section), elf.header.byteorder
    count = min(len(data) // size, most, _MOST_STUBS)
    places = range(word, count * size, size)
    return [int.from_bytes(data[at : at + word], order) for at in places]
