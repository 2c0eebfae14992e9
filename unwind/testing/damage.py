"""Damage: the bytes of an ELF file or a core in, the same bytes with something wrong in them out.

Bits flipped anywhere seldom hit what a parser reads. So `areas` first finds out what lies where:
headers, notes, the registers in them, CIEs, FDEs and their programs, search tables, symbols, the
dynamic section, compressed contents, stacks. `damage` then breaks one or a few of them, in ways
that parsers have fallen for: a count that is too large by one, an offset that leads back, a table
that overlaps another, a file that ends in the middle.

    sound = Path("core").read_bytes()
    found = areas(sound)
    for number in range(1000):
        broken, what = damage(sound, found, Random(number))
        ...  # hand `broken` to a reader; `what` tells what was done to it

The same bytes and the same seed give the same damage. `areas` is a reader of its own, so that a
mistake in the library's readers cannot hide here; it believes what it reads, so its input must
be sound. It knows little-endian ELF64 files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from struct import Struct, error, unpack_from

__all__ = ["Area", "Field", "areas", "damage"]

_HEADER = Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = Struct("<IIQQQQQQ")
_SECTION = Struct("<IIQQQQIIQQ")
_PT_LOAD, _PT_DYNAMIC, _PT_NOTE, _PT_GNU_EH_FRAME = 1, 2, 4, 0x6474E550
_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS, _SHT_DYNSYM = 2, 3, 8, 11
_SHF_COMPRESSED = 0x800
_ET_CORE = 4
_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV = 1, 3, 6
_NOTES = {0x46494C45: "NT_FILE", 0x53494749: "NT_SIGINFO", _NT_AUXV: "NT_AUXV"}
_NOTES |= {_NT_PRSTATUS: "NT_PRSTATUS", _NT_PRPSINFO: "NT_PRPSINFO"}
_DT_DEBUG = 21
_REGISTERS = 112  # where they begin in an NT_PRSTATUS: Linux v6.13 struct elf_prstatus
_NAMED_REGISTERS = {4: "rbp", 16: "rip", 19: "rsp"}
_STACK = 2048  # bytes above a stack pointer that a walk is likely to read


@dataclass(frozen=True)
class Field:
    """A number in a file, `size` bytes at `offset`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Area:
    """Bytes [start, end) of a file that parsers read as one thing of some `kind`."""

    kind: str
    start: int
    end: int
    fields: tuple[Field, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} at {self.start:#x}"


def areas(data: bytes) -> tuple[Area, ...]:
    """What lies where in a sound ELF file or core; a compressed file is one area.

    An image whose pages a core holds is searched too; its areas' kinds begin with "loaded ".
    """
    if data[:4] != b"\x7fELF":
        return (Area("compressed file", 0, len(data)),)
    if _HEADER.unpack_from(data)[1] == _ET_CORE:
        return tuple(_Core(data).areas())
    return tuple(_Image(data).areas())


def damage(
    data: bytes, found: Sequence[Area], random: Random, kinds: Sequence[str] = ()
) -> tuple[bytes, str]:
    """`data` with one to three things broken, and in words which; `found` are its `areas`.

    What comes back differs from `data`, if only in a byte that nobody reads.

    Each kind of area is as likely as any other, however many bytes it has; `kinds` names those
    to choose from, one as often as it is named.
    """
    by_kind: dict[str, list[Area]] = {}
    for area in found:
        by_kind.setdefault(area.kind, []).append(area)
    choices = [kind for kind in kinds if kind in by_kind] or sorted(by_kind)
    broken, said = bytearray(data), list[str]()
    times = random.choice((1, 1, 1, 1, 2, 3))
    while len(said) < times or broken == data:
        alike = by_kind[random.choice(choices)]
        area = random.choice(alike)
        if area.end > len(broken):  # cut off before
            times -= 1
            continue
        breaking = random.choice(_BREAKING)
        if area.kind.endswith("CFA program") and random.random() < 0.4:
            breaking = _instructions
        said.append(f"{area}: {breaking(broken, area, alike, random)}")
    return bytes(broken), "; ".join(said)


# ----------------------------------------------------------------------------- what can be wrong


def _flip(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """Some bits of one byte."""
    at = random.randrange(area.start, area.end)
    mask = 1 << random.randrange(8) | random.choice((0, 0, 1 << random.randrange(8)))
    data[at] ^= mask
    return f"byte {at:#x} ^= {mask:#x}"


def _byte(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """One byte, by one that is special: to LEB128, to signs, to opcodes."""
    at = random.randrange(area.start, area.end)
    old = data[at]
    data[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, old + 1 & 255, old - 1 & 255))
    return f"byte {at:#x} = {data[at]:#x}, was {old:#x}"


def _number(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """A field, or any word, by a number at the edge of something."""
    field = _some_field(area, random)
    old = _get(data, field)
    bits, size = 8 * field.size, len(data)
    edges = (0, 1, -1, 1 << bits - 1, (1 << bits - 1) - 1, 1 << 31, 1 << 32, 1 << 63)
    mine = (old + 1, old - 1, old + 8, old * 2, -old, old ^ 1 << random.randrange(bits))
    sizes = (size, size - 1, size + 1, area.start, area.end, random.getrandbits(bits))
    return _put(data, field, random.choice((*edges, *mine, *sizes)), old)


def _copy(data: bytearray, area: Area, alike: Sequence[Area], random: Random) -> str:
    """A field by another one's value: overlaps, loops, two of what there is one of."""
    field = _some_field(area, random)
    others = [other for other in _some_area(alike, random).fields if other.name == field.name]
    other = others[0] if others and random.random() < 0.5 else _some_field(area, random)
    return _put(data, field, _get(data, other), _get(data, field))


def _swap(data: bytearray, area: Area, alike: Sequence[Area], random: Random) -> str:
    """Two areas of a kind, or the halves of one, change places."""
    one, other = area, _some_area(alike, random)
    if one == other:
        middle = (area.start + area.end) // 2
        one, other = Area("", area.start, middle), Area("", middle, area.end)
    size = min(one.end - one.start, other.end - other.start)
    first, second = data[one.start : one.start + size], data[other.start : other.start + size]
    data[one.start : one.start + size] = second
    data[other.start : other.start + size] = first
    return f"{size} bytes change places with those at {other.start:#x}"


def _repeat(data: bytearray, area: Area, alike: Sequence[Area], random: Random) -> str:
    """One area over another of its kind."""
    other = _some_area(alike, random)
    size = min(area.end - area.start, other.end - other.start)
    data[area.start : area.start + size] = data[other.start : other.start + size]
    return f"{size} bytes are those at {other.start:#x}"


def _fill(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """Up to 64 bytes by zeroes, ones or anything."""
    at = random.randrange(area.start, area.end)
    size = min(random.randint(1, 64), area.end - at)
    what = random.choice((bytes(size), b"\xff" * size, random.randbytes(size)))
    data[at : at + size] = what
    return f"{size} bytes from {at:#x} are {what[:16].hex()}"


def _shift(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """A few bytes too many or too few, and all that follows lies elsewhere."""
    at = random.randrange(area.start, area.end)
    size = random.choice((1, 4, 8, 16))
    if random.random() < 0.5:
        data[at:at] = bytes(size)
        return f"{size} bytes are put in at {at:#x}"
    del data[at : at + size]
    return f"{size} bytes are taken out at {at:#x}"


def _truncate(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """The end of the file comes here."""
    at = random.choice((area.start, area.end, random.randrange(area.start, area.end)))
    del data[at:]
    return f"cut at {at:#x}"


def _instructions(data: bytearray, area: Area, _alike: Sequence[Area], random: Random) -> str:
    """Call frame instructions that nobody wrote, expressions among them."""
    made = bytearray()
    while len(made) < random.randint(1, 24):
        opcode = random.choice(_OPCODES)
        made.append(opcode | random.choice((0, 3, 6, 7, 16)) if opcode >= 0x40 else opcode)
        if opcode in _WITH_BLOCKS:
            block = [random.choice((*_OPERATIONS, *_NUMBERS)) for _ in range(random.randint(0, 9))]
            made += bytes([random.choice((7, 16)), len(block), *block][opcode == 0x0F :])
        else:
            made += bytes(random.choices(_NUMBERS, k=random.randint(0, 2)))
    at = random.randrange(area.start, area.end)
    del made[area.end - at :]
    data[at : at + len(made)] = made
    return f"{len(made)} bytes from {at:#x} are {made.hex()}"


# DW_CFA: those of DWARF 5 table 7.29 and of the vendors; DW_OP: what CFI may use, with DW_OP_skip
# and DW_OP_bra (0x2f, 0x28), by which an expression can loop.
_OPCODES = (*range(0x17), 0x1D, 0x2C, 0x2D, 0x2E, 0x2F, 0x40, 0x80, 0xC0, 0x0F, 0x10, 0x16, 0x0A)
_WITH_BLOCKS = (0x0F, 0x10, 0x16)
_OPERATIONS = (0x03, 0x06, *range(0x08, 0x30), 0x2F, 0x28, 0x31, 0x70, 0x76, 0x77, 0x92, 0x94, 0x96)
_NUMBERS = (0, 1, 2, 3, 6, 7, 8, 16, 0x7F, 0x80, 0xFF, 0xFD)

_Breaking = Callable[[bytearray, Area, Sequence[Area], Random], str]
# Numbers and bytes are what parsers mistake most, so those are likelier.
_BREAKING: tuple[_Breaking, ...] = (
    *(_flip, _flip, _flip, _byte, _byte, _byte, _number, _number, _number, _number, _number),
    *(_copy, _copy, _swap, _repeat, _fill, _shift, _truncate),
)


def _some_area(alike: Sequence[Area], random: Random) -> Area:
    return random.choice(alike)


def _some_field(area: Area, random: Random) -> Field:
    """A field of the area; where it has none, a few bytes of it."""
    if area.fields and random.random() < 0.9:
        return random.choice(area.fields)
    size = min(random.choice((1, 2, 4, 8)), area.end - area.start)
    return Field("bytes", random.randint(area.start, area.end - size), size)


def _get(data: bytes | bytearray, field: Field) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], "little")


def _put(data: bytearray, field: Field, new: int, old: int) -> str:
    new &= (1 << 8 * field.size) - 1
    data[field.offset : field.offset + field.size] = new.to_bytes(field.size, "little")
    return f"{field.name} ({field.size} bytes at {field.offset:#x}) = {new:#x}, was {old:#x}"


# ----------------------------------------------------------------------------- what lies where


def _fields(at: int, names: str, sizes: str) -> tuple[Field, ...]:
    """Fields that lie one behind the other from `at` on, one digit of `sizes` for each."""
    made = []
    for name, digit in zip(names.split(), sizes, strict=True):
        made.append(Field(name, at, int(digit)))
        at += int(digit)
    return tuple(made)


_HEADER_NAMES = (
    "EI_MAG EI_CLASS EI_DATA EI_VERSION EI_OSABI padding e_type e_machine e_version e_entry "
    "e_phoff e_shoff e_flags e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx"
)
_PROGRAM_NAMES = "p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align"
_SECTION_NAMES = (
    "sh_name sh_type sh_flags sh_addr sh_offset sh_size sh_link sh_info sh_addralign sh_entsize"
)


def _words(kind: str, start: int, end: int, size: int = 8) -> Area:
    """An area that is nothing but words."""
    places = range(start, end - size + 1, size)
    return Area(kind, start, end, tuple([Field("word", at, size) for at in places]))


class _Image:
    """An ELF file, or an image that a core holds: `at` is its header's offset in `data`.

    `place` turns a vaddr into an offset in `data`, None where that holds nothing of it.
    """

    def __init__(
        self, data: bytes, at: int = 0, place: Callable[[int], int | None] | None = None
    ) -> None:
        self.data, self.at, self.loaded = data, at, place is not None
        fields = _HEADER.unpack_from(data, at)
        self.type, self.phoff, self.shoff = fields[1], fields[5], fields[6]
        self.phnum, self.shnum, self.shstrndx = fields[10], fields[12], fields[13]
        headers = data[at + self.phoff : at + self.phoff + 56 * self.phnum]
        self.programs = list(_PROGRAM.iter_unpack(headers))
        self.place = place or self._place_in_file

    def _place_in_file(self, vaddr: int) -> int | None:
        for kind, _, offset, start, _, size, _, _ in self.programs:
            if kind == _PT_LOAD and start <= vaddr < start + size:
                return int(offset + vaddr - start)
        return None

    def areas(self) -> Iterator[Area]:
        """Everything that is known of the image."""
        at, prefix = self.at, "loaded " * self.loaded
        names = _fields(at, _HEADER_NAMES, "4111182248884222222")
        yield Area(prefix + "ELF header", at, at + 64, names)
        for n in range(self.phnum):
            start = at + self.phoff + 56 * n
            named = _fields(start, _PROGRAM_NAMES, "44888888")
            yield Area(prefix + "program header", start, start + 56, named)
        for area in (*self._by_programs(), *(() if self.loaded else self._by_sections())):
            yield Area(prefix + area.kind, area.start, area.end, area.fields)

    def _by_programs(self) -> Iterator[Area]:
        for kind, _, offset, vaddr, _, size, _, _ in self.programs:
            start = self.place(vaddr) if self.loaded or kind != _PT_NOTE else offset
            if start is None or not size:
                continue
            if kind == _PT_NOTE:
                yield from _notes(self.data, start, size)
            elif kind == _PT_DYNAMIC:
                yield _words("dynamic section", start, start + size)
            elif kind == _PT_GNU_EH_FRAME:
                yield from self._search_table(start, size)

    def _search_table(self, start: int, size: int) -> Iterator[Area]:
        """.eh_frame_hdr, and for a loaded image, which has no sections, the .eh_frame."""
        head = _fields(start, "version eh_frame_ptr_enc fde_count_enc table_enc", "1111")
        head += _fields(start + 4, "eh_frame_ptr fde_count", "44")
        yield Area(".eh_frame_hdr", start, start + 12, head)
        if size > 12:
            yield _words("search table", start + 12, start + size, 4)
        if self.loaded:
            (pointer,) = unpack_from("<i", self.data, start + 4)  # pcrel, sdata4: as all have it
            yield from _entries(self.data, start + 4 + pointer, len(self.data), eh=True)

    def _by_sections(self) -> Iterator[Area]:
        if not self.shoff:
            return
        table = self.data[self.shoff : self.shoff + 64 * self.shnum]
        rows = list(_SECTION.iter_unpack(table))
        names = rows[self.shstrndx][4]
        for n, (name, kind, flags, _, offset, size, *_) in enumerate(rows):
            at = self.shoff + 64 * n
            yield Area("section header", at, at + 64, _fields(at, _SECTION_NAMES, "4488884488"))
            text = self.data[names + name : self.data.index(b"\0", names + name)].decode()
            if size and kind != _SHT_NOBITS:
                yield from self._section(text, kind, flags, offset, offset + size)

    def _section(self, name: str, kind: int, flags: int, start: int, end: int) -> Iterator[Area]:
        if flags & _SHF_COMPRESSED:
            head = _fields(start, "ch_type ch_reserved ch_size ch_addralign", "4488")
            yield Area("compression header", start, start + 24, head)
            yield Area("compressed section", start + 24, end)
        elif name.startswith(".zdebug"):
            yield Area("compression header", start, start + 12)
            yield Area("compressed section", start + 12, end)
        elif name == ".gnu_debugdata":
            yield Area("compressed section", start, end)
        elif name in (".eh_frame", ".debug_frame"):
            yield from _entries(self.data, start, end, eh=name == ".eh_frame")
        elif kind in (_SHT_SYMTAB, _SHT_DYNSYM):
            for at in range(start, end, 24):
                named = "st_name st_info st_other st_shndx st_value st_size"
                yield Area("symbol", at, at + 24, _fields(at, named, "411288"))
        elif kind == _SHT_STRTAB:
            yield Area("section names" if name == ".shstrtab" else "symbol names", start, end)
        elif name in (".hash", ".gnu.hash"):
            yield _words("symbol hash", start, end, 4)
        elif name == ".gnu_debuglink":
            yield Area("debug link", start, end)


def _entries(data: bytes, start: int, end: int, eh: bool) -> Iterator[Area]:
    """The CIEs and FDEs of 32-bit DWARF: the head of each, and its program."""
    encodings: dict[int, tuple[int, bool]] = {}  # by CIE: bytes of an address, has augmentation
    at = start
    while at + 4 <= end:
        (length,) = unpack_from("<I", data, at)
        after = at + 4 + length
        if length == 0 or after > end:
            yield Area("terminator", at, at + 4, (Field("length", at, 4),))
            return
        (pointer,) = unpack_from("<I", data, at + 4)
        if pointer == (0 if eh else 0xFFFFFFFF):
            program, encodings[at] = _cie(data, at)
            yield Area("CIE", at, program, _fields(at, "length id version", "441"))
        else:
            cie = at + 4 - pointer if eh else start + pointer
            width, sized = encodings.get(cie, (8, False))
            digits = f"44{width}{width}"
            names = _fields(at, "length CIE_pointer start size", digits)
            program = at + 8 + 2 * width
            if sized:
                program += 1 + data[program]
            yield Area("FDE", at, program, names)
        if program < after:
            yield Area("CFA program", program, after)
        at = after


def _cie(data: bytes, at: int) -> tuple[int, tuple[int, bool]]:
    """Where the program of a CIE begins, how wide its FDEs' addresses are, and if it says z."""
    version = data[at + 8]
    letters_end = data.index(b"\0", at + 9)
    letters = data[at + 9 : letters_end].decode("latin-1")
    here = letters_end + (3 if version >= 4 else 1)
    for _ in range(3):  # alignments, return address: LEB128 numbers
        while data[here] & 0x80:
            here += 1
        here += 1
    if letters[:1] != "z":
        return here, (8, False)
    size, here = data[here], here + 1
    # Compilers write P as its encoding and 4 bytes, or 8 where the encoding is absolute.
    at_letter, encoding = here, 0
    for letter in letters[1:]:
        if letter == "R":
            encoding = data[at_letter]
        at_letter += {"R": 1, "L": 1, "P": 5 if data[at_letter] & 0x0B else 9}.get(letter, 0)
    return here + size, ({2: 2, 3: 4, 4: 8}.get(encoding & 7, 8), True)


def _notes(data: bytes, start: int, size: int) -> Iterator[Area]:
    at, end = start, start + size
    while at + 12 <= end:
        name_size, data_size, kind = unpack_from("<III", data, at)
        body = at + 12 + (name_size + 3 & ~3)
        yield Area("note header", at, body, _fields(at, "namesz descsz type", "444"))
        after = body + (data_size + 3 & ~3)
        core = data[at + 12 : at + 16] == b"CORE"
        if core and kind == _NT_PRSTATUS and data_size > _REGISTERS + 27 * 8:
            yield Area("NT_PRSTATUS", body, body + _REGISTERS)
            places = [Field("register", body + _REGISTERS + 8 * n, 8) for n in range(27)]
            yield Area("registers", body + _REGISTERS, body + data_size, tuple(places))
            for n, name in _NAMED_REGISTERS.items():
                place = body + _REGISTERS + 8 * n
                yield Area("pc, sp, fp", place, place + 8, (Field(name, place, 8),))
        elif core and kind in (_NT_AUXV, 0x46494C45):
            yield _words(_NOTES[kind], body, body + data_size)
        elif data_size:
            name = _NOTES.get(kind, "other note") if core else "build-id"
            yield Area(name, body, body + data_size)
        at = after


class _Core(_Image):
    """A core: an image whose notes and memory are what counts."""

    def areas(self) -> Iterator[Area]:
        """Headers and notes, the stacks of all threads, and the images that it holds."""
        stacks = []
        for area in super().areas():
            yield area
            if area.fields and area.fields[0].name == "rsp":
                stacks.append(int.from_bytes(self.data[area.start : area.end], "little"))
        for kind, _, offset, start, _, size, _, _ in self.programs:
            if kind != _PT_LOAD or not size:
                continue
            for pointer in stacks:
                if start <= pointer < start + size:
                    at = offset + pointer - start
                    yield _words("stack", at, min(at + _STACK, offset + size))
            if self.data[offset : offset + 4] == b"\x7fELF":
                yield from self._loaded(offset, start, size)

    def _loaded(self, offset: int, start: int, size: int) -> Iterator[Area]:
        """The areas of an image loaded at `start` that lie in pages which the core holds."""
        first = _Image(self.data, offset)
        base = next((row[3] for row in first.programs if row[0] == _PT_LOAD), 0)

        def place(vaddr: int) -> int | None:
            return self._place_in_file(vaddr - base + start)

        try:
            for area in _Image(self.data, offset, place).areas():
                if area.end <= len(self.data):
                    yield area
                if area.kind == "loaded dynamic section":
                    yield from self._link_map(area)
        except (IndexError, ValueError, error):
            return  # the core holds the first page only

    def _link_map(self, dynamic: Area) -> Iterator[Area]:
        """The dynamic linker's list: struct r_debug, and a struct link_map for each image."""
        words = [_get(self.data, field) for field in dynamic.fields]
        start = dict(zip(words[::2], words[1::2], strict=False)).get(_DT_DEBUG, 0)
        at = self._place_in_file(start)
        if not start or at is None:
            return
        yield Area("r_debug", at, at + 40, _fields(at, "r_version pad r_map", "448"))
        at = self._place_in_file(*unpack_from("<Q", self.data, at + 8))
        while at is not None:
            yield Area("link map", at, at + 40, _fields(at, "l_addr l_name l_ld l_next", "8888"))
            name = self._place_in_file(*unpack_from("<Q", self.data, at + 8))
            if name is not None:
                yield Area("link map's name", name, self.data.index(b"\0", name) + 1)
            at = self._place_in_file(*unpack_from("<Q", self.data, at + 24))
