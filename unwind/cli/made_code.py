"""Code that a process has made itself: a source in, who names the code's addresses out."""

from __future__ import annotations

from unwind.perf.jit import JitMaps

__all__ = ["made_code"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unwind.cli.options import Options
    from unwind.snapshot import Snapshot, Source

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
    maps, regions = JitMaps(pattern or "", root), snapshots[0].space.regions
    return lambda address: maps.find(pid, address, regions)


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
