"""ptrace(2) and process_vm_readv(2), by ctypes: a thread in, its registers and memory out.

Every failure is an OSError with its errno. What errno means here, by ptrace(2): ESRCH: no such
thread, or it is not stopped, or not ours; EPERM: refused (`refusals.py` finds out why).

A thread is let go when the thread that has seized it ends, however that ends.
"""

from __future__ import annotations

import os

__all__ = [
    "MOST_VECTORS",
    "Libc",
    "Wait",
    "address_of",
    "bury",
    "detach",
    "interrupt",
    "read_memory",
    "regset",
    "seize",
    "wait",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Linux v6.13 include/uapi/linux/ptrace.h, the same on x86_64, arm64 and mips.
_DETACH, _GETREGSET, _SEIZE, _INTERRUPT = 17, 0x4204, 0x4206, 0x4207
_EVENT_STOP = 128
_NT_PRSTATUS = 1  # Linux v6.13 include/uapi/linux/elf.h: the general registers
_WALL = 0x40000000  # threads, too: Linux v6.13 include/uapi/linux/wait.h
_LOOK = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL
_LARGEST_SET = 4096  # bytes of a register set
MOST_VECTORS = 1024  # UIO_MAXIOV


class Libc:
    """The C library's functions, with the types that they take."""

    def __init__(self) -> None:
        import ctypes

        self.ctypes = ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        self.ptrace = libc.ptrace
        self.ptrace.restype = ctypes.c_long
        self.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.read = libc.process_vm_readv
        self.read.restype = ctypes.c_ssize_t
        word, pointer = ctypes.c_ulong, ctypes.c_void_p
        self.read.argtypes = [ctypes.c_long, pointer, word, pointer, word, word]

    def trace(self, request: int, tid: int, address: int | None = None, data: int = 0) -> None:
        """One ptrace(2); OSError where it fails."""
        if self.ptrace(request, tid, address, data) == -1:
            raise self.error(f"ptrace of {tid}")

    def error(self, what: str) -> OSError:
        """What errno says of the call before."""
        number = self.ctypes.get_errno()
        return OSError(number, os.strerror(number), what)


class Wait:
    """What a seized thread has stopped with, or that it has ended.

    `signal` is what it was about to take: it must be given back when the thread is let go. In a
    group-stop, and in the stop that we asked for, there is none.
    """

    __slots__ = ("ended", "signal")

    def __init__(self, code: int, status: int):
        self.ended = code not in (os.CLD_TRAPPED, os.CLD_STOPPED)
        self.signal = 0 if self.ended or status >> 8 == _EVENT_STOP else status & 0x7F


_made: list[Libc] = []


def libc() -> Libc:
    """The functions, made once: ctypes takes some milliseconds to load."""
    if not _made:
        _made.append(Libc())
    return _made[0]


def seize(tid: int) -> None:
    """Become the tracer of a thread, which does not notice."""
    libc().trace(_SEIZE, tid)


def interrupt(tid: int) -> None:
    """Ask a seized thread to stop; `wait` tells when it does. No signal is sent."""
    libc().trace(_INTERRUPT, tid)


def wait(tid: int) -> Wait | None:
    """What has become of a seized thread, None where it still runs; never waits.

    A stop is looked at and left where it is: a signal that was once taken from there is lost if
    we are killed before we give it back (Linux v6.13 kernel/exit.c, wait_task_stopped).
    """
    found = os.waitid(os.P_PID, tid, _LOOK)
    if found is None:
        return None
    return Wait(found.si_code, found.si_status)


def bury(tid: int) -> None:
    """Take note of a thread's end: an execve(2) of its process waits for that.

    Never of a leader's: if the process is a child of ours, its end is for others to be told.
    """
    os.waitpid(tid, os.WNOHANG | _WALL)


def detach(tid: int, signal: int = 0) -> None:
    """Let a stopped thread go on, taking `signal`; a group-stopped one stays in its stop."""
    libc().trace(_DETACH, tid, None, signal)


def regset(tid: int) -> bytes:
    """The general registers of a stopped thread: what the kernel puts into NT_PRSTATUS as pr_reg.

    Its size tells whether the thread runs 32-bit code.
    """
    calls = libc()
    ctypes = calls.ctypes
    room = ctypes.create_string_buffer(_LARGEST_SET)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(room), _LARGEST_SET)  # struct iovec
    calls.trace(_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
    found: bytes = room.raw[: vector[1]]
    return found


def read_memory(pid: int, pieces: Sequence[tuple[int, int, int]]) -> int:
    """Copy memory of a process into ours; how many bytes came, in the order of the pieces.

    A piece is an address there, one of ours (`address_of`), and a size. All are copied by one call
    of the kernel. Where fewer bytes came than were wanted, the next one cannot be read.
    """
    calls = libc()
    remote: list[int] = []
    local: list[int] = []
    for there, here, size in pieces:
        remote += there, size
        local += here, size
    count = len(pieces)
    vectors = calls.ctypes.c_size_t * (2 * count)  # struct iovec
    found: int = calls.read(pid, vectors(*local), count, vectors(*remote), count, 0)
    if found < 0:
        raise calls.error(f"process_vm_readv of {pid}")
    return found


def address_of(room: memoryview) -> int:
    """Where a buffer lies; it must be kept for as long as somebody writes there."""
    ctypes = libc().ctypes
    found: int = ctypes.addressof(ctypes.c_char.from_buffer(room))
    return found
