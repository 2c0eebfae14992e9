"""Registers: DWARF numbers to values, where an absent register is unknown and never zero."""

from __future__ import annotations

from unwind.errors import UnknownRegister

__all__ = ["Registers"]


class Registers(dict[int, int]):
    """Values by DWARF number; asking for an unknown one raises UnknownRegister.

    Engines treat it as read-only once made; a library user may pass any mapping, which
    `Registers(mapping)` copies.
    """

    __slots__ = ()

    def __missing__(self, number: int) -> int:
        raise UnknownRegister(number)
