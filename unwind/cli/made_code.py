"""Code that a process has made itself: a source in, who names the code's addresses out."""

from __future__ import annotations

__all__ = ["made_code"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unwind.cli.options import Options
    from unwind.perf.jit import JitMaps
    from unwind.snapshot import Snapshot, Source
    from unwind.space import AddressSpace

_OF_A_PROCESS = "process"


def made_code(
    options: Options, source: Source, snapshots: Sequence[Snapshot]
) -> Callable[[int], tuple[str, int] | None] | None:
    """Gives the name of the code at an address, and the offset in it; None where nobody can.

    By the map that --perf-map names; of a process that runs, by that in its own /tmp. And by the
    dump that the process has mapped. The map of a process that has ended may be of another one
    by now that has its id: it is not looked for without being asked for.
    """
    pid, pattern = source.pid, options.perf_map
    if pid is None or not snapshots:
        return None
    root = options.sysroot or ""
    if source.kind == _OF_A_PROCESS:
        root = root or f"/proc/{pid}/root"
        pattern = pattern or f"{root}/tmp/perf-{_own_id(pid)}.map"
    return _MadeCode(pid, snapshots[0].space, pattern or "", root).find


class _MadeCode:
    """The maps of a process, made when something has no name: few stacks have made code."""

    def __init__(self, pid: int, space: AddressSpace, pattern: str, root: str):
        self._pid, self._space, self._where = pid, space, (pattern, root)
        self._maps: JitMaps | None = None

    def find(self, address: int) -> tuple[str, int] | None:
        """The name of the code at `address`, and the offset in it."""
        if self._maps is None:
            from unwind.perf.jit import JitMaps

            self._maps = JitMaps(*self._where)
        return self._maps.find(self._pid, address, self._space.regions)


def _own_id(pid: int) -> int:
    """The id that a process has for itself, which in a container is another one."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            for line in file:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (OSError, ValueError):
        pass
    return pid
