"""The machine of the emulation: what registers and stack slots hold, and how code changes it.

Nothing has a value here. A register holds a number that is known relative to something that the
caller knew: the CFA, a register as it was on entry, or the stack pointer after it was aligned.
"""

from __future__ import annotations

from unwind.values import Value

__all__ = [
    "ALIGNED",
    "CFA",
    "CONSTANT",
    "LOST",
    "NO_CALLER",
    "RESTORED",
    "RETURN_ADDRESS",
    "CodeModel",
    "Flow",
    "Machine",
    "State",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from unwind.rules import Row

    # A symbol and an offset from it. A register or slot without one holds nothing that is known.
    Symbolic = tuple[int, int]
    Instruction = tuple[int, int, str, str]  # address, size, mnemonic, operands
    Disassemble = Callable[[bytes, int], Sequence[Instruction]]  # code and its vaddr in

# Symbols. A register's number stands for what it held on entry; the stack pointers that were
# aligned count down from ALIGNED, those that came from nobody knows where from LOST.
CFA = -1
RETURN_ADDRESS = -2
CONSTANT = -3
RESTORED = -5  # the base of a slot for each register that was loaded from where it was saved
NO_CALLER = -4  # the base of a slot: what is said to lie there is given up for good
ALIGNED = -16
LOST = -(1 << 24)


class State:
    """What registers and stack slots hold at one place; shared by all places that agree."""

    __slots__ = ("guessed", "made", "registers", "slots")

    def __init__(
        self,
        registers: dict[int, Symbolic],
        slots: dict[Symbolic, Symbolic],
        guessed: int = 0,
    ):
        self.registers = registers
        self.slots = slots  # by their address
        # Nothing that is known leads to where this holds: 1 where a jump to what a table says may,
        # 2 for all else.
        self.guessed = guessed
        self.made: dict[bool, Row | None] = {}  # the rows that it comes to, by whether it calls


class CodeModel(Value):
    """What an architecture tells of its code.

    `effect(machine, instruction)` does to the machine what the instruction does to the stack
    pointer and the saved registers; True: the next instruction is not reached from here.
    """

    capstone: tuple[str, tuple[str, ...]]  # names of the architecture and of its modes
    effect: Callable[[Machine, Instruction], bool]
    sp: int
    return_address: int
    entry: Mapping[int, Symbolic]  # the registers on entry
    entry_slots: Mapping[Symbolic, Symbolic]
    saved: tuple[int, ...]  # what a function gives back as it was
    bases: tuple[int, ...]  # which registers may carry the CFA, best first
    # A slot stands for its register even while that holds the same. It must where the register
    # changes further down in a loop: a state is that of the way by which a place is come to first.
    keeps_slots: bool
    # A frame pointer points to where its old value is saved; else to the bottom of the frame.
    frame_record: bool
    red_zone: int
    calls: frozenset[str]  # mnemonics
    padding: frozenset[str]  # mnemonics of what fills the gaps between functions
    # The direct jumps that some code at a vaddr may hold, as (target, source); some may be none.
    jumps: Callable[[memoryview, int], Iterator[tuple[int, int]]]
    # The sources of those of them that lead into [start, end).
    jumps_into: Callable[[memoryview, int, int, int], Iterator[int]]
    # Where functions seem to start in such code, and where its calls and constants lead.
    starts: Callable[[memoryview, int], Iterator[int]] = lambda code, vaddr: iter(())
    # Whether a function may begin at a vaddr; the code is given from 8 bytes before it on.
    begins: Callable[[memoryview, int], bool] = lambda code, vaddr: False
    # The targets of the direct calls in some code at a vaddr that stand before some ends, or before
    # padding there.
    last_calls: Callable[[memoryview, int, Iterable[int]], set[int]] | None = None
    # With `last_calls`, mnemonics: of what control does not go on behind, of direct jumps.
    stops: frozenset[str] = frozenset()
    branches: frozenset[str] = frozenset()
    # Add what instructions tell of where control goes.
    survey: Callable[[Sequence[Instruction], Flow], None] | None = None
    # Whether a function may begin with these instructions: 0 no, 1 perhaps, 2 likely, 3 surely.
    enters: Callable[[Sequence[Instruction]], int] = lambda instructions: 1
    # What lies on the stack of code that takes away more of it than it has put there.
    pushed_slots: Mapping[Symbolic, Symbolic] = {}
    # Registers that carry the return address into code that stores them in place of its own.
    return_carriers: tuple[int, ...] = ()


class Flow:
    """Where control goes in some code, and which addresses it takes."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # target, and what follows the call
        self.jumps: list[tuple[int, int, bool]] = []  # target, source, whether it is conditional
        self.taken: dict[int, int] = {}  # addresses that come up, with a place where they do
        self.tables: list[tuple[int, int]] = []  # of addresses to jump to, and the jump
        # What follows that which does not go on, or a call and padding, and what padding alone.
        self.leaders: list[int] = []
        self.behind_padding: list[int] = []
        self.behind = 0  # the last instruction did not go on: 1, or 2 if it may be a call
        self.padded = False  # what came since was padding


class Machine:
    """The registers and slots while instructions are followed, and where control may go."""

    def __init__(self, model: CodeModel, state: State):
        self.model = model
        self.state = state
        self.shared = True  # a place refers to `state`: the next change needs a copy
        self.targets: list[int] = []  # where the last instruction may go besides the next one
        self.called = False  # the last instruction was a call
        self.somewhere = 0  # the last instruction was a jump to what a register says: 1, a table: 2
        self.slot = 0  # the last instruction has a delay slot: 1, or 2 if only where it is taken
        self.anew = False  # behind the last instruction and its slot another function begins
        self.lost: tuple[int, ...] = ()  # registers to forget once the delay slot is executed
        self.compared = (0, -1)  # what the stack pointer was compared with, and where that ends
        self.loop: int | None = None  # where a loop begins that moves the stack pointer
        # By how much the stack pointer is above the return address where the function is left.
        self.popped: set[int] = set()
        self.odd = 0  # calls, returns and jumps with a stack that no function would leave so
        # Calls with a stack that only functions that know each other leave so, and whether one
        # returns with it as it was on entry, which tells that it is a function all the same.
        self.askew = 0
        self.returned = False

    def copy(self) -> State:
        """The state to change."""
        state = self.state
        if self.shared:
            state = self.state = State(dict(state.registers), dict(state.slots), state.guessed)
            self.shared = False
        return state

    def get(self, register: int) -> Symbolic | None:
        """What a register holds."""
        return self.state.registers.get(register)

    def set(self, register: int, value: Symbolic | None) -> None:
        """A register holds `value` from here on."""
        if self.state.registers.get(register) != value:
            registers = self.copy().registers
            if value is None:
                del registers[register]
            else:
                registers[register] = value

    def load(self, base: int, offset: int) -> Symbolic | None:
        """What lies in the slot at register `base` + `offset`."""
        address = self.state.registers.get(base)
        if address is None:
            return None
        return self.state.slots.get((address[0], address[1] + offset))

    def store(self, base: int, offset: int, value: Symbolic | None) -> None:
        """The slot at register `base` + `offset` holds `value` from here on."""
        address = self.state.registers.get(base)
        if address is None:
            return
        slot = (address[0], address[1] + offset)
        if self.state.slots.get(slot) != value:
            slots = self.copy().slots
            if value is None:
                del slots[slot]
            else:
                slots[slot] = value

    def align(self, register: int) -> None:
        """A register becomes a multiple of something: what it is relative to is not known."""
        self.set(register, (self._fresh(LOST, ALIGNED), 0))

    def lose(self, register: int) -> None:
        """A register becomes an address that may be any, with slots around it all the same."""
        self.set(register, (self._fresh(2 * LOST, LOST), 0))

    def _fresh(self, low: int, high: int) -> int:
        """A symbol between the two that nothing is relative to yet.

        The state comes from another machine where there was a branch, with symbols of its own.
        """
        registers, slots = self.state.registers, self.state.slots
        used = [value[0] for value in (*registers.values(), *slots, *slots.values())]
        return min([high, *(symbol for symbol in used if low < symbol < high)]) - 1
