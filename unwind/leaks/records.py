"""Structs of bpf/leaks.h: their bytes in, tuples of the members that are wanted out, and back."""

from __future__ import annotations

from struct import Struct

from unwind.errors import FormatError

__all__ = ["Record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.bpf.btf import Btf
    from unwind.protocols import ByteOrder

_CODES = {4: "I", 8: "Q"}


class Record:
    """The members `names` of a struct, which are numbers; FormatError where it has others."""

    def __init__(self, btf: Btf, name: str, names: tuple[str, ...], byteorder: ByteOrder):
        found = btf.struct(name)
        self.names, self.size = names, found.size
        order = "<" if byteorder == "little" else ">"
        missing = set(names) - found.members.keys()
        if missing:
            raise FormatError(f"struct {name} has no {min(missing)!r}", ".BTF")
        listed = sorted(names, key=lambda name: found.members[name].offset)
        form, at = order, 0
        for member in (found.members[name] for name in listed):
            if member.size not in _CODES or member.offset < at:
                raise FormatError(f"struct {name} has an odd member {member.name!r}", ".BTF")
            form += f"{member.offset - at}x{_CODES[member.size]}"
            at = member.offset + member.size
        self._struct = Struct(f"{form}{found.size - at}x")
        self._places = [listed.index(name) for name in names]

    def unpack(self, data: bytes) -> tuple[int, ...]:
        """The members in the order of `names`."""
        found = self._struct.unpack(data)
        return tuple([found[place] for place in self._places])

    def pack(self, *values: int) -> bytes:
        """The struct whose members these are; what has no name here is 0."""
        listed = [0] * len(values)
        for place, value in zip(self._places, values, strict=True):
            listed[place] = value
        return self._struct.pack(*listed)
