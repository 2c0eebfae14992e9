"""Where functions start: an image in, the stretch of code around a vaddr that is one function out.

Symbols, FDEs and .pdr tell, and for one place the nearest of them do: neither is made an object
of each symbol nor is each FDE read before a frame can be shown. Where none of them reaches, the
code itself tells, which takes a look at all of it.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from itertools import chain

from unwind.elf import DT, SHF
from unwind.errors import UnwindError
from unwind.pdr import extent
from unwind.survey import survey

__all__ = ["FoundStarts", "Starts", "code_of", "entry_points", "find", "find_starts"]

# No function is longer, in bytes: following a million instructions takes seconds.
_LONGEST = 1 << 20

# So much code of which nothing is told is looked through at once, which takes a second for 3 MB. Of
# more, as chromium has, it is a stretch around each place, with what lies before it, where the
# function may begin, and some of what lies behind.
_AT_ONCE = 1 << 24
_STRETCH, _BEFORE, _BEHIND = 1 << 15, 1 << 16, 1 << 14

# Less than that between two functions is padding.
_GAP = 32
# Where gaps are less than one in so many bytes, they alone are looked at.
_FEW = 50
_BEYOND = 1 << 64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from unwind.image import Image
    from unwind.machine import CodeModel, Disassemble


class Starts:
    """Starts that are known, `parts` among them: a part of a function, which nobody calls."""

    def __init__(self, image: Image, starts: Iterable[int], parts: Iterable[int] = ()):
        self._parts = frozenset(parts)
        self._starts = sorted({*starts, *self._parts})
        self._code = code_of(image)

    def around(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where none is near."""
        at = bisect_right(self._starts, vaddr) - 1
        if at < 0 or vaddr - self._starts[at] > _LONGEST:
            return None
        start = self._starts[at]
        ends = (low + len(code) for low, code in self._code if low <= start < low + len(code))
        limit = next(ends, start)
        end = min([limit, start + _LONGEST, *self._starts[at + 1 : at + 2]])
        return (start, end) if vaddr < end else None  # the next section may hold no start

    def begins(self, vaddr: int) -> bool:
        """Whether a function or a part of one begins there."""
        found = self.around(vaddr)
        return found is not None and found[0] == vaddr

    def is_part(self, start: int) -> bool:
        """Whether what begins there is known as a part of a function."""
        return start in self._parts

    def is_told(self, start: int) -> bool:
        """Whether something says that a function, or a part, begins there, rather than its code."""
        return True

    def whole_of(self, _part: int) -> Iterator[int]:
        """Where functions may start of which what begins at `part` is a part, by what is told."""
        return iter(())

    def near(self, _vaddr: int, low: int, high: int) -> list[int]:
        """The starts in [low, high) that are known as well as the one of `vaddr`."""
        return self._starts[bisect_left(self._starts, low) : bisect_left(self._starts, high)]


class FoundStarts(Starts):
    """Starts that an image tells; `untold`: by its code alone."""

    def __init__(
        self, image: Image, model: CodeModel, disassemble: Disassemble, untold: bool = False
    ):
        self._image = image
        self._code = code_of(image)
        self._search = model, disassemble
        self._untold = untold
        self._told_starts: set[int] = set()  # those that were asked for
        self._gaps: _Gaps | None = None
        self._found: dict[int, Starts] = {}  # by where the stretch begins

    def around(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where none is near."""
        told = self._told_around(vaddr)
        if told is None:
            return self._by_code(vaddr).around(vaddr)
        self._told_starts.add(told[0])
        return told

    def is_part(self, start: int) -> bool:
        """Whether what begins there is known as a part of a function, if by gcc's name for it."""
        if start not in self._told_starts and self._told_around(start) is None:
            return self._by_code(start).is_part(start)
        return any(".cold" in symbol.name for symbol in self._image.symbols.starting(start))

    def is_told(self, start: int) -> bool:
        """Whether something says that a function, or a part, begins there, rather than its code."""
        return start in self._told_starts

    def whole_of(self, part: int) -> Iterator[int]:
        """Where functions may start of which what begins at `part` is a part, by what is told.

        Compilers write the FDE of a function and then those of its parts, and gcc names a part
        after its function.
        """
        if part not in self._told_starts or self._untold:
            return
        for section in self._image.frame_sections:
            try:
                own = section.find(part)
                before = section.before(own) if own is not None else None
            except UnwindError:  # the source of CFI says what is wrong with it
                continue
            if before is not None:
                yield before.start
        for symbol in self._image.symbols.starting(part):
            name, cold, _ = symbol.name.partition(".cold")
            whole = self._image.symbols.named(name) if cold else None
            if whole is not None:
                yield whole.vaddr

    def near(self, vaddr: int, low: int, high: int) -> list[int]:
        """The starts in [low, high) that are known as well as the one of `vaddr`."""
        lists = [section.starts(low, high) for section in self._image.frame_sections]
        if self._untold or self._described(vaddr) is None:
            if self._told_around(vaddr) is None:
                return self._by_code(vaddr).near(vaddr, low, high)
            lists.append(list(self._image.symbols.starts(low, high)))
            if self._image.procedures is not None:
                starts = self._image.procedures.starts
                lists.append([start for start in starts if low <= start < high])
        return lists[0] if len(lists) == 1 else sorted({*chain(*lists)})

    def _by_code(self, vaddr: int) -> Starts:
        """The starts that the code tells: all, or where there is very much code those around."""
        image, gaps = self._image, self._gaps
        if gaps is None:
            gaps = self._gaps = _Gaps(image, self._untold)
        whole = gaps.size <= _AT_ONCE or self._search[0].survey is None
        begin = -1 if whole else vaddr & -_STRETCH
        found = self._found.get(begin)
        if found is None:
            reach = (0, _BEYOND) if whole else (begin - _BEFORE, begin + _STRETCH + _BEHIND)
            found = self._found[begin] = Starts(image, *gaps.starts(*self._search, *reach))
        return found

    def _told_around(self, vaddr: int) -> tuple[int, int] | None:
        """As `around`, where a function of known size reaches to `vaddr`, or to padding there."""
        pieces = [(low, low + len(code)) for low, code in self._code]
        low, high = next((piece for piece in pieces if piece[0] <= vaddr < piece[1]), (0, 0))
        if self._untold or not high:
            return None
        described = self._described(vaddr)
        if described is not None and described[1] - described[0] <= _LONGEST:
            return max(described[0], low), min(described[1], high)
        below, reach, above = low - 1, low - 1, high
        for start, end, behind in self._neighbours(vaddr):
            # What begins before another function does not reach into it: the end of one of .pdr
            # is a guess.
            reach = max(reach, end) if start == below else end if start > below else reach
            below, above = max(below, start), min(above, behind)
        if below < low or vaddr - below > _LONGEST:
            return None
        end = above if above - max(reach, below) < _GAP else reach
        return (below, end) if vaddr < end else None

    def _described(self, vaddr: int) -> tuple[int, int] | None:
        """Where the FDE around `vaddr` starts and ends.

        It is a function's own: a symbol inside of it is but another way in.
        """
        for section in self._image.frame_sections:
            try:
                found = section.around(vaddr)
            except UnwindError:  # the source of CFI says what is wrong with it
                continue
            if found is not None and found[0] <= vaddr < found[1]:
                return found[:2]
        return None

    def _neighbours(self, vaddr: int) -> Iterator[tuple[int, int, int]]:
        """By each that tells: the last start up to `vaddr`, its end, the next start."""
        image = self._image
        for start in entry_points(image):
            yield (start, start, vaddr + _LONGEST) if start <= vaddr else (-1, -1, start)
        symbol = image.symbols.code_around(vaddr)
        yield symbol
        if image.procedures is not None:
            starts = image.procedures.starts
            at = bisect_right(starts, vaddr)
            if 0 < at < len(starts):
                yield starts[at - 1], _end_of(image, starts[at - 1], starts[at]), starts[at]
        for section in image.frame_sections:
            try:
                found = section.around(vaddr)
            except UnwindError:  # the source of CFI says what is wrong with it
                continue
            if found is not None and found[0] == found[1] and vaddr < symbol[1]:
                yield (-1, -1, found[2])  # a hole in what describes a function begins no other
            elif found is not None:
                yield found


def find(
    image: Image, model: CodeModel, disassemble: Disassemble, untold: bool = False
) -> tuple[set[int], set[int]]:
    """Where functions of an image seem to start, and where parts of functions do."""
    return _Gaps(image, untold).starts(model, disassemble)


class _Gaps:
    """The code of an image that lies in no function of known size: `size` bytes."""

    def __init__(self, image: Image, untold: bool):
        self.image = image
        self.untold = untold
        self.told = [] if untold else sorted(_told(image))
        self.pieces = list(_gaps(image, self.told))
        self.size = sum(len(code) for _, code in self.pieces)
        self._pointers: list[int] | None = None

    def starts(
        self, model: CodeModel, disassemble: Disassemble, low: int = 0, high: int = _BEYOND
    ) -> tuple[set[int], set[int]]:
        """Where functions seem to start, and parts of functions, from `low` to `high`."""
        image = self.image
        if model.survey is None:
            return set(find_starts(image, model, self.untold)), set()
        told = self.told[bisect_left(self.told, (low, 0)) : bisect_left(self.told, (high, 0))]
        starts = {start for start, _ in told}
        if not self.untold:
            starts |= set(entry_points(image))
        gaps = _within(self.pieces, low, high)
        if not gaps:
            return starts, set()
        # Calls from functions that are known lead to those that are not.
        code = _within(sorted(code_of(image), key=lambda piece: piece[0]), low, high)
        much = _FEW * sum(len(gap) for _, gap in gaps) > sum(len(piece) for _, piece in code)
        pointers = self._pointers_to(low, high)
        found = survey(image, model, disassemble, code if much else gaps, pointers)
        lows = [begin for begin, _ in gaps]
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
        if self.told:  # where what is told ends, something else begins
            starts |= {begin for begin, _ in self.pieces if low <= begin < high} - parts
        return starts, parts - starts

    def _pointers_to(self, low: int, high: int) -> list[int]:
        """The words of data that may be addresses from `low` to `high`."""
        known = self._pointers
        if known is None:
            data = [s.data for s in self.image.segments if not s.executable]
            known = self._pointers = sorted(p for each in data for p in _pointers(self.image, each))
        return known[bisect_left(known, low) : bisect_left(known, high)]


def _within(
    pieces: Iterable[tuple[int, memoryview]], low: int, high: int
) -> list[tuple[int, memoryview]]:
    """What of some pieces, (vaddr, bytes), lies from `low` to `high`."""
    cut = ((max(at, low), code[max(low - at, 0) : max(high - at, 0)]) for at, code in pieces)
    return [(at, code) for at, code in cut if code]


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
    if not gaps:
        return
    lows = [low for low, _ in gaps]
    for low, code in gaps:
        yield low
        for start in model.starts(code, low):  # calls lead from one gap into another, too
            at = bisect_right(lows, start) - 1
            if at >= 0 and start < lows[at] + len(gaps[at][1]):
                yield start
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
    yield from entry_points(image)


def entry_points(image: Image) -> list[int]:
    """Where an image says that it is entered: by the kernel, and by the dynamic linker.

    crti.o's _init and _fini have neither CFI nor, once stripped, a symbol.
    """
    elf = image.elf
    found = [elf.header.entry] if elf.header.entry else []  # gABI 4.1: 0 stands for none
    for tag, value in elf.dynamic:
        if tag in (DT.INIT, DT.FINI) and (vaddr := elf.to_vaddr(value)) is not None:
            found.append(vaddr)
    return [start for start in found if image.executable(start)]


def _gaps(image: Image, told: Sequence[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """The code, ascending, that lies in no function of known size: (vaddr, code)."""
    for low, code in sorted(code_of(image), key=lambda piece: piece[0]):
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


def code_of(image: Image) -> list[tuple[int, memoryview]]:
    """Where code lies, and the code: (vaddr, bytes).

    Segments hold other things too: some linkers put constants into the one with the code.
    """
    wanted = SHF.ALLOC | SHF.EXECINSTR
    sections = [s for s in image.elf.sections if s.flags & wanted == wanted and s.vaddr]
    if sections:
        return [(s.vaddr, image.at(s.vaddr, s.size)) for s in sections]
    return [(s.vaddr, s.data) for s in image.segments if s.executable]


def _told(image: Image) -> Iterator[tuple[int, int]]:
    """Starts and ends of functions; where only a start is known, it is both."""
    ranges = [(s.vaddr, s.vaddr + s.memory_size) for s in image.segments if s.executable]
    named = entry_points(image)
    for start, end in image.symbols.code_extents():
        if any(low <= start < high for low, high in ranges):
            named.append(start)
            yield start, end
    named.sort()
    if image.procedures is not None:
        starts = [start for start in image.procedures.starts if image.executable(start)]
        for start, after in zip(starts, [*starts[1:], *starts[-1:]], strict=True):
            # Its code alone ends it, and what follows a call that does not return looks like more.
            at = bisect_right(named, start)
            yield start, min([_end_of(image, start, after), *named[at : at + 1]])
    for section in image.frame_sections:
        for start, end in section.extents():
            yield start, end
            yield end, end


def _end_of(image: Image, start: int, after: int) -> int:
    """Where the function of a .pdr entry ends, the next one beginning at `after`.

    There are functions without an entry between those that have one.
    """
    assert image.procedures is not None
    procedure = image.procedures.find(start)
    if procedure is None or procedure.compressed or after - start > _LONGEST:
        return after
    return start + extent(image.at(start, after - start), image.elf.header.byteorder)


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
