"""DWARF expressions: each operation alone, what is refused, and no end that does not come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.dwarf.constants import DW_OP, op_name
from unwind.dwarf.expression import MOST_STEPS, MOST_WORDS, describe, evaluate, operations
from unwind.errors import FormatError, MemoryFault, UnknownRegister
from unwind.memory import Recording, Span
from unwind.protocols import ByteOrder
from unwind.registers import Registers
from unwind.testing.assembler import RBP, RIP, RSP, Operation, breg, code, lit

TOP = 2**64
REGISTERS = Registers({RSP: 0x7000, RBP: 0x7010, RIP: 0x40_0000, 40: 0x28})
# Eight words 0x11, 0x22, ... at 0x7000.
WORDS = Span(0x7000, b"".join((0x11 * n).to_bytes(8, "little") for n in range(1, 9)))


def value_of(
    *program: Operation,
    word: int = 8,
    byteorder: ByteOrder = "little",
    initial: tuple[int, ...] = (),
    bias: int = 0,
) -> int:
    coded = code(*program, word=word, byteorder=byteorder)
    return evaluate(
        coded, REGISTERS, WORDS, word=word, byteorder=byteorder, initial=initial, bias=bias
    )


# What each operation leaves on top of the stack. Numbers too big for lit are written `const8s`.


def const(value: int) -> Operation:
    return (DW_OP.const8s, value) if value < 2**63 else (DW_OP.const8u, value)


CASES: list[tuple[int, list[Operation], int]] = [
    # Literals: DWARF 5 §2.5.1.1.
    (DW_OP.lit0, [lit(0)], 0),
    (DW_OP.lit31, [lit(31)], 31),
    (DW_OP.addr, [(DW_OP.addr, 0x40_1000)], 0x40_1000),
    (DW_OP.const1u, [(DW_OP.const1u, 0xFF)], 0xFF),
    (DW_OP.const1s, [(DW_OP.const1s, -1)], TOP - 1),
    (DW_OP.const2u, [(DW_OP.const2u, 0xFFFE)], 0xFFFE),
    (DW_OP.const2s, [(DW_OP.const2s, -2)], TOP - 2),
    (DW_OP.const4u, [(DW_OP.const4u, 0xFFFFFFFD)], 0xFFFFFFFD),
    (DW_OP.const4s, [(DW_OP.const4s, -3)], TOP - 3),
    (DW_OP.const8u, [(DW_OP.const8u, TOP - 4)], TOP - 4),
    (DW_OP.const8s, [(DW_OP.const8s, -4)], TOP - 4),
    (DW_OP.constu, [(DW_OP.constu, 300)], 300),
    (DW_OP.consts, [(DW_OP.consts, -300)], TOP - 300),
    # Register values: DWARF 5 §2.5.1.2; reg and regx as libgcc reads them.
    (DW_OP.breg0, [breg(RSP, -8)], 0x6FF8),
    (DW_OP.breg31, [(DW_OP.bregx, 40, 0), (DW_OP.bregx, 40, 0), DW_OP.minus], 0),
    (DW_OP.bregx, [(DW_OP.bregx, 40, -0x30)], TOP - 8),
    (DW_OP.reg0, [DW_OP.reg0 + RBP], 0x7010),
    (DW_OP.reg31, [DW_OP.reg0 + RSP], 0x7000),
    (DW_OP.regx, [(DW_OP.regx, 40)], 0x28),
    # Stack operations: DWARF 5 §2.5.1.3.
    (DW_OP.dup, [lit(5), DW_OP.dup, DW_OP.plus], 10),
    (DW_OP.drop, [lit(5), lit(6), DW_OP.drop], 5),
    (DW_OP.pick, [lit(5), lit(6), lit(7), (DW_OP.pick, 2)], 5),
    (DW_OP.over, [lit(5), lit(6), DW_OP.over], 5),
    (DW_OP.swap, [lit(9), lit(5), DW_OP.swap, DW_OP.minus], TOP - 4),
    (DW_OP.deref, [breg(RSP, 8), DW_OP.deref], 0x22),
    (DW_OP.deref_size, [breg(RSP, 7), (DW_OP.deref_size, 2)], 0x2200),
    (DW_OP.xderef, [lit(0), breg(RSP), DW_OP.xderef], 0x11),
    (DW_OP.xderef_size, [lit(0), breg(RSP), (DW_OP.xderef_size, 1)], 0x11),
    # Arithmetic and logic: DWARF 5 §2.5.1.4.
    (DW_OP.abs, [const(-5), DW_OP.abs], 5),
    (DW_OP.and_, [lit(12), lit(10), DW_OP.and_], 8),
    (DW_OP.div, [const(-7), lit(2), DW_OP.div], TOP - 3),
    (DW_OP.minus, [lit(5), lit(7), DW_OP.minus], TOP - 2),
    (DW_OP.mod, [const(TOP - 1), lit(10), DW_OP.mod], (TOP - 1) % 10),
    (DW_OP.mul, [const(-3), lit(7), DW_OP.mul], TOP - 21),
    (DW_OP.neg, [lit(5), DW_OP.neg], TOP - 5),
    (DW_OP.not_, [lit(5), DW_OP.not_], TOP - 6),
    (DW_OP.or_, [lit(12), lit(10), DW_OP.or_], 14),
    (DW_OP.plus, [const(-1), lit(3), DW_OP.plus], 2),
    (DW_OP.plus_uconst, [lit(3), (DW_OP.plus_uconst, 300)], 303),
    (DW_OP.shl, [lit(3), lit(4), DW_OP.shl], 48),
    (DW_OP.shr, [const(-1), lit(4), DW_OP.shr], TOP // 16 - 1),
    (DW_OP.shra, [const(-32), lit(4), DW_OP.shra], TOP - 2),
    (DW_OP.xor, [lit(12), lit(10), DW_OP.xor], 6),
    # Comparisons are signed; control flow: DWARF 5 §2.5.1.5.
    (DW_OP.eq, [const(-1), const(TOP - 1), DW_OP.eq], 1),
    (DW_OP.ge, [lit(0), const(-1), DW_OP.ge], 1),
    (DW_OP.gt, [lit(0), const(-1), DW_OP.gt], 1),
    (DW_OP.le, [const(-1), lit(0), DW_OP.le], 1),
    (DW_OP.lt, [const(-1), lit(0), DW_OP.lt], 1),
    (DW_OP.ne, [lit(1), lit(2), DW_OP.ne], 1),
    (DW_OP.skip, [lit(1), (DW_OP.skip, 1), lit(2)], 1),
    (DW_OP.bra, [lit(1), lit(7), (DW_OP.bra, 1), lit(2)], 1),
    # Special operations: DWARF 5 §2.5.1.6.
    (DW_OP.nop, [lit(1), DW_OP.nop], 1),
    (DW_OP.rot, [lit(1), lit(2), lit(3), DW_OP.rot], 2),
]


def test_every_operation_has_a_test() -> None:
    named = {number for name, number in vars(DW_OP).items() if name[:1] != "_"}
    assert {opcode for opcode, _, _ in CASES} == named


@pytest.mark.parametrize(
    ("program", "value"), [case[1:] for case in CASES], ids=[op_name(case[0]) for case in CASES]
)
def test_operation(program: list[Operation], value: int) -> None:
    assert value_of(*program) == value


@pytest.mark.parametrize("series", ["lit", "reg", "breg"])
def test_all_of_a_series_of_32(series: str) -> None:
    registers = {n: 1000 + n for n in range(32)}
    expected = [n if series == "lit" else 1000 + n for n in range(32)]
    first = getattr(DW_OP, f"{series}0")
    operand = [0] if series == "breg" else []
    found = [
        evaluate(bytes([first + n, *operand]), registers, WORDS, word=8, byteorder="big")
        for n in range(32)
    ]
    assert found == expected


def test_rot_moves_the_top_below_the_next_two() -> None:
    # DWARF 5 §2.5.1.3: the top becomes the third, the others move up.
    program: list[Operation] = [lit(1), lit(2), lit(3), DW_OP.rot]
    drops: list[Operation] = [DW_OP.drop, DW_OP.drop]
    assert [value_of(*program, *drops[:n]) for n in range(3)] == [2, 1, 3]


@pytest.mark.parametrize("word", [4, 8])
def test_values_wrap_at_the_word(word: int) -> None:
    assert value_of(lit(0), lit(1), DW_OP.minus, word=word) == 2 ** (8 * word) - 1
    assert (
        value_of(lit(1), (DW_OP.const1u, 8 * word - 1), DW_OP.shl, lit(1), DW_OP.shl, word=word)
        == 0
    )


@pytest.mark.parametrize(("operation", "value"), [(DW_OP.shl, 0), (DW_OP.shr, 0)])
def test_shifts_by_the_word_or_more_leave_nothing(operation: int, value: int) -> None:
    assert value_of(const(-1), (DW_OP.const1u, 64), operation) == value
    assert value_of(const(-1), const(TOP - 1), operation) == value


def test_an_arithmetic_shift_by_the_word_or_more_leaves_the_sign() -> None:
    assert value_of(const(-9), const(TOP - 1), DW_OP.shra) == TOP - 1
    assert value_of(lit(9), const(TOP - 1), DW_OP.shra) == 0


@pytest.mark.parametrize(
    ("first", "second", "value"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3)]
)
def test_division_is_signed_and_goes_towards_zero(first: int, second: int, value: int) -> None:
    assert value_of(const(first), const(second), DW_OP.div) == value % TOP


def test_the_least_number_divided_by_minus_one_wraps() -> None:
    assert value_of(const(-(2**63)), const(-1), DW_OP.div) == 2**63


def test_the_stack_begins_with_what_is_given() -> None:
    assert value_of(initial=(0x7000,)) == 0x7000
    assert value_of((DW_OP.plus_uconst, 8), initial=(0x7000,)) == 0x7008


def test_addresses_in_the_code_are_moved_by_the_bias() -> None:
    assert value_of((DW_OP.addr, 0x1000), bias=0x7F00_0000_0000) == 0x7F00_0000_1000


def test_a_jump_back_makes_a_loop_that_ends() -> None:
    # 5 * 4 by addition: the sum below, the counter on top.
    body: list[Operation] = [DW_OP.swap, (DW_OP.plus_uconst, 5), DW_OP.swap]
    body += [lit(1), DW_OP.minus, DW_OP.dup, (DW_OP.bra, -10)]
    assert value_of(lit(0), lit(4), *body, DW_OP.drop) == 20


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_memory_is_read_in_the_byte_order(byteorder: ByteOrder) -> None:
    memory = Span(0x7000, bytes(range(1, 9)))
    coded = code(breg(RSP), DW_OP.deref, byteorder=byteorder)
    value = evaluate(coded, REGISTERS, memory, word=8, byteorder=byteorder)
    assert value == int.from_bytes(bytes(range(1, 9)), byteorder)


def test_a_32_bit_word_is_read_with_four_bytes() -> None:
    assert value_of(breg(RSP, 8), DW_OP.deref, word=4) == 0x22


def test_memory_is_read_only_where_an_operation_asks_for_it() -> None:
    memory = Recording(WORDS)
    skipped = code(breg(RSP), (DW_OP.skip, 1), DW_OP.deref)
    evaluate(skipped, REGISTERS, memory, word=8, byteorder="little")
    assert memory.reads == []
    evaluate(code(breg(RSP), DW_OP.deref), REGISTERS, memory, word=8, byteorder="little")
    assert [address for address, _ in memory.reads] == [0x7000]


def test_memory_that_cannot_be_read_is_a_fault_with_its_address() -> None:
    with pytest.raises(MemoryFault) as caught:
        value_of(breg(RSP, -8), DW_OP.deref)
    assert (caught.value.address, caught.value.size) == (0x6FF8, 8)


@pytest.mark.parametrize("registers", [Registers(), {}], ids=["Registers", "dict"])
def test_a_register_that_is_not_known_is_named(registers: dict[int, int]) -> None:
    with pytest.raises(UnknownRegister) as caught:
        evaluate(code(breg(RBP)), registers, WORDS, word=8, byteorder="little")
    assert caught.value.number == RBP


REFUSED: dict[str, tuple[list[Operation], str]] = {
    "nothing": ([], "nothing is left on the stack"),
    "all dropped": ([lit(1), DW_OP.drop], "nothing is left on the stack"),
    "too few": ([lit(1), DW_OP.plus], "DW_OP_plus: the stack is empty"),
    "swap of one": ([lit(1), DW_OP.swap], "DW_OP_swap: the stack is empty"),
    "rot of two": ([lit(1), lit(2), DW_OP.rot], "DW_OP_rot: the stack is empty"),
    "dup of none": ([DW_OP.dup], "DW_OP_dup: entry 0 of a stack of 0"),
    "pick too deep": ([lit(1), (DW_OP.pick, 1)], "DW_OP_pick: entry 1 of a stack of 1"),
    "div by zero": ([lit(1), lit(0), DW_OP.div], "DW_OP_div: division by zero"),
    "mod by zero": ([lit(1), lit(0), DW_OP.mod], "DW_OP_mod: division by zero"),
    "jump out": ([lit(1), (DW_OP.skip, 1)], "DW_OP_skip: a jump out of the expression"),
    "jump back out": ([lit(1), (DW_OP.bra, -5)], "DW_OP_bra: a jump out of the expression"),
    "deref of 0": ([lit(1), (DW_OP.deref_size, 0)], "DW_OP_deref_size: a read of 0 bytes"),
    "deref of 9": ([lit(1), (DW_OP.deref_size, 9)], "DW_OP_deref_size: a read of 9 bytes"),
    "space": ([lit(1), lit(2), DW_OP.xderef], "DW_OP_xderef: address space 0x1"),
    "endless": ([(DW_OP.skip, -3)], f"no end after {MOST_STEPS} operations"),
    "deep": ([lit(1), (DW_OP.skip, -4)], f"more than {MOST_WORDS} values on the stack"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    program, reason = REFUSED[name]
    with pytest.raises(FormatError, match=reason):
        value_of(*program)


# DWARF 5 §6.4.2: fbreg, call2, call_frame_cfa, entry_value, convert and whatever is unknown.
@pytest.mark.parametrize("opcode", [0x00, 0x91, 0x98, 0x9C, 0x9F, 0xA3, 0xA8, 0xF1, 0xFF])
def test_an_operation_that_cfi_may_not_use_is_refused(opcode: int) -> None:
    with pytest.raises(FormatError, match=f"DW_OP_{opcode:#x} is no operation for CFI") as caught:
        evaluate(bytes([DW_OP.lit0, opcode]), {}, WORDS, word=8, byteorder="little")
    assert caught.value.offset == 1


@given(st.binary(max_size=60), st.sampled_from([4, 8]))
def test_any_bytes_give_a_word_or_an_error_of_ours(data: bytes, word: int) -> None:
    try:
        value = evaluate(data, REGISTERS, WORDS, word=word, byteorder="big", initial=(0x7000,))
    except (FormatError, MemoryFault, UnknownRegister):
        return
    assert 0 <= value < 2 ** (8 * word)


def test_operations_keep_operands_and_place() -> None:
    coded = code(breg(RSP, 8), lit(3), (DW_OP.bregx, 40, -1), DW_OP.deref)
    found = [(one.opcode, one.operands, one.offset) for one in operations(coded, 8, "little")]
    assert found == [
        (DW_OP.breg0 + RSP, (8,), 0),
        (DW_OP.lit0 + 3, (), 2),
        (DW_OP.bregx, (40, -1), 3),
        (DW_OP.deref, (), 6),
    ]


def test_an_expression_reads_as_a_list() -> None:
    names = {RSP: "rsp", RIP: "rip"}.__getitem__
    program: list[Operation] = [breg(RSP, 8), breg(RIP, 0), lit(15), DW_OP.and_, lit(11), DW_OP.ge]
    assert describe(code(*program), names) == "breg7(rsp)+8, breg16(rip)+0, lit15, and, lit11, ge"
    assert describe(code(breg(RSP, -8), DW_OP.deref)) == "breg7(r7)-8, deref"
    assert describe(code((DW_OP.bregx, 40, 1), (DW_OP.regx, 40))) == "bregx(r40)+1, regx(r40)"
    assert describe(code(DW_OP.reg0 + RSP), names) == "reg7(rsp)"
    assert (
        describe(code((DW_OP.addr, 0x1000), (DW_OP.deref_size, 4))) == "addr 0x1000, deref_size 4"
    )
    assert describe(code(lit(1), (DW_OP.bra, 1), lit(2))) == "lit1, bra to 5, lit2"


def test_what_cannot_be_read_is_said_in_its_place() -> None:
    assert describe(b"\x30\xff") == "lit0, <DW_OP_0xff is no operation for CFI>"
    assert describe(b"\x30\x0a\x01") == "lit0, <2 bytes are wanted where 1 are left>"
