"""A thread of which no stack was copied in; its stack as it lies there now, if it did not move."""

from __future__ import annotations

import os
from errno import ESRCH

from unwind.live.proc import Proc

__all__ = ["late_stack"]

_PAGE = 4096


def late_stack(pid: int, tid: int, pc: int, sp: int, start: int, size: int) -> bytes | None:
    """Up to `size` bytes at `start`, None where the thread is not where its event was.

    It is blocked in the kernel, before and after, with that pc and sp. OSError where the memory
    of the process cannot be had. Nothing stays open.
    """
    with Proc(pid) as proc:
        if not proc.read("maps"):
            raise OSError(ESRCH, os.strerror(ESRCH))  # it has ended, and its memory with it
        if not _is_at(proc, tid, pc, sp):
            return None
        handle = proc.open("mem")
        try:
            found = _read(handle, start, size)
        finally:
            os.close(handle)
        return found if found and _is_at(proc, tid, pc, sp) else None


def _read(handle: int, start: int, size: int) -> bytes:
    """Page by page, until one cannot be read."""
    pieces = []
    for at in range(start, start + size, _PAGE):
        try:
            piece = os.pread(handle, _PAGE, at)
        except (OSError, OverflowError):
            break
        pieces.append(piece)
        if len(piece) < _PAGE:
            break
    return b"".join(pieces)


def _is_at(proc: Proc, tid: int, pc: int, sp: int) -> bool:
    """Whether the thread is blocked in the kernel with these (proc(5), /proc/PID/syscall)."""
    words = proc.read(f"task/{tid}/syscall").split()
    return len(words) >= 3 and (int(words[-1], 16), int(words[-2], 16)) == (pc, sp)
