"""A process in; what its blocked threads have on their stacks, out. Nothing is stopped."""

from __future__ import annotations

from unwind.live.copies import Copier
from unwind.live.seen import Seen, identity, watch, watch_again

__all__ = ["look"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from unwind.live.copies import Range
    from unwind.live.proc import Proc

    Plan = Callable[[Seen], Iterable[Range]]
    Known = Mapping[int, Mapping[int, int]]  # by thread and DWARF number

_TRIES = 5  # for threads that move while they are looked at


def look(proc: Proc, plan: Plan, registers: Callable[[], Known]) -> list[Seen]:
    """Looks, each with the threads that did not move during that look.

    `registers` gives those of threads that are blocked all the while, of as many as it can.
    The last one has those that moved each time; those that ran are with the look that found them
    running. Raises OSError where the process may not be looked at, or ends meanwhile.
    """
    found: list[Seen] = []
    waiting = proc.threads()
    while waiting and len(found) < _TRIES:
        seen = Seen(proc.pid)
        watch(proc, waiting, seen)
        seen.memory = proc.memory()
        seen.known = registers()
        seen.maps, seen.auxv = proc.read("maps"), proc.auxv()
        seen.program = identity(proc)
        seen.stretches = Copier(proc.through, seen.memory).copy(plan(seen), lambda: True)
        watch_again(proc, seen)
        waiting = seen.moved
        found.append(seen)
    return found
