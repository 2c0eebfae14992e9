"""An assembler of CFI for tests: programs, CIEs and FDEs in, the bytes of their sections out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.constants import DW_CFA, DW_EH_PE, DW_OP, VENDOR_OPCODES
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.dwarf.expression import OPERANDS as OP_OPERANDS
from unwind.dwarf.instructions import OPERANDS as CFA_OPERANDS
from unwind.dwarf.instructions import Instruction
from unwind.dwarf.rows import rows
from unwind.rules import Row

if TYPE_CHECKING:
    from unwind.dwarf.cfi import Kind
    from unwind.protocols import ByteOrder

# x86-64 psABI 1.0 fig. 3.36: the registers that most programs here are about.
RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP = range(8)
R8, R9, R10, R11, R12, R13, R14, R15, RIP = range(8, 17)


# Programs. Operands stand as the instruction keeps them: factored, if it factors them.


def nop() -> Instruction:
    return Instruction(DW_CFA.nop)


def set_loc(vaddr: int) -> Instruction:
    return Instruction(DW_CFA.set_loc, number=vaddr)


def advance_loc(delta: int) -> Instruction:
    return Instruction(DW_CFA.advance_loc, number=delta)


def advance_loc1(delta: int) -> Instruction:
    return Instruction(DW_CFA.advance_loc1, number=delta)


def advance_loc2(delta: int) -> Instruction:
    return Instruction(DW_CFA.advance_loc2, number=delta)


def advance_loc4(delta: int) -> Instruction:
    return Instruction(DW_CFA.advance_loc4, number=delta)


def advance_loc8(delta: int) -> Instruction:
    return Instruction(DW_CFA.MIPS_advance_loc8, number=delta)


def def_cfa(register: int, offset: int) -> Instruction:
    return Instruction(DW_CFA.def_cfa, register, offset)


def def_cfa_sf(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.def_cfa_sf, register, factored)


def def_cfa_register(register: int) -> Instruction:
    return Instruction(DW_CFA.def_cfa_register, register)


def def_cfa_offset(offset: int) -> Instruction:
    return Instruction(DW_CFA.def_cfa_offset, number=offset)


def def_cfa_offset_sf(factored: int) -> Instruction:
    return Instruction(DW_CFA.def_cfa_offset_sf, number=factored)


def def_cfa_expression(code: bytes) -> Instruction:
    return Instruction(DW_CFA.def_cfa_expression, block=code)


def undefined(register: int) -> Instruction:
    return Instruction(DW_CFA.undefined, register)


def same_value(register: int) -> Instruction:
    return Instruction(DW_CFA.same_value, register)


def offset(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.offset, register, factored)


def offset_extended(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.offset_extended, register, factored)


def offset_extended_sf(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.offset_extended_sf, register, factored)


def val_offset(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.val_offset, register, factored)


def val_offset_sf(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.val_offset_sf, register, factored)


def in_register(register: int, other: int) -> Instruction:
    return Instruction(DW_CFA.register, register, other)


def expression(register: int, code: bytes) -> Instruction:
    return Instruction(DW_CFA.expression, register, block=code)


def val_expression(register: int, code: bytes) -> Instruction:
    return Instruction(DW_CFA.val_expression, register, block=code)


def restore(register: int) -> Instruction:
    return Instruction(DW_CFA.restore, register)


def restore_extended(register: int) -> Instruction:
    return Instruction(DW_CFA.restore_extended, register)


def remember_state() -> Instruction:
    return Instruction(DW_CFA.remember_state)


def restore_state() -> Instruction:
    return Instruction(DW_CFA.restore_state)


def negate_ra_state() -> Instruction:
    return Instruction(DW_CFA.GNU_window_save)


def negate_ra_state_with_pc() -> Instruction:
    return Instruction(DW_CFA.AARCH64_negate_ra_state_with_pc)


def window_save() -> Instruction:
    return Instruction(DW_CFA.GNU_window_save)


def args_size(size: int) -> Instruction:
    return Instruction(DW_CFA.GNU_args_size, number=size)


def negative_offset_extended(register: int, factored: int) -> Instruction:
    return Instruction(DW_CFA.GNU_negative_offset_extended, register, factored)


# Expressions: an operation is a number, or a tuple of it and its operands.

Operation = int | tuple[int, ...]


def breg(register: int, offset: int = 0) -> Operation:
    return (DW_OP.breg0 + register, offset)


def lit(value: int) -> Operation:
    return DW_OP.lit0 + value


def code(*operations: Operation, word: int = 8, byteorder: ByteOrder = "little") -> bytes:
    """The bytes of an expression."""
    target = Target(byteorder, word)
    out = bytearray()
    for operation in operations:
        opcode, *operands = (operation,) if isinstance(operation, int) else operation
        out.append(opcode)
        for kind, operand in zip(OP_OPERANDS.get(opcode, ()), operands, strict=True):
            out += target.number(kind, operand)
    return bytes(out)


@dataclass(frozen=True)
class Target:
    """Byte order, address size, and what pointers are relative to."""

    byteorder: ByteOrder = "little"
    address_size: int = 8
    text_base: int = 0
    data_base: int = 0

    def fixed(self, value: int, size: int) -> bytes:
        """A number of `size` bytes, negative ones in two's complement."""
        return (value & ((1 << 8 * size) - 1)).to_bytes(size, self.byteorder)

    def number(self, kind: str, value: int) -> bytes:
        """An operand of a kind that the decoders' tables name."""
        if kind == "word":
            return self.fixed(value, self.address_size)
        if kind in ("uleb", "register"):
            return uleb(value)
        if kind == "sleb":
            return sleb(value)
        return self.fixed(value, int(kind[1:]) // 8)

    def pointer(self, value: int, encoding: int, place: int, function: int = 0) -> bytes:
        """A pointer to `value`, written at vaddr `place`."""
        if encoding == DW_EH_PE.omit:
            return b""
        padding = b""
        application = encoding & 0x70
        if application == DW_EH_PE.aligned:
            padding = bytes(-place % self.address_size)
        bases = {
            DW_EH_PE.pcrel: place,
            DW_EH_PE.textrel: self.text_base,
            DW_EH_PE.datarel: self.data_base,
            DW_EH_PE.funcrel: function,
        }
        value -= bases.get(application, 0)
        half = 1 << (8 * self.address_size - 1)
        match encoding & 0x0F:
            case DW_EH_PE.uleb128:
                return padding + uleb(value % (2 * half))
            case DW_EH_PE.sleb128:
                return padding + sleb((value + half) % (2 * half) - half)
            case DW_EH_PE.absptr | DW_EH_PE.signed:
                return padding + self.fixed(value, self.address_size)
            case format:
                return padding + self.fixed(value, {2: 2, 3: 4, 4: 8}[format & 7])


def uleb(value: int) -> bytes:
    """An unsigned LEB128 number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def sleb(value: int) -> bytes:
    """A signed LEB128 number."""
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value & 0x7F])


def assemble(
    program: Iterable[Instruction] | bytes,
    target: Target = Target(),
    place: int = 0,
    pointers: int = DW_EH_PE.absptr,
    function: int = 0,
) -> bytes:
    """The bytes of a program that begins at vaddr `place`; the inverse of `decode`.

    A program that is bytes already stays as it is, damaged as it may be.
    """
    if isinstance(program, bytes):
        return program
    out = bytearray()
    for instruction in program:
        opcode = instruction.opcode
        numbers = instruction.number
        low = {"low number": numbers, "low register": instruction.register}
        kinds = CFA_OPERANDS[opcode]
        bits = [low[kind] for kind in kinds if kind in low]
        if bits and not 0 <= bits[0] < 64:
            raise ValueError(f"{instruction} does not fit in six bits")
        out.append(opcode | sum(bits))
        for kind in kinds:
            match kind:
                case "register":
                    out += uleb(instruction.register)
                case "block":
                    out += uleb(len(instruction.block)) + instruction.block
                case "pointer":
                    out += target.pointer(numbers, pointers, place + len(out), function)
                case _ if kind not in low:
                    out += target.number(kind, numbers)
    return bytes(out)


# Sections.


@dataclass(eq=False)
class CIE:
    """A CIE as it is to be written. `address_size` and `segment_size` stand in version 4 only."""

    program: Sequence[Instruction] | bytes = (def_cfa(RSP, 8), offset(RIP, 1))
    version: int = 1
    augmentation: str = "zR"
    code_align: int = 1
    data_align: int = -8
    return_address: int = RIP
    pointers: int = DW_EH_PE.pcrel | DW_EH_PE.sdata4
    lsda_encoding: int = DW_EH_PE.omit
    personality_encoding: int = DW_EH_PE.omit
    personality: int = 0
    unknown: bytes = b""  # the data of letters that nobody knows
    address_size: int | None = None
    segment_size: int = 0
    wide: bool = False


@dataclass(eq=False)
class FDE:
    """An FDE as it is to be written; its CIE is written before it where it was not yet."""

    start: int
    size: int
    program: Sequence[Instruction] | bytes = ()
    cie: CIE = field(default_factory=CIE)
    lsda: int = 0
    segment: int = 0


TERMINATOR = bytes(4)


class Section:
    """A section that grows: `add` entries or plain bytes, then look at it with `frames`."""

    def __init__(
        self,
        *entries: CIE | FDE | bytes,
        kind: Kind = "eh_frame",
        vaddr: int = 0x10_0000,
        target: Target = Target(),
        id_size: int = 8,
    ):
        self.kind: Kind = kind
        self.vaddr = vaddr
        self.target = target
        self.data = bytearray()
        self.offsets: list[int] = []  # of what was added, in order
        self.fdes: list[tuple[int, int]] = []  # start and offset of each FDE
        self._cies: dict[CIE, int] = {}
        self._id_size = id_size
        for entry in entries:
            self.add(entry)

    def add(self, entry: CIE | FDE | bytes) -> int:
        """Appends an entry and gives its offset."""
        if isinstance(entry, FDE) and entry.cie not in self._cies:
            self.add(entry.cie)
        at = len(self.data)
        if isinstance(entry, bytes):
            self.data += entry
        elif isinstance(entry, CIE):
            self._cies[entry] = at
            self._append(entry.wide, None, lambda place: self._cie(entry, place))
        else:
            self.fdes.append((entry.start, at))
            cie = self._cies[entry.cie]
            self._append(entry.cie.wide, cie, lambda place: self._fde(entry, place))
        self.offsets.append(at)
        return at

    def frames(self, **options: Any) -> FrameSection:
        """The section as the engine sees it."""
        target = self.target
        options = {"text_base": target.text_base, "data_base": target.data_base} | options
        return FrameSection(
            bytes(self.data),
            self.vaddr,
            self.kind,
            target.byteorder,
            target.address_size,
            **options,
        )

    def search_table(
        self,
        entries: Iterable[tuple[int, int]] | None = None,
        *,
        vaddr: int = 0x20_0000,
        encoding: int = DW_EH_PE.datarel | DW_EH_PE.sdata4,
        frame_encoding: int = DW_EH_PE.pcrel | DW_EH_PE.sdata4,
        count_encoding: int = DW_EH_PE.udata4,
    ) -> SearchTable:
        """The table of .eh_frame_hdr; `entries` are starts with section offsets, sorted here."""
        target = self.target
        return SearchTable(
            self.header(entries, vaddr, encoding, frame_encoding, count_encoding),
            vaddr,
            target.byteorder,
            target.address_size,
        )

    def header(
        self,
        entries: Iterable[tuple[int, int]] | None = None,
        vaddr: int = 0x20_0000,
        encoding: int = DW_EH_PE.datarel | DW_EH_PE.sdata4,
        frame_encoding: int = DW_EH_PE.pcrel | DW_EH_PE.sdata4,
        count_encoding: int = DW_EH_PE.udata4,
    ) -> bytes:
        """The bytes of .eh_frame_hdr. None: all FDEs, sorted; else the entries as they are."""
        target = Target(self.target.byteorder, self.target.address_size, data_base=vaddr)
        pairs = sorted(self.fdes) if entries is None else list(entries)
        out = bytearray([1, frame_encoding, count_encoding, encoding])
        out += target.pointer(self.vaddr, frame_encoding, vaddr + 4)
        out += target.pointer(len(pairs), count_encoding, vaddr + len(out))
        for start, at in pairs:
            out += target.pointer(start, encoding, vaddr + len(out))
            out += target.pointer(self.vaddr + at, encoding, vaddr + len(out))
        return bytes(out)

    def _append(self, wide: bool, cie: int | None, body: Callable[[int], bytes]) -> None:
        """One entry: length, CIE pointer, what `body` gives for its vaddr, nops to align it."""
        size = (self._id_size if self.kind == "eh_frame" else 8) if wide else 4
        head = (12 if wide else 4) + size
        at = len(self.data)
        content = body(self.vaddr + at + head)
        content += bytes(-(head + len(content)) % self.target.address_size)
        fixed = self.target.fixed
        length = head + len(content) - (12 if wide else 4)
        self.data += fixed(0xFFFFFFFF, 4) + fixed(length, 8) if wide else fixed(length, 4)
        if self.kind == "eh_frame":
            self.data += fixed(0 if cie is None else len(self.data) - cie, size)
        else:
            self.data += fixed(-1 if cie is None else cie, size)
        self.data += content

    def _target(self, cie: CIE) -> Target:
        """As the CIE's own address size has it."""
        target = self.target
        if not cie.address_size:
            return target
        return Target(target.byteorder, cie.address_size, target.text_base, target.data_base)

    def _cie(self, cie: CIE, place: int) -> bytes:
        target = self._target(cie)
        out = bytearray([cie.version]) + cie.augmentation.encode() + b"\0"
        if cie.version >= 4:
            out += bytes([cie.address_size or target.address_size, cie.segment_size])
        if cie.augmentation == "eh":
            out += target.fixed(0xE0E0E0, target.address_size)
        out += uleb(cie.code_align) + sleb(cie.data_align)
        out += bytes([cie.return_address]) if cie.version == 1 else uleb(cie.return_address)
        if cie.augmentation[:1] == "z":
            data = self._cie_data(cie, place + len(out) + 1)
            out += uleb(len(data)) + data
        return bytes(out + assemble(cie.program, target, place + len(out), cie.pointers))

    def _cie_data(self, cie: CIE, place: int) -> bytes:
        out = bytearray()
        for letter in cie.augmentation[1:]:
            match letter:
                case "R":
                    out.append(cie.pointers)
                case "L":
                    out.append(cie.lsda_encoding)
                case "P":
                    out.append(cie.personality_encoding)
                    out += self._target(cie).pointer(
                        cie.personality, cie.personality_encoding, place + len(out)
                    )
                case "S" | "B" | "G":
                    pass
                case _:
                    out += cie.unknown
        return bytes(out)

    def _fde(self, fde: FDE, place: int) -> bytes:
        target, cie = self._target(fde.cie), fde.cie
        pointers = cie.pointers if "R" in cie.augmentation else DW_EH_PE.absptr
        out = bytearray(target.fixed(fde.segment, cie.segment_size))
        out += target.pointer(fde.start, pointers, place + len(out))
        out += target.pointer(fde.size, pointers & 0x07, 0)
        if cie.augmentation[:1] == "z":
            data = b""
            if "L" in cie.augmentation:
                at = place + len(out) + 1
                if fde.lsda:
                    data = target.pointer(fde.lsda, cie.lsda_encoding, at, fde.start)
                elif cie.lsda_encoding != DW_EH_PE.omit:
                    # None: a stored 0, whatever it would be relative to.
                    is_aligned = cie.lsda_encoding & 0x70 == DW_EH_PE.aligned
                    encoding = cie.lsda_encoding & (0x7F if is_aligned else 0x0F)
                    data = bytes(len(target.pointer(0, encoding, at)))
            out += uleb(len(data)) + data
        at = place + len(out)
        return bytes(out + assemble(fde.program, target, at, pointers, fde.start))


def fde_of(*program: Instruction, size: int = 100, **cie: Any) -> Fde:
    """An FDE for [0x1000, 0x1000 + size) with this program; `cie` says what its CIE is like."""
    section = Section(FDE(0x1000, size, program, CIE(**cie)))
    return section.frames().fde_at(section.offsets[-1])


def rows_of(
    *program: Instruction, vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES, **options: Any
) -> list[Row]:
    """The rows of `fde_of` with the same arguments."""
    return list(rows(fde_of(*program, **options), vendor_opcodes))
