"""A refusal of the kernel to load or to attach in, its cause and what this kernel offers out."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ENOENT, EOPNOTSUPP, EPERM, ESRCH

from unwind.bpf.libbpf import BpfError
from unwind.errors import SourceError

__all__ = ["TRACEFS", "explained", "has_kprobes", "no_kprobes"]

_ENOTSUPP = 524  # of the kernel alone: arm64 before Linux 6.4 has no trampolines for fentry
_NOWHERE = (ENOENT, EOPNOTSUPP, ESRCH, _ENOTSUPP)
_DEVICES = "/sys/bus/event_source/devices"
_BTF = "/sys/kernel/btf/vmlinux"
TRACEFS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")


def has_kprobes() -> bool:
    """Whether functions of the running kernel can be probed."""
    return os.path.exists(f"{_DEVICES}/kprobe")


def no_kprobes(function: str) -> SourceError:
    """That a function of this kernel cannot be probed, and what can be."""
    return SourceError("this kernel has no kprobes (CONFIG_KPROBES)", function, _offers())


def explained(error: BpfError, kind: str, function: str = "") -> SourceError:
    """What an error means at a place of that kind, and what helps; `function` is one in a file."""
    number = error.number
    if error.hint:  # it is explained
        return error
    if number in (EPERM, EACCES) and os.geteuid() != 0:
        return SourceError(
            "the kernel lets only the privileged load BPF programs",
            hint="run it by sudo, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
        )
    if number == ENOENT and kind in ("uprobe", "uretprobe") and function:
        reason = f"{error.reason}: there is no function {function!r} in it"
        hint = "it has to be in .symtab or .dynsym; PATH:0xOFFSET needs no name"
    elif kind == "fentry" and number in (EPERM, EINVAL, *_NOWHERE):
        reason = f"{error.reason}: this kernel runs no program at that function's entry"
        hint = f"that takes ftrace with direct calls; {_offers()}"
    elif number in _NOWHERE:
        reason, hint = error.reason, f"this kernel has no such place; {_offers()}"
    else:
        return error
    return BpfError(reason, error.path, hint, number, error.log)


def _offers() -> str:
    """The kinds of places that the running kernel has, in the words of unwind/events/points.py."""
    tracefs = any(os.path.isdir(directory) for directory in TRACEFS)
    found = ["FUNCTION of the kernel"] if has_kprobes() else []
    found += ["CATEGORY:NAME of a tracepoint"] if tracefs else []
    found += ["raw:NAME"] + (["btf:NAME"] if os.path.exists(_BTF) else [])
    if os.path.exists(f"{_DEVICES}/uprobe"):
        found += ["PATH:FUNCTION and ret:PATH:FUNCTION of a file"]
    return f"it has {', '.join([*found, 'cpu-clock@N'])}"
