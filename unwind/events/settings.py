"""What programs are told before they are loaded in, struct settings of bpf/event.h out."""

from __future__ import annotations

import os
from struct import pack

from unwind.errors import FormatError

__all__ = ["settings"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.bpf.btf import Btf


def settings(btf: Btf, *, pid: int = 0, stack_size: int = 4096, buckets: bool = False) -> bytes:
    """The settings of programs that look at process `pid`, 0: at all of them but us."""
    values = {
        "self": os.getpid(),
        "pid": pid,
        "pid_namespace": os.stat("/proc/self/ns/pid").st_ino,
        "stack_size": stack_size,
        "buckets": int(buckets),
    }
    struct = btf.struct("settings")
    made = bytearray(struct.size)
    for name, member in struct.members.items():
        if name not in values or member.size != 4:
            raise FormatError(f"struct settings has an unknown member {name!r}", ".BTF")
        made[member.offset : member.offset + 4] = pack("=I", values[name])
    return bytes(made)
