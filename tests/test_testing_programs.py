"""CFA programs: the engine's rows are the plain evaluator's, and damage gives typed errors."""

from __future__ import annotations

import pytest
from hypothesis import event, find, given, settings
from hypothesis import strategies as st

from unwind.dwarf.cfi import Fde
from unwind.dwarf.constants import DW_CFA, DW_EH_PE, VENDOR_OPCODES
from unwind.dwarf.expression import evaluate
from unwind.dwarf.instructions import OPERANDS, Instruction
from unwind.dwarf.rows import rows
from unwind.errors import MemoryFault, UnknownRegister, UnwindError
from unwind.protocols import Memory
from unwind.registers import Registers
from unwind.rules import CfaRegister, Offset, Row
from unwind.testing import model
from unwind.testing.assembler import (
    CIE,
    FDE,
    Section,
    Target,
    advance_loc,
    def_cfa,
    def_cfa_offset,
    offset,
    restore_state,
    set_loc,
)
from unwind.testing.programs import (
    beginnings,
    damaged_expressions,
    damaged_programs,
    expressions,
    lawful,
    programs,
    reach,
)
from unwind.testing.snapshots import memories, registers

ARM64 = {**VENDOR_OPCODES, DW_CFA.GNU_window_save: "AARCH64_negate_ra_state"}
TARGETS = st.builds(Target, st.sampled_from(["little", "big"]), st.sampled_from([8, 4]))
ALIGNMENTS = st.sampled_from([1, 4, 2])


def sections(section: Section) -> tuple[list[Fde], list[model.Fde]]:
    """The FDEs of a section as the engine reads them, and as the plain evaluator does."""
    target = section.target
    frames = section.frames()
    ours = [entry for entry in frames.entries() if isinstance(entry, Fde)]
    data = bytes(section.data)
    read = model.read(
        data,
        section.vaddr,
        section.kind,
        target.byteorder,
        target.address_size,
        text_base=target.text_base,
        data_base=target.data_base,
    )
    return ours, [entry for entry in read if isinstance(entry, model.Fde)]


@st.composite
def tables(draw: st.DrawFn) -> Section:
    """A CIE and an FDE with lawful programs."""
    target, align = draw(TARGETS), draw(ALIGNMENTS)
    program = draw(programs(target, code_align=align, start=0x5000))
    cie = CIE(
        draw(beginnings(target)),
        code_align=align,
        data_align=draw(st.sampled_from([-8, -4, 1, 8])),
        version=draw(st.sampled_from([3, 1, 4])),
    )
    size = reach(program, align, 0x5000) + draw(st.integers(0, 40))
    return Section(FDE(0x5000, size, program, cie), target=target, vaddr=0x1_0000)


@settings(max_examples=200)
@given(tables(), st.booleans())
def test_the_engines_rows_are_those_of_the_plain_evaluator(section: Section, arm: bool) -> None:
    [ours], [plain] = sections(section)
    expected = model.rows(plain, aarch64=arm)
    assert list(rows(ours, ARM64 if arm else VENDOR_OPCODES)) == expected
    event(f"{min(len(expected), 4)} rows or more")


def test_the_plain_evaluator_knows_a_program_by_heart() -> None:
    program = [def_cfa_offset(16), offset(6, 2), advance_loc(4), def_cfa(6, 16)]
    section = Section(FDE(0x1000, 10, program, CIE([def_cfa(7, 8), offset(16, 1)])))
    [entry] = sections(section)[1]
    saved = {16: Offset(-8), 6: Offset(-16)}
    assert [(row.start, row.end, row.cfa, row.rules) for row in model.rows(entry)] == [
        (0x1000, 0x1004, CfaRegister(7, 16), saved),
        (0x1004, 0x100A, CfaRegister(6, 16), saved),
    ]


def test_the_plain_evaluator_refuses_what_is_not_lawful() -> None:
    [entry] = sections(Section(FDE(0x1000, 10, [restore_state()])))[1]
    with pytest.raises(model.Invalid):
        model.rows(entry)


@settings(max_examples=100)
@given(programs())
def test_lawful_programs_stay_as_they_are(program: list[Instruction]) -> None:
    plain = [item for item in program if item.opcode != DW_CFA.set_loc]
    assert lawful(plain) == plain


def test_every_instruction_is_made() -> None:
    made: set[int] = set()

    @settings(max_examples=1_000)  # at 200 one instruction stayed away with another Hypothesis
    @given(programs())
    def make(program: list[Instruction]) -> None:
        made.update(item.opcode for item in program)

    make()
    assert made == set(OPERANDS)


def test_a_program_shrinks_to_what_is_wanted_and_what_that_needs() -> None:
    wanted = Instruction(DW_CFA.restore_state)
    found = find(programs(most_rows=3), lambda program: wanted in program)
    assert found == [Instruction(DW_CFA.remember_state), wanted]


@settings(max_examples=200)
@given(damaged_programs())
def test_a_damaged_program_has_the_plain_evaluators_rows_or_a_typed_error(code: bytes) -> None:
    [ours], [plain] = sections(Section(FDE(0x1000, 0x400, code)))
    got: list[Row] = []
    broken = False
    try:
        got.extend(rows(ours))
    except UnwindError:
        broken = True
    try:
        expected = model.rows(plain)
    except model.Invalid:
        assert broken
        event("invalid")
    else:
        assert broken or got == expected
        event(f"sound still, {'limits' if broken else 'same rows'}")


@settings(max_examples=200)
@given(expressions(), registers(), memories())
def test_an_expression_has_a_value_or_a_typed_error(
    code: bytes, known: Registers, memory: Memory
) -> None:
    try:
        value = evaluate(code, known, memory, word=8, byteorder="little", initial=(0x7000_0000,))
        assert 0 <= value < 1 << 64
        event("value")
    except (UnknownRegister, MemoryFault) as error:
        event(type(error).__name__)


@settings(max_examples=200)
@given(damaged_expressions(), registers(), memories())
def test_a_damaged_expression_ends(code: bytes, known: Registers, memory: Memory) -> None:
    try:
        evaluate(code, known, memory, word=8, byteorder="little")
    except UnwindError as error:
        event(type(error).__name__)


def test_set_loc_has_the_address_size_of_its_cie() -> None:
    cie = CIE(version=4, augmentation="", pointers=DW_EH_PE.absptr, address_size=8)
    program = [set_loc(0x1004), def_cfa_offset(16)]
    section = Section(FDE(0x1000, 8, program, cie), kind="debug_frame", target=Target("little", 4))
    [ours], [plain] = sections(section)
    assert [row.start for row in rows(ours)] == [0x1000, 0x1004]
    assert list(rows(ours)) == model.rows(plain)
