"""Small worlds for the unwinder's tests: a module with code and CFI, a stack, registers."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from unwind.arch.x86_64 import ARCH
from unwind.architecture import Architecture
from unwind.elf import Elf
from unwind.image import Image
from unwind.memory import Layers, Span
from unwind.modules import Module, State
from unwind.registers import Registers
from unwind.snapshot import Snapshot
from unwind.space import AddressSpace, Region
from unwind.testing.assembler import CIE, FDE, Section

BIAS = 0x5555_0000_0000
STACK = 0x7FFF_0000_0000
_CODE, _CFI, _HEADER = 0x1000, 0x4000, 0x8000  # vaddrs of the module's parts
_SIZE = 0xA000
CALL = bytes.fromhex("e800000000")  # call rel32

Entries = Iterable[CIE | FDE | bytes]


def elf_image(
    entries: Entries = (), code: Mapping[int, bytes] | None = None, arch: Architecture = ARCH
) -> Image:
    """An ELF file without section headers: text from vaddr 0x1000 on, and CFI if any is given."""
    file = bytearray(_SIZE)
    for vaddr, text in (code or {}).items():
        file[vaddr : vaddr + len(text)] = text
    segments = [(1, 5, 0, _SIZE)]  # PT_LOAD, R+X
    section = Section(*entries, vaddr=_CFI)
    if section.data:
        data = bytes(section.data) + bytes(4)
        file[_CFI : _CFI + len(data)] = data
        header = section.header(vaddr=_HEADER)
        file[_HEADER : _HEADER + len(header)] = header
        segments.append((0x6474E550, 4, _HEADER, len(header)))  # PT_GNU_EH_FRAME
    file[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 3, arch.machine, 1, 0, 64, 0, 0, 64, 56, len(segments)),
        *(64, 0, 0),
    )
    for n, (kind, flags, at, size) in enumerate(segments):
        words = (kind, flags, at, at, at, size, size, 0x1000)
        file[64 + 56 * n : 120 + 56 * n] = struct.pack("<IIQQQQQQ", *words)
    return Image(Elf(bytes(file), "test.so"))


@dataclass
class World:
    """A process with one module and one stack; what a test does not say has a plain value."""

    entries: Entries = ()
    code: Mapping[int, bytes] = field(default_factory=dict)
    stack: Iterable[int] = ()  # words from the stack pointer on
    pc: int = _CODE
    registers: Mapping[int, int] = field(default_factory=dict)
    regions: Iterable[Region] = ()  # besides the module and the stack
    complete: bool = True
    with_file: bool = True
    arch: Architecture = field(default=ARCH, repr=False)

    def snapshot(self) -> Snapshot:
        image = elf_image(self.entries, self.code, self.arch) if self.with_file else None
        state = State.OK if self.with_file else State.MISSING
        module = Module(
            "/lib/test.so",
            BIAS,
            ((BIAS, BIAS + _SIZE),),
            image,
            state,
            build_id=bytes.fromhex("abcd"),
            tried=() if self.with_file else ("/lib/test.so: no such file",),
        )
        words = b"".join(word.to_bytes(8, "little") for word in self.stack)
        stack = Span(STACK, words)
        loaded = [Span(BIAS, image.at(0))] if image is not None else []
        regions = [
            Region(BIAS, BIAS + _SIZE, True, "/lib/test.so"),
            Region(STACK, STACK + 0x10000, False, "[stack]"),
            *self.regions,
        ]
        space = AddressSpace(self.arch, [module], regions if self.complete else None)
        pc = self.pc + BIAS if self.pc < _SIZE else self.pc
        given = {self.arch.pc: pc, self.arch.sp: STACK}
        registers = Registers({**given, **self.registers})
        return Snapshot(registers, Layers([stack, *loaded]), space, tid=1, pid=1)
