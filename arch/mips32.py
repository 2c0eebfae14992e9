"""mips32: the o32 ABI of MIPS, both byte orders, as Linux runs it."""

from __future__ import annotations

from unwind.architecture import Architecture, Layout, Trampoline
from unwind.rules import CfaRegister, Offset, Origin, Row, Rule, Undefined, ValOffset
from unwind.signals import MIPS

__all__ = ["ARCH", "MIPS32", "MIPS32EL"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from unwind.machine import CodeModel
    from unwind.protocols import ByteOrder

# DWARF numbers: those of gcc's gcc/config/mips/mips.h (GP_DBX_FIRST, FP_DBX_FIRST, MD_DBX_FIRST).
_GENERAL = (
    "zero at v0 v1 a0 a1 a2 a3 t0 t1 t2 t3 t4 t5 t6 t7 "
    "s0 s1 s2 s3 s4 s5 s6 s7 t8 t9 k0 k1 gp sp s8 ra"
).split()
SP, S8, RA, HI, LO = 29, 30, 31, 64, 65
PC, CAUSE, BADVADDR, STATUS = range(4096, 4100)  # DWARF has no numbers for these

_NAMES: dict[int, str] = {
    **dict(enumerate(_GENERAL)),
    **{32 + n: f"f{n}" for n in range(32)},
    HI: "hi",
    LO: "lo",
    PC: "pc",
    CAUSE: "cause",
    BADVADDR: "badvaddr",
    STATUS: "status",
}
_NUMBERS = {name: number for number, name in _NAMES.items()}

# A call keeps s0-s7, s8 and f20-f31 (System V ABI, MIPS supplement, fig. 3-18). Code that is
# not position-independent keeps gp as well; PIC loads it anew after each call.
_LOST = "at v0 v1 a0 a1 a2 a3 t0 t1 t2 t3 t4 t5 t6 t7 t8 t9 k0 k1 gp hi lo cause badvaddr status"
_DEFAULTS: dict[int, Rule] = {
    SP: ValOffset(0),
    **dict.fromkeys((_NUMBERS[name] for name in _LOST.split()), Undefined()),
    **dict.fromkeys(range(32, 52), Undefined()),
}

# Linux v6.13 struct elf_prstatus of o32: pr_cursig at 12, pr_pid at 24, pr_reg at 72. Its 45 words
# are numbered by arch/mips/include/uapi/asm/reg.h: MIPS32_EF_R0 is 6, MIPS32_EF_LO 38.
_WORDS = {
    **{n: 6 + n for n in range(32)},
    **{_NUMBERS[name]: 38 + n for n, name in enumerate("lo hi pc badvaddr status cause".split())},
}
_PRSTATUS = Layout(
    size=256,
    width=4,
    offsets={number: 72 + 4 * word for number, word in _WORDS.items()},
    signal=12,
    pid=24,
)

# gdb 13 mips-tdep.c, mips_generic_reg_names: what `g` has without a target description.
_GDB_NAMES = "status lo hi badvaddr cause pc".split()
_GDB = Layout(
    size=152,
    width=4,
    offsets={
        **{n: 4 * n for n in range(32)},
        **{_NUMBERS[name]: 4 * n for n, name in enumerate(_GDB_NAMES, 32)},
    },
)

# Linux v6.13 arch/mips/include/uapi/asm/perf_regs.h: pc, then r1 to r31, each in 8 bytes.
_PERF = Layout(size=0, width=8, offsets={PC: 0, **{n: 8 * n for n in range(1, 32)}})

_CAUSE_BD = 1 << 31  # the exception was taken in a branch delay slot; EPC points to the branch


def _signal_row(sigcontext: int, byteorder: ByteOrder, note: str) -> Row:
    """The row of a trampoline that finds a struct sigcontext so many bytes above sp.

    Linux v6.13 arch/mips/include/uapi/asm/sigcontext.h: sc_pc at 8, sc_regs at 16, sc_mdhi at 552,
    sc_mdlo at 560. All of them take 8 bytes, the low half of which lies last in big-endian memory.
    """
    half = sigcontext + (4 if byteorder == "big" else 0)
    places = {PC: 8, **{n: 16 + 8 * n for n in range(1, 32)}, HI: 552, LO: 560}
    rules: dict[int, Rule] = {number: Offset(half + at) for number, at in places.items()}
    origin = Origin("abi", note=f"{note}, the registers from the sigcontext at sp{sigcontext:+d}")
    return Row(0, 0, CfaRegister(SP, 0), rules, PC, origin, signal=True)


def _trampolines(byteorder: ByteOrder) -> tuple[Trampoline, ...]:
    """`li v0, number; syscall`, on the stack, in an anonymous page or in the vdso.

    Linux v6.13 arch/mips/kernel/signal.c: struct sigframe has its sigcontext behind 24 bytes,
    struct rt_sigframe its siginfo, of 128 bytes, and then a ucontext with the sigcontext at 24.
    """
    found = []
    for name, number, sigcontext in (("sigreturn", 4119, 24), ("rt_sigreturn", 4193, 176)):
        words = (0x2402_0000 | number, 0x0000_000C)
        pattern = b"".join(word.to_bytes(4, byteorder) for word in words)
        found.append(Trampoline(name, pattern, (0, 4), _signal_row(sigcontext, byteorder, name)))
    return tuple(found)


# A function's first instruction: nothing is saved, ra holds the return address.
_ENTRY = Row(
    0, 0, CfaRegister(SP, 0), {}, RA, Origin("abi", note="the return address is in register ra")
)


def _innermost(arch: Architecture, registers: Mapping[int, int]) -> int:
    """The instruction that was executed, without the ISA bit.

    A kernel tells of a branch that it was its delay slot: the branch has been executed, the call
    has set ra. qemu-user has the delay slot itself in EPC, and no Cause.
    """
    pc = registers[PC]
    if registers.get(CAUSE, 0) & _CAUSE_BD and not pc & 1:
        pc += 4
    return pc & arch.code_mask


def _follows_call(byteorder: ByteOrder) -> Callable[[bytes], bool]:
    """Whether the word 8 bytes before a return address is a call."""

    def follows_call(before: bytes) -> bool:
        return len(before) >= 8 and _is_call(int.from_bytes(before[-8:-4], byteorder))

    return follows_call


def _follows_compressed_call(byteorder: ByteOrder) -> Callable[[bytes], bool]:
    """Whether 8 bytes, all that a call and its delay slot may take, hold a call."""

    def follows_call(before: bytes) -> bool:
        if len(before) < 8:
            return False
        last = before[-8:]
        return _is_compressed_call(
            [int.from_bytes(last[at : at + 2], byteorder) for at in (0, 2, 4, 6)]
        )

    return follows_call


def _call_target(byteorder: ByteOrder) -> Callable[[bytes, int], int | None]:
    """Where the jal or bal lead that lies 8 bytes before a return address, None if none does."""

    def call_target(before: bytes, pc: int) -> int | None:
        word = int.from_bytes(before[-8:-4], byteorder)
        if len(before) < 8 or pc % 4:
            return None
        if word >> 26 == 0x03:  # jal: within the 256 MB of its delay slot
            return (pc - 4) & 0xF000_0000 | (word & 0x03FF_FFFF) << 2
        if word >> 16 == 0x0411:  # bal
            return pc - 4 + 4 * ((word & 0xFFFF ^ 0x8000) - 0x8000)
        return None

    return call_target


def _is_call(word: int) -> bool:
    """jal, jalx, jalr to ra (with or without .hb), or bltzal, bgezal and their likely forms."""
    operation, other = word >> 26, word >> 16 & 31
    if operation == 0:
        return word & 0x001F_FBFF == 0xF809  # jalr: SPECIAL, rd is ra
    return operation in (0x03, 0x1D) or (operation == 1 and other in (0x10, 0x11, 0x12, 0x13))


def _slot_moves_stack(byteorder: ByteOrder) -> Callable[[bytes], bool]:
    """Whether the last 4 bytes are addiu, addu or subu to sp."""

    def slot_moves_stack(before: bytes) -> bool:
        word = int.from_bytes(before[-4:], byteorder)
        operation = word & 0xFC00_07FF
        return word >> 16 == 0x27BD or (operation in (0x21, 0x23) and word >> 11 & 31 == SP)

    return slot_moves_stack


def _is_compressed_call(half: list[int]) -> bool:
    """A call of microMIPS or MIPS16 with its delay slot at the end of these 4 halfwords.

    MD00582 (microMIPS32) and MD00076 (MIPS16e), the encodings of jal, jals, jalx, jalr, jalrs,
    bgezal and their like.
    """
    far, third, second, first = half
    long_slot = (
        far & 0xFC00 in (0xF400, 0xF000)  # jal, jalx
        or (far & 0xFFE0 == 0x03E0 and third in (0x0F3C, 0x1F3C))  # jalr, jalr.hb
        or far & 0xFFE0 in (0x4020, 0x4060)  # bltzal, bgezal
    )
    short_slot = (
        third & 0xFC00 == 0x7400  # jals
        or (third & 0xFFE0 == 0x03E0 and second in (0x4F3C, 0x5F3C))  # jalrs, jalrs.hb
        or third & 0xFFE0 in (0x4220, 0x4260)  # bltzals, bgezals
        or third & 0xFFE0 == 0x45C0  # jalr of 16 bits
        or third & 0xF800 == 0x1800  # MIPS16: jal, jalx
    )
    return (
        long_slot
        or short_slot
        or second & 0xFFE0 == 0x45E0  # jalrs of 16 bits
        or second & 0xF8FF == 0xE840  # MIPS16: jalr
        or first & 0xF8FF == 0xE8C0  # MIPS16: jalrc, which has no delay slot
    )


def _code_model(byteorder: ByteOrder) -> Callable[[], CodeModel]:
    def code_model() -> CodeModel:
        from unwind.arch._mips32_code import models

        return models[byteorder]

    return code_model


def _arch(name: str, byteorder: ByteOrder) -> Architecture:
    return Architecture(
        name=name,
        machine=8,  # EM_MIPS
        elf_class=32,
        byteorder=byteorder,
        word=4,
        names=_NAMES,
        cfi_names={},
        pc=PC,
        sp=SP,
        fp=S8,
        return_address=RA,
        call_size=8,  # the call and its delay slot
        compressed_call_size=2,  # the delay slot, or a call without one
        defaults=_DEFAULTS,
        entry_row=_ENTRY,
        frame_pointer_row=None,  # s8 points to the frame's bottom: the caller's is not found by it
        code_mask=0xFFFF_FFFE,  # bit 0 tells that code is microMIPS or MIPS16
        data_mask=0xFFFF_FFFF,
        trampolines=_trampolines(byteorder),
        layouts={"linux.prstatus": _PRSTATUS, "gdb": _GDB, "perf": _PERF},
        gdb_architectures=("mips",),
        gdb_names={f"r{n}": n for n in range(32)},
        call_window=8,
        follows_call=_follows_call(byteorder),
        follows_compressed_call=_follows_compressed_call(byteorder),
        call_target=_call_target(byteorder),
        slot_moves_stack=_slot_moves_stack(byteorder),
        stack_alignment=8,
        rld_map_tags=(0x7000_0016, 0x7000_0035),  # DT_MIPS_RLD_MAP, DT_MIPS_RLD_MAP_REL
        # EF_MIPS_ABI2 (n32), and EF_MIPS_ABI but for E_MIPS_ABI_O32: a core has no flags at all.
        flags_mask=0x0000_E020,
        signals=MIPS,
        swapped_siginfo=True,
        code_model=_code_model(byteorder),
        innermost=_innermost,
    )


MIPS32 = _arch("mips32", "big")
MIPS32EL = _arch("mips32el", "little")
ARCH = (MIPS32, MIPS32EL)
