"""The x86_64 table, held against objdump, the kernel's headers and a compiler's own words."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import need, run
from unwind.arch.x86_64 import ARCH

_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$", re.M)


@pytest.fixture(scope="module")
def libc() -> str:
    """The libc that Python itself runs with."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if path.rpartition("/")[2].startswith("libc.so"):
            return path
    pytest.skip("Python runs without libc.so")


@pytest.fixture(scope="module")
def disassembly(libc: str) -> list[tuple[int, bytes, str]]:
    """Address, bytes and text of every instruction of libc's .text."""
    need("objdump")
    output = run("objdump", "-d", "-w", "--section=.text", libc).stdout
    return [
        (int(address, 16), bytes.fromhex(code), text.strip())
        for address, code, text in _INSTRUCTION.findall(output)
    ]


def test_every_call_in_libc_is_seen_before_its_return_address(
    disassembly: list[tuple[int, bytes, str]],
) -> None:
    calls = 0
    before = b""
    for _, code, text in disassembly:
        before = (before + code)[-16:]
        if re.match(r"(?:bnd |notrack |addr32 |data16 |rex\.\w+ )*call", text):
            calls += 1
            assert ARCH.follows_call(before[-ARCH.call_window :]), f"{code.hex()} {text}"
    assert calls > 5_000


def test_few_other_places_in_libc_seem_to_follow_a_call(
    disassembly: list[tuple[int, bytes, str]],
) -> None:
    others = wrong = 0
    before = b""
    for _, code, text in disassembly:
        before = (before + code)[-16:]
        if "call" not in text:
            others += 1
            wrong += ARCH.follows_call(before[-ARCH.call_window :])
    assert wrong < others / 100, f"{wrong} of {others}"


@pytest.mark.parametrize(
    "code",
    ["", "e8", "ff", "ffd0ff", "ff25aabbccdd", "ff1500112233ff"],
    ids=["nothing", "too short", "half", "cut", "a jump", "one byte on"],
)
def test_bytes_that_end_in_no_call(code: str) -> None:
    assert not ARCH.follows_call(bytes.fromhex(code))


def test_register_numbers_are_those_a_compiler_writes(tmp_path: Path) -> None:
    need("gcc", "readelf")
    general = [ARCH.names[n] for n in range(16)]
    program = "".join(f".cfi_offset {name}, -{16 + 8 * n}\n" for n, name in enumerate(general))
    source = f".text\nf:\n.cfi_startproc\n{program}ret\n.cfi_endproc\n"
    (tmp_path / "f.s").write_text(source)
    subprocess.run(["gcc", "-c", "f.s", "-o", "f.o"], cwd=tmp_path, check=True)
    printed = run("readelf", "--debug-dump=frames", str(tmp_path / "f.o")).stdout
    found = re.findall(r"DW_CFA_offset: r(\d+) \((\w+)\)", printed)
    assert {(int(n), name) for n, name in found if int(n) < 16} >= set(enumerate(general))


def test_prstatus_offsets_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    need("gcc")
    layout = ARCH.layouts["linux.prstatus"]
    fields = {"r15": 15, "rbp": 6, "rsp": 7, "rip": 16, "rax": 0, "orig_rax": 4096, "fs_base": 58}
    lines = "".join(
        f'printf("%d %zu\\n", {number}, offsetof(struct elf_prstatus, pr_reg) '
        f"+ offsetof(struct user_regs_struct, {name}));\n"
        for name, number in fields.items()
    )
    (tmp_path / "p.c").write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <sys/procfs.h>\n#include <sys/user.h>\n"
        f"int main(void) {{\n{lines}"
        'printf("size %zu\\n", sizeof(struct elf_prstatus));\n'
        'printf("pid %zu\\n", offsetof(struct elf_prstatus, pr_pid));\n'
        'printf("signal %zu\\n", offsetof(struct elf_prstatus, pr_cursig));\n}\n'
    )
    subprocess.run(["gcc", "p.c", "-o", "p"], cwd=tmp_path, check=True)
    said = dict(line.split() for line in run(str(tmp_path / "p")).stdout.splitlines())
    assert {n: layout.offsets[n] for n in fields.values()} == {
        n: int(said[str(n)]) for n in fields.values()
    }
    assert (layout.size, layout.pid, layout.signal) == tuple(
        int(said[name]) for name in ("size", "pid", "signal")
    )


def test_what_a_call_may_change_is_lost_and_what_it_keeps_is_not() -> None:
    kept = {"rbx", "rbp", "r12", "r13", "r14", "r15"}  # x86-64 psABI 1.0 fig. 3.4
    lost = {ARCH.names[n] for n in range(17)} - kept - {"rsp", "rip"}
    assert {ARCH.names[n] for n in ARCH.defaults if n < 17} == lost | {"rsp"}
