"""Maps of code that was made at run time (/tmp/perf-PID.map) in, names of its addresses out."""

from __future__ import annotations

import os
from bisect import bisect_right
from stat import S_ISREG

__all__ = ["JitMaps"]

_MOST_BYTES = 1 << 28  # of one map
_MOST_MAPS = 256  # that are kept


class JitMaps:
    """The maps that processes left in `directory`, each read when first asked for.

    A map has a line for each piece of code: start and size in hexadecimal, and the name (Linux
    v6.13 tools/perf/Documentation/jit-interface.txt). Where code took the place of other code the
    later line counts. `pattern` is the path with `%d` for the pid.
    """

    def __init__(self, pattern: str = "/tmp/perf-%d.map"):
        self.pattern = pattern
        self._maps: dict[int, tuple[list[int], list[tuple[int, str]]]] = {}

    def path(self, pid: int) -> str:
        """Where the map of a process lies."""
        return self.pattern.replace("%d", str(pid))

    def forget(self, pid: int) -> None:
        """Keep the map of a process no longer."""
        self._maps.pop(pid, None)

    def find(self, pid: int, address: int) -> tuple[str, int] | None:
        """The name of the code at `address`, and the offset in it."""
        known = self._maps.get(pid)
        if known is None:
            if len(self._maps) >= _MOST_MAPS:
                self._maps.clear()
            known = self._maps[pid] = _read(self.path(pid))
        starts, entries = known
        at = bisect_right(starts, address) - 1
        if at < 0 or address >= entries[at][0]:
            return None
        return entries[at][1], address - starts[at]


def _read(path: str) -> tuple[list[int], list[tuple[int, str]]]:
    """Starts, and for each the end and the name; nothing where there is no map to be had."""
    symbols: dict[int, tuple[int, str]] = {}
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not S_ISREG(os.fstat(handle).st_mode):
                return [], []
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return [], []
    for line in lines:
        words = line.split(None, 2)
        try:
            start, size = int(words[0], 16), int(words[1], 16)
            symbols[start] = start + size, os.fsdecode(words[2])
        except (ValueError, IndexError):
            continue
    starts = sorted(symbols)
    return starts, [symbols[start] for start in starts]
