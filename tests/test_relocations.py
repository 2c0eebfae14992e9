"""Relocations of CFI: each machine's types."""

from __future__ import annotations

import struct

import pytest

from tests.elves import SHAPES, Sect, Sym, make_elf, symbol_bytes
from unwind.elf import EM, ET, SHT, Elf
from unwind.protocols import ByteOrder
from unwind.relocations import relocated

Shape = tuple[int, ByteOrder]
LE64, BE64, LE32, BE32 = SHAPES
VALUE, ADDEND, PLACE = 0x1230, 0x45, 8


def field(shape: Shape, machine: int, kind: int, size: int, old: int, *, rela: bool = True) -> int:
    """What a relocation of `kind` makes of the `size` bytes at PLACE that held `old`."""
    byteorder = shape[1]
    order = "<" if byteorder == "little" else ">"
    entries, strings = symbol_bytes([Sym("label", VALUE)], shape)
    if shape[0] == 32:
        info, layout = 1 << 8 | kind, "IIi" if rela else "II"
    else:
        info, layout = 1 << 32 | kind, "QQq" if rela else "QQ"
        if machine == EM.MIPS:
            info = int.from_bytes(struct.pack(order + "IBBBB", 1, 0, 0, 0, kind), byteorder)
    relocation = struct.pack(order + layout, PLACE, info, *[ADDEND] * rela)
    contents = bytes(PLACE) + old.to_bytes(size, byteorder) + bytes(8)
    sections = [
        Sect(".eh_frame", data=contents),
        Sect(".rel", SHT.RELA if rela else SHT.REL, relocation, link=3, info=1),
        Sect(".symtab", SHT.SYMTAB, entries, link=4),
        Sect(".strtab", SHT.STRTAB, strings),
    ]
    elf = Elf(make_elf((), sections, shape=shape, type=ET.REL, machine=machine))
    section = elf.section(".eh_frame")
    assert section is not None
    found = bytes(relocated(elf, section))
    assert found[:PLACE] == bytes(PLACE)
    assert found[PLACE + size :] == bytes(8)
    return int.from_bytes(found[PLACE : PLACE + size], byteorder)


@pytest.mark.parametrize(
    ("shape", "machine", "kind", "size"),
    [
        (LE64, EM.X86_64, 1, 8),  # R_X86_64_64
        (LE64, EM.X86_64, 10, 4),  # R_X86_64_32
        (LE32, EM.X86_64, 10, 4),  # in an x32 file
        (LE32, EM.I386, 1, 4),  # R_386_32
        (LE64, EM.AARCH64, 257, 8),  # R_AARCH64_ABS64
        (BE64, EM.AARCH64, 258, 4),  # R_AARCH64_ABS32
        (LE32, EM.ARM, 2, 4),  # R_ARM_ABS32
        (BE32, EM.MIPS, 2, 4),  # R_MIPS_32
        (LE32, EM.MIPS, 2, 4),
        (BE64, EM.MIPS, 18, 8),  # R_MIPS_64
        (LE64, EM.MIPS, 18, 8),
        (LE64, EM.RISCV, 1, 4),  # R_RISCV_32
        (LE64, EM.RISCV, 2, 8),  # R_RISCV_64
        (BE64, EM.PPC64, 38, 8),  # R_PPC64_ADDR64
        (BE32, EM.PPC, 1, 4),  # R_PPC_ADDR32
        (BE64, EM.S390, 22, 8),  # R_390_64
        (BE64, EM.SPARCV9, 54, 8),  # R_SPARC_UA64
        (LE64, EM.LOONGARCH, 2, 8),  # R_LARCH_64
    ],
)
def test_absolute_types_store_symbol_and_addend(
    shape: Shape, machine: int, kind: int, size: int
) -> None:
    assert field(shape, machine, kind, size, 0) == VALUE + ADDEND
    assert field(shape, machine, kind, size, 0x99) == VALUE + ADDEND
    assert field(shape, machine, kind, size, 0x99, rela=False) == VALUE + 0x99


@pytest.mark.parametrize(
    ("shape", "machine", "kind", "size"),
    [
        (LE64, EM.X86_64, 2, 4),  # R_X86_64_PC32
        (LE64, EM.X86_64, 24, 8),  # R_X86_64_PC64
        (LE32, EM.I386, 2, 4),  # R_386_PC32
        (LE64, EM.AARCH64, 260, 8),  # R_AARCH64_PREL64
        (LE64, EM.AARCH64, 261, 4),  # R_AARCH64_PREL32
        (LE32, EM.ARM, 3, 4),  # R_ARM_REL32
        (BE32, EM.MIPS, 248, 4),  # R_MIPS_PC32
        (LE64, EM.RISCV, 57, 4),  # R_RISCV_32_PCREL
        (BE64, EM.PPC64, 26, 4),  # R_PPC64_REL32
        (BE64, EM.S390, 5, 4),  # R_390_PC32
        (LE64, EM.LOONGARCH, 99, 4),  # R_LARCH_32_PCREL
    ],
)
def test_relative_types_subtract_the_place(
    shape: Shape, machine: int, kind: int, size: int
) -> None:
    assert field(shape, machine, kind, size, 0) == VALUE + ADDEND - PLACE


@pytest.mark.parametrize(
    ("machine", "add", "subtract"), [(EM.RISCV, 33, 37), (EM.LOONGARCH, 47, 52)]
)
@pytest.mark.parametrize("step", range(4))
def test_sums_and_differences_change_what_is_there(
    machine: int, add: int, subtract: int, step: int
) -> None:
    size = 1 << step
    if machine == EM.LOONGARCH and step > 1:
        step += 1  # a type of three bytes stands between
    mask = (1 << 8 * size) - 1
    assert field(LE64, machine, add + step, size, 7) == (7 + VALUE + ADDEND) & mask
    assert field(LE64, machine, subtract + step, size, 7) == (7 - VALUE - ADDEND) & mask


def test_riscv_sets_and_subtracts_six_bits_of_an_advance_loc() -> None:
    assert field(LE64, EM.RISCV, 53, 1, 0x40) == 0x40 | (VALUE + ADDEND) & 0x3F
    assert field(LE64, EM.RISCV, 52, 1, 0x6A) == 0x40 | (0x2A - VALUE - ADDEND) & 0x3F
    assert field(LE64, EM.RISCV, 54, 1, 0x40) == (VALUE + ADDEND) & 0xFF


def test_unknown_types_and_machines_change_nothing() -> None:
    assert field(LE64, EM.X86_64, 77, 8, 0x99) == 0x99
    assert field(LE64, 4711, 1, 8, 0x99) == 0x99


@pytest.mark.parametrize("where", [9, 17, 1 << 63])
def test_relocations_beyond_the_section_change_nothing(where: int) -> None:
    relocation = struct.pack("<QQq", where, 1 << 32 | 1, 1)
    sections = [
        Sect(".eh_frame", data=bytes(16)),
        Sect(".rela", SHT.RELA, relocation, info=1, link=9),
    ]
    elf = Elf(make_elf((), sections, type=ET.REL))
    assert bytes(relocated(elf, elf.sections[1])) == bytes(16)


def test_symbols_beyond_the_table_change_nothing() -> None:
    relocation = struct.pack("<QQq", 0, 7 << 32 | 1, 1)
    sections = [
        Sect(".eh_frame", data=bytes(16)),
        Sect(".rela", SHT.RELA, relocation, info=1, link=0),
    ]
    elf = Elf(make_elf((), sections, type=ET.REL))
    assert bytes(relocated(elf, elf.sections[1])) == bytes(16)


def test_a_linked_file_is_as_it_is() -> None:
    relocation = struct.pack("<QQq", 0, 1, 1)
    sections = [Sect(".eh_frame", data=bytes(16)), Sect(".rela", SHT.RELA, relocation, info=1)]
    elf = Elf(make_elf((), sections, type=ET.DYN))
    assert bytes(relocated(elf, elf.sections[1])) == bytes(16)
