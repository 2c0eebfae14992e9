"""Rows from arm64 code: what gas assembled in, the rows that hold there out."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.support import need, run
from tests.test_arm64 import disassembly, gcc
from tools.agreement import compare
from unwind.arch.arm64 import ARCH, SP, X19, X29, X30
from unwind.disassembly import disassembler
from unwind.elf import Elf
from unwind.emulate import Table, emulate
from unwind.image import Image
from unwind.rules import CfaRegister, InRegister, Offset, Row

pytest.importorskip("capstone")
MODEL = ARCH.code_model() if ARCH.code_model is not None else None


def table_of(directory: Path, source: str) -> Table:
    """The table of the one function that `source` assembles to."""
    assert MODEL is not None
    path = gcc(directory, f".arch armv8.5-a+sve\n{source}", "-c", name="f.s")
    code = b"".join(word for _, word, _ in disassembly(path))
    return emulate(MODEL, disassembler(MODEL)(code, 0))


def rows_of(directory: Path, source: str) -> list[Row | None]:
    """The row before each instruction of a function."""
    table = table_of(directory, source)
    return [table.row(vaddr) for vaddr in range(0, table.end, 4)]


def cfas(rows: list[Row | None]) -> list[tuple[int, int] | None]:
    """The CFAs as (register, offset)."""
    return [
        (row.cfa.number, row.cfa.offset)
        if row is not None and isinstance(row.cfa, CfaRegister)
        else None
        for row in rows
    ]


def test_a_frame_record_at_the_bottom(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        paciasp
        stp x29, x30, [sp, #-48]!
        mov x29, sp
        stp x19, x20, [sp, #16]
        mov x19, x0
        ldp x19, x20, [sp, #16]
        ldp x29, x30, [sp], #48
        retaa
        """,
    )
    assert cfas(rows) == [(SP, 0)] * 2 + [(SP, 48)] + [(X29, 48)] * 4 + [(SP, 0)]
    assert [row and row.rules.get(X30) for row in rows][2:] == [Offset(-40)] * 5 + [None]
    assert rows[5] is not None
    saved = {X19: Offset(-32), X19 + 1: Offset(-24), X29: Offset(-48), X30: Offset(-40)}
    assert rows[5].rules == saved


def test_a_slot_stands_for_a_register_that_changes_further_down_in_a_loop(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        stp x29, x30, [sp, #-32]!
        str x19, [sp, #16]
    1:  cbz x0, 2f
        bl f
        mov x19, x0
        b 1b
    2:  ldr x19, [sp, #16]
        ldp x29, x30, [sp], #32
        ret
        """,
    )
    assert rows[2] is not None
    assert rows[2].rules == {X19: Offset(-16), X29: Offset(-32), X30: Offset(-24)}
    assert rows[8] is not None
    assert rows[8].rules == {}


def test_a_call_under_way_has_lost_the_link_register(tmp_path: Path) -> None:
    table = table_of(tmp_path, "mov x19, x30\nbl f\nmov x30, x19\nret\n")
    here, called = table.row(4), table.row(4, called=True)
    assert here is not None
    assert called is not None
    assert (here.rules.get(X30), called.rules.get(X30)) == (None, InRegister(X19))


@pytest.mark.parametrize(
    ("grow", "shrink", "size"),
    [
        ("sub sp, sp, #4080", "add sp, sp, #4080", 4080),
        ("sub sp, sp, #1, lsl #12", "add sp, sp, #1, lsl #12", 4096),
        ("mov x12, #0x2340\nmovk x12, #1, lsl #16\nsub sp, sp, x12", "add sp, sp, x12", 0x12340),
        ("mov x9, #0x10000\nsub sp, sp, x9", "add sp, sp, x9", 0x10000),
        ("mov w16, #32\nsub sp, sp, x16, lsl #3", "add sp, sp, x16, lsl #3", 256),
        ("str x19, [sp, #-32]!", "ldr x19, [sp], #32", 32),
        ("stp d8, d9, [sp, #-64]!", "ldp d8, d9, [sp], #64", 64),
        ("str q8, [sp], #-16", "ldr q8, [sp, #16]!", 16),
    ],
)
def test_the_stack_grows_and_shrinks_in_many_ways(
    tmp_path: Path, grow: str, shrink: str, size: int
) -> None:
    rows = rows_of(tmp_path, f"{grow}\nnop\n{shrink}\nret\n")
    assert cfas(rows)[-3:] == [(SP, size), (SP, size), (SP, 0)]


def test_a_stack_pointer_of_unknown_size_leaves_the_frame_pointer(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        sub sp, sp, #32
        stp x29, x30, [sp, #16]
        add x29, sp, #16
        sub sp, sp, x0
        bl f
        sub sp, x29, #16
        ldp x29, x30, [sp, #16]
        add sp, sp, #32
        ret
        """,
    )
    assert cfas(rows) == [
        *[(SP, 0), (SP, 32), (SP, 32), (X29, 16), (X29, 16), (X29, 16), (X29, 16), (SP, 32)],
        (SP, 0),
    ]


def test_a_realigned_stack_hangs_on_the_frame_pointer(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        stp x29, x30, [sp, #-16]!
        mov x29, sp
        sub x9, sp, #80
        and sp, x9, #0xffffffffffffffc0
        bl f
        mov sp, x29
        ldp x29, x30, [sp], #16
        ret
        """,
    )
    assert cfas(rows)[2:] == [(X29, 16)] * 5 + [(SP, 0)]


def test_a_return_address_in_another_register_is_found_there(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "mov x17, x30\nbl f\nnop\nmov x16, x30\nret x17\n")
    assert rows[1] is not None
    kept = rows_of(tmp_path, "mov x19, x30\nbl f\nmov x30, x19\nret\n")
    assert kept[2] is not None
    assert kept[2].rules[X30] == InRegister(X19)


def test_a_shadow_call_stack_is_followed(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        str x30, [x18], #8
        stp x29, x30, [sp, #-16]!
        mov x29, sp
        bl f
        ldp x29, x30, [sp], #16
        ldr x30, [x18, #-8]!
        ret
        """,
    )
    assert cfas(rows) == [(SP, 0)] * 2 + [(SP, 16)] + [(X29, 16)] * 2 + [(SP, 0)] * 2
    assert rows[4] is not None
    assert rows[4].rules[X30] == Offset(-8)
    assert rows[6] is not None
    assert X30 not in rows[6].rules


def test_code_behind_an_epilogue_has_its_row_again(tmp_path: Path) -> None:
    rows = rows_of(
        tmp_path,
        """
        stp x29, x30, [sp, #-32]!
        tbz w0, #3, 1f
        cbnz x1, 1f
        ldp x29, x30, [sp], #32
        ret
        1: bl f
        ldp x29, x30, [sp], #32
        b f
        """,
    )
    assert cfas(rows) == [(SP, 0), *[(SP, 32)] * 3, (SP, 0), (SP, 32), (SP, 32), (SP, 0)]


def test_what_follows_a_call_that_does_not_return_has_the_row_of_a_jump(tmp_path: Path) -> None:
    """glibc's __wcscpy_chk: a `ret` with a frame, were it reached from the call before it."""
    assert MODEL is not None
    source = """
        b 2f
    1:  cbz x0, 3f
    2:  cbnz x1, 1b
        stp x29, x30, [sp, #-16]!
        bl fails
    3:  ret
        .set fails, . + 64
        """
    path = gcc(tmp_path, f".arch armv8.5-a\n{source}", "-c", name="f.s")
    code = b"".join(word for _, word, _ in disassembly(path))
    instructions = disassembler(MODEL)(code, 0)
    asked = []

    def never(called: set[int]) -> set[int]:
        asked.append(called)
        return called

    last = [emulate(MODEL, instructions, never=each).row(20) for each in (None, never)]
    assert cfas(last) == [(SP, 16), (SP, 0)]
    assert asked == [{24 + 64}]


def test_what_overwrites_a_slot_loses_what_it_held(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "str x19, [sp, #-16]!\nmov x19, #1\nstrb w1, [sp, #3]\nnop\nret\n")
    assert rows[2] is not None
    assert rows[2].rules[X19] == Offset(-16)
    assert rows[3] is not None
    assert rows[3].rules[X19] != Offset(-16)


SOURCE = r"""
#include <stdlib.h>
#include <string.h>
int g(int, ...); void *h(void *, void *);
int leaf(int x) { return x * 3; }
int calls(int x) { return g(x) + g(x + 1) * leaf(x); }
int large(int x) { char b[70000]; h(b, b); return b[x]; }
int larger(int x) { char b[5000000]; h(b, b); return b[x]; }
int sized(int x) { char b[x]; h(b, b); return g(b[0]); }
int aligned(int x) { char b[64] __attribute__((aligned(64))); h(b, b); return b[x]; }
int many(int a, int b, int c, int d, int e, int f, int i, int j, int k, int l) {
  int s = 0;
  for (int n = 0; n < a; n++) s += g(a, b, c, d, e, f, i, j, k, l) * g(n) + s * k;
  return s;
}
int early(int *p) { if (!p) return 1; int x = g(*p); if (x < 3) abort(); return g(x) + x; }
int choose(int x, int y) {
  switch (x) {
    case 0: return g(y); case 1: return y; case 2: return g(y) * g(x); case 3: y = g(1); break;
    case 4: return y * 7; case 5: h(0, &x); return x; case 6: abort(); case 7: return g(2) + y;
    case 8: y = leaf(y); break; case 9: return 12;
  }
  return g(x, y);
}
double floats(double a, double b) { double c = g(a), d = g(b); g(3); return a * c + b * d; }
"""


@pytest.mark.parametrize("protect", ["none", "standard", "pac-ret+leaf+b-key"])
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3", "-Os", "-O2 -fomit-frame-pointer"])
def test_rows_from_a_compilers_code_agree_with_its_cfi(
    tmp_path: Path, level: str, protect: str
) -> None:
    options = ["-shared", "-fPIC", "-nostdlib", f"-mbranch-protection={protect}", *level.split()]
    result = compare(str(gcc(tmp_path, SOURCE, *options)))
    assert result.calls > 20
    assert result.share_of_calls == 1, result.differences
    assert result.share > 0.99, result.differences


def test_rows_from_clangs_code_agree_with_its_cfi(tmp_path: Path) -> None:
    need("clang", "ld.lld")
    (tmp_path / "p.c").write_text(SOURCE)
    argv = ["clang", "--target=aarch64-linux-gnu", "-O2", "-w", "-shared", "-fPIC", "-nostdlib"]
    made = run(*argv, "-fuse-ld=lld", "-isystem/usr/include", "p.c", "-o", "p", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    result = compare(str(tmp_path / "p"))
    # clang's CFI leaves out the rows within prologues and epilogues unless it must be asynchronous.
    assert result.share_of_calls == 1, result.differences


def test_no_code_breaks_the_model() -> None:
    assert MODEL is not None
    disassemble = disassembler(MODEL)
    pick = random.Random(64)
    for _ in range(300):
        words = []
        for _ in range(64):
            word = pick.getrandbits(32)
            if pick.random() < 0.5:  # something with the stack pointer or the frame record
                word = word & ~0x3FF | SP << 5 | pick.choice([X19, X29, X30, SP])
            words.append(word)
        table = emulate(MODEL, disassemble(struct.pack("<64I", *words), 0x1000))
        for vaddr in range(0x1000, 0x1100, 4):
            table.row(vaddr)
            table.row(vaddr, called=True)


def test_functions_are_found_by_the_code_alone(tmp_path: Path) -> None:
    assert MODEL is not None
    path = gcc(tmp_path, SOURCE, "-O2", "-shared", "-fPIC", "-nostdlib")
    elf = Elf(path.read_bytes(), str(path))
    image = Image(elf)
    section = elf.section(".text")
    assert section is not None
    found = set(MODEL.starts(image.at(section.vaddr, section.size), section.vaddr))
    functions = {image.symbols.named(name) for name in ("large", "many")}
    assert {symbol.vaddr for symbol in functions if symbol is not None} <= found
    stubs = elf.section(".plt")
    assert stubs is not None
    heads = set(MODEL.starts(image.at(stubs.vaddr, stubs.size), stubs.vaddr))
    assert {stubs.vaddr + 32 + 16 * n for n in range((stubs.size - 32) // 16)} <= heads


def test_a_function_is_found_by_its_address_behind_a_call(tmp_path: Path) -> None:
    assert MODEL is not None
    source = """
        .p2align 3
    f:  stp x29, x30, [sp, #-16]!
        adrp x9, g
        mov w0, #12
        mov x2, xzr
        add x1, x9, :lo12:g
        bl f
        bl f
    g:  adrp x3, f
        sub sp, sp, #32
        stp x30, x19, [sp, #16]
        bl f
        ldp x30, x19, [sp, #16]
        add sp, sp, #32
        ret
    """
    path = gcc(tmp_path, source, "-shared", "-nostdlib", name="f.s")
    elf = Elf(path.read_bytes(), str(path))
    section = elf.section(".text")
    assert section is not None
    code = Image(elf).at(section.vaddr, section.size)
    assert section.vaddr + 28 in MODEL.starts(code, section.vaddr)
