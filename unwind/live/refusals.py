"""A refusal of the kernel in, its cause and what helps out."""

from __future__ import annotations

import os
from errno import EACCES, EPERM, ESRCH

from unwind.errors import SourceError
from unwind.live import ptrace

__all__ = ["refusal"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.live.proc import Proc, Status

_SYS_PTRACE = 1 << 19  # CAP_SYS_PTRACE: Linux v6.13 include/uapi/linux/capability.h
_NOBODY = 1 << 30  # above any id of a process: Linux v6.13 PID_MAX_LIMIT is 1 << 22
_YAMA = "/proc/sys/kernel/yama/ptrace_scope"

_CAPABILITY = (
    "sudo setpriv --reuid $(id -u) --regid $(id -g) --init-groups --inh-caps +sys_ptrace "
    "--ambient-caps +sys_ptrace"
)
_AS_ROOT = f"run it by sudo, or with that one capability: {_CAPABILITY} unwind-live ..."
_CONTAINER = "start the container with --cap-add=SYS_PTRACE"


def refusal(proc: Proc) -> SourceError:
    """Why a process may not be looked at (EPERM, EACCES), and what helps."""
    where = f"process {proc.pid}"
    try:
        its, own = proc.status(), Owner()
        cause, remedy = _cause(proc, its, own)
    except OSError as error:
        if error.errno not in (EPERM, EACCES):
            return SourceError("it has ended", where)
        cause, remedy = "/proc does not even show its state (hidepid?)", "run it by sudo"
    return SourceError(f"it may not be looked at: {cause}", where, remedy)


class Owner:
    """What of us counts: the user, the capabilities, the filters."""

    def __init__(self) -> None:
        self.uid = os.geteuid()
        fields = {}
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        self.effective = int(fields.get("CapEff", "0"), 16)
        self.filtered = fields.get("Seccomp") == "2"
        self.scope = yama()

    @property
    def may_trace(self) -> bool:
        """Whether we have CAP_SYS_PTRACE, be it of a user namespace of our own."""
        return bool(self.effective & _SYS_PTRACE)


def yama() -> int:
    """kernel.yama.ptrace_scope, 0 where there is no Yama."""
    try:
        with open(_YAMA, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _cause(proc: Proc, its: Status, own: Owner) -> tuple[str, str]:
    """The cause, looked for in the order in which the kernel refuses."""
    if own.filtered and _is_forbidden():
        return "a seccomp filter forbids ptrace here, as containers have it", _CONTAINER
    if its.tracer:
        return (
            f"it is being traced by process {its.tracer}{_called(its.tracer)}, and only one can",
            "end that one first, or read without a stop: --no-stop",
        )
    if own.scope == 3:
        return (
            "Yama forbids it to everybody (kernel.yama.ptrace_scope is 3)",
            "that cannot be undone before the next start of the machine",
        )
    if not own.may_trace:
        if its.uid != own.uid:
            return f"it belongs to another user, {_user(its.uid)}", _AS_ROOT
        if proc.stat("mem").st_uid != its.uid:
            return (
                "it is not dumpable: it has changed its user or asked for that by prctl(2), or "
                "its program may not be read",
                _AS_ROOT,
            )
        if own.scope == 1:
            return (
                "Yama lets only its parents trace it (kernel.yama.ptrace_scope is 1)",
                f"{_AS_ROOT}; or for all: sudo sysctl kernel.yama.ptrace_scope=0",
            )
        if own.scope == 2:
            return (
                "Yama wants CAP_SYS_PTRACE for it (kernel.yama.ptrace_scope is 2)",
                f"{_AS_ROOT}; or for all: sudo sysctl kernel.yama.ptrace_scope=0",
            )
        if its.permitted & ~own.effective:
            return "it has capabilities that unwind-live has not", _AS_ROOT
        return "a security module of the kernel does not allow it", _AS_ROOT
    if own.uid and proc.stat("mem").st_uid != own.uid:
        return (
            "without a stop it takes the right to read its files in /proc, too",
            "run it by sudo, or with the capability dac_read_search besides sys_ptrace",
        )
    if own.uid == 0:
        return (
            "it runs in another user namespace, or a security module does not allow it",
            f"run it on the host; in a container, {_CONTAINER}",
        )
    return "CAP_SYS_PTRACE does not reach its user namespace", "run it by sudo, on the host"


def _is_forbidden() -> bool:
    """Whether the call itself is refused, by whatever process it is asked for."""
    try:
        ptrace.seize(_NOBODY)
    except OSError as error:
        return error.errno != ESRCH
    return False


def _called(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as file:
            return f" ({file.read().strip()})"
    except OSError:
        return ""


def _user(uid: int) -> str:
    """The name of a user, else the number."""
    from pwd import getpwuid

    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
