"""The mips32 tables, held against objdump, the kernel's headers, gas and qemu-user."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import need, need_plain_cores, run
from unwind import unwind
from unwind.arch.mips32 import BADVADDR, CAUSE, HI, LO, MIPS32, MIPS32EL, PC, RA, SP
from unwind.architecture import Architecture
from unwind.elf import Elf
from unwind.errors import UnsupportedArchitecture
from unwind.files import Files
from unwind.frames import End, Stack
from unwind.memory import Span
from unwind.registers import Registers
from unwind.registry import architecture
from unwind.rules import Offset
from unwind.step import apply
from unwind.transports.core import TRANSPORT

_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t([0-9a-f]{8}) \t(.*)$", re.M)
_CALL = re.compile(r"(?:jal|jalx|bal|bgezal|bltzal|jalr(?:\.hb)?)\b(?!\tv0,|\tt0,|\tzero,)")


@dataclass(frozen=True)
class Target:
    """One byte order with its tools."""

    arch: Architecture
    name: str

    @property
    def root(self) -> str:
        return f"/usr/{self.name}-linux-gnu"

    def tool(self, program: str) -> str:
        found = f"{self.name}-linux-gnu-{program}"
        need(found)
        return found

    def compile(self, directory: Path, source: str, *options: str, name: str = "p.c") -> Path:
        """The program or object that gcc makes of some source."""
        (directory / name).write_text(source)
        output = directory / "p"
        argv = [self.tool("gcc"), "-w", *options, name, "-o", str(output)]
        subprocess.run(argv, cwd=directory, check=True)
        return output

    def run(self, program: Path, *arguments: str) -> str:
        """What a program prints under qemu-user."""
        emulator = f"qemu-{self.name}-static"
        need(emulator)
        return run(emulator, "-L", self.root, program, *arguments).stdout

    def crash(self, program: Path, *options: str) -> Stack:
        """The stack of the thread that crashed, from the core that qemu-user writes."""
        emulator = f"qemu-{self.name}-static"
        need(emulator)
        need_plain_cores()
        script = 'ulimit -c unlimited; echo 0 > /proc/self/coredump_filter; exec "$@"'
        argv = ["sh", "-c", script, "sh", emulator, "-s", "524288", "-L", self.root, *options]
        subprocess.run([*argv, str(program)], cwd=program.parent, check=False, capture_output=True)
        (core,) = program.parent.glob("qemu_*.core")
        with (
            Files(executable=str(program), sysroot=self.root) as files,
            TRANSPORT.open(str(core), files) as source,
        ):
            assert source.arch is self.arch
            return unwind(source.threads[0])


BOTH = [Target(MIPS32, "mips"), Target(MIPS32EL, "mipsel")]


@pytest.fixture(params=BOTH, ids=[target.arch.name for target in BOTH])
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


def instructions(target: Target, path: str) -> Iterator[tuple[bytes, str]]:
    """The bytes of each instruction of .text, as they lie there, and its text."""
    output = run(target.tool("objdump"), "-d", "-w", "--section=.text", path).stdout
    for _, digits, text in _INSTRUCTION.findall(output):
        yield int(digits, 16).to_bytes(4, target.arch.byteorder), text


def names(stack: Stack) -> list[str]:
    """The functions of a stack's frames, "" where the module has no symbol there."""
    found = []
    for frame in stack.frames:
        image = frame.module.image if frame.module is not None else None
        symbol = image.symbols.find(frame.module.to_vaddr(frame.lookup_pc)) if image else None
        found.append(symbol.name if symbol is not None else "")
    return found


# -------------------------------------------------------------------------- which files it is for


def test_both_byte_orders_come_from_one_table() -> None:
    differing = {
        name
        for name in Architecture.__annotations__
        if getattr(MIPS32, name) != getattr(MIPS32EL, name)
    }
    assert differing <= {
        *("name", "byteorder", "trampolines", "follows_call", "follows_compressed_call"),
        *("call_target", "slot_moves_stack", "code_model"),
    }


def test_a_file_has_the_architecture_of_its_byte_order(target: Target, tmp_path: Path) -> None:
    built = target.compile(tmp_path, "int x;", "-c")
    assert architecture(Elf(built.read_bytes())) is target.arch


def test_other_abis_are_refused(target: Target, tmp_path: Path) -> None:
    for abi in ("n32", "64"):
        built = target.compile(tmp_path, "int x;", "-c", f"-mabi={abi}")
        with pytest.raises(UnsupportedArchitecture, match="MIPS"):
            architecture(Elf(built.read_bytes()))


# ------------------------------------------------------------------------------------- numbers


def test_register_numbers_are_those_the_assembler_writes(target: Target, tmp_path: Path) -> None:
    general = [target.arch.names[n] for n in range(32)]
    program = "".join(
        f".cfi_offset ${'s8' if n == 30 else name}, -{4 * n}\n" for n, name in enumerate(general)
    )
    source = f".text\nf:\n.cfi_startproc\n{program}nop\n.cfi_endproc\n"
    built = target.compile(tmp_path, source, "-c", name="f.s")
    printed = run("readelf", "--debug-dump=frames", built).stdout
    found = re.findall(r"DW_CFA_offset(?:_extended_sf)?: r(\d+)\b.* at cfa-(\d+)", printed)
    assert {int(number): int(offset) for number, offset in found if int(offset)} == {
        n: 4 * n for n in range(1, 32)
    }


def test_prstatus_and_sigcontext_are_those_of_the_kernels_headers(
    target: Target, tmp_path: Path
) -> None:
    places = {
        "prstatus": "sizeof(struct elf_prstatus)",
        "pid": "offsetof(struct elf_prstatus, pr_pid)",
        "signal": "offsetof(struct elf_prstatus, pr_cursig)",
        "registers": "offsetof(struct elf_prstatus, pr_reg)",
        "r0": "MIPS32_EF_R0",
        "lo": "MIPS32_EF_LO",
        "hi": "MIPS32_EF_HI",
        "epc": "MIPS32_EF_CP0_EPC",
        "badvaddr": "MIPS32_EF_CP0_BADVADDR",
        "cause": "MIPS32_EF_CP0_CAUSE",
        "siginfo": "sizeof(siginfo_t)",
        "mcontext": "offsetof(ucontext_t, uc_mcontext)",
        "pc": "offsetof(mcontext_t, pc)",
        "gregs": "offsetof(mcontext_t, gregs)",
        "mdhi": "offsetof(mcontext_t, mdhi)",
        "mdlo": "offsetof(mcontext_t, mdlo)",
        "code": "offsetof(siginfo_t, si_code)",
    }
    lines = "".join(f'printf("{name} %d\\n", (int)({what}));\n' for name, what in places.items())
    heads = "stddef.h stdio.h sys/procfs.h ucontext.h signal.h asm/reg.h".split()
    # Of 64 bits, the times of a process would not be those of the kernel's record.
    includes = "#undef _TIME_BITS\n#undef _FILE_OFFSET_BITS\n"
    includes += "".join(f"#include <{head}>\n" for head in heads)
    program = target.compile(tmp_path, f"{includes}int main(void) {{\n{lines}}}\n", "-static")
    said = {name: int(n) for name, n in map(str.split, target.run(program).splitlines())}

    layout = target.arch.layouts["linux.prstatus"]
    assert (layout.size, layout.pid, layout.signal) == (
        *(said["prstatus"], said["pid"], said["signal"]),
    )
    words = {n: said["r0"] + n for n in range(32)}
    words |= {LO: said["lo"], HI: said["hi"], PC: said["epc"]}
    words |= {BADVADDR: said["badvaddr"], CAUSE: said["cause"]}
    for number, word in words.items():
        assert layout.offsets[number] == said["registers"] + 4 * word, target.arch.names[number]

    half = 4 if target.arch.byteorder == "big" else 0
    behind = {"sigreturn": 24, "rt_sigreturn": 24 + said["siginfo"] + said["mcontext"]}
    for known in target.arch.trampolines:
        context = behind[known.name] + half
        assert known.row.rules[PC] == Offset(context + said["pc"])
        assert known.row.rules[SP] == Offset(context + said["gregs"] + 8 * SP)
        assert known.row.rules[HI] == Offset(context + said["mdhi"])
        assert known.row.rules[LO] == Offset(context + said["mdlo"])
    assert target.arch.swapped_siginfo == (said["code"] == 4)


def test_signals_have_the_numbers_of_the_kernels_headers(target: Target, tmp_path: Path) -> None:
    (tmp_path / "s.c").write_text("#include <signal.h>\n")
    printed = run(target.tool("gcc"), "-E", "-dM", str(tmp_path / "s.c")).stdout
    found = {name: int(n) for name, n in re.findall(r"#define (SIG[A-Z0-9]+) +(\d+)\b", printed)}
    assert len(found) > 25
    for number, name in target.arch.signals.items():
        assert found.get(name, number) == number, name


def test_trampolines_are_what_gas_makes_of_their_instructions(
    target: Target, tmp_path: Path
) -> None:
    for known, number in zip(target.arch.trampolines, (4119, 4193), strict=True):
        source = f".set noreorder\n.text\nli $2, {number}\nsyscall\n"
        elf = Elf(target.compile(tmp_path, source, "-c", name="t.s").read_bytes())
        text = elf.section(".text")
        assert text is not None
        assert bytes(elf.data(text))[:8] == known.pattern


def test_what_a_call_may_change_is_lost_and_what_it_keeps_is_not() -> None:
    kept = {*(f"s{n}" for n in range(9)), "zero", "ra", "sp"}
    lost = {MIPS32.names[n] for n in MIPS32.defaults if n < 32} - {"sp"}
    assert lost == {MIPS32.names[n] for n in range(32)} - kept


# --------------------------------------------------------------------------------------- calls


def test_every_call_in_libc_is_seen_before_its_return_address(target: Target) -> None:
    libc = run(target.tool("gcc"), "-print-file-name=libc.so.6").stdout.strip()
    calls = others = wrong = 0
    before, previous = b"", ""
    for code, text in instructions(target, libc):
        window = before + code
        seen = target.arch.follows_call(window)
        if _CALL.match(previous):
            calls += 1
            assert seen, f"{window.hex()} {previous}"
        else:
            others += 1
            wrong += seen
        before, previous = code, text
    assert calls > 5_000
    assert wrong < others / 100, f"{wrong} of {others}"


@pytest.mark.parametrize(
    ("mode", "call", "slot"),
    [
        ("micromips", "jal f", "nop32"),
        ("micromips", "jals f", "nop"),
        ("micromips", "jalr $25", "nop32"),
        ("micromips", "jalrs $25", "nop"),
        ("micromips", "jalr.hb $25", "nop32"),
        ("micromips", "jalrs.hb $25", "nop"),
        ("micromips", "bgezal $4, f", "nop32"),
        ("micromips", "bltzal $4, f", "nop32"),
        ("micromips", "bgezals $4, f", "nop"),
        ("mips16", "jal f", "nop"),
        ("mips16", "jalr $2", "nop"),
        ("mips16", "jalrc $2", None),
    ],
)
def test_calls_of_compressed_code(
    target: Target, mode: str, call: str, slot: str | None, tmp_path: Path
) -> None:
    nop = {"nop32": "nop32" if mode == "micromips" else "nop", "nop": "nop", None: ""}[slot]
    source = (
        f".set noreorder\n.set {mode}\n.text\nf:\nnop\nnop\nnop\nnop\n{call}\n{nop}\nend:\nnop\n"
    )
    built = target.compile(tmp_path, source, "-c", "-mips32r2", name="c.s")
    elf = Elf(built.read_bytes())
    text = elf.section(".text")
    assert text is not None
    printed = run(target.tool("objdump"), "-d", str(built)).stdout
    end = int(re.search(r"^([0-9a-f]+) <end>", printed, re.M)[1], 16)  # type: ignore[index]
    data = bytes(elf.data(text))
    assert target.arch.is_behind_call(end | 1, data[end - 8 : end]), printed
    assert not target.arch.is_behind_call(9, data[:8])


def test_a_return_address_is_looked_up_in_its_call(target: Target) -> None:
    assert target.arch.call_before(0x400108) == 0x400100
    assert target.arch.call_before(0x400105) == 0x400102  # microMIPS, in the delay slot


def test_the_branch_before_a_faulting_delay_slot_has_been_executed(target: Target) -> None:
    arch = target.arch
    assert arch.innermost(arch, {PC: 0x1000, CAUSE: 1 << 31 | 8}) == 0x1004
    assert arch.innermost(arch, {PC: 0x1000, CAUSE: 8}) == 0x1000
    assert arch.innermost(arch, {PC: 0x1004}) == 0x1004  # qemu-user
    assert arch.innermost(arch, {PC: 0x1001, CAUSE: 8}) == 0x1000  # microMIPS


def test_the_low_half_of_a_saved_register_is_read(target: Target) -> None:
    order = target.arch.byteorder
    memory = bytearray(1024)
    memory[176 + 8 : 176 + 16] = (0x40_1234).to_bytes(8, order)
    memory[424:432] = (0x7FFF_0000).to_bytes(8, order)  # 176 + 16 + 8 * 29
    row = target.arch.trampolines[1].row
    found = apply(row, Registers({SP: 0x1000}), Span(0x1000, memory), target.arch)
    assert (found.pc, found.registers[SP]) == (0x40_1234, 0x7FFF_0000)


# --------------------------------------------------------------------------- cores of qemu-user

_SIGNALS = """
#include <signal.h>
#include <string.h>
__attribute__((noinline)) int crash(volatile int *p) { return *p + 1; }
static void handler(int n) { crash((volatile int *)4); }
static void informed(int n, siginfo_t *i, void *c) { crash((volatile int *)4); }
__attribute__((noinline)) int leaf(volatile int *p) { return *p + 2; }
int main(void)
{
	struct sigaction action;
	memset(&action, 0, sizeof action);
	action.sa_handler = handler;
	if (INFORMED) {
		action.sa_sigaction = informed;
		action.sa_flags = SA_SIGINFO;
	}
	sigaction(SIGSEGV, &action, 0);
	return leaf((volatile int *)8) + 3;
}
"""


@pytest.mark.parametrize("link", ["-static", "-pie", "-no-pie"])
@pytest.mark.parametrize("informed", [0, 1], ids=["sigreturn", "rt_sigreturn"])
def test_a_signal_in_a_leaf(target: Target, link: str, informed: int, tmp_path: Path) -> None:
    options = [f"-DINFORMED={informed}", "-O2", "-fPIC" if link == "-pie" else "-fno-pic"]
    if link == "-no-pie":
        options[-1] = "-fno-pie"
    stack = target.crash(target.compile(tmp_path, _SIGNALS, *options, link))
    found = names(stack)
    handler = "informed" if informed else "handler"
    expected = ["crash", "", "leaf", "main"]
    if handler in found:  # it is a tail call
        expected.insert(1, handler)
    assert found[: len(expected)] == expected
    assert found[-1] == "__start"
    assert stack.end == End.OUTERMOST


_SLOT = """
__asm__(".text\\n.set noreorder\\n.globl inner\\n.ent inner\\ninner:\\n"
	"addiu $29, $29, -32\\nsw $31, 28($29)\\nlw $31, 28($29)\\n"
	"jr $31\\nlw $2, 0($0)\\n.end inner\\n.set reorder\\n");
int inner(void);
__attribute__((noinline)) int outer(void) { return inner() + 1; }
int main(void) { return outer() + 2; }
"""


def test_a_fault_in_a_delay_slot(target: Target, tmp_path: Path) -> None:
    program = target.compile(tmp_path, _SLOT, "-O2", "-static", "-fno-pic", "-mno-abicalls")
    assert names(target.crash(program))[:3] == ["inner", "outer", "main"]


_COMPRESSED = """
__attribute__((noinline)) int crash(volatile int *p) { return *p + 1; }
__attribute__((noinline)) int inner(int n) { return crash(0) + 1; }
int (*volatile pointer)(int) = inner;
__attribute__((noinline)) int outer(int n) { return pointer(n) + 1; }
int main(void) { return outer(1) + 2; }
__asm__(".text\\n.globl __start\\n.ent __start\\n__start:\\nmove $31, $0\\nla $25, main\\n"
	"jalr $25\\nnop\\n1: b 1b\\nnop\\n.end __start\\n");
"""


@pytest.mark.parametrize("debug", ["-g", "-g0"], ids=["debug_frame", "pdr"])
@pytest.mark.parametrize(
    ("mode", "cpu"), [("-mmicromips", "M14Kc"), ("-mips16", "24Kf")], ids=["micromips", "mips16"]
)
def test_bit_0_marks_compressed_code(
    target: Target, mode: str, cpu: str, debug: str, tmp_path: Path
) -> None:
    options = "-O1 -nostdlib -static -no-pie -fno-pic -mno-abicalls".split()
    source = _COMPRESSED
    if mode == "-mips16":
        source = source.replace(".text", ".text\\n.set nomips16").replace(
            ".end __start", ".end __start\\n.set mips16"
        )
    program = target.compile(tmp_path, source, mode, debug, *options)
    stack = target.crash(program, "-cpu", cpu)
    assert names(stack)[:4] == ["crash", "inner", "outer", "main"]
    assert all(frame.pc % 2 == 0 for frame in stack.frames)
    assert any(frame.registers.get(RA, 0) & 1 for frame in stack.frames)
