"""The fast walk: the pcs of a stack by integers alone, or None where the exact walk is needed."""

from __future__ import annotations

import sys
from _weakref import ref  # what `weakref` wraps, at a tenth of its cost at start-up

from unwind.architecture import pc_register
from unwind.errors import MemoryFault
from unwind.frames import End, Trace, Trust
from unwind.memory import view_of
from unwind.registers import Registers
from unwind.rules import CfaRegister, Offset, SameValue, Undefined
from unwind.snapshot import Place
from unwind.unwinder import Step

__all__ = ["FastUnwinder"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from unwind.rules import Row
    from unwind.snapshot import Snapshot
    from unwind.space import AddressSpace
    from unwind.unwinder import Unwinder

# A step is the number of words from this frame's CFA to the caller's. Where calls leave the return
# address in a register, a function stores it anywhere in its frame: then the lower bits of a step
# are the words from there up to the CFA. These are no steps:
_ON_FRAME_POINTER = -1  # the CFA hangs on the frame pointer; its offset is in `on_fp`
_OUTERMOST = -2
_UNUSUAL = -3
_IN_REGISTER = -4  # frame 0 has not stored the return address; the size is in `leaves`

_SHIFT = 14
_BACK = (1 << _SHIFT) - 1


class FastUnwinder:
    """Walks the stacks that need nothing but the stack pointer and sometimes the frame pointer.

    It shares the exact walk's table of rows and gives the same pcs and end: what packs as
    unusual (a signal frame, an expression, a damaged stack) is left to `exact`, and so is a
    return address behind no call to which a guess led.
    Restoring the frame pointer is put off until a CFA needs it, which one frame in forty does.
    """

    def __init__(self, exact: Unwinder, limit: int = 200_000):
        self.exact = exact
        self._limit = limit
        self._spaces: dict[int, _Steps] = {}  # by the id of an AddressSpace that is in use

    def trace(self, snapshot: Snapshot) -> Trace:
        """The pcs and the end of a snapshot's stack, whichever walk it takes."""
        pcs = self.pcs(snapshot)
        return (
            self.exact.unwind(snapshot).trace if pcs is None else Trace(tuple(pcs), End.OUTERMOST)
        )

    def pcs(self, snapshot: Snapshot) -> list[int] | None:
        """The pcs out to the outermost frame, or None where the exact walk must be taken."""
        arch = self.exact.arch
        registers = snapshot.registers
        pc, sp = registers.get(arch.pc), registers.get(arch.sp)
        if pc is None or sp is None or sp % arch.word:
            return None
        if arch.innermost is not pc_register:
            if arch.compressed_call_size:
                pc = arch.code_address(pc)
            if arch.innermost(arch, registers) != pc:
                return None
        clone = arch.clone
        if clone is not None and registers.get(clone.number) in (clone.clone, clone.clone3):
            return None  # perhaps a thread that has just been made: it has no caller
        sp = arch.data_address(sp)
        view = view_of(snapshot.memory, sp) or self._view_above(snapshot)
        if view is None:
            return None
        start, data = view
        if start % arch.word:
            return None
        if len(data) % arch.word:
            data = data[: len(data) // arch.word * arch.word]
        words = data.cast("Q") if arch.word == 8 else data.cast("I")
        if arch.byteorder != sys.byteorder:
            from array import array  # 0.8 ms, with the collections that it loads

            first = max((sp - start) // arch.word, 0)
            swapped = array(words.format, bytes(words[first:]))
            swapped.byteswap()
            start, words = start + first * arch.word, memoryview(swapped)
        steps = self._steps_of(snapshot.space)
        cfa = (sp - start) // arch.word
        walked = self._walk(pc, cfa, registers, words, start, steps)
        if walked is None or walked[1] != End.OUTERMOST:
            return None
        return self._checked(snapshot.space, steps, walked[0])

    def _checked(self, space: AddressSpace, steps: _Steps, found: list[int]) -> list[int] | None:
        """The pcs of return addresses as they lie in memory, None if one is not to be believed."""
        pcs = found
        if not steps.plain:
            strip = self.exact.arch.code_address
            pcs = [found[0], *[strip(word) for word in found[1:]]]
        if steps.trusts and not self._believes(space, steps, pcs, found):
            return None
        return pcs

    def _believes(
        self, space: AddressSpace, steps: _Steps, pcs: Sequence[int], found: Sequence[int]
    ) -> bool:
        """Whether each return address that no CFI led to lies behind a call.

        `found` are the return addresses as they lie in memory.
        """
        arch, window = self.exact.arch, self.exact.arch.call_window
        for n in range(1, len(pcs)):
            pc, word = pcs[n], found[n]
            if word in steps.behind_calls or (pcs[n - 1], n > 1) not in steps.trusts:
                continue
            module = space.find(pc - 1)
            if module is None or module.image is None:
                return False
            before = bytes(module.image.at(module.to_vaddr(pc - window), window))
            if not arch.is_behind_call(word, before):
                return False
            steps.behind_calls.add(word)
        return True

    def trusts(self, space: AddressSpace, pcs: Sequence[int]) -> list[str] | None:
        """How each of the frames that `pcs` found was found, None where all of them by CFI."""
        known = self._steps_of(space).trusts
        if not known:
            return None
        leads = [known.get((pc, n > 0), Trust.CFI) for n, pc in enumerate(pcs[:-1])]
        return [Trust.CONTEXT, *leads]

    def sampled(
        self, space: AddressSpace, pc: int, sp: int, fp: int, lr: int, words: memoryview
    ) -> tuple[list[int], str] | None:
        """The pcs and the end of a stack of which `words` from `sp` on are known, and no more.

        So it may end where they do. The words are in the byte order of this machine. None where
        the exact walk must be taken.
        """
        arch = self.exact.arch
        steps = self._steps_of(space)
        if sp % arch.word or arch.innermost is not pc_register or not pc:
            return None
        walked = self._walk(pc, 0, {arch.fp: fp, arch.return_address: lr}, words, sp, steps)
        if walked is None:
            return None
        found, end = walked
        if steps.plain and not steps.trusts:
            return walked
        pcs = self._checked(space, steps, found)
        if pcs is None or (end != End.OUTERMOST and (pcs[-1], len(pcs) > 1) in steps.trusts):
            return None  # where a guess cannot read its memory, another one may do better
        return pcs, end

    def _view_above(self, snapshot: Snapshot) -> tuple[int, memoryview] | None:
        """The stack that frame 0 hangs on, where sp itself has run into the guard page below."""
        step = self.exact.step(self.exact.innermost(snapshot))
        if not isinstance(step, Step):
            return None
        return view_of(snapshot.memory, step.caller.cfa - self.exact.arch.word)

    def _walk(
        self,
        pc: int,
        cfa: int,
        registers: Mapping[int, int],
        words: memoryview,
        start: int,
        steps: _Steps,
    ) -> tuple[list[int], str] | None:
        """The loop: `cfa` counts words from `start`, from the stack pointer on.

        It finds return addresses as they lie in memory, and what is kept of steps goes by them.
        The end is `outermost`, or `memory-fault` where the stack goes on beyond the words.
        """
        arch, called, plain = self.exact.arch, steps.called.get, steps.plain
        found = [pc]
        restored, fp = -1, None  # `fp` is the frame pointer of this frame, -1: not yet read
        step = steps.innermost.get(pc) or self._compile(steps, pc, called=False)
        if step == _IN_REGISTER:
            cfa += steps.leaves[pc]
            found.append(pc := registers.get(arch.return_address, 0))
            step = called(pc) or self._compile(steps, pc, called=True)
        if step > 0 and cfa < 0 and cfa + _index(step, plain) < 0:
            return None  # a negative index would wrap
        try:
            while True:
                if plain:
                    while step > 0:
                        cfa += step
                        found.append(pc := words[cfa - 1])
                        step = called(pc) or self._compile(steps, pc, called=True)
                else:
                    while step > 0:
                        cfa += step >> _SHIFT
                        found.append(pc := words[cfa - (step & _BACK)])
                        step = called(pc) or self._compile(steps, pc, called=True)
                if step != _ON_FRAME_POINTER:
                    usual = step == _OUTERMOST and len(found) <= self.exact.limit
                    return (found, End.OUTERMOST) if usual else None
                if restored < 0:
                    restored, fp = 0, registers.get(arch.fp)
                fp = self._frame_pointer(steps, found, cfa, restored, fp, words)
                if fp is None:
                    return None
                restored = len(found) - 1
                offset, back = steps.on_fp[pc, restored > 0]
                address = arch.data_address(fp + offset)
                below, cfa = cfa, (address - start) // arch.word
                if cfa <= max(below, 0) or cfa < back or address % arch.word:
                    return None
                found.append(pc := words[cfa - back])
                step = called(pc) or self._compile(steps, pc, called=True)
        except IndexError:  # beyond the end of the stack, or of what was saved of it
            return self._beyond(found, start + cfa * arch.word, steps)

    def _beyond(self, found: list[int], cfa: int, steps: _Steps) -> tuple[list[int], str] | None:
        """What a walk comes to that leads beyond the words that are known."""
        space = steps.space()
        if space is None or len(found) > self.exact.limit or space.find(cfa - 1) is not None:
            return None
        return found, End.MEMORY_FAULT

    def _frame_pointer(
        self,
        steps: _Steps,
        found: list[int],
        cfa: int,
        restored: int,
        fp: int | None,
        words: memoryview,
    ) -> int | None:
        """The frame pointer of the last frame found: where its nearest callee saved it.

        `cfa` is that of the frame before it; the steps lead back from there.
        """
        slots, called, shift = steps.fp_slots.get, steps.called.get, 0 if steps.plain else _SHIFT
        for n in range(len(found) - 2, max(restored, 1) - 1, -1):
            slot = slots(found[n])
            if slot is not None:
                break
            cfa -= called(found[n], 0) >> shift
        else:
            slot = steps.innermost_fp_slots.get(found[0]) if restored == 0 else None
        if slot is None:
            return fp
        at = cfa + slot
        return int(words[at]) if 0 <= at < len(words) else None  # a negative index would wrap

    def _steps_of(self, space: AddressSpace) -> _Steps:
        steps = self._spaces.get(id(space))
        if steps is None or steps.generation != space.generation or len(steps.called) > self._limit:
            spaces, key = self._spaces, id(space)

            def forget(_: object) -> None:
                spaces.pop(key, None)

            steps = spaces[key] = _Steps(space, forget)
        return steps

    def _compile(self, steps: _Steps, pc: int, called: bool) -> int:
        """The step out of `pc`, kept for the next time; a pc where no code lies is not kept."""
        space, arch, key = steps.space(), self.exact.arch, pc
        assert space is not None, "who walks has the space in hand"
        lookup_pc = pc
        if called:
            lookup_pc, pc = arch.call_before(pc), arch.code_address(pc)
        module = space.find(lookup_pc)
        if module is None or module.image is None or not space.executable(pc):
            return _UNUSUAL
        vaddr = module.to_vaddr(lookup_pc)
        nothing = Registers()
        place = Place(module.image, module, vaddr, pc, space, nothing, _NO_MEMORY, called)
        trust, row = self.exact.lookup.shared_row(place)
        step = _UNUSUAL
        if row is not None:
            step = steps.pack(row, key, called)
            if trust != Trust.CFI:
                steps.trusts[pc, called] = trust
        (steps.called if called else steps.innermost)[key] = step
        return step


class _Steps:
    """What is known of one address space: the step out of each pc that was met.

    `gone` is called when the space is: processes come and go.
    """

    __slots__ = (
        "arch",
        "behind_calls",
        "called",
        "fp_slots",
        "generation",
        "innermost",
        "innermost_fp_slots",
        "leaves",
        "on_fp",
        "plain",
        "space",
        "trusts",
    )

    def __init__(self, space: AddressSpace, gone: Callable[[object], None]):
        self.space = ref(space, gone)
        self.generation = space.generation
        arch = self.arch = space.arch
        # A call leaves the return address right below the CFA, and it is an address and no more.
        self.plain = arch.return_address == arch.pc
        self.called: dict[int, int] = {}  # by return address
        self.innermost: dict[int, int] = {}  # by the pc of frame 0, looked up as it is
        # (pc, called): CFA - frame pointer, bytes; words from the return address to the CFA
        self.on_fp: dict[tuple[int, bool], tuple[int, int]] = {}
        self.leaves: dict[int, int] = {}  # by the pc of frame 0: words from sp to the CFA
        self.fp_slots: dict[int, int] = {}  # by return address: words from the CFA
        self.innermost_fp_slots: dict[int, int] = {}  # by the pc of frame 0
        self.trusts: dict[tuple[int, bool], str] = {}  # (pc, called): of rows that are no CFI
        self.behind_calls: set[int] = set()  # return addresses that were looked at

    def pack(self, row: Row, pc: int, called: bool) -> int:
        """A row as a number; this happens here and nowhere else."""
        arch = self.arch
        return_address = row.rules.get(row.return_address)
        if row.signal:
            return _UNUSUAL
        match row.rules.get(arch.fp, SameValue()):
            case Offset(n=n) if n % arch.word == 0:
                (self.fp_slots if called else self.innermost_fp_slots)[pc] = n // arch.word
            case SameValue():
                pass
            case _:
                return _UNUSUAL
        match row.cfa, return_address:
            case CfaRegister(), Undefined():
                return _OUTERMOST
            case CfaRegister(number=number, offset=offset), Offset(n=n):
                back = -n // arch.word
                if n % arch.word or not 0 < back <= _BACK or arch.sp in row.rules:
                    return _UNUSUAL
                if self.plain and back != 1:
                    return _UNUSUAL
                if number == arch.fp:
                    self.on_fp[pc, called] = offset, back
                    return _ON_FRAME_POINTER
                size = offset // arch.word
                if number != arch.sp or offset % arch.word or size < back:
                    return _UNUSUAL
                return size if self.plain else size << _SHIFT | back
            case CfaRegister(number=arch.sp, offset=offset), None:
                if called or self.plain or offset < 0 or offset % arch.word:
                    return _UNUSUAL
                if arch.sp in row.rules:
                    return _UNUSUAL
                self.leaves[pc] = offset // arch.word
                return _IN_REGISTER
        return _UNUSUAL


def _index(step: int, plain: bool) -> int:
    """How far from this frame's CFA the return address lies, in words."""
    return step - 1 if plain else (step >> _SHIFT) - (step & _BACK)


class _NoMemory:
    """The memory of a Place whose rows must not depend on any."""

    def read(self, address: int, size: int) -> bytes:
        raise MemoryFault(address, size, "a shared source reads no memory")


_NO_MEMORY = _NoMemory()
