"""Functions of a unit: a vaddr in, the entries of the function there and of what it inlines out.

All entries of a unit are passed over once, to find where its functions are. What is inlined is
looked up in the function that was asked for, and kept.
"""

from __future__ import annotations

from bisect import bisect_right

from unwind.dwarf.reader import uleb_at
from unwind.errors import UnwindError
from unwind.lines.constants import DW_TAG
from unwind.lines.ranges import ranges_of

__all__ = ["Entry", "Functions"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.lines.ranges import Ranges
    from unwind.lines.units import Abbreviation, Unit

_MOST_ENTRIES = 1 << 22  # of a unit: they take a second
_MOST_FUNCTIONS = 1 << 18
_MOST_INLINED = 1 << 16  # calls in one function


class Entry:
    """A function, or a call that was inlined: where its attributes begin, what it covers.

    `caller` is the number of the call that it is inlined into, -1 for the function itself.
    """

    __slots__ = ("abbreviation", "at", "caller", "ranges")

    def __init__(self, abbreviation: Abbreviation, at: int, ranges: Ranges, caller: int = -1):
        self.abbreviation, self.at, self.ranges, self.caller = abbreviation, at, ranges, caller

    def covers(self, vaddr: int) -> bool:
        """Whether code at `vaddr` is its own."""
        return any(low <= vaddr < high for low, high in self.ranges)


class Functions:
    """The functions of one unit."""

    def __init__(self, unit: Unit):
        self._unit = unit
        self.problem = ""  # why some may be missing
        self._entries: list[tuple[Entry, int]] = []  # with where the children of each begin
        self._inlined: dict[int, list[Entry]] = {}
        self._find()
        self._rows = sorted(
            (low, high, number)
            for number, (entry, _) in enumerate(self._entries)
            for low, high in entry.ranges
            if low < high
        )
        self._lows = [low for low, _, _ in self._rows]
        self._reach: list[int] = []
        furthest = 0
        for _, high, _ in self._rows:
            furthest = max(furthest, high)
            self._reach.append(furthest)

    def chain(self, vaddr: int) -> list[Entry]:
        """The function at `vaddr` and the calls inlined there, innermost first; [] where none is.

        Of several the last one in the unit counts: it lies within the others.
        """
        number, at = -1, bisect_right(self._lows, vaddr) - 1
        while at >= 0 and self._reach[at] > vaddr:
            if self._rows[at][1] > vaddr:
                number = max(number, self._rows[at][2])
            at -= 1
        if number < 0:
            return []
        calls = self._inlined.get(number)
        if calls is None:
            calls = self._inlined[number] = self._calls(self._entries[number][1])
        chain = []
        innermost = next((n for n in reversed(range(len(calls))) if calls[n].covers(vaddr)), -1)
        while innermost >= 0:
            chain.append(calls[innermost])
            innermost = calls[innermost].caller
        chain.append(self._entries[number][0])
        return chain

    def _find(self) -> None:
        """Find the functions that have code."""
        unit = self._unit
        data, abbreviations, end = unit.data, unit.abbreviations, len(unit.data)
        at, left = unit.first, _MOST_ENTRIES
        try:
            while at < end:
                code = data[at]
                at += 1
                if not code:
                    continue
                if code > 0x7F:
                    code, at = uleb_at(data, at - 1)
                    if not code:
                        continue
                abbreviation = abbreviations[code]
                left -= 1
                if abbreviation.tag == DW_TAG.subprogram and abbreviation.has_code:
                    start = at
                    attributes, at = unit.attributes(abbreviation, start)
                    ranges = ranges_of(unit, attributes)
                    if ranges:
                        self._entries.append((Entry(abbreviation, start, ranges), at))
                elif abbreviation.size >= 0:
                    at += abbreviation.size
                else:
                    at = unit.skip(abbreviation, at)
                if left < 0 or len(self._entries) > _MOST_FUNCTIONS:
                    raise unit.error("a unit with too many entries", at)
        except UnwindError as error:
            self.problem = str(error)
        except (IndexError, ValueError):
            self.problem = str(unit.error("a unit ends within an entry", at))

    def _calls(self, at: int) -> list[Entry]:
        """The calls inlined into the function whose children begin at `at`, in their order."""
        unit = self._unit
        data, abbreviations, end = unit.data, unit.abbreviations, len(unit.data)
        found: list[Entry] = []
        # For each level of entries that are open: the number of the call they lie in.
        levels = [-1]
        left = _MOST_ENTRIES
        try:
            while at < end and levels:
                code = data[at]
                at += 1
                if code > 0x7F:
                    code, at = uleb_at(data, at - 1)
                if not code:
                    levels.pop()
                    continue
                abbreviation = abbreviations[code]
                number = levels[-1]
                left -= 1
                if abbreviation.tag == DW_TAG.inlined_subroutine and abbreviation.has_code:
                    attributes, after = unit.attributes(abbreviation, at)
                    ranges = ranges_of(unit, attributes)
                    if ranges:
                        found.append(Entry(abbreviation, at, ranges, number))
                        number = len(found) - 1
                    at = after
                elif abbreviation.size >= 0:
                    at += abbreviation.size
                else:
                    at = unit.skip(abbreviation, at)
                if abbreviation.children:
                    levels.append(number)
                if left < 0 or len(found) > _MOST_INLINED:
                    raise unit.error("a function with too many entries", at)
        except UnwindError as error:
            self.problem = str(error)
        except (IndexError, ValueError):
            self.problem = str(unit.error("a unit ends within an entry", at))
        return found
