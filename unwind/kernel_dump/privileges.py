"""Giving up privileges and room: what somebody else's bytes may make of us."""

from __future__ import annotations

import os
import resource

__all__ = ["confine", "drop_privileges", "most_written"]

# Linux v6.13 include/uapi/linux/prctl.h
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_NO_NEW_PRIVS = 1, 4, 38
_KILL = 9


def drop_privileges(user: int, group: int) -> None:
    """Become an ordinary user for good; without CAP_SETUID we are one. OSError where that fails."""
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)  # and with it goes every capability: capabilities(7)
        if os.getresuid() != (user,) * 3 or os.getresgid() != (group,) * 3:
            raise PermissionError("the privileges stay")
    for option, value in (
        (_SET_NO_NEW_PRIVS, 1),  # no program that is set-user-ID helps
        (_SET_DUMPABLE, 0),  # no process of that user may look at us, or trace us
        (_SET_PDEATHSIG, _KILL),  # nobody is left to watch us: the last, as a new user clears it
    ):
        if prctl(option, value, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "prctl")


def confine(memory: int, seconds: int) -> None:
    """Bound the memory of ours that we may write to, in bytes, and the time of the processor.

    Beyond the first is MemoryError. Files that are mapped do not count: they can be given back.
    """
    _lower(resource.RLIMIT_DATA, memory)
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_CORE, 0)


def most_written(size: int) -> None:
    """Bound the size of the files that we write, from now on: more is OSError (EFBIG)."""
    _lower(resource.RLIMIT_FSIZE, size)


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, hard))
