"""Names: a place in a module in, what people call it out; each pc is named once."""

from __future__ import annotations

from unwind.errors import UnwindError
from unwind.symbols.demangle import demangle
from unwind.values import Value

__all__ = ["Name", "Names"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.modules import Module
    from unwind.protocols import Symbolizer


class Name(Value):
    """What a pc is called: all fields but `module` are None where no symbol covers it."""

    module: Module | None
    symbol: str | None = None  # as in the symbol table
    function: str | None = None  # demangled
    offset: int | None = None  # pc - start of the function


_NOWHERE = Name(None)


class Names:
    """Names pcs of one address space, by a Symbolizer."""

    def __init__(self, symbolizer: Symbolizer):
        self._symbolizer = symbolizer
        self._demangled: dict[str, str] = {}
        self.problems: dict[str, str] = {}  # by module name: symbols that could not be read

    def name(self, module: Module | None, pc: int, lookup_pc: int) -> Name:
        """The name of the function that covers `lookup_pc`, with the offset of `pc` in it."""
        if module is None:
            return _NOWHERE
        if module.image is None:
            return Name(module)
        try:
            symbol = self._symbolizer.symbol(module.image, module.to_vaddr(lookup_pc))
            if symbol is None and pc != lookup_pc:
                # A function's first byte that was planted as a return address (makecontext).
                symbol = self._symbolizer.symbol(module.image, module.to_vaddr(pc))
        except UnwindError as error:
            self.problems[module.name] = str(error)
            return Name(module)
        if symbol is None:
            return Name(module)
        function = self._demangled.get(symbol.name)
        if function is None:
            function = self._demangled[symbol.name] = demangle(symbol.name)
        return Name(module, symbol.name, function, module.to_vaddr(pc) - symbol.vaddr)
