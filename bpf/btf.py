"""BTF, the types of a BPF object: the bytes of its section in, structs with their members out.

Linux v6.13 Documentation/bpf/btf.rst. What no map or global variable names is not in there.
"""

from __future__ import annotations

from struct import Struct as Layout
from struct import error as StructError

from unwind.errors import FormatError
from unwind.values import Value

__all__ = ["Btf", "Member", "Struct"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.protocols import ByteOrder

_WHERE = ".BTF"
_MAGIC = 0xEB9F
_MOST_TYPES = 1 << 20
_DEEPEST = 64  # typedefs of typedefs


class KIND:
    """Kinds of types."""

    INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
    FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)


_MODIFIERS = (KIND.TYPEDEF, KIND.VOLATILE, KIND.CONST, KIND.RESTRICT, KIND.TYPE_TAG)
# Bytes behind a type's head: (for all, for each of its members).
_TAILS = {
    KIND.INT: (4, 0),
    KIND.ARRAY: (12, 0),
    KIND.STRUCT: (0, 12),
    KIND.UNION: (0, 12),
    KIND.ENUM: (0, 8),
    KIND.FUNC_PROTO: (0, 8),
    KIND.VAR: (4, 0),
    KIND.DATASEC: (0, 12),
    KIND.DECL_TAG: (4, 0),
    KIND.ENUM64: (0, 12),
}


class Member(Value):
    """A member of a struct: bytes from its start, and how many it has (a flexible array: 0)."""

    name: str
    offset: int
    size: int


class Struct(Value):
    """A struct: its bytes, and its members by name in their order."""

    name: str
    size: int
    members: dict[str, Member]


class _Type(Value):
    name: str
    kind: int
    flag: bool
    count: int
    size: int  # or the type that it refers to
    at: int  # where its tail begins


class Btf:
    """The types in a section; FormatError for what is none."""

    def __init__(self, data: bytes | memoryview, byteorder: ByteOrder):
        self._data = memoryview(data)
        order = "<" if byteorder == "little" else ">"
        self._three, self._two = Layout(f"{order}III"), Layout(f"{order}Ii")
        magic, _, _, head, types, size, strings, room = self._read(Layout(f"{order}HBBIIIII"), 0)
        if magic != _MAGIC:
            raise FormatError("it does not begin as BTF does", _WHERE, 0)
        if max(head + types + size, head + strings + room) > len(self._data):
            raise FormatError("it is shorter than its header says", _WHERE, 0)
        self._names = bytes(self._data[head + strings : head + strings + room])
        self._types: list[_Type | None] = [None]  # 0 is void
        self._load(head + types, head + types + size)
        self._by_name: dict[tuple[int, str], int] = {}
        for number, found in enumerate(self._types):
            if found is not None:
                self._by_name.setdefault((found.kind, found.name), number)

    def struct(self, name: str) -> Struct:
        """The struct of that name."""
        found = self._named(KIND.STRUCT, name)
        members = {}
        for n in range(found.count):
            name_at, kind, offset = self._read(self._three, found.at + 12 * n)
            if found.flag:
                offset &= 0xFF_FFFF  # the upper byte has the width of a bit field
            if offset % 8:
                raise FormatError(f"struct {name} has bit fields", _WHERE, found.at)
            member = Member(self._name(name_at), offset // 8, self._size(kind, 0))
            members[member.name] = member
        return Struct(name, found.size, members)

    def enum(self, name: str) -> dict[str, int]:
        """The values of an enum's enumerators by their names."""
        found = self._named(KIND.ENUM, name)
        pairs = [self._read(self._two, found.at + 8 * n) for n in range(found.count)]
        return {self._name(name_at): value for name_at, value in pairs}

    def _load(self, at: int, end: int) -> None:
        while at < end:
            if len(self._types) > _MOST_TYPES:
                raise FormatError("more types than there can be", _WHERE, at)
            name_at, info, size = self._read(self._three, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            made = _Type(self._name(name_at), kind, bool(info >> 31), count, size, at + 12)
            self._types.append(made)
            if not KIND.INT <= kind <= KIND.ENUM64:
                raise FormatError(f"a type of unknown kind {kind}", _WHERE, at)
            fixed, each = _TAILS.get(kind, (0, 0))
            at += 12 + fixed + each * count

    def _named(self, kind: int, name: str) -> _Type:
        number = self._by_name.get((kind, name))
        if number is None:
            raise FormatError(f"it does not describe {name!r}", _WHERE)
        return self._type(number)

    def _type(self, number: int) -> _Type:
        found = self._types[number] if number < len(self._types) else None
        if found is None:
            raise FormatError(f"there is no type {number}", _WHERE)
        return found

    def _size(self, number: int, depth: int) -> int:
        """The bytes that a value of the type takes."""
        found = self._type(number)
        if depth > _DEEPEST:
            raise FormatError("types refer to one another in a circle", _WHERE)
        if found.kind in _MODIFIERS:
            return self._size(found.size, depth + 1)
        if found.kind == KIND.ARRAY:
            element, _, count = self._read(self._three, found.at)
            return count * self._size(element, depth + 1)
        return 8 if found.kind == KIND.PTR else found.size

    def _name(self, at: int) -> str:
        end = self._names.find(b"\0", at)
        if end < 0:
            raise FormatError("a name lies outside the strings", _WHERE, at)
        return self._names[at:end].decode(errors="replace")

    def _read(self, layout: Layout, at: int) -> tuple[int, ...]:
        try:
            return layout.unpack_from(self._data, at)
        except StructError:
            raise FormatError("it ends within a type", _WHERE, at) from None
