"""Programs of call frame instructions: what is assembled is decoded, and bad bytes are refused."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.dwarf.constants import DW_CFA, DW_EH_PE, cfa_name
from unwind.dwarf.instructions import OPERANDS, Instruction, decode
from unwind.dwarf.reader import Encoding
from unwind.errors import FormatError
from unwind.protocols import ByteOrder
from unwind.testing.assembler import (
    RBP,
    RBX,
    RIP,
    RSP,
    Target,
    advance_loc,
    advance_loc1,
    advance_loc2,
    advance_loc4,
    advance_loc8,
    args_size,
    assemble,
    breg,
    code,
    def_cfa,
    def_cfa_expression,
    def_cfa_offset,
    def_cfa_offset_sf,
    def_cfa_register,
    def_cfa_sf,
    expression,
    in_register,
    negate_ra_state,
    negate_ra_state_with_pc,
    negative_offset_extended,
    nop,
    offset,
    offset_extended,
    offset_extended_sf,
    remember_state,
    restore,
    restore_extended,
    restore_state,
    same_value,
    set_loc,
    undefined,
    val_expression,
    val_offset,
    val_offset_sf,
)

# Each instruction with its bytes in little endian, by hand from DWARF 5 §7.24, table 7.29.
BYTES = [
    (advance_loc(4), "44"),
    (offset(RBP, 2), "86 02"),
    (restore(RBX), "c3"),
    (nop(), "00"),
    (set_loc(0x1234), "01 3412000000000000"),
    (advance_loc1(0xFE), "02 fe"),
    (advance_loc2(0xFEDC), "03 dcfe"),
    (advance_loc4(0xFEDCBA98), "04 98badcfe"),
    (offset_extended(200, 300), "05 c801 ac02"),
    (restore_extended(200), "06 c801"),
    (undefined(RIP), "07 10"),
    (same_value(RBX), "08 03"),
    (in_register(RIP, 200), "09 10 c801"),
    (remember_state(), "0a"),
    (restore_state(), "0b"),
    (def_cfa(RSP, 128), "0c 07 8001"),
    (def_cfa_register(RBP), "0d 06"),
    (def_cfa_offset(16), "0e 10"),
    (def_cfa_expression(code(breg(RSP, 8))), "0f 02 7708"),
    (expression(RBX, code(breg(RSP, -8))), "10 03 02 7778"),
    (offset_extended_sf(RBX, -200), "11 03 b87e"),
    (def_cfa_sf(RSP, -2), "12 07 7e"),
    (def_cfa_offset_sf(-2), "13 7e"),
    (val_offset(RSP, 1), "14 07 01"),
    (val_offset_sf(RSP, -1), "15 07 7f"),
    (val_expression(RSP, code(breg(RBP, 0))), "16 07 02 7600"),
    (advance_loc8(0x0102030405060708), "1d 0807060504030201"),
    (negate_ra_state_with_pc(), "2c"),
    (negate_ra_state(), "2d"),
    (args_size(300), "2e ac02"),
    (negative_offset_extended(RBX, 2), "2f 03 02"),
]


def decoded(data: bytes, byteorder: ByteOrder = "little") -> list[Instruction]:
    return list(decode(data, Encoding(byteorder, 8, where=".eh_frame"), 0x100))


def test_every_instruction_has_a_test() -> None:
    named = {number for number in vars(DW_CFA).values() if isinstance(number, int)}
    assert {instruction.opcode for instruction, _ in BYTES} == named == OPERANDS.keys()


@pytest.mark.parametrize(
    ("instruction", "bytes_"), BYTES, ids=[cfa_name(case[0].opcode) for case in BYTES]
)
def test_instruction(instruction: Instruction, bytes_: str) -> None:
    assert assemble([instruction]) == bytes.fromhex(bytes_)
    for _ in range(2):  # the second time it is looked up
        assert decoded(bytes.fromhex(bytes_)) == [instruction]


@pytest.mark.parametrize(
    ("instruction", "bytes_"), BYTES, ids=[cfa_name(case[0].opcode) for case in BYTES]
)
def test_an_instruction_cut_short_is_refused(instruction: Instruction, bytes_: str) -> None:
    whole = bytes.fromhex(bytes_)
    for size in range(1, len(whole)):
        with pytest.raises(FormatError) as caught:
            decoded(bytes(3) + whole[:size])
        assert caught.value.where == ".eh_frame"
        assert 0x103 < (caught.value.offset or 0) <= 0x103 + size


@pytest.mark.parametrize(
    "opcode", sorted({*range(0x40)} - OPERANDS.keys()), ids=lambda opcode: f"{opcode:#x}"
)
def test_an_opcode_that_nobody_defined_is_refused_at_its_offset(opcode: int) -> None:
    with pytest.raises(FormatError, match=f"DW_CFA_{opcode:#x}") as caught:
        decoded(bytes([0, opcode]))
    assert caught.value.offset == 0x101


def test_what_comes_before_a_bad_instruction_is_given() -> None:
    program = decode(assemble([def_cfa(RSP, 16), advance_loc(1)]) + b"\x3f", Encoding("little", 8))
    assert [next(program), next(program)] == [def_cfa(RSP, 16), advance_loc(1)]
    with pytest.raises(FormatError):
        next(program)


@pytest.mark.parametrize("pointers", [DW_EH_PE.absptr, DW_EH_PE.pcrel | DW_EH_PE.sdata4, 0x01])
def test_set_loc_writes_addresses_as_the_fde_does(pointers: int) -> None:
    program = [nop(), set_loc(0x123), set_loc(0x456)]
    data = assemble(program, place=0x7100, pointers=pointers)
    encoding = Encoding("little", 8, vaddr=0x7000)
    assert list(decode(data, encoding, 0x100, pointers)) == program


def test_set_loc_is_read_anew_at_each_place() -> None:
    encoding = Encoding("little", 8)
    pointers = DW_EH_PE.pcrel | DW_EH_PE.uleb128
    assert [next(decode(b"\x01\x05", encoding, at, pointers)).number for at in (0, 16)] == [6, 22]


def test_set_loc_may_be_relative_to_the_function() -> None:
    pointers = DW_EH_PE.funcrel | DW_EH_PE.udata2
    data = assemble([set_loc(0x5010)], pointers=pointers, function=0x5000)
    assert list(decode(data, Encoding("little", 8), 0, pointers, 0x5000)) == [set_loc(0x5010)]


def test_set_loc_where_addresses_are_omitted_is_refused() -> None:
    with pytest.raises(FormatError, match="omitted"):
        list(decode(b"\x01", Encoding("little", 8), pointers=DW_EH_PE.omit))


_KINDS = {
    "low number": st.integers(0, 63),
    "low register": st.integers(0, 63),
    "register": st.integers(0, 2**20),
    "uleb": st.integers(0, 2**64 - 1),
    "sleb": st.integers(-(2**63), 2**63 - 1),
    "block": st.binary(max_size=200),
    "pointer": st.integers(0, 2**32 - 1),
    **{f"u{bits}": st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
_FIELDS = {"low register": "register", "register": "register", "block": "block"}


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    """Any instruction with any operands."""
    opcode = draw(st.sampled_from(sorted(OPERANDS)))
    operands: dict[str, Any] = {
        _FIELDS.get(kind, "number"): draw(_KINDS[kind]) for kind in OPERANDS[opcode]
    }
    return Instruction(opcode, **operands)


@given(
    st.lists(instructions(), max_size=20),
    st.sampled_from(["little", "big"]),
    st.sampled_from([4, 8]),
)
def test_decode_is_the_inverse_of_assemble(
    program: list[Instruction], byteorder: ByteOrder, address_size: int
) -> None:
    data = assemble(program, Target(byteorder, address_size))
    assert list(decode(data, Encoding(byteorder, address_size))) == program


@given(st.binary(max_size=40))
def test_any_bytes_are_instructions_or_a_format_error(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        decoded(data)
