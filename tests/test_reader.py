"""Bytes to numbers and pointers: every encoding, both byte orders, and where the bytes end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.reader import Encoding, Reader, sleb_at, uleb_at
from unwind.errors import FormatError, MemoryFault
from unwind.protocols import ByteOrder
from unwind.testing.assembler import Target, sleb, uleb

PLACE = 0x7000  # where the pointers of these tests lie
TEXT, DATA, FUNCTION = 0x5000, 0x6000, 0x5800

FORMATS = {
    name: getattr(DW_EH_PE, name)
    for name in (
        *("absptr", "uleb128", "udata2", "udata4", "udata8"),
        *("signed", "sleb128", "sdata2", "sdata4", "sdata8"),
    )
}
APPLICATIONS = {
    name: getattr(DW_EH_PE, name)
    for name in ("absptr", "pcrel", "textrel", "datarel", "funcrel", "aligned")
}


def reader_of(
    data: bytes, byteorder: ByteOrder = "little", address_size: int = 8, place: int = PLACE
) -> Reader:
    encoding = Encoding(
        byteorder, address_size, place, TEXT, DATA, lambda vaddr: vaddr + 0x1_0000, ".eh_frame"
    )
    return Reader(data, encoding)


def test_every_pointer_encoding_has_a_test() -> None:
    named = {name for name in vars(DW_EH_PE) if name[:1] != "_"}
    assert named == FORMATS.keys() | APPLICATIONS.keys() | {"indirect", "omit"}


@pytest.mark.parametrize("address_size", [4, 8])
@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_pointer_reads_as_it_was_written(
    format: str, application: str, byteorder: ByteOrder, address_size: int
) -> None:
    encoding = FORMATS[format] | APPLICATIONS[application]
    target = Target(byteorder, address_size, TEXT, DATA)
    value = 0x7123
    written = target.pointer(value, encoding, PLACE, FUNCTION)
    reader = reader_of(written + b"\xaa", byteorder, address_size)
    assert reader.pointer(encoding, function=FUNCTION) == value
    assert reader.at == len(written)


@pytest.mark.parametrize("format", ["signed", "sleb128", "sdata2", "sdata4", "sdata8"])
def test_signed_formats_point_backwards(format: str) -> None:
    encoding = FORMATS[format] | DW_EH_PE.pcrel
    written = Target().pointer(PLACE - 0x123, encoding, PLACE)
    assert reader_of(written).pointer(encoding) == PLACE - 0x123


def test_unsigned_formats_reach_back_by_wrapping_around_the_address_space() -> None:
    encoding = DW_EH_PE.udata8 | DW_EH_PE.pcrel
    assert reader_of((-16 % 2**64).to_bytes(8, "little")).pointer(encoding) == PLACE - 16


def test_a_32_bit_pointer_wraps_at_32_bits() -> None:
    assert reader_of(b"\xf0\xff\xff\xff", address_size=4).pointer(DW_EH_PE.absptr) == 0xFFFFFFF0
    assert reader_of(b"\xf0\xff\xff\xff", address_size=4).pointer(DW_EH_PE.pcrel) == PLACE - 16


def test_omit_is_no_pointer_and_takes_no_bytes() -> None:
    reader = reader_of(b"\x01\x02\x03\x04")
    assert reader.pointer(DW_EH_PE.omit) is None
    assert reader.at == 0


def test_indirect_reads_the_address_at_the_pointer() -> None:
    written = Target().pointer(PLACE + 8, DW_EH_PE.pcrel | DW_EH_PE.sdata4, PLACE)
    encoding = DW_EH_PE.indirect | DW_EH_PE.pcrel | DW_EH_PE.sdata4
    assert reader_of(written).pointer(encoding) == PLACE + 8 + 0x1_0000


def test_indirect_without_memory_says_so() -> None:
    reader = Reader(bytes(8), Encoding("little", 8, where=".eh_frame"))
    with pytest.raises(FormatError, match="indirect"):
        reader.pointer(DW_EH_PE.indirect)


def test_indirect_into_unreadable_memory_is_bad_input_and_no_fault() -> None:
    def unreadable(vaddr: int) -> int:
        raise MemoryFault(vaddr, 8)

    reader = Reader(bytes(8), Encoding("little", 8, dereference=unreadable))
    with pytest.raises(FormatError, match="cannot read 8 bytes at 0x0"):
        reader.pointer(DW_EH_PE.indirect)


@pytest.mark.parametrize("place", [0x7000, 0x7001, 0x7007])
def test_aligned_skips_to_the_next_multiple_of_the_address_size(place: int) -> None:
    written = Target().pointer(0x1234, DW_EH_PE.aligned, place)
    assert len(written) == -place % 8 + 8
    assert reader_of(written, place=place).pointer(DW_EH_PE.aligned) == 0x1234


def test_an_optional_pointer_of_zero_is_none_whatever_it_is_relative_to() -> None:
    encoding = DW_EH_PE.pcrel | DW_EH_PE.sdata4
    assert reader_of(bytes(4)).pointer(encoding, optional=True) is None
    assert reader_of(bytes(4)).pointer(encoding) == PLACE


@pytest.mark.parametrize(
    ("application", "name"), [("textrel", "text"), ("datarel", "data"), ("funcrel", "function")]
)
def test_a_base_that_is_not_known_is_named(application: str, name: str) -> None:
    reader = Reader(bytes(8), Encoding("little", 8))
    with pytest.raises(FormatError, match=f"relative to the {name} base"):
        reader.pointer(APPLICATIONS[application])


@pytest.mark.parametrize("encoding", [0x05, 0x07, 0x0D, 0x0F, 0x60, 0x70])
def test_encodings_that_nobody_defined_are_refused(encoding: int) -> None:
    with pytest.raises(FormatError, match="not defined"):
        reader_of(bytes(8)).pointer(encoding)


@given(st.integers(0, 2**64 - 1))
def test_uleb128_reads_as_it_was_written(value: int) -> None:
    assert uleb_at(uleb(value), 0) == (value, len(uleb(value)))


@given(st.integers(-(2**63), 2**63 - 1))
def test_sleb128_reads_as_it_was_written(value: int) -> None:
    assert sleb_at(sleb(value), 0) == (value, len(sleb(value)))


def test_padded_leb128_numbers_are_as_good_as_short_ones() -> None:
    assert reader_of(b"\x85\x80\x80\x80\x00").uleb() == 5
    assert reader_of(b"\xff\xff\xff\xff\x7f").sleb() == -1


@pytest.mark.parametrize("read", [Reader.uleb, Reader.sleb])
def test_a_leb128_number_without_end_is_refused(read: Callable[[Reader], int]) -> None:
    with pytest.raises(FormatError, match="end within"):
        read(reader_of(b"\x80\x80"))
    with pytest.raises(FormatError, match="more than 16 bytes"):
        read(reader_of(b"\x80" * 1000))


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_numbers_of_each_width(byteorder: ByteOrder) -> None:
    data = bytes(range(0x81, 0x90))
    reader = reader_of(data, byteorder)
    assert reader.u8() == 0x81
    assert reader.u16() == int.from_bytes(data[1:3], byteorder)
    assert reader.u32() == int.from_bytes(data[3:7], byteorder)
    assert reader.u64() == int.from_bytes(data[7:15], byteorder)
    assert reader_of(data, byteorder).signed(2) == int.from_bytes(data[:2], byteorder, signed=True)


def test_a_string_ends_at_its_zero() -> None:
    reader = reader_of(b"zPLR\0rest")
    assert reader.cstring() == b"zPLR"
    assert reader.rest() == b"rest"
    with pytest.raises(FormatError, match="without an end"):
        reader_of(b"zPLR").cstring()


def test_the_end_of_the_data_is_told_with_section_and_offset() -> None:
    reader = Reader(b"\1\2\3", Encoding("little", 8, where=".debug_frame"), offset=0x40)
    reader.u16()
    with pytest.raises(FormatError) as caught:
        reader.u32()
    assert (caught.value.where, caught.value.offset) == (".debug_frame", 0x42)
    assert "4 bytes are wanted where 1 are left" in str(caught.value)
