"""Debug sections: an ELF file in, the contents of its .debug_* sections by name out."""

from __future__ import annotations

from unwind.elf import ET
from unwind.errors import FormatError

__all__ = ["Contribution", "Sections", "has_debug_info", "text_at"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.elf import Elf
    from unwind.protocols import ByteOrder

_LONGEST_TEXT = 1 << 16


def has_debug_info(elf: Elf) -> bool:
    """Whether the file itself has the means to tell lines."""
    return elf.section(".debug_info") is not None and elf.section(".debug_line") is not None


class Sections:
    """The debug sections of a file, each unpacked when it is first asked for, and kept.

    With `suffix` those called so: `.dwo` are the sections of split units (DWARF 5 §7.3.2).
    """

    def __init__(self, elf: Elf, suffix: str = ""):
        self.elf = elf
        self.suffix = suffix
        self._known: dict[str, memoryview] = {}

    @property
    def byteorder(self) -> ByteOrder:
        """Of all numbers in the sections."""
        return self.elf.header.byteorder

    @property
    def path(self) -> str:
        """The file's path, for errors."""
        return self.elf.path

    def get(self, name: str) -> memoryview:
        """The contents of `.debug_NAME`, empty where there is no such section.

        Raises what `Elf.data` raises: FormatError, MissingPackage.
        """
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._read(f".debug_{name}{self.suffix}")
        return known

    def _read(self, name: str) -> memoryview:
        section = self.elf.section(name)
        if section is None:
            return memoryview(b"")
        if self.elf.header.type != ET.REL:
            return self.elf.data(section)
        from unwind.relocations import relocated

        return relocated(self.elf, section)

    def error(self, reason: str, name: str, offset: int | None = None) -> FormatError:
        """A FormatError that names a place in `.debug_NAME`."""
        return FormatError(reason, f"{self.path}: .debug_{name}{self.suffix}", offset)

    def text(self, name: str, offset: int) -> str:
        """The string at `offset` of `.debug_NAME`; FormatError where there is none."""
        found = text_at(self.get(name), offset)
        if found is None:
            raise self.error("no string", name, offset)
        return found


class Contribution(Sections):
    """What one unit has of a package of split units: `parts` are (offset, size) by name."""

    def __init__(self, whole: Sections, parts: Mapping[str, tuple[int, int]]):
        super().__init__(whole.elf, whole.suffix)
        self._whole, self._parts = whole, parts

    def get(self, name: str) -> memoryview:
        """The unit's own part; strings are all units'."""
        found = self._whole.get(name)
        if name == "str":
            return found
        offset, size = self._parts.get(name, (0, 0))
        return found[offset : offset + size]


def text_at(data: memoryview | bytes, offset: int) -> str | None:
    """The string that begins at `offset`, up to its zero byte; None where none ends."""
    for size in (256, _LONGEST_TEXT):
        raw = bytes(data[offset : offset + size])
        end = raw.find(0)
        if end >= 0:
            return raw[:end].decode("utf-8", "surrogateescape")
    return None
