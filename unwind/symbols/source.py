"""Lines of code: a path as the compiler wrote it and a number in, the line itself out."""

from __future__ import annotations

import os
from stat import S_ISREG

from unwind.files import resolve

__all__ = ["SourceFiles"]

_LARGEST = 1 << 24  # bytes of a source file; generated ones have some megabytes
_LONGEST = 200  # characters of a line that are shown
_MOST_FILES = 100


class SourceFiles:
    """The source files below `root`, each read when a line of it is first asked for.

    Paths come from debug info, which may be made by anyone: only regular files are opened, and
    with a root none outside it.
    """

    def __init__(self, root: str | None = None):
        self._root = root or ""
        self._known: dict[str, list[bytes]] = {}

    def line(self, path: str, number: int) -> str | None:
        """Line `number` of the file at `path`, without its indentation; None if it is not there."""
        lines = self._known.get(path)
        if lines is None:
            if len(self._known) >= _MOST_FILES:
                self._known.clear()
            lines = self._known[path] = self._read(path)
        if not 1 <= number <= len(lines):
            return None
        return lines[number - 1].strip().decode("utf-8", "surrogateescape")[:_LONGEST]

    def _read(self, path: str) -> list[bytes]:
        try:
            real = resolve(self._root, path) if self._root else path
            if not S_ISREG(os.stat(real).st_mode):  # before `open`: that alone may wake a device
                return []
            with open(real, "rb", opener=_open) as file:
                if not S_ISREG(os.fstat(file.fileno()).st_mode):
                    return []
                return file.read(_LARGEST).splitlines()
        except (OSError, ValueError):
            return []


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
