"""Frame records: a chain of frame pointers in, whether it bears out what the first of them found.

HotSpot's interpreter enters a method by a jump, with a return address that it has put there itself:
what that names follows no call. Code that no file has is all that there is to see of it.
"""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["leads_out"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.snapshot import Place
    from unwind.step import Caller

_MOST = 64  # records after which it is a chain, wherever it leads


def leads_out(place: Place, caller: Caller) -> bool:
    """Whether records go on from `caller`'s frame pointer, out to a call in code of a file.

    From code that no file has into such code, that is: elsewhere a return address follows a call,
    and what lies before it can be looked at.
    A record is the caller's frame pointer and then the return address (x86-64 psABI 1.0 §3.2.2,
    AAPCS64 §6.4.6), and each lies above the one before, on the same stack.
    """
    arch, space, memory = place.space.arch, place.space, place.memory
    if place.module is not None or caller.pc is None or space.find(caller.pc) is not None:
        return False
    if not space.executable(caller.pc):
        return False
    fp = arch.data_address(caller.registers.get(arch.fp, 0))
    region = space.region(caller.cfa)
    for _ in range(_MOST):
        if fp % arch.word or fp < caller.cfa or space.region(fp) is not region:
            return False
        try:
            record = memory.read(fp, 2 * arch.word)
            found = int.from_bytes(record[arch.word :], arch.byteorder)
            pc = arch.code_address(found)
            if not space.executable(pc):
                return False
            if space.find(pc) is not None:
                before = memory.read(pc - arch.call_window, arch.call_window)
                return arch.is_behind_call(found, before)
        except MemoryFault:
            return False
        above = arch.data_address(int.from_bytes(record[: arch.word], arch.byteorder))
        if above <= fp:
            return False
        fp = above
    return True
