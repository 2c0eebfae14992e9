"""Value: annotations in, a small frozen class with slots out.

A command that starts in a few milliseconds cannot afford `dataclasses` (forty classes of it take
22 ms to make, with the `inspect` it imports). `Value` reads the annotations of a class body and
writes an `__init__` only once a number of objects was made, so a class that few use costs little.
Modules that define Values begin with `from __future__ import annotations`: only then do the
annotations lie in the class body as strings, on every Python up to and beyond 3.14.
"""

from __future__ import annotations

__all__ = ["Value"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True, eq_default=True)
class _Meta(type):
    _fields: tuple[str, ...]
    _defaults: dict[str, Any]

    def __new__(meta, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> _Meta:
        own = tuple(field for field in space.get("__annotations__", ()) if field[:1] != "_")
        defaults = {field: space.pop(field) for field in own if field in space}
        space["__slots__"] = own + tuple(space.get("__slots__", ()))
        for base in bases:
            if isinstance(base, _Meta):
                own = base._fields + own
                defaults = {**base._defaults, **defaults}
        space["_fields"], space["_defaults"] = own, defaults
        space.setdefault("__init__", _init)
        return super().__new__(meta, name, bases, space)


# Writing an `__init__` takes as long as making a hundred objects without one.
_WORTH_IT = 30
_made: dict[type, int] = {}


def _init(self: Any, *values: Any, **named: Any) -> None:
    """Stands in for the `__init__` of a class of which only a few objects are made."""
    cls = type(self)
    fields = cls._fields
    given = {**cls._defaults, **dict(zip(fields, values, strict=False)), **named}
    left = fields[len(values) :]
    fits = len(values) <= len(fields) == len(given) and named.keys() <= set(left)
    made = _made[cls] = _made.get(cls, 0) + 1
    if not fits or made > _WORTH_IT:  # what does not fit gets the real one's TypeError
        _write_init(cls)
        cls.__init__(self, *values, **named)
        return
    for field in fields:
        _store(self, field, given[field])


_store = object.__setattr__


def _write_init(cls: Any) -> None:
    """Give the class an `__init__` of its own."""
    fields = [f"{f}=_defaults[{f!r}]" if f in cls._defaults else f for f in cls._fields]
    stores = "".join(f"\n  _set_{f}(self, {f})" for f in cls._fields)
    setters = {f"_set_{f}": getattr(cls, f).__set__ for f in cls._fields}
    made: dict[str, Any] = {}
    header = f"def __init__({', '.join(['self', *fields])}):"
    exec(f"{header}{stores or ' pass'}", {**setters, "_defaults": cls._defaults}, made)
    cls.__init__ = made["__init__"]


class Value(metaclass=_Meta):
    """A frozen record: equal when class and fields are equal, hashable, with a readable repr."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set: values do not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def _key(self) -> tuple[object, ...]:
        return tuple([getattr(self, field) for field in type(self)._fields])

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{field}={getattr(self, field)!r}" for field in type(self)._fields)
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._key()

    def replace(self, **changes: Any) -> Any:
        """A copy with the named fields changed (`dataclasses.replace`)."""
        return type(self)(**{**{f: getattr(self, f) for f in type(self)._fields}, **changes})
