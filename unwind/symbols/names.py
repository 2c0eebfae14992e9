"""Names: a place in a module in, what people call it out; each pc is named once."""

from __future__ import annotations

from unwind.errors import UnwindError
from unwind.symbols.demangle import demangle
from unwind.values import Value

__all__ = ["Inlined", "Name", "Names"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from unwind.image import Image
    from unwind.modules import Module
    from unwind.protocols import Location, Symbolizer


class Inlined(Value):
    """A function that was inlined at a pc, and the place in its source; None is unknown."""

    symbol: str | None  # mangled
    function: str | None  # demangled
    file: str | None = None
    line: int | None = None
    column: int | None = None


class Name(Value):
    """What a pc is called: `symbol` and `function` are None where no symbol covers it.

    `file`, `line` and `column` are where it is in the source of that function, as far as they
    were asked for and are known. `inlined` are the functions that were inlined there, innermost
    first; where they were not asked for, the place is the one in the source of the innermost.
    """

    module: Module | None
    symbol: str | None = None  # as in the symbol table
    function: str | None = None  # demangled
    offset: int | None = None  # pc - start of the function
    file: str | None = None
    line: int | None = None
    column: int | None = None
    inlined: tuple[Inlined, ...] = ()


_NOWHERE = Name(None)


class Names:
    """Names pcs of one address space, by a Symbolizer.

    With `source` their places in source are told, with `inlines` the functions inlined there.
    Without `demangled` functions are called as in the symbol table. With `declared` they are
    called as in debug info, which knows nothing of `.cold` and `.isra.0`.
    """

    def __init__(
        self,
        symbolizer: Symbolizer,
        *,
        source: bool = False,
        inlines: bool = False,
        demangled: bool = True,
        declared: bool = False,
    ):
        self._symbolizer = symbolizer
        self._declared = declared
        self._source, self._inlines = source, inlines
        self._demangle = demangle if demangled else _as_it_is
        self._demangled: dict[str, str] = {}
        self.made: Callable[[int], tuple[str, int] | None] | None = None
        self.problems: dict[str, str] = {}  # by module name: symbols that could not be read
        self.unnamed: dict[Module, int] = {}  # how often a place in a module got no name

    @property
    def symbolizer(self) -> Symbolizer:
        """What is asked for names and places."""
        return self._symbolizer

    @property
    def damage(self) -> Iterable[str]:
        """What of debug info could not be read: a sentence for each kind."""
        return self._symbolizer.problems

    def name(self, module: Module | None, pc: int, lookup_pc: int) -> Name:
        """The name of the function that covers `lookup_pc`, with the offset of `pc` in it."""
        if self.made is not None and (module is None or module.image is None):
            made = self.made(lookup_pc)
            if made is not None:
                return Name(module, made[0], self._plain(made[0]), made[1] + pc - lookup_pc)
        if module is None:
            return _NOWHERE
        found = self._found(module, pc, lookup_pc)
        if found.function is None:
            self.unnamed[module] = self.unnamed.get(module, 0) + 1
        return found

    def _found(self, module: Module, pc: int, lookup_pc: int) -> Name:
        """As `name`, in a module."""
        image = module.image
        if image is None:
            return Name(module)
        places: Sequence[Location] = ()
        is_located = self._source or self._inlines
        if self._declared and is_located:
            places = self._symbolizer.locations(image, module.to_vaddr(lookup_pc))
            if places and places[-1].function is not None:
                return self._located(Name(module), places)
        found = self._by_symbol(module, image, lookup_pc, pc - lookup_pc)
        if found.symbol is None and pc != lookup_pc:
            # A function's first byte that was planted as a return address (makecontext).
            found, lookup_pc = self._by_symbol(module, image, pc, 0), pc
        if not is_located:
            return found
        return self._located(found, self._symbolizer.locations(image, module.to_vaddr(lookup_pc)))

    def _by_symbol(self, module: Module, image: Image, pc: int, beyond: int) -> Name:
        """The symbol that covers `pc`, with the offset of what lies `beyond` that."""
        vaddr = module.to_vaddr(pc)
        try:
            symbol = self._symbolizer.symbol(image, vaddr)
        except UnwindError as error:
            self.problems[module.name] = str(error)
            return Name(module)
        if symbol is None:
            return Name(module)
        offset = vaddr + beyond - symbol.vaddr
        return Name(module, symbol.name, self._plain(symbol.name), offset)

    def _located(self, name: Name, places: Sequence[Location]) -> Name:
        """`name` with its places in source."""
        if not places:
            return name
        symbol, function = name.symbol, name.function
        if symbol is None and places[-1].function is not None:
            symbol, function = places[-1].function, self._plain(places[-1].function)
        inlined = tuple(map(self._inlined, places[:-1])) if self._inlines else ()
        where = places[-1] if self._inlines else places[0]
        file, line, column = where.file, where.line, where.column
        if not self._source:
            file = line = column = None
        return Name(name.module, symbol, function, name.offset, file, line, column, inlined)

    def _inlined(self, place: Location) -> Inlined:
        function = self._plain(place.function) if place.function is not None else None
        if not self._source:
            return Inlined(place.function, function)
        return Inlined(place.function, function, place.file, place.line, place.column)

    def _plain(self, symbol: str) -> str:
        function = self._demangled.get(symbol)
        if function is None:
            function = self._demangled[symbol] = self._demangle(symbol)
        return function


def _as_it_is(symbol: str) -> str:
    return symbol
