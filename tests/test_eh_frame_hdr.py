"""The search table: every way to write it, and tables that end early or say nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_reader import FORMATS
from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.errors import FormatError
from unwind.protocols import ByteOrder
from unwind.testing.assembler import FDE, Section, Target

FIXED = sorted(FORMATS.keys() - {"uleb128", "sleb128"})


def section_of(byteorder: ByteOrder = "little", address_size: int = 8) -> Section:
    """Four functions of 16 bytes at 0x5000, 0x5100, ... below their section and its header."""
    functions = [FDE(0x5000 + 0x100 * n, 0x10) for n in range(4)]
    return Section(*functions, vaddr=0x6000, target=Target(byteorder, address_size))


@pytest.mark.parametrize("application", ["absptr", "pcrel", "datarel"])
@pytest.mark.parametrize("format", FIXED)
@pytest.mark.parametrize(("byteorder", "address_size"), [("little", 8), ("big", 8), ("big", 4)])
def test_tables_of_every_fixed_width_are_searched(
    byteorder: ByteOrder, address_size: int, format: str, application: str
) -> None:
    section = section_of(byteorder, address_size)
    encoding = FORMATS[format] | getattr(DW_EH_PE, application)
    # Unsigned numbers reach forwards only.
    vaddr = 0x4000 if "udata" in format else 0x7000
    table = section.search_table(vaddr=vaddr, encoding=encoding)
    assert table.count == 4
    assert table.eh_frame == section.vaddr
    entries = [(start, section.vaddr + offset) for start, offset in section.fdes]
    assert list(table.entries()) == entries
    assert table.find(0x4FFF) is None
    for start, place in entries:
        assert table.find(start) == table.find(start + 0xFF) == (start, place)
    assert table.find(0xFFFF) == entries[-1]


@pytest.mark.parametrize("format", ["absptr", "udata8", "sdata8"])
def test_a_table_of_aligned_addresses_is_searched(format: str) -> None:
    section = section_of()
    # After two words of four bytes the first address is padded to a multiple of eight.
    table = section.search_table(vaddr=0x7000, encoding=FORMATS[format] | DW_EH_PE.aligned)
    start, offset = section.fdes[1]
    assert table.find(0x5110) == (start, section.vaddr + offset)


def test_a_table_of_aligned_halves_of_addresses_is_left_alone() -> None:
    table = section_of().search_table(encoding=DW_EH_PE.udata4 | DW_EH_PE.aligned)
    assert (table.count, table.find(0x5000)) == (0, None)


@pytest.mark.parametrize("format", ["uleb128", "sleb128"])
def test_a_table_of_variable_width_cannot_be_searched(format: str) -> None:
    table = section_of().search_table(encoding=FORMATS[format])
    assert table.count == 0
    assert table.find(0x5000) is None
    assert table.eh_frame == 0x6000


def test_an_omitted_table_leaves_the_place_of_the_section() -> None:
    header = section_of().header(vaddr=0x7000)
    table = SearchTable(header[:3] + b"\xff" + header[4:], 0x7000, "little", 8)
    assert (table.eh_frame, table.count) == (0x6000, 0)


def test_an_omitted_count_is_an_empty_table() -> None:
    table = section_of().search_table(count_encoding=DW_EH_PE.omit)
    assert (table.eh_frame, table.count, table.find(0x5000)) == (0x6000, 0, None)


def test_an_omitted_section_is_none() -> None:
    table = section_of().search_table(frame_encoding=DW_EH_PE.omit)
    assert (table.eh_frame, table.count) == (None, 4)


def test_an_empty_table_finds_nothing() -> None:
    assert section_of().search_table([]).find(0x5000) is None


def test_a_table_that_is_cut_short_is_searched_as_far_as_it_goes() -> None:
    header = section_of().header(vaddr=0x7000)
    table = SearchTable(header[:-9], 0x7000, "little", 8)
    assert table.count == 2
    found = table.find(0x5300)
    assert found is not None
    assert found[0] == 0x5100


def test_a_count_beyond_the_data_is_bounded_by_them() -> None:
    header = bytearray(section_of().header(vaddr=0x7000))
    header[8:12] = b"\xff\xff\xff\xff"
    assert SearchTable(bytes(header), 0x7000, "little", 8).count == 4


@pytest.mark.parametrize("encoding", [0x6B, 0x7B, 0x2B, 0x9B])
def test_a_table_of_pointers_that_cannot_be_read_finds_nothing(encoding: int) -> None:
    header = bytearray(section_of().header(vaddr=0x7000))
    header[3] = encoding
    assert SearchTable(bytes(header), 0x7000, "little", 8).find(0x5000) is None


@pytest.mark.parametrize(
    "header", [b"", b"\1\x1b\3", b"\1\x1b\3\x3b\0\0", b"\2\x1b\3\x3b" + bytes(8)]
)
def test_a_header_that_cannot_be_read_is_refused(header: bytes) -> None:
    with pytest.raises(FormatError, match=r"\.eh_frame_hdr"):
        SearchTable(header, 0x7000, "little", 8)


@given(st.binary(max_size=64), st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_table_or_refused(data: bytes, vaddr: int) -> None:
    try:
        table = SearchTable(b"\1" + data, 0x7000, "big", 8)
    except FormatError:
        return
    table.find(vaddr)
