"""arm64 (AArch64, AAPCS64), little endian, as Linux runs it."""

from __future__ import annotations

from unwind.architecture import Architecture, Clone, Layout, Trampoline
from unwind.rules import CfaRegister, Offset, Origin, Row, Rule, Undefined, ValOffset

__all__ = ["ARCH"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.machine import CodeModel

# DWARF numbers: AADWARF64 §4.1; those without a name in readelf are named here.
X0, X1, X8, X18, X19, X28, X29, X30, SP, PC = 0, 1, 8, 18, 19, 28, 29, 30, 31, 32
ELR, RA_SIGN_STATE, VG, FFR = 33, 34, 46, 47
PSTATE = 4096  # Linux's; DWARF has no number for it

_NAMES: dict[int, str] = {
    **{n: f"x{n}" for n in range(31)},
    SP: "sp",
    PC: "pc",
    ELR: "elr",
    RA_SIGN_STATE: "ra_sign_state",
    VG: "vg",
    FFR: "ffr",
    **{48 + n: f"p{n}" for n in range(16)},
    **{64 + n: f"v{n}" for n in range(32)},
    **{96 + n: f"z{n}" for n in range(32)},
    PSTATE: "pstate",
}

# What a call may change is unknown in the caller (AAPCS64 §6.1); of v8-v15 the lower half is kept.
# The stack pointer was the CFA before the call.
_LOST = (*range(X0, X19), PSTATE, *range(48, 72), *range(80, 128))
_DEFAULTS: dict[int, Rule] = {SP: ValOffset(0), **dict.fromkeys(_LOST, Undefined())}


def _row(
    note: str, cfa: CfaRegister, rules: Mapping[int, Rule], column: int, signal: bool = False
) -> Row:
    return Row(0, 0, cfa, rules, column, Origin("abi", note=note), signal=signal)


_ENTRY = _row("the return address is in x30", CfaRegister(SP, 0), {}, X30)

# AAPCS64 §6.4.6: x29 points to a frame record, the caller's x29 and the return address. Where in
# its frame a function puts the record is its own affair: gcc has it at the bottom, clang at the
# top. So the CFA is the least that it can be, and what else the caller had stays unknown.
_FRAME_RECORD = _row(
    "stp x29, x30, [sp, …]; mov x29, sp",
    CfaRegister(X29, 16),
    {
        X29: Offset(-16),
        X30: Offset(-8),
        SP: Undefined(),
        **dict.fromkeys(range(X19, X29), Undefined()),
    },
    X30,
)

# Linux v6.13 arch/arm64/kernel/signal.c struct rt_sigframe: when the trampoline runs, sp points
# to 128 bytes of siginfo, then comes the ucontext, whose sigcontext begins 176 bytes in.
_SIGCONTEXT = 128 + 176
_SIGNAL_FRAME = _row(
    "rt_sigreturn, the registers from the sigcontext above sp",
    CfaRegister(SP, 0),
    {n: Offset(_SIGCONTEXT + 8 + 8 * n) for n in range(PC + 1)}
    | {PSTATE: Offset(_SIGCONTEXT + 8 + 8 * 33)},
    PC,
    signal=True,
)

# Linux v6.13 struct elf_prstatus: pr_cursig at 12, pr_pid at 32, pr_reg (user_pt_regs) at 112.
# qemu-user writes the same.
_PRSTATUS = Layout(
    size=392,
    width=8,
    offsets={**{n: 112 + 8 * n for n in range(PC + 1)}, PSTATE: 112 + 8 * 33},
    signal=12,
    pid=32,
)

# gdb 13 features/aarch64-core.xml: what `g` has without a target description.
_GDB = Layout(size=264, width=8, offsets={n: 8 * n for n in range(PC + 1)})

# Linux v6.13 arch/arm64/include/uapi/asm/perf_regs.h: x0 to x29, lr, sp, pc.
_PERF = Layout(size=0, width=8, offsets={n: 8 * n for n in range(PC + 1)})


def _follows_call(before: bytes) -> bool:
    """Whether the bytes end in BL, BLR, or BLR with authentication.

    Arm ARM C6.2: BL is 100101 imm26; BLR, BLRAAZ, BLRABZ, BLRAA, BLRAB are 1101011 Z 00111111
    0000 A M Rn Rm, where Rm is 0 in BLR and 31 in those with Z = 0 and A = 1.
    """
    if len(before) < 4:
        return False
    word = int.from_bytes(before[-4:], "little")
    return (
        word & 0xFC00_0000 == 0x9400_0000
        or word & 0xFFFF_FC1F == 0xD63F_0000
        or word & 0xFFFF_F81F == 0xD63F_081F
        or word & 0xFFFF_F800 == 0xD73F_0800
    )


def _call_target(before: bytes, pc: int) -> int | None:
    """Where the BL before `pc` leads; None where no BL lies there."""
    word = int.from_bytes(before[-4:], "little")
    if len(before) < 4 or word & 0xFC00_0000 != 0x9400_0000:
        return None
    words = word & 0x03FF_FFFF
    return pc - 4 + 4 * (words - (words >> 25 << 26))


def _code_model() -> CodeModel:
    from unwind.arch._arm64_code import MODEL

    return MODEL


ARCH = Architecture(
    name="arm64",
    machine=183,  # EM_AARCH64
    elf_class=64,
    byteorder="little",
    word=8,
    names=_NAMES,
    pc=PC,
    sp=SP,
    fp=X29,
    return_address=X30,
    call_size=4,
    code_alignment=4,
    defaults=_DEFAULTS,
    entry_row=_ENTRY,
    frame_pointer_row=_FRAME_RECORD,
    # The 48 bits of user space; authentication codes lie in bits 48-54 and those of the tag. Where
    # a core tells the size of its address space, it gets a mask of its own.
    code_mask=0x0000_FFFF_FFFF_FFFF,
    data_mask=0x00FF_FFFF_FFFF_FFFF,  # Arm ARM D8.8.1: top byte ignore; MTE's tags lie there too
    upper_half=1 << 55,
    pac_mask_note=0x406,  # NT_ARM_PAC_MASK
    trampolines=(
        # mov x8, #139; svc #0: in the vdso, in qemu-user's page, in musl, or on the stack.
        Trampoline("rt_sigreturn", bytes.fromhex("681180d2010000d4"), (0, 4), _SIGNAL_FRAME),
    ),
    layouts={"linux.prstatus": _PRSTATUS, "gdb": _GDB, "perf": _PERF},
    gdb_architectures=("aarch64",),
    gdb_names={"cpsr": PSTATE},
    vendor_opcodes={
        0x2C: "AARCH64_negate_ra_state_with_pc",
        0x2D: "AARCH64_negate_ra_state",
    },
    call_window=4,
    follows_call=_follows_call,
    call_target=_call_target,
    stack_alignment=16,
    clone=Clone(bytes.fromhex("010000d4"), X8, 220, 435, X1, X0),  # svc #0
    code_model=_code_model,
)
