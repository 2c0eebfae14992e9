"""Functions: an image's code in, the emulated table of the function around a vaddr out."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right

from unwind.dwarf.cfi import Fde
from unwind.elf import SHF
from unwind.emulate import Table, emulate
from unwind.machine import State
from unwind.survey import survey
from unwind.symtab import STT

__all__ = ["Functions", "find_starts"]

# Symbols of these kinds are where functions start. STT_NOTYPE is what assembler files leave.
_CODE = frozenset({STT.FUNC, STT.GNU_IFUNC, STT.NOTYPE})

# No function is longer, in bytes: following a million instructions takes seconds.
_LONGEST = 1 << 20

# Less than that between two functions is padding.
_GAP = 32
# Where gaps are less than one in so many bytes, they alone are looked at.
_FEW = 50

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from unwind.image import Image
    from unwind.machine import CodeModel, Instruction
    from unwind.rules import Row


class Functions:
    """The functions of an image, from their starts; tables are made when they are asked for.

    `disassemble(code, vaddr)` gives the instructions of some code. Where no `starts` are given
    they are those that symbols, CFI and the code itself tell. `entered` gives the states in which
    code at some starts is entered that nothing calls.
    """

    def __init__(
        self,
        image: Image,
        model: CodeModel,
        disassemble: Callable[[bytes, int], Sequence[Instruction]],
        starts: Iterable[int] | None = None,
        entered: Mapping[int, State] | None = None,
        untold: bool = False,
    ):
        self.image = image
        self.model = model
        parts: set[int] = set()
        if starts is None:
            starts, parts = find(image, model, disassemble, untold)
        self.starts = sorted({*starts, *parts})
        self._cut = parts
        self.disassemble = disassemble
        self._told = entered or {}
        self._code = _code(image)
        self._entered: dict[int, Table | None] = {}
        self._parts: dict[int, Table] = {}
        self._tables: dict[int, Table] = {}
        self._never: frozenset[int] | None = None
        self._jumps: tuple[list[int], list[int]] | None = None

    def bounds(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where none is near."""
        at = bisect_right(self.starts, vaddr) - 1
        if at < 0 or vaddr - self.starts[at] > _LONGEST:
            return None
        start = self.starts[at]
        ends = (low + len(code) for low, code in self._code if low <= start < low + len(code))
        limit = next(ends, start)
        end = min([limit, start + _LONGEST, *self.starts[at + 1 : at + 2]])
        return (start, end) if vaddr < end else None  # the next section may hold no start

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
            elif alone.orphans:
                self._tables[alone.start] = self._whole(alone)
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
            code = self._instructions(*bounds)
            self._entered[start] = emulate(self.model, code) if code else None
        return self._entered[start]

    def _instructions(self, start: int, end: int) -> Sequence[Instruction]:
        return self.disassemble(bytes(self.image.at(start, end - start)), start)

    def _is_start(self, vaddr: int) -> bool:
        at = bisect_left(self.starts, vaddr)
        return at < len(self.starts) and self.starts[at] == vaddr

    def _is_part(self, table: Table) -> bool:
        """Whether what the code does shows that it is no function of its own."""
        return table.start in self._cut or table.odd > 0 or self._home(table) is not None

    def _home(self, table: Table) -> State | None:
        """The state that a part returns to, where it jumps back as it was entered.

        Jumping into the middle of a function, without having moved the stack pointer, is sound
        only for what has that function's stack pointer there.
        """
        sp = self.model.sp
        entry = self.model.entry[sp]
        for target, state in table.leaves:
            if state.registers.get(sp) == entry and not self._is_start(target):
                other = self._alone(target)
                there = other.state(target) if other is not None and not other.odd else None
                if there is None or there.guessed > 1:
                    continue
                if there.registers.get(sp) not in (None, entry):
                    return there
        return None

    def _part(self, alone: Table) -> Table:
        """The table of a part, entered by jumps from functions or from other parts."""
        known = self._parts.get(alone.start)
        if known is not None:
            return known
        # What asks for it meanwhile learns nothing.
        self._parts[alone.start] = Table(
            self.model, alone.start, alone.end, (), (), 0, True, [], {}
        )
        entries = self._entries(alone, lambda table: table)
        told, home = self._told.get(alone.start), self._home(alone)
        if told is not None:
            entries[alone.start] = told
        elif home is not None:
            entries.setdefault(alone.start, State(home.registers, home.slots, home.guessed or 1))
        if entries:
            code = self._instructions(alone.start, alone.end)
            self._parts[alone.start] = emulate(self.model, code, entries, callable=False)
        else:
            self._parts[alone.start] = alone
        return self._parts[alone.start]

    def _whole(self, alone: Table) -> Table:
        """The table of a function some of whose code is reached only from its parts."""
        entries = self._entries(alone, lambda table: None)
        never = self._never_return()
        if not entries and not never:
            return alone
        code = self._instructions(alone.start, alone.end)
        return emulate(self.model, code, entries, never=never)

    def _never_return(self) -> frozenset[int]:
        """What functions end with a call of: it does not return."""
        if self._never is None:
            found = set()
            for low, code in self._code:
                first, last = (
                    bisect_right(self.starts, low),
                    bisect_left(self.starts, low + len(code)),
                )
                for end in self.starts[first:last]:
                    target = self.model.last_call(code[: end - low], end)
                    if target is not None:
                        found.add(target)
            self._never = frozenset(found)
        return self._never

    def _entries(
        self, alone: Table, of_functions: Callable[[Table], Table | None]
    ) -> dict[int, State]:
        """The states at the places where other code jumps into this one."""
        entries: dict[int, State] = {}
        for source, target in self._jumps_into(alone.start, alone.end):
            caller = self._alone(source)
            if caller is None:
                continue
            caller = self._part(caller) if self._is_part(caller) else of_functions(caller)
            for leads_to, state in caller.leaves if caller is not None else ():
                if leads_to == target:
                    entries.setdefault(target, state)
        return entries

    def _jumps_into(self, start: int, end: int) -> list[tuple[int, int]]:
        if self._jumps is None:
            found: list[tuple[int, int]] = []
            for low, code in self._code:
                found += self.model.jumps(code, low)
            found.sort()
            self._jumps = [target for target, _ in found], [source for _, source in found]
        targets, sources = self._jumps
        first, last = bisect_left(targets, start), bisect_left(targets, end)
        return [
            (sources[n], targets[n]) for n in range(first, last) if not start <= sources[n] < end
        ]


def find(
    image: Image,
    model: CodeModel,
    disassemble: Callable[[bytes, int], Sequence[Instruction]],
    untold: bool = False,
) -> tuple[set[int], set[int]]:
    """Where functions of an image seem to start, and where parts of functions do."""
    if model.survey is None:
        return set(find_starts(image, model, untold)), set()
    told = [] if untold else sorted(_told(image))
    gaps = list(_gaps(image, told))
    starts = {start for start, _ in told}
    parts: set[int] = set()
    if gaps:
        data = [s.data for s in image.segments if not s.executable]
        pointers = [pointer for each in data for pointer in _pointers(image, each)]
        code = sorted(_code(image), key=lambda piece: piece[0])
        # Calls from functions that are known lead to those that are not.
        much = _FEW * sum(len(gap) for _, gap in gaps) > sum(len(piece) for _, piece in code)
        found = survey(image, model, disassemble, code if much else gaps, pointers)
        lows = [low for low, _ in gaps]
        functions, parts = (
            {
                vaddr
                for vaddr in each
                if (at := bisect_right(lows, vaddr) - 1) >= 0
                and vaddr < lows[at] + len(gaps[at][1])
            }
            for each in found
        )
        starts |= functions
    return starts, parts - starts


def find_starts(image: Image, model: CodeModel, untold: bool = False) -> Iterator[int]:
    """Where functions of an image seem to start; `untold`: judged by the code alone.

    Symbols, FDEs and .pdr know, as far as they reach: of a stripped program they may tell only
    what the C library's start-up files brought. Elsewhere the code tells by its direct calls, by
    addresses of code that it takes or that lie in data, and by what begins like a function behind
    a gap.
    """
    told = [] if untold else sorted(_told(image))
    yield from (start for start, _ in told)
    gaps = list(_gaps(image, told))
    for low, code in gaps:
        yield low
        for start in model.starts(code, low):
            if low <= start < low + len(code):
                yield start
    if not gaps:
        return
    lows = [low for low, _ in gaps]
    for segment in image.segments:
        if not segment.executable:
            for pointer in _pointers(image, segment.data):
                at = bisect_right(lows, pointer) - 1
                # Jump tables hold addresses too, but of what is seldom aligned behind a gap.
                if (
                    at >= 0
                    and pointer < lows[at] + len(gaps[at][1])
                    and model.begins(image.at(pointer - 8), pointer)
                ):
                    yield pointer
    entry = image.elf.header.entry
    if image.executable(entry):
        yield entry


def _gaps(image: Image, told: Sequence[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """The code, ascending, that lies in no function of known size: (vaddr, code)."""
    for low, code in sorted(_code(image), key=lambda piece: piece[0]):
        end = low + len(code)
        at = low
        first = bisect_left(told, (low, 0))
        for start, stop in [*told[max(0, first - 1) :], (end, end)]:
            if start >= end:
                start = end
            if start - at >= _GAP:
                yield at, code[at - low : start - low]
            at = max(at, stop)
            if start == end:
                break


def _code(image: Image) -> list[tuple[int, memoryview]]:
    """Where code lies, and the code.

    Segments hold other things too: some linkers put constants into the one with the code.
    """
    wanted = SHF.ALLOC | SHF.EXECINSTR
    sections = [s for s in image.elf.sections if s.flags & wanted == wanted and s.vaddr]
    if sections:
        return [(s.vaddr, image.at(s.vaddr, s.size)) for s in sections]
    return [(s.vaddr, s.data) for s in image.segments if s.executable]


def _told(image: Image) -> Iterator[tuple[int, int]]:
    """Starts and ends of functions; where only a start is known, it is both."""
    for symbol in image.symbols:
        if symbol.kind in _CODE and image.executable(symbol.vaddr):
            yield symbol.vaddr, symbol.vaddr + symbol.size
    if image.procedures is not None:
        starts = [start for start in image.procedures.starts if image.executable(start)]
        yield from zip(starts, [*starts[1:], *starts[-1:]], strict=True)
    for section in image.frame_sections:
        for entry in section.entries():
            if isinstance(entry, Fde) and entry.start < entry.end:
                yield entry.start, entry.end
                yield entry.end, entry.end


def _pointers(image: Image, data: memoryview) -> Iterator[int]:
    """The words of some data that may be addresses of functions.

    Tables of functions hold them as they are, the relocations of a PIE as addends.
    """
    header = image.elf.header
    word, code = (8, "Q") if header.elf_class == 64 else (4, "I")
    words = array(code, bytes(data[: len(data) // word * word]))
    if header.byteorder != sys.byteorder:
        words.byteswap()
    for segment in image.segments:
        if segment.executable:
            low, high = segment.vaddr, segment.vaddr + segment.memory_size
            yield from {value for value in words if low <= value < high}
