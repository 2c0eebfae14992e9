"""Lines of an image: a vaddr in, the functions and source lines that it belongs to out.

One unit at a time is read, and only if somebody asks for a place in it.
"""

from __future__ import annotations

from bisect import bisect_right

from unwind.errors import UnwindError
from unwind.lines.constants import DW_AT, DW_FORM, DW_UT
from unwind.lines.functions import Functions
from unwind.lines.location import Location
from unwind.lines.program import LineTable, line_table
from unwind.lines.ranges import Coverage
from unwind.lines.sections import Sections
from unwind.lines.units import unit_at, unit_offsets

__all__ = ["Lines"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.elf import Elf
    from unwind.lines.functions import Entry
    from unwind.lines.units import Attributes, Unit

_MOST_HOPS = 8  # from an inlined call to its function's name
_KEPT = 1 << 26  # bytes of units whose tables are kept; all of libpython's have 13 MB


class Lines:
    """The debug info of one file.

    `alternate` finds the supplementary file (dwz), `split` the sections of a unit's split part
    by its name, its directory and its id; both are called when an entry leads there.
    `problems` has a sentence for each kind of damage that was met.
    """

    def __init__(
        self,
        elf: Elf,
        alternate: Callable[[], Elf | None] | None = None,
        split: Callable[[Unit], Unit | None] | None = None,
    ):
        self.sections = Sections(elf)
        self.problems: dict[str, None] = {}
        self._find_alternate, self._find_split = alternate, split
        self._coverage: Coverage | None = None
        self._units: dict[int, _Tables] = {}
        self._size = 0  # of those
        self._names: dict[tuple[int, int], str | None] = {}
        self._offsets: list[int] | None = None
        self._alternate: tuple[Lines | None] | None = None

    def at(self, vaddr: int) -> tuple[Location, ...]:
        """The source places of `vaddr`: the innermost inlined call first, the function last.

        () where nothing is known. Damage costs what it hides, and no more: it is in `problems`.
        """
        try:
            if self._coverage is None:
                self._coverage = Coverage(self.sections)
            offset = self._coverage.find(vaddr)
            if self._coverage.problem:
                self.problems[self._coverage.problem] = None
            if offset is None:
                return ()
            return self._locations(self._tables(offset), vaddr)
        except UnwindError as error:
            self.problems[str(error)] = None
            return ()

    def _tables(self, offset: int) -> _Tables:
        found = self._units.get(offset)
        if found is None:
            unit = unit_at(self.sections, offset)
            self._size += len(unit.data)
            while self._size > _KEPT and self._units:
                oldest = self._units.pop(next(iter(self._units)))
                self._size -= len(oldest.unit.data)
            found = self._units[offset] = _Tables(unit, self._find_split)
        return found

    def _locations(self, tables: _Tables, vaddr: int) -> tuple[Location, ...]:
        lines, functions = tables.lines, tables.functions
        chain = functions.chain(vaddr) if functions is not None else []
        for problem in tables.problems():
            self.problems[problem] = None
        row = lines.row(vaddr) if lines is not None else None
        if row is None and not chain:
            return ()
        file, line, column = row or (0, 0, 0)
        found = []
        for entry in chain:
            attributes, _ = tables.inner.attributes(entry.abbreviation, entry.at)
            name = self._name(tables.inner, entry, attributes)
            found.append(self._location(tables, name, file, line, column))
            file = _number(attributes, DW_AT.call_file)
            line = _number(attributes, DW_AT.call_line)
            column = _number(attributes, DW_AT.call_column)
        return tuple(found or [self._location(tables, None, file, line, column)])

    def _location(
        self, tables: _Tables, name: str | None, file: int, line: int, column: int
    ) -> Location:
        path = tables.lines.file(file, tables.folder) if tables.lines is not None else None
        # Line 0: code that belongs to no line (DWARF 5 §6.2.2).
        return Location(name, path, line or None, column or None)

    def _name(self, unit: Unit, entry: Entry, attributes: Attributes) -> str | None:
        """The name of a function, which may be told where it is declared."""
        key = unit.offset, entry.at
        if unit.split:
            return self._follow(unit, attributes, _MOST_HOPS)
        if key not in self._names:
            self._names[key] = self._follow(unit, attributes, _MOST_HOPS)
        return self._names[key]

    def _follow(self, unit: Unit, attributes: Attributes, hops: int) -> str | None:
        try:
            for linkage in (DW_AT.linkage_name, DW_AT.MIPS_linkage_name):
                found = self._text(unit, linkage, attributes)
                if found is not None:
                    return found
            # A declaration may know the linkage name, where the entry has a plain one.
            for way in (DW_AT.abstract_origin, DW_AT.specification):
                place = unit.reference(way, attributes)
                if place is not None and hops:
                    found = self._referred(unit, *place, hops - 1)
                    if found is not None:
                        return found
            return self._text(unit, DW_AT.name, attributes)
        except UnwindError as error:
            self.problems[str(error)] = None
            return None

    def _text(self, unit: Unit, name: int, attributes: Attributes) -> str | None:
        form, value = attributes.get(name, (0, None))
        if form in (DW_FORM.GNU_strp_alt, DW_FORM.strp_sup) and isinstance(value, int):
            alternate = self._supplement()
            return alternate.sections.text("str", value) if alternate is not None else None
        return unit.text(name, attributes)

    def _referred(self, unit: Unit, where: str, offset: int, hops: int) -> str | None:
        """The name of the entry that a reference leads to."""
        if where == "alternate":
            alternate = self._supplement()
            return alternate._referred(unit, "info", offset, hops) if alternate else None
        if where == "info" and not unit.offset <= offset < unit.offset + len(unit.data):
            if unit.split:
                return None
            unit = self._unit_around(offset)
        at = offset - unit.offset if where == "info" else offset
        if not unit.first <= at < len(unit.data):
            raise unit.error("a reference to no entry", at)
        code, at = unit.code_at(at)
        attributes, _ = unit.attributes(unit.abbreviations[code], at)
        return self._follow(unit, attributes, hops)

    def _unit_around(self, offset: int) -> Unit:
        """The unit that holds an offset of .debug_info."""
        if self._offsets is None:
            self._offsets = list(unit_offsets(self.sections))
        at = bisect_right(self._offsets, offset) - 1
        if at < 0:
            raise self.sections.error("a reference to no unit", "info", offset)
        return self._tables(self._offsets[at]).unit

    def _supplement(self) -> Lines | None:
        """The supplementary file's debug info (.gnu_debugaltlink, DWARF 5 §7.3.6)."""
        if self._alternate is None:
            elf = self._find_alternate() if self._find_alternate is not None else None
            if elf is None:
                self.problems[f"{self.sections.path}: its supplementary file is missing"] = None
            self._alternate = (Lines(elf) if elf is not None else None,)
        return self._alternate[0]


class _Tables:
    """A unit with its line table and its functions, each made when it is asked for.

    `inner` is the unit's split part where it has one, else the unit itself.
    """

    def __init__(self, unit: Unit, split: Callable[[Unit], Unit | None] | None):
        self.unit = unit
        self._find_split = split
        self._inner: Unit | None = None
        self._lines: tuple[LineTable | None] | None = None
        self._functions: tuple[Functions | None] | None = None
        self._problems: dict[str, None] = {}

    def problems(self) -> list[str]:
        """What is damaged of what was looked at."""
        tables = (self._lines or (None,))[0], (self._functions or (None,))[0]
        return [*self._problems, *(table.problem for table in tables if table and table.problem)]

    @property
    def folder(self) -> str | None:
        """The directory that relative paths start from."""
        return self._root_text(DW_AT.comp_dir)

    def _root_text(self, name: int) -> str | None:
        try:
            found = self.unit.text(name)
            return self.inner.text(name) if found is None and self.inner is not self.unit else found
        except UnwindError as error:
            self._problems[str(error)] = None
            return None

    @property
    def inner(self) -> Unit:
        found = self._inner
        if found is None:
            found = self.unit
            name = self.unit.root.keys() & {DW_AT.dwo_name, DW_AT.GNU_dwo_name}
            if (self.unit.kind == DW_UT.skeleton or name) and self._find_split is not None:
                try:
                    found = self._find_split(self.unit) or self.unit
                except UnwindError as error:
                    self._problems[str(error)] = None
            self._inner = found
        return found

    @property
    def lines(self) -> LineTable | None:
        """The unit's line table, None where it has none or its header is damaged."""
        if self._lines is None:
            made = None
            try:
                if DW_AT.stmt_list in self.unit.root:
                    offset = self.unit.offset_in(DW_AT.stmt_list)
                    made = line_table(self.unit.sections, offset, self.unit.address_size)
            except UnwindError as error:
                self._problems[str(error)] = None
            self._lines = (made,)
        return self._lines[0]

    @property
    def functions(self) -> Functions | None:
        """The unit's functions."""
        if self._functions is None:
            try:
                self._functions = (Functions(self.inner),)
            except UnwindError as error:
                self._problems[str(error)] = None
                self._functions = (None,)
        return self._functions[0]


def _number(attributes: Attributes, name: int) -> int:
    value = attributes.get(name, (0, 0))[1]
    return value if isinstance(value, int) else 0
