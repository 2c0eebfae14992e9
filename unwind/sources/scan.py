"""A scan of the stack as a source of rows, for those who ask: the last resort."""

from __future__ import annotations

from unwind.errors import MemoryFault, UnwindError
from unwind.frames import Trust
from unwind.rules import CfaRegister, NoRow, Offset, Origin, Row, Undefined
from unwind.sources.emulation import EmulationSource

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
        start = -(-sp // arch.word) * arch.word
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
            if found is not None:
                return found
        return NoRow("no word above the stack pointer looks like a return address")

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
        return self._bare(offset)

    def _called(self, place: Place, target: int, offset: int) -> Row | None:
        """The row for a slot behind a direct call of `target`."""
        module = place.module
        if module is None or module.image is None:
            return None
        called = module.to_vaddr(target)
        known = self.emulation.start_of(module.image, place.vaddr)
        if known is not None and known != called:
            # A call through a stub of the linkage table, of this module or another one.
            stub = place.space.find(target) is not module
            return self._bare(offset) if stub else None
        try:
            row = self.emulation.row_from(module.image, called, place.vaddr, place.called)
        except UnwindError:
            return None
        slot = CfaRegister(self.arch.sp, offset + self.arch.word)
        if row is not None and row.cfa == slot:
            return row
        return self._bare(offset) if known is not None else None

    def _bare(self, offset: int) -> Row:
        """A row that knows the return address and nothing else."""
        arch = self.arch
        rules = {
            number: Undefined()
            for number in arch.names
            if number not in arch.defaults and number < 4096 and number != arch.pc
        }
        cfa = CfaRegister(arch.sp, offset + arch.word)
        column = arch.entry_row.return_address
        origin = Origin("stack", note="found by scanning the stack")
        return Row(0, 0, cfa, {**rules, column: Offset(-arch.word)}, column, origin)
