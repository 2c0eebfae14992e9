"""Symbols of an image: a vaddr in, the symbol people know that place by out.

Which one that is among several follows libdwfl (`dwfl_module_addrinfo`), so that names agree with
eu-stack's:

  - of the symbols with a size, one that contains the vaddr: global and weak ones before local
    ones, then the one that starts closest, then the smaller, then the stronger binding;
  - else a label without a size, if nothing begins or ends between it and the vaddr and both
    lie in one section.

The first question to a large table scans two columns of it, the next one sorts an index.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import compress

from unwind.errors import UnwindError

__all__ = ["SymbolTable"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.symtab import Symbol, Table

_SHN_LORESERVE = 0xFF00
_MOST_ALIASES = 1000  # of one place that are compared
_BEYOND = 1 << 65  # no symbol ends there: start and size are 64-bit numbers
_BLOCK = 256
_ALIASES = 16  # symbols at one place that are compared, to tell for how far one is the answer
_FEW = 8192  # symbols of which an index is made at once: it takes 1 ms, a scan one third
_SCANS = 3  # for what lies around some code, before it gets an index, which costs as much
_DEAD = -1  # as the end of a symbol that turned out to be none


class _Index:
    """The eligible symbols of a run by ascending start; equal ones in the table's order."""

    __slots__ = ("_blocks", "ends", "order", "starts")

    def __init__(self, table: Table, low: int, high: int):
        starts, sizes = table.starts(low, high), table.sizes(low, high)
        places = list(compress(range(high - low), table.eligible(low, high)))
        places.sort(key=starts.__getitem__)
        self.starts = list(map(starts.__getitem__, places))
        self.ends = [start + sizes[at] for start, at in zip(self.starts, places, strict=True)]
        self.order = [at + low for at in places]
        ends = self.ends
        self._blocks = [max(ends[at : at + _BLOCK]) for at in range(0, len(ends), _BLOCK)]

    def rightmost(self, position: int, bound: int) -> int:
        """The last place before `position` whose symbol ends beyond `bound`, or -1.

        Whole blocks are passed over, so that a table made to be slow is not.
        """
        ends, blocks = self.ends, self._blocks
        at = position - 1
        while at >= 0:
            block = at // _BLOCK
            low = block * _BLOCK
            if blocks[block] > bound:
                while at >= low:
                    if ends[at] > bound:
                        return at
                    at -= 1
            at = low - 1
        return -1

    def drop(self, place: int) -> None:
        """Let `place` never be an answer again."""
        self.ends[place] = _DEAD
        low = place // _BLOCK * _BLOCK
        self._blocks[place // _BLOCK] = max(self.ends[low : low + _BLOCK])


class _Run:
    """The local or the other symbols of a table, and their index once it is worth one."""

    __slots__ = ("_asked", "_index", "_scans", "_starts", "high", "low", "table")

    def __init__(self, table: Table, low: int, high: int):
        self.table, self.low, self.high = table, low, high
        self._asked = False
        self._scans = 0
        self._starts: list[int] | None = None  # between two scans, which often come together
        self._index: _Index | None = None

    @property
    def index(self) -> _Index | None:
        """The index, None as long as nobody has needed it."""
        return self._index

    def _indexed(self) -> _Index:
        index = self._index
        if index is None:
            index = self._index = _Index(self.table, self.low, self.high)
        return index

    def covering(self, vaddr: int) -> tuple[int, list[int]]:
        """The closest start at which sized symbols that contain `vaddr` begin, and those symbols.

        In the table's order; (-1, []) where there are none.
        """
        if self.low >= self.high:
            return -1, []
        if not self._asked and self.high - self.low > _FEW:
            self._asked = True
            return self._scan(vaddr)
        index = self._indexed()
        place = bisect_right(index.starts, vaddr)
        while (place := index.rightmost(place, vaddr)) >= 0:
            start = index.starts[place]
            group = self._at(index, place, vaddr + 1, _BEYOND)
            if group:
                return start, group
            place = bisect_left(index.starts, start)
        return -1, []

    def _scan(self, vaddr: int) -> tuple[int, list[int]]:
        """As `covering`, without an index: for the first question, often the last."""
        table, low = self.table, self.low
        starts, sizes = table.starts(low, self.high), table.sizes(low, self.high)
        both = enumerate(zip(starts, sizes, strict=True), low)
        hits = [at for at, (start, size) in both if start <= vaddr < start + size]
        hits = [at for at in hits if any(table.eligible(at, at + 1)) and table.named(at)]
        if not hits:  # then the nearest symbol is asked for
            self._starts = starts
            return -1, []
        start = max([starts[at - low] for at in hits])
        return start, [at for at in hits if starts[at - low] == start]

    def nearest(self, vaddr: int) -> tuple[int, list[int]]:
        """The closest start of any symbol at or before `vaddr`, and those there without a size.

        In the table's order; (-1, []) where there are none.
        """
        if self.low >= self.high:
            return -1, []
        many = self.high - self.low > _FEW
        if many and self._index is None and (found := self._scan_nearest(vaddr)):
            return found
        index = self._indexed()
        place = bisect_right(index.starts, vaddr)
        while (place := index.rightmost(place, _DEAD)) >= 0:
            if self._alive(index, place):
                start = index.starts[place]
                return start, self._at(index, place, start, start)
        return -1, []

    def _scan_nearest(self, vaddr: int) -> tuple[int, list[int]] | None:
        """As `nearest`, without an index; None where the closest symbol is none after all."""
        table = self.table
        starts, self._starts = self._starts or table.starts(self.low, self.high), None
        start = max([start for start in starts if start <= vaddr], default=-1)
        hits = [self.low + place for place in _places(starts, start)]
        alive = [at for at in hits if any(table.eligible(at, at + 1)) and table.named(at)]
        return (start, [at for at in alive if table.fields(at)[2] == 0]) if alive else None

    def reaches_beyond(self, start: int, vaddr: int) -> bool:
        """Whether a symbol at or before `vaddr` ends after `start`."""
        index = self._indexed()
        place = bisect_right(index.starts, vaddr)
        while (place := index.rightmost(place, start)) >= 0:
            if self._alive(index, place):
                return True
        return False

    def code_around(self, vaddr: int) -> tuple[int, int, int]:
        """As SymbolTable.code_around."""
        if self._index is None and self._scans < _SCANS:
            self._scans += 1
            found = self._scan_code(vaddr)
            if found is not None:
                return found
        index, table = self._indexed(), self.table
        starts, ends, order = index.starts, index.ends, index.order
        first = bisect_right(starts, vaddr)
        at = first - 1
        while at >= 0 and not table.is_code(order[at]):
            at -= 1
        below = starts[at] if at >= 0 else -1
        reach = max(ends[bisect_left(starts, below) : at + 1], default=-1)
        cover = index.rightmost(first, vaddr)
        while cover >= 0 and not table.is_code(order[cover]):
            cover = index.rightmost(cover, vaddr)
        reach = max(reach, below, ends[cover] if cover >= 0 else -1)
        at = first
        while at < len(starts) and not table.is_code(order[at]):
            at += 1
        return below, reach, starts[at] if at < len(starts) else _BEYOND

    def _scan_code(self, vaddr: int) -> tuple[int, int, int] | None:
        """As `code_around`, without an index; None where one of the closest symbols is no code."""
        starts = self.table.starts(self.low, self.high)
        sizes = self.table.sizes(self.low, self.high)
        below = max([start for start in starts if start <= vaddr], default=-1)
        above = min([start for start in starts if start > vaddr], default=_BEYOND)
        if not all(map(self._is_code, (*_places(starts, below), *_places(starts, above)))):
            return None
        reach = max([below + sizes[at] for at in _places(starts, below)], default=-1)
        if reach <= vaddr:  # else no other one that reaches beyond it begins closer
            both = enumerate(zip(starts, sizes, strict=True))
            around = [at for at, (start, size) in both if start <= vaddr < start + size]
            around = sorted(filter(self._is_code, around), key=lambda at: (starts[at], at))
            reach = max([reach, *(starts[at] + sizes[at] for at in around[-1:])])
        return below, reach, above

    def _is_code(self, place: int) -> bool:
        """Whether symbol number `place` of the run may name a function."""
        index = self.low + place
        return any(self.table.eligible(index, index + 1)) and self.table.is_code(index)

    def starting(self, vaddr: int) -> Iterator[Symbol]:
        """The symbols that begin at `vaddr`."""
        index, table = self._index, self.table
        if index is not None:
            first, last = bisect_left(index.starts, vaddr), bisect_right(index.starts, vaddr)
            yield from map(table.symbol, index.order[first:last])
        else:
            for at in table.with_value(vaddr, self.low, self.high):
                if any(table.eligible(at, at + 1)):
                    yield table.symbol(at)

    def sized(self, low: int, high: int) -> list[int]:
        """The starts in [low, high) of the symbols that have a size."""
        index = self._indexed()
        chosen = slice(bisect_left(index.starts, low), bisect_left(index.starts, high))
        pairs = zip(index.starts[chosen], index.ends[chosen], strict=True)
        return [start for start, end in pairs if end > start]

    def _at(self, index: _Index, place: int, low: int, high: int) -> list[int]:
        """The symbols up to `place` with its start, and an end of [low, high], in table order."""
        first = bisect_left(index.starts, index.starts[place])
        last = min(place + 1, first + _MOST_ALIASES)
        places = [at for at in range(first, last) if low <= index.ends[at] <= high]
        return [index.order[at] for at in places if self._alive(index, at)]

    def _alive(self, index: _Index, place: int) -> bool:
        if self.table.named(index.order[place]):
            return True
        index.drop(place)
        return False


def _places(numbers: list[int], wanted: int) -> list[int]:
    """Where a number stands in a list."""
    found: list[int] = []
    for _ in range(min(numbers.count(wanted), _MOST_ALIASES)):
        found.append(numbers.index(wanted, found[-1] + 1 if found else 0))
    return found


class SymbolTable:
    """The symbols of an image, out of several tables.

    `groups` are makers of tables, asked in order until one group has an answer; a group's tables
    count as one. `problems` says of each table that could not be read why.
    """

    def __init__(self, groups: Iterable[Callable[[], Iterable[Table]]]):
        self._makers = list(groups)
        self._groups: dict[int, _Group] = {}
        self.problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, *tables: Table) -> SymbolTable:
        """One group of the given tables."""
        return cls([lambda: tables])

    def find(self, vaddr: int) -> Symbol | None:
        """The symbol that names `vaddr`, or None where nothing does."""
        for number in range(len(self._makers)):
            group = self._group(number)
            found = _covering(group, vaddr) or _label(group, vaddr)
            if found is not None:
                return found
        return None

    def around(self, vaddr: int) -> tuple[Symbol | None, int, int]:
        """What `find` says of `vaddr`, and from where to where it surely says the same.

        Where that would take more to know than to ask, it is `vaddr` alone.
        """
        before: list[_Run] = []  # of groups whose word counts for more
        for number in range(len(self._makers)):
            group = self._group(number)
            for runs in (group.globals, group.locals):
                found = _best(runs, vaddr)
                if found is not None:
                    stronger = group.globals if runs is group.locals else []
                    return found, *_reach(before, stronger, runs, found, vaddr)
            found = _label(group, vaddr)
            if found is not None:
                return found, vaddr, vaddr + 1
            before += group.globals + group.locals
        return None, vaddr, _gap(before, vaddr)

    def named(self, name: str) -> Symbol | None:
        """The defined symbol called `name`, or None."""
        key = name.encode("utf-8", "surrogateescape")
        for number in range(len(self._makers)):
            for table in self._group(number).tables:
                found = table.lookup(key)
                if found is not None:
                    return found
        return None

    def code_around(self, vaddr: int) -> tuple[int, int, int]:
        """Of symbols that may be functions: the last start up to `vaddr`, an end, the next start.

        The end is that of a function around `vaddr`, or of the last one before. -1 stands for no
        start, and what is beyond all addresses for no next one.
        """
        below, reach, above = -1, -1, _BEYOND
        for run in self._runs():
            start, end, behind = run.code_around(vaddr)
            below, reach, above = max(below, start), max(reach, end), min(above, behind)
        return below, reach, above

    def code_extents(self) -> Iterator[tuple[int, int]]:
        """Start and end of each symbol that may be a function, table by table."""
        for run in self._runs():
            table, low, high = run.table, run.low, run.high
            starts, sizes = table.starts(low, high), table.sizes(low, high)
            for at in compress(range(high - low), table.eligible(low, high)):
                if table.is_code(low + at):
                    yield starts[at], starts[at] + sizes[at]

    def starting(self, vaddr: int) -> Iterator[Symbol]:
        """The symbols that begin at `vaddr`."""
        for run in self._runs():
            yield from run.starting(vaddr)

    def starts(self, low: int, high: int) -> Iterator[int]:
        """The starts in [low, high) of the symbols that have a size."""
        for run in self._runs():
            yield from run.sized(low, high)

    def _runs(self) -> list[_Run]:
        """Those of the first group that has any: it holds what the later ones do."""
        for number in range(len(self._makers)):
            group = self._group(number)
            runs = [run for run in group.globals + group.locals if run.low < run.high]
            if runs:
                return runs
        return []

    def __iter__(self) -> Iterator[Symbol]:
        """All symbols that may name a place, table by table."""
        for number in range(len(self._makers)):
            for table in self._group(number).tables:
                yield from table

    def _group(self, number: int) -> _Group:
        found = self._groups.get(number)
        if found is None:
            tables: list[Table] = []
            try:
                tables.extend(self._makers[number]())
            except UnwindError as error:  # the tables before the damaged one still serve
                self.problems = (*self.problems, str(error))
            found = self._groups[number] = _Group(tables)
        return found


class _Group:
    """Tables that count as one: first all their global and weak symbols, then all local ones."""

    __slots__ = ("globals", "locals", "tables")

    def __init__(self, tables: list[Table]):
        self.tables = tables
        self.globals = [_Run(table, table.first_global, table.count) for table in tables]
        self.locals = [_Run(table, 1, table.first_global) for table in tables]


def _covering(group: _Group, vaddr: int) -> Symbol | None:
    return _best(group.globals, vaddr) or _best(group.locals, vaddr)


def _best(runs: list[_Run], vaddr: int) -> Symbol | None:
    """Of the sized symbols around `vaddr` the one that starts last."""
    found = [(run, *run.covering(vaddr)) for run in runs]
    start = max([start for _, start, _ in found], default=-1)
    best: Symbol | None = None
    for run, at, indices in found:
        for index in indices if at == start else ():
            symbol = run.table.symbol(index)
            best = symbol if best is None or _better(symbol, best) else best
    return best


def _reach(
    before: list[_Run], stronger: list[_Run], runs: list[_Run], found: Symbol, vaddr: int
) -> tuple[int, int]:
    """From where to where `found`, out of `runs`, is the answer: nothing else starts or ends there.

    The symbols of `stronger` win wherever they cover a place, those of `before` by labels, too.
    """
    start, end = found.vaddr, found.vaddr + found.size
    low, high = start, end
    for run in (*before, *stronger, *runs):
        index = run.index
        if index is None:
            if run.low < run.high:
                return vaddr, vaddr + 1
            continue
        at = bisect_right(index.starts, vaddr)
        if at < len(index.starts):
            high = min(high, index.starts[at])
        if run in before:
            low = vaddr if at else low
        elif run in stronger:
            low = vaddr if index.rightmost(at, start) >= 0 else low
        else:  # what starts there too but ends elsewhere may be the answer before `vaddr`
            first = bisect_left(index.starts, start)
            beside = index.ends[first : min(at, first + _ALIASES)]
            within = at > first and index.starts[at - 1] != start
            if within or at > first + _ALIASES or any(other != end for other in beside):
                low = vaddr
    return low, high


def _gap(runs: list[_Run], vaddr: int) -> int:
    """Up to where nothing has a name if `vaddr` has none."""
    high = _BEYOND
    for run in runs:
        index = run.index
        if index is None:
            if run.low < run.high:
                return vaddr + 1
            continue
        at = bisect_right(index.starts, vaddr)
        if at < len(index.starts):
            high = min(high, index.starts[at])
        if any(index.starts[n] == index.ends[n] for n in range(max(at - 8, 0), at)):
            return vaddr + 1  # a label: whether it counts depends on sections
    return high


def _better(new: Symbol, old: Symbol) -> bool:
    """Of two symbols that start at one place; where neither is better the first one stays."""
    if new.size == old.size:
        return new.strength > old.strength
    return new.size < old.size and new.strength >= old.strength


def _label(group: _Group, vaddr: int) -> Symbol | None:
    """A symbol without a size, as assembly has them: libdwfl takes the last one at its place."""
    runs = group.globals + group.locals
    found = [(run, *run.nearest(vaddr)) for run in runs]
    start = max([start for _, start, _ in found], default=-1)
    for run, at, indices in reversed(found):
        for index in reversed(indices) if at == start else ():
            section = run.table.fields(index)[4]
            if _same_section(run.table, section, start, vaddr):
                beyond = any(other.reaches_beyond(start, vaddr) for other in runs)
                return None if beyond else run.table.symbol(index)
    return None


def _same_section(table: Table, section: int, start: int, vaddr: int) -> bool:
    if section >= _SHN_LORESERVE:  # absolute: no section to share
        return start == vaddr
    return table.section_at is not None and table.section_at(vaddr) == section
