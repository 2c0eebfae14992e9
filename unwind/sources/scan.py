"""A scan of the stack as a source of rows, for those who ask: the last resort."""

from __future__ import annotations

from unwind.errors import MemoryFault, UnwindError
from unwind.frames import Trust
from unwind.rules import CfaRegister, NoRow, Offset, Origin, Row, Undefined
from unwind.sources.emulation import EmulationSource
from unwind.step import Activation

__all__ = ["ScanSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.snapshot import Place

# How many words above the stack pointer are looked at.
_MOST_WORDS = 4096


class ScanSource:
    """Rows that lead to the next word of the stack that may be a return address.

    A word counts when it points behind a call instruction; where that call is direct, when its
    target is plausible: it is the function that the place lies in, or where that function starts
    is not known, one from which the code up to the place comes to just this slot.
    """

    trust = Trust.SCAN
    shared = False

    def __init__(self, arch: Architecture):
        self.arch = arch
        self.emulation = EmulationSource(arch)

    def row(self, place: Place) -> Row | NoRow:
        """The row whose return address is the nearest plausible word above the stack pointer."""
        arch = self.arch
        sp = place.registers.get(arch.sp)
        if sp is None:
            return NoRow("the stack pointer is not known")
        sp = arch.data_address(sp)
        start = -(-sp // arch.word) * arch.word
        likely: Row | None = None
        for address in range(start, start + arch.word * _MOST_WORDS, arch.word):
            try:
                word = place.memory.read(address, arch.word)
            except MemoryFault:
                break
            pointer = int.from_bytes(word, arch.byteorder)
            pc = arch.code_address(pointer)
            if not place.space.executable(pc):
                continue
            found = self._row(place, address - sp, pointer, pc)
            # The code that comes to just this slot says more than a call that may have been.
            if found is not None and found.origin.section == "code":
                return found
            likely = likely or found
        return likely or NoRow("no word above the stack pointer looks like a return address")

    def _row(self, place: Place, offset: int, pointer: int, pc: int) -> Row | None:
        """The row by the return address at `offset` from sp, None where it is no such."""
        arch = self.arch
        try:
            before = place.memory.read(pc - arch.call_window, arch.call_window)
        except MemoryFault:
            return None
        if not arch.is_behind_call(pointer, before):
            return None
        target = arch.call_target(before, pc)
        if target is not None:
            return self._called(place, target, offset)
        return self._bare(place, offset)

    def _called(self, place: Place, target: int, offset: int) -> Row | None:
        """The row for a slot behind a direct call of `target`."""
        module = place.module
        if module is None or module.image is None:
            return None
        called = module.to_vaddr(target)
        start = self.emulation.start_of(module.image, place.vaddr)
        if start is not None and start != called:
            # Perhaps a call through a stub of the linkage table, which is no function's start.
            return self._bare(place, offset) if self._is_stub(place, target) else None
        try:
            row = self.emulation.row_from(module.image, called, place.vaddr, place.called)
            sp = self.arch.data_address(place.registers[self.arch.sp])
            if row is not None and self._slot(row, place) == sp + offset:
                return row
        except UnwindError:
            pass
        return self._bare(place, offset) if start is not None else None

    def _is_stub(self, place: Place, target: int) -> bool:
        there = place.space.find(target)
        if there is None or there.image is None:
            return False
        vaddr = there.to_vaddr(target)
        return self.emulation.start_of(there.image, vaddr) != vaddr

    def _slot(self, row: Row, place: Place) -> int | None:
        """The address of the return address that a row leads to."""
        bias = place.module.bias if place.module is not None else 0
        cfa = Activation(place.registers, place.memory, self.arch, bias).cfa(row)
        match row.rules.get(row.return_address):
            case Offset(n=n):
                return cfa + n
        return None

    def _bare(self, place: Place, offset: int) -> Row:
        """A row that knows the return address and the stack pointer, and has lost the rest."""
        arch = self.arch
        lost = {n: Undefined() for n in place.registers if n not in (arch.sp, arch.pc)}
        cfa = CfaRegister(arch.sp, offset + arch.word)
        column = arch.entry_row.return_address
        origin = Origin("stack", note="found by scanning the stack")
        return Row(0, 0, cfa, {**lost, column: Offset(-arch.word)}, column, origin)
