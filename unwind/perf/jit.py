"""Code that was made at run time, by its maps and dumps, in; the names of its addresses out."""

from __future__ import annotations

import os
from bisect import bisect_right
from stat import S_ISREG

from unwind.errors import FormatError
from unwind.files import resolve

__all__ = ["JitMaps"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from unwind.space import Region

    Known: TypeAlias = tuple[list[int], list[tuple[int, str]]]

_MOST_BYTES = 1 << 28  # of one map
_MOST_MAPS = 256  # that are kept


class JitMaps:
    """The maps and dumps that processes left, each read when first asked for.

    A map (/tmp/perf-PID.map) has a line for each piece of code: start and size in hexadecimal, and
    the name (Linux v6.13 tools/perf/Documentation/jit-interface.txt). Where code took the place of
    other code the later line counts. `pattern` is the path with `%d` for the pid. A dump
    (jit-PID.dump) lies where the process has mapped it from, which is how perf tells of it, below
    `root`.
    """

    def __init__(self, pattern: str = "/tmp/perf-%d.map", root: str = ""):
        self.pattern, self.root = pattern, root
        self._maps: dict[int, Known] = {}
        self._dumps: dict[int, str] = {}

    def path(self, pid: int) -> str:
        """Where the map of a process lies, or its dump where that was read."""
        return self._dumps.get(pid) or self.pattern.replace("%d", str(pid))

    def forget(self, pid: int) -> None:
        """Keep the map of a process no longer."""
        self._maps.pop(pid, None)
        self._dumps.pop(pid, None)

    def find(
        self, pid: int, address: int, regions: Iterable[Region] = ()
    ) -> tuple[str, int] | None:
        """The name of the code at `address`, and the offset in it.

        `regions` are the process' mappings, of which one may be of its dump.
        """
        known = self._maps.get(pid)
        if known is None:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
                self._dumps.clear()
            known = self._maps[pid] = self._read(pid, regions)
        starts, entries = known
        at = bisect_right(starts, address) - 1
        if at < 0 or address >= entries[at][0]:
            return None
        return entries[at][1], address - starts[at]

    def _read(self, pid: int, regions: Iterable[Region]) -> Known:
        """Starts, and for each the end and the name: of the dump if there is one."""
        symbols = _symbols(self.path(pid))
        # In a container the process knows itself by another id.
        names = (each.name for each in regions if each.name.endswith(".dump"))
        path = next((name for name in names if "/jit-" in name), None)
        if path is not None:
            try:
                found = _symbols(resolve(self.root, path) if self.root else path)
            except OSError:  # its links go round in circles
                found = {}
            if found:
                self._dumps[pid] = path
                symbols |= found
        starts = sorted(symbols)
        return starts, [symbols[start] for start in starts]


def _symbols(path: str) -> dict[int, tuple[int, str]]:
    """The end and the name of each piece of code by its start, of a map or a dump."""
    data = _contents(path)
    if data[:4] not in (b"JiTD", b"DTiJ"):
        return _of_map(data)
    from unwind.perf.jitdump import jit_symbols

    try:
        return jit_symbols(data)
    except FormatError:
        return {}


def _contents(path: str) -> bytes:
    """What is in a file, nothing where there is none to be had."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            if S_ISREG(status.st_mode):  # `read` makes room for all that it is asked for
                return file.read(min(status.st_size, _MOST_BYTES))
    except (OSError, ValueError):
        pass
    return b""


def _of_map(data: bytes) -> dict[int, tuple[int, str]]:
    symbols: dict[int, tuple[int, str]] = {}
    for line in data.splitlines():
        words = line.split(None, 2)
        try:
            start, size = int(words[0], 16), int(words[1], 16)
            symbols[start] = start + size, os.fsdecode(words[2])
        except (ValueError, IndexError):
            continue
    return symbols
