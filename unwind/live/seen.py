"""What was seen of a process at one instant, and how its blocked threads are watched."""

from __future__ import annotations

from errno import ENOENT, ESRCH

from unwind.values import Value

__all__ = ["Blocked", "Seen", "identity", "watch", "watch_again"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from unwind.live.copies import Stretch
    from unwind.live.proc import Proc

_GONE = (ENOENT, ESRCH)


class Blocked(Value):
    """A thread that waits in the kernel: where it was, and how often it had been switched."""

    pc: int
    sp: int
    switches: int


class Seen:
    """What was seen of a process at one instant.

    `registers` are the general registers of each thread as ptrace(2) has them; `places` tell of
    those that are known to have been blocked in the kernel all the while, and no more, but for what
    `known` has of them, by DWARF numbers. `seconds` is
    the time from the first request to stop until the last thread went on, `late` are those that did
    not stop, `refused` has the errno of those that could not be asked to. `ran` and `moved` were
    looked at without a stop and were not blocked, or not all the while.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.registers: dict[int, bytes] = {}
        self.places: dict[int, Blocked] = {}
        self.known: Mapping[int, Mapping[int, int]] = {}
        self.maps = b""
        self.auxv = b""
        self.program: tuple[int, int] | None = None  # device and inode of /proc/PID/exe
        self.stretches: list[Stretch] = []
        self.memory = -1  # of /proc/PID/mem, see Proc.memory
        self.seconds = 0.0
        self.late: list[int] = []
        self.ran: list[int] = []
        self.moved: list[int] = []
        self.refused: dict[int, int] = {}


def watch(proc: Proc, threads: Iterable[int], seen: Seen) -> None:
    """Note of each thread where it is blocked, or that it runs; of one that has ended, nothing."""
    for tid in threads:
        try:
            found = _blocked(proc, tid)
        except OSError as error:
            if error.errno in _GONE:
                continue
            raise
        if found is None:
            seen.ran.append(tid)
        else:
            seen.places[tid] = found


def watch_again(proc: Proc, seen: Seen) -> None:
    """Strike out the threads that are not where they were, or have been elsewhere meanwhile."""
    for tid, before in list(seen.places.items()):
        try:
            same = _blocked(proc, tid) == before
        except OSError:
            same = False
        if not same:
            del seen.places[tid]
            seen.moved.append(tid)


def _blocked(proc: Proc, tid: int) -> Blocked | None:
    """Where a thread is blocked, None where it runs.

    proc(5), /proc/PID/task/TID/syscall: `running`; else the number of the system call with its
    arguments (or -1 alone: a page fault, say), then sp and pc.
    """
    switches = proc.status(tid).switches
    words = proc.read(f"task/{tid}/syscall").split()
    if len(words) < 3:
        return None
    return Blocked(int(words[-1], 16), int(words[-2], 16), switches)


def identity(proc: Proc) -> tuple[int, int] | None:
    """Device and inode of the program, None where that cannot be looked at."""
    try:
        status = proc.stat("exe")
    except OSError:
        return None
    return status.st_dev, status.st_ino
