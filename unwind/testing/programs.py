"""Strategies of CFA programs: lawful ones (DWARF 5 §6.4.2), and the bytes of damaged ones."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from hypothesis import strategies as st

from unwind.dwarf.constants import DW_CFA, DW_EH_PE, DW_OP
from unwind.dwarf.instructions import Instruction
from unwind.testing.assembler import Operation, Target, assemble, code
from unwind.testing.damaged import damaged

__all__ = [
    "ADVANCES",
    "beginnings",
    "damaged_expressions",
    "damaged_programs",
    "expressions",
    "lawful",
    "programs",
    "reach",
]

_TARGET = Target()

# How far each instruction of this kind can go.
ADVANCES = {
    DW_CFA.advance_loc: 63,
    DW_CFA.advance_loc1: 255,
    DW_CFA.advance_loc2: 300,
    DW_CFA.advance_loc4: 300,
    DW_CFA.MIPS_advance_loc8: 300,
}
_REGISTERS = st.integers(0, 40) | st.sampled_from([63, 64, 127, 128, 300])
_SIZES = st.integers(0, 100) | st.sampled_from([127, 128, 0x3FFF, 0x4000, 2**31 - 8])
_DISTANCES = st.integers(-70, 70) | st.sampled_from([-(2**31), -0x2001, -0x2000, 0x1FFF, 0x2000])
_VENDORS = (DW_CFA.GNU_window_save, DW_CFA.AARCH64_negate_ra_state_with_pc)


@st.composite
def expressions(draw: st.DrawFn, target: Target = _TARGET) -> bytes:
    """A DWARF expression that leaves one value or more and never pops from an empty stack."""
    operations: list[Operation] = [draw(_pushes())]
    depth = 1
    for _ in range(draw(st.integers(0, 5))):
        kinds = [_pushes(), _changes()] + [_BINARY] * (depth > 1)
        kind = draw(st.integers(0, len(kinds) - 1))
        operations.append(draw(kinds[kind]))
        depth += (1, 0, -1)[kind]
    return code(*operations, word=target.address_size, byteorder=target.byteorder)


@cache
def _pushes() -> st.SearchStrategy[Operation]:
    return st.one_of(
        st.integers(DW_OP.lit0, DW_OP.lit31),
        st.tuples(st.integers(DW_OP.breg0, DW_OP.breg31), _DISTANCES),
        st.tuples(st.just(DW_OP.const1u), st.integers(0, 255)),
        st.tuples(st.just(DW_OP.const2s), st.integers(-(2**15), 2**15 - 1)),
        st.tuples(st.just(DW_OP.const4u), st.integers(0, 2**32 - 1)),
        st.tuples(st.just(DW_OP.consts), _DISTANCES),
        st.tuples(st.just(DW_OP.bregx), _REGISTERS, _DISTANCES),
    )


@cache
def _changes() -> st.SearchStrategy[Operation]:
    return st.one_of(
        st.sampled_from([DW_OP.deref, DW_OP.not_, DW_OP.neg, DW_OP.nop]),
        st.tuples(st.just(DW_OP.plus_uconst), _SIZES),
        st.tuples(st.just(DW_OP.deref_size), st.sampled_from([1, 2, 4])),
    )


_BINARY = st.sampled_from([DW_OP.plus, DW_OP.minus, DW_OP.and_, DW_OP.or_, DW_OP.xor, DW_OP.swap])


def beginnings(target: Target = _TARGET) -> st.SearchStrategy[list[Instruction]]:
    """Programs of CIEs: the CFA is a register and an offset, then rules of some registers."""
    cfa = st.builds(Instruction, st.just(DW_CFA.def_cfa), _REGISTERS, _SIZES)
    return st.builds(lambda first, rest: [first, *rest], cfa, st.lists(_rules(target), max_size=4))


@st.composite
def programs(
    draw: st.DrawFn,
    target: Target = _TARGET,
    *,
    code_align: int = 1,
    start: int = 0,
    most_rows: int = 12,
    vendors: tuple[int, ...] = _VENDORS,
) -> list[Instruction]:
    """A program for an FDE whose code begins at `start` and whose CIE defines the CFA.

    All instructions of DWARF 5 §6.4.2 and the vendors' named; what is not lawful where it would
    stand is left out. It shrinks to fewer instructions with smaller operands.
    """
    stretches = draw(st.lists(_stretches(target, vendors), max_size=most_rows))
    return lawful([item for stretch in stretches for item in stretch], code_align, start)


@cache
def _stretches(target: Target, vendors: tuple[int, ...]) -> st.SearchStrategy[list[Instruction]]:
    """What changes between two rows, and the step."""
    # Of a union of strategies each alternative is as likely; states must meet to have an effect.
    states = [_states()] * 6
    changes = st.one_of(_cfas(target), _rules(target), *states, _vendors(vendors))
    steps = st.lists(_advances(), max_size=2)
    return st.builds(lambda some, step: some + step, st.lists(changes, max_size=6), steps)


def _advances() -> st.SearchStrategy[Instruction]:
    """Steps; the number of a set_loc is how far it is to go, until `lawful` has placed it."""
    kinds = [
        st.builds(Instruction, st.just(opcode), number=st.integers(0, most))
        for opcode, most in ADVANCES.items()
    ]
    return st.one_of(*kinds, st.builds(Instruction, st.just(DW_CFA.set_loc), number=_STEPS))


_STEPS = st.integers(0, 300)


def _cfas(target: Target) -> st.SearchStrategy[Instruction]:
    def make(opcode: int, **operands: object) -> st.SearchStrategy[Instruction]:
        return st.builds(Instruction, st.just(opcode), **operands)  # type: ignore[arg-type]

    return st.one_of(
        make(DW_CFA.def_cfa_offset, number=_SIZES),
        make(DW_CFA.def_cfa, register=_REGISTERS, number=_SIZES),
        make(DW_CFA.def_cfa_register, register=_REGISTERS),
        make(DW_CFA.def_cfa_sf, register=_REGISTERS, number=_DISTANCES),
        make(DW_CFA.def_cfa_offset_sf, number=_DISTANCES),
        make(DW_CFA.def_cfa_expression, block=expressions(target)),
    )


@cache
def _rules(target: Target) -> st.SearchStrategy[Instruction]:
    def make(
        *opcodes: int, register: st.SearchStrategy[int] = _REGISTERS, **more: object
    ) -> st.SearchStrategy[Instruction]:
        return st.builds(Instruction, st.sampled_from(opcodes), register=register, **more)  # type: ignore[arg-type]

    low = st.integers(0, 63)
    unsigned = (DW_CFA.offset_extended, DW_CFA.val_offset, DW_CFA.GNU_negative_offset_extended)
    signed = (DW_CFA.offset_extended_sf, DW_CFA.val_offset_sf)
    plain = (DW_CFA.undefined, DW_CFA.same_value, DW_CFA.restore_extended)
    return st.one_of(
        make(DW_CFA.offset, register=low, number=_SIZES),
        make(DW_CFA.restore, register=low),
        make(*plain),
        make(*unsigned, number=_SIZES),
        make(*signed, number=_DISTANCES),
        make(DW_CFA.register, number=_REGISTERS),
        make(DW_CFA.expression, DW_CFA.val_expression, block=expressions(target)),
    )


def _states() -> st.SearchStrategy[Instruction]:
    return st.sampled_from(
        [Instruction(n) for n in (DW_CFA.nop, DW_CFA.remember_state, DW_CFA.restore_state)]
    )


def _vendors(opcodes: tuple[int, ...]) -> st.SearchStrategy[Instruction]:
    sizes = st.builds(Instruction, st.just(DW_CFA.GNU_args_size), number=_SIZES)
    return sizes | st.sampled_from([Instruction(n) for n in opcodes]) if opcodes else sizes


def lawful(items: Iterable[Instruction], code_align: int = 1, start: int = 0) -> list[Instruction]:
    """The items that are lawful where they stand (DWARF 5 §6.4.2), with set_locs placed.

    A restore_state needs a state; a CFA's register or offset cannot be changed alone where an
    expression is in effect (§6.4.2.2). The CIE is taken to define the CFA by a register.
    """
    made, location = [], start
    in_registers, remembered = True, list[bool]()
    for item in items:
        match item.opcode:
            case DW_CFA.set_loc:
                location += item.number
                item = item.replace(number=location)
            case opcode if opcode in ADVANCES:
                location += item.number * code_align
            case DW_CFA.def_cfa | DW_CFA.def_cfa_sf:
                in_registers = True
            case DW_CFA.def_cfa_expression:
                in_registers = False
            case DW_CFA.def_cfa_register | DW_CFA.def_cfa_offset | DW_CFA.def_cfa_offset_sf:
                if not in_registers:
                    continue
            case DW_CFA.remember_state:
                remembered.append(in_registers)
            case DW_CFA.restore_state:
                if not remembered:
                    continue
                in_registers = remembered.pop()
        made.append(item)
    return made


def reach(program: Iterable[Instruction], code_align: int = 1, start: int = 0) -> int:
    """How many bytes of code the steps of a program go over."""
    location = start
    for item in program:
        if item.opcode == DW_CFA.set_loc:
            location = item.number
        elif item.opcode in ADVANCES:
            location += item.number * code_align
    return location - start


def damaged_programs(
    target: Target = _TARGET, pointers: int = DW_EH_PE.absptr
) -> st.SearchStrategy[bytes]:
    """The bytes of programs with something wrong in them."""
    sound = programs(target).map(lambda program: assemble(program, target, pointers=pointers))
    return damaged(sound)


def damaged_expressions(target: Target = _TARGET) -> st.SearchStrategy[bytes]:
    """Expressions with something wrong in them: cut operands, loops, pops from nothing."""
    jumps = st.builds(
        lambda head, jump, tail: head + code(jump, byteorder=target.byteorder) + tail,
        expressions(target),
        st.tuples(st.sampled_from([DW_OP.skip, DW_OP.bra]), st.integers(-20, 20)),
        expressions(target),
    )
    return damaged(expressions(target) | jumps) | jumps
