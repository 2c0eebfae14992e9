"""Ranges of code: what an entry covers, and which unit covers a vaddr."""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from unwind.dwarf.reader import uleb_at
from unwind.errors import UnwindError
from unwind.lines.constants import DW_AT, DW_FORM, DW_RLE
from unwind.lines.units import unit_at, unit_offsets

__all__ = ["Coverage", "Ranges", "ranges_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from unwind.lines.sections import Sections
    from unwind.lines.units import Attributes, Unit

    Ranges: TypeAlias = "list[tuple[int, int]]"

_MOST_RANGES = 1 << 16  # of one entry: units of whole programs have some thousands
_MOST_UNITS = 1 << 18


class Coverage:
    """Which unit of a file covers a vaddr: .debug_aranges tells, else the units' own ranges.

    Compilers that write no .debug_aranges (clang) may have made some of the units, so what those
    do not cover is looked for in the units that they do not name.
    """

    def __init__(self, sections: Sections):
        self._sections = sections
        self.problem = ""
        self._listed: _Map | None = None
        self._unlisted: _Map | None = None
        self._named: set[int] = set()

    def find(self, vaddr: int) -> int | None:
        """The offset of the unit in .debug_info, or None."""
        listed = self._listed
        if listed is None:
            try:
                entries = _address_ranges(self._sections)
            except UnwindError as error:
                entries, self.problem = [], str(error)
            self._named = {unit for _, _, unit in entries}
            listed = self._listed = _Map(entries)
        found = listed.find(vaddr)
        if found is not None:
            return found
        unlisted = self._unlisted
        if unlisted is None:
            unlisted = self._unlisted = _Map(self._own())
        return unlisted.find(vaddr)

    def _own(self) -> list[tuple[int, int, int]]:
        """The ranges that units tell themselves."""
        found: list[tuple[int, int, int]] = []
        try:
            for count, offset in enumerate(unit_offsets(self._sections)):
                if count == _MOST_UNITS:
                    self.problem = "too many units"
                    break
                if offset not in self._named:
                    found += self._of_unit(offset)
        except UnwindError as error:
            self.problem = str(error)
        return found

    def _of_unit(self, offset: int) -> Iterable[tuple[int, int, int]]:
        try:
            unit = unit_at(self._sections, offset)
            return [(low, high, offset) for low, high in ranges_of(unit, unit.root)]
        except UnwindError as error:  # the others may be sound
            self.problem = str(error)
            return ()


class _Map:
    """Ranges with what lies there; of several that hold a place the one that starts last."""

    def __init__(self, entries: Iterable[tuple[int, int, int]]):
        rows = sorted((low, high, what) for low, high, what in entries if low < high)
        self._lows = [low for low, _, _ in rows]
        self._rows = rows
        self._reach: list[int] = []  # the furthest end so far
        furthest = 0
        for _, high, _ in rows:
            furthest = max(furthest, high)
            self._reach.append(furthest)

    def find(self, vaddr: int) -> int | None:
        at = bisect_right(self._lows, vaddr) - 1
        while at >= 0 and self._reach[at] > vaddr:
            if self._rows[at][1] > vaddr:
                return self._rows[at][2]
            at -= 1
        return None


def _address_ranges(sections: Sections) -> list[tuple[int, int, int]]:
    """The (start, end, unit) of .debug_aranges (DWARF 5 §6.1.2), as far as it can be read."""
    data, order = sections.get("aranges"), sections.byteorder
    found: list[tuple[int, int, int]] = []
    at = 0
    while at + 12 <= len(data):
        size, word, head = int.from_bytes(data[at : at + 4], order), 4, 4
        if size == 0xFFFF_FFFF:
            size, word, head = int.from_bytes(data[at + 4 : at + 12], order), 8, 12
        end = min(at + head + size, len(data))
        fields = bytes(data[at + head : at + head + word + 4])
        if len(fields) < word + 4 or fields[word + 3] or fields[word + 2] not in (4, 8):
            break  # cut short, or with segments, which no such machine has
        unit, address_size = int.from_bytes(fields[2 : 2 + word], order), fields[word + 2]
        # The first tuple begins at a multiple of its size, counted from the set's header.
        pair = 2 * address_size
        start = at + -(-(head + word + 4) // pair) * pair
        record = Struct(("<" if order == "little" else ">") + ("QQ" if address_size == 8 else "II"))
        table = data[start : start + max(end - start, 0) // pair * pair]
        found += [(low, low + length, unit) for low, length in record.iter_unpack(table) if length]
        at = end
    return found


def ranges_of(unit: Unit, attributes: Attributes) -> Ranges:
    """The (start, end) that an entry covers (DWARF 5 §2.17), none where it has no code."""
    if DW_AT.ranges in attributes:
        form, value = attributes[DW_AT.ranges]
        if not isinstance(value, int):
            return []
        if unit.version >= 5:
            return _range_list(unit, _list_offset(unit, form, value))
        if unit.skeleton is not None:
            value += unit.skeleton.offset_in(DW_AT.GNU_ranges_base)
        return _ranges_before_5(unit, value)
    low = unit.address(DW_AT.low_pc, attributes)
    form, _ = attributes.get(DW_AT.high_pc, (0, None))
    if low is None or not form:
        return []
    high = unit.address(DW_AT.high_pc, attributes)
    if high is None:  # DWARF 5 §2.17.2: a constant counts from the start
        value = attributes[DW_AT.high_pc][1]
        high = low + value if isinstance(value, int) else low
    return [(low, high)]


def _base_address(unit: Unit) -> int:
    """What offsets in range lists are relative to at first: DW_AT_low_pc of the unit."""
    owner = unit.skeleton or unit
    return owner.address(DW_AT.low_pc) or 0


def _ranges_before_5(unit: Unit, at: int) -> Ranges:
    """A list of .debug_ranges (DWARF 4 §2.17.3)."""
    owner = unit.skeleton or unit
    data, size = owner.sections.get("ranges"), unit.address_size
    record = Struct(("<" if unit.byteorder == "little" else ">") + ("QQ" if size == 8 else "II"))
    largest = (1 << 8 * size) - 1
    base = _base_address(unit)
    found: Ranges = []
    for _ in range(_MOST_RANGES):
        if at < 0 or at + 2 * size > len(data):
            raise owner.sections.error("a list without an end", "ranges", at)
        low, high = record.unpack_from(data, at)
        at += 2 * size
        if low == largest:
            base = high
        elif not low and not high:
            return found
        elif low < high:
            found.append((base + low, base + high))
    raise owner.sections.error("too many ranges", "ranges", at)


def _list_offset(unit: Unit, form: int, value: int) -> int:
    """Where a range list begins in .debug_rnglists (DWARF 5 §7.28)."""
    if form != DW_FORM.rnglistx:
        return value
    # The one list of offsets in a .dwo file follows the section's header.
    base = unit.offset_in(DW_AT.rnglists_base, 20 if unit.wide else 12)
    raw = bytes(unit.sections.get("rnglists")[base + value * unit.word :][: unit.word])
    if len(raw) < unit.word:
        raise unit.sections.error(f"no range list {value}", "rnglists", base)
    return base + int.from_bytes(raw, unit.byteorder)


def _range_list(unit: Unit, at: int) -> Ranges:
    """A list of .debug_rnglists (DWARF 5 §2.17.3)."""
    data, size, order = unit.sections.get("rnglists"), unit.address_size, unit.byteorder

    def address() -> int:
        nonlocal at
        raw = data[at : at + size]
        if len(raw) < size:
            raise IndexError
        at += size
        return int.from_bytes(raw, order)

    def number() -> int:
        nonlocal at
        value, at = uleb_at(data, at)
        return value

    base = _base_address(unit)
    found: Ranges = []
    try:
        for _ in range(_MOST_RANGES):
            kind = data[at]
            at += 1
            match kind:
                case DW_RLE.end_of_list:
                    return found
                case DW_RLE.base_addressx:
                    base = unit.indexed_address(number())
                    continue
                case DW_RLE.startx_endx:
                    low, high = unit.indexed_address(number()), unit.indexed_address(number())
                case DW_RLE.startx_length:
                    low = unit.indexed_address(number())
                    high = low + number()
                case DW_RLE.offset_pair:
                    low, high = base + number(), base + number()
                case DW_RLE.base_address:
                    base = address()
                    continue
                case DW_RLE.start_end:
                    low, high = address(), address()
                case DW_RLE.start_length:
                    low = address()
                    high = low + number()
                case _:
                    raise unit.sections.error(f"a range of kind {kind}", "rnglists", at - 1)
            if low < high:
                found.append((low, high))
    except (IndexError, ValueError):
        raise unit.sections.error("a list without an end", "rnglists", at) from None
    raise unit.sections.error("too many ranges", "rnglists", at)
