"""unwind-cfi --lint: faults in the CFI of hand-written code are found, sound CFI is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.elves import library
from tests.support import cannot, need, python, run
from unwind.elf import Elf

COMMAND = ("-m", "unwind.cli.cfi", "--lint")

# Each function is written as its name says. What is wrong is marked.
SOURCE = """
        .macro  function name
        .globl  \\name
        .type   \\name, @function
        .balign 16
\\name:
        .cfi_startproc
        .endm
        .macro  end name
        .cfi_endproc
        .size   \\name, . - \\name
        .endm
        .text

function two_epilogues
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbx, -16
        mov     %edi, %ebx
        test    %ebx, %ebx
        jz      1f
        .cfi_remember_state
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
        .cfi_restore_state
1:      call    returns
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
end two_epilogues

function forgets_to_restore_after_the_first_epilogue
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbx, -16
        mov     %edi, %ebx
        test    %ebx, %ebx
        jz      1f
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
1:      call    returns         # wrong: the CFA is rsp + 16 here
        pop     %rbx
        ret
end forgets_to_restore_after_the_first_epilogue

function forgets_where_rbx_is
        push    %rbx
        .cfi_adjust_cfa_offset 8
        mov     %edi, %ebx      # wrong from the next instruction on
        call    returns
        mov     %ebx, %eax
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
end forgets_where_rbx_is

function forgets_a_push
        push    %rbx
        mov     %edi, %ebx      # wrong
        call    returns
        pop     %rbx
        ret
end forgets_a_push

function claims_a_push_that_is_none
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbp, -16
        call    returns         # wrong: no rbp lies there
        add     $8, %rsp
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbp
        ret
end claims_a_push_that_is_none

function mixes_two_registers_up
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbp, -16
        push    %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbx, -24   # wrong: it is the other way round
        mov     %edi, %ebx
        mov     %esi, %ebp
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        call    returns
        add     $8, %rsp
        .cfi_adjust_cfa_offset -8
        pop     %rbp
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbp
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        .cfi_restore %rbx
        ret
end mixes_two_registers_up

function keeps_rsp_while_it_moves_by_an_unknown_size
        push    %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbp, -16
        mov     %rsp, %rbp      # and forgets def_cfa_register
        sub     %rdi, %rsp
        mov     %rsp, %rdi      # wrong
        call    returns
        leave
        .cfi_def_cfa %rsp, 8
        ret
end keeps_rsp_while_it_moves_by_an_unknown_size

function uses_a_frame_pointer
        push    %rbp
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbp, -16
        mov     %rsp, %rbp
        .cfi_def_cfa_register %rbp
        and     $-32, %rsp
        sub     %rdi, %rsp
        call    returns
        leave
        .cfi_def_cfa %rsp, 8
        ret
end uses_a_frame_pointer

function behind_a_call_that_does_not_return
        test    %edi, %edi
        jz      2f
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        call    never_returns
        .cfi_adjust_cfa_offset -8
        xor     %eax, %eax      # who reads only the code thinks that rsp is 8 lower here
2:      ret
end behind_a_call_that_does_not_return

function by_a_jump_table
        push    %rbx
        .cfi_adjust_cfa_offset 8
        .cfi_offset %rbx, -16
        mov     %rsi, %rbx
        jmp     *(%rsi, %rdi, 8)
        .cfi_remember_state
        pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
        .cfi_restore_state
        nop
        mov     %ebx, %eax
        jmp     3f
        push    %rax
        .cfi_adjust_cfa_offset 8
        call    returns
        pop     %rax
        .cfi_adjust_cfa_offset -8
3:      pop     %rbx
        .cfi_adjust_cfa_offset -8
        ret
end by_a_jump_table

function restores_another_stack
        .cfi_def_cfa %rdi, 0
        .cfi_offset %rbx, 0
        .cfi_offset %rip, 8
        .cfi_register %rsp, %rdx
        mov     16(%rdi), %rdx
        mov     8(%rdi), %rcx
        mov     (%rdi), %rbx
        mov     %rdx, %rsp
        jmp     *%rcx
end restores_another_stack

function probes_a_large_frame
        lea     -65536(%rsp), %r11
        .cfi_def_cfa %r11, 65544
4:      sub     $4096, %rsp
        orq     $0, (%rsp)
        cmp     %r11, %rsp
        jne     4b
        .cfi_def_cfa_register %rsp
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        call    returns
        add     $65544, %rsp
        .cfi_adjust_cfa_offset -65544
        ret
end probes_a_large_frame

function a_part_that_is_jumped_into
        .cfi_def_cfa_offset 48
        .cfi_offset %rbx, -16
        call    returns
        add     $32, %rsp
        .cfi_def_cfa_offset 16
        pop     %rbx
        .cfi_def_cfa_offset 8
        ret
end a_part_that_is_jumped_into

function returns
        ret
end returns

function never_returns
        ud2
end never_returns

        .section .note.GNU-stack, "", @progbits
"""

FOUND = {
    "forgets_to_restore_after_the_first_epilogue": ("CFA", "rsp + 8", "rsp + 16"),
    "forgets_where_rbx_is": ("rbx", "same value", "[CFA - 16]"),
    "forgets_a_push": ("CFA", "rsp + 8", "rsp + 16"),
    "claims_a_push_that_is_none": ("rbp", "[CFA - 16]", "same value"),
    "mixes_two_registers_up": ("rbp", "[CFA - 16]", "same value"),
    "keeps_rsp_while_it_moves_by_an_unknown_size": ("CFA", "rsp + 16", "rbp + 16"),
}


def findings(path: Path, *options: str) -> list[dict[str, str]]:
    done = python(*COMMAND, "--json", *options, path, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def linked(directory: Path, source: str, compiler: str = "gcc") -> Path:
    need(compiler)
    (directory / "source.S").write_text(source)
    done = run(compiler, "-nostdlib", "-shared", "source.S", "-o", "library.so", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "library.so"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of hand-written functions."""
    need("gcc")
    if "x86_64" not in run("gcc", "-dumpmachine").stdout:
        cannot("gcc makes no x86_64 code")
    return linked(tmp_path_factory.mktemp("lint"), SOURCE)


@pytest.fixture(scope="module")
def found(written: Path) -> dict[str, dict[str, str]]:
    """The findings by the function's name: there is one of each."""
    listed = findings(written)
    by_name = {each["function"]: each for each in listed}
    assert len(by_name) == len(listed), "one report for each fault"
    return by_name


@pytest.mark.parametrize("name", FOUND)
def test_a_fault_is_found_and_told_in_formulas(name: str, found: dict[str, dict[str, str]]) -> None:
    each = found[name]
    assert (each["what"], each["cfi"], each["code"]) == FOUND[name]
    assert each["section"] == "eh_frame"


def test_nothing_is_said_of_sound_cfi(found: dict[str, dict[str, str]]) -> None:
    assert set(found) == set(FOUND)


def test_a_report_spans_the_instructions_that_are_wrong(
    written: Path, found: dict[str, dict[str, str]]
) -> None:
    each = found["forgets_to_restore_after_the_first_epilogue"]
    start = int(each["start"], 16)
    code = Elf(written.read_bytes()).at(start, int(each["end"], 16) - start)
    assert code[0] == 0xE8, "from the call on"
    assert bytes(code[5:]) == b"\x5b", "to the pop, behind which the CFA is right again"


def test_a_person_reads_three_lines_for_each(written: Path) -> None:
    done = python(*COMMAND, written)
    assert done.returncode == 0, "it was done, whatever was found"
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * len(FOUND)
    at = next(n for n, line in enumerate(lines) if "forgets_where_rbx_is" in line)
    place, name = lines[at].split(" in ")
    start, end = (int(vaddr, 16) for vaddr in place.split(".."))
    assert start < end
    assert name == "forgets_where_rbx_is+0x3"
    assert lines[at + 1 : at + 3] == ["  CFI:  rbx = same value", "  code: rbx = [CFA - 16]"]


def test_an_address_chooses_one_function(written: Path, found: dict[str, dict[str, str]]) -> None:
    each = found["forgets_a_push"]
    assert findings(written, "--address", each["start"]) == [each]


def test_an_object_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    need("gcc")
    (tmp_path / "source.S").write_text("f:\n.cfi_startproc\nret\n.cfi_endproc\n")
    assert run("gcc", "-c", "source.S", cwd=tmp_path).returncode == 0
    done = python(*COMMAND, tmp_path / "source.o")
    assert (done.returncode, done.stdout) == (2, "")
    assert "linked" in done.stderr


def test_instructions_and_findings_exclude_each_other(written: Path) -> None:
    done = python(*COMMAND, "--raw", written)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_of_an_unknown_processor_nothing_can_be_told(written: Path, tmp_path: Path) -> None:
    data = bytearray(written.read_bytes())
    data[18:20] = (0x1234).to_bytes(2, "little")
    (tmp_path / "strange.so").write_bytes(data)
    done = python(*COMMAND, tmp_path / "strange.so")
    assert (done.returncode, done.stdout) == (2, "")


ARM64 = """
sound:
        .cfi_startproc
        stp     x29, x30, [sp, -32]!
        .cfi_def_cfa_offset 32
        .cfi_offset x29, -32
        .cfi_offset x30, -24
        str     x19, [sp, 16]
        .cfi_offset x19, -16
        mov     x19, x0
        bl      sound
        ldr     x19, [sp, 16]
        ldp     x29, x30, [sp], 32
        .cfi_restore x19
        .cfi_restore x29
        .cfi_restore x30
        .cfi_def_cfa_offset 0
        ret
        .cfi_endproc
forgets_x19:
        .cfi_startproc
        stp     x29, x30, [sp, -32]!
        .cfi_def_cfa_offset 32
        .cfi_offset x29, -32
        .cfi_offset x30, -24
        str     x19, [sp, 16]
        mov     x19, x0
        bl      sound
        ldr     x19, [sp, 16]
        ldp     x29, x30, [sp], 32
        .cfi_restore x29
        .cfi_restore x30
        .cfi_def_cfa_offset 0
        ret
        .cfi_endproc
"""

MIPS = """
        .set    noreorder
sound:
        .cfi_startproc
        addiu   $sp, $sp, -32
        .cfi_def_cfa_offset 32
        sw      $ra, 28($sp)
        .cfi_offset 31, -4
        sw      $s0, 24($sp)
        .cfi_offset 16, -8
        bal     sound
        move    $s0, $a0
        lw      $ra, 28($sp)
        lw      $s0, 24($sp)
        .cfi_restore 31
        .cfi_restore 16
        jr      $ra
        addiu   $sp, $sp, 32
        .cfi_endproc
forgets_s0:
        .cfi_startproc
        addiu   $sp, $sp, -32
        .cfi_def_cfa_offset 32
        sw      $ra, 28($sp)
        .cfi_offset 31, -4
        sw      $s0, 24($sp)
        bal     sound
        move    $s0, $a0
        nop
        lw      $ra, 28($sp)
        lw      $s0, 24($sp)
        .cfi_restore 31
        jr      $ra
        addiu   $sp, $sp, 32
        .cfi_endproc
"""


@pytest.mark.parametrize(
    ("compiler", "source", "register", "slot"),
    [
        ("aarch64-linux-gnu-gcc", ARM64, 19, "[CFA - 16]"),
        ("mipsel-linux-gnu-gcc", MIPS, 16, "[CFA - 8]"),
        ("mips-linux-gnu-gcc", MIPS, 16, "[CFA - 8]"),
    ],
)
def test_other_processors_have_faults_too(
    compiler: str, source: str, register: int, slot: str, tmp_path: Path
) -> None:
    (each,) = findings(linked(tmp_path, source, compiler))
    assert each["what"].endswith(str(register))
    assert (each["cfi"], each["code"]) == ("same value", slot)
    assert each["function"].startswith("forgets_")


# What is found on the machine this was written on; each was looked into, in the disassembly.
KNOWN = {
    # __mpn_addmul_1 and __mpn_submul_1 push rbx and rbp without a word of CFI.
    "libc.so.6": ("93ac61ec5a8eb1396f9fbd350e3169a558528a40", ["0x4c6e1", "0x4e141"]),
    "libstdc++.so.6": ("289ee39f8c07bd4fa48102dfeeb7e6f9c76158b4", []),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_machines_libraries_have_the_known_faults_and_no_others(name: str) -> None:
    path = library(name)
    build_id, starts = KNOWN[name]
    with path.open("rb") as file:
        own = Elf(file.read()).build_id
    if own is None or own.hex() != build_id:
        cannot(f"{path} is another one than was looked into")
    assert [each["start"] for each in findings(path)] == starts
