"""CIEs and FDEs: a section's bytes in, the entry that covers a vaddr out."""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.reader import Encoding, Reader
from unwind.errors import FormatError
from unwind.values import Value

__all__ = ["Broken", "Cie", "Fde", "FrameSection", "Program", "Terminator"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from unwind.dwarf.eh_frame_hdr import SearchTable
    from unwind.protocols import ByteOrder

    Kind = Literal["eh_frame", "debug_frame"]

# CIEs are kept, with their bytes, and those of a hostile section may all reach to its end. Real
# ones take some 30 bytes; a debug file may have one for each of a hundred thousand object files.
_LONGEST_CIE = 1 << 14
_MOST_CIES = 1 << 12
_FAR_BACK = 1 << 9  # bytes; an FDE with more before another one is not looked for


class Cie(Value):
    """What its FDEs have in common: DWARF 5 §6.4.1, LSB Core 5.0 §10.6.1.1.

    Offsets are those of the section. `personality` is the address of the routine, or of a
    pointer to it where `personality_encoding` says indirect.
    """

    section: str  # eh_frame or debug_frame
    offset: int
    length: int  # as the entry states it: of what follows the length itself
    wide: bool  # 64-bit DWARF
    encoding: Encoding
    version: int
    augmentation: str
    augmentation_data: bytes
    segment_size: int
    code_align: int
    data_align: int
    return_address: int
    pointer_encoding: int
    lsda_encoding: int
    personality_encoding: int
    personality: int | None
    signal: bool
    b_key: bool  # return addresses are signed with arm64's B key
    tagged: bool  # the stack is tagged (arm64 MTE)
    instructions: bytes
    instructions_offset: int

    __slots__ = ("memo",)  # dwarf.rows keeps here what the program of the CIE comes to


class Fde(Value):
    """The rules of one stretch of code, [start, end). `end` may lie beyond the last address."""

    cie: Cie
    offset: int
    length: int
    wide: bool  # 64-bit DWARF
    start: int
    end: int
    augmentation_data: bytes
    augmentation_offset: int
    instructions: bytes
    instructions_offset: int

    @property
    def section(self) -> str:
        """eh_frame or debug_frame."""
        return self.cie.section

    @property
    def lsda(self) -> int | None:
        """Where the function's language-specific data lie, None where it has none."""
        encoding = self.cie.lsda_encoding
        if encoding == DW_EH_PE.omit or not self.augmentation_data:
            return None
        reader = Reader(self.augmentation_data, self.cie.encoding, self.augmentation_offset)
        return reader.pointer(encoding, function=self.start, optional=True)


class Program(Value):
    """What of an FDE tells its rows, [start, end) being as much of its code as is its own."""

    cie: Cie
    start: int
    end: int
    instructions: bytes


class Broken(Value):
    """An entry that cannot be used; where its length was good, those behind it still can."""

    section: str
    offset: int
    error: FormatError


class Terminator(Value):
    """A length of 0, which ends what one object file brought (LSB Core 5.0 §10.6.1)."""

    section: str
    offset: int


class FrameSection:
    """One .eh_frame or .debug_frame: `data` lie at `vaddr`.

    `search` is the table of .eh_frame_hdr. `text_base` and `data_base` are what textrel and
    datarel pointers are relative to, `dereference` reads the address stored at a vaddr.
    `sized`: the data are the section and nothing else, so that a terminator ends only what one
    object file brought; from memory alone the data run on, and the first terminator ends them.
    `code_at_zero`: code may lie at vaddr 0; else an FDE that starts there is the tombstone of a
    function which the linker threw away.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        vaddr: int,
        kind: Kind,
        byteorder: ByteOrder,
        address_size: int,
        *,
        name: str = "",
        text_base: int | None = None,
        data_base: int | None = None,
        search: SearchTable | None = None,
        dereference: Callable[[int], int] | None = None,
        sized: bool = True,
        code_at_zero: bool = False,
    ):
        self.data = data
        self.vaddr = vaddr
        self.kind = kind
        self.name = name or f".{kind}"
        self.search = search
        self.encoding = Encoding(
            byteorder, address_size, vaddr, text_base, data_base, dereference, self.name
        )
        self._sized = sized
        self._code_at_zero = code_at_zero
        order = "<" if byteorder == "little" else ">"
        self._u32 = Struct(order + "I").unpack_from
        self._u64 = Struct(order + "Q").unpack_from
        self._two = Struct(order + "II").unpack_from
        self._shapes: dict[int, _Shape] = {}
        self._refused: dict[int, FormatError] = {}  # CIEs that are broken, and why
        self._broken: set[int] = set()  # FDEs that the index leaves out
        self._index: _Index | None = None

    def find(self, vaddr: int) -> Fde | None:
        """The FDE that covers `vaddr`, or None; of several the one that starts last.

        FormatError where the search table leads to an FDE that is broken and no other covers it.
        """
        error = None
        found = self.search.find(vaddr) if self.search is not None else None
        if found is not None:
            start, place = found
            try:
                fde = self.fde_at(place - self.vaddr)
                if fde.start == start <= vaddr < fde.end and self._is_code(start):
                    return fde
            except FormatError as broken:
                error = broken
        # The table had no good answer. Whether there is none or the table lies, only the section
        # can tell: pcs in no FDE are rare enough, and an index takes 1 us for an FDE.
        if self._index is None:
            self._index = _Index(self._extents())
        offset = self._index.find(vaddr)
        if offset is not None:
            return self.fde_at(offset)
        if error is not None and found is not None and found[1] - self.vaddr in self._broken:
            raise error
        return None

    def program(self, vaddr: int) -> Program | None:
        """The program of the FDE that covers `vaddr`, by the search table, at a third of the price.

        None where only `find` can tell: what is damaged, wide, or written in no usual way. Where
        another FDE starts within this one, it is the other that counts from there on: `end`.
        """
        found = self.search.around(vaddr) if self.search is not None else None
        if found is None:
            return None
        data, size, (start, place, beyond) = self.data, len(self.data), found
        at = place - self.vaddr
        if not 0 <= at <= size - 8:
            return None
        length, pointer = self._two(data, at)
        end = at + 4 + length
        shape = self._shapes.get(at + 4 - pointer)
        if shape is None or length >= 0xFFFFFFF0 or end > size or not pointer:
            return None  # the first FDE of a CIE is read with all that is looked at
        try:
            first, covered, here = shape.extent(at + 8, end)
        except FormatError:
            return None
        if shape.sized:
            skipped = data[here] if here < end else 0x80
            here += 1 + skipped
            if skipped >= 0x80 or here > end:
                return None
        if first != start or not start <= vaddr < start + covered or not self._is_code(start):
            return None
        last = start + covered
        if beyond is not None and beyond < last:
            last = beyond
        return Program(shape.cie, start, last, bytes(data[here:end]))

    def around(self, vaddr: int) -> tuple[int, int, int] | None:
        """Where the FDE that covers `vaddr` starts and ends, and twice the latter.

        Where none does: where the last one before `vaddr` ended, twice, and where the next one
        starts. None before the first and behind the last one. FormatError as in `find`.
        """
        fde = self.find(vaddr)
        if fde is not None:
            return fde.start, fde.end, fde.end
        return self._index.gap(vaddr) if self._index is not None else None

    def before(self, fde: Fde) -> Fde | None:
        """The FDE that lies before another one in the section, None where none can be made out.

        Entries lead forward only, so what leads to `fde` is looked for among the words before it;
        numbers that happen to do so may be taken for an entry.
        """
        data, u32 = self.data, self._u32
        for at in range(fde.offset - 8, max(fde.offset - _FAR_BACK, 0) - 1, -4):
            if u32(data, at)[0] == fde.offset - at - 4:
                try:
                    return self.fde_at(at)
                except FormatError:  # a CIE, or no entry at all
                    continue
        return None

    def starts(self, low: int, high: int) -> list[int]:
        """Where FDEs start in [low, high), ascending; by the search table, where there is one."""
        if self.search is not None and self.search.count:
            return self.search.starts(low, high)
        return sorted(start for start, _ in self.extents() if low <= start < high)

    def extents(self) -> Iterator[tuple[int, int]]:
        """Start and end of each FDE that covers something, in the section's order."""
        return ((start, end) for start, end, _ in self._extents())

    def entries(self) -> Iterator[Cie | Fde | Broken | Terminator]:
        """All entries in the section's order."""
        at = 0
        try:
            for at, _field, end, cie in self._walk():
                try:
                    if end - at == 4:
                        yield Terminator(self.kind, at)
                    else:
                        yield self.cie_at(at) if cie is None else self.fde_at(at)
                except FormatError as error:
                    yield Broken(self.kind, at, error)
                at = end
        except FormatError as error:  # no length leads on from here
            yield Broken(self.kind, at, error)

    def cie_at(self, offset: int) -> Cie:
        """The CIE at a section offset; FormatError where none is."""
        return self._shape(offset).cie

    def fde_at(self, offset: int) -> Fde:
        """The FDE at a section offset; FormatError where none is."""
        _, field, end, cie_offset = self._entry(offset)
        if cie_offset is None:
            raise self._error("a CIE where an FDE should be", offset)
        if not 0 <= cie_offset < len(self.data):
            raise self._error("the pointer to its CIE leads out of the section", offset)
        shape = self._shape(cie_offset)
        start, size, at = shape.extent(field, end)
        augmentation, augmentation_at = b"", at
        if shape.sized:
            at, augmentation_at = self._augmentation(at, end, offset)
            augmentation = bytes(self.data[augmentation_at:at])
        wide = self._u32(self.data, offset)[0] == 0xFFFFFFFF
        return Fde(
            *(shape.cie, offset, end - offset - (12 if wide else 4), wide, start, start + size),
            *(augmentation, augmentation_at, bytes(self.data[at:end]), at),
        )

    def _augmentation(self, at: int, end: int, offset: int) -> tuple[int, int]:
        """The end and the start of the augmentation data whose length is at `at`."""
        length, start = self.data[at] if at < end else 0x80, at + 1
        if length >= 0x80:
            reader = Reader(self.data[at:end], self.encoding, at)
            length, start = reader.uleb(), at + reader.at
        if start + length > end:
            raise self._error(f"{length} bytes of augmentation data are too many", offset)
        return start + length, start

    def _error(self, reason: str, offset: int) -> FormatError:
        return FormatError(reason, self.name, offset)

    def _is_code(self, start: int) -> bool:
        return start != 0 or self._code_at_zero

    def _entry(self, at: int) -> tuple[int, int, int, int | None]:
        """The entry at `at`: its offset, what follows the CIE pointer, its end, its CIE's offset.

        The last is None for a CIE, and for what is too short to be anything. FormatError where
        the length leads nowhere.
        """
        data, size = self.data, len(self.data)
        if not 0 <= at <= size - 4:
            raise self._error("no entry begins here", at)
        field, width = at + 4, 4
        length = self._u32(data, at)[0]
        if length >= 0xFFFFFFF0:  # DWARF 5 §7.4
            if length != 0xFFFFFFFF or field + 8 > size:
                raise self._error(f"length {length:#x} is reserved", at)
            length, field, width = self._u64(data, field)[0], field + 8, 8
        end = field + length
        if end > size:
            raise self._error(f"an entry of {length} bytes where {size - field} are left", at)
        if length < width:
            return at, end, end, None
        if self.kind == "debug_frame":
            pointer = (self._u32 if width == 4 else self._u64)(data, field)[0]
            is_cie = pointer == (0xFFFFFFFF if width == 4 else 0xFFFFFFFFFFFFFFFF)
            return at, field + width, end, None if is_cie else pointer
        pointer = self._u32(data, field)[0]
        if width == 8:
            # In a 64-bit .eh_frame the pointer has 4 bytes (LSB Core 5.0 §10.6.1, LLVM) or 8
            # (binutils, gdb). What can point back to a place in this section is one of 8.
            whole = self._u64(data, field)[0]
            pointer, width = (whole, 8) if whole <= field else (pointer, 4)
        return at, field + width, end, field - pointer if pointer else None

    def _walk(self) -> Iterator[tuple[int, int, int, int | None]]:
        """Every entry as `_entry` has it; FormatError where there is no going on."""
        at, last = 0, len(self.data) - 4
        entry = self._entry
        while at <= last:
            found = entry(at)
            end = found[2]
            yield found
            if end - at == 4 and not self._sized:
                return
            at = end

    def _extents(self) -> Iterator[tuple[int, int, int]]:
        """Start, end and offset of every FDE that can cover something."""
        limit = 1 << 8 * self.encoding.address_size
        shapes = self._shapes
        try:
            for offset, field, end, cie in self._walk():
                if cie is None:
                    continue
                try:
                    start, size, _ = (shapes.get(cie) or self._shape(cie)).extent(field, end)
                except FormatError:
                    self._broken.add(offset)
                    continue
                # lld writes -1 or -2 where code was thrown away: with a size that wraps around.
                if size and start + size <= limit and self._is_code(start):
                    yield start, start + size, offset
        except FormatError:
            return

    def _shape(self, offset: int) -> _Shape:
        """The CIE at `offset` with what its FDEs look like."""
        shape = self._shapes.get(offset)
        if shape is None:
            broken = self._refused.get(offset)
            if broken is not None:
                raise FormatError(broken.reason, broken.where, broken.offset)
            try:
                shape = _Shape(self, self._read_cie(offset))
            except FormatError as error:
                self._refused[offset] = FormatError(error.reason, error.where, error.offset)
                raise
            if len(self._shapes) >= _MOST_CIES:
                self._shapes.clear()
            self._shapes[offset] = shape
        return shape

    def _read_cie(self, offset: int) -> Cie:
        _, field, end, cie_offset = self._entry(offset)
        if cie_offset is not None:
            raise self._error("no CIE where one should be", offset)
        if end - offset > _LONGEST_CIE:
            raise self._error(f"a CIE of {end - offset} bytes", offset)
        reader = Reader(self.data[field:end], self.encoding, field)
        version = reader.u8()
        if version not in (1, 3, 4):
            raise self._error(f"version {version} of a CIE is not known", offset)
        augmentation = reader.cstring().decode("latin-1")
        encoding, segment_size = self.encoding, 0
        if version >= 4:
            address_size, segment_size = reader.take(2)
            if address_size not in (2, 4, 8) or segment_size > 8:
                raise self._error(f"an address of {address_size}:{segment_size} bytes", offset)
            if address_size != encoding.address_size:
                encoding = reader.encoding = encoding.replace(address_size=address_size)
        if augmentation == "eh":  # gcc 2: a pointer to exception data, never looked at here
            reader.take(encoding.address_size)
        code_align, data_align = reader.uleb(), reader.sleb()
        # One byte in version 1: DWARF 2 §6.4.1.
        return_address = reader.u8() if version == 1 else reader.uleb()
        extra = _Augmentation(reader, augmentation)
        wide = self._u32(self.data, offset)[0] == 0xFFFFFFFF
        instructions_offset = field + reader.at
        return Cie(
            section=self.kind,
            offset=offset,
            length=end - offset - (12 if wide else 4),
            wide=wide,
            encoding=encoding,
            version=version,
            augmentation=augmentation,
            augmentation_data=extra.data,
            segment_size=segment_size,
            code_align=code_align,
            data_align=data_align,
            return_address=return_address,
            pointer_encoding=extra.pointer_encoding,
            lsda_encoding=extra.lsda_encoding,
            personality_encoding=extra.personality_encoding,
            personality=extra.personality,
            signal=extra.signal,
            b_key=extra.b_key,
            tagged=extra.tagged,
            instructions=reader.rest(),
            instructions_offset=instructions_offset,
        )


class _Augmentation:
    """What the letters of a CIE's augmentation say: LSB Core 5.0 §10.6.1.1.1, and S, B, G."""

    def __init__(self, reader: Reader, letters: str):
        self.data = b""
        self.pointer_encoding = DW_EH_PE.absptr
        self.lsda_encoding = self.personality_encoding = DW_EH_PE.omit
        self.personality: int | None = None
        self.signal = self.b_key = self.tagged = False
        if letters[:1] == "z":
            length, offset = reader.uleb(), reader.offset + reader.at
            self.data = reader.take(length)
            self._read(Reader(self.data, reader.encoding, offset), letters[1:])
        elif letters.strip("SBG") == "":
            self._read(reader, letters)  # without data: gas writes "S" into .debug_frame
        elif letters != "eh" and not letters.startswith("armcc"):
            # Without a length there is no telling where the instructions begin. ARM's compiler
            # adds "armcc+" and no data.
            raise reader.error(f"augmentation {letters!r} is not known")

    def _read(self, reader: Reader, letters: str) -> None:
        for letter in letters:
            match letter:
                case "R":
                    self.pointer_encoding = reader.u8()
                case "P":
                    self.personality_encoding = reader.u8()
                    # Where a pointer to the routine lies is enough, and can be read everywhere.
                    direct = self.personality_encoding & ~DW_EH_PE.indirect
                    if self.personality_encoding != DW_EH_PE.omit:
                        self.personality = reader.pointer(direct, optional=True)
                case "L":
                    self.lsda_encoding = reader.u8()
                case "S":
                    self.signal = True
                case "B":
                    self.b_key = True
                case "G":
                    self.tagged = True
                case _:
                    return  # the length leads past this one's data, which may be of any size


class _Shape:
    """Where the FDEs of one CIE keep their extent, and how it is written."""

    __slots__ = ("cie", "data", "mask", "pcrel", "sized", "unpack", "width")

    def __init__(self, section: FrameSection, cie: Cie):
        self.cie = cie
        self.data = section.data
        self.sized = cie.augmentation[:1] == "z"
        self.mask = (1 << 8 * cie.encoding.address_size) - 1
        # Numbers of one width, absolute or relative to their own place, are all that compilers
        # write. The rest is read pointer by pointer.
        codes = _CODES.get((cie.pointer_encoding & 0x0F, cie.encoding.address_size))
        application = cie.pointer_encoding & 0xF0
        plain = codes and application in (DW_EH_PE.absptr, DW_EH_PE.pcrel) and not cie.segment_size
        order = "<" if cie.encoding.byteorder == "little" else ">"
        layout = Struct(order + (codes if plain and codes else ""))
        self.unpack = layout.unpack_from
        self.width = layout.size
        self.pcrel = section.vaddr if application == DW_EH_PE.pcrel else None

    def extent(self, at: int, end: int) -> tuple[int, int, int]:
        """Start and size of the code of the FDE whose extent lies at `at`, and what follows it."""
        after = at + self.width
        if not self.width or after > end:
            return self._read(at, end)
        start, size = self.unpack(self.data, at)
        if self.pcrel is not None:
            start = (start + self.pcrel + at) & self.mask
        elif start < 0:
            start &= self.mask
        return start, size, after

    def _read(self, at: int, end: int) -> tuple[int, int, int]:
        cie = self.cie
        reader = Reader(self.data[at:end], cie.encoding, at)
        reader.take(cie.segment_size)
        start = reader.pointer(cie.pointer_encoding)
        # The size has the format of the start and is relative to nothing: LSB Core 5.0 §10.6.1.1.2.
        size = reader.pointer(cie.pointer_encoding & 0x07)
        if start is None or size is None:
            raise reader.error("an FDE without the address of its code")
        return start, size, at + reader.at


class _Index:
    """Which FDE each stretch of addresses belongs to: a vaddr in, the offset of its FDE out."""

    __slots__ = ("owners", "starts")

    def __init__(self, extents: Iterator[tuple[int, int, int]]):
        # Of FDEs that overlap, the one that starts last owns the place. So they are laid flat in
        # one sweep: `open` holds those that are not over yet, the owner on top.
        self.starts: list[int] = []
        self.owners: list[int | None] = []
        open: list[tuple[int, int | None]] = [(_NEVER, None)]
        for start, end, offset in sorted(extents):
            self._close(open, start)
            open.append((end, offset))
            self.starts.append(start)
            self.owners.append(offset)
        self._close(open, _NEVER - 1)

    def _close(self, open: list[tuple[int, int | None]], vaddr: int) -> None:
        """Give what ends before `vaddr` back to those below it."""
        while open[-1][0] <= vaddr:
            end = open.pop()[0]
            while open[-1][0] <= end:
                open.pop()
            self.starts.append(end)
            self.owners.append(open[-1][1])

    def find(self, vaddr: int) -> int | None:
        """The offset of the FDE that covers `vaddr`, or None."""
        at = bisect_right(self.starts, vaddr) - 1
        return self.owners[at] if at >= 0 else None

    def gap(self, vaddr: int) -> tuple[int, int, int] | None:
        """Around a vaddr that no FDE covers: the end of one, twice, and the start of the next."""
        at = bisect_right(self.starts, vaddr)
        if not 0 < at < len(self.starts):
            return None
        return self.starts[at - 1], self.starts[at - 1], self.starts[at]


_NEVER = 1 << 128  # beyond any address


# The struct codes of a start and a size by pointer format and address size.
_CODES = {
    (DW_EH_PE.absptr, 4): "II",
    (DW_EH_PE.absptr, 8): "QQ",
    (DW_EH_PE.signed, 4): "iI",
    (DW_EH_PE.signed, 8): "qQ",
}
for _size in (4, 8):
    _CODES[DW_EH_PE.udata2, _size] = "HH"
    _CODES[DW_EH_PE.udata4, _size] = "II"
    _CODES[DW_EH_PE.udata8, _size] = "QQ"
    _CODES[DW_EH_PE.sdata2, _size] = "hH"
    _CODES[DW_EH_PE.sdata4, _size] = "iI"
    _CODES[DW_EH_PE.sdata8, _size] = "qQ"
