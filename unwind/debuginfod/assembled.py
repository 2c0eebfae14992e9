"""Sections that came by themselves in, an ELF file that holds just those out.

A section has no build-id, so what a server sent is compared with what memory holds of the
program: the size and place of .eh_frame_hdr, and its table with the FDEs.
"""

from __future__ import annotations

from struct import Struct

from unwind.dwarf.cfi import FrameSection
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.elf import PT, SHF, SHT, Elf
from unwind.errors import FormatError

__all__ = ["with_debug_frame", "with_eh_frame"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_AWAY = 0x7FFF_F000  # where segments are said to lie: beyond the end of the file, so absent
_COMPARED = 256  # entries of the search table that are held against their FDEs
_COMPRESSED = (1, 2)  # ELFCOMPRESS_ZLIB, ELFCOMPRESS_ZSTD (gABI 4.1 "Section Compression")


def with_eh_frame(program: Elf, header: bytes, eh_frame: bytes) -> bytes:
    """A file with the segments of `program` and these .eh_frame_hdr and .eh_frame.

    FormatError where they cannot be those of the program.
    """
    where = "fetched .eh_frame"
    row = next((row for row in program.program_rows if row[0] == PT.GNU_EH_FRAME), None)
    if row is None:
        raise FormatError("the program has no .eh_frame_hdr", where)
    if len(header) != row[4]:
        raise FormatError(f"a header of {len(header)} bytes, the program's has {row[4]}", where)
    order, word = program.header.byteorder, program.header.elf_class // 8
    table = SearchTable(header, row[3], order, word)
    start = table.eh_frame
    if start is None or not _holds(program, start):
        raise FormatError("it lies outside the program", where)
    section = FrameSection(eh_frame, start, "eh_frame", order, word)
    codes = table.starts(0, 1 << 64)
    if not codes:
        raise FormatError("its search table is empty", where)
    for code in codes[:: len(codes) // _COMPARED + 1]:
        _, place = table.find(code) or (0, 0)
        if section.fde_at(place - start).start != code or not _holds(program, code, code=True):
            raise FormatError("search table and FDEs do not belong together", where)
    return _file(
        program,
        [(".eh_frame_hdr", row[3], header, SHF.ALLOC), (".eh_frame", start, eh_frame, SHF.ALLOC)],
    )


def with_debug_frame(program: Elf, debug_frame: bytes) -> bytes:
    """A file with the segments of `program` and this .debug_frame; FormatError as above."""
    header = program.header
    number = int.from_bytes(debug_frame[:4], header.byteorder)
    # A server hands a section out as it lies in the file, without the flag that says how.
    flags = SHF.COMPRESSED if number in _COMPRESSED else 0
    made = _file(program, [(".debug_frame", 0, debug_frame, flags)])
    elf = Elf(made)
    section = elf.section(".debug_frame")
    assert section is not None
    order, word = header.byteorder, header.elf_class // 8
    frames = FrameSection(elf.data(section), 0, "debug_frame", order, word)
    starts = [start for start, _ in frames.extents()]
    # Of functions that the linker left out the code is at 0.
    if not any(start and _holds(program, start, code=True) for start in starts[:_COMPARED]):
        raise FormatError("it is of no code of the program", "fetched .debug_frame")
    return made


def _holds(program: Elf, vaddr: int, code: bool = False) -> bool:
    return any(
        segment.vaddr <= vaddr < segment.vaddr + segment.memory_size
        and (segment.executable or not code)
        for segment in program.segments
    )


def _file(program: Elf, sections: Iterable[tuple[str, int, bytes, int]]) -> bytes:
    """An ELF file of the program's kind: its PT_LOADs without contents, its build-id, sections.

    Each section is given by its name, its vaddr, its bytes and its flags.
    """
    head, layout = program.header, program._layout
    order = "<" if head.byteorder == "little" else ">"
    rows = [(*row[:2], _AWAY, *row[3:]) for row in program.program_rows if row[0] == PT.LOAD]
    count = len(rows) + 1
    at = 16 + layout.header.size + count * layout.program.size
    build_id = program.build_id or b""
    note = Struct(f"{order}III4s").pack(4, len(build_id), 3, b"GNU\0") + build_id
    contents = [("", 0, SHT.NOTE, b"", 0), ("note", 0, SHT.NOTE, note, 0)]
    contents += [(name, vaddr, SHT.PROGBITS, data, flags) for name, vaddr, data, flags in sections]
    names = "\0".join(name for name, *_ in contents).encode() + b"\0.shstrtab\0"
    contents.append((".shstrtab", 0, SHT.STRTAB, names, 0))
    body, table, name_at = b"", b"", 0
    for n, (name, vaddr, kind, data, flags) in enumerate(contents):
        body += bytes(-(at + len(body)) % 8)
        place = at + len(body)
        fields = (name_at, kind if n else 0, flags, vaddr, place if n else 0, len(data), 0, 0, 8, 0)
        table += layout.section.pack(*fields)
        if n == 1:
            rows.append((PT.NOTE, 4, place, 0, len(data), len(data), 4))
        body += data
        name_at += len(name.encode()) + 1
    body += bytes(-(at + len(body)) % 8)
    sizes = (16 + layout.header.size, layout.program.size, count, layout.section.size)
    header = layout.header.pack(
        head.type, head.machine, head.version, head.entry, 16 + layout.header.size,
        at + len(body), head.flags, *sizes, len(contents), len(contents) - 1,
    )  # fmt: skip
    ident = b"\x7fELF" + bytes([head.elf_class // 32, 1 + (head.byteorder == "big"), 1, head.osabi])
    programs = b"".join(layout.program.pack(*_as_stored(row, head.elf_class)) for row in rows)
    return ident.ljust(16, b"\0") + header + programs + body + table


def _as_stored(row: tuple[int, ...], elf_class: int) -> tuple[int, ...]:
    """A program header in the order of its fields in the file."""
    if elf_class == 64:
        return row
    kind, flags, offset, vaddr, file_size, memory_size, align = row
    return kind, offset, vaddr, file_size, memory_size, flags, align
