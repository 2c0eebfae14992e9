"""Places in source as addr2line, as llvm-symbolizer and as JSON lines have them: a Name in."""

from __future__ import annotations

from unwind.writers.escape import escape
from unwind.writers.json_document import dumps, inlined_entries, plain_text, source_place

__all__ = ["Addr2line", "as_json", "as_llvm", "levels"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from unwind.symbols.names import Inlined, Name


def levels(name: Name, inlines: bool) -> list[Name | Inlined]:
    """What is inlined at a place, innermost first, and the function; else just the innermost."""
    found: list[Name | Inlined] = [*name.inlined, name]
    return found if inlines else found[:1]


class Addr2line:
    """Text as binutils' addr2line prints it, by its options -a -f -p -s and -i."""

    def __init__(
        self,
        *,
        addresses: bool = False,
        functions: bool = False,
        pretty: bool = False,
        base_names: bool = False,
        inlines: bool = False,
        digits: int = 16,
    ):
        self._addresses, self._functions, self._pretty = addresses, functions, pretty
        self._base_names, self._inlines, self._digits = base_names, inlines, digits

    def lines(self, address: int, name: Name) -> Iterator[str]:
        """The lines of one address."""
        head = f"{address:#0{self._digits + 2}x}" if self._addresses else ""
        if head and not self._pretty:
            yield head
        for n, place in enumerate(levels(name, self._inlines)):
            where = self._where(place)
            function = escape(place.function) if place.function is not None else "??"
            if self._pretty:
                known = place.function is not None
                said = f"{function} {'at ' if known else ''}{where}" if self._functions else where
                yield (f" (inlined by) {said}" if n else f"{head}: {said}" if head else said)
            else:
                if self._functions:
                    yield function
                yield where

    def _where(self, place: Name | Inlined) -> str:
        if place.file is None:  # a symbol without lines is one thing, nothing at all another
            return "??:?" if place.function is not None else "??:0"
        file = place.file.rpartition("/")[2] if self._base_names else place.file
        return f"{escape(file)}:{place.line if place.line is not None else '?'}"


def as_llvm(name: Name, inlines: bool) -> Iterator[str]:
    """The lines of one address as llvm-symbolizer prints them, the empty one at the end too."""
    for place in levels(name, inlines):
        yield escape(place.function) if place.function is not None else "??"
        file = escape(place.file) if place.file is not None else "??"
        yield f"{file}:{place.line or 0}:{place.column or 0}"
    yield ""


def as_json(address: int, name: Name, inlines: bool) -> str:
    """One JSON object, on one line: the address, its symbol, and its `frames`, innermost first."""
    frames: list[dict[str, Any]] = []
    if name.function is not None or name.file is not None:
        own = {"inline": False, **_function(name), **source_place(name)}
        frames = [*(inlined_entries({}, name) if inlines else ()), own]
    found: dict[str, Any] = {"address": hex(address), **_function(name)}
    found["offset"] = hex(name.offset) if name.offset is not None else None
    return dumps({**found, "frames": frames})


def _function(name: Name) -> dict[str, str | None]:
    function, symbol = name.function, name.symbol
    return {
        "function": plain_text(function) if function is not None else None,
        "symbol": plain_text(symbol) if symbol is not None else None,
    }
