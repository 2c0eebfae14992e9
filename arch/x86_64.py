"""x86_64, System V ABI (x86-64 psABI 1.0), as Linux runs it."""

from __future__ import annotations

from unwind.architecture import Architecture, Clone, Layout, Trampoline
from unwind.rules import CfaRegister, Offset, Origin, Row, Rule, Undefined, ValOffset

__all__ = ["ARCH"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.machine import CodeModel

# DWARF numbers: x86-64 psABI 1.0 fig. 3.36.
_GENERAL = "rax rdx rcx rbx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP, R8, R9, R10, R11, R12, R13, R14, R15, RIP = range(17)
RFLAGS, ES, CS, SS, DS, FS, GS = range(49, 56)
FS_BASE, GS_BASE = 58, 59
ORIG_RAX = 4096  # Linux's; DWARF has no number for it

_NAMES: dict[int, str] = {
    **dict(enumerate(_GENERAL)),
    **{17 + n: f"xmm{n}" for n in range(16)},
    **{33 + n: f"st{n}" for n in range(8)},
    **{41 + n: f"mm{n}" for n in range(8)},
    **dict(zip(range(49, 56), "rflags es cs ss ds fs gs".split(), strict=True)),
    FS_BASE: "fs.base",
    GS_BASE: "gs.base",
    62: "tr",
    63: "ldtr",
    64: "mxcsr",
    65: "fcw",
    66: "fsw",
    **{67 + n: f"xmm{16 + n}" for n in range(16)},
    **{118 + n: f"k{n}" for n in range(8)},
    ORIG_RAX: "orig_rax",
}

# What a call may change is unknown in the caller (x86-64 psABI 1.0 fig. 3.4); a signal frame
# states a rule for each of them. The stack pointer was the CFA before the call.
_DEFAULTS: dict[int, Rule] = {
    RSP: ValOffset(0),
    **dict.fromkeys(
        (RAX, RDX, RCX, RSI, RDI, R8, R9, R10, R11, RFLAGS, ORIG_RAX, *range(17, 49)), Undefined()
    ),
}


def _row(note: str, cfa: CfaRegister, rules: dict[int, Rule], signal: bool = False) -> Row:
    origin = Origin("abi", note=note)
    return Row(0, 0, cfa, rules, RIP, origin, signal=signal)


_ENTRY = _row("the return address lies at rsp", CfaRegister(RSP, 8), {RIP: Offset(-8)})

_FRAME_POINTER = _row(
    "push rbp; mov rbp, rsp", CfaRegister(RBP, 16), {RBP: Offset(-16), RIP: Offset(-8)}
)

# Linux v6.13 arch/x86/include/uapi/asm/sigcontext.h: when the restorer runs, rsp points to the
# ucontext, whose sigcontext begins 40 bytes in.
_SIGCONTEXT = "r8 r9 r10 r11 r12 r13 r14 r15 rdi rsi rbp rbx rdx rax rcx rsp rip rflags".split()
_NUMBERS = {name: number for number, name in _NAMES.items()}
_SIGNAL_FRAME = _row(
    "rt_sigreturn, the registers from the ucontext at rsp",
    CfaRegister(RSP, 0),
    {_NUMBERS[name]: Offset(40 + 8 * n) for n, name in enumerate(_SIGCONTEXT)},
    signal=True,
)

# Linux v6.13 struct elf_prstatus: pr_cursig at 12, pr_pid at 32, pr_reg (user_regs_struct) at 112.
_USER_REGS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs rflags rsp ss "
    "fs.base gs.base ds es fs gs"
).split()
_PRSTATUS = Layout(
    size=336,
    width=8,
    offsets={_NUMBERS[name]: 112 + 8 * n for n, name in enumerate(_USER_REGS)},
    signal=12,
    pid=32,
)

# gdb 13 features/i386/64bit-core.xml: what `g` has without a target description.
_GDB = Layout(
    size=136,
    width=8,
    offsets={
        _NUMBERS[name]: 8 * n
        for n, name in enumerate(
            "rax rbx rcx rdx rsi rdi rbp rsp r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
        )
    },
)

# Linux v6.13 arch/x86/include/uapi/asm/perf_regs.h: a sample has those of the mask, in this order.
_PERF = Layout(
    size=0,
    width=8,
    offsets={
        _NUMBERS[name]: 8 * n
        for n, name in enumerate(
            "rax rbx rcx rdx rsi rdi rbp rsp rip rflags cs ss ds es fs gs "
            "r8 r9 r10 r11 r12 r13 r14 r15".split()
        )
    },
)


# ret, also of old AMD processors, and with what it takes off the stack itself (Intel SDM 2B).
_RETURNS = b"\xc3", b"\xf3\xc3", b"\xc2"


def _leaves(code: bytes) -> bool:
    """Whether code pops registers, if anything, and returns."""
    while not code.startswith(_RETURNS):
        pop = code.removeprefix(b"\x41")  # REX.B
        if not b"\x58" <= pop[:1] <= b"\x5f":  # pop r64
            return False
        code = pop[1:]
    return True


def _follows_call(before: bytes) -> bool:
    """Whether the bytes end in `call rel32` or in any form of the near indirect `call r/m64`.

    Intel SDM 2A: E8 cd; FF /2 with the ModRM byte 2 to 6 bytes before the end of the instruction.
    """
    if before[-5:-4] == b"\xe8":
        return True
    for length in (2, 3, 4, 6, 7):  # FF ModRM, with SIB, disp8 or disp32
        if before[-length:][:1] != b"\xff" or len(before) < length:
            continue
        modrm = before[1 - length]
        mod, operation, rm = modrm >> 6, modrm >> 3 & 7, modrm & 7
        if operation != 2:
            continue
        sib = rm == 4 and mod != 3
        size = 2 + sib + {0: 0, 1: 1, 2: 4, 3: 0}[mod]
        if mod == 0 and (rm == 5 or (sib and before[2 - length] & 7 == 5)):
            size += 4  # rip + disp32, or an index with disp32 and no base
        if size == length:
            return True
    return False


def _call_target(before: bytes, pc: int) -> int | None:
    """Where `call rel32` leads."""
    if before[-5:-4] != b"\xe8":
        return None
    offset = int.from_bytes(before[-4:], "little", signed=True)
    return (pc + offset) & 0xFFFF_FFFF_FFFF_FFFF


def _code_model() -> CodeModel:
    from unwind.arch._x86_64_code import MODEL

    return MODEL


ARCH = Architecture(
    name="x86_64",
    machine=62,  # EM_X86_64; with ELFCLASS32 it is x32, another ABI
    elf_class=64,
    byteorder="little",
    word=8,
    names=_NAMES,
    pc=RIP,
    sp=RSP,
    fp=RBP,
    return_address=RIP,
    call_size=1,
    defaults=_DEFAULTS,
    entry_row=_ENTRY,
    frame_pointer_row=_FRAME_POINTER,
    code_mask=0xFFFF_FFFF_FFFF_FFFF,
    data_mask=0xFFFF_FFFF_FFFF_FFFF,
    trampolines=(
        # glibc's has CFI; musl's `__restore_rt` and Go's have none.
        Trampoline("rt_sigreturn", bytes.fromhex("48c7c00f0000000f05"), (0, 7), _SIGNAL_FRAME),
        Trampoline("rt_sigreturn", bytes.fromhex("b80f0000000f05"), (0, 5), _SIGNAL_FRAME),
    ),
    layouts={"linux.prstatus": _PRSTATUS, "gdb": _GDB, "perf": _PERF},
    gdb_architectures=("i386:x86-64",),
    gdb_names={"eflags": RFLAGS, "fs_base": FS_BASE, "gs_base": GS_BASE},
    vendor_opcodes={0x2D: "GNU_window_save"},
    call_window=7,
    follows_call=_follows_call,
    leaves=_leaves,
    call_target=_call_target,
    red_zone=128,
    stack_alignment=8,
    clone=Clone(b"\x0f\x05", ORIG_RAX, 56, 435, RSI, RAX),
    code_model=_code_model,
    fixed_regions=((0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000, "[vsyscall]"),),
)
