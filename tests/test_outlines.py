"""Outlines against rows: two ways to read the same FDE; and distances in expressions."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given

from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.constants import DW_OP
from unwind.dwarf.expression import distance, evaluate
from unwind.dwarf.outlines import ODD, entry_outline, outline, outlines
from unwind.dwarf.rows import rows
from unwind.errors import FormatError, MemoryFault
from unwind.files import Files
from unwind.testing.sections import SectionMade, damaged_sections, sections

FP, SP = 6, 7
Rows = list[tuple[int, tuple[int, int, int, int, int]]]


def both(fde: Fde) -> tuple[Rows, Rows] | None:
    """The rows of an FDE by either way; None where outlines leave it to `rows`."""
    try:
        entry = entry_outline(fde.cie, FP, SP)
    except FormatError:
        return None
    read = outlines(fde, FP, SP, entry)
    if read is None:
        return None
    return list(zip(*read, strict=True)), [(r.start, outline(r, FP, SP)) for r in rows(fde)]


def fdes(section: FrameSection, most: int = 50) -> list[Fde]:
    return list(islice((entry for entry in section.entries() if isinstance(entry, Fde)), most))


@given(sections() | damaged_sections())
def test_an_outline_is_that_of_the_row(made: SectionMade) -> None:
    given, target = made.section, made.section.target
    section = FrameSection(
        bytes(given.data), 0x1000, given.kind, target.byteorder, target.address_size
    )
    for fde in fdes(section):
        if fde.start < fde.end and (found := both(fde)) is not None:
            mine, its = found
            assert mine == its


def test_nearly_all_of_what_compilers_write_has_outlines() -> None:
    maps = Path("/proc/self/maps").read_text()
    library = next(line.split()[-1] for line in maps.splitlines() if "/libc.so" in line)
    image = Files().image(library).image
    assert image is not None
    found = [both(fde) for fde in fdes(next(iter(image.frame_sections)), 2000)]
    read = [pair for pair in found if pair is not None]
    assert len(read) > 0.99 * len(found) > 1000
    assert all(mine == its for mine, its in read)


class Nothing:
    def read(self, address: int, size: int) -> bytes:
        raise MemoryFault(address, size)


# What GNU ld writes for .plt: rsp + 8, and 8 more from the second instruction of an entry on.
PLT = bytes([0x77, 8, 0x80, 0, 0x3F, 0x1A, 0x3B, 0x2A, 0x33, 0x24, 0x22])


@pytest.mark.parametrize(("pc", "n"), [(0x1020, 8), (0x1026, 8), (0x102B, 16), (0x102F, 16)])
def test_the_stack_in_a_linkage_table_hangs_on_the_pc_alone(pc: int, n: int) -> None:
    found = distance(PLT, SP, {16: pc}, Nothing(), word=8, byteorder="little")
    assert found == n
    for sp in (0x7FFE_0000, 8, 1 << 47):
        assert evaluate(PLT, {SP: sp, 16: pc}, Nothing(), word=8, byteorder="little") == sp + n


@pytest.mark.parametrize(
    "code",
    [
        bytes([0x77, 8]),  # no sum
        bytes([0x77, 8, 0x31, 0x32, 0x22]),  # the sum of 1 and 2
        bytes([0x77, 8, 0x22]),  # of one value
        bytes([0x77, 8, 0x77, 0, 0x22]),  # of twice the stack pointer
        bytes([0x77, 8, 0x31, DW_OP.skip, 1, 0, 0x22]),  # leaps over its sum
        bytes([0x77, 8, 0x06, 0x31, 0x22]),  # by what memory holds
    ],
)
def test_what_is_no_distance_is_none(code: bytes) -> None:
    assert distance(code, SP, {16: 0x1000}, Nothing(), word=8, byteorder="little") is None


def test_an_expression_has_an_odd_outline() -> None:
    assert ODD % 4, "so the fast walk takes it for nothing that it can step by"
