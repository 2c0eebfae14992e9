"""Debug links: an ELF file in, what its sections say of the files that its debug info lies in."""

from __future__ import annotations

import os

from unwind.dwarf.reader import uleb_at
from unwind.errors import FormatError, MissingPackage
from unwind.values import Value

__all__ = ["Alternate", "DebugLink", "alternate_of", "debug_link_of", "supplement_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf

_LONGEST = 8192  # bytes of a section that are looked at: a path, and a number


class DebugLink(Value):
    """.gnu_debuglink: the name of the debug file, which has no directory, and its CRC-32."""

    name: str
    crc: int


class Alternate(Value):
    """The file with what `dwz` found in several debug files: its path and how it is known.

    `build_id` where .gnu_debugaltlink names it, else `checksum` as both files' .debug_sup have it
    (DWARF 5 §7.3.6).
    """

    path: str
    build_id: bytes | None
    checksum: bytes | None = None


def debug_link_of(elf: Elf) -> DebugLink | None:
    """What .gnu_debuglink says; None where there is none, or a name with a directory in it."""
    data = _head(elf, ".gnu_debuglink")
    name, _, _ = data.partition(b"\0")
    at = (len(name) + 4) & ~3
    if not name or b"/" in name or name in (b".", b"..") or at + 4 > len(data):
        return None
    return DebugLink(os.fsdecode(name), int.from_bytes(data[at : at + 4], elf.header.byteorder))


def alternate_of(elf: Elf) -> Alternate | None:
    """What .gnu_debugaltlink says, else .debug_sup of a file that needs another one; or None."""
    name, _, build_id = _head(elf, ".gnu_debugaltlink").partition(b"\0")
    if name and 0 < len(build_id) <= 64:
        return Alternate(os.fsdecode(name), build_id)
    said = supplement_of(elf)
    if said is None or said[0] or not said[1]:
        return None
    return Alternate(os.fsdecode(said[1]), None, said[2])


def supplement_of(elf: Elf) -> tuple[bool, bytes, bytes] | None:
    """.debug_sup: whether this is the supplementary file, the other's name, and the checksum."""
    data = _head(elf, ".debug_sup")
    if len(data) < 5 or int.from_bytes(data[:2], elf.header.byteorder) != 5:
        return None
    name, end, _ = data[3:].partition(b"\0")
    try:
        size, at = uleb_at(data, 3 + len(name) + len(end))
    except (IndexError, ValueError):
        return None
    checksum = data[at : at + size]
    return (bool(data[2]), name, checksum) if end and len(checksum) == size > 0 else None


def _head(elf: Elf, name: str) -> bytes:
    """The first bytes of a section, none where it is missing or damaged."""
    section = elf.section(name)
    if section is None:
        return b""
    try:
        return bytes(elf.data(section)[:_LONGEST])
    except (FormatError, MissingPackage):
        return b""
