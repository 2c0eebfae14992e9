"""Fields: a value of a JSON document from outside in, checked answers about it out."""

from __future__ import annotations

from unwind.errors import FormatError

__all__ = ["Fields"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_TOP = 1 << 64  # the address after the last one


class Fields:
    """A value of a document and its `place` there; each question checks the answer's type.

    Without a key a question is about the value itself. What is not as it should be is a
    FormatError.
    """

    __slots__ = ("path", "place", "value")

    def __init__(self, value: Any, path: str, place: str = "document"):
        self.value, self.path, self.place = value, path, place

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def error(self, reason: str) -> FormatError:
        """A FormatError that names the file and this place."""
        return FormatError(reason, f"{self.path}: {self.place}")

    def __iter__(self) -> Iterator[str]:
        """The keys of an object."""
        return iter(self._of(dict, "an object"))

    def fields(self, key: str) -> Fields:
        """The value at `key`, which may be null, but must be there."""
        known = self._of(dict, "an object")
        if key not in known:
            raise self.error(f"there is no {key!r}")
        return Fields(known[key], self.path, f"{self.place}.{key}")

    def at(self, index: int) -> Fields:
        """The value at `index` of a list."""
        known = self._of(list, "a list")
        if index >= len(known):
            raise self.error(f"a list of {len(known)} values, which has no number {index}")
        return Fields(known[index], self.path, f"{self.place}[{index}]")

    def length(self) -> int:
        """How many values a list has."""
        return len(self._of(list, "a list"))

    def items(self, key: str) -> Iterator[Fields]:
        """The values of the list at `key`; none where there is no such key."""
        if key in self:
            found = self.fields(key)
            for index in range(found.length()):
                yield found.at(index)

    def text(self, key: str | None = None, default: str | None = None) -> str:
        """A string."""
        if default is not None and key is not None and key not in self:
            return default
        found: str = self._at(key)._of(str, "a string")
        return found

    def truth(self, key: str | None = None) -> bool:
        """A boolean; one that is not there is false."""
        if key is not None and key not in self:
            return False
        found: bool = self._at(key)._of(bool, "true or false")
        return found

    def number(self, key: str | None = None, low: int = 0, high: int = _TOP) -> int:
        """An integer of [low, high]."""
        this = self._at(key)
        found: int = this._of(int, "an integer")
        if isinstance(found, bool) or not low <= found <= high:
            raise this.error(f"it is not between {low} and {high}")
        return found

    def real(self, key: str) -> float | None:
        """A number, or None where there is none."""
        if key not in self:
            return None
        found = self.fields(key)
        if isinstance(found.value, bool) or not isinstance(found.value, int | float):
            raise found.error("it is no number")
        if not -_TOP <= found.value <= _TOP:
            raise found.error("it is out of all bounds")
        return float(found.value)

    def address(self, key: str | None = None, *default: None) -> Any:
        """A number written as a hexadecimal string, at most 2**64: int; `default` if not there."""
        if default and key is not None and key not in self:
            return None
        this = self._at(key)
        text = this._of(str, "a string")
        try:
            if text[:2] == "0x" and len(text) <= 19 and (found := int(text, 16)) <= _TOP:
                return found
        except ValueError:
            pass
        raise this.error("it is no address")

    def signed_address(self) -> int:
        """As `address`, perhaps with a minus sign before it."""
        text = self.value if isinstance(self.value, str) else ""
        if text[:1] != "-":
            return int(self.address())
        return -int(Fields(text[1:], self.path, self.place).address())

    def raw(self, key: str | None = None) -> bytes | None:
        """Bytes written as hexadecimal digits, None where there is no such key."""
        if key is not None and key not in self:
            return None
        this = self._at(key)
        try:
            return bytes.fromhex(this._of(str, "a string"))
        except ValueError:
            raise this.error("these are no hexadecimal digits") from None

    def pick(self, known: list[Any]) -> Any:
        """What this is the number of."""
        return known[self.number(high=len(known) - 1)] if known else self._none()

    def one_of(self, key: str, known: list[Any]) -> Any:
        """What the value at `key` is the number of."""
        return self.fields(key).pick(known)

    def _none(self) -> Any:
        raise self.error("there is nothing to choose from")

    def _at(self, key: str | None) -> Fields:
        return self if key is None else self.fields(key)

    def _of(self, kind: type, name: str) -> Any:
        if not isinstance(self.value, kind):
            raise self.error(f"it is not {name}")
        return self.value
