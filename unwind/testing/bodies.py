"""Bodies: the rules that are to hold at one place of a function in, a whole CFA program out.

What stands before and after the place is noise: other rules for other instructions, which an
unwinder that looks up the wrong place, or that gets DW_CFA_restore_state wrong, takes for true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unwind.dwarf.constants import DW_CFA
from unwind.dwarf.instructions import Instruction
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    CfaRule,
    Expression,
    InRegister,
    Offset,
    Rule,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.testing import assembler as cfa
from unwind.testing.choices import Choices
from unwind.testing.dialects import Dialect

__all__ = ["ADVANCES", "Body", "body", "cfa_instruction", "rule_instruction"]


# What the programs made here step forward with.
ADVANCES = frozenset(
    {DW_CFA.advance_loc, DW_CFA.advance_loc1, DW_CFA.advance_loc2, DW_CFA.advance_loc4}
)


@dataclass(frozen=True)
class Body:
    """A function's program with its advances, its size, and the place that it is about.

    `site` is the offset of the return address behind a call, or of the instruction that was
    interrupted.
    """

    program: tuple[Instruction, ...]
    size: int
    site: int


def body(
    choices: Choices,
    dialect: Dialect,
    wanted: Sequence[Instruction],
    called: bool,
    trampoline: bool = False,
) -> Body:
    """A body in which the `wanted` instructions, after those of the CIE, make the site's row.

    The first of them defines the CFA whole. `called`: a call ends at the site; the row must hold
    within it, and may end with it. No call leads to a `trampoline`, so some unwinders look it up
    at the site and some before it: its row holds at both.
    """
    steps: list[tuple[int, Instruction]] = []
    here = _prologue(choices, dialect, wanted, steps)
    unit = dialect.unit
    site = here + unit * choices.integer(0, 5) + (len(dialect.call) if called else 0)
    end = site if called and not trampoline else site + unit
    if choices.chance(3):  # after a call of a function that does not return, another one begins
        return Body(_placed(choices, dialect, steps), end, site)
    if choices.often(3):
        end = _epilogue(choices, dialect, steps, end)
    return Body(_placed(choices, dialect, steps), end + unit * choices.integer(0, 9), site)


def _prologue(
    choices: Choices,
    dialect: Dialect,
    wanted: Sequence[Instruction],
    steps: list[tuple[int, Instruction]],
) -> int:
    """Puts the wanted instructions into `steps`; the offset from which on all of them hold."""
    unit, here = dialect.unit, 0
    match choices.pick(("at once", "step by step", "forgotten noise", "noise undone")):
        case "at once":
            here = unit * choices.integer(0, 3)
            steps += [(here, each) for each in wanted]
        case "step by step":
            for each in wanted:
                here += unit * choices.integer(0, 4)
                steps.append((here, each))
        case "forgotten noise":
            noise = _noise(choices, dialect)
            here = unit * choices.integer(0, 3)
            steps += [(here, cfa.remember_state()), *((here, each) for each in noise)]
            here += unit * choices.integer(1, 80)
            steps.append((here, cfa.restore_state()))
            steps += [(here, each) for each in wanted]
        case _:
            # gas moves what stands at offset 0 into the CIE, and then that is what is restored.
            here = unit * choices.integer(1, 4)
            for each in _noise(choices, dialect):
                steps.append((here, each))
                here += unit * choices.integer(1, 80)
            touched = {each.register for _, each in steps if each.opcode in _RULES}
            steps += [(here, _restore(register)) for register in sorted(touched)]
            steps += [(here, each) for each in wanted]
    return here


def _epilogue(
    choices: Choices, dialect: Dialect, steps: list[tuple[int, Instruction]], end: int
) -> int:
    """Puts other rules behind `end`, some of them right there; the offset of the last."""
    here = end + dialect.unit * choices.integer(0, 2)
    steps.append((here, cfa.remember_state()))
    for each in _noise(choices, dialect):
        steps.append((here, each))
        here += dialect.unit * choices.integer(0, 3)
    here += dialect.unit * choices.integer(1, 9)
    if choices.chance(2):
        steps.append((here, cfa.restore_state()))
    return here


def _noise(choices: Choices, dialect: Dialect) -> list[Instruction]:
    """Rules that are not true of the site, of registers that calls keep."""
    return [_lie(choices, dialect) for _ in range(choices.integer(1, 4))]


def _lie(choices: Choices, dialect: Dialect) -> Instruction:
    register, other = choices.pick(dialect.saved), choices.pick(dialect.saved)
    word = dialect.arch.word
    return choices.pick(
        (
            cfa.def_cfa(dialect.sp, word * choices.integer(1, 40)),
            cfa.offset(register, choices.integer(1, 20)),
            cfa.undefined(register),
            cfa.same_value(register),
            cfa.in_register(register, other),
            cfa.val_offset(register, choices.integer(0, 9)),
            cfa.args_size(word * choices.integer(0, 4)),
        )
    )


_RULES = frozenset(
    {DW_CFA.offset, DW_CFA.undefined, DW_CFA.same_value, DW_CFA.register, DW_CFA.val_offset}
)


def _restore(register: int) -> Instruction:
    return cfa.restore(register) if register < 64 else cfa.restore_extended(register)


def _placed(
    choices: Choices, dialect: Dialect, steps: Iterable[tuple[int, Instruction]]
) -> tuple[Instruction, ...]:
    """The program with an advance to each offset, of any form that reaches so far."""
    made, here = [], 0
    for offset, instruction in steps:
        delta = (offset - here) // dialect.code_align
        if delta:
            forms = [
                form
                for form, most in ((cfa.advance_loc, 63), (cfa.advance_loc1, 255))
                if delta <= most
            ]
            made.append(choices.pick((*forms, cfa.advance_loc2, cfa.advance_loc4))(delta))
            here = offset
        made.append(instruction)
    return tuple(made)


def rule_instruction(dialect: Dialect, register: int, rule: Rule) -> Instruction:
    """An instruction that gives a register its rule."""
    factor = dialect.data_align
    match rule:
        case Undefined():
            return cfa.undefined(register)
        case SameValue():
            return cfa.same_value(register)
        case Offset(n=n) if n // factor >= 0 and register < 64:
            return cfa.offset(register, n // factor)
        case Offset(n=n):
            return cfa.offset_extended_sf(register, n // factor)
        case ValOffset(n=n):
            return cfa.val_offset_sf(register, n // factor)
        case InRegister(number=other):
            return cfa.in_register(register, other)
        case Expression(code=code):
            return cfa.expression(register, code)
        case ValExpression(code=code):
            return cfa.val_expression(register, code)


def cfa_instruction(rule: CfaRule) -> Instruction:
    """An instruction that defines the CFA whole."""
    match rule:
        case CfaRegister(number=number, offset=offset):
            return cfa.def_cfa(number, offset)
        case CfaExpression(code=code):
            return cfa.def_cfa_expression(code)
