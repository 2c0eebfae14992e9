"""Judge: two rows for one place in, what they disagree about out, compared by value.

One row is CFI's, the other was made from code, by an emulation whose state is known. Rows that look
different may mean the same (`rbp + 16`, `rsp + 40`), so both are applied in a world made after that
state: every register and slot holds a number of its own.
"""

from __future__ import annotations

from itertools import count

from unwind.errors import MemoryFault, UnknownRegister, UnwindError
from unwind.machine import ALIGNED, CFA, CONSTANT, LOST, RETURN_ADDRESS
from unwind.registers import Registers
from unwind.rules import CfaRegister, Offset, SameValue, Undefined
from unwind.step import apply
from unwind.values import Value

__all__ = ["Judge", "Verdict"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.machine import CodeModel, State
    from unwind.rules import Row
    from unwind.step import Caller


class Verdict(Value):
    """What two rows disagree about.

    `what` is "CFA", "return address", a register's name, or why there is nothing to compare.
    `refuted`: both sides are known, and the code does not do what the CFI says. Else one of them
    leans on a register or slot that the emulation lost sight of.
    """

    what: str
    register: int | None = None  # None: the CFA
    refuted: bool = False


class Judge:
    """Compares rows of one image."""

    def __init__(self, arch: Architecture, model: CodeModel):
        self.arch = arch
        self.model = model
        self._known: dict[tuple[int, ...], Verdict | None] = {}
        self._kept: list[object] = []  # what the keys' ids stand for stays alive

    def difference(
        self, cfi: Row, state: State | None, mine: Row | None, vaddr: int
    ) -> Verdict | None:
        """What the CFI's row and `mine` disagree about at `vaddr`, None if nothing.

        `mine` comes from `state`. A register that it does not mention counts as kept.
        """
        if mine is None or state is None:
            return Verdict("no row")
        place = vaddr if not isinstance(cfi.cfa, CfaRegister) else 0
        key = (id(cfi), id(state), id(mine.rules), place)
        if key not in self._known:
            self._kept += [cfi, state, mine.rules]
            self._known[key] = self._difference(cfi, state, mine, vaddr)
        return self._known[key]

    def _difference(self, cfi: Row, state: State, mine: Row, vaddr: int) -> Verdict | None:
        registers, memory = _world(state, vaddr, self.arch, 0)
        try:
            theirs = apply(cfi, registers, memory, self.arch)
        except UnwindError as error:
            return Verdict(f"cannot apply the CFI: {type(error).__name__}")
        try:
            ours = apply(mine, registers, memory, self.arch)
        except UnwindError as error:
            return Verdict(f"cannot apply the row: {type(error).__name__}")
        if theirs.pc is None:
            return None  # the outermost function: there is no caller to be found
        column: int | None = None
        if theirs.cfa != ours.cfa:
            what = "CFA"
        elif theirs.pc != ours.pc:
            what, column = "return address", mine.return_address
        else:
            for register in self.model.saved:
                if isinstance(cfi.rules.get(register), Undefined):
                    continue
                if theirs.registers.get(register) != ours.registers.get(register):
                    what, column = self.arch.register_name(register), register
                    break
            else:
                return None
        return Verdict(what, column, self._refuted(cfi, state, mine, vaddr, column))

    def _refuted(self, cfi: Row, state: State, mine: Row, vaddr: int, column: int | None) -> bool:
        """Whether a difference remains whatever those registers and slots hold that are unknown.

        How far stack pointers that were aligned or moved by a size in a register are from the CFA
        is as unknown, but that they are not at a constant distance is known.
        """
        saved = column in self.model.saved
        try:
            theirs, ours = (
                [
                    _answer(
                        apply(row, *_world(state, vaddr, self.arch, n, aligned=saved), self.arch),
                        row,
                        column,
                    )
                    for n in range(2)
                ]
                for row in (cfi, mine)
            )
        except (MemoryFault, UnknownRegister):
            return False
        if ours[0] != ours[1] or ours[0] is None:
            return False
        # The code knows where a saved register is, so it cannot be at another constant place.
        rule = cfi.rules.get(column) if column is not None else None
        if saved and isinstance(rule, None | Undefined | SameValue | Offset):
            return True
        return theirs[0] == theirs[1]


def _answer(caller: Caller, row: Row, column: int | None) -> int | None:
    if column is None:
        return caller.cfa
    return caller.pc if column == row.return_address else caller.registers.get(column)


def _world(
    state: State, vaddr: int, arch: Architecture, salt: int, aligned: bool = False
) -> tuple[Registers, _Slots]:
    """Numbers for all that the state knows, and others, by the `salt`, for what it does not.

    `aligned`: a stack pointer that was aligned is none of what the state knows.
    """
    unknown = ALIGNED if aligned else LOST
    bases: dict[int, int] = {CONSTANT: 0}
    fresh = count(1)

    def number(symbol: int) -> int:
        if symbol not in bases:
            bases[symbol] = 0x10_0000 * next(fresh) + (
                0x7000_0000 * salt if symbol < unknown else 0
            )
        return bases[symbol]

    word = (1 << 8 * arch.word) - 1
    number(CFA), number(RETURN_ADDRESS)
    registers = Registers()
    for register in range(max(arch.word * 4, 34)):
        value = state.registers.get(register)
        known = number(value[0]) + value[1] if value is not None else 0x777 + 16 * register
        registers[register] = (known if value is not None else known + 0x1_0000 * salt) & word
    registers[arch.pc] = vaddr
    slots = {
        (number(base) + offset) & word: (number(symbol) + more) & word
        for (base, offset), (symbol, more) in state.slots.items()
    }
    return registers, _Slots(slots, arch, salt)


class _Slots:
    """The memory of such a world: what no slot is known to hold reads as a number of its own."""

    def __init__(self, slots: dict[int, int], arch: Architecture, salt: int):
        self.slots = slots
        self.arch = arch
        self.unknown = 0x999 ^ 0x5000_0000 * salt

    def read(self, address: int, size: int) -> bytes:
        if size != self.arch.word:
            raise MemoryFault(address, size)
        value = self.slots.get(address, self.unknown ^ address)
        return value.to_bytes(size, self.arch.byteorder)
