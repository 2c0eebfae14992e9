"""Relocations of CFI in relocatable files: a section in, its contents as linked at 0 out.

Only those that assemblers write for .eh_frame and .debug_frame, and done as readelf does them:
every section begins at 0, so an address comes out relative to the section of its code.
"""

from __future__ import annotations

from struct import Struct

from unwind.elf import EM, ET, SHT

__all__ = ["relocated"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.elf import Elf, Section

    Relocation = tuple[int, int, int, int | None]  # offset, type, symbol, addend if it has one

# How each type changes the bytes it is for: an operation and a size, by machine (e_machine). The
# numbers are those of each processor supplement to the gABI.
_ABS, _PC, _ADD, _SUB, _SET = "absolute", "relative", "add", "subtract", "set"
_LARGEST = 1 << 28  # bytes of CFI in one object file
_SIX_BITS = 6  # as a size: the low six bits of a byte, the operand of DW_CFA_advance_loc
_SPARC = {3: (_ABS, 4), 6: (_PC, 4), 23: (_ABS, 4), 32: (_ABS, 8), 46: (_PC, 8), 54: (_ABS, 8)}
_TYPES: dict[int, dict[int, tuple[str, int]]] = {
    EM.SPARC: _SPARC,
    EM.I386: {1: (_ABS, 4), 2: (_PC, 4)},
    EM.M68K: {1: (_ABS, 4), 4: (_PC, 4)},
    EM.MIPS: {2: (_ABS, 4), 18: (_ABS, 8), 248: (_PC, 4)},
    EM.SPARC32PLUS: _SPARC,
    EM.PPC: {1: (_ABS, 4), 26: (_PC, 4)},
    EM.PPC64: {1: (_ABS, 4), 26: (_PC, 4), 38: (_ABS, 8), 44: (_PC, 8)},
    EM.S390: {4: (_ABS, 4), 5: (_PC, 4), 22: (_ABS, 8), 23: (_PC, 8)},
    EM.ARM: {2: (_ABS, 4), 3: (_PC, 4)},
    EM.SH: {1: (_ABS, 4), 2: (_PC, 4)},
    EM.SPARCV9: _SPARC,
    # R_X86_64_64, _PC32, _PLT32, _32, _32S, _PC64
    EM.X86_64: {1: (_ABS, 8), 2: (_PC, 4), 4: (_PC, 4), 10: (_ABS, 4), 11: (_ABS, 4), 24: (_PC, 8)},
    EM.AARCH64: {257: (_ABS, 8), 258: (_ABS, 4), 260: (_PC, 8), 261: (_PC, 4)},
    # RISC-V and LoongArch: lengths stay open until the linker has relaxed the code, so they too
    # are sums and differences of labels.
    EM.RISCV: {1: (_ABS, 4), 2: (_ABS, 8), 57: (_PC, 4)}
    | {33: (_ADD, 1), 34: (_ADD, 2), 35: (_ADD, 4), 36: (_ADD, 8)}
    | {37: (_SUB, 1), 38: (_SUB, 2), 39: (_SUB, 4), 40: (_SUB, 8), 52: (_SUB, _SIX_BITS)}
    | {53: (_SET, _SIX_BITS), 54: (_SET, 1), 55: (_SET, 2), 56: (_SET, 4)},
    EM.LOONGARCH: {1: (_ABS, 4), 2: (_ABS, 8), 99: (_PC, 4), 109: (_PC, 8)}
    | {47: (_ADD, 1), 48: (_ADD, 2), 50: (_ADD, 4), 51: (_ADD, 8), 105: (_ADD, _SIX_BITS)}
    | {52: (_SUB, 1), 53: (_SUB, 2), 55: (_SUB, 4), 56: (_SUB, 8), 106: (_SUB, _SIX_BITS)},
    EM.ALPHA: {1: (_ABS, 4), 2: (_ABS, 8), 10: (_PC, 4), 11: (_PC, 8)},
}


def relocated(elf: Elf, section: Section) -> memoryview:
    """The contents of `section` with its relocations applied.

    As they are in a file that is not ET_REL, and where the machine's relocations are not known
    here. Raises what `Elf.data` raises.
    """
    contents = elf.data(section)
    types = _TYPES.get(elf.header.machine)
    if elf.header.type != ET.REL or types is None:
        return contents
    found = bytearray(contents[:_LARGEST])
    for entries in elf.sections:
        if entries.type in (SHT.RELA, SHT.REL) and entries.info == section.index:
            # Two for a place, a sum and a difference, are the most; a sparse file may claim more.
            table = elf.data(entries)[: 48 * len(found)]
            relocations = _read(elf, table, entries.type == SHT.RELA)
            _apply(found, relocations, _symbol_values(elf, entries.link), types, elf)
    return memoryview(found)


def _read(elf: Elf, entries: memoryview, addends: bool) -> Iterator[Relocation]:
    """The entries of an SHT_RELA (`addends`) or SHT_REL section (gABI 4.1 "Relocation")."""
    header = elf.header
    order = "<" if header.byteorder == "little" else ">"
    if header.elf_class == 64:
        record = Struct(order + ("QQq" if addends else "QQ"))
    else:
        record = Struct(order + ("IIi" if addends else "II"))
    whole = entries[: len(entries) // record.size * record.size]
    for offset, info, *rest in record.iter_unpack(whole):
        addend = rest[0] if rest else None
        if header.elf_class == 32:
            yield offset, info & 0xFF, info >> 8, addend
        elif header.machine == EM.MIPS:
            # 64-bit MIPS: a symbol of four bytes, then four of types, of which the last counts.
            fields = info.to_bytes(8, header.byteorder)
            yield offset, fields[7], int.from_bytes(fields[:4], header.byteorder), addend
        else:
            yield offset, info & 0xFFFF_FFFF, info >> 32, addend


def _apply(
    found: bytearray,
    relocations: Iterable[Relocation],
    value_of: Callable[[int], int | None],
    types: dict[int, tuple[str, int]],
    elf: Elf,
) -> None:
    """Change `found`; what is of an unknown type, of no symbol or outside is left out."""
    byteorder = elf.header.byteorder
    for offset, kind, symbol, addend in relocations:
        operation, size = types.get(kind, ("", 0))
        value = value_of(symbol) if operation else None
        width = 1 if size == _SIX_BITS else size
        if value is None or offset + width > len(found):
            continue
        mask = 0x3F if size == _SIX_BITS else (1 << 8 * width) - 1
        old = int.from_bytes(found[offset : offset + width], byteorder)
        value += old if addend is None else addend
        if operation == _PC:
            value -= offset
        elif operation == _ADD:
            value += old
        elif operation == _SUB:
            value = old - value
        word = (old & ~mask) | (value & mask)
        found[offset : offset + width] = word.to_bytes(width, byteorder)


def _symbol_values(elf: Elf, link: int) -> Callable[[int], int | None]:
    """Gives the st_value of a symbol of section `link`; None beyond its end.

    Nothing is resolved: what other files define has the value 0, as readelf has it.
    """
    data = elf.data(elf.sections[link]) if link < len(elf.sections) else memoryview(b"")
    order = "<" if elf.header.byteorder == "little" else ">"
    record = Struct(order + ("8xQ8x" if elf.header.elf_class == 64 else "4xI8x"))

    def value_of(number: int) -> int | None:
        at = number * record.size
        return record.unpack_from(data, at)[0] if at + record.size <= len(data) else None

    return value_of
