"""Images: the functions of a chain in, an ELF file with their code and CFI out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unwind.elf import ET, PT
from unwind.testing.assembler import FDE, Section
from unwind.testing.chains import Chain, Function
from unwind.testing.core_files import PAGE
from unwind.testing.dialects import Dialect
from unwind.testing.elf_files import Sect, Seg, make_elf

if TYPE_CHECKING:
    from unwind.dwarf.cfi import Kind

__all__ = ["FIRST", "code_of", "image", "section_of"]

FIRST = 0x1_0000  # the lowest vaddr


def image(chain: Chain, kind: Kind = "eh_frame", headers: bool = True) -> bytes:
    """A file whose one segment holds everything at file offset = vaddr - its first vaddr.

    `headers`: the CFI is found by section headers; else, as in memory, by .eh_frame_hdr alone.
    """
    dialect = chain.dialect
    start, code = code_of(chain)
    cfi_at = start + len(code)
    section = section_of(chain, cfi_at, kind)
    table_at = (cfi_at + len(section.data) + 8 + PAGE) & -PAGE
    table = section.header(vaddr=table_at)
    contents = bytearray(table_at + len(table) - FIRST)
    contents[start - FIRST : cfi_at - FIRST] = code
    contents[cfi_at - FIRST : cfi_at - FIRST + len(section.data)] = section.data
    contents[table_at - FIRST :] = table
    return _flat(dialect, contents, kind, headers, (start, cfi_at, table_at, len(section.data)))


def section_of(chain: Chain, vaddr: int, kind: Kind = "eh_frame") -> Section:
    """The CFI of all functions, which lies at `vaddr`."""
    entries = [
        FDE(each.start, each.body.size, each.body.program, each.cie, each.start * each.handles)
        for each in chain.functions
    ]
    return Section(*entries, kind=kind, vaddr=vaddr, target=chain.dialect.target)


def code_of(chain: Chain) -> tuple[int, bytes]:
    """Where the code begins and its bytes, with room on both sides: nops, and the calls."""
    functions: Sequence[Function] = chain.functions
    start = (functions[0].start - 64) & -PAGE
    end = (functions[-1].start + functions[-1].body.size + 64 + PAGE) & -PAGE
    dialect = chain.dialect
    code = bytearray(dialect.nop * ((end - start) // len(dialect.nop)))
    for each in functions:
        if each.calls:
            at = each.pc - start
            code[at - len(dialect.call) : at] = dialect.call
    return start, bytes(code)


def _flat(
    dialect: Dialect,
    contents: bytearray,
    kind: Kind,
    headers: bool,
    places: tuple[int, int, int, int],
) -> bytes:
    """The file: an ELF header, and the contents at their offsets."""
    start, cfi_at, table_at, cfi_size = places
    arch = dialect.arch
    count = 1 + (kind == "eh_frame")
    head = 64 + 56 * count if arch.elf_class == 64 else 52 + 32 * count
    whole = len(contents)
    segments = [Seg(PT.LOAD, bytes(contents[head:]), FIRST, file_size=whole, offset=0)]
    if kind == "eh_frame":
        at = table_at - FIRST
        table = Seg(PT.GNU_EH_FRAME, b"", table_at, 4, file_size=whole - at, offset=at)
        segments.append(table)
    text, cfi = start - FIRST, cfi_at - FIRST
    sections = [
        Sect(".text", vaddr=start, flags=6, size=cfi_at - start, offset=text),
        Sect(f".{kind}", vaddr=cfi_at, flags=2, size=cfi_size, offset=cfi),
    ]
    return make_elf(
        segments,
        sections if headers else (),
        shape=(arch.elf_class, arch.byteorder),
        type=ET.DYN,
        machine=arch.machine,
        flags=arch.flags_value,
    )
