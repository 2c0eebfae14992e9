"""Dialects: what a generator of frames has to know of an architecture and its calls: tables."""

from __future__ import annotations

from dataclasses import dataclass

from unwind.arch import arm64, mips32, x86_64
from unwind.architecture import Architecture
from unwind.dwarf.instructions import Instruction
from unwind.testing.assembler import Target, def_cfa, def_cfa_register, offset

__all__ = ["DIALECTS", "Dialect"]


@dataclass(frozen=True)
class Dialect:
    """Registers by DWARF number, and the code and CFI of a call."""

    arch: Architecture
    saved: tuple[int, ...]  # a call keeps them
    scratch: tuple[int, ...]  # a call loses them
    link: int | None  # where a call leaves the return address; None: on the stack
    signal_columns: tuple[int, ...]  # where the CFI of a trampoline may say that the pc is
    initial: tuple[Instruction, ...]  # what gas begins a CIE with
    unit: int  # bytes of `nop`: where rows may begin
    nop: bytes
    call: bytes  # of any function, with its delay slot: to show that the place follows a call
    frame_align: int
    code_align: int
    data_align: int
    red_zone: int = 0
    pac: bool = False  # return addresses may carry a code

    @property
    def target(self) -> Target:
        """As the assembler of CFI wants it."""
        return Target(self.arch.byteorder, self.arch.word)

    @property
    def sp(self) -> int:
        return self.arch.sp

    @property
    def watched(self) -> tuple[int, ...]:
        """The registers whose values are known by construction in every frame."""
        link = () if self.link is None else (self.link,)
        return (*self.saved, *self.scratch, self.sp, *link)


_X86_64 = Dialect(
    arch=x86_64.ARCH,
    saved=(6, 3, 12, 13, 14, 15),  # rbp, rbx, r12-r15: x86-64 psABI 1.0 fig. 3.4
    scratch=(0, 1, 2, 4, 5, 8, 9, 10, 11),
    link=None,
    signal_columns=(16,),
    initial=(def_cfa(7, 8), offset(16, 1)),
    unit=1,
    nop=b"\x90",
    call=bytes.fromhex("e800000000"),
    frame_align=8,
    code_align=1,
    data_align=-8,
    red_zone=128,
)

_ARM64 = Dialect(
    arch=arm64.ARCH,
    saved=(29, *range(19, 29)),  # AAPCS64 §6.1.1
    scratch=tuple(range(18)),
    link=30,
    signal_columns=(32, 30),  # pc; x30 in the vdso's CFI
    initial=(def_cfa(31, 0),),
    unit=4,
    nop=bytes.fromhex("1f2003d5"),
    call=bytes.fromhex("00000094"),
    frame_align=16,
    code_align=4,
    data_align=-8,
    pac=True,
)


def _mips(arch: Architecture) -> Dialect:
    order = arch.byteorder
    return Dialect(
        arch=arch,
        saved=(30, *range(16, 24)),  # s8, s0-s7: System V ABI, MIPS supplement, fig. 3-18
        scratch=(1, *range(2, 16), 24, 25),
        link=31,
        signal_columns=(31,),
        initial=(def_cfa_register(29),),
        unit=4,
        nop=bytes(4),
        call=0x0C000000.to_bytes(4, order) + bytes(4),  # jal, and its delay slot
        frame_align=8,
        code_align=4,
        data_align=-4,
    )


DIALECTS = {
    dialect.arch.name: dialect
    for dialect in (_X86_64, _ARM64, _mips(mips32.MIPS32EL), _mips(mips32.MIPS32))
}
