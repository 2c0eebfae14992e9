"""Many places of a file in, one link to all of them out: where the kernel has uprobe_multi.

bpf(2) is called directly: libbpf knows of it from 1.3 on, and 1.1 is what Debian 12 has. A link
for each place would do the same; but to take one away the kernel waits 90 ms until nobody is in
it any more, and an allocator has twenty.
"""

from __future__ import annotations

import os
from struct import pack

from unwind.bpf.libbpf import BpfError

__all__ = ["MultiLink", "attach_all", "expect_many", "has_uprobe_multi"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unwind.bpf.libbpf import Program

# Linux v6.13 include/uapi/linux/bpf.h
_BPF_LINK_CREATE = 28
_BPF_TRACE_UPROBE_MULTI = 48
_BPF_F_UPROBE_MULTI_RETURN = 1
_NUMBERS = {"x86_64": 321, "aarch64": 280, "mips": 4355}  # of the system call
# It is there from 6.6 on, but up to 6.9 a link to a process sees its first thread alone
# (46ba0e49b642, bpf: fix multi-uprobe PID filtering logic).
_FIRST = 6, 10


class MultiLink:
    """An attachment, until it is closed."""

    def __init__(self, handle: int):
        self._handle = handle

    def close(self) -> None:
        """No event comes from it any more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def has_uprobe_multi() -> bool:
    """Whether the running kernel has it, as it should be."""
    version = os.uname().release.partition("-")[0].split(".")
    try:
        return os.uname().machine in _NUMBERS and (int(version[0]), int(version[1])) >= _FIRST
    except (IndexError, ValueError):
        return False


def expect_many(program: Program) -> None:
    """Before it is loaded: that `attach_all` will attach it."""
    program.expect(_BPF_TRACE_UPROBE_MULTI)


def attach_all(
    program: Program,
    path: str,
    offsets: Sequence[int],
    cookies: Sequence[int],
    pid: int,
    returning: bool = False,
) -> MultiLink:
    """To these bytes of a file, as process `pid` runs them; `returning`: as the functions that
    begin there return. BpfError where that fails."""
    import ctypes

    count = len(offsets)
    places = (ctypes.c_uint64 * count)(*offsets)
    given = (ctypes.c_uint64 * count)(*cookies)
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = bytearray(
        pack(
            "=4I4Q3Ixxxx",
            *(program.handle, 0, _BPF_TRACE_UPROBE_MULTI, 0),
            *(ctypes.addressof(name), ctypes.addressof(places), 0, ctypes.addressof(given)),
            *(count, _BPF_F_UPROBE_MULTI_RETURN if returning else 0, pid),
        )
    )
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    where = ctypes.addressof(ctypes.c_char.from_buffer(attr))
    number = _NUMBERS[os.uname().machine]
    words = [ctypes.c_long(word) for word in (number, _BPF_LINK_CREATE, where, len(attr))]
    handle = int(call(*words))
    if handle < 0:
        error = ctypes.get_errno()
        raise BpfError(f"cannot attach to {path}: {os.strerror(error)}", number=error)
    return MultiLink(handle)
