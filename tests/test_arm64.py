"""The arm64 table, held against objdump, the kernel's headers, gas and the processor's rules."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cores import Core, Load
from tests.support import need, run
from tests.worlds import BIAS, STACK, World
from unwind.arch.arm64 import ARCH, PC, PSTATE, SP, X0, X19, X28, X29, X30
from unwind.dwarf.instructions import Instruction
from unwind.files import Files
from unwind.frames import End, Trust
from unwind.memory import Span
from unwind.methods import default_sources
from unwind.registers import Registers
from unwind.rules import CfaExpression, CfaRegister, Offset, Origin, Row
from unwind.space import Region
from unwind.step import apply
from unwind.testing.assembler import (
    CIE,
    FDE,
    breg,
    code,
    def_cfa,
    def_cfa_offset,
    negate_ra_state,
    offset,
    undefined,
)
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder, unwind

_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t([0-9a-f]{8}) \t(.*)$", re.M)
BL = bytes.fromhex("00000094")
CODE = 0x2A << 48  # an authentication code
TAG = 0x5B << 56
_CIE = CIE([def_cfa(SP, 0)], code_align=4, return_address=X30)
_SIGNAL_CIE = CIE([def_cfa(SP, 0)], augmentation="zRS", code_align=4, return_address=X30)
_GUESSES = {Trust.EMULATION}


def gcc(directory: Path, source: str, *options: str, name: str = "p.c") -> Path:
    """The program or object that the cross compiler makes of some source."""
    need("aarch64-linux-gnu-gcc")
    (directory / name).write_text(source)
    argv = ["aarch64-linux-gnu-gcc", "-w", *options, name, "-o", "p"]
    subprocess.run(argv, cwd=directory, check=True)
    return directory / "p"


def said(program: Path) -> dict[str, int]:
    """What a program prints under qemu-user, as names and numbers."""
    need("qemu-aarch64-static")
    output = run("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", program).stdout
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


def disassembly(path: Path | str) -> list[tuple[int, bytes, str]]:
    """Address, bytes and text of every instruction in an object's .text."""
    need("aarch64-linux-gnu-objdump")
    output = run("aarch64-linux-gnu-objdump", "-d", "-w", "--section=.text", path).stdout
    return [
        (int(address, 16), int(word, 16).to_bytes(4, "little"), text)
        for address, word, text in _INSTRUCTION.findall(output)
    ]


def walk(world: World, *without: str) -> list[tuple[int, str]]:
    """The frames of a world as (pc, trust); pcs in the module as vaddrs."""
    snapshot = world.snapshot()
    sources = [source for source in default_sources(ARCH) if source.trust not in without]
    stack = Unwinder(ARCH, sources).unwind(snapshot)
    return [(f.pc - BIAS if 0 <= f.pc - BIAS < 0x10000 else f.pc, f.trust) for f in stack.frames]


def world(*entries: FDE, stack: list[int], calls: tuple[int, ...] = (), **options: object) -> World:
    """An arm64 World with a call before each of the vaddrs `calls`."""
    texts = {vaddr - 4: BL for vaddr in calls}
    given = dict(options)
    texts |= given.pop("code", {})  # type: ignore[call-overload]
    return World(entries, texts, stack=stack, arch=ARCH, **given)  # type: ignore[arg-type]


def record(words: int) -> list[Instruction]:
    """The CFI of a frame of some words with gcc's record at its bottom."""
    return [def_cfa_offset(8 * words), offset(X29, words), offset(X30, words - 1)]


# The table ---------------------------------------------------------------------------------------


def test_register_numbers_and_names_are_those_of_gas_and_readelf(tmp_path: Path) -> None:
    need("aarch64-linux-gnu-readelf")
    named = [n for n in ARCH.names if n < 128 and n not in (PC, 34)]
    program = "".join(f".cfi_offset {n}, -16\n" for n in named)
    general = [f".cfi_restore {ARCH.names[n]}\n" for n in range(32)]
    program += "".join([*general, *(f".cfi_restore d{n}\n" for n in range(32))])
    source = f"f:\n.cfi_startproc\n{program}ret\n.cfi_endproc\n"
    found = gcc(tmp_path, source, "-c", name="f.s")
    printed = run("aarch64-linux-gnu-readelf", "--debug-dump=frames", found).stdout
    offsets = re.findall(r"DW_CFA_offset(?:_extended)?: r(\d+) \((\w+)\)", printed)
    restored = re.findall(r"DW_CFA_restore(?:_extended)?: r(\d+) \((\w+)\)", printed)
    assert [(int(n), name) for n, name in offsets] == [(n, ARCH.names[n]) for n in named]
    assert [int(n) for n, _ in restored] == [*range(32), *range(64, 96)]


def test_prstatus_offsets_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    layout = ARCH.layouts["linux.prstatus"]
    source = """
    #include <stddef.h>
    #include <stdio.h>
    #include <sys/procfs.h>
    #include <sys/user.h>
    #define AT(name, field) printf(name " %zu\\n", offsetof(struct elf_prstatus, pr_reg) + \
        offsetof(struct user_regs_struct, field))
    int main(void) {
      AT("x0", regs[0]); AT("x30", regs[30]); AT("sp", sp); AT("pc", pc); AT("pstate", pstate);
      printf("size %zu\\n", sizeof(struct elf_prstatus));
      printf("pid %zu\\n", offsetof(struct elf_prstatus, pr_pid));
      printf("signal %zu\\n", offsetof(struct elf_prstatus, pr_cursig));
    }"""
    numbers = {"x0": X0, "x30": X30, "sp": SP, "pc": PC, "pstate": PSTATE}
    told = said(gcc(tmp_path, source))
    assert {name: layout.offsets[n] for name, n in numbers.items()} == {n: told[n] for n in numbers}
    assert (layout.size, layout.pid, layout.signal) == (told["size"], told["pid"], told["signal"])


def test_signal_frame_offsets_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    source = """
    #include <stddef.h>
    #include <stdio.h>
    #include <signal.h>
    #include <ucontext.h>
    #define AT(name, field) printf(name " %zu\\n", sizeof(siginfo_t) + \
        offsetof(ucontext_t, uc_mcontext) + offsetof(mcontext_t, field))
    int main(void) {
      AT("x0", regs[0]); AT("x19", regs[19]); AT("x30", regs[30]); AT("sp", sp); AT("pc", pc);
      AT("pstate", pstate);
    }"""
    numbers = {"x0": X0, "x19": X19, "x30": X30, "sp": SP, "pc": PC, "pstate": PSTATE}
    rules = ARCH.trampolines[0].row.rules
    told = said(gcc(tmp_path, source))
    assert {name: rules[n] for name, n in numbers.items()} == {
        name: Offset(at) for name, at in told.items()
    }


def test_the_trampolines_bytes_are_those_of_gas(tmp_path: Path) -> None:
    found = gcc(tmp_path, "mov x8, #139\nsvc #0\n", "-c", name="f.s")
    assert b"".join(word for _, word, _ in disassembly(found)) == ARCH.trampolines[0].pattern


def test_calls_and_only_calls_are_seen_before_a_return_address() -> None:
    need("aarch64-linux-gnu-gcc")
    libc = run("aarch64-linux-gnu-gcc", "-print-file-name=libc.so.6").stdout.strip()
    calls = 0
    for address, word, text in disassembly(libc):
        is_call = re.match(r"blr?\t", text) is not None
        assert ARCH.follows_call(word) == is_call, text
        target = ARCH.call_target(word, address + 4)
        direct = re.match(r"bl\t([0-9a-f]+)", text)
        assert target == (int(direct[1], 16) if direct else None), text
        calls += is_call
    assert calls > 5_000


def test_calls_with_authentication_are_calls(tmp_path: Path) -> None:
    names = ("blraa x1, x2", "blrab x30, sp", "blraaz x17", "blrabz x0")
    others = ("braa x1, x2", "retaa", "ret", "br x3", "b .", "nop")
    source = ".arch armv8.3-a\n" + "\n".join([*names, *others]) + "\n"
    words = [word for _, word, _ in disassembly(gcc(tmp_path, source, "-c", name="f.s"))]
    assert [ARCH.follows_call(word) for word in words] == [True] * 4 + [False] * 6
    assert not ARCH.follows_call(b"")
    assert not ARCH.follows_call(BL[1:])


def test_what_a_call_may_change_is_lost_and_what_it_keeps_is_not() -> None:
    general = {n for n in ARCH.defaults if n < 31}
    assert general == set(range(19))  # AAPCS64 §6.1.1; x18 is the platform's
    assert not {64 + n for n in range(8, 16)} & set(ARCH.defaults)  # AAPCS64 §6.1.2


# Pointers with more in them than an address ------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "address"),
    [
        (0x0000_AAAA_BBBB_CCC0, 0x0000_AAAA_BBBB_CCC0),
        (0x007F_AAAA_BBBB_CCC0, 0x0000_AAAA_BBBB_CCC0),
        (0x5B2A_AAAA_BBBB_CCC0, 0x0000_AAAA_BBBB_CCC0),
        (0xFFFF_8000_1234_5678, 0xFFFF_8000_1234_5678),
        (0x12AA_8000_1234_5678, 0xFFFF_8000_1234_5678),
    ],
)
def test_a_signature_is_stripped_as_bit_55_has_it(pointer: int, address: int) -> None:
    assert ARCH.code_address(pointer) == address


def test_a_tag_is_stripped_as_bit_55_has_it() -> None:
    assert ARCH.data_address(TAG | 0x7F_FFFF_0010) == 0x7F_FFFF_0010
    assert ARCH.data_address(0xF4FF_8000_0000_0010) == 0xFFFF_8000_0000_0010


def test_tags_break_no_read_of_memory() -> None:
    stack = Span(STACK, b"".join(n.to_bytes(8, "little") for n in (STACK + 16, 7, 8, BIAS | CODE)))
    registers = Registers({SP: STACK | TAG, X29: STACK | TAG})
    pointer = code(breg(X29), bytes([0x06]))  # DW_OP_deref
    for cfa in (CfaRegister(SP, 16), CfaExpression(pointer)):
        row = Row(0, 0, cfa, {X30: Offset(8), X19: Offset(-8)}, X30, Origin("test"))
        caller = apply(row, registers, stack, ARCH)
        assert (caller.cfa, caller.pc, caller.registers[X19]) == (STACK + 16, BIAS, 7)
        assert caller.registers[X30] == BIAS, "authenticated by the return"


@pytest.mark.parametrize("signed", [0, CODE, TAG | CODE])
def test_return_addresses_are_stripped_in_every_way_that_finds_them(signed: int) -> None:
    stack = [STACK + 16, BIAS + 0x1208 | signed, 0, BIAS + 0x1308 | signed]
    end = FDE(0x1300, 0x100, [undefined(X30)], cie=_CIE)
    calls = (0x1208, 0x1308)
    by_cfi = world(
        FDE(0x1000, 0x100, [*record(2), negate_ra_state()], cie=_CIE),
        FDE(0x1200, 0x100, [*record(2), negate_ra_state()], cie=_CIE),
        end,
        stack=stack,
        calls=calls,
    )
    assert walk(by_cfi) == [(0x1000, "context"), (0x1208, "cfi"), (0x1308, "cfi")]
    by_record = world(end, stack=stack, calls=calls, registers={X29: STACK})
    assert walk(by_record, *_GUESSES) == [
        (0x1000, "context"),
        (0x1208, "frame_pointer"),
        (0x1308, "frame_pointer"),
    ]
    in_register = world(
        FDE(0x1000, 0x100, cie=_CIE),
        FDE(0x1200, 0x100, record(2), cie=_CIE),
        end,
        stack=stack[2:],
        calls=calls,
        registers={X30: BIAS + 0x1208 | signed},
    )
    assert walk(in_register) == [(0x1000, "context"), (0x1208, "cfi"), (0x1308, "cfi")]


@pytest.mark.parametrize(("bits", "mask"), [(39, 0x7F_FF80_0000_0000), (48, 0x7F << 48), (48, 0)])
def test_a_core_tells_which_bits_hold_authentication_codes(
    tmp_path: Path, bits: int, mask: int
) -> None:
    core = Core(machine=ARCH.machine, loads=[Load(0x1000, bytes(16))])
    core.note(1, bytes(392))
    if mask:
        core.note(0x406, core.pack("QQ", mask, mask), owner=b"LINUX\0")
    (tmp_path / "core").write_bytes(core.build())
    with Files() as files, TRANSPORT.open(str(tmp_path / "core"), files) as source:
        assert source.arch.code_mask == (1 << bits) - 1


def test_mappings_beyond_48_bits_leave_codes_less_room(tmp_path: Path) -> None:
    core = Core(machine=ARCH.machine, loads=[Load(0xF_FFFF_0000_0000, bytes(16))])
    core.note(1, bytes(392))
    (tmp_path / "core").write_bytes(core.build())
    with Files() as files, TRANSPORT.open(str(tmp_path / "core"), files) as source:
        assert source.arch.code_mask == (1 << 52) - 1


# Rows where there is no CFI ----------------------------------------------------------------------


def test_frame_records_alone_restore_no_stack_pointer() -> None:
    stack = [STACK + 32, BIAS + 0x1208, 5, 6, 0, BIAS + 0x1308]
    found = world(stack=stack, calls=(0x1208, 0x1308), registers={X29: STACK, X19: 1})
    snapshot = found.snapshot()
    sources = [source for source in default_sources(ARCH) if source.trust not in _GUESSES]
    frames = Unwinder(ARCH, sources).unwind(snapshot).frames
    assert [f.pc - BIAS for f in frames] == [0x1000, 0x1208, 0x1308]
    assert frames[1].registers[X29] == STACK + 32
    assert not {SP, X19, X28} & frames[1].registers.keys()


def test_cfi_serves_by_the_frame_record_where_the_stack_pointer_was_lost() -> None:
    stack = [STACK + 16, BIAS + 0x1208, STACK + 48, BIAS + 0x1308, 7, 8, 0, BIAS + 0x1408]
    found = world(
        FDE(0x1200, 0x100, [*record(4), offset(X19, 2)], cie=_CIE),
        FDE(0x1300, 0x100, record(2), cie=_CIE),
        FDE(0x1400, 0x100, [undefined(X30)], cie=_CIE),
        stack=stack,
        calls=(0x1208, 0x1308, 0x1408),
        registers={X29: STACK},
    )
    sources = [source for source in default_sources(ARCH) if source.trust not in _GUESSES]
    frames = Unwinder(ARCH, sources).unwind(found.snapshot()).frames
    assert [(f.pc - BIAS, f.trust) for f in frames] == [
        (0x1000, "context"),
        (0x1208, "frame_pointer"),
        (0x1308, "frame_pointer"),
        (0x1408, "cfi"),
    ]
    assert (frames[2].registers[SP], frames[2].registers[X19]) == (STACK + 48, 7)


@pytest.mark.parametrize("pc", [0x1202, BIAS * 2, CODE | BIAS + 0x1308])
def test_where_nothing_can_run_the_caller_is_in_x30(pc: int) -> None:
    found = world(
        FDE(0x1200, 0x100, [def_cfa_offset(64), offset(X30, 1)], cie=_CIE),
        FDE(0x1300, 0x100, [undefined(X30)], cie=_CIE),
        stack=[1, 2, 3],
        calls=(0x1308,),
        pc=pc,
        registers={X30: BIAS + 0x1308},
    )
    assert [pc for pc, _ in walk(found)][1:] == [0x1308]


# Signals -----------------------------------------------------------------------------------------


def _signal_frame(registers: dict[int, int]) -> list[int]:
    """The words of an rt_sigframe from sp on."""
    words = [3] * (128 + 176 + 8 + 34 * 8 >> 3)
    for number, value in registers.items():
        words[(128 + 176 + 8 >> 3) + number] = value
    return words


@pytest.mark.parametrize("where", ["vdso", "without CFI", "on the stack", "in it"])
def test_a_signal_frame_gives_back_all_registers_also_those_of_a_leaf(where: str) -> None:
    frame = _signal_frame({PC: BIAS + 0x1300, X30: BIAS + 0x1408, SP: STACK + 0x400, X19: 19})
    stack = [0, BIAS + 0x1180, *frame]
    trampoline = ARCH.trampolines[0].pattern
    entries = [
        FDE(0x1000, 0x100, record(2), cie=_CIE),
        FDE(0x1300, 0x100, cie=_CIE),  # the leaf
        FDE(0x1400, 0x100, [undefined(X30)], cie=_CIE),
    ]
    regions: list[Region] = []
    given: dict[str, object] = {}
    place = BIAS + 0x1180
    if where in ("vdso", "in it"):
        # It restores x29 and x30 alone, as Linux v6.13 arch/arm64/kernel/vdso/sigreturn.S does.
        rules = [def_cfa(SP, 16), offset(X29, 2), offset(X30, 1)]
        entries.append(FDE(0x117C, 0x10, rules, cie=_SIGNAL_CIE))
    if where == "on the stack":
        place = STACK + 8 * len(stack)
        stack[1] = place
        stack.append(int.from_bytes(trampoline, "little"))
        regions.append(Region(STACK + 0x2_0000, STACK + 0x2_1000, True, "executable"))
    if where == "in it":
        stack, given["pc"] = frame, 0x1184
    found = world(
        *entries, stack=stack, calls=(0x1408,), code={0x1180: trampoline}, regions=regions, **given
    )
    if where == "on the stack":
        snapshot = found.snapshot()
        space = snapshot.space
        stacks = [r for r in space.regions if r.name != "[stack]"]
        space.replace(space.modules, [*stacks, Region(STACK, STACK + 0x10000, True, "[stack]")])
        frames = unwind(snapshot).frames
    else:
        frames = unwind(found.snapshot()).frames
    interrupted = frames[-2]
    assert [f.pc for f in frames[-3:]] == [
        BIAS + 0x1184 if where == "in it" else place,
        BIAS + 0x1300,
        BIAS + 0x1408,
    ]
    assert frames[-3].signal
    assert not interrupted.called
    assert (interrupted.registers[X19], interrupted.registers[SP]) == (19, STACK + 0x400)
    assert all(number in interrupted.registers for number in range(PC + 1))


def test_a_stack_of_zeroes_is_no_end_where_the_record_lies_low_in_its_frame() -> None:
    found = world(
        FDE(0x1000, 0x100, record(20), cie=_CIE), stack=[0] * 60, regions=(), complete=True
    )
    stack = unwind(found.snapshot())
    assert stack.end == End.NO_MODULE
    assert f"{STACK + 8:#x}" in stack.detail
