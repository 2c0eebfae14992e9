"""Names from symbol tables: an image and a vaddr in, the symbol that covers it out."""

from __future__ import annotations

from bisect import bisect_right

from unwind.errors import UnwindError

__all__ = ["TableSymbolizer"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.image import Image
    from unwind.lines.location import Location
    from unwind.symtab import Symbol


_MOST_KEPT = 200_000  # stretches of code whose symbols are remembered


class TableSymbolizer:
    """Names places by the symbol tables of their image and of its separate debug file.

    It remembers for which stretch of code a symbol is the answer: a profile meets a function at
    many places.
    """

    def __init__(self) -> None:
        self._known: dict[Image, tuple[list[int], list[tuple[int, Symbol | None]]]] = {}
        self._kept = 0

    @property
    def problems(self) -> dict[str, None]:
        """None: what is wrong with symbol tables, `image.symbols.problems` tells."""
        return {}

    def symbol(self, image: Image, vaddr: int) -> Symbol | None:
        """The best symbol that covers `vaddr`, or None.

        A table that cannot be read gives no names; `image.symbols.problems` says why.
        """
        known = self._known.get(image)
        if known is None:
            known = self._known[image] = [], []
        lows, stretches = known
        n = bisect_right(lows, vaddr) - 1
        if n >= 0 and vaddr < stretches[n][0]:
            found = stretches[n][1]
            return found if found is not None else self._unlisted(image, vaddr)
        around = getattr(image.symbols, "around", None)
        found, low, high = around(vaddr) if around else (image.symbols.find(vaddr), 0, 0)
        if high - low > 1:
            if self._kept >= _MOST_KEPT:
                self._known.clear()
                self._kept, lows, stretches = 0, [], []
            n = bisect_right(lows, low)
            lows.insert(n, low)
            stretches.insert(n, (high, found))
            self._kept += 1
        return found if found is not None else self._unlisted(image, vaddr)

    def locations(self, image: Image, vaddr: int) -> tuple[Location, ...]:
        """(): symbol tables know no lines."""
        return ()

    def _unlisted(self, image: Image, vaddr: int) -> Symbol | None:
        """The name of a place that no table has: it may be in a linkage table."""
        if image.told is not None:
            return image.told.stub(vaddr)
        if image.elf.section(".plt") is None:
            return None
        from unwind.symbols.plt import plt_symbol

        try:
            return plt_symbol(image.elf, vaddr)
        except UnwindError:
            return None
