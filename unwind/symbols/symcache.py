"""Lines and inlined functions by `symbolic`, which keeps what it finds on disk, by build-id.

Its SymCache answers a thousand places in 30 ms where debug info itself takes seconds. It tells no
columns, and paths without `.` and `..` in them.
"""

from __future__ import annotations

import os

from unwind.errors import MissingPackage, UnwindError
from unwind.lines.location import Location
from unwind.lines.split import split_name
from unwind.lines.units import unit_at
from unwind.symbols.debug_info import DebugSymbolizer, debug_info_of

__all__ = ["SymbolicSymbolizer", "cache_directory", "is_installed"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unwind.files import Files
    from unwind.image import Image


def is_installed() -> bool:
    """Whether the package is there."""
    from importlib.util import find_spec

    return find_spec("symbolic") is not None


def cache_directory() -> str:
    """Where the caches lie: one file for each build-id and version of the format."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "unwind", "symcache")


class SymbolicSymbolizer(DebugSymbolizer):
    """As DebugSymbolizer, and asks that one where `symbolic` knows nothing.

    MissingPackage where the package is not installed.
    """

    def __init__(self, files: Files | None = None, directory: str | None = None):
        super().__init__(files)
        try:
            import symbolic.debuginfo
            import symbolic.symcache
        except ImportError:
            raise MissingPackage("symbolic", "--symbolizer symbolic", "symbols") from None
        self._archive: Any = symbolic.debuginfo.Archive
        self._format: Any = symbolic.symcache.SymCache
        self._version = symbolic.symcache.SYMCACHE_LATEST_VERSION
        self._error: Any = symbolic.exceptions.SymbolicError
        self._directory = directory or cache_directory()
        self._caches: dict[Image, Any] = {}

    def locations(self, image: Image, vaddr: int) -> tuple[Location, ...]:
        """As of DebugSymbolizer, without columns."""
        if image.told is not None:
            return super().locations(image, vaddr)
        if image not in self._caches:
            self._caches[image] = self._cache_of(image)
        cache = self._caches[image]
        if cache is None:
            return super().locations(image, vaddr)
        if vaddr < _load_address(image):
            return ()
        try:
            found = cache.lookup(vaddr - _load_address(image))
        except self._error:
            found = []
        # Between functions and in some parts of them it misses lines that are there (13.9: one
        # place in a hundred of libc), and tells the nearest symbol, or nothing.
        if not any(place.line for place in found):
            return super().locations(image, vaddr)
        return tuple(
            Location(place.symbol or None, _path(place.full_path), place.line or None, None)
            for place in found
        )

    def _cache_of(self, image: Image) -> Any:
        """The cache of an image, made where there is none yet; None where it cannot serve."""
        owner = debug_info_of(image)
        if owner is None or not owner.path:
            return None
        build_id = owner.build_id
        path = ""
        if build_id is not None:
            name = f"{build_id.hex()}.{self._version}.symcache"
            path = os.path.join(self._directory, name)
            try:
                if os.stat(path).st_uid == os.geteuid():
                    return self._format.open(path)
            except (OSError, self._error):  # none yet, or damaged: it is made anew
                pass
        if _has_parts_elsewhere(owner):
            return None
        try:
            archive = self._archive.open(owner.path)
            [made] = [
                found.make_symcache()
                for found in archive.iter_objects()
                if build_id is None or found.code_id == build_id.hex()
            ]
        except (self._error, ValueError):
            return None
        if path:
            _keep(made, path)
        return made


def _load_address(image: Image) -> int:
    """What the cache counts from: where the first segment of a program that is no PIE lies."""
    return image.segments[0].vaddr if image.segments else 0


def _has_parts_elsewhere(owner: Image) -> bool:
    """Whether debug info leads to other files, which `symbolic` would not find as we do."""
    elf = owner.elf
    if elf.section(".gnu_debugaltlink") is not None or elf.section(".debug_sup") is not None:
        return True
    from unwind.lines.sections import Sections

    try:
        return split_name(unit_at(Sections(elf), 0)) is not None
    except UnwindError:
        return True  # damaged: the one that tells what of it


def _path(path: str | None) -> str | None:
    """A path as symbolic tells it, without what it says twice.

    Of a unit of DWARF 5 whose directory is relative, 13.9 puts that in front of itself.
    """
    if not path or path.startswith("/"):
        return path or None
    parts = path.split("/")
    for size in range(len(parts) // 2, 0, -1):
        if parts[:size] == parts[size : 2 * size]:
            return "/".join(parts[size:])
    return path


def _keep(cache: Any, path: str) -> None:
    """Write a cache whole or not at all; where that cannot be, nothing is lost."""
    part = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            cache.dump_into(file)
        os.replace(part, path)
    except OSError:
        try:
            os.unlink(part)
        except OSError:
            pass
