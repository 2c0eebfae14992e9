"""Units of .debug_info: their headers, abbreviations and attributes, one unit at a time.

Nearly every entry of a unit is passed over: an abbreviation knows how many bytes its entries
take, so that an entry which is not wanted costs one look into a dict.
"""

from __future__ import annotations

from unwind.dwarf.reader import uleb_at
from unwind.lines.constants import DW_AT, DW_FORM, DW_UT

__all__ = ["Abbreviation", "Attributes", "Unit", "unit_at", "unit_offsets"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from unwind.errors import FormatError
    from unwind.lines.sections import Sections

    # The form and the raw value of each attribute: a number, a string's text, None for a block.
    Attributes: TypeAlias = "dict[int, tuple[int, int | str | None]]"

_LARGEST_UNIT = 1 << 28
_MOST_ABBREVIATION_BYTES = 1 << 20
_LARGEST_CODE = 1 << 24
_MOST_HOPS = 16  # of DW_FORM_indirect

# Bytes of forms whose size is the same everywhere; sizes that a unit's header tells are added.
_SIZES = {
    DW_FORM.data1: 1, DW_FORM.data2: 2, DW_FORM.data4: 4, DW_FORM.data8: 8, DW_FORM.data16: 16,
    DW_FORM.ref1: 1, DW_FORM.ref2: 2, DW_FORM.ref4: 4, DW_FORM.ref8: 8, DW_FORM.ref_sig8: 8,
    DW_FORM.flag: 1, DW_FORM.flag_present: 0, DW_FORM.implicit_const: 0,
    DW_FORM.strx1: 1, DW_FORM.strx2: 2, DW_FORM.strx3: 3, DW_FORM.strx4: 4,
    DW_FORM.addrx1: 1, DW_FORM.addrx2: 2, DW_FORM.addrx3: 3, DW_FORM.addrx4: 4,
    DW_FORM.ref_sup4: 4, DW_FORM.ref_sup8: 8,
}  # fmt: skip
_OFFSETS = frozenset(
    {DW_FORM.strp, DW_FORM.sec_offset, DW_FORM.line_strp, DW_FORM.strp_sup}
    | {DW_FORM.GNU_ref_alt, DW_FORM.GNU_strp_alt}
)
_LEBS = frozenset(
    {DW_FORM.udata, DW_FORM.sdata, DW_FORM.ref_udata, DW_FORM.strx, DW_FORM.addrx}
    | {DW_FORM.loclistx, DW_FORM.rnglistx, DW_FORM.GNU_addr_index, DW_FORM.GNU_str_index}
)
_BLOCKS = {DW_FORM.block1: 1, DW_FORM.block2: 2, DW_FORM.block4: 4}
_COUNTED = frozenset({DW_FORM.block, DW_FORM.exprloc})

_STRING_INDICES = frozenset(
    {DW_FORM.strx, DW_FORM.strx1, DW_FORM.strx2, DW_FORM.strx3, DW_FORM.strx4}
    | {DW_FORM.GNU_str_index}
)
_ADDRESS_INDICES = frozenset(
    {DW_FORM.addrx, DW_FORM.addrx1, DW_FORM.addrx2, DW_FORM.addrx3, DW_FORM.addrx4}
    | {DW_FORM.GNU_addr_index}
)


class Abbreviation:
    """The shape of an entry: its tag, whether it has children, its attributes and their forms.

    `size` is how many bytes its attributes take, -1 where that differs from entry to entry.
    `has_code`: it has addresses, as functions have that are not just declared.
    """

    __slots__ = ("attributes", "children", "has_code", "size", "sizes", "tag")

    def __init__(self, tag: int, children: bool, attributes: list[tuple[int, int, int]]):
        self.tag = tag
        self.children = children
        self.attributes = attributes  # attribute, form, the value of DW_FORM_implicit_const
        names = {name for name, _, _ in attributes}
        self.has_code = not names.isdisjoint((DW_AT.low_pc, DW_AT.ranges))
        self.size = 0
        self.sizes: list[int] = []  # of runs of attributes; negative ones are forms, by -form

    def measure(self, sizes: dict[int, int]) -> None:
        """Add up the sizes of the forms, as they are in one unit."""
        for _, form, _ in self.attributes:
            size = sizes.get(form, -form)
            if size >= 0 and self.sizes and self.sizes[-1] >= 0:
                self.sizes[-1] += size
            else:
                self.sizes.append(size)
        self.size = sum(self.sizes) if all(size >= 0 for size in self.sizes) else -1


class _Abbreviations(dict[int, Abbreviation]):
    """The abbreviations of a unit by their codes, read as far as they were asked for."""

    def __init__(self, unit: Unit, offset: int):
        self._unit = unit.sections
        data = unit.sections.get("abbrev")
        self._data = data[offset : offset + _MOST_ABBREVIATION_BYTES]
        self._offset, self._at = offset, 0
        self._sizes = unit.sizes

    def __missing__(self, code: int) -> Abbreviation:
        try:
            while (number := self._number()) != 0:
                found = self[number] = self._entry()
                if number == code:
                    return found
        except (IndexError, ValueError):
            pass
        raise self._unit.error(f"no abbreviation {code}", "abbrev", self._offset)

    def _number(self) -> int:
        value, self._at = uleb_at(self._data, self._at)
        return value

    def _entry(self) -> Abbreviation:
        tag = self._number()
        children = self._data[self._at] != 0
        self._at += 1
        attributes = []
        while True:
            name, form = self._number(), self._number()
            implicit = 0
            if form == DW_FORM.implicit_const:
                start = self._at
                raw = self._number()
                bits = 7 * (self._at - start)
                implicit = raw - ((raw >> (bits - 1)) << bits)
            if not name and not form:
                break
            attributes.append((name, form, implicit))
        made = Abbreviation(tag, children, attributes)
        made.measure(self._sizes)
        return made


class Unit:
    """A unit of .debug_info: where it lies, how it writes numbers, and its root's attributes.

    `data` are its bytes, `first` is where its root entry begins in them. Places of entries are
    offsets in `data`.
    """

    def __init__(self, sections: Sections, offset: int):
        self.sections = sections
        self.offset = offset
        info = sections.get("info")
        size, self.wide, head = _length(sections, info, offset)
        end = offset + head + size
        if end > len(info) or size > _LARGEST_UNIT:
            raise sections.error(f"a unit of {size} bytes", "info", offset)
        self.data = bytes(info[offset:end])
        self.byteorder = sections.byteorder
        self.word = 8 if self.wide else 4  # of offsets (DWARF 5 §7.4)
        self.kind, self.dwo_id = DW_UT.compile, None
        try:
            abbreviations = self._header(head)
        except IndexError:
            raise sections.error("a unit ends within its header", "info", offset) from None
        self.sizes = self._sizes()
        self.abbreviations = _Abbreviations(self, abbreviations)
        self.root: Attributes = {}
        self.root_tag = 0
        # Where a split unit's addresses and ranges are: its skeleton (DWARF 5 §3.1.3).
        self.skeleton: Unit | None = None
        if self.first < len(self.data) and self.data[self.first]:
            code, at = self.code_at(self.first)
            self.root_tag = self.abbreviations[code].tag
            self.root, _ = self.attributes(self.abbreviations[code], at)

    dwo_id: int | None

    def _header(self, at: int) -> int:
        """Read the header (DWARF 5 §7.5.1); the offset of its abbreviations comes back."""
        word = self.word
        self.version = self.number(at, 2)
        if not 2 <= self.version <= 5:
            raise self.sections.error(f"DWARF {self.version}", "info", self.offset)
        if self.version < 5:
            abbreviations, self.address_size = self.number(at + 2, word), self.data[at + 2 + word]
            at += 3 + word
        else:
            self.kind, self.address_size = self.data[at + 2], self.data[at + 3]
            abbreviations = self.number(at + 4, word)
            at += 4 + word
            if self.kind in (DW_UT.skeleton, DW_UT.split_compile):
                self.dwo_id = self.number(at, 8)
                at += 8
            elif self.kind in (DW_UT.type, DW_UT.split_type):
                at += 8 + word
        if self.address_size not in (4, 8):
            raise self.sections.error(
                f"addresses of {self.address_size} bytes", "info", self.offset
            )
        self.first = at
        return abbreviations

    def _sizes(self) -> dict[int, int]:
        sizes = dict(_SIZES)
        sizes.update(dict.fromkeys(_OFFSETS, self.word))
        sizes[DW_FORM.addr] = self.address_size
        sizes[DW_FORM.ref_addr] = self.address_size if self.version == 2 else self.word
        return sizes

    def number(self, at: int, size: int) -> int:
        """The unsigned number of `size` bytes at `at`."""
        raw = self.data[at : at + size]
        if len(raw) < size:
            raise IndexError
        return int.from_bytes(raw, self.byteorder)

    def code_at(self, at: int) -> tuple[int, int]:
        """The abbreviation code of the entry at `at`, and where its attributes begin."""
        try:
            code = self.data[at]
            return (code, at + 1) if code < 0x80 else uleb_at(self.data, at)
        except (IndexError, ValueError):
            raise self.error("no entry", at) from None

    def attributes(self, abbreviation: Abbreviation, at: int) -> tuple[Attributes, int]:
        """The attributes that begin at `at`, and where they end."""
        found: Attributes = {}
        sizes, data, order = self.sizes, self.data, self.byteorder
        for name, form, implicit in abbreviation.attributes:
            size = sizes.get(form)
            if size is None:
                form, value, at = self._variable(form, at)
            elif size:
                value = int.from_bytes(data[at : at + size], order)
                at += size
            else:
                value = implicit if form == DW_FORM.implicit_const else 1
            found[name] = form, value
        if at > len(data):
            raise self.error("a unit ends within an entry", at)
        return found, at

    def skip(self, abbreviation: Abbreviation, at: int) -> int:
        """Where attributes that begin at `at` end."""
        if abbreviation.size >= 0:
            return at + abbreviation.size
        for size in abbreviation.sizes:
            if size >= 0:
                at += size
            else:
                _, _, at = self._variable(-size, at)
        return at

    def _variable(self, form: int, at: int) -> tuple[int, int | str | None, int]:
        """The form itself, the value and the end of an attribute whose size it tells itself."""
        data = self.data
        try:
            for _ in range(_MOST_HOPS):
                if form != DW_FORM.indirect:
                    break
                form, at = uleb_at(data, at)
            if form in _COUNTED:
                size, at = uleb_at(data, at)
                return form, None, at + size
            if form in _LEBS:
                value, end = uleb_at(data, at)
                if form == DW_FORM.sdata:
                    bits = 7 * (end - at)
                    value -= (value >> (bits - 1)) << bits
                return form, value, end
            if form == DW_FORM.string:
                end = data.index(0, at)
                return form, data[at:end].decode("utf-8", "surrogateescape"), end + 1
            if form in _BLOCKS:
                size = _BLOCKS[form]
                return form, None, at + size + self.number(at, size)
            if form in self.sizes and form != DW_FORM.implicit_const:  # behind DW_FORM_indirect
                size = self.sizes[form]
                return form, self.number(at, size) if size else 1, at + size
        except (IndexError, ValueError):
            raise self.error("a unit ends within an entry", at) from None
        raise self.error(f"form {form:#x} is not known", at)

    def error(self, reason: str, at: int) -> FormatError:
        """A FormatError that names a place in this unit."""
        return self.sections.error(reason, "info", self.offset + at)

    # ------------------------------------------------------------ what attributes mean

    def offset_in(self, name: int, default: int = 0) -> int:
        """An attribute of the root that is a number: a base, an offset."""
        value = self.root.get(name, (0, None))[1]
        return value if isinstance(value, int) else default

    @property
    def split(self) -> bool:
        """Whether it is the split part of a unit, in a .dwo file or a package."""
        return self.sections.suffix == ".dwo"

    def text(self, name: int, attributes: Attributes | None = None) -> str | None:
        """The text of a string attribute (of the root), None where there is none.

        That of a supplementary file has no text here: see `Alternate`.
        """
        form, value = (self.root if attributes is None else attributes).get(name, (0, None))
        if isinstance(value, str) or value is None:
            return value
        if form == DW_FORM.strp:
            return self.sections.text("str", value)
        if form == DW_FORM.line_strp:
            return self.sections.text("line_str", value)
        if form in _STRING_INDICES:
            table = self.sections.get("str_offsets")
            raw = bytes(table[self._strings + value * self.word :][: self.word])
            if len(raw) < self.word:
                raise self.sections.error(f"no string {value}", "str_offsets", self._strings)
            return self.sections.text("str", int.from_bytes(raw, self.byteorder))
        return None

    @property
    def _strings(self) -> int:
        """Where the unit's string offsets begin (DWARF 5 §7.26)."""
        head = (2 * self.word if self.wide else 8) if self.version >= 5 and self.split else 0
        return self.offset_in(DW_AT.str_offsets_base, head)

    def address(self, name: int, attributes: Attributes | None = None) -> int | None:
        """The address in an attribute (of the root), None where there is none."""
        form, value = (self.root if attributes is None else attributes).get(name, (0, None))
        if not isinstance(value, int):
            return None
        if form == DW_FORM.addr:
            return value
        return self.indexed_address(value) if form in _ADDRESS_INDICES else None

    def indexed_address(self, index: int) -> int:
        """Address number `index` of .debug_addr (DWARF 5 §7.27)."""
        unit = self.skeleton or self
        base = unit.offset_in(DW_AT.addr_base, unit.offset_in(DW_AT.GNU_addr_base))
        size = unit.address_size
        raw = bytes(unit.sections.get("addr")[base + index * size :][:size])
        if len(raw) < size:
            raise unit.sections.error(f"no address {index}", "addr", base)
        return int.from_bytes(raw, self.byteorder)

    def reference(self, name: int, attributes: Attributes) -> tuple[str, int] | None:
        """Where an attribute that is a reference leads: which file, and the offset there.

        "unit": an offset in this unit; "info": one in .debug_info; "alternate": one in
        .debug_info of the supplementary file.
        """
        form, value = attributes.get(name, (0, None))
        if not isinstance(value, int):
            return None
        if form in (DW_FORM.ref1, DW_FORM.ref2, DW_FORM.ref4, DW_FORM.ref8, DW_FORM.ref_udata):
            return "unit", value
        if form == DW_FORM.ref_addr:
            return "info", value
        if form in (DW_FORM.GNU_ref_alt, DW_FORM.ref_sup4, DW_FORM.ref_sup8):
            return "alternate", value
        return None


def unit_at(sections: Sections, offset: int) -> Unit:
    """The unit at `offset` of .debug_info; FormatError where there is none."""
    return Unit(sections, offset)


def unit_offsets(sections: Sections) -> Iterator[int]:
    """Where each unit of .debug_info begins, as far as their lengths lead."""
    info = sections.get("info")
    at = 0
    while at + 11 <= len(info):
        yield at
        size, _, head = _length(sections, info, at)
        at += head + size


def _length(sections: Sections, data: memoryview, at: int) -> tuple[int, bool, int]:
    """A unit's length, whether it is 64-bit DWARF, and the bytes that say so (DWARF 5 §7.4)."""
    size = int.from_bytes(data[at : at + 4], sections.byteorder)
    if size == 0xFFFF_FFFF:
        return int.from_bytes(data[at + 4 : at + 12], sections.byteorder), True, 12
    return size, False, 4
