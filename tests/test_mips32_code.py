"""The code model of mips32: small pieces of code, and compilers' own words for whole programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.test_mips32 import BOTH, Target
from tools.agreement import compare
from unwind.arch._mips32_code import models
from unwind.disassembly import disassembler
from unwind.elf import Elf
from unwind.emulate import Table, emulate
from unwind.rules import CfaRegister, InRegister, Offset, Row, Undefined

PROGRAMS = ROOT / "tests/programs"
S0, T7, SP, S8, RA = 16, 15, 29, 30, 31


@pytest.fixture(params=BOTH, ids=[target.arch.name for target in BOTH])
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


def follow(target: Target, directory: Path, code: str) -> Table:
    """The table of one function, whose first instruction is at 0."""
    head = ".set noreorder\n.set noat\n.set nomacro\n.text\n.globl f\nf:\n"
    built = target.compile(directory, head + code + "\n", "-c", "-mno-abicalls", name="f.s")
    elf = Elf(built.read_bytes())
    text = elf.section(".text")
    assert text is not None
    size = 4 * len([line for line in code.splitlines() if line and line[-1] != ":"])
    model = models[target.arch.byteorder]
    return emulate(model, disassembler(model)(bytes(elf.data(text))[:size], 0))


def at(table: Table, number: int, called: bool = False) -> tuple[int, int, object]:
    """CFA register, CFA offset, and the rule of ra (None: it is still there) at an instruction."""
    row = table.row(4 * number, called)
    assert row is not None
    assert isinstance(row.cfa, CfaRegister)
    return row.cfa.number, row.cfa.offset, row.rules.get(RA)


def test_a_delay_slot_is_executed_before_control_goes(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        """
beqz $4, 1f
addiu $29, $29, -32
sw $31, 28($29)
lw $31, 28($29)
1:
addiu $29, $29, 32
jr $31
nop
""",
    )
    assert at(table, 1) == (SP, 0, None)
    assert at(table, 4) == (SP, 32, Offset(-4))  # the fall-through comes first
    assert at(table, 5)[:2] == (SP, 0)


def test_code_behind_an_epilogue_has_the_frame_of_the_branch_to_it(
    target: Target, tmp_path: Path
) -> None:
    table = follow(
        target,
        tmp_path,
        """
addiu $29, $29, -40
sw $31, 36($29)
bnez $4, 1f
sw $16, 32($29)
lw $31, 36($29)
jr $31
addiu $29, $29, 40
1:
lw $31, 36($29)
lw $16, 32($29)
jr $31
addiu $29, $29, 40
""",
    )
    assert at(table, 6) == (SP, 40, Offset(-4))  # the slot that takes the frame down
    assert at(table, 7) == (SP, 40, Offset(-4))
    row = table.row(28)
    assert isinstance(row, Row)
    assert row.rules[S0] == Offset(-8)


def test_a_likely_branch_annuls_its_slot_where_it_is_not_taken(
    target: Target, tmp_path: Path
) -> None:
    table = follow(
        target,
        tmp_path,
        """
bnel $4, $0, 1f
addiu $29, $29, -16
nop
jr $31
nop
1:
addiu $29, $29, 16
jr $31
nop
""",
    )
    assert at(table, 2) == (SP, 0, None)
    assert at(table, 5) == (SP, 16, None)


def test_a_call_is_under_way_when_its_slot_is_executed(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        """
addiu $29, $29, -32
sw $31, 28($29)
jalr $25
sw $16, 24($29)
lw $31, 28($29)
jr $31
addiu $29, $29, 32
""",
    )
    row = table.row(8, called=True)
    assert row is not None
    assert row.rules == {S0: Offset(-8), RA: Offset(-4)}
    before = table.row(8)
    assert before is not None
    assert S0 not in before.rules


def test_lazy_binding_stubs_carry_the_return_address_in_t7(target: Target, tmp_path: Path) -> None:
    table = follow(
        target, tmp_path, "lw $25, -32752($28)\nmove $15, $31\njalr $25\nli $24, 11\nnop\n"
    )
    assert at(table, 2) == (SP, 0, None)
    assert at(table, 3) == (SP, 0, InRegister(T7))


def test_a_resolver_that_stores_t7_returns_to_it(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        """
addiu $29, $29, -40
sw $15, 36($29)
jalr $25
nop
lw $31, 36($29)
jr $2
addiu $29, $29, 40
""",
    )
    assert at(table, 2, called=True) == (SP, 40, Offset(-4))


def test_where_am_i_is_no_call(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        "move $1, $31\nbal 1f\nnop\n1:\naddu $28, $28, $31\nmove $31, $1\njr $31\nnop",
    )
    assert at(table, 3) == (SP, 0, InRegister(1))
    assert at(table, 5) == (SP, 0, None)


def test_start_up_code_has_no_caller(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        """
move $31, $0
li $1, -8
and $29, $29, $1
addiu $29, $29, -32
jalr $25
nop
1:
b 1b
nop
""",
    )
    assert at(table, 4, called=True)[2] == Undefined()


def test_start_up_code_gives_up_ra_before_it_asks_where_it_is(
    target: Target, tmp_path: Path
) -> None:
    table = follow(target, tmp_path, "move $0, $31\nbal 1f\nnop\n1: addu $28, $28, $31\nnop\n")
    assert at(table, 3)[2] == Undefined()


def test_alloca_leaves_the_cfa_to_s8(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        """
addiu $29, $29, -40
sw $30, 32($29)
move $30, $29
sw $31, 36($29)
subu $29, $29, $4
jalr $25
nop
move $29, $30
lw $31, 36($29)
lw $30, 32($29)
jr $31
addiu $29, $29, 40
""",
    )
    assert at(table, 5, called=True) == (S8, 40, Offset(-4))
    assert at(table, 8) == (S8, 40, Offset(-4))
    assert at(table, 11) == (SP, 40, Offset(-4))


def test_large_frames(target: Target, tmp_path: Path) -> None:
    table = follow(
        target,
        tmp_path,
        "lui $3, 1\nori $3, $3, 0x1030\nsubu $29, $29, $3\nnop\naddu $29, $29, $3\njr $31\nnop",
    )
    assert at(table, 3) == (SP, 0x11030, None)
    assert at(table, 5) == (SP, 0, None)


@pytest.mark.parametrize("level", ["-O0", "-O2", "-Os"])
@pytest.mark.parametrize(
    "options", [["-pie", "-fPIC"], ["-no-pie", "-fno-pic", "-static"]], ids=["pic", "static"]
)
def test_rows_agree_with_what_the_compiler_says(
    target: Target, level: str, options: list[str], tmp_path: Path
) -> None:
    source = f'#include "{PROGRAMS / "shapes.c"}"\n'
    built = target.compile(tmp_path, source, "-g", level, f"-I{PROGRAMS}", *options)
    result = compare(str(built))
    assert result.share_of_calls >= 0.99
    assert result.share >= 0.97


@pytest.mark.parametrize(
    "options", [["-pie", "-fPIC"], ["-no-pie", "-fno-pie"]], ids=["pic", "exec"]
)
def test_functions_are_found_in_code_that_nothing_describes(
    target: Target, options: list[str], tmp_path: Path
) -> None:
    source = f'#include "{PROGRAMS / "shapes.c"}"\n'
    built = target.compile(tmp_path, source, "-g", "-O2", f"-I{PROGRAMS}", *options)
    result = compare(str(built), told=False)
    assert result.share_of_calls >= 0.97
    assert result.share >= 0.95


def test_a_register_that_points_into_the_frame_is_no_frame_pointer(
    target: Target, tmp_path: Path
) -> None:
    """ld.so's relocation loop: s8 walks on from the middle of the frame."""
    code = """
        addiu $sp, $sp, -64
        sw $ra, 60($sp)
        sw $s8, 56($sp)
        addiu $s8, $sp, 16
    1:  lw $a0, 0($s8)
        bne $a0, $zero, 1b
        addiu $s8, $s8, 4
        lw $ra, 60($sp)
    """
    table = follow(target, tmp_path, code)
    assert [at(table, n) for n in (4, 5, 7)] == [(SP, 64, Offset(-4))] * 3


def test_behind_a_lazy_binding_stub_lies_another(target: Target, tmp_path: Path) -> None:
    stub = "lw $25, -32752($28)\nmove $15, $31\njalr $25\nli $24, 5\n"
    table = follow(target, tmp_path, 2 * stub)
    assert [at(table, n) for n in (0, 1, 4, 5)] == [(SP, 0, None)] * 4
    assert [at(table, n)[2] for n in (3, 7)] == [InRegister(T7)] * 2


def test_a_resolver_is_entered_with_its_return_address_in_t7(
    target: Target, tmp_path: Path
) -> None:
    code = "addiu $29, $29, -32\nnop\nsw $15, 28($29)\njalr $25\nnop\nlw $31, 28($29)\n"
    table = follow(target, tmp_path, code + "jr $2\naddiu $29, $29, 32\n")
    assert [at(table, n) for n in (0, 1)] == [(SP, 0, InRegister(T7)), (SP, 32, InRegister(T7))]
    assert [at(table, n) for n in (3, 5, 6)] == [(SP, 32, Offset(-4))] * 3
