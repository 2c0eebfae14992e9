"""Recorded: what a snapshot kept of memory and of images in; a Memory and an Image out.

They answer what was asked when the snapshot was made, failures included, and tell of anything
else that it was not kept: what is missing is never made up.
"""

from __future__ import annotations

from bisect import bisect_right
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap
from struct import Struct, error

from unwind.dwarf.cfi import FrameSection
from unwind.elf import Elf
from unwind.errors import FormatError, MemoryFault, UnwindError
from unwind.image import Image
from unwind.memory import Span
from unwind.pdr import Procedures
from unwind.rules import NoRow
from unwind.symbol_search import SymbolTable

__all__ = [
    "HEAD",
    "LARGEST",
    "MAGIC",
    "MOST_VALUES",
    "REGION",
    "VERSION",
    "Conclusions",
    "RecordedImage",
    "RecordedMemory",
    "RecordedSection",
    "RecordedSymbols",
    "joined",
    "skeleton",
    "values_in",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from unwind.dwarf.cfi import Fde, Kind
    from unwind.elf import Header
    from unwind.lines.location import Location
    from unwind.rules import Row
    from unwind.symtab import Symbol

    Piece = tuple[int, bytes | memoryview]  # what lies at an address, a vaddr or an offset

# A snapshot file: these, the length of the JSON document, the document, the bytes it points to.
MAGIC, VERSION = b"unwind-snapshot\n", 1
HEAD = Struct("<16sIIQ")
REGION = Struct("<QQII")  # start, end, whether code may run there, the number of its name

# Of the document: that of 64 threads takes 50 KB and has 5,000 values. A value takes some 100 bytes
# as an object and up to 2 us to look at, so that the largest one is read in half a second.
LARGEST, MOST_VALUES = 1 << 25, 1 << 18

NOT_KEPT = "the snapshot does not hold it: nobody asked for it when it was taken"
_SMALL = 1 << 16  # bytes that are no burden as zeroes
_PRIVATE, _ACCESS = MAP_PRIVATE | MAP_ANONYMOUS, PROT_READ | PROT_WRITE


def values_in(text: bytes) -> int:
    """How many values a JSON document may have, roughly, without a look at them."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def joined(pieces: Iterable[Piece]) -> list[tuple[int, bytes]]:
    """The pieces in ascending order, those that touch or overlap as one; of two the first wins."""
    found: list[tuple[int, bytearray]] = []
    for start, data in sorted(pieces, key=lambda piece: piece[0]):
        if found and start <= (end := found[-1][0] + len(found[-1][1])):
            found[-1][1].extend(data[end - start :])
        elif len(data):
            found.append((start, bytearray(data)))
    return [(start, bytes(data)) for start, data in found]


class _Pieces:
    """Pieces of something, ascending and apart from one another."""

    __slots__ = ("pieces", "starts")

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces = [(start, memoryview(data)) for start, data in pieces]
        self.starts = [start for start, _ in self.pieces]

    def at(self, place: int) -> tuple[int, memoryview] | None:
        """The start and the bytes of the piece that holds `place`, or None."""
        index = bisect_right(self.starts, place) - 1
        if index < 0:
            return None
        start, data = self.pieces[index]
        return (start, data) if place < start + len(data) else None


class RecordedMemory:
    """What was read of a memory: `spans` by address, and the `faults` by (address, size).

    A fault may be of less than what was to be read.
    """

    def __init__(self, spans: Iterable[Piece], faults: Mapping[tuple[int, int], MemoryFault]):
        self._pieces = _Pieces(spans)
        self.faults = dict(faults)

    @property
    def spans(self) -> Sequence[tuple[int, memoryview]]:
        """The stretches that are there: (start, bytes), ascending."""
        return self._pieces.pieces

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; the MemoryFault that there was, or one of its own."""
        found = self._pieces.at(address)
        if found is not None and size >= 0 and address + size <= found[0] + len(found[1]):
            return Span(*found).read(address, size)
        fault = self.faults.get((address, size))
        if fault is None:
            raise MemoryFault(address, size, NOT_KEPT)
        raise MemoryFault(fault.address, fault.size, fault.reason)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stretch around `address`, or None."""
        return self._pieces.at(address)


class RecordedSection(FrameSection):
    """The CIEs and FDEs of a section that were used, at their places in it.

    `pieces` hold them, (offset, bytes), and `entries` are the offsets where one begins: damaged
    ones may overlap. None: the pieces are whole entries, one behind the other. `errors` tell for
    which vaddrs the section gave an error, and which.
    """

    def __init__(
        self,
        kind: Kind,
        vaddr: int,
        size: int,
        header: Header,
        pieces: Iterable[Piece],
        *,
        entries: Iterable[int] | None = None,
        text_base: int | None = None,
        data_base: int | None = None,
        errors: Mapping[int, str] | None = None,
    ):
        self.pieces = [(offset, memoryview(data)) for offset, data in pieces]
        self.size = size
        self.offsets = tuple(entries) if entries is not None else None
        self.errors = dict(errors or {})
        super().__init__(
            _placed(self.pieces, size, f".{kind}"),
            vaddr,
            kind,
            header.byteorder,
            header.elf_class // 8,
            text_base=text_base,
            data_base=data_base,
        )

    def find(self, vaddr: int) -> Fde | None:
        """The FDE that covers `vaddr`, None, or the error, as it was when the snapshot was made."""
        told = self.errors.get(vaddr)
        if told is not None:
            raise UnwindError(told)
        return super().find(vaddr)

    def _walk(self) -> Iterator[tuple[int, int, int, int | None]]:
        """The entries that were kept: between them the section is unknown, not empty."""
        if self.offsets is not None:
            yield from map(self._entry, self.offsets)
            return
        for at, data in self.pieces:
            end = at + len(data)
            while at + 4 <= end:
                entry = self._entry(at)
                if entry[2] > end:
                    raise self._error("an entry is cut short", at)
                yield entry
                at = entry[2]


def _placed(pieces: Sequence[Piece], size: int, where: str) -> memoryview:
    """A section of `size` bytes with the pieces in their places.

    Pages that nothing lies in take no memory, however large a section may claim to be.
    """
    if len(pieces) == 1 and pieces[0][0] == 0 and len(pieces[0][1]) == size:
        return memoryview(pieces[0][1])
    room: mmap | bytearray
    try:
        room = bytearray(size) if size <= _SMALL else mmap(-1, size, _PRIVATE, _ACCESS)
    except (OSError, OverflowError, MemoryError):
        raise FormatError(f"no room for a section of {size} bytes", where) from None
    for offset, data in pieces:
        room[offset : offset + len(data)] = data
    return memoryview(room)


class RecordedSymbols(SymbolTable):
    """The symbols that named places: by vaddr, None where it was found that nothing names it."""

    def __init__(self, named: Mapping[int, Symbol | None]):
        super().__init__(())
        self.named_at = dict(named)

    def find(self, vaddr: int) -> Symbol | None:
        """The symbol that names `vaddr`; None also for a place that nobody asked for."""
        return self.named_at.get(vaddr)

    def __iter__(self) -> Iterator[Symbol]:
        """Those that were kept, each once."""
        return iter({symbol: None for symbol in self.named_at.values() if symbol is not None})


class Conclusions:
    """What was concluded from more of an image than a snapshot keeps (see `image.Told`).

    `rows` of the analysis of code are kept by (vaddr, called), `extents` of functions by a vaddr
    in them, `rows_from` by (start, vaddr, called), `stubs` of linkage tables by vaddr, `lines` are
    the places in source of a vaddr, as debug info had them.
    """

    def __init__(
        self,
        rows: Mapping[tuple[int, bool], Row | NoRow] | None = None,
        extents: Mapping[int, tuple[int, int] | None] | None = None,
        rows_from: Mapping[tuple[int, int, bool], Row | None] | None = None,
        stubs: Mapping[int, Symbol | None] | None = None,
        lines: Mapping[int, tuple[Location, ...]] | None = None,
    ):
        self.rows = dict(rows or {})
        self.extents = dict(extents or {})
        self.rows_from = dict(rows_from or {})
        self.stubs = dict(stubs or {})
        self.lines = dict(lines or {})

    def row(self, vaddr: int, called: bool) -> Row | NoRow:
        """What the analysis of the code said at `vaddr`."""
        known = self.rows.get((vaddr, called))
        return NoRow(f"the snapshot holds no code around {vaddr:#x}") if known is None else known

    def extent(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where that is not known."""
        return self.extents.get(vaddr)

    def row_from(self, start: int, vaddr: int, called: bool) -> Row | None:
        """The row at `vaddr` of a function that is taken to begin at `start`."""
        return self.rows_from.get((start, vaddr, called))

    def stub(self, vaddr: int) -> Symbol | None:
        """The stub of a linkage table at `vaddr`."""
        return self.stubs.get(vaddr)

    def locations(self, vaddr: int) -> tuple[Location, ...]:
        """The places in source of `vaddr`; () also where nobody asked for them."""
        return self.lines.get(vaddr, ())


class RecordedImage(Image):
    """What a snapshot kept of an image.

    `elf` has its header and program headers alone (see `skeleton`), `pieces` are bytes by vaddr,
    `sections` those with CFI by the place they were found in (`Image.frame_sections`). `kinds` is
    what `unwind_kinds` said, `debug_path` names the separate debug file, `procedure_data` are
    entries of .pdr, None where the image has none.
    """

    told: Conclusions

    def __init__(
        self,
        elf: Elf,
        path: str | None,
        build_id: bytes | None = None,
        *,
        kinds: Sequence[str] = (),
        debug_path: str | None = None,
        pieces: Iterable[Piece] = (),
        sections: Mapping[str, Sequence[RecordedSection]] | None = None,
        symbols: RecordedSymbols | None = None,
        procedure_data: bytes | memoryview | None = None,
        told: Conclusions | None = None,
    ):
        super().__init__(elf, path)
        self._pieces = _Pieces(pieces)
        self._build_id = build_id
        self.kinds = tuple(kinds)
        self.debug_path = debug_path
        self.sections = {place: tuple(found) for place, found in (sections or {}).items()}
        self.procedure_data = procedure_data
        self.told = told if told is not None else Conclusions()
        self.names = symbols if symbols is not None else RecordedSymbols({})
        self._symbols = self.names
        self._debug = (RecordedImage(elf, debug_path) if debug_path is not None else None,)
        known = None
        if procedure_data is not None:
            known = Procedures(memoryview(procedure_data), elf.header.byteorder)
        self._procedures = (known,)

    @property
    def pieces(self) -> Sequence[tuple[int, memoryview]]:
        """The bytes that were kept: (vaddr, bytes), ascending."""
        return self._pieces.pieces

    @property
    def build_id(self) -> bytes | None:
        """The build-id, or None where the image has none."""
        return self._build_id

    @property
    def unwind_kinds(self) -> tuple[str, ...]:
        """Which descriptions of frames the image had."""
        return self.kinds

    def at(self, vaddr: int, size: int | None = None) -> memoryview:
        """The bytes from `vaddr` to the end of what was kept there, or the first `size`."""
        found = self._pieces.at(vaddr)
        if found is None:
            return memoryview(b"")
        rest = found[1][vaddr - found[0] :]
        return rest if size is None else rest[: max(size, 0)]

    def reach(self, vaddr: int) -> int:
        """How many bytes the image had from `vaddr` to the end of its segment."""
        for segment in self.elf.segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.file_size:
                return segment.vaddr + segment.file_size - vaddr
        return 0

    def read(self, vaddr: int, size: int) -> bytes:
        """The `size` bytes at `vaddr`; MemoryFault when they were not kept."""
        found = bytes(self.at(vaddr, size))
        if len(found) < size:
            raise MemoryFault(vaddr, size, f"not in {self.path or self.elf.path or 'image'}")
        return found

    def _frames_of(self, place: str) -> tuple[FrameSection, ...]:
        return self.sections.get(place, ())


# Where the contents of a skeleton's segments lie in its file: behind the end of any.
_NOWHERE = {32: 1 << 31, 64: 1 << 62}


def skeleton(header: Header, loads: Iterable[Sequence[int]], path: str) -> Elf:
    """An ELF file of a header and PT_LOADs, without anything in them.

    `loads` are (flags, vaddr, file size, memory size).
    """
    wide = header.elf_class == 64
    order = "<" if header.byteorder == "little" else ">"
    nowhere, rows = _NOWHERE[header.elf_class], list(loads)
    head = Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    row = Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    first = 16 + head.size
    try:
        kinds = bytes((header.elf_class // 32, 1 if order == "<" else 2, 1, header.osabi))
        made = [b"\x7fELF", kinds.ljust(12, b"\0")]
        made.append(
            head.pack(
                *(header.type, header.machine, header.version, header.entry, first, 0),
                *(header.flags, first, row.size, len(rows), 0, 0, 0),
            )
        )
        for flags, vaddr, file_size, memory_size in rows:
            middle = (nowhere, vaddr, 0, file_size, memory_size)
            fields = (1, flags, *middle, 0) if wide else (1, *middle, flags, 0)
            made.append(row.pack(*fields))
    except (error, ValueError) as reason:
        raise FormatError(f"no header of an image: {reason}", path) from None
    return Elf(b"".join(made), path)
