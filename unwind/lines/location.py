"""Locations: what is known of a place in source."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["Location"]


class Location(Value):
    """A place in source: a function and where in it; what is not known is None.

    `function` is the linkage name where there is one, still mangled, else the name.
    """

    function: str | None
    file: str | None
    line: int | None
    column: int | None
