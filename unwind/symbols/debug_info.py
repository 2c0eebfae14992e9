"""Names, lines and inlined functions from debug info: the built-in Symbolizer."""

from __future__ import annotations

from unwind.elf import SHF
from unwind.symbols.table import TableSymbolizer

__all__ = ["DebugSymbolizer", "debug_info_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf
    from unwind.files import Files
    from unwind.image import Image
    from unwind.lines.location import Location
    from unwind.lines.lookup import Lines
    from unwind.lines.units import Unit

# Bytes of .debug_info and .debug_line. All units of so much are read in 0.1 s, those of a stack in
# some milliseconds; most programs of one's own have less, libraries with debug info more.
_CHEAP = 1 << 18


class DebugSymbolizer(TableSymbolizer):
    """Names places by symbol tables, and tells their lines by the debug info of their image.

    That is in the image itself or in its separate debug file; `files` finds what these lead to.
    An image is read when a place in it is asked for, one unit of it at a time. With `cheap` only
    small debug info is looked at, that nobody has to search or to unpack.
    """

    def __init__(self, files: Files | None = None, cheap: bool = False):
        super().__init__()
        self._files, self._cheap = files, cheap
        self._lines: dict[Image, Lines | None] = {}

    def locations(self, image: Image, vaddr: int) -> tuple[Location, ...]:
        """The places in source of `vaddr`: the innermost inlined call first, the function last.

        () where the image has no debug info of it.
        """
        if image.told is not None:
            return image.told.locations(vaddr)
        if image not in self._lines:
            wanted = not self._cheap or _is_cheap(image.elf)
            self._lines[image] = self._opened(image) if wanted else None
        lines = self._lines[image]
        return lines.at(vaddr) if lines is not None else ()

    @property
    def problems(self) -> dict[str, None]:
        """A sentence for each kind of damage that was met."""
        return {text: None for lines in self._lines.values() if lines for text in lines.problems}

    def _opened(self, image: Image) -> Lines | None:
        from unwind.lines.lookup import Lines

        owner, files = debug_info_of(image), self._files
        if owner is None:
            return None
        elf = owner.elf
        if files is None:
            return Lines(elf)
        return Lines(elf, lambda: files.alternate(elf), _Split(files, image, owner))


def _is_cheap(elf: Elf) -> bool:
    """Whether an image has so little debug info itself that nobody minds if it is read."""
    found = [elf.section(name) for name in (".debug_info", ".debug_line")]
    sizes = [section.size for section in found if section is not None]
    return (
        len(sizes) == 2
        and sum(sizes) <= _CHEAP
        and not any(
            section.flags & SHF.COMPRESSED or section.name.startswith(".z")
            for section in found
            if section is not None
        )
    )


def debug_info_of(image: Image) -> Image | None:
    """The image itself or its separate debug file, whichever has debug info; None: neither."""
    from unwind.lines.sections import has_debug_info

    if has_debug_info(image.elf):
        return image
    debug = image.debug
    return debug if debug is not None and has_debug_info(debug.elf) else None


class _Split:
    """Finds the other part of units of `image`, whose debug info `owner` has."""

    def __init__(self, files: Files, image: Image, owner: Image):
        self._files, self._image, self._owner = files, image, owner
        self._packages: list[Elf] | None = None

    def __call__(self, skeleton: Unit) -> Unit | None:
        from unwind.lines.constants import DW_AT
        from unwind.lines.split import split_name, unit_in_file, unit_in_package

        if self._packages is None:
            owners = {image.path: image for image in (self._image, self._owner) if image.path}
            found = [self._files.split_package(o.elf, path) for path, o in owners.items() if path]
            self._packages = [elf for elf in found if elf is not None]
        for package in self._packages:
            unit = unit_in_package(skeleton, package)
            if unit is not None:
                return unit
        name = split_name(skeleton)
        if name is None:
            return None
        folder = skeleton.text(DW_AT.comp_dir) or ""
        elf = self._files.split_unit(self._image, name, folder)
        return unit_in_file(skeleton, elf) if elf is not None else None
