"""Functions found and followed where nobody tells: compilers' programs, compared with CFI."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import Any

import pytest

from tests.elves import library
from tests.support import cannot, need, run
from tools.agreement import compare
from unwind.arch.x86_64 import ARCH
from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.functions import Functions
from unwind.image import Image
from unwind.judge import Judge
from unwind.rules import CfaRegister, Row
from unwind.starts import FoundStarts, Starts, find
from unwind.symtab import STT
from unwind.testing.elf_files import Seg, make_elf

RSP, R10 = 7, 10
pytest.importorskip("capstone")
MODEL = ARCH.code_model() if ARCH.code_model is not None else None

# One of each kind of function that compilers make something of their own of.
SOURCE = r"""
#include <alloca.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALONE __attribute__((noinline, noclone))
int sink;

ALONE int leaf(int n)
{
    volatile int red[8];
    red[n & 7] = n;
    return red[n & 7];
}

ALONE __attribute__((noreturn, cold)) void fail(int n)
{
    printf("%d\n", n);
    exit(n);
}

ALONE int early(int n, char *s)
{
    if (n == 0)
        return -1;
    sink += leaf(n);
    if (s == 0)
        return sink;
    sink += leaf(n + 1) + n;
    return strlen(s) + n;
}

ALONE int grows(int n)
{
    char *p = alloca(n);
    memset(p, n, n);
    return leaf(p[n / 2]);
}

ALONE int aligned(int n)
{
    _Alignas(64) char b[128];
    memset(b, n, 128);
    return leaf(b[n & 63]) + n;
}

ALONE int aligned_and_grows(int n)
{
    _Alignas(64) char b[64];
    char *p = alloca(n);
    memset(b, n, 64), memset(p, n, n);
    return leaf(b[n & 7] + p[n / 2]) + n;
}

ALONE int large(int n)
{
    char b[70000];
    memset(b, n, sizeof b);
    return leaf(b[n]) + n;
}

ALONE int many(int a, int b, int c, int d, int e, int f, int g, int h, int i)
{
    return leaf(a) + leaf(b) * c + leaf(d) * e + leaf(f) + leaf(g) * h + i;
}

ALONE int calls_many(int n)
{
    return many(n, 2, n, 4, 5, n, 7, n, 9) + many(1, 2, n, n, 5, 6, n, 8, n);
}

ALONE int switches(int n, int m)
{
    switch (n) {
    case 0: return leaf(m) + 1;
    case 1: return leaf(m + 1) * 3 + m;
    case 2: return leaf(m + 7) * 5;
    case 3: sink = m; return leaf(m * 9);
    case 4: return leaf(m - 1) - 2;
    case 5: return leaf(m ^ 5) / 3;
    case 6: if (m > 100) fail(m); return leaf(m);
    default: return early(m, "default");
    }
}

ALONE int dies(int n)
{
    if (n > 1000) {
        leaf(n);
        fail(n);
    }
    return leaf(n) + n;
}

ALONE int tail(int n, char *s)
{
    sink += leaf(n);
    return early(n + 1, s);
}

ALONE __attribute__((noreturn, aligned(1))) void gives_up(int n)
{
    for (;;)
        fail(leaf(n));
}

/* Nothing leads here but a pointer that code makes. */
static __attribute__((aligned(1))) int pointed(const void *a, const void *b)
{
    return leaf(*(const int *)a - *(const int *)b) + sink;
}

static int first(int n) { return leaf(n) + 1; }
static int second(int n) { sink += n; return leaf(n) + sink; }
int (*table[])(int) = {first, second};

ALONE double floats(double a, int n)
{
    return a > 1 ? a * leaf(n) + leaf(n + 1) : a;
}

int main(int argc, char **argv)
{
    int n = argc;
    if (early(n, argv[0]) > 10000)
        fail(n);
    n += grows(n) + aligned(n) + aligned_and_grows(n) + large(n) + calls_many(n);
    if (n > 100000)
        gives_up(n);
    qsort(&sink, 1, sizeof sink, pointed);
    n += switches(argc, n) + dies(n) + tail(n, argv[0]);
    n += table[argc & 1](n) + floats(n, n);
    return n & 1;
}
"""
COMPILERS = {
    "gcc -O0": ("gcc", "-O0"),
    "gcc -O1": ("gcc", "-O1"),
    "gcc -O2": ("gcc", "-O2"),
    "gcc -O3": ("gcc", "-O3"),
    "gcc -Os": ("gcc", "-Os"),
    "gcc -O2 with frame pointers": ("gcc", "-O2", "-fno-omit-frame-pointer"),
    "gcc -O2 no-pie": ("gcc", "-O2", "-no-pie", "-fno-pie"),
    "gcc -O0 no-pie": ("gcc", "-O0", "-no-pie", "-fno-pie"),
    "gcc -Og realigned": ("gcc", "-Og", "-mstackrealign", "-no-pie", "-fno-pie"),
    "gcc -O2 probes": ("gcc", "-O2", "-fstack-clash-protection"),
    "gcc -O2 protected": ("gcc", "-O2", "-fstack-protector-all", "-fcf-protection"),
    "clang -O0": ("clang", "-O0"),
    "clang -O2": ("clang", "-O2"),
    "clang -O2 probes": ("clang", "-O2", "-fstack-clash-protection"),
    "clang -Os with frame pointers": ("clang", "-Os", "-fno-omit-frame-pointer"),
}


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program above by one compiler."""
    compiler, *options = COMPILERS[request.param]
    need(compiler)
    if "x86_64" not in run(compiler, "-dumpmachine").stdout:
        cannot(f"{compiler} makes no x86_64 code")
    directory = tmp_path_factory.mktemp("functions")
    (directory / "a.c").write_text(SOURCE)
    done = run(compiler, *options, "-w", "a.c", "-o", "a.out", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "a.out"


def test_rows_agree_with_the_compilers_cfi_at_every_instruction(program: Path) -> None:
    entry = Elf(program.read_bytes()).header.entry  # it has no caller, which no code tells
    result = compare(str(program))
    wrong = [
        d
        for d in result.differences
        if d.function != entry
        and "(PLT)" not in d.what
        # gcc's own mistake: where it realigned the stack, registers are said to lie below rbp
        # even behind the `pop rbp`.
        and not (d.cfi == d.code == str(CfaRegister(R10, 0)) and "epilogue" in d.what)
        and not (d.text.startswith(("ret", "nop")) and "epilogue" in d.what)
    ]
    assert [f"{d.vaddr:#x} {d.text}: {d.what}: {d.cfi}, {d.code}" for d in wrong] == []
    assert result.calls > 20


def test_starts_that_nobody_tells_are_found(program: Path) -> None:
    assert MODEL is not None
    image = Image(Elf(program.read_bytes()))
    functions, parts = find(image, MODEL, disassembler(MODEL), untold=True)
    fdes = sorted(
        (entry.start, entry.end)
        for section in image.frame_sections
        for entry in section.entries()
        if isinstance(entry, Fde)
    )
    names = {s.vaddr: s.name for s in image.symbols if s.kind == STT.FUNC}
    whole = {start for start, _ in fdes if start in names and ".cold" not in names[start]}
    assert len(whole) > 15
    assert whole <= functions | parts
    inside = [
        names.get(fdes[at][0])
        for start in functions
        if (at := bisect_right(fdes, (start, 1 << 64)) - 1) >= 0
        and fdes[at][0] < start < fdes[at][1]
        and fdes[at][0] in names
    ]
    assert inside == [], "and no function is cut in two"


@pytest.mark.parametrize(
    "flags", ["-fasynchronous-unwind-tables", "-fno-asynchronous-unwind-tables"]
)
def test_fdes_and_names_tell_of_which_function_a_part_is(tmp_path: Path, flags: str) -> None:
    """Compilers name a part after its function."""
    need("gcc")
    (tmp_path / "a.c").write_text(SOURCE)
    run("gcc", "-O2", "-w", flags, "a.c", "-o", "a.out", cwd=tmp_path).check_returncode()
    image = Image(Elf((tmp_path / "a.out").read_bytes()))
    assert MODEL is not None
    starts = FoundStarts(image, MODEL, disassembler(MODEL))
    named = {symbol.name: symbol.vaddr for symbol in image.symbols if symbol.kind == STT.FUNC}
    parts = {vaddr: name for name, vaddr in named.items() if name.endswith(".cold")}
    assert len(parts) > 1
    described = any(section.find(min(parts)) for section in image.frame_sections)
    assert described == ("no-" not in flags)
    for part, name in parts.items():
        assert starts.around(part) is not None
        assert set(starts.whole_of(part)) == {named[name.removesuffix(".cold")]}


def test_with_no_start_told_nearly_all_calls_have_the_right_row(program: Path) -> None:
    result = compare(str(program), told=False)
    assert result.agreed_calls >= result.calls - 3, "parts that follow a call of an unknown exit"


def test_most_of_the_c_library_agrees() -> None:
    """A sample of libc's functions: as many places as are looked at in a few seconds."""
    assert MODEL is not None
    path = library("libc.so.6")
    image = Image(Elf(path.read_bytes(), str(path)))
    if image.elf.machine_name().lower() != "x86_64" and image.elf.header.machine != 62:
        cannot(f"{path} is for another processor")
    fdes = [f for s in image.frame_sections for f in s.entries() if isinstance(f, Fde)]
    starts = Starts(image, [f.start for f in fdes])
    functions = Functions(image, MODEL, disassembler(MODEL), starts)
    judge = Judge(ARCH, MODEL)
    places = calls = agreed = agreed_calls = 0
    for fde in fdes[::8]:
        for vaddr, _size, mnemonic, _ in functions.disassemble(
            bytes(image.at(fde.start, fde.end - fde.start)), fde.start
        ):
            called = mnemonic in MODEL.calls
            table = functions.table(vaddr)
            assert table is not None
            verdict = judge.difference(
                _row(fde, vaddr), table.state(vaddr, called), table.row(vaddr, called), vaddr
            )
            places += 1
            agreed += verdict is None
            calls += called
            agreed_calls += called and verdict is None
    assert places > 20_000
    assert agreed_calls >= 0.995 * calls
    assert agreed >= 0.98 * places


_TABLES: dict[int, list[Row]] = {}


def _row(fde: Fde, vaddr: int) -> Row:
    table = _TABLES.get(fde.start)
    if table is None:
        table = _TABLES[fde.start] = list(rows(fde, ARCH.vendor_opcodes))
    return next(row for row in table if row.start <= vaddr < row.end)


def test_of_very_much_code_only_what_is_around_a_place_is_looked_through() -> None:
    """Debian's chromium has 228 MB of code, no CFI and no symbols: all of it took three minutes."""
    assert MODEL is not None
    # push rbx; sub rsp, 16; call the next one; add rsp, 16; pop rbx; ret; int3
    one = bytes.fromhex("53 4883ec10 e816000000 4883c410 5b c3")
    one = one.ljust(32, b"\xcc")
    code = one * ((20 << 20) // len(one))
    image = Image(Elf(bytes(make_elf([Seg(vaddr=0x400000, data=code)]))))
    disassemble, looked = disassembler(MODEL), [0]

    def counted(code: bytes, vaddr: int) -> Any:
        looked[0] += len(code)
        return disassemble(code, vaddr)

    functions = Functions(image, MODEL, counted, FoundStarts(image, MODEL, counted))
    for place in (0x400000, 0x400000 + (7 << 20), 0x400000 + len(code) - 32):
        assert functions.bounds(place + 10) == (place, place + 32)
        table = functions.table(place + 10)
        row = table.row(place + 10) if table is not None else None
        assert row is not None
        assert row.cfa == CfaRegister(RSP, 32)
    assert 0 < looked[0] < 4 << 20


def test_init_and_fini_begin_where_the_dynamic_section_says(tmp_path: Path) -> None:
    """crti.o brings them, with neither CFI nor, once stripped, a symbol."""
    need("gcc", "strip")
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    run("gcc", "-O2", "main.c", "-o", "main", "-s", cwd=tmp_path).check_returncode()
    image = Image(Elf((tmp_path / "main").read_bytes()))
    assert MODEL is not None
    starts = FoundStarts(image, MODEL, disassembler(MODEL))
    functions = Functions(image, MODEL, disassembler(MODEL), starts)
    for name in (".init", ".fini"):
        section = image.elf.section(name)
        assert section is not None
        assert starts.around(section.vaddr + 4) == (section.vaddr, section.vaddr + section.size)
        table = functions.table(section.vaddr + 4)  # behind sub $8, %rsp
        row = table.row(section.vaddr + 4, False) if table is not None else None
        assert row is not None
        assert row.cfa == CfaRegister(7, 16)


RESOLVER = r"""
    .text
    .globl resolver, other
    .type resolver, @function
resolver:
    push %rbx
    mov %rsp, %rbx
    and $-64, %rsp
    call other
    mov %rax, %r11
    mov %rbx, %rsp
    mov (%rsp), %rbx
    add $24, %rsp
    jmp *%r11
    .size resolver, . - resolver
    .type other, @function
other:
    ret
    .size other, . - other
"""


def test_what_a_resolver_takes_away_was_pushed_before_it(tmp_path: Path) -> None:
    """ld.so's _dl_runtime_resolve is entered with two words above the return address."""
    need("gcc")
    (tmp_path / "f.s").write_text(RESOLVER)
    run("gcc", "-shared", "-nostdlib", "f.s", "-o", "f.so", cwd=tmp_path).check_returncode()
    image = Image(Elf((tmp_path / "f.so").read_bytes()))
    assert MODEL is not None
    disassemble = disassembler(MODEL)
    functions = Functions(image, MODEL, disassemble, FoundStarts(image, MODEL, disassemble))
    [start] = [symbol.vaddr for symbol in image.symbols if symbol.name == "resolver"][:1]
    table = functions.table(start)
    assert table is not None
    assert table.start == start
    rows = [table.row(start + n, False) for n in (0, 1)]
    assert [row and row.cfa for row in rows] == [CfaRegister(7, 24), CfaRegister(7, 32)]
