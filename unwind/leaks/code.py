"""Where code lies: /proc/PID in, a few stretches that hold all of it out."""

from __future__ import annotations

import os

from unwind.live.proc import Proc
from unwind.values import Value

__all__ = ["Code", "code_of", "stretches"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unwind.live.proc import Mapped

_VSYSCALL = 1 << 63  # it lies above, and nothing returns there
_TRIES = 5


class Code(Value):
    """The stretches [start, end) in which a process may run code, ascending.

    `pages` is what the kernel counts of them, in mm->exec_vm: another count means other code.
    `mapped` is what lies there.
    """

    pages: int
    stretches: tuple[tuple[int, int], ...]
    mapped: frozenset[Mapped]


def code_of(pid: int, most: int) -> Code | None:
    """At most so many stretches; None where it ends, or maps one library after the other."""
    try:
        with Proc(pid) as proc:
            for _ in range(_TRIES):
                before = _pages(proc)
                found = [
                    entry
                    for entry in proc.mappings()
                    if entry.executable and entry.start < _VSYSCALL
                ]
                if found and before == _pages(proc):
                    ranges = [(entry.start, entry.end) for entry in found]
                    return Code(before, stretches(ranges, most), frozenset(found))
    except OSError:
        pass
    return None


def stretches(ranges: Iterable[tuple[int, int]], most: int) -> tuple[tuple[int, int], ...]:
    """Ascending ranges, the smallest gaps between them closed until there are `most`."""
    found = list(ranges)
    while len(found) > most:
        n = min(range(1, len(found)), key=lambda n: found[n][0] - found[n - 1][1])
        found[n - 1 : n + 1] = [(found[n - 1][0], found[n][1])]
    return tuple(found)


def _pages(proc: Proc) -> int:
    """mm->exec_vm: of it and of the program's text Linux makes VmExe and VmLib (task_mem)."""
    total = 0
    for line in proc.read("status").split(b"\n"):
        if line.startswith((b"VmExe:", b"VmLib:")):
            total += int(line.split()[1])
    return total * 1024 // os.sysconf("SC_PAGE_SIZE")
