"""Rows: what each instruction does to the rules, and that the rows of an FDE tile it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_instructions import instructions
from unwind.dwarf.constants import DW_CFA, DW_EH_PE
from unwind.dwarf.instructions import Instruction
from unwind.dwarf.rows import initial_row, row_at, rows
from unwind.errors import FormatError
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    CfaRule,
    Expression,
    InRegister,
    Offset,
    Row,
    Rule,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.testing.assembler import (
    CIE,
    FDE,
    R12,
    RBP,
    RBX,
    RIP,
    RSP,
    Section,
    Target,
    advance_loc,
    advance_loc1,
    advance_loc2,
    advance_loc4,
    advance_loc8,
    args_size,
    breg,
    code,
    def_cfa,
    def_cfa_expression,
    def_cfa_offset,
    def_cfa_offset_sf,
    def_cfa_register,
    def_cfa_sf,
    expression,
    fde_of,
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
    rows_of,
    same_value,
    set_loc,
    undefined,
    val_expression,
    val_offset,
    val_offset_sf,
    window_save,
)

ARM64 = {DW_CFA.GNU_window_save: "AARCH64_negate_ra_state"}
CODE = code(breg(RSP, 16))


def starts(table: list[Row]) -> list[int]:
    return [row.start - 0x1000 for row in table]


def only(*program: Instruction, **options: Any) -> Row:
    """The one row of a program that makes no other."""
    (row,) = rows_of(*program, **options)
    return row


# Row creation: DWARF 5 §6.4.2.1.

ADVANCES: dict[str, Callable[[int], Instruction]] = {
    "advance_loc": advance_loc,
    "advance_loc1": advance_loc1,
    "advance_loc2": advance_loc2,
    "advance_loc4": advance_loc4,
    "MIPS_advance_loc8": advance_loc8,
}


@pytest.mark.parametrize("name", ADVANCES)
def test_advances_are_factored_by_the_code_alignment(name: str) -> None:
    table = rows_of(ADVANCES[name](3), def_cfa_offset(16), code_align=4)
    assert starts(table) == [0, 12]
    assert table[0].end == table[1].start


def test_set_loc_goes_to_an_address() -> None:
    table = rows_of(set_loc(0x1040), def_cfa_offset(16), set_loc(0x1050), def_cfa_offset(8))
    assert starts(table) == [0, 0x40, 0x50]


def test_set_loc_takes_the_pointer_encoding_of_the_cie() -> None:
    table = rows_of(set_loc(0x1040), def_cfa_offset(16), pointers=DW_EH_PE.absptr)
    assert starts(table) == [0, 0x40]


def test_set_loc_does_not_go_back() -> None:
    with pytest.raises(FormatError, match="goes back to 0x1000"):
        rows_of(advance_loc(4), set_loc(0x1000))


def test_an_advance_by_nothing_makes_no_row() -> None:
    table = rows_of(advance_loc(0), def_cfa_offset(16), advance_loc1(0), advance_loc(4))
    assert [(row.start, row.end) for row in table] == [(0x1000, 0x1004), (0x1004, 0x1064)]


def test_an_advance_beyond_the_end_makes_no_row_out_there() -> None:
    table = rows_of(advance_loc(50), def_cfa_offset(16), advance_loc(60), def_cfa_offset(8))
    assert [(row.start, row.end) for row in table] == [(0x1000, 0x1032), (0x1032, 0x1064)]


def test_an_fde_of_no_size_has_no_rows() -> None:
    assert rows_of(def_cfa_offset(16), advance_loc(4), size=0) == []


def test_rows_that_cover_nothing_are_there_for_who_asks() -> None:
    fde = fde_of(advance_loc(0), def_cfa_offset(16), advance_loc(50), advance_loc(60))
    table = rows(fde, empty=True)
    edges = [(0x1000, 0x1000), (0x1000, 0x1032), (0x1032, 0x1064), (0x106E, 0x106E)]
    assert [(row.start, row.end) for row in table] == edges


# CFA definition: DWARF 5 §6.4.2.2. Only the `_sf` forms are factored.

CFAS: dict[str, tuple[list[Instruction], CfaRule]] = {
    "def_cfa": ([def_cfa(RBP, 24)], CfaRegister(RBP, 24)),
    "def_cfa_sf": ([def_cfa_sf(RBP, -3)], CfaRegister(RBP, 24)),
    "def_cfa_register": ([def_cfa_register(RBP)], CfaRegister(RBP, 8)),
    "def_cfa_offset": ([def_cfa_offset(24)], CfaRegister(RSP, 24)),
    "def_cfa_offset_sf": ([def_cfa_offset_sf(2)], CfaRegister(RSP, -16)),
    "def_cfa_expression": ([def_cfa_expression(CODE)], CfaExpression(CODE)),
}


@pytest.mark.parametrize("name", CFAS)
def test_cfa_rule(name: str) -> None:
    program, rule = CFAS[name]
    assert only(*program, code_align=4).cfa == rule


@pytest.mark.parametrize("half", [def_cfa_offset(8), def_cfa_offset_sf(8)], ids=repr)
def test_an_offset_alone_makes_no_cfa(half: Instruction) -> None:
    with pytest.raises(FormatError, match="no register that it is counted from"):
        rows_of(half, program=[])


def test_a_register_alone_makes_a_cfa_as_in_the_cies_of_mips() -> None:
    assert only(program=[def_cfa_register(29)]).cfa == CfaRegister(29, 0)


def test_a_register_after_an_expression_takes_the_offset_from_before_it() -> None:
    # libgcrypt's sha1_transform_amd64_avx2 and others.
    program = [def_cfa(RSP, 56), def_cfa_expression(CODE), def_cfa_register(RBP)]
    assert only(*program).cfa == CfaRegister(RBP, 56)


def test_an_offset_after_an_expression_waits_for_a_register() -> None:
    program = [def_cfa_expression(CODE), def_cfa_offset(48), advance_loc(1), def_cfa_register(RBP)]
    assert [row.cfa for row in rows_of(*program)] == [CfaExpression(CODE), CfaRegister(RBP, 48)]


def test_restore_state_brings_back_the_offset_behind_an_expression() -> None:
    program = [def_cfa_expression(CODE), remember_state(), def_cfa(RSP, 99)]
    assert only(*program, restore_state(), def_cfa_register(RBP)).cfa == CfaRegister(RBP, 8)


def test_a_program_that_defines_no_cfa_has_rows_without_one() -> None:
    assert only(program=[]).cfa is None


# Register rules: DWARF 5 §6.4.2.3.

RULES: dict[str, tuple[Instruction, Rule]] = {
    "undefined": (undefined(RBX), Undefined()),
    "same_value": (same_value(RBX), SameValue()),
    "offset": (offset(RBX, 2), Offset(-16)),
    "offset_extended": (offset_extended(RBX, 3), Offset(-24)),
    "offset_extended_sf": (offset_extended_sf(RBX, -3), Offset(24)),
    "val_offset": (val_offset(RBX, 2), ValOffset(-16)),
    "val_offset_sf": (val_offset_sf(RBX, -2), ValOffset(16)),
    "register": (in_register(RBX, R12), InRegister(R12)),
    "expression": (expression(RBX, CODE), Expression(CODE)),
    "val_expression": (val_expression(RBX, CODE), ValExpression(CODE)),
    "GNU_negative_offset_extended": (negative_offset_extended(RBX, 2), Offset(16)),
}


@pytest.mark.parametrize("name", RULES)
def test_register_rule(name: str) -> None:
    instruction, rule = RULES[name]
    row = only(instruction)
    assert row.rules == {RIP: Offset(-8), RBX: rule}
    assert row.cfa == CfaRegister(RSP, 8)


@pytest.mark.parametrize("again", [restore, restore_extended])
def test_restore_takes_the_rule_of_the_cie(again: Callable[[int], Instruction]) -> None:
    table = rows_of(undefined(RIP), advance_loc(1), again(RIP))
    assert [row.rules for row in table] == [{RIP: Undefined()}, {RIP: Offset(-8)}]


@pytest.mark.parametrize("again", [restore, restore_extended])
def test_restore_of_what_the_cie_leaves_open_leaves_it_open(
    again: Callable[[int], Instruction],
) -> None:
    table = rows_of(offset(RBX, 2), advance_loc(1), again(RBX), again(R12))
    assert [row.rules for row in table] == [{RIP: Offset(-8), RBX: Offset(-16)}, {RIP: Offset(-8)}]


# Row state: DWARF 5 §6.4.2.4.


def test_restore_state_brings_back_the_cfa() -> None:
    table = rows_of(
        *(def_cfa(RSP, 8), remember_state(), advance_loc(4)),
        *(def_cfa_offset(64), advance_loc(4), restore_state()),
    )
    assert [row.cfa for row in table] == [CfaRegister(RSP, n) for n in (8, 64, 8)]


def test_restore_state_brings_back_the_rules() -> None:
    table = rows_of(
        *(offset(RBX, 2), remember_state(), advance_loc(4)),
        *(restore(RBX), undefined(RIP), advance_loc(4), restore_state()),
    )
    saved = {RIP: Offset(-8), RBX: Offset(-16)}
    assert [row.rules for row in table] == [saved, {RIP: Undefined()}, saved]


def test_remember_state_nests() -> None:
    depth = 1000
    remembered = [step for n in range(depth) for step in (remember_state(), def_cfa_offset(n + 1))]
    restored = [step for _ in range(depth) for step in (restore_state(), advance_loc(1))]
    table = rows_of(*remembered, advance_loc(1), *restored, size=depth + 1)
    assert [row.cfa for row in table] == [
        *(CfaRegister(RSP, n) for n in range(depth, 0, -1)),
        CfaRegister(RSP, 8),
    ]


def test_remember_state_nests_to_a_limit() -> None:
    with pytest.raises(FormatError, match="more than 4096 states"):
        rows_of(*[remember_state()] * 4097)


def test_restore_state_without_a_state_is_refused() -> None:
    with pytest.raises(FormatError, match="without DW_CFA_remember_state"):
        rows_of(remember_state(), restore_state(), restore_state())


def test_what_one_fde_remembers_another_does_not_restore() -> None:
    cie = CIE()
    section = Section(
        FDE(0x1000, 8, [remember_state()], cie), FDE(0x2000, 8, [restore_state()], cie)
    )
    frames = section.frames()
    assert len(list(rows(frames.fde_at(section.offsets[-2])))) == 1
    with pytest.raises(FormatError, match="without DW_CFA_remember_state"):
        list(rows(frames.fde_at(section.offsets[-1])))


def test_a_row_given_out_does_not_change_later() -> None:
    table = rows_of(offset(RBX, 2), advance_loc(1), offset(RBX, 3), advance_loc(1), offset(R12, 4))
    assert [row.rules.get(RBX) for row in table] == [Offset(-16), Offset(-24), Offset(-24)]
    assert [R12 in row.rules for row in table] == [False, False, True]


def test_nop_does_nothing() -> None:
    assert only(nop(), nop()) == only()


# The vendors' instructions.


def test_args_size_does_not_change_the_row() -> None:
    assert only(args_size(32)) == only()


def test_negate_ra_state_signs_and_unsigns_the_return_address() -> None:
    program = [negate_ra_state(), advance_loc(4), negate_ra_state()]
    assert [row.ra_signed for row in rows_of(*program, vendor_opcodes=ARM64)] == [True, False]


def test_negate_ra_state_with_pc_signs_the_return_address() -> None:
    assert only(negate_ra_state_with_pc()).ra_signed
    assert only(negate_ra_state_with_pc(), vendor_opcodes=ARM64).ra_signed


def test_restore_state_brings_back_whether_the_return_address_is_signed() -> None:
    program = [negate_ra_state(), remember_state(), advance_loc(4)]
    program += [negate_ra_state(), advance_loc(4), restore_state()]
    signed = [row.ra_signed for row in rows_of(*program, vendor_opcodes=ARM64)]
    assert signed == [True, False, True]


def test_window_save_puts_sparcs_window_at_the_cfa() -> None:
    row = only(window_save())
    assert row.rules == {RIP: Offset(-8)} | {16 + n: Offset(8 * n) for n in range(16)}
    assert not row.ra_signed


def test_one_cie_may_be_read_for_two_architectures() -> None:
    fde = fde_of(program=[def_cfa(RSP, 8), window_save()])
    assert not next(rows(fde)).ra_signed
    assert next(rows(fde, ARM64)).ra_signed
    assert not next(rows(fde)).ra_signed


def test_every_instruction_is_tested() -> None:
    named = {name for name in vars(DW_CFA) if name[:1] != "_"}
    tested = {*ADVANCES, *CFAS, *RULES}
    tested |= {"set_loc", "restore", "restore_extended", "remember_state", "restore_state", "nop"}
    tested |= {"AARCH64_negate_ra_state_with_pc", "GNU_window_save", "GNU_args_size"}
    assert named == tested


# The row as a whole.


def test_a_row_tells_its_origin_its_column_and_whether_it_is_a_signal_frame() -> None:
    section = Section(b"\0\0\0\0", FDE(0x1000, 8, [], CIE(augmentation="zRS", return_address=5)))
    fde = section.frames().fde_at(section.offsets[-1])
    (row,) = rows(fde)
    assert (row.origin.section, row.origin.cie, row.origin.fde) == ("eh_frame", 4, fde.offset)
    assert row.return_address == 5
    assert row.signal


def test_only_what_the_program_states_is_in_a_row() -> None:
    assert only(program=[def_cfa(RSP, 8)]).rules == {}


def test_the_row_of_a_cie_is_what_its_fdes_begin_with() -> None:
    fde = fde_of(def_cfa_offset(64))
    row = initial_row(fde.cie)
    assert (row.start, row.end) == (0, 0)
    assert row.cfa == CfaRegister(RSP, 8)
    assert row.rules == {RIP: Offset(-8)}


def test_advances_in_a_cie_do_not_move_its_fdes() -> None:
    assert only(program=[def_cfa(RSP, 8), advance_loc(4)]).start == 0x1000


def test_a_bad_program_of_a_cie_is_told_with_the_cies_offset() -> None:
    fde = fde_of(program=[restore_state()])
    with pytest.raises(FormatError) as caught:
        next(rows(fde))
    assert caught.value.offset == fde.cie.offset


def test_rows_before_a_bad_instruction_are_given() -> None:
    fde = fde_of(advance_loc(4), def_cfa_offset(16), advance_loc(4), restore_state())
    table = rows(fde)
    assert [next(table).start, next(table).start] == [0x1000, 0x1004]
    with pytest.raises(FormatError) as caught:
        next(table)
    assert caught.value.offset == fde.offset


def test_row_at_reads_no_further_than_its_place() -> None:
    fde = fde_of(advance_loc(4), restore_state())
    row = row_at(fde, 0x1003)
    assert row is not None
    assert (row.start, row.end) == (0x1000, 0x1004)
    with pytest.raises(FormatError):
        row_at(fde, 0x1004)


def test_row_at_finds_nothing_outside() -> None:
    assert row_at(fde_of(), 0xFFF) is None
    assert row_at(fde_of(), 0x1064) is None


def test_equal_rules_are_one_object() -> None:
    one, two = only(offset(RBX, 2), expression(R12, CODE)), only(offset(R12, 2))
    assert one.rules[RBX] is two.rules[R12]
    assert one.cfa is two.cfa
    assert one.rules[R12] is only(expression(RBP, CODE)).rules[RBP]


def test_rules_that_are_too_long_to_be_common_are_not_kept() -> None:
    program = [expression(RBX, CODE * 100)]
    assert only(*program).rules[RBX] == only(*program).rules[RBX]
    assert only(*program).rules[RBX] is not only(*program).rules[RBX]


def test_offset_and_val_offset_of_one_number_are_two_rules() -> None:
    assert only(offset(RBX, 2)).rules[RBX] != only(val_offset(RBX, 2)).rules[RBX]


def test_rows_share_rules_that_did_not_change() -> None:
    table = rows_of(offset(RBX, 2), advance_loc(1), def_cfa_offset(16), advance_loc(1))
    assert table[0].rules is table[1].rules is table[2].rules


def test_columns_are_limited() -> None:
    with pytest.raises(FormatError, match="more than 512 registers"):
        rows_of(*[offset_extended(register, 1) for register in range(600)])


@given(
    st.lists(instructions(), max_size=30),
    st.integers(0, 2**32),
    st.sampled_from([Target("little", 8), Target("big", 4), Target("big", 8)]),
)
def test_rows_tile_their_fde(program: list[Instruction], size: int, target: Target) -> None:
    cie = CIE(program=[def_cfa(RSP, 8), offset(RIP, 1)], pointers=DW_EH_PE.absptr)
    section = Section(
        FDE(0x1000, size % 2 ** (8 * target.address_size - 1), program, cie), target=target
    )
    fde = section.frames().fde_at(section.offsets[-1])
    table: list[Row] = []
    whole = True
    try:
        table.extend(rows(fde))
    except FormatError:
        whole = False
    edges = [fde.start, *(row.end for row in table)]
    assert [row.start for row in table] == edges[:-1]
    assert edges == sorted(set(edges))
    assert not whole or edges[-1] == fde.end
    for row in table:
        assert row_at(fde, row.start) == row_at(fde, row.end - 1) == row
