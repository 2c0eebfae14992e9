"""Registers: DWARF numbers to values, where an absent register is unknown and never zero."""

from __future__ import annotations

from unwind.errors import UnknownRegister

__all__ = ["Recorded", "Registers"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
else:
    from _collections_abc import Mapping  # loaded at every start; `collections` costs 0.5 ms


class Registers(dict[int, int]):
    """Values by DWARF number; asking for an unknown one raises UnknownRegister.

    Engines treat it as read-only once made; a library user may pass any mapping, which
    `Registers(mapping)` copies.
    """

    __slots__ = ()

    def __missing__(self, number: int) -> int:
        raise UnknownRegister(number)


class Recorded(Mapping):  # type: ignore[type-arg]
    """Registers as they lie in a record, read one by one when they are asked for.

    `offsets` are their places in `data` by DWARF number, `read(data, offset)` gives a 1-tuple with
    the word there (`struct.Struct.unpack_from`). Of a thousand threads, three are wanted of each.
    """

    __slots__ = ("_data", "_offsets", "_read")

    def __init__(
        self,
        data: bytes,
        offsets: Mapping[int, int],
        read: Callable[[bytes, int], tuple[int, ...]],
    ):
        self._data, self._offsets, self._read = data, offsets, read

    def __getitem__(self, number: int) -> int:
        try:
            return self._read(self._data, self._offsets[number])[0]
        except KeyError:
            raise UnknownRegister(number) from None

    def __contains__(self, number: object) -> bool:
        return number in self._offsets

    def __iter__(self) -> Iterator[int]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def get(  # type: ignore[override]
        self, number: int, default: int | None = None
    ) -> int | None:
        """The value of a register, `default` where the record has none."""
        offset = self._offsets.get(number)
        return default if offset is None else self._read(self._data, offset)[0]
