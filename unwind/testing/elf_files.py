"""Small ELF files: sections, segments and symbols in, the bytes of a file out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unwind.elf import EM, ET, PT, SHT

if TYPE_CHECKING:
    from unwind.protocols import ByteOrder

__all__ = [
    "SHAPES",
    "Sect",
    "Seg",
    "Sym",
    "make_elf",
    "symbol_bytes",
    "with_symbols",
    "without_sections",
]

# Class and byte order.
SHAPES: list[tuple[int, ByteOrder]] = [(64, "little"), (64, "big"), (32, "little"), (32, "big")]


@dataclass(frozen=True)
class Sect:
    """A section to put into a file; `size` and `offset` where it is to claim others than it has."""

    name: str
    type: int = SHT.PROGBITS
    data: bytes = b""
    vaddr: int = 0
    flags: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    size: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Seg:
    """A segment to put into a file: its bytes, and what is to be claimed other than they have."""

    type: int = PT.LOAD
    data: bytes = b""
    vaddr: int = 0
    flags: int = 5
    align: int = 4096
    file_size: int | None = None
    memory_size: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Sym:
    """A symbol to put into a table."""

    name: str
    value: int
    size: int = 0
    kind: int = 2  # STT_FUNC
    binding: int = 1  # STB_GLOBAL
    section: int = 1


def make_elf(
    segments: Sequence[Seg] = (),
    sections: Sequence[Sect] = (),
    *,
    shape: tuple[int, ByteOrder] = (64, "little"),
    type: int = ET.EXEC,
    machine: int = EM.X86_64,
    flags: int = 0,
    phnum: int | None = None,
    phentsize: int | None = None,
    section_zero: tuple[int, int, int] = (0, 0, 0),
) -> bytes:
    """A file of these segments and sections; a name table and section 0 are added.

    `section_zero` are its sh_size, sh_link and sh_info, for numbers that the header has no room
    for (those of sections go there by themselves); `phnum` and `phentsize` are what the header
    claims.
    """
    elf_class, byteorder = shape
    order = "<" if byteorder == "little" else ">"
    head, program, section = (64, 56, 64) if elf_class == 64 else (52, 32, 40)
    stride = max(phentsize or program, program)
    names = b"\0" + b"".join(s.name.encode() + b"\0" for s in sections) + b".shstrtab\0"
    listed = [*sections, Sect(".shstrtab", SHT.STRTAB, names)] if sections else []
    body, where = bytearray(), []
    base = head + stride * len(segments)
    for contents in [seg.data for seg in segments] + [sect.data for sect in listed]:
        where.append(base + len(body))
        body += contents
    body += bytes(-(base + len(body)) % 8)
    shoff = base + len(body) if listed or any(section_zero) else 0

    table = bytearray()
    for seg, offset in zip(segments, where, strict=False):
        stored = len(seg.data) if seg.file_size is None else seg.file_size
        memory = stored if seg.memory_size is None else seg.memory_size
        offset = offset if seg.offset is None else seg.offset
        if elf_class == 64:
            wide = (seg.type, seg.flags, offset, seg.vaddr, 0, stored, memory, seg.align)
            row = struct.pack(order + "IIQQQQQQ", *wide)
        else:
            small = (seg.type, offset, seg.vaddr, 0, stored, memory, seg.flags, seg.align)
            row = struct.pack(order + "8I", *small)
        table += row.ljust(stride, b"\xee")
    count, last = len(listed) + 1 if listed else 0, len(listed)
    if count >= 0xFF00:
        section_zero, count, last = (count, last, section_zero[2]), 0, 0xFFFF
    headers = bytearray()
    if shoff:
        layout = order + ("IIQQQQIIQQ" if elf_class == 64 else "10I")
        size, link, info = section_zero
        headers += struct.pack(layout, 0, 0, 0, 0, 0, size, link, info, 0, 0)
        name = 1
        for sect, offset in zip(listed, where[len(segments) :], strict=True):
            size = len(sect.data) if sect.size is None else sect.size
            offset = offset if sect.offset is None else sect.offset
            numbers = (name, sect.type, sect.flags, sect.vaddr, offset, size)
            headers += struct.pack(layout, *numbers, sect.link, sect.info, sect.align, 0)
            name += len(sect.name) + 1
    ident = b"\x7fELF" + bytes([elf_class // 32, 1 if byteorder == "little" else 2, 1]) + bytes(9)
    fields = (
        *(type, machine, 1, 0, head if segments else 0, shoff, flags, head),
        *(phentsize or program, len(segments) if phnum is None else phnum),
        *(section, count, last),
    )
    packed = struct.pack(order + ("HHIQQQIHHHHHH" if elf_class == 64 else "HHIIIIIHHHHHH"), *fields)
    return bytes(ident + packed + table + body + headers)


def symbol_bytes(
    symbols: Sequence[Sym], shape: tuple[int, ByteOrder] = (64, "little")
) -> tuple[bytes, bytes]:
    """The contents of a symbol table, null symbol included, and of its string table."""
    order = "<" if shape[1] == "little" else ">"
    entries, strings = bytearray(24 if shape[0] == 64 else 16), bytearray(b"\0")
    for symbol in symbols:
        at, info = len(strings), symbol.binding << 4 | symbol.kind
        strings += symbol.name.encode("utf-8", "surrogateescape") + b"\0"
        value, size, section = symbol.value, symbol.size, symbol.section
        if shape[0] == 64:
            entries += struct.pack(order + "IBBHQQ", at, info, 0, section, value, size)
        else:
            entries += struct.pack(order + "IIIBBH", at, value, size, info, 0, section)
    return bytes(entries), bytes(strings)


def with_symbols(symbols: Sequence[Sym], *more: Sect, **options: object) -> bytes:
    """A file with .text from 0x1000 to 0x9000 as section 1, and .symtab; local symbols first."""
    ordered = sorted(symbols, key=lambda symbol: symbol.binding != 0)
    entries, strings = symbol_bytes(ordered, options.get("shape", (64, "little")))  # type: ignore[arg-type]
    first = 1 + sum(symbol.binding == 0 for symbol in symbols)
    sections = [
        Sect(".text", SHT.PROGBITS, b"\x90" * 0x8000, 0x1000, 6),
        Sect(".symtab", SHT.SYMTAB, entries, link=3, info=first),
        Sect(".strtab", SHT.STRTAB, strings),
    ]
    return make_elf((), [*sections, *more], **options)  # type: ignore[arg-type]


def without_sections(data: bytes) -> bytes:
    """The same file as one whose section headers were cut off."""
    cut = bytearray(data)
    shoff, width, counts = (40, 8, 58) if data[4] == 2 else (32, 4, 46)
    cut[shoff : shoff + width] = bytes(width)
    cut[counts : counts + 6] = bytes(6)
    return bytes(cut)
