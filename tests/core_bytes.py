"""Just enough of an ELF core to check what the kernel wrote, and to damage it (x86_64)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD."""

    offset: int
    start: int
    size: int


@dataclass(frozen=True)
class Note:
    """An ELF note and where its type stands in the file."""

    type: int
    type_at: int
    name: bytes
    description: bytes


def segments(core: bytes | bytearray) -> Iterator[Segment]:
    """What the core has of memory."""
    for kind, offset, vaddr, filesz in _program_headers(core):
        if kind == 1:  # PT_LOAD
            yield Segment(offset, vaddr, filesz)


def notes(core: bytes | bytearray) -> Iterator[Note]:
    """The notes of an x86_64 core."""
    for kind, at, _, filesz in _program_headers(core):
        if kind != 4:  # PT_NOTE
            continue
        end = at + filesz
        while at < end:
            namesz, descsz, type_ = struct.unpack_from("<3I", core, at)
            name_at = at + 12
            desc_at = name_at + (namesz + 3 & -4)
            name = bytes(core[name_at : name_at + namesz]).rstrip(b"\0")
            yield Note(type_, at + 8, name, bytes(core[desc_at : desc_at + descsz]))
            at = desc_at + (descsz + 3 & -4)


def registers(core: bytes | bytearray) -> dict[int, tuple[int, int]]:
    """tid -> (pc, sp), in the order of the core's NT_PRSTATUS notes."""
    return {
        # Linux include/linux/elfcore.h: pr_pid at 32, user_regs_struct at 112
        struct.unpack_from("<i", note.description, 32)[0]: (
            struct.unpack_from("<Q", note.description, 112 + 16 * 8)[0],
            struct.unpack_from("<Q", note.description, 112 + 19 * 8)[0],
        )
        for note in notes(core)
        if note.type == 1 and note.name == b"CORE"
    }


def _program_headers(core: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    (phoff,) = struct.unpack_from("<Q", core, 0x20)
    (phnum,) = struct.unpack_from("<H", core, 0x38)
    for index in range(phnum):
        kind, _, offset, vaddr, _, filesz = struct.unpack_from("<2I4Q", core, phoff + index * 56)
        yield kind, offset, vaddr, filesz
