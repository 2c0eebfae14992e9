"""Unwinder: a snapshot in, a stack out; every register, every kind of row, every stop explained."""

from __future__ import annotations

from unwind.errors import FormatError, MemoryFault, UnknownRegister, UnwindError
from unwind.frames import End, Frame, Stack, Trust
from unwind.lookup import Lookup
from unwind.methods import default_sources
from unwind.modules import State
from unwind.registers import Registers
from unwind.rules import InRegister, NoRow, Offset, SameValue
from unwind.snapshot import Place
from unwind.step import apply
from unwind.values import Value

__all__ = ["DEFAULT_LIMIT", "Step", "Stop", "Unwinder", "unwind"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unwind.architecture import Architecture
    from unwind.modules import Module
    from unwind.protocols import Memory, RowSource
    from unwind.rules import Row
    from unwind.snapshot import Snapshot
    from unwind.space import AddressSpace
    from unwind.step import Caller

    Refused = tuple[tuple[str, NoRow], ...]

# Hostile CFI can go on for ever without reading memory.
DEFAULT_LIMIT = 1_000_000

# A row of these describes the code; what it cannot read is missing, and no guess mends that.
_STRONG = frozenset({Trust.CFI, Trust.PDR, Trust.TRAMPOLINE})

# This many zero bytes from a zero return address on: the stack is wiped, not at its end.
_WIPED = 128
# And so far above it a return address is looked for, which tells the same.
_SEARCHED = 65536

_LONGEST_EPILOGUE = 16  # bytes: six registers popped, and a return


class Step(Value):
    """A step from one frame to its caller: by which row, of which trust, what was refused first."""

    row: Row
    trust: str
    caller: Caller
    refused: Refused = ()


class Stop(Value):
    """No step: why, in a word of `End` and a sentence, with the error behind it."""

    end: str
    detail: str = ""
    error: UnwindError | None = None
    row: Row | None = None  # the row that said so, where there was one
    trust: str = ""
    refused: Refused = ()
    cfa: int | None = None


def unwind(snapshot: Snapshot, limit: int = DEFAULT_LIMIT) -> Stack:
    """The stack of one snapshot. For many, keep an Unwinder: it remembers rows."""
    return Unwinder(snapshot.space.arch, limit=limit).unwind(snapshot)


class Unwinder:
    """Walks stacks of one architecture. It remembers rows and so belongs to one thread."""

    def __init__(
        self,
        arch: Architecture,
        sources: Iterable[RowSource] | None = None,
        limit: int = DEFAULT_LIMIT,
    ):
        self.arch = arch
        self.lookup = Lookup(default_sources(arch) if sources is None else sources)
        self.limit = limit

    def unwind(self, snapshot: Snapshot, limit: int | None = None) -> Stack:
        """All frames, innermost first, and why there are no more. It does not raise."""
        limit = self.limit if limit is None else limit
        try:
            place, trust = self.innermost(snapshot), Trust.CONTEXT
        except UnknownRegister as error:
            error.__traceback__ = None
            return Stack((), End.UNKNOWN_REGISTER, f"the innermost pc: {error}", error)
        frames: list[Frame] = []
        guard = _Guard(place.space)
        while True:
            result = self.step(place)
            if isinstance(result, Step):
                if guard.has_seen(place, result):
                    detail = f"pc {place.pc:#x} with CFA {result.caller.cfa:#x} came again"
                    return Stack(tuple(frames), End.NO_PROGRESS, detail)
                result = guard.check(place, result)
            frames.append(_frame(place, trust, result))
            if isinstance(result, Stop):
                return Stack(tuple(frames), result.end, result.detail, result.error)
            if len(frames) >= limit:
                return Stack(tuple(frames), End.LIMIT, f"only {limit} frames were asked for")
            place, trust = self.caller(place, result), result.trust

    def innermost(self, snapshot: Snapshot) -> Place:
        """The place of frame 0. UnknownRegister where the snapshot has no pc."""
        registers = Registers(snapshot.registers)
        lookup_pc = self.arch.innermost(self.arch, registers)
        pc = registers[self.arch.pc]
        if self.arch.compressed_call_size:
            pc = self.arch.code_address(pc)  # elsewhere odd bits of a pc show where it went wild
        return _place(snapshot.space, registers, snapshot.memory, pc, lookup_pc, False)

    def place(self, snapshot: Snapshot, frame: Frame) -> Place:
        """The place of a frame that a walk of `snapshot` found."""
        registers, memory = frame.registers, snapshot.memory
        return _place(snapshot.space, registers, memory, frame.pc, frame.lookup_pc, frame.called)

    def caller(self, place: Place, step: Step) -> Place:
        """The place to which `step` leads from `place`.

        A return address is looked up within the call before it; what a signal interrupted is
        looked up where it stood (DWARF 5 §6.4.4; the augmentation S). So is the first byte of a
        mapping, where no call leads: qemu-user's page of signal trampolines may lie right behind
        a library.
        """
        pc = step.caller.pc
        assert pc is not None, "a Step has a caller; without one there is a Stop"
        called = not step.row.signal
        lookup_pc = self.arch.call_before(step.caller.return_address) if called else pc
        if not place.space.executable(lookup_pc) and place.space.executable(pc):
            lookup_pc = pc
        return _place(place.space, step.caller.registers, place.memory, pc, lookup_pc, called)

    def step(self, place: Place) -> Step | Stop:
        """The step out of `place` by the best row that leads somewhere, or why there is none."""
        if not place.called and self._is_new(place):
            return Stop(End.OUTERMOST, "clone() has just made the thread")
        refused: list[tuple[str, NoRow]] = []
        helpless: tuple[UnknownRegister, Row, str] | None = None
        for trust, row in self.lookup.rows_at(place):
            if isinstance(row, NoRow):
                refused.append((trust, row))
                continue
            bias = place.module.bias if place.module is not None else 0
            try:
                caller = apply(row, place.registers, place.memory, self.arch, bias)
            except UnknownRegister as error:
                # The row is right, but the walk has lost what it needs: a frame pointer alone
                # tells no stack pointer. A weaker row that needs less may still lead on.
                if trust in _STRONG and helpless is None:
                    helpless = error, row, trust
                refused.append((trust, NoRow(self._lacking(error))))
                continue
            except UnwindError as error:
                if trust in _STRONG:
                    return _stopped_by(error, place, row, trust, tuple(refused))
                refused.append((trust, NoRow(str(error))))
                continue
            if not place.called and trust == Trust.CFI:
                caller = self._with_popped(place, row, caller)
            verdict = self._judge(place, row, trust, caller)
            if isinstance(verdict, NoRow):
                refused.append((trust, verdict))
                continue
            if verdict is not None:
                end, detail = verdict
                return Stop(end, detail, None, row, trust, tuple(refused), caller.cfa)
            return Step(row, trust, caller, tuple(refused))
        if helpless is not None:
            return _stopped_by(helpless[0], place, *helpless[1:], tuple(refused))
        return _no_row(place, tuple(refused))

    def _with_popped(self, place: Place, row: Row, caller: Caller) -> Caller:
        """The caller with the registers that are back already, since an epilogue has popped them.

        gcc's CFI for x86_64 does not say so: it leads to slots below the stack, which what has
        copied the stack (perf) did not copy.
        """
        leaves, sp = self.arch.leaves, place.registers.get(self.arch.sp)
        if leaves is None or sp is None:
            return caller
        popped = {
            number: place.registers[number]
            for number, rule in row.rules.items()
            if isinstance(rule, Offset) and caller.cfa + rule.n < sp
            if number in place.registers and number not in caller.registers
        }
        try:
            if not popped or not leaves(place.memory.read(place.pc, _LONGEST_EPILOGUE)):
                return caller
        except MemoryFault:
            return caller
        registers = Registers({**caller.registers, **popped})
        return caller.replace(registers=registers)  # type: ignore[no-any-return]

    def _is_new(self, place: Place) -> bool:
        """Whether the thread, or the process, was made by clone() just now, on a stack of its own.

        It has no caller yet. But its registers are copies of those of its maker, and so is what any
        row makes of them: one piece of code, and of CFI, serves both behind the system call.
        """
        clone, registers = self.arch.clone, place.registers
        if clone is None or registers.get(clone.result) != 0:
            return False
        number = registers.get(clone.number)
        if number != clone.clone3 and (number != clone.clone or not registers.get(clone.stack)):
            return False
        size = len(clone.instruction)
        try:
            return place.memory.read(place.pc - size, size) == clone.instruction
        except MemoryFault:
            return False

    def _lacking(self, error: UnknownRegister) -> str:
        return f"its row needs {self.arch.register_name(error.number)}, which is not known here"

    def _judge(
        self, place: Place, row: Row, trust: str, caller: Caller
    ) -> tuple[str, str] | NoRow | None:
        """An End and its sentence where the row leads to one, NoRow where it is not believable."""
        pc = caller.pc
        if pc is None:
            return End.OUTERMOST, row.origin.note
        if row.signal and (pc or caller.registers.get(self.arch.sp)):
            return None  # whatever was interrupted, a call through a null pointer included
        if pc == 0:
            damage = self._damage(place, row, caller.cfa)
            if damage and trust not in _STRONG:
                return NoRow(f"it leads to zero, {damage}")
            if damage:
                return End.NO_MODULE, f"the return address of {place.pc:#x} is zero, {damage}"
            return End.OUTERMOST, "the return address is zero"
        if trust not in _STRONG:
            from unwind.sources.records import leads_out

            doubt = self._doubt(place, caller.return_address)
            guess = trust == Trust.FRAME_POINTER
            return None if doubt and guess and leads_out(place, caller) else doubt
        if place.space.complete and not place.space.executable(pc):
            region = place.space.region(pc)
            lies = f"in {region.name or 'memory'} that is not executable" if region else "nowhere"
            return End.NO_MODULE, (
                f"the return address {pc:#x}, found with CFA {caller.cfa:#x}, lies {lies}: the "
                "stack is damaged there, or a register that led to it"
            )
        return None

    def _doubt(self, place: Place, found: int) -> NoRow | None:
        """Why a return address that a guess led to is none: code must lie there, after a call."""
        arch = self.arch
        pc = arch.code_address(found)
        if not place.space.executable(pc):
            return NoRow(f"it leads to {pc:#x}, which is not executable")
        try:
            before = place.memory.read(pc - arch.call_window, arch.call_window)
            if arch.is_behind_call(found, before):
                return None
            for known in arch.trampolines:
                if place.memory.read(pc, len(known.pattern)) == known.pattern:
                    return None
        except MemoryFault as fault:
            module = place.space.find(pc)
            if module is not None and module.is_unseen_vdso:
                return None
            return NoRow(f"it leads to {pc:#x}, whose code cannot be checked: {fault}")
        from unwind.sources.entry import is_planted

        if is_planted(arch, place.space.find(pc), place.memory, pc):
            return None
        return NoRow(f"it leads to {pc:#x}, which follows no call")

    def _damage(self, place: Place, row: Row, cfa: int) -> str:
        """What tells that a zero was not put there to end the stack, "" if nothing does.

        Coroutine libraries begin a stack with a zero return address. But behind one that was
        overwritten the stack goes on: with more zeroes, or with return addresses further up.
        """
        word, memory, space = self.arch.word, place.memory, place.space
        rule = row.rules.get(row.return_address)
        slot = cfa + rule.n if isinstance(rule, Offset) else cfa
        try:
            if not any(memory.read(slot, _WIPED)):
                return f"and so is the stack from {slot:#x} on: it was overwritten or not saved"
        except MemoryFault:
            return ""  # the top of the stack
        region = space.region(cfa)
        top = min(cfa + _SEARCHED, region.end) if region is not None else cfa
        for at in range(cfa, top, word):
            try:
                found = int.from_bytes(memory.read(at, word), self.arch.byteorder)
            except MemoryFault:
                break
            pc = self.arch.code_address(found)
            if space.executable(pc) and self._doubt(place, found) is None:
                return f"but the stack goes on: {pc:#x} at {at:#x} follows a call"
        return ""


class _Guard:
    """Sees to it that a walk gets somewhere."""

    __slots__ = ("cfa", "seen", "signal", "space")

    def __init__(self, space: AddressSpace):
        self.space = space
        self.seen: set[tuple[int, int]] = set()
        self.cfa = 0
        self.signal = False

    def has_seen(self, place: Place, step: Step) -> bool:
        """Whether the walk was at this pc with this CFA before."""
        key = (place.pc, step.caller.cfa)
        if key in self.seen:
            return True
        self.seen.add(key)
        return False

    def check(self, place: Place, step: Step) -> Step | Stop:
        """`step` itself, or a Stop: the CFA goes down within one mapping, or only the CFA changes.

        A lawful switch of stacks leads into another mapping. Only a signal may be handled above
        what it interrupted in the same mapping, on a stack that is an array in a frame of main's.
        Recursion comes to the same pc again too, but by a return address that was saved.
        """
        cfa, below = step.caller.cfa, self.cfa
        if step.caller.pc == place.pc and place.called and _unsaved(step.row):
            detail = f"the return address of {place.pc:#x} is left where its callee left it"
            return Stop(End.NO_PROGRESS, detail, None, step.row, step.trust, step.refused, cfa)
        descends = cfa < below and not self.signal
        self.cfa, self.signal = cfa, step.row.signal
        region = self.space.region(cfa) if descends else None
        if region is None or region is not self.space.region(below):
            return step
        detail = f"the CFA goes down from {below:#x} to {cfa:#x} in one mapping"
        return Stop(End.NO_PROGRESS, detail, None, step.row, step.trust, step.refused, cfa)


def _unsaved(row: Row) -> bool:
    """Whether the row leaves the return address in a register."""
    rule = row.rules.get(row.return_address)
    return rule is None or isinstance(rule, SameValue | InRegister)


def _place(
    space: AddressSpace,
    registers: Registers,
    memory: Memory,
    pc: int,
    lookup_pc: int,
    called: bool,
) -> Place:
    module = space.find(lookup_pc)
    image = module.image if module is not None else None
    vaddr = module.to_vaddr(lookup_pc) if module is not None else lookup_pc
    return Place(image, module, vaddr, pc, space, registers, memory, called)


def _frame(place: Place, trust: str, result: Step | Stop) -> Frame:
    cfa = result.caller.cfa if isinstance(result, Step) else result.cfa
    signal = result.row is not None and result.row.signal
    if result.trust == Trust.TRAMPOLINE and trust != Trust.CONTEXT:
        trust = Trust.TRAMPOLINE  # what is at pc is known by its bytes alone
    module = place.module
    if result.trust == Trust.TRAMPOLINE:
        module = place.space.find(place.pc)  # no call lies before it, perhaps another module
    return Frame(
        place.pc, place.lookup_pc, place.registers, module, trust, place.called, cfa, signal
    )


def _stopped_by(
    error: UnwindError,
    place: Place,
    row: Row,
    trust: str,
    refused: Refused,
) -> Stop:
    """The Stop for a row that could not be applied."""
    # An answer from here on. Its traceback would hold the walk's memory and space, in a circle.
    error.__traceback__ = None
    where = f"the caller of {place.pc:#x}: "
    match error:
        case MemoryFault():
            end = End.MEMORY_FAULT
            detail = f"{where}{error}"
        case UnknownRegister(number=number):
            end = End.UNKNOWN_REGISTER
            name = place.space.arch.register_name(number)
            detail = f"{where}its row needs {name}, which is not known here"
        case FormatError():
            end = End.BAD_CFI
            detail = f"{where}{_module_name(place.module)}{error}"
        case _:
            end, detail = End.BAD_CFI, f"{where}{error}"
    return Stop(end, detail, error, row, trust, refused)


def _no_row(place: Place, refused: Refused) -> Stop:
    """The Stop for a place that no source has a row for."""
    module = place.module
    broken = next((no.reason for _, no in refused if no.failed), None)
    if broken is not None:
        return Stop(End.BAD_CFI, f"{_module_name(module)}{broken}", None, None, "", refused)
    if module is None:
        region = place.space.region(place.pc)
        what = f"in {region.name or 'an anonymous mapping'}" if region else "in no mapping"
        detail = f"pc {place.pc:#x} lies {what}, so there is no CFI for it"
        return Stop(End.NO_MODULE, detail + _others(refused), None, None, "", refused)
    if module.image is None or module.state in (State.MISSING, State.MISMATCH):
        build_id = f" (build-id {module.build_id.hex()})" if module.build_id else ""
        looked = "; ".join(module.tried) or "no file was looked for"
        detail = f"the file of {module.name}{build_id} is needed: {looked}"
        return Stop(End.NO_MODULE, detail, None, None, "", refused)
    detail = f"{module.name} has no CFI for {place.pc:#x} (vaddr {place.vaddr:#x})"
    return Stop(End.NO_ROW, detail + _others(refused), None, None, "", refused)


def _others(refused: Refused) -> str:
    """What the sources other than CFI said, for the end sentence."""
    said = [f"{trust}: {no.reason}" for trust, no in refused if trust != Trust.CFI]
    return "; " + "; ".join(said) if said else ""


def _module_name(module: Module | None) -> str:
    return f"{module.name}: " if module is not None else ""
