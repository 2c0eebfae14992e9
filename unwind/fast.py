"""The fast walk: the pcs of a stack by integers alone, or None where the exact walk is needed."""

from __future__ import annotations

import sys
from _weakref import ref  # what `weakref` wraps, at a tenth of its cost at start-up

from unwind.architecture import pc_register
from unwind.dwarf.outlines import ODD, UNDEFINED, UNSAVED, outline
from unwind.errors import MemoryFault, UnwindError
from unwind.frames import End, Trace, Trust
from unwind.memory import view_of
from unwind.registers import Registers
from unwind.rules import CfaExpression, CfaRegister
from unwind.runs import Runs
from unwind.snapshot import Place
from unwind.unwinder import Step

__all__ = ["FastUnwinder"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from unwind.dwarf.outlines import Outline
    from unwind.image import Image
    from unwind.lookup import Lookup
    from unwind.rules import Row
    from unwind.snapshot import Snapshot
    from unwind.space import AddressSpace
    from unwind.unwinder import Unwinder

    _Reach: TypeAlias = tuple[int, int, int, Image | None]

# A step is the number of words from this frame's CFA to the caller's. Where calls leave the return
# address in a register, a function stores it anywhere in its frame: then the lower bits of a step
# are the words from there up to the CFA. These are no steps:
_ON_FRAME_POINTER = -1  # the CFA hangs on the frame pointer; its offset is in `on_fp`
_OUTERMOST = -2
_UNUSUAL = -3
_IN_REGISTER = -4  # frame 0 has not stored the return address; the size is in `leaves`
_GUESSED = -5  # no CFI leads on from here; the step is in `guesses`
_RUN = -6  # what follows is known, and to be checked, more than one step far: it is in `runs`

_WORD = 0xFFFF_FFFF_FFFF_FFFF
_NOWHERE: _Reach = 0, 0, 0, None

_FIRST = 16  # bytes of code from an entry point on, which may hold a call but no second function

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
        self._is_at_pc = exact.arch.innermost is pc_register
        self._spaces: dict[int, _Steps] = {}  # by the id of an AddressSpace that is in use
        self._space: AddressSpace | None = None  # the last one that `sampled` met, and its steps
        self._steps: _Steps

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
        step = steps.innermost.get(pc) or steps.compiled(pc, False)
        if cfa < 0 and (step <= _IN_REGISTER or cfa + _index(step, steps.plain) < 0 < step):
            return None  # a negative index would wrap
        walked = self._walk([pc], (cfa, step, -1, None), registers, words, start, steps)
        if walked is None or walked[1] != End.OUTERMOST:
            return None
        found, _, guessed = walked
        return self._checked(snapshot.space, steps, found, guessed)

    def _checked(
        self, space: AddressSpace, steps: _Steps, found: list[int], guessed: bool
    ) -> list[int] | None:
        """The pcs of return addresses as they lie in memory, None if one is not to be believed."""
        pcs = found
        if not steps.plain:
            strip = self.exact.arch.code_address
            pcs = [found[0], *[strip(word) for word in found[1:]]]
        if guessed and not self._believes(space, steps, pcs, found):
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
        steps = self._spaces.get(id(space))  # also where that is full, and to be forgotten
        known = steps.trusts if steps is not None else None
        if not known:
            return None
        leads = [known.get((pc, n > 0), Trust.CFI) for n, pc in enumerate(pcs[:-1])]
        return [Trust.CONTEXT, *leads]

    def sampled(
        self, space: AddressSpace, pc: int, sp: int, fp: int, lr: int, words: memoryview
    ) -> tuple[list[int], str, bool] | None:
        """The pcs and the end of a stack of which `words` from `sp` on are known, and no more.

        So it may end where they do. The words are in the byte order of this machine. The last
        says whether guesses were needed: then `trusts` tells how the frames were found. None
        where the exact walk must be taken.
        """
        if space is not self._space or space.generation != self._steps.generation:
            self._space, self._steps = space, self._steps_of(space)
        steps, arch = self._steps, self.exact.arch
        if sp % arch.word or not pc or not self._is_at_pc:
            return None
        found, slot, step = [pc], -1, steps.innermost.get(pc) or steps.compiled(pc, False)
        called, runs, fp_slots = steps.called, steps.runs, steps.fp_slots
        restored, saved_fp = -1, None
        while steps.is_quick:  # most stacks need no more than this, and no mapping of registers
            try:
                while step > 0:
                    slot += step
                    found.append(pc := words[slot])
                    step = called[pc]
                if step == _RUN:
                    read, expected, reach, step = runs.known[pc]
                    if slot + reach < len(words) and read(words, 8 * slot + 8) == expected:
                        found += expected
                        slot += reach
                        step = called[pc := expected[-1]]
                    else:
                        runs.failed(pc)
                    continue
                if step == _ON_FRAME_POINTER and restored < 0:
                    n, at, saved = len(found) - 2, slot + 1, None
                    while n > 0 and (saved := fp_slots.get(found[n])) is None:
                        size = called[found[n]]  # as _frame_pointer looks for it
                        at -= size if size > 0 else runs.step(found[n])
                        n -= 1
                    if saved is not None and 0 <= at + saved < at:
                        restored, saved_fp = len(found) - 1, words[at + saved]
                        size = (saved_fp + steps.on_fp[pc, True][0] & _WORD) - sp
                        if slot < (size >> 3) - 1 < len(words) and not size & 7:
                            slot = (size >> 3) - 1
                            found.append(pc := words[slot])
                            step = called[pc]
                            continue
            except KeyError:  # the first time in this place
                step = steps.compiled(pc, True)
                continue
            except IndexError:
                slot -= step
                break
            runs.due -= 1
            if runs.due <= 0:
                runs.learn(found)
            if step == _OUTERMOST and len(found) <= self.exact.limit:
                return found, End.OUTERMOST, False
            break
        if not steps.plain:
            sp = arch.data_address(sp)
        registers = {arch.fp: fp, arch.return_address: lr}
        begun = slot + 1, step, restored, saved_fp
        walked = self._walk(found, begun, registers, words, sp, steps)
        if walked is None or (steps.plain and not walked[2]):
            return walked
        found, end, guessed = walked
        pcs = self._checked(space, steps, found, guessed)
        if pcs is None or (end != End.OUTERMOST and (pcs[-1], len(pcs) > 1) in steps.trusts):
            return None  # where a guess cannot read its memory, another one may do better
        return pcs, end, guessed

    def _view_above(self, snapshot: Snapshot) -> tuple[int, memoryview] | None:
        """The stack that frame 0 hangs on, where sp itself has run into the guard page below."""
        step = self.exact.step(self.exact.innermost(snapshot))
        if not isinstance(step, Step):
            return None
        return view_of(snapshot.memory, step.caller.cfa - self.exact.arch.word)

    def _walk(
        self,
        found: list[int],
        begun: tuple[int, int, int, int | None],
        registers: Mapping[int, int],
        words: memoryview,
        start: int,
        steps: _Steps,
    ) -> tuple[list[int], str, bool] | None:
        """The loop, from the last frame in `found` on.

        `begun` has the CFA of the frame before, the stack pointer for frame 0, in words from
        `start` on; the step out of the last frame; of which frame the frame pointer is known, -1
        if of none, and what it is. The loop finds return addresses as they lie in memory, and
        what is kept of steps goes by them. The end is `outermost`, or `memory-fault` where the
        stack goes on beyond the words.
        The last says whether a guess was among the steps.
        """
        arch, called, plain, guessed = self.exact.arch, steps.called, steps.plain, False
        cfa, step, restored, fp = begun
        pc = found[-1]
        append, fp_slots, word = found.append, steps.fp_slots.get, arch.word
        while True:
            slot = cfa - 1
            try:
                if plain:
                    while step > 0:
                        slot += step
                        append(pc := words[slot])
                        step = called[pc]
                    cfa = slot + 1
                else:
                    while step > 0:
                        cfa += step >> _SHIFT
                        append(pc := words[cfa - (step & _BACK)])
                        step = called[pc]
                if step == _IN_REGISTER:
                    cfa += steps.leaves[pc]
                    append(pc := registers.get(arch.return_address, 0))
                    step = called[pc]
                    continue
                if step == _RUN:
                    step = steps.runs.step(pc)
                    continue
                if step == _GUESSED:
                    guessed = True
                    step = steps.guesses[pc, len(found) > 1]
                    if step > 0:
                        cfa += step if plain else step >> _SHIFT
                        slot = cfa - 1
                        append(pc := words[cfa - (1 if plain else step & _BACK)])
                        step = called[pc]
                        continue
                if step != _ON_FRAME_POINTER:
                    usual = step == _OUTERMOST and len(found) <= self.exact.limit
                    return (found, End.OUTERMOST, guessed) if usual else None
                n, saved = len(found) - 2, None
                if n > 0 and n >= restored:
                    saved = fp_slots(found[n])
                if saved is not None and 0 <= cfa + saved < cfa:
                    fp = words[cfa + saved]  # the callee has saved it: mostly so
                    restored = n + 1
                else:
                    if restored < 0:
                        restored, fp = 0, registers.get(arch.fp)
                    fp = self._frame_pointer(steps, found, cfa, restored, fp, words)
                    if fp is None:
                        return None
                    restored = n + 1
                offset, back = steps.on_fp[pc, n >= 0]
                address = fp + offset & _WORD if plain else arch.data_address(fp + offset)
                below, cfa = cfa, (address - start) // word
                slot = cfa - 1
                if cfa <= below or cfa < back or cfa <= 0 or address % word:
                    return None
                append(pc := words[cfa - back])
                step = called[pc]
            except KeyError:  # the first time in this place
                if plain:
                    cfa = slot + 1
                step = steps.compiled(pc, True)
            except IndexError:  # beyond the end of the stack, or of what was saved of it
                if plain and step > 0:
                    cfa = slot + 1
                if len(found) > self.exact.limit or steps.holds(start + cfa * arch.word - 1):
                    return None
                return found, End.MEMORY_FAULT, guessed

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
        if len(found) == 1:
            return fp  # frame 0 has it in the register, wherever it has saved its caller's
        slots, shift = steps.fp_slots.get, 0 if steps.plain else _SHIFT
        for n in range(len(found) - 2, max(restored, 1) - 1, -1):
            slot = slots(found[n])
            if slot is not None:
                break
            step = steps.runs.step(found[n])
            cfa -= (steps.guesses[found[n], True] if step == _GUESSED else step) >> shift
        else:
            slot = steps.innermost_fp_slots.get(found[0]) if restored == 0 else None
        if slot is None:
            return fp
        at = cfa + slot
        return int(words[at]) if 0 <= at < len(words) else None  # a negative index would wrap

    def _steps_of(self, space: AddressSpace) -> _Steps:
        """What is known of `space`; it goes when the space does: processes come and go."""
        steps = self._spaces.get(id(space))
        if steps is None or steps.generation != space.generation:
            spaces, key = self._spaces, id(space)

            def forget(_: object) -> None:
                spaces.pop(key, None)

            steps = spaces[key] = _Steps(space, self.exact.lookup, forget, self._limit)
        return steps


class _Steps:
    """What is known of one address space: the step out of each pc that was met.

    `gone` is called when the space is.
    """

    __slots__ = (
        "_is_bare",
        "_limit",
        "_packed",
        "_reach",
        "arch",
        "behind_calls",
        "called",
        "fp_slots",
        "generation",
        "guesses",
        "innermost",
        "innermost_fp_slots",
        "is_quick",
        "leaves",
        "lookup",
        "on_fp",
        "plain",
        "runs",
        "space",
        "trusts",
    )

    def __init__(
        self,
        space: AddressSpace,
        lookup: Lookup,
        gone: Callable[[object], None],
        limit: int,
    ):
        self._limit = limit
        self.space = ref(space, gone)
        self.generation = space.generation
        self.lookup = lookup
        arch = self.arch = space.arch
        # A call leaves the return address right below the CFA, and it is an address and no more.
        self.plain = arch.return_address == arch.pc
        self.is_quick = self.plain and arch.word == 8
        # A return address is the address of code and holds nothing else.
        self._is_bare = arch.code_mask == _WORD and not arch.compressed_call_size
        # (pc, called): CFA - frame pointer, bytes; words from the return address to the CFA
        self.on_fp: dict[tuple[int, bool], tuple[int, int]] = {}
        self.leaves: dict[int, int] = {}  # by the pc of frame 0: words from sp to the CFA
        self.fp_slots: dict[int, int] = {}  # by return address: words from the CFA
        self.innermost_fp_slots: dict[int, int] = {}  # by the pc of frame 0
        self.guesses: dict[tuple[int, bool], int] = {}  # (pc, called): steps that no CFI tells
        self.trusts: dict[tuple[int, bool], str] = {}  # (code address, called): of those
        self.behind_calls: set[int] = set()  # return addresses that were looked at
        self._reach = _NOWHERE  # where the last place lay
        self._packed: dict[Outline, tuple[int, int | None, tuple[int, int]]] = {}
        # By return address, and by the pc of frame 0, which is looked up as it is. What is not
        # there is for `compiled` to make; a dict of a class of its own would take 9 ns more.
        self.called: dict[int, int] = {}
        self.innermost: dict[int, int] = {}
        self.runs = Runs(self.called, _RUN)

    def holds(self, address: int) -> bool:
        """Whether code is mapped at `address`."""
        space = self.space()
        return space is None or space.find(address) is not None

    def compiled(self, pc: int, called: bool) -> int:
        """The step out of a pc that was not met before, kept from now on.

        When there are too many of them, all is forgotten once this walk is done.
        """
        step, keep = self._compile(pc, called)
        if keep:
            steps = self.called if called else self.innermost
            steps[pc] = step
            if len(steps) > self._limit:
                self.generation = -1
        return step

    def _compile(self, pc: int, called: bool) -> tuple[int, bool]:
        """The step out of `pc`, and whether it is to be kept: not where no code lies."""
        arch, key = self.arch, pc
        lookup_pc = pc
        if called and self._is_bare:
            lookup_pc = pc - arch.call_size
        elif called:
            lookup_pc, pc = arch.call_before(pc), arch.code_address(pc)
        low, high, bias, image = self._reach
        if not low <= lookup_pc <= pc < high or image is None:
            self._reach = low, high, bias, image = self._reach_of(lookup_pc, pc)
            if image is None:
                return _UNUSUAL, False
        vaddr = lookup_pc - bias & _WORD
        known = self.lookup.outline(image, vaddr, called)
        if known is not None:
            return self._keep(known, key, called), True
        if called and self._begins_program(image, vaddr):
            self.trusts[pc, called] = Trust.EMULATION
            self.guesses[key, called] = _OUTERMOST
            return _GUESSED, True
        space = self.space()
        assert space is not None, "who walks has the space in hand"
        module = space.find(lookup_pc)
        place = Place(image, module, vaddr, pc, space, Registers(), _NO_MEMORY, called)
        trust, row = self.lookup.shared_row(place)
        if row is None or row.signal:
            return _UNUSUAL, True
        step = self._keep(outline(self._plain(row, pc), arch.fp, arch.sp), key, called)
        if trust != Trust.CFI and step != _UNUSUAL:
            self.trusts[pc, called] = trust
            self.guesses[key, called] = step
            step = _GUESSED
        return step, True

    def _reach_of(self, lookup_pc: int, pc: int) -> _Reach:
        """The code around a place: from where to where, its bias and image; None: no code."""
        space = self.space()
        module = space.find(lookup_pc) if space is not None else None
        code = space.code(pc) if space is not None else None
        if module is None or module.image is None or code is None:
            return _NOWHERE
        if code[0] <= lookup_pc:
            for start, end in module.ranges:
                if start <= lookup_pc < end:
                    start, end = max(start, code[0]), min(end, code[1])
                    if pc < end:
                        return start, end, module.bias, module.image
        # This one place, and no more.
        return lookup_pc, pc + 1, module.bias, module.image

    def _begins_program(self, image: Image, vaddr: int) -> bool:
        """Whether the call at `vaddr`, of which no CFI tells, is one of a program's first ones.

        The analysis of the code says so too, and of how far the entry point's function goes. But
        there is one such place in each recording of a program from its start, the dynamic
        linker's, and to load the disassembler for it takes as long as a thousand samples.
        """
        entry = image.elf.header.entry
        if not 0 < entry <= vaddr < entry + _FIRST or Trust.EMULATION not in self.lookup.trusts:
            return False
        frames = next(iter(image.frame_sections), None)
        symbol = image.symbols.find(vaddr)
        try:
            described = frames is not None and frames.find(vaddr) is not None
        except UnwindError:
            return False
        return not described and (symbol is None or symbol.vaddr <= entry)

    def _plain(self, row: Row, pc: int) -> Row:
        """The row itself; where its CFA is an expression of the stack pointer, a plain one."""
        arch, cfa = self.arch, row.cfa
        if not isinstance(cfa, CfaExpression):
            return row
        from unwind.dwarf.expression import distance

        word, order = arch.word, arch.byteorder
        n = distance(cfa.code, arch.sp, {arch.pc: pc}, _NO_MEMORY, word=word, byteorder=order)
        plain: Row = row if n is None else row.replace(cfa=CfaRegister(arch.sp, n))
        return plain

    def _keep(self, row: Outline, pc: int, called: bool) -> int:
        """The step of a row, with what else is wanted of it kept by its pc."""
        packed = self._packed.get(row)
        if packed is None:
            packed = self._packed[row] = self._pack(row)
        step, slot, more = packed
        if slot is not None:
            (self.fp_slots if called else self.innermost_fp_slots)[pc] = slot
        if step == _ON_FRAME_POINTER:
            self.on_fp[pc, called] = more
        elif step == _IN_REGISTER:
            if called:
                return _UNUSUAL
            self.leaves[pc] = more[0]
        return step

    def _pack(self, row: Outline) -> tuple[int, int | None, tuple[int, int]]:
        """A row as a number; this happens here and nowhere else.

        Behind the step stand how many words from the CFA the frame pointer is saved, None where
        it is not, and what `on_fp` and `leaves` hold.
        """
        arch, word = self.arch, self.arch.word
        register, offset, saved_pc, saved_fp, saved_sp = row
        slot, nothing = None, (0, 0)
        if saved_fp != UNSAVED:
            if saved_fp % word:  # UNDEFINED and ODD are such numbers, too
                return _UNUSUAL, None, nothing
            slot = saved_fp // word
        if register == ODD:
            return _UNUSUAL, slot, nothing
        if saved_pc == UNDEFINED:
            return _OUTERMOST, slot, nothing
        if saved_sp != UNSAVED:
            return _UNUSUAL, slot, nothing
        size = offset // word
        if saved_pc == UNSAVED:
            if self.plain or offset < 0 or offset % word or register != arch.sp:
                return _UNUSUAL, slot, nothing
            return _IN_REGISTER, slot, (size, 0)
        back = -saved_pc // word
        if saved_pc % word or not 0 < back <= _BACK or (self.plain and back != 1):
            return _UNUSUAL, slot, nothing
        if register == arch.fp:
            return _ON_FRAME_POINTER, slot, (offset, back)
        if register != arch.sp or offset % word or size < back:
            return _UNUSUAL, slot, nothing
        return size if self.plain else size << _SHIFT | back, slot, nothing


def _index(step: int, plain: bool) -> int:
    """How far from this frame's CFA the return address lies, in words."""
    return step - 1 if plain else (step >> _SHIFT) - (step & _BACK)


class _NoMemory:
    """The memory of a Place whose rows must not depend on any."""

    def read(self, address: int, size: int) -> bytes:
        raise MemoryFault(address, size, "a shared source reads no memory")


_NO_MEMORY = _NoMemory()
