"""ELF: the bytes of a file, or of a loaded image, in; headers, sections, segments and notes out.

Nothing is believed: every count, offset and size is cut to what the buffer holds before it is
used, and tables are decoded when they are first asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from unwind.errors import FormatError, MemoryFault
from unwind.memory import view_of
from unwind.values import Value

__all__ = [
    "DT",
    "EM",
    "ET",
    "PT",
    "SHF",
    "SHT",
    "Elf",
    "Header",
    "Note",
    "ProgramHeader",
    "Section",
    "Segment",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from unwind.protocols import ByteOrder, Memory


class ET:
    """e_type (gABI 4.1, "ELF Header")."""

    REL, EXEC, DYN, CORE = 1, 2, 3, 4


class EM:
    """e_machine: those that somebody may hand us; the numbers are the gABI registry's."""

    SPARC, I386, M68K, MIPS, PARISC, SPARC32PLUS, PPC, PPC64 = 2, 3, 4, 8, 15, 18, 20, 21
    S390, ARM, SH, SPARCV9, IA_64, X86_64, XTENSA, AARCH64 = 22, 40, 42, 43, 50, 62, 94, 183
    ARC_COMPACT2, RISCV, BPF, CSKY, LOONGARCH, ALPHA = 195, 243, 247, 252, 258, 0x9026


class PT:
    """p_type (gABI 4.1 "Program Header"; LSB Core 5.0 §12.2 for the GNU ones)."""

    LOAD, DYNAMIC, INTERP, NOTE, PHDR = 1, 2, 3, 4, 6
    GNU_EH_FRAME = 0x6474_E550


class SHT:
    """sh_type (gABI 4.1 "Sections")."""

    PROGBITS, SYMTAB, STRTAB, RELA, DYNAMIC, NOTE, NOBITS, REL, DYNSYM = 1, 2, 3, 4, 6, 7, 8, 9, 11


class SHF:
    """sh_flags (gABI 4.1 "Sections")."""

    WRITE, ALLOC, EXECINSTR, COMPRESSED = 0x1, 0x2, 0x4, 0x800


class DT:
    """d_tag (gABI 5 "Dynamic Section"; DT_GNU_HASH as binutils and glibc have it)."""

    NULL, PLTGOT, HASH, STRTAB, SYMTAB, STRSZ, SYMENT = 0, 3, 4, 5, 6, 10, 11
    INIT, FINI, DEBUG = 12, 13, 21
    GNU_HASH = 0x6FFF_FEF5


_PN_XNUM = 0xFFFF  # the number of program headers is section 0's sh_info: gABI 4.1
_SHN_XINDEX = 0xFFFF  # the index of the names' section is section 0's sh_link
_PF_X, _PF_W = 0x1, 0x2
_NT_GNU_BUILD_ID = 3
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_PAGE = 4096
_LONGEST_NAME = 1024  # of a section: those we look for are short
_MOST_NOTES = 1 << 20  # bytes of a loaded image's notes: nobody tells how large its file is
# What a file may hold is not what it may claim: a sparse file of some TB costs its maker nothing.
_MOST_SEGMENTS, _MOST_SECTIONS, _MOST_TAGS = 1 << 21, 1 << 19, 1 << 16
_LARGEST_NAMES = 1 << 26
_LARGEST = 1 << 30  # bytes made at once; Chromium's .debug_frame takes a tenth
# Debug sections shrink to a third, at best to a twentieth; what shrinks more is made to do harm.
_SMALL, _MOST_SHRUNK = 1 << 16, 100


class Header(Value):
    """The ELF header, with the numbers that did not fit into it (gABI 4.1, "extended")."""

    elf_class: int  # 32 or 64
    byteorder: ByteOrder
    osabi: int
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class ProgramHeader(Value):
    """One program header, as written in the file."""

    type: int
    flags: int
    offset: int
    vaddr: int
    file_size: int
    memory_size: int
    align: int


class Section(Value):
    """One section header, as written in the file."""

    index: int
    name: str
    type: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


class Note(Value):
    """One note: its owner without the NUL, its type, and what of its data is there."""

    name: bytes
    type: int
    data: memoryview


class Segment:
    """A PT_LOAD: what the file says is at `vaddr`, and the `data` that is really there."""

    __slots__ = ("_at", "_store", "executable", "file_size", "memory_size", "vaddr", "writable")

    def __init__(self, store: _File | _Loaded, row: tuple[int, ...]):
        _, flags, self._at, self.vaddr, self.file_size, self.memory_size, _ = row
        self._store = store
        self.executable, self.writable = bool(flags & _PF_X), bool(flags & _PF_W)

    @property
    def data(self) -> memoryview:
        """The first bytes of the segment, as far as file or memory hold them."""
        return self._store.contents(self._at, self.vaddr, self.file_size)

    def __repr__(self) -> str:
        return f"Segment({self.vaddr:#x}, {self.memory_size:#x})"


class _Layout:
    """How the records of one ELF class and byte order are laid out."""

    __slots__ = ("compressed", "dynamic", "header", "note", "program", "section")

    def __init__(self, elf_class: int, byteorder: ByteOrder):
        order = "<" if byteorder == "little" else ">"
        wide = elf_class == 64
        self.header = Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
        self.program = Struct(order + ("IIQQ8xQQQ" if wide else "III4xIIII"))  # without p_paddr
        self.section = Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
        self.dynamic = Struct(order + ("QQ" if wide else "II"))
        self.compressed = Struct(order + ("I4xQQ" if wide else "III"))
        self.note = Struct(order + "III")


_layouts: dict[tuple[int, str], _Layout] = {}


class _File:
    """Contents taken from a file: by offset."""

    __slots__ = ("view",)

    def __init__(self, view: memoryview):
        self.view = view

    def contents(self, offset: int, vaddr: int, size: int) -> memoryview:
        return self.view[offset : offset + size]


class _Loaded:
    """Contents taken from the memory that an image is loaded in: by vaddr."""

    __slots__ = ("bias", "memory")

    def __init__(self, memory: Memory, bias: int):
        self.memory, self.bias = memory, bias

    def contents(self, offset: int, vaddr: int, size: int) -> memoryview:
        """The `size` bytes at `vaddr`, or as many as lie there without a hole.

        No copy is made where the memory has them in one view.
        """
        address = (vaddr + self.bias) & _MASK
        end, pieces = address + min(size, _LARGEST), []
        while address < end:
            piece = self._piece(address, end)
            if not piece:
                break
            pieces.append(piece)
            address += len(piece)
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def _piece(self, address: int, end: int) -> memoryview:
        """Some bytes at `address`, at least one, and none where memory cannot be read."""
        found = view_of(self.memory, address)
        if found is not None:
            start, view = found
            return view[address - start : end - start]
        page = min(end, (address | (_PAGE - 1)) + 1)
        try:
            return memoryview(self.memory.read(address, page - address))
        except MemoryFault:
            return memoryview(b"")


class Elf:
    """An ELF file, or a loaded image (`from_memory`); `bias` is 0 for a file.

    Raises FormatError when the buffer holds no ELF header, or one that contradicts itself. A file
    that is cut short is no error: what lies beyond its end is absent.
    """

    def __init__(self, buffer: bytes | bytearray | memoryview, path: str = ""):
        view = memoryview(buffer).cast("B")
        self.path = path
        self.bias = 0
        self._view = view
        self._store: _File | _Loaded = _File(view)
        self._rows: list[tuple[int, ...]] | None = None
        self._program_headers: tuple[ProgramHeader, ...] | None = None
        self._segments: tuple[Segment, ...] | None = None
        self._starts: tuple[list[int], list[Segment]] | None = None
        self._sections: tuple[Section, ...] | None = None
        self._by_name: dict[str, Section] | None = None
        self._dynamic: tuple[tuple[int, int], ...] | None = None
        self._build_id: bytes | str | None = "unread"
        self._read_header()

    @classmethod
    def from_memory(cls, memory: Memory, base: int, path: str = "") -> Elf:
        """The image whose ELF header lies at `base`: FormatError where there is none.

        Sections are unknown. Pages that cannot be read are absent from the segments' data.
        """
        store = _Loaded(memory, base)
        elf = cls(bytes(store.contents(0, 0, 64)), path)
        header = elf.header
        # Linux v6.13 fs/binfmt_elf.c loads no image with a larger table.
        size = min(header.phnum * header.phentsize, 65536)
        table = store.contents(0, header.phoff, size)
        rows = _program_rows(header, elf._layout, table)
        # File offset 0 lies at p_vaddr - p_offset of the segment that holds it.
        first = next((row for row in rows if row[0] == PT.LOAD and row[2] < _PAGE), None)
        if first is None:
            raise FormatError("no loaded segment holds the ELF header", path, header.phoff)
        elf.bias = (base - (first[3] - first[2])) & _MASK
        elf.header = header.replace(shoff=0, shnum=0, shstrndx=0)
        elf._view = memoryview(b"")
        elf._store = _Loaded(memory, elf.bias)
        elf._rows = rows
        return elf

    def _read_header(self) -> None:
        view = self._view
        ident = bytes(view[:16])
        if ident[:4] != b"\x7fELF":
            raise FormatError("no ELF file", self.path, 0)
        if len(ident) < 16 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise FormatError("neither ELF32 nor ELF64, or in no known byte order", self.path, 4)
        elf_class = 32 * ident[4]
        byteorder: ByteOrder = "little" if ident[5] == 1 else "big"
        layout = _layouts.get((elf_class, byteorder))
        if layout is None:
            layout = _layouts[elf_class, byteorder] = _Layout(elf_class, byteorder)
        self._layout = layout
        if len(view) < 16 + layout.header.size:
            raise FormatError("the file ends within its ELF header", self.path, len(view))
        fields = layout.header.unpack_from(view, 16)
        kind, machine, version, entry, phoff, shoff, flags = fields[:7]
        phentsize, phnum, shentsize, shnum, shstrndx = fields[8:]
        if (phnum == _PN_XNUM or shnum == 0 or shstrndx == _SHN_XINDEX) and shoff:
            zero = next(_table(layout.section, view[shoff:], shentsize, 1), None)
            if zero is not None:
                shnum = shnum or zero[5]
                shstrndx = zero[6] if shstrndx == _SHN_XINDEX else shstrndx
                phnum = zero[7] if phnum == _PN_XNUM and zero[7] else phnum
        if phnum == _PN_XNUM:
            phnum = _counted(layout, view, phoff) or phnum
        if phnum and phentsize < layout.program.size:
            raise FormatError(f"e_phentsize is {phentsize}", self.path, 54)
        self.header = Header(
            elf_class, byteorder, ident[7], kind, machine, version, entry, phoff, shoff, flags,
            phentsize, phnum, shentsize, shnum, shstrndx,
        )  # fmt: skip

    @property
    def program_rows(self) -> list[tuple[int, ...]]:
        """The program headers as tuples in the order of ProgramHeader's fields.

        For cores of 100,000 mappings, whose headers should not all become objects.
        """
        rows = self._rows
        if rows is None:
            header = self.header
            rows = _program_rows(header, self._layout, self._view[header.phoff :])
            self._rows = rows
        return rows

    @property
    def program_headers(self) -> tuple[ProgramHeader, ...]:
        """The program headers that the file holds; fewer than `header.phnum` when it is cut."""
        found = self._program_headers
        if found is None:
            found = tuple([ProgramHeader(*row) for row in self.program_rows])
            self._program_headers = found
        return found

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The PT_LOADs, in the file's order."""
        found = self._segments
        if found is None:
            store = self._store
            found = tuple([Segment(store, row) for row in self.program_rows if row[0] == PT.LOAD])
            self._segments = found
        return found

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections whose headers the file holds; index 0 is the null section."""
        found = self._sections
        if found is None:
            header, layout, view = self.header, self._layout, self._view
            rows = []
            if header.shoff and header.shentsize >= layout.section.size:
                table = view[header.shoff :]
                count = min(header.shnum, _MOST_SECTIONS)
                rows = list(_table(layout.section, table, header.shentsize, count))
            names = b""
            if header.shstrndx < len(rows):
                at = rows[header.shstrndx]
                names = bytes(view[at[4] : at[4] + min(at[5], _LARGEST_NAMES)])
            found = tuple(
                [Section(i, _name(names, row[0]), *row[1:]) for i, row in enumerate(rows)]
            )
            self._sections = found
        return found

    def section(self, name: str) -> Section | None:
        """The first section called `name` (`.zdebug_x` serves for `.debug_x`), or None."""
        table = self._by_name
        if table is None:
            table = {section.name: section for section in reversed(self.sections)}
            self._by_name = table
        found = table.get(name)
        if found is None and name.startswith(".debug_"):
            found = table.get(".z" + name[1:])
        return found

    def data(self, section: Section) -> memoryview:
        """The contents of `section`, decompressed; empty for SHT_NOBITS.

        A section that runs beyond the file's end is cut there. Raises FormatError for damaged
        compressed data and MissingPackage for zstd where Python has none.
        """
        if section.type == SHT.NOBITS:
            return memoryview(b"")
        raw = self._view[section.offset : section.offset + section.size]
        if section.flags & SHF.COMPRESSED:
            record = self._layout.compressed
            if len(raw) < record.size:
                raise FormatError("no room for a compression header", self._where(section), 0)
            kind, size, _ = record.unpack_from(raw)
            return self._decompress(section, kind, raw[record.size :], size)
        if section.name.startswith(".zdebug") and bytes(raw[:4]) == b"ZLIB" and len(raw) >= 12:
            return self._decompress(section, 1, raw[12:], int.from_bytes(raw[4:12], "big"))
        return raw

    def _decompress(self, section: Section, kind: int, raw: memoryview, size: int) -> memoryview:
        """gABI 4.1 "Section Compression": ELFCOMPRESS_ZLIB is 1, ELFCOMPRESS_ZSTD 2."""
        from unwind.compression import inflate, unzstd  # most files have none

        where = self._where(section)
        if size > min(_LARGEST, _SMALL + _MOST_SHRUNK * len(raw)):
            raise FormatError(f"{size} bytes when decompressed from {len(raw)}", where)
        if kind == 1:
            return memoryview(inflate(raw, size, where))
        if kind == 2:
            return memoryview(unzstd(raw, size, where))
        raise FormatError(f"compressed by an unknown method, {kind}", where)

    def _where(self, section: Section) -> str:
        return f"{self.path}: {section.name}" if self.path else section.name

    def at(self, vaddr: int, size: int | None = None) -> memoryview:
        """The bytes from `vaddr` to the end of its segment's data, or the first `size` of them.

        An empty view where no segment lies, or where file or memory do not hold it.
        """
        table = self._starts
        if table is None:
            ordered = sorted(self.segments, key=lambda segment: segment.vaddr)
            table = self._starts = [segment.vaddr for segment in ordered], ordered
        starts, ordered = table
        index = bisect_right(starts, vaddr) - 1
        if index < 0:
            return memoryview(b"")
        segment = ordered[index]
        skip = vaddr - segment.vaddr
        left = max(segment.file_size - skip, 0)
        wanted = left if size is None else max(min(left, size), 0)
        return self._store.contents(segment._at + skip, vaddr, wanted)

    def notes(self, types: Container[int] | None = None) -> Iterator[Note]:
        """The notes of all PT_NOTEs; of a file without any, those of the SHT_NOTEs.

        `types` are those that are wanted; None: all.
        """
        found = [row for row in self.program_rows if row[0] == PT.NOTE]
        left = self._room_for_notes
        for _, _, offset, vaddr, size, _, align in found:
            data = self._store.contents(offset, vaddr, min(size, left))
            left -= len(data)
            yield from self._notes_in(data, align, types)
        if not found:
            yield from self._section_notes(types)

    def _section_notes(self, types: Container[int] | None = None) -> Iterator[Note]:
        left = self._room_for_notes
        for section in self.sections:
            if section.type == SHT.NOTE:
                data = self.data(section)[:left]
                left -= len(data)
                yield from self._notes_in(data, section.align, types)

    @property
    def _room_for_notes(self) -> int:
        """The bytes that all notes can have together, however often headers point to them."""
        return len(self._view) or _MOST_NOTES

    def _notes_in(
        self, data: memoryview, align: int, types: Container[int] | None
    ) -> Iterator[Note]:
        """gABI 5 "Note Section"; padded to 4 bytes in practice, to 8 where the segment says so."""
        pad = 7 if align == 8 else 3
        unpack, at, end = self._layout.note.unpack_from, 0, len(data)
        while at + 12 <= end:
            name_size, size, kind = unpack(data, at)
            start = (at + 12 + name_size + pad) & ~pad
            if start > end:
                return
            if types is None or kind in types:
                name = bytes(data[at + 12 : at + 12 + min(name_size, 256)])
                yield Note(name.rstrip(b"\0"), kind, data[start : start + size])
            at = (start + size + pad) & ~pad

    @property
    def build_id(self) -> bytes | None:
        """The contents of NT_GNU_BUILD_ID, or None."""
        found = self._build_id
        if isinstance(found, str):
            found = _build_id(self.notes())
            if found is None:  # a debug file's PT_NOTE may point anywhere
                found = _build_id(self._section_notes())
            self._build_id = found
        return found

    @property
    def dynamic(self) -> tuple[tuple[int, int], ...]:
        """The (tag, value) pairs of PT_DYNAMIC up to DT_NULL.

        In memory a value that is a pointer may have been relocated: see `to_vaddr`.
        """
        found = self._dynamic
        if found is None:
            pairs = []
            row = next((row for row in self.program_rows if row[0] == PT.DYNAMIC), None)
            if row is not None:
                record = self._layout.dynamic
                data = self.at(row[3], min(row[4], _MOST_TAGS * record.size))
                for tag, value in record.iter_unpack(
                    data[: len(data) // record.size * record.size]
                ):
                    if tag == DT.NULL:
                        break
                    pairs.append((tag, value))
            found = self._dynamic = tuple(pairs)
        return found

    def to_vaddr(self, pointer: int) -> int | None:
        """The vaddr that a pointer in `dynamic` means, or None when it leads nowhere.

        glibc adds the bias to the pointers of a loaded image's dynamic section, other loaders,
        and glibc on MIPS and RISC-V, do not; the vdso's are never touched.
        """
        for vaddr in (pointer, (pointer - self.bias) & _MASK):
            for segment in self.segments:
                if segment.vaddr <= vaddr < segment.vaddr + segment.memory_size:
                    return vaddr
        return None

    def machine_name(self) -> str:
        """X86_64 for EM_X86_64, "" for what is not in `EM`."""
        machine = self.header.machine
        return next((name for name, number in vars(EM).items() if number == machine), "")

    def describe(self) -> str:
        """The machine, class, byte order and flags in words, for refusals."""
        header, name = self.header, self.machine_name()
        machine = f"EM_{name} ({header.machine})" if name else str(header.machine)
        return (
            f"machine {machine}, ELF{header.elf_class}, {header.byteorder} endian, "
            f"flags {header.flags:#x}"
        )


def _table(record: Struct, data: memoryview, stride: int, count: int) -> Iterator[tuple[int, ...]]:
    """At most `count` records, `stride` bytes apart, as many as `data` holds whole."""
    size = record.size
    if stride == size:
        return record.iter_unpack(data[: min(count, len(data) // size) * size])
    if stride < size:
        return iter(())
    count = min(count, (len(data) + stride - size) // stride)
    return (record.unpack_from(data, index * stride) for index in range(count))


def _program_rows(header: Header, layout: _Layout, data: memoryview) -> list[tuple[int, ...]]:
    count = min(header.phnum, _MOST_SEGMENTS)
    rows = list(_table(layout.program, data, header.phentsize, count))
    if header.elf_class == 32:  # p_flags stands before p_align there
        return [(t, f, o, v, fs, ms, a) for t, o, v, fs, ms, f, a in rows]
    return rows


def _counted(layout: _Layout, view: memoryview, phoff: int) -> int:
    """How many program headers a core has whose section header 0 was cut off; 0: unknown.

    Linux (fs/binfmt_elf.c) writes the notes right behind the headers, and their header first.
    """
    first = next(_table(layout.program, view[phoff:], layout.program.size, 1), None)
    if first is None:
        return 0
    offset = first[2] if layout.program.size == 56 else first[1]
    return max(offset - phoff, 0) // layout.program.size


def _name(names: bytes, start: int) -> str:
    end = names.find(b"\0", start, start + _LONGEST_NAME)
    return names[start : end if end >= 0 else start + _LONGEST_NAME].decode(errors="replace")


def _build_id(notes: Iterator[Note]) -> bytes | None:
    for note in notes:
        if note.type == _NT_GNU_BUILD_ID and note.name == b"GNU" and 0 < len(note.data) <= 64:
            return bytes(note.data)
    return None
