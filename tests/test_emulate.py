"""Emulation: what gas assembles and its CFI says in, the rows that the code alone comes to out.

The truth is in the source: `.cfi_` directives at each instruction that changes something. They are
held against the rows at every instruction, by value.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import cannot, need, run
from unwind.arch.x86_64 import ARCH
from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde
from unwind.dwarf.constants import DW_OP
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.emulate import Table, emulate
from unwind.image import Image
from unwind.judge import Judge
from unwind.machine import CodeModel
from unwind.rules import CfaExpression, CfaRegister, InRegister, Offset, Undefined
from unwind.testing.assembler import breg, code

pytest.importorskip("capstone")
R11, RBX, RDI, RBP, RSP = 11, 3, 5, 6, 7

# What stands for directives in the programs below.
MACROS = """
        .macro  up n
        .cfi_adjust_cfa_offset \\n
        .endm
        .macro  saves register
        push    \\register
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset \\register, 0
        .endm
        .macro  restores register
        pop     \\register
        .cfi_adjust_cfa_offset -8
        .cfi_restore \\register
        .endm
        .text
f:      .cfi_startproc
"""

PROGRAMS = {
    "pushes_and_pops": """
        saves %rbx
        saves %rbp
        saves %r12
        call g
        restores %r12
        restores %rbp
        restores %rbx
        ret
    """,
    "a_frame_made_by_sub_and_add": """
        sub $24, %rsp
        up 24
        mov %rdi, (%rsp)
        call g
        add $24, %rsp
        up -24
        ret
    """,
    "a_frame_made_by_lea": """
        lea -24(%rsp), %rsp
        up 24
        call g
        lea 24(%rsp), %rsp
        up -24
        ret
    """,
    "registers_saved_by_mov": """
        sub $40, %rsp
        up 40
        mov %rbx, 32(%rsp)
        .cfi_offset %rbx, -16
        mov %rbp, 24(%rsp)
        .cfi_offset %rbp, -24
        mov %edi, %ebx
        mov %esi, %ebp
        call g
        mov 24(%rsp), %rbp
        .cfi_restore %rbp
        mov 32(%rsp), %rbx
        .cfi_restore %rbx
        add $40, %rsp
        up -40
        ret
    """,
    "registers_saved_in_the_red_zone": """
        mov %rbx, -16(%rsp)
        .cfi_offset %rbx, -24
        mov %edi, %ebx
        lea (%rbx, %rsi), %eax
        mov -16(%rsp), %rbx
        .cfi_restore %rbx
        ret
    """,
    "a_frame_pointer_and_leave": """
        saves %rbp
        mov %rsp, %rbp
        .cfi_def_cfa_register %rbp
        sub $32, %rsp
        call g
        leave
        .cfi_def_cfa %rsp, 8
        ret
    """,
    "enter": """
        enter $32, $0
        .cfi_def_cfa %rbp, 16
        .cfi_offset %rbp, -16
        call g
        leave
        .cfi_def_cfa %rsp, 8
        ret
    """,
    "alloca": """
        saves %rbp
        mov %rsp, %rbp
        .cfi_def_cfa_register %rbp
        push %rbx
        .cfi_offset %rbx, -24
        sub %rdi, %rsp
        and $-16, %rsp
        mov %rsp, %rbx
        call g
        mov -8(%rbp), %rbx
        .cfi_restore %rbx
        leave
        .cfi_def_cfa %rsp, 8
        ret
    """,
    "a_stack_realigned_by_way_of_r10": """
        lea 8(%rsp), %r10
        .cfi_def_cfa %r10, 0
        and $-32, %rsp
        push -8(%r10)
        push %rbp
        mov %rsp, %rbp
        .cfi_escape 0x10, 6, 2, 0x76, 0         # rbp = [rbp]
        push %r10
        .cfi_escape 0x0f, 3, 0x76, 0x78, 6      # CFA = [rbp - 8]
        sub $40, %rsp
        call g
        add $40, %rsp
        pop %r10
        .cfi_def_cfa %r10, 0
        pop %rbp
        .cfi_restore %rbp
        lea -8(%r10), %rsp
        .cfi_def_cfa %rsp, 8
        ret
    """,
    "a_realigned_stack_that_grows_behind_a_branch": """
        lea 8(%rsp), %r10
        .cfi_def_cfa %r10, 0
        and $-32, %rsp
        push -8(%r10)
        push %rbp
        mov %rsp, %rbp
        .cfi_escape 0x10, 6, 2, 0x76, 0         # rbp = [rbp]
        push %r10
        .cfi_escape 0x0f, 3, 0x76, 0x78, 6      # CFA = [rbp - 8]
        sub $40, %rsp
        call g
        mov %rsp, %rdx
1:      cmp %rdx, %rsp
        je 2f
        sub $4096, %rsp
        orq $0, 4088(%rsp)
        jmp 1b
2:      sub %rax, %rsp
        call g
        mov -8(%rbp), %r10
        .cfi_def_cfa %r10, 0
        leave
        .cfi_restore %rbp
        lea -8(%r10), %rsp
        .cfi_def_cfa %rsp, 8
        ret
    """,
    "a_call_that_is_popped": """
        call 1f
        up 8
1:      pop %rax
        up -8
        ret
    """,
    "arguments_on_the_stack": """
        sub $8, %rsp
        up 8
        push $1
        up 8
        push %rdi
        up 8
        call g
        add $24, %rsp
        up -24
        ret
    """,
    "an_epilogue_in_the_middle": """
        saves %rbx
        mov %edi, %ebx
        test %ebx, %ebx
        jz 1f
        .cfi_remember_state
        restores %rbx
        ret
        .cfi_restore_state
1:      call g
        restores %rbx
        ret
    """,
    "a_prologue_on_one_path_only": """
        test %edi, %edi
        jz 1f
        .cfi_remember_state
        saves %rbx
        mov %edi, %ebx
        call g
        restores %rbx
        ret
        .cfi_restore_state
1:      xor %eax, %eax
        ret
    """,
    "a_loop": """
        saves %rbx
        mov %edi, %ebx
1:      call g
        dec %ebx
        jnz 1b
        restores %rbx
        ret
    """,
    "a_call_without_return_in_the_middle": """
        test %edi, %edi
        jz 1f
        .cfi_remember_state
        sub $8, %rsp
        up 8
        call g
        nop
        .cfi_restore_state
1:      xor %eax, %eax
        ret
    """,
    "a_call_without_return_at_the_end": """
        test %edi, %edi
        jz 1f
        ret
1:      sub $8, %rsp
        up 8
        call g
    """,
    "a_tail_call": """
        saves %rbx
        call g
        restores %rbx
        jmp g
    """,
    "a_jump_table": """
        saves %rbx
        mov %edi, %ebx
        jmp *(%rsi, %rdi, 8)
1:      call g
        jmp 3f
        mov %ebx, %edi
        call g
        .cfi_remember_state
        restores %rbx
        ret
        .cfi_restore_state
3:      mov %ebx, %eax
        restores %rbx
        ret
    """,
    "a_loop_that_probes_each_page": """
        lea -65536(%rsp), %r11
        .cfi_def_cfa %r11, 65544
1:      sub $4096, %rsp
        orq $0, (%rsp)
        cmp %r11, %rsp
        jne 1b
        .cfi_def_cfa_register %rsp
        sub $8, %rsp
        up 8
        call g
        add $65544, %rsp
        up -65544
        ret
    """,
    "a_loop_that_probes_with_a_store": """
        mov %rsp, %r11
        sub $65536, %r11
        .cfi_def_cfa %r11, 65544
1:      sub $4096, %rsp
        movq $0, (%rsp)
        cmp %rsp, %r11
        jne 1b
        .cfi_def_cfa_register %rsp
        add $65536, %rsp
        up -65536
        ret
    """,
    "probes_that_leave_what_was_saved_alone": """
        saves %rbx
        sub $4096, %rsp
        up 4096
        orq $0, (%rsp)
        xorq $0, 4096(%rsp)
        lock orq $0, 4096(%rsp)
        mov %edi, %ebx
        call g
        add $4096, %rsp
        up -4096
        restores %rbx
        ret
    """,
    "a_stack_exchanged_for_another_and_back": """
        saves %rbp
        mov %rsp, %rbp
        .cfi_def_cfa_register %rbp
        mov %rdi, %rsp
        push %rax
        call g
        mov %rbp, %rsp
        .cfi_def_cfa_register %rsp
        restores %rbp
        ret
    """,
}


@pytest.fixture(scope="module")
def model() -> CodeModel:
    need("gcc")
    if "x86_64" not in run("gcc", "-dumpmachine").stdout:
        cannot("gcc makes no x86_64 code")
    assert ARCH.code_model is not None
    return ARCH.code_model()


def assembled(directory: Path, program: str) -> Image:
    """A library with one function, f."""
    source = f"{MACROS}{program}\n.cfi_endproc\n.type g, @function\ng: ret\n"
    (directory / "f.s").write_text(source)
    done = run("gcc", "-shared", "-nostdlib", "f.s", "-o", "f.so", cwd=directory)
    assert done.returncode == 0, done.stderr
    return Image(Elf((directory / "f.so").read_bytes()))


def followed(image: Image, model: CodeModel) -> tuple[Fde, Table]:
    """f's FDE, and the table of its code."""
    entries = [entry for section in image.frame_sections for entry in section.entries()]
    fde = next(e for e in entries if isinstance(e, Fde) and image.executable(e.start))
    code = bytes(image.at(fde.start, fde.end - fde.start))
    return fde, emulate(model, disassembler(model)(code, fde.start))


@pytest.mark.parametrize("name", PROGRAMS)
def test_rows_agree_at_every_instruction_of(name: str, tmp_path: Path, model: CodeModel) -> None:
    image = assembled(tmp_path, PROGRAMS[name])
    fde, table = followed(image, model)
    truth = list(rows(fde, ARCH.vendor_opcodes))
    judge = Judge(ARCH, model)
    code = bytes(image.at(fde.start, fde.end - fde.start))
    wrong = []
    for vaddr, _, mnemonic, operands in disassembler(model)(code, fde.start):
        if mnemonic in model.padding:
            continue
        called = mnemonic in model.calls
        row = next(row for row in truth if row.start <= vaddr < row.end)
        verdict = judge.difference(row, table.state(vaddr), table.row(vaddr, called), vaddr)
        if verdict is not None:
            wrong.append(f"{vaddr - fde.start:#x} {mnemonic} {operands}: {verdict.what}")
    assert wrong == []


def test_a_call_leaves_nothing_below_the_stack(tmp_path: Path, model: CodeModel) -> None:
    image = assembled(tmp_path, "mov %rbx, -16(%rsp)\nmov %edi, %ebx\ncall g\nret")
    fde, table = followed(image, model)
    at = fde.start + 7
    inside, during = table.row(at), table.row(at, called=True)
    assert inside is not None
    assert during is not None
    assert inside.rules[RBX] == Offset(-24)
    assert during.rules[RBX] == Undefined()


def test_a_return_address_that_was_taken_off_the_stack_is_where_it_went(
    tmp_path: Path, model: CodeModel
) -> None:
    """glibc's vfork: its child has written over the word below the stack by the time we look."""
    image = assembled(tmp_path, "pop %rdi\nmov $58, %eax\nsyscall\npush %rdi\nret")
    fde, table = followed(image, model)
    assert model.return_address == 16
    places = [fde.start + at for at in (0, 1, 8, 9)]  # before pop, behind it, behind syscall, push
    found = [table.row(vaddr) for vaddr in places]
    away = [row.rules[16] for row in found if row is not None]
    assert away == [Offset(-8), InRegister(RDI), InRegister(RDI), Offset(-8)]


def test_rows_span_what_they_hold_for(tmp_path: Path, model: CodeModel) -> None:
    image = assembled(tmp_path, "xor %eax, %eax\nxor %edx, %edx\npush %rbx\npop %rbx\nret")
    fde, table = followed(image, model)
    first, second = table.row(fde.start), table.row(fde.start + 2)
    assert first is not None
    assert second is not None
    assert (first.start, first.end) == (second.start, second.end) or first.end == second.start
    assert first.cfa == second.cfa == CfaRegister(RSP, 8)
    pushed = table.row(fde.start + 5)
    assert pushed is not None
    assert pushed.cfa == CfaRegister(RSP, 16)
    assert (pushed.start, pushed.end) == (fde.start + 5, fde.start + 6)


def test_a_probing_loop_has_its_cfa_from_the_limit(tmp_path: Path, model: CodeModel) -> None:
    """In the loop the stack pointer is another one each time, which one round would not show."""
    program = PROGRAMS["a_loop_that_probes_each_page"]
    fde, table = followed(assembled(tmp_path, program), model)
    within = table.row(fde.start + 8)
    assert within is not None
    assert within.cfa == CfaRegister(R11, 65544)


def test_where_paths_meet_the_cfa_is_where_it_was_saved(tmp_path: Path, model: CodeModel) -> None:
    program = """
        lea 8(%rsp), %r10
        and $-32, %rsp
        push -8(%r10)
        push %rbp
        mov %rsp, %rbp
        push %r10
        sub %rax, %rsp
        test %edi, %edi
        je 1f
        mov %rsi, %r10
1:      ud2
    """
    fde, table = followed(assembled(tmp_path, program), model)
    row = table.row(fde.end - 2)
    assert row is not None
    assert row.cfa == CfaExpression(code(breg(RBP, -8), (DW_OP.deref,)))


def test_where_the_stack_came_from_nowhere_there_is_no_row(
    tmp_path: Path, model: CodeModel
) -> None:
    fde, table = followed(assembled(tmp_path, "mov %rdi, %rsp\npush %rax\njmp *%rsi"), model)
    assert table.row(fde.start) is not None
    assert table.row(fde.start + 3) is None


def test_what_nothing_leads_to_is_a_guess(tmp_path: Path, model: CodeModel) -> None:
    program = "push %rbx\njmp *(%rsi, %rdi, 8)\npop %rbx\nret"
    fde, table = followed(assembled(tmp_path, program), model)
    before, behind = table.state(fde.start + 1), table.state(fde.start + 4)
    assert before is not None
    assert behind is not None
    assert not before.guessed
    assert behind.guessed
    assert table.orphans


def test_code_that_pops_more_than_was_pushed_is_a_part(tmp_path: Path, model: CodeModel) -> None:
    _, whole = followed(assembled(tmp_path, "push %rbx\npop %rbx\nret"), model)
    _, part = followed(assembled(tmp_path, "pop %rbx\npop %rbp\nret"), model)
    assert whole.odd == 0
    assert part.odd > 0
