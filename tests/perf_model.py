"""What perf makes of a sample, modelled: CFI where it has some, else rbp taken for a frame pointer.

perf's unwinder is libunwind. Where that has no CFI for a place it does not end the stack: it takes
rbp for a frame pointer, whatever rbp is (libunwind 1.6 src/x86_64/Gstep.c). Of a process that was
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
                caller = self._by_frame_pointer(snapshot, place)
                if caller is None:
                    break
                place = caller
            found.append(place.pc)
        return found

    def _by_frame_pointer(self, snapshot: Snapshot, place: Place) -> Place | None:
        """The caller's place if rbp is a frame pointer; None where its word cannot be read."""
        registers = dict(place.registers)
        fp = registers.get(RBP, 0)
        try:
            saved = int.from_bytes(place.memory.read(fp, 8), "little")
            pc = int.from_bytes(place.memory.read(fp + 8, 8), "little")
        except MemoryFault:
            return None
        if pc == 0:
            return None
        registers |= {RIP: pc, RSP: fp + 16, RBP: saved}
        if not 0 <= saved - fp <= _FARTHEST:
            del registers[RBP]
        module = place.space.find(pc - 1)
        trust = Trust.FRAME_POINTER
        frame = Frame(pc, pc - 1, Registers(registers), module, trust, True, None, False)
        return self._unwinder.place(snapshot, frame)
