"""What perf makes of a sample, modelled: CFI where it has some, else rbp taken for a frame pointer.

perf's unwinder is libunwind. Where that has no CFI for a place it does not end the stack: at a stub
of the PLT it takes the word at rsp for the return address, elsewhere it takes rbp for a frame
pointer, whatever rbp is (libunwind 1.6 src/x86_64/Gstep.c). Of a process that was
forked and then ran another program, perf 6.1 finds in some recordings no CFI in the libraries that
the parent had mapped as well. Samples that differ from ours are walked again here, as if the CFI of
some of the files that they meet were lost; what perf prints must be one of these walks.
"""

from __future__ import annotations

from collections.abc import Collection

from unwind.arch.x86_64 import RBP, RIP, RSP
from unwind.errors import MemoryFault
from unwind.frames import End, Frame, Trust
from unwind.registers import Registers
from unwind.snapshot import Place, Snapshot
from unwind.sources.cfi import CfiSource
from unwind.sources.trampoline import TrampolineSource
from unwind.unwinder import Step, Stop, Unwinder

MOST = 127  # frames that perf prints of a stack
_FARTHEST = 0x4000  # bytes from one frame pointer to the next that libunwind believes


class Model:
    """perf's walk of samples of x86_64."""

    def __init__(self, unwinder: Unwinder):
        arch = unwinder.arch
        self._unwinder = Unwinder(arch, [CfiSource(arch), TrampolineSource(arch)])

    def pcs(self, snapshot: Snapshot, lost: Collection[str] = ()) -> list[int]:
        """The pcs that perf finds if it finds no CFI in the files `lost`."""
        place = self._unwinder.innermost(snapshot)
        found = [place.pc]
        while len(found) < MOST:
            has_cfi = place.module is None or place.module.name not in lost
            result = self._unwinder.step(place) if has_cfi else None
            if isinstance(result, Step):
                place = self._unwinder.caller(place, result)
            elif isinstance(result, Stop) and result.end in (End.OUTERMOST, End.MEMORY_FAULT):
                break
            else:
                registers = self._guessed(place) if place.module is not None else {}
                if not registers.get(RIP):  # what lies in no file is the last frame
                    break
                place = self._caller(snapshot, place, Registers(registers))
            found.append(place.pc)
        return found

    def _guessed(self, place: Place) -> Registers:
        """The caller's registers without CFI; empty where a word cannot be read."""
        memory, registers = place.memory, Registers(place.registers)
        try:
            if _is_stub(memory.read(place.pc, 12)):
                registers[RIP] = int.from_bytes(memory.read(registers[RSP], 8), "little")
                registers[RSP] += 8
                return registers
        except MemoryFault:
            pass
        fp = registers.get(RBP, 0)
        try:
            saved, pc = (int.from_bytes(memory.read(fp + n, 8), "little") for n in (0, 8))
        except MemoryFault:
            return Registers()
        sp = registers[RSP]
        registers |= {RIP: pc, RSP: sp + 16, RBP: saved}  # from sp on, not from the frame pointer
        if not 0 <= saved - sp <= _FARTHEST:
            del registers[RBP]
        return registers

    def _caller(self, snapshot: Snapshot, place: Place, registers: Registers) -> Place:
        pc, trust = registers[RIP], Trust.FRAME_POINTER
        module = place.space.find(pc - 1)
        frame = Frame(pc, pc - 1, registers, module, trust, True, None, False)
        return self._unwinder.place(snapshot, frame)


def _is_stub(code: bytes) -> bool:
    """Whether this is a stub of the PLT: jmp *; push; jmp."""
    return code[:2] == b"\xff\x25" and code[6] == 0x68 and code[11] == 0xE9
