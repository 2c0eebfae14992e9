"""Emulation: the instructions of a function in, the row that holds at each of them out.

No value is computed: following the instructions with the symbols of unwind.machine tells at each
place where the CFA, the return address and the saved registers are, which is what a row says.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush
from sys import maxsize

from unwind.machine import CONSTANT, RETURN_ADDRESS, Machine, State
from unwind.state_rows import row_of

__all__ = ["Table", "emulate"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from unwind.machine import CodeModel, Instruction, Symbolic
    from unwind.rules import Row

# Code to which nothing leads is tried with so many states, and so many instructions of it.
_MOST_BODIES = 8
_LONGEST_PAD = 200


class Table:
    """The states of one function's instructions, and the rows they come to."""

    __slots__ = (
        "_called",
        "_carrier",
        "_model",
        "_starts",
        "_states",
        "end",
        "leaves",
        "odd",
        "orphans",
        "pushed",
        "slots",
        "start",
    )

    def __init__(
        self,
        model: CodeModel,
        start: int,
        end: int,
        instructions: Sequence[Instruction],
        states: Sequence[State | None],
        odd: int,
        orphans: bool,
        leaves: list[tuple[int, State]],
        called: Mapping[int, State],
        slots: Container[int] = (),
        pushed: int = 0,
    ):
        self._model = model
        self.start, self.end = start, end
        self.odd = odd  # what no function of its own would do to the stack
        self.orphans = orphans  # some code is reached by nothing that is known
        self.leaves = leaves  # jumps out of the function: where to, and the state there
        self.slots = slots  # the vaddrs of delay slots, which are executed with their branch
        self.pushed = pushed  # bytes below the return address that it finds there and takes away
        self._called = called  # by the vaddr of a call: the state in which its delay slot leaves
        self._starts: list[int] = []
        self._states: list[State | None] = []
        # A register in which the return address came, which the function keeps in its place.
        self._carrier = next(
            (
                register
                for register in model.return_carriers
                if any(state and (register, 0) in state.slots.values() for state in states)
            ),
            None,
        )
        last: object = self
        for instruction, state in zip(instructions, states, strict=True):
            if state is not last:
                self._starts.append(instruction[0])
                self._states.append(state)
                last = state

    def state(self, vaddr: int, called: bool = False) -> State | None:
        """What is known before the instruction at `vaddr`, or while a call there is under way."""
        if called and vaddr in self._called:
            return self._called[vaddr]
        at = bisect_right(self._starts, vaddr) - 1
        return self._states[at] if at >= 0 else None

    def row(self, vaddr: int, called: bool = False) -> Row | None:
        """The row that holds at `vaddr`, None where the code does not tell the CFA.

        `called`: a call there is under way, so that what lies below the stack is lost.
        """
        at = bisect_right(self._starts, vaddr) - 1
        state = self.state(vaddr, called)
        if state is None:
            return None
        if called not in state.made:
            state.made[called] = row_of(state, self._model, self.start, called, self._carrier)
        row = state.made[called]
        if row is None:
            return None
        end = self._starts[at + 1] if at + 1 < len(self._starts) else self.end
        return row.replace(start=self._starts[at], end=end)  # type: ignore[no-any-return]


def emulate(
    model: CodeModel,
    instructions: Sequence[Instruction],
    entries: Mapping[int, State] | None = None,
    callable: bool = True,
    never: Callable[[set[int]], set[int]] | None = None,
    told: bool = True,
) -> Table:
    """The table of a function whose instructions these are, in ascending order.

    `entries` are the states at places where control comes in from other code; `callable`: it
    also comes in at the first instruction, by a call. `never` is asked which of the functions
    called do not return, where some code is reached by nothing, what comes before it being no clue,
    or with a stack that no function leaves so (if not, `told` says, as its start is a guess).
    State is carried along branches, so that code behind an epilogue in the middle of a function
    has the right row again. Code that nothing leads to (the targets of jump tables, landing pads)
    gets the state that fits best.
    """
    # Asked first, where that is to be seen, the code is followed but once.
    early = never is not None and (
        _ends_with_a_call(model, instructions) or _leaves_out(model, instructions)
    )
    run = _Run(model, instructions, _ending(model, instructions, never) if early else ())
    run.enter(entries or {}, callable)
    if never is not None and not early and ((told and run.odd) or run.has_orphans()):
        ending = _ending(model, instructions, never)
        if ending:
            run = _Run(model, instructions, ending)
            run.enter(entries or {}, callable)
    return run.table()


def _ends_with_a_call(model: CodeModel, instructions: Sequence[Instruction]) -> bool:
    """Whether there is a call that does not return: one comes last."""
    last = (each[2] for each in reversed(instructions) if each[2] not in model.padding)
    return next(last, "") in model.calls


def _leaves_out(model: CodeModel, instructions: Sequence[Instruction]) -> bool:
    """Whether there is code behind what does not go on to which no direct jump leads."""
    stops, branches, padding = model.stops, model.branches, model.padding
    leaders, stopped, targets = set[int](), False, set[int | None]()
    for vaddr, _, mnemonic, operands in instructions:
        if stopped and mnemonic not in padding:
            leaders.add(vaddr)
            stopped = False
        if mnemonic in branches:
            targets.add(_target(operands.rpartition(" ")[2]))
        stopped = stopped or mnemonic in stops
    return not leaders <= targets


def _ending(
    model: CodeModel,
    instructions: Sequence[Instruction],
    never: Callable[[set[int]], set[int]] | None,
) -> set[int]:
    """The functions called that do not return."""
    calls = (_target(each[3]) for each in instructions if each[2] in model.calls)
    called = {target for target in calls if target is not None}
    return never(called) if never is not None and called else set()


class _Run:
    def __init__(
        self, model: CodeModel, instructions: Sequence[Instruction], never: Container[int] = ()
    ):
        self.model = model
        self.never = never
        self.code = instructions
        self.number = {instruction[0]: n for n, instruction in enumerate(instructions)}
        self.states: list[State | None] = [None] * len(instructions)
        self.pending: dict[int, State] = {}
        self.order: list[int] = []  # a heap of pending numbers
        self.doubtful: list[tuple[int, State]] = []  # behind calls that may not return
        self.indirect: list[tuple[State, int]] = []  # at jumps to nobody knows where
        self.behind: list[State] = []  # behind calls: a landing pad has the state of one of them
        self.leaves: list[tuple[int, State]] = []
        self.slots: set[int] = set()  # the vaddrs of delay slots
        self.called: dict[int, State] = {}  # past delay slots, by the vaddrs of calls
        self.odd, self.askew, self.returned = 0, 0, False
        self.popped: set[int] = set()
        # What a function gives back, and what its caller had in there.
        self.own = [(register, (register, 0)) for register in model.saved]
        self.whole = [*self.own, (model.return_address, (RETURN_ADDRESS, 0))]
        self.wanted = frozenset(value for _, value in self.whole)

    def enter(self, entries: Mapping[int, State], callable: bool) -> None:
        """Follow the code from wherever control comes in."""
        for vaddr, state in entries.items():
            if vaddr in self.number:
                self.wait(self.number[vaddr], state)
        if callable:
            self.wait(0, State(dict(self.model.entry), dict(self.model.entry_slots)))
        self.follow()

    def has_orphans(self) -> bool:
        """Whether there is code that nothing has led to."""
        padding = self.model.padding
        both = zip(self.states, self.code, strict=True)
        return any(state is None and each[2] not in padding for state, each in both)

    def table(self) -> Table:
        """What was found, once the code that nothing leads to has states, too."""
        model, code = self.model, self.code
        # Of what is reached: beyond, states are guesses.
        odd, popped = self.odd + (0 if self.returned else self.askew), set(self.popped)
        orphans = self.follow_orphans()
        start, end = code[0][0], code[-1][0] + code[-1][1]
        left = {size for size in popped if size >= 0}  # else a jump within the function
        pushed = left.pop() if len(left) == 1 else 0
        known = self.leaves, self.called, self.slots, pushed
        return Table(model, start, end, code, self.states, odd, orphans, *known)

    def wait(self, number: int, state: State) -> None:
        """The instruction can be reached with this state."""
        if self.states[number] is None and number not in self.pending:
            self.pending[number] = state
            heappush(self.order, number)

    def follow(self) -> None:
        """Follow the code from all places that wait, the lowest first."""
        while self.order or self.doubtful:
            if not self.order:
                self.wait(*self.doubtful.pop(0))
            if self.order:
                number = heappop(self.order)
                state = self.pending.pop(number, None)
                if state is not None and self.states[number] is None:
                    self.follow_from(number, state)

    def follow_from(self, first: int, state: State) -> None:
        """Follow the code from one place to where it ends or meets what was followed before."""
        machine = Machine(self.model, state)
        effect, states, code, pending = self.model.effect, self.states, self.code, self.pending
        padding = self.model.padding
        slot = -1
        for number in range(first, len(code)):
            instruction = code[number]
            is_padding = instruction[2] in padding
            if states[number] is not None:
                if number == slot:
                    continue  # it was executed with its branch
                break
            other = pending.pop(number, None)
            if other is not None and machine.called and self.disagree(other, machine.state):
                # What follows a call that does not return is reached from elsewhere only.
                machine.state, machine.shared = other, True
            machine.shared = True
            states[number] = machine.state
            if not is_padding:  # which also lies behind a call without return
                machine.called = False
            stops = effect(machine, instruction)
            annulled = None
            if machine.slot:
                slot = number + 1
                annulled = self.delay_slot(machine, slot)
            if machine.targets:
                self.branch(machine)
            if machine.called and not is_padding:
                if self.never and _target(instruction[3]) in self.never:
                    break
                machine.shared = True
                self.behind.append(machine.state)
            if machine.loop is not None:
                self.moves(machine.loop, number)
                machine.loop = None
            if machine.somewhere:
                self.indirect.append((machine.state, machine.somewhere))
                machine.somewhere, machine.shared = 0, True
            if stops:
                break
            if annulled is not None:
                machine.state, machine.shared = annulled, True
            if machine.anew:
                machine.state = State(dict(self.model.entry), dict(self.model.entry_slots))
                machine.anew, machine.shared = False, False
            if machine.called and is_padding and number + 1 < len(code):
                # Padding behind a call: what jumps to the code beyond it knows better than the
                # call, which may not return.
                self.doubtful.append((number + 1, machine.state))
                break
        self.odd += machine.odd
        self.askew += machine.askew
        self.returned |= machine.returned
        self.popped |= machine.popped

    def branch(self, machine: Machine) -> None:
        """Control may go where the last instruction leads, with the state as it is."""
        for target in machine.targets:
            machine.shared = True
            where = self.number.get(target)
            if where is None:
                self.leaves.append((target, machine.state))
            else:
                self.wait(where, machine.state)
        machine.targets.clear()

    def moves(self, start: int, last: int) -> None:
        """The stack pointer is another one each time in the loop from `start` on, to `last`."""
        made: dict[int, State] = {}
        for number in range(self.number.get(start, last), last + 1):
            state = self.states[number]
            if state is not None:
                if id(state) not in made:
                    machine = Machine(self.model, state)
                    machine.lose(self.model.sp)
                    made[id(state)] = machine.state
                self.states[number] = made[id(state)]

    def delay_slot(self, machine: Machine, number: int) -> State | None:
        """Execute what stands behind a branch, before control goes there.

        Gives the state without it where it is executed only if the branch is taken.
        """
        annulled = machine.state if machine.slot == 2 else None
        machine.shared = True
        if number < len(self.code):
            self.states[number] = self.states[number] or machine.state
            self.slots.add(self.code[number][0])
            self.model.effect(machine, self.code[number])
        machine.slot = 0
        for register in machine.lost:
            # Who uses a number after a call knows that the callee leaves it alone (gcc -fipa-ra).
            if machine.state.registers.get(register, (CONSTANT, 0))[0] != CONSTANT:
                machine.set(register, None)
        machine.lost = ()
        if machine.called:
            machine.shared = True
            self.called[self.code[number - 1][0]] = machine.state
        return annulled

    def disagree(self, one: State, other: State) -> bool:
        """Whether two states tell different things of saved registers: no place can have both."""
        mine, its = one.registers.get, other.registers.get
        if mine(self.model.sp) != its(self.model.sp):
            return True
        agreed: set[Symbolic] | None = None  # what both hold in one slot
        for register, value in self.whole:
            kept = mine(register) == value
            if kept != (its(register) == value):
                return True
            if not kept and one.slots is not other.slots:
                if agreed is None:
                    there = other.slots.get
                    agreed = {held for slot, held in one.slots.items() if there(slot) == held}
                if value not in agreed:
                    return True
        return False

    def saved(self, state: State) -> object:
        """All of a state that `disagree` looks at, and perhaps more."""
        held = state.registers.get
        kept = tuple([held(register) == value for register, value in self.whole])
        slots = tuple([slot for slot in state.slots.items() if slot[1] in self.wanted])
        return held(self.model.sp), kept, slots

    def follow_orphans(self) -> bool:
        """Give the code that nothing leads to a state of `bodies`; whether there was any."""
        bodies: list[State] | None = None
        for number in range(len(self.code)):
            if self.states[number] is None and self.code[number][2] not in self.model.padding:
                bodies = self.bodies() if bodies is None else bodies
                if not bodies:
                    return True
                self.wait(number, self.fitting(number, bodies))
                self.follow()
        # Padding never runs. Compilers leave it the state of what it comes after.
        last = None
        for number, state in enumerate(self.states):
            last = self.states[number] = state or last
        return bodies is not None

    def bodies(self) -> list[State]:
        """The states that code may have to which nothing leads, the likeliest first.

        The targets of a jump table have that of the jump, unless it jumps out of the function, as
        a tail call. Landing pads have that of a call, and of several rather one where more
        registers are saved: what is to be cleaned up came into being on the longer path.
        """
        sp = self.model.sp
        entry = self.model.entry.get(sp)
        inside = [s for s, by in self.indirect if by == 2 or s.registers.get(sp) != entry]
        states = inside + self.behind or [state for state in self.states if state is not None]
        found: list[State] = []
        counts: list[int] = []
        jumps = 0  # how many of those found are states of jumps
        known: dict[object, int] = {}  # most states are like one that came before
        what: dict[State, object] = {}  # or are that one
        for place, state in enumerate(states):
            jumps = len(found) if place == len(inside) else jumps
            if state not in what:
                what[state] = self.saved(state)
            at = known.get(what[state])
            if at is None:
                agreeing = (n for n, other in enumerate(found) if not self.disagree(state, other))
                at = known[what[state]] = next(agreeing, len(found))
            if at < len(found):
                counts[at] += 1
            elif len(found) < _MOST_BODIES:
                guess = 1 if place < len(inside) else 2
                found.append(State(state.registers, state.slots, guess))
                counts.append(1)
        saved = []
        for state in found:
            held = state.registers.get
            away = [value for register, value in self.own if held(register) != value]
            saved.append(len({*away}.intersection(state.slots.values())))
        order = sorted(range(len(found)), key=lambda n: (n >= jumps, -saved[n], -counts[n]))
        return [found[n] for n in order]

    def fitting(self, number: int, bodies: Sequence[State]) -> State:
        """The one of `bodies` against which the least speaks, of equal ones the first."""
        fit, least = bodies[0], maxsize
        for state in bodies if len(bodies) > 1 else ():
            count = self.misfits(number, state, least)
            if count < least:
                fit, least = state, count
            if not least:
                break
        return fit

    def misfits(self, first: int, state: State, enough: int) -> int:
        """How much speaks against a state of code that nothing leads to, as far as `enough`.

        Such are places from which control goes where another state is known, and what would leave
        the caller's value of a register nowhere.
        """
        machine = Machine(self.model, state)
        count = 0
        for number in range(first, min(first + _LONGEST_PAD, len(self.code))):
            known = self.states[number]
            if known is not None:
                return count + self.disagree(known, machine.state)
            before = machine.state
            machine.shared = True
            stops = self.model.effect(machine, self.code[number])
            if machine.state is not before:
                count += self.losses(before, machine.state)
            if machine.called and _target(self.code[number][3]) in self.never:
                break
            machine.called = False
            for target in machine.targets:
                known = self.states[self.number[target]] if target in self.number else None
                count += known is not None and self.disagree(known, machine.state)
            machine.targets.clear()
            if stops or count >= enough:
                break
        return count

    def losses(self, before: State, after: State) -> int:
        """How many saved registers have their caller's value nowhere any more."""
        count = 0
        for register in self.model.saved:
            value = (register, 0)
            if after.registers.get(register) == value or value in after.slots.values():
                continue
            count += before.registers.get(register) == value or value in before.slots.values()
        return count


def _target(operands: str) -> int | None:
    """Where a direct call leads."""
    try:
        return int(operands.lstrip("#"), 0)
    except ValueError:
        return None
