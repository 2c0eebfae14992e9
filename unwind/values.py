"""Value: annotations in, a small frozen class with slots out.

A command that starts in a few milliseconds cannot afford `dataclasses` (forty classes of it take
22 ms to make, with the `inspect` it imports). `Value` reads the annotations of a class body and
makes its `__init__` out of one that was compiled with this module.
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


def _set(_self: object, _value: object) -> None:
    """Stands for the setters in the templates."""


_a = _b = _c = _d = _e = _f = _g = _h = _i = _j = _k = _set
# An `__init__` for each number of fields: a class gets the code of one of these with other names.
# That takes 1 us, to compile source 100 us. A setter returns None, so `or` goes on to the next.
# fmt: off
_TEMPLATES: tuple[Any, ...] = (
    lambda self: None,
    lambda self, a: _a(self, a),
    lambda self, a, b: _a(self, a) or _b(self, b),
    lambda self, a, b, c: _a(self, a) or _b(self, b) or _c(self, c),
    lambda self, a, b, c, d: _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d),
    lambda self, a, b, c, d, e: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
    ),
    lambda self, a, b, c, d, e, f: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f)
    ),
    lambda self, a, b, c, d, e, f, g: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f) or _g(self, g)
    ),
    lambda self, a, b, c, d, e, f, g, h: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f) or _g(self, g) or _h(self, h)
    ),
    lambda self, a, b, c, d, e, f, g, h, i: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f) or _g(self, g) or _h(self, h) or _i(self, i)
    ),
    lambda self, a, b, c, d, e, f, g, h, i, j: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f) or _g(self, g) or _h(self, h) or _i(self, i) or _j(self, j)
    ),
    lambda self, a, b, c, d, e, f, g, h, i, j, k: (
        _a(self, a) or _b(self, b) or _c(self, c) or _d(self, d) or _e(self, e)
        or _f(self, f) or _g(self, g) or _h(self, h) or _i(self, i) or _j(self, j)
        or _k(self, k)
    ),
)
# fmt: on


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
        made = super().__new__(meta, name, bases, space)
        if "__init__" not in space:
            made.__init__ = _initializer(made)  # type: ignore[misc]
        return made


def _initializer(cls: Any) -> Any:
    """The `__init__` of a class: positional or named values of its fields, with their defaults."""
    fields, defaults = cls._fields, cls._defaults
    if len(fields) >= len(_TEMPLATES):
        return _init
    code = _TEMPLATES[len(fields)].__code__
    code = code.replace(co_varnames=("self", *fields), co_name="__init__")
    setters = [getattr(cls, field).__set__ for field in fields]
    stores = dict(zip(code.co_names, setters, strict=True))
    given = tuple([defaults[field] for field in fields if field in defaults])
    return _Function(code, stores, "__init__", given)


def _init(self: Any, *values: Any, **named: Any) -> None:
    """The `__init__` of a class with more fields than the templates have: few objects are made."""
    fields = type(self)._fields
    given = {**type(self)._defaults, **dict(zip(fields, values, strict=False)), **named}
    left = fields[len(values) :]
    if not len(values) <= len(fields) == len(given) or not named.keys() <= set(left):
        wrong = sorted(set(fields).symmetric_difference(given)) or "too many values"
        raise TypeError(f"{type(self).__name__}: {wrong}")
    for field in fields:
        _store(self, field, given[field])


_store = object.__setattr__
_Function: Any = type(_init)  # as in the module types, which takes 0.5 ms


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
