"""apply: each rule of DWARF 5 §6.4.1, values in and values out."""

from __future__ import annotations

import pytest

from unwind.arch.x86_64 import ARCH, R12, RAX, RBP, RBX, RIP, RSP
from unwind.errors import FormatError, MemoryFault, UnknownRegister
from unwind.memory import Span
from unwind.registers import Registers
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    CfaRule,
    Expression,
    InRegister,
    Offset,
    Origin,
    Row,
    Rule,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.step import apply

STACK = 0x7000
RETURN = 0x4010


def words(*values: int) -> Span:
    return Span(STACK, b"".join(value.to_bytes(8, "little") for value in values))


def row(cfa: CfaRule | None = None, **rules: Rule) -> Row:
    """A row whose CFA is rsp + 16 and whose return address lies at CFA - 8, with more rules."""
    numbers = {ARCH.register_number(name): rule for name, rule in rules.items()}
    stated = {RIP: Offset(-8), **{n: rule for n, rule in numbers.items() if n is not None}}
    return Row(0, 16, cfa or CfaRegister(RSP, 16), stated, RIP, Origin("eh_frame", 0x20, 0))


REGISTERS = Registers({RIP: 0x4000, RSP: STACK, RBX: 0xB, RBP: 0xBB, R12: 12, RAX: 1})
MEMORY = words(0xAAAA, RETURN, 0xCCCC, 0xDDDD)


def test_the_plain_row_gives_cfa_pc_and_stack_pointer() -> None:
    caller = apply(row(), REGISTERS, MEMORY, ARCH)
    assert (caller.cfa, caller.pc) == (STACK + 16, RETURN)
    assert caller.registers[RSP] == STACK + 16
    assert caller.registers[RIP] == RETURN


def test_what_the_abi_preserves_stays_and_what_a_call_destroys_is_absent() -> None:
    registers = apply(row(), REGISTERS, MEMORY, ARCH).registers
    assert (registers[RBX], registers[RBP], registers[R12]) == (0xB, 0xBB, 12)
    assert RAX not in registers


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (SameValue(), 0xB),
        (Offset(-16), 0xAAAA),
        (Offset(8), 0xDDDD),
        (ValOffset(-16), STACK),
        (InRegister(R12), 12),
        (Expression(b"\x77\x10"), 0xCCCC),  # breg7 + 16: the address
        (ValExpression(b"\x77\x10"), STACK + 16),  # breg7 + 16: the value
        (ValExpression(b"\x23\x08"), STACK + 16 + 8),  # plus_uconst: the CFA lies on the stack
    ],
    ids=repr,
)
def test_a_register_rule_gives_its_value(rule: Rule, value: int) -> None:
    assert apply(row(rbx=rule), REGISTERS, MEMORY, ARCH).registers[RBX] == value


def test_undefined_makes_a_register_absent() -> None:
    assert RBX not in apply(row(rbx=Undefined()), REGISTERS, MEMORY, ARCH).registers


def test_an_undefined_return_address_means_that_there_is_no_caller() -> None:
    caller = apply(row(rip=Undefined()), REGISTERS, MEMORY, ARCH)
    assert caller.pc is None
    assert RIP not in caller.registers


def test_a_return_address_in_a_register_is_a_pc() -> None:
    assert apply(row(rip=InRegister(R12)), REGISTERS, MEMORY, ARCH).pc == 12


def test_a_stack_pointer_rule_wins_over_the_cfa() -> None:
    assert apply(row(rsp=Offset(0)), REGISTERS, MEMORY, ARCH).registers[RSP] == 0xCCCC


def test_a_cfa_by_expression() -> None:
    caller = apply(row(CfaExpression(b"\x77\x18")), REGISTERS, MEMORY, ARCH)  # breg7 + 24
    assert (caller.cfa, caller.pc) == (STACK + 24, 0xCCCC)


def test_arithmetic_wraps_at_the_words_width() -> None:
    registers = Registers({**REGISTERS, RBP: 2**64 - 8})
    caller = apply(row(CfaRegister(RBP, 16), rip=InRegister(R12)), registers, MEMORY, ARCH)
    assert caller.cfa == 8


def test_an_unreadable_return_address_is_a_fault() -> None:
    with pytest.raises(MemoryFault) as caught:
        apply(row(CfaRegister(RSP, 4096)), REGISTERS, MEMORY, ARCH)
    assert caught.value.address == STACK + 4096 - 8


def test_another_register_that_cannot_be_read_is_absent() -> None:
    caller = apply(row(rbx=Offset(4096)), REGISTERS, MEMORY, ARCH)
    assert caller.pc == RETURN
    assert RBX not in caller.registers


def test_an_unknown_register_under_the_cfa_is_said() -> None:
    with pytest.raises(UnknownRegister) as caught:
        apply(row(), Registers({RIP: 1}), MEMORY, ARCH)
    assert caught.value.number == RSP


@pytest.mark.parametrize("missing", ["CFA", "return address"])
def test_a_row_without_what_a_step_needs_is_bad_cfi(missing: str) -> None:
    bad = row().replace(cfa=None) if missing == "CFA" else row().replace(rules={})
    with pytest.raises(FormatError, match=f"no rule for the {missing}"):
        apply(bad, REGISTERS, MEMORY, ARCH)


def test_the_registers_that_came_in_are_left_alone() -> None:
    before = dict(REGISTERS)
    apply(row(rbx=Undefined()), REGISTERS, MEMORY, ARCH)
    assert dict(REGISTERS) == before
