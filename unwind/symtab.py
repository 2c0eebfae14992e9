"""Symbol table sections: the bytes of one and of its strings in, its symbols out.

Tables of 100,000 symbols are common and most are asked once or twice. So no symbol becomes an
object before it is the answer: questions about all of them are answered column by column.
"""

from __future__ import annotations

from itertools import compress
from struct import Struct

from unwind.values import Value

__all__ = ["STB", "STT", "Symbol", "Table"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from unwind.protocols import ByteOrder


class STT:
    """The low half of st_info (gABI 4.1 "Symbol Table")."""

    NOTYPE, OBJECT, FUNC, SECTION, FILE, COMMON, TLS, GNU_IFUNC = 0, 1, 2, 3, 4, 5, 6, 10


class STB:
    """The high half of st_info."""

    LOCAL, GLOBAL, WEAK, GNU_UNIQUE = 0, 1, 2, 10


_RANK = {STB.GLOBAL: 3, STB.WEAK: 2, STB.LOCAL: 1}  # libdwfl: others, GNU_UNIQUE too, come last
_LONGEST_NAME = 1 << 16
_FEW_PLACES = 8  # each of which is looked for at the speed of memchr
_MOST_SYMBOLS, _MOST_STRINGS = 1 << 23, 1 << 30  # a sparse file may claim any number of them

# st_info to 1 where such a symbol may name a place: no sections, files or thread-local data.
_NAMES_PLACES = bytes(
    (info & 15) not in (STT.SECTION, STT.FILE, STT.TLS) for info in range(256)
)  # fmt: skip
# Symbols of these kinds are where functions start. STT_NOTYPE is what assembler files leave.
_CODE = frozenset({STT.FUNC, STT.GNU_IFUNC, STT.NOTYPE})
_NONZERO = bytes(value != 0 for value in range(256))


class Symbol(Value):
    """One symbol; `name` without its version, bytes that are no UTF-8 as lone surrogates."""

    name: str
    vaddr: int
    size: int
    kind: int  # STT
    binding: int  # STB
    section: int

    @property
    def strength(self) -> int:
        """How much its binding counts for where two symbols name a place."""
        return _RANK.get(self.binding, 0)


class _Layout:
    """Where the fields of a symbol lie (gABI 4.1 fig. 4-15)."""

    __slots__ = ("info", "pick", "record", "section", "size", "value", "word", "words")

    def __init__(self, elf_class: int, byteorder: ByteOrder):
        order = "<" if byteorder == "little" else ">"
        wide = elf_class == 64
        self.record = Struct(order + ("IBxHQQ" if wide else "IIIBxH"))
        # Which of the record's fields are name, value, size, info and section.
        self.pick = (0, 3, 4, 1, 2) if wide else (0, 1, 2, 3, 4)
        # A symbol as a row of words of one size: the number of value and of size among them.
        self.word: Literal["Q", "I"] = "Q" if wide else "I"
        self.words, self.value, self.size = (3, 1, 2) if wide else (4, 1, 2)
        self.info, self.section = (4, 6) if wide else (12, 14)  # their bytes


class Table:
    """One symbol table section and its strings, undigested.

    `first_global` is its sh_info (gABI 4.1): local symbols stand before it, the others from it on.
    `section_at` tells the index of the section a vaddr lies in; without it labels are no names.
    `even`: bit 0 of a value is none of the address, but marks the code (MIPS16, Thumb).
    """

    def __init__(
        self,
        entries: bytes | memoryview,
        strings: bytes | memoryview,
        elf_class: int,
        byteorder: ByteOrder,
        *,
        first_global: int = 1,
        section_at: Callable[[int], int | None] | None = None,
        even: bool = False,
    ):
        self._layout = layout = _Layout(elf_class, byteorder)
        self.count = count = min(len(entries) // layout.record.size, _MOST_SYMBOLS)
        self._entries = memoryview(entries)[: count * layout.record.size]
        self._strings = memoryview(strings)[:_MOST_STRINGS]
        self._byteorder = byteorder
        self.section_at = section_at
        self._mask = -2 if even else -1
        self.first_global = min(max(first_global, 1), count)

    def __iter__(self) -> Iterator[Symbol]:
        """The symbols that may name a place, in the table's order."""
        for index in compress(range(1, self.count), self.eligible(1, self.count)):
            if self.named(index):
                yield self.symbol(index)

    def symbol(self, index: int) -> Symbol:
        """The symbol at `index`."""
        name, value, size, info, section = self.fields(index)
        text = self._name(name).decode("utf-8", "surrogateescape")
        # binutils writes versions into .symtab, `memcpy@@GLIBC_2.14`: not part of the name.
        version = text.find("@", 1)
        text = text if version < 0 else text[:version]
        return Symbol(text, value, size, info & 15, info >> 4, section)

    def fields(self, index: int) -> tuple[int, int, int, int, int]:
        """st_name, st_value, st_size, st_info and st_shndx."""
        found = self._layout.record.unpack_from(self._entries, index * self._layout.record.size)
        a, b, c, d, e = self._layout.pick
        return found[a], found[b] & self._mask, found[c], found[d], found[e]

    def named(self, index: int) -> bool:
        """Whether it has a name, and is no mapping symbol ($x, $d: AAELF64 §5.5.3)."""
        name, _, size, info, _ = self.fields(index)
        first = bytes(self._strings[name : name + 2])
        if size == 0 and first[:1] == b"$" and info & 15 == STT.NOTYPE and info >> 4 == STB.LOCAL:
            return first[1:] not in (b"a", b"d", b"t", b"x")  # further text may follow
        return first[:1] not in (b"", b"\0")

    def _name(self, at: int) -> bytes:
        for size in (160, _LONGEST_NAME):
            text = bytes(self._strings[at : at + size])
            end = text.find(b"\0")
            if end >= 0:
                return text[:end]
        return text

    def column(self, field: int, low: int, high: int) -> list[int]:
        """Word number `field` of the symbols [low, high)."""
        layout = self._layout
        entries = self._entries[low * layout.record.size : high * layout.record.size]
        if (self._byteorder == "little") == (Struct("=H").pack(1)[0] == 1):
            return entries.cast(layout.word)[field :: layout.words].tolist()
        pad = layout.record.size // layout.words
        order = "<" if self._byteorder == "little" else ">"
        words = Struct(
            f"{order}{field * pad}x{layout.word}{(layout.words - field - 1) * pad}x"
        ).iter_unpack(entries)
        return [word for (word,) in words]

    def starts(self, low: int, high: int) -> list[int]:
        """The st_value of the symbols [low, high)."""
        found = self.column(self._layout.value, low, high)
        return found if self._mask == -1 else [value & -2 for value in found]

    def with_value(self, value: int, low: int, high: int) -> list[int]:
        """Those of [low, high) whose st_value is `value`."""
        # Their lowest bytes but the first are looked for: few other numbers have the same.
        step = self._layout.record.size
        size = step // self._layout.words
        first = self._layout.value * size + (1 if self._byteorder == "little" else size - 3)
        wanted = (value >> 8 & 0xFFFF).to_bytes(2, self._byteorder)
        entries = bytes(self._entries[low * step : high * step])
        found = []
        at = entries.find(wanted)
        while at >= 0:
            if at % step == first and self.fields(low + at // step)[1] == value:
                found.append(low + at // step)
            at = entries.find(wanted, at + 1)
        return found

    def sizes(self, low: int, high: int) -> list[int]:
        """Their st_size."""
        return self.column(self._layout.size, low, high)

    def eligible(self, low: int, high: int) -> bytes:
        """One byte for each symbol of [low, high): 1 if it is defined and may name a place."""
        layout = self._layout
        step = layout.record.size
        entries = self._entries[low * step : high * step]
        kinds = bytes(entries[layout.info :: step]).translate(_NAMES_PLACES)
        one = bytes(entries[layout.section :: step]).translate(_NONZERO)
        other = bytes(entries[layout.section + 1 :: step]).translate(_NONZERO)
        number = int.from_bytes  # a byte a symbol: one operation on a long number serves them all
        chosen = number(kinds, "big") & (number(one, "big") | number(other, "big"))
        return chosen.to_bytes(len(kinds), "big")

    def is_code(self, index: int) -> bool:
        """Whether a function may start where it lies."""
        kind = self.fields(index)[3] & 15
        return kind in _CODE and (kind != STT.NOTYPE or self.named(index))

    def lookup(self, name: bytes) -> Symbol | None:
        """The defined symbol called `name`, of several the one with the strongest binding."""
        strings, places = bytes(self._strings), set()
        for tail in (b"\0", b"@"):
            at = strings.find(name + tail)
            while at >= 0:
                places.add(at)
                at = strings.find(name + tail, at + 1)
        if not places or not name:
            return None
        hits = self._with_name(places)
        found = [index for index in hits if self.fields(index)[4] != 0]
        ranks = [_RANK.get(self.fields(index)[3] >> 4, 0) for index in found]
        return self.symbol(found[ranks.index(max(ranks))]) if found else None

    def _with_name(self, places: set[int]) -> list[int]:
        """The symbols whose names lie at these places of the strings."""
        step = self._layout.record.size
        if len(places) > _FEW_PLACES:
            order = "<" if self._byteorder == "little" else ">"
            offsets = Struct(f"{order}I{step - 4}x").iter_unpack(self._entries)
            return [index for index, (offset,) in enumerate(offsets) if offset in places]
        entries, found = bytes(self._entries), list[int]()
        for place in places:
            wanted = place.to_bytes(4, self._byteorder)
            at = entries.find(wanted)
            while at >= 0:
                index, within = divmod(at, step)
                if not within:  # st_name comes first: gABI 4.1 fig. 4-15
                    found.append(index)
                at = entries.find(wanted, (index + 1) * step)
        return sorted(found)
