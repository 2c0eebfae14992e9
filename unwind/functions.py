"""Functions: a vaddr in an image in, the emulated table of the function around it out."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import chain

from unwind.emulate import Table, emulate
from unwind.machine import State
from unwind.starts import code_of

__all__ = ["Functions"]

# What does not return is called at the ends of functions. Those so near tell, in bytes, and so many
# before and behind: of a whole library all would be asked before its first frame. Ends that are
# guesses tell less.
_NEAR, _FURTHER = (1 << 16, 256), (1 << 18, 1 << 18)

# What jumps into a part is searched in so many bytes of code at a time; how far from the part jumps
# are looked at that tell where to begin, first these and then more.
_STRETCH, _LONGEST_JUMP = 1 << 16, 8
_MOST_STRETCHES = 512  # 32 MB
_AROUND = (1 << 11, 1 << 13, 1 << 15)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from unwind.image import Image
    from unwind.machine import CodeModel, Disassemble, Instruction
    from unwind.rules import Row
    from unwind.starts import Starts


class Functions:
    """The functions of an image, from their starts; tables are made when they are asked for.

    `disassemble(code, vaddr)` gives the instructions of some code. `entered` gives the states in
    which code at some starts is entered that nothing calls.
    """

    def __init__(
        self,
        image: Image,
        model: CodeModel,
        disassemble: Disassemble,
        starts: Starts,
        entered: Mapping[int, State] | None = None,
    ):
        self.image = image
        self.model = model
        self.disassemble = disassemble
        self._starts = starts
        self._told = entered or {}
        self._entered: dict[int, Table | None] = {}
        self._parts: dict[int, Table] = {}
        self._tables: dict[int, Table] = {}
        self._last: tuple[tuple[int, int], Sequence[Instruction]] = (0, 0), ()

    def bounds(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where none is near."""
        return self._starts.around(vaddr)

    def table(self, vaddr: int) -> Table | None:
        """The table of the function around `vaddr`, None where there is no code.

        A part of a function that was moved away (gcc's .cold) is entered with the states of the
        jumps that lead into it.
        """
        alone = self._alone(vaddr)
        if alone is None:
            return None
        if alone.start not in self._tables:
            if alone.start in self._told or self._is_part(alone):
                self._tables[alone.start] = self._part(alone)
            else:
                self._tables[alone.start] = alone
        return self._tables[alone.start]

    def row_from(self, start: int, vaddr: int, called: bool) -> Row | None:
        """The row at `vaddr` of a function that begins at `start`, known as such or not."""
        bounds = self.bounds(vaddr)
        end = max(vaddr + 1, bounds[1] if bounds is not None else 0)
        code = self._instructions(start, end)
        return emulate(self.model, code).row(vaddr, called) if code else None

    def _alone(self, vaddr: int) -> Table | None:
        """The table as of a function that is entered at its start only."""
        bounds = self.bounds(vaddr)
        if bounds is None:
            return None
        start = bounds[0]
        if start not in self._entered:
            code, never, told = self._instructions(*bounds), None, self._starts.is_told(start)
            if self.model.last_calls is not None:
                never = partial(self._never_return, bounds, *(_NEAR if told else _FURTHER))
            found = emulate(self.model, code, never=never, told=told) if code else None
            self._entered[start] = found
        return self._entered[start]

    def _instructions(self, start: int, end: int) -> Sequence[Instruction]:
        bounds, code = self._last
        if bounds != (start, end):
            code = self.disassemble(bytes(self.image.at(start, end - start)), start)
            self._last = (start, end), code
        return code

    def _is_part(self, table: Table) -> bool:
        """Whether what the code does shows that it is no function of its own."""
        return self._starts.is_part(table.start) or table.odd > 0 or self._home(table) is not None

    def _home(self, table: Table) -> State | None:
        """The state that a part returns to, where it jumps back as it was entered.

        Jumping into the middle of a function, without having moved the stack pointer, is sound
        only for what has that function's stack pointer there.
        """
        sp = self.model.sp
        entry = self.model.entry[sp]
        for target, state in table.leaves:
            if state.registers.get(sp) == entry and self._inside(target, table):
                other = self._alone(target)
                there = other.state(target) if other is not None and not other.odd else None
                if there is None or there.guessed > 1:
                    continue
                if there.registers.get(sp) not in (None, entry):
                    return there
        return None

    def _inside(self, target: int, table: Table) -> bool:
        """Whether a jump out of a table leads into the middle of a function.

        Sections of their own, as PLTs have, hold no halves of functions in another one.
        """
        for vaddr, code in code_of(self.image):
            if vaddr <= target < vaddr + len(code):
                same = vaddr <= table.start < vaddr + len(code)
                return same and not self._starts.begins(target)
        return False

    def _part(self, alone: Table) -> Table:
        """The table of a part, entered by jumps from functions or from other parts."""
        known = self._parts.get(alone.start)
        if known is not None:
            return known
        # What asks for it meanwhile learns nothing.
        self._parts[alone.start] = Table(
            self.model, alone.start, alone.end, (), (), 0, True, [], {}
        )
        back = self._around(self._back(alone))
        table = self._entered_by(alone, back) or self._by_search(alone)
        self._parts[alone.start] = table
        return table

    def _entered_by(self, part: Table, callers: Iterable[Table]) -> Table | None:
        """The table of a part, where the jumps of these tables into it explain all of its code."""
        entries = self._entries(part, callers)
        if not entries or part.start in self._told:
            return None
        code = self._instructions(part.start, part.end)
        table = emulate(self.model, code, entries, callable=False)
        return None if table.orphans else table

    def _by_search(self, part: Table) -> Table:
        """The table of a part, by the jumps into it.

        A compiler splits one function at a time, so what jumps into a part is one function. What
        is only taken for a part may be those of several.
        """
        told_alone = self._starts.is_told(part.start)
        entries: dict[int, State] = {}
        likely = ([start] for start in self._starts.whole_of(part.start))
        for sources in chain(likely, self._jumps_into(part)):
            for target, state in self._entries(part, self._around(sources)).items():
                entries.setdefault(target, state)
            if entries and told_alone:
                break
        told, home = self._told.get(part.start), self._home(part)
        if told is not None:
            entries[part.start] = told
        elif home is not None:
            entries.setdefault(part.start, State(home.registers, home.slots, home.guessed or 1))
        if not entries:
            return self._entered_with_more(part) or part
        code = self._instructions(part.start, part.end)
        return emulate(self.model, code, entries, callable=False)

    def _entered_with_more(self, table: Table) -> Table | None:
        """The table of code that takes more from the stack than it has put there.

        What jumps there has left it below the return address: ld.so's _dl_runtime_resolve finds
        two words of the procedure linkage table's.
        """
        sp = self.model.sp
        symbol, offset = self.model.entry[sp]
        if not table.pushed:
            return None
        registers = {**self.model.entry, sp: (symbol, offset - table.pushed)}
        entry = State(registers, {**self.model.entry_slots, **self.model.pushed_slots})
        code = self._instructions(table.start, table.end)
        found = emulate(self.model, code, {table.start: entry}, callable=False)
        return None if found.odd or found.orphans else found

    def _around(self, vaddrs: Iterable[int]) -> Iterator[Table]:
        """The tables of the functions around some places, each once."""
        seen: set[int] = set()
        for vaddr in vaddrs:
            found = self._alone(vaddr)
            if found is not None and found.start not in seen:
                seen.add(found.start)
                yield found

    def _back(self, part: Table) -> Iterator[int]:
        """Where a part jumps into the middle of functions: as a rule of the one whose it is."""
        return (target for target, _ in part.leaves if self._inside(target, part))

    def _never_return(
        self, bounds: tuple[int, int], reach: int, most: int, called: set[int]
    ) -> set[int]:
        """What functions in the neighbourhood end with a call of, of some: it does not return."""
        assert self.model.last_calls is not None
        start, end = bounds
        for vaddr, code in code_of(self.image):
            if vaddr <= start < vaddr + len(code):
                low, high = max(vaddr, start - reach), min(vaddr + len(code), end + reach)
                ends = self._starts.near(start, low, high + 1)
                at = bisect_left(ends, start)
                near = ends[max(at - most, 0) : at + most]
                return called & self.model.last_calls(code[low - vaddr : high - vaddr], low, near)
        return set()

    def _entries(self, part: Table, callers: Iterable[Table]) -> dict[int, State]:
        """The states at the places where these tables jump into another one."""
        entries: dict[int, State] = {}
        for caller in callers:
            whole = self._part(caller) if self._is_part(caller) else caller
            for target, state in whole.leaves:
                if part.start <= target < part.end:
                    entries.setdefault(target, state)
        return entries

    def _jumps_into(self, part: Table) -> Iterator[list[int]]:
        """Where jumps into a part are, stretch by stretch of the code, the likeliest first.

        Linkers put the parts of functions into the order of the functions, so the code around a
        part jumps back to where its function is, more or less.
        """
        pieces = code_of(self.image)
        stretches = [
            (vaddr + at, code[at : at + _STRETCH + _LONGEST_JUMP])
            for vaddr, code in pieces
            for at in range(0, len(code), _STRETCH)
        ]
        around = self._jumps_around(part, pieces)
        if around or len(stretches) > _MOST_STRETCHES:
            middle, near = _STRETCH // 2, around or [part.start]
            stretches.sort(key=lambda s: min(abs(s[0] + middle - target) for target in near))
        for vaddr, code in stretches[:_MOST_STRETCHES]:
            found = self.model.jumps_into(code, vaddr, part.start, part.end)
            sources = {source for source in found if not part.start <= source < part.end}
            if sources:
                yield sorted(sources)

    def _jumps_around(self, part: Table, pieces: Sequence[tuple[int, memoryview]]) -> list[int]:
        """Where the jumps lead that are nearest to a part, before and behind it, and leave it."""
        bounds = ((vaddr, vaddr + len(code), code) for vaddr, code in pieces)
        low, high, code = next(piece for piece in bounds if piece[0] <= part.start < piece[1])

        def targets(start: int, end: int, first: int, last: int) -> list[int]:
            jumps = self.model.jumps(code[start - low : end - low], start)
            return [to for to, _ in jumps if low <= to < high and not first <= to < last]

        before, behind = list[int](), list[int]()
        for reach in _AROUND:
            first, last = max(part.start - reach, low), min(part.end + reach, high)
            before = before or targets(first, part.start, first, last)[-1:]
            behind = behind or targets(part.end, last, first, last)[:1]
            if before and behind:
                break
        return before + behind
