"""Lookup: asks the row sources in order; the rows of shared sources are kept for all processes."""

from __future__ import annotations

from unwind.rules import NoRow

__all__ = ["Lookup"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from unwind.dwarf.outlines import Outline
    from unwind.image import Image
    from unwind.protocols import RowSource
    from unwind.rules import Row
    from unwind.snapshot import Place

    Outliner: TypeAlias = Callable[[Image, int, bool], Outline | None]


def _no_outline(image: Image, vaddr: int, called: bool) -> Outline | None:
    return None


class Lookup:
    """The one table of rows, kept by (image, vaddr, called); it forgets all when it is full.

    It belongs to one walker and so to one thread.
    """

    def __init__(self, sources: Iterable[RowSource], limit: int = 200_000):
        self.sources = tuple(sources)
        self.trusts = frozenset([source.trust for source in self.sources])
        self._limit = limit
        # What `shared_row` comes to, by the way that is short for CFI; None: that must be asked.
        # Only the source that is asked first can say what the best row is.
        first = self.sources[0] if self.sources else None
        self.outline: Outliner = getattr(first, "outline", None) or _no_outline
        self._known: dict[tuple[RowSource, Image | None, int, bool], Row | NoRow] = {}

    def rows_at(self, place: Place) -> Iterator[tuple[str, Row | NoRow]]:
        """The trust and the answer of each source, best source first, as far as one asks."""
        for source in self.sources:
            shared = source.shared and place.image is not None
            yield source.trust, self._shared(source, place) if shared else source.row(place)

    def shared_row(self, place: Place) -> tuple[str, Row | None]:
        """The trust and the row that holds at the place in every process; None: it depends."""
        for source in self.sources:
            if not source.shared:
                break
            found = self._shared(source, place)
            if not isinstance(found, NoRow):
                return source.trust, found
        return "", None

    def _shared(self, source: RowSource, place: Place) -> Row | NoRow:
        key = (source, place.image, place.vaddr, place.called)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self._limit:
                self._known.clear()
            found = self._known[key] = source.row(place)
        return found
