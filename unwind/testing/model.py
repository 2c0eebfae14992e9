"""The plain evaluator: the bytes of CFI in, its rows out, as DWARF 5 §6.4 says it and no faster.

It judges the engine, so it shares no code with it: what is read here is read by code of its own,
the rows are made by a list of cases in the order of the specification, and each row is a copy of
everything. The words for rules (`unwind.rules`) and the numbers of opcodes are the only things in
common, so that a row of either can be compared by `==`.

    for entry in model.read(section_bytes, vaddr, "eh_frame", "little", 8):
        if isinstance(entry, model.Fde):
            for row in model.rows(entry): ...

Where the specification is silent it does what libgcc's unwinder does, and says so. What breaks the
format raises `Invalid`; there are no limits on sizes, so its input must not be hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from unwind.dwarf.constants import DW_CFA, DW_EH_PE
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    CfaRule,
    Expression,
    InRegister,
    Offset,
    Origin,
    Row,
    Rule,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)

__all__ = ["Cie", "Fde", "Invalid", "read", "rows"]

Kind = Literal["eh_frame", "debug_frame"]
Order = Literal["little", "big"]


class Invalid(Exception):
    """Bytes that break the format, and where they do."""


@dataclass(frozen=True)
class Cie:
    """What the FDEs of one CIE have in common: DWARF 5 §6.4.1, LSB Core 5.0 §10.6.1.1."""

    section: _Section
    offset: int
    version: int
    augmentation: str
    address_size: int
    segment_size: int
    code_align: int
    data_align: int
    return_address: int
    pointers: int  # the encoding of addresses: R, else absptr
    signal: bool  # S: the code is a signal's trampoline
    program: bytes
    program_at: int


@dataclass(frozen=True)
class Fde:
    """The program for the code in [start, end)."""

    cie: Cie
    offset: int
    start: int
    end: int
    program: bytes
    program_at: int


def read(
    data: bytes,
    vaddr: int,
    kind: Kind,
    byteorder: Order,
    address_size: int,
    *,
    text_base: int = 0,
    data_base: int = 0,
    word_at: Callable[[int], int] | None = None,
) -> Iterator[Cie | Fde]:
    """The entries of a section that lies at `vaddr`, in its order; Invalid at the first bad one.

    `word_at` gives the address stored at a vaddr, for indirect pointers.
    """
    bases = {DW_EH_PE.textrel: text_base, DW_EH_PE.datarel: data_base}
    section = _Section(data, vaddr, kind, byteorder, address_size, bases, word_at)
    at = 0
    while at < len(data):
        cursor = section.cursor(at, len(data))
        length = cursor.unsigned(4)
        wide = length == 0xFFFFFFFF
        if wide:
            length = cursor.unsigned(8)
        elif length >= 0xFFFFFFF0:
            raise Invalid(f"a reserved length at {at:#x}")
        end = cursor.at + length
        if end > len(data):
            raise Invalid(f"an entry of {length} bytes at {at:#x}, where the section ends before")
        if length:  # 0 ends what one object file brought: LSB Core 5.0 §10.6.1
            yield _entry(section, at, wide, section.cursor(cursor.at, end))
        at = end


def rows(fde: Fde, *, aarch64: bool = False) -> list[Row]:
    """The rows that tile the FDE; Invalid where a program breaks the rules.

    `aarch64`: opcode 0x2d is that machine's DW_CFA_AARCH64_negate_ra_state and no
    DW_CFA_GNU_window_save.
    """
    cie = fde.cie
    before = _Table(cie, aarch64, {})
    cursor = _program(cie, cie.program_at, cie.program)
    while not cursor.is_done():
        _instruction(cursor, before, fde.start)  # where it leads to does not matter: no code here
    table = _Table(cie, aarch64, dict(before.rules))
    table.copy(before)
    table.location = fde.start
    cursor = _program(cie, fde.program_at, fde.program)
    made = []
    origin = Origin(cie.section.kind, fde.offset, cie.offset)
    while table.location < fde.end:
        start, cfa, rules, signed = table.location, table.cfa(), dict(table.rules), table.signed
        while not cursor.is_done() and table.location == start:
            _instruction(cursor, table, fde.start)
            if table.location == start:
                cfa, rules, signed = table.cfa(), dict(table.rules), table.signed
        end = fde.end if table.location == start else min(table.location, fde.end)
        made.append(Row(start, end, cfa, rules, cie.return_address, origin, cie.signal, signed))
        if table.location == start:
            break
    return made


def _program(cie: Cie, at: int, program: bytes) -> _Cursor:
    cursor = cie.section.cursor(at, at + len(program))
    cursor.address_size = cie.address_size
    return cursor


# ----------------------------------------------------------------------------- rules


class _Table:
    """The rules in effect, and the stack of DW_CFA_remember_state: DWARF 5 §6.4.2."""

    def __init__(self, cie: Cie, aarch64: bool, initial: dict[int, Rule]):
        self.cie, self.aarch64, self.initial = cie, aarch64, initial
        self.location = 0
        self.register: int | None = None
        self.offset = 0
        self.expression: bytes | None = None
        self.rules: dict[int, Rule] = {}
        self.signed = False
        self.stack: list[tuple[int | None, int, bytes | None, dict[int, Rule], bool]] = []

    def cfa(self) -> CfaRule | None:
        if self.expression is not None:
            return CfaExpression(self.expression)
        return None if self.register is None else CfaRegister(self.register, self.offset)

    def copy(self, other: _Table) -> None:
        self.register, self.offset, self.expression = other.register, other.offset, other.expression
        self.rules, self.signed = dict(other.rules), other.signed

    def define(self, register: int, offset: int) -> None:
        self.register, self.offset, self.expression = register, offset, None

    def remember(self) -> None:
        rules = dict(self.rules)
        self.stack.append((self.register, self.offset, self.expression, rules, self.signed))

    def restore(self) -> None:
        if not self.stack:
            raise Invalid("DW_CFA_restore_state, and no state is left")
        self.register, self.offset, self.expression, self.rules, self.signed = self.stack.pop()


def _instruction(cursor: _Cursor, table: _Table, function: int) -> None:
    """One instruction, in the order of DWARF 5 §6.4.2."""
    cie, byte = table.cie, cursor.unsigned(1)
    low = byte & 0x3F
    match byte & 0xC0 or byte:
        # §6.4.2.1 Row creation
        case DW_CFA.set_loc:
            address = cursor.pointer(cie.pointers, function)
            if address < table.location:
                raise Invalid(f"DW_CFA_set_loc goes back to {address:#x}")
            table.location = address
        case DW_CFA.advance_loc:
            table.location += low * cie.code_align
        case DW_CFA.advance_loc1:
            table.location += cursor.unsigned(1) * cie.code_align
        case DW_CFA.advance_loc2:
            table.location += cursor.unsigned(2) * cie.code_align
        case DW_CFA.advance_loc4:
            table.location += cursor.unsigned(4) * cie.code_align
        case DW_CFA.MIPS_advance_loc8:
            table.location += cursor.unsigned(8) * cie.code_align
        # §6.4.2.2 CFA definition
        case DW_CFA.def_cfa:
            table.define(cursor.uleb(), cursor.uleb())
        case DW_CFA.def_cfa_sf:
            table.define(cursor.uleb(), cursor.sleb() * cie.data_align)
        case DW_CFA.def_cfa_register:
            # After an expression, or as a CIE's first word, not lawful; gas does the latter for
            # MIPS. As in libgcc, the offset is the last one, 0 at first.
            table.define(cursor.uleb(), table.offset)
        case DW_CFA.def_cfa_offset:
            _offset(table, cursor.uleb())
        case DW_CFA.def_cfa_offset_sf:
            _offset(table, cursor.sleb() * cie.data_align)
        case DW_CFA.def_cfa_expression:
            table.expression = cursor.block()
        case opcode:
            _register_rule(opcode, low, cursor, table)


def _offset(table: _Table, offset: int) -> None:
    """Another offset. As in libgcc, an expression stays in effect and the offset is for later."""
    if table.register is None and table.expression is None:
        raise Invalid("an offset without a register")
    table.offset = offset


def _register_rule(opcode: int, low: int, cursor: _Cursor, table: _Table) -> None:
    """§6.4.2.3 Register rules."""
    rules, factor = table.rules, table.cie.data_align
    match opcode:
        case DW_CFA.undefined:
            rules[cursor.uleb()] = Undefined()
        case DW_CFA.same_value:
            rules[cursor.uleb()] = SameValue()
        case DW_CFA.offset:
            rules[low] = Offset(cursor.uleb() * factor)
        case DW_CFA.offset_extended:
            register = cursor.uleb()
            rules[register] = Offset(cursor.uleb() * factor)
        case DW_CFA.offset_extended_sf:
            register = cursor.uleb()
            rules[register] = Offset(cursor.sleb() * factor)
        case DW_CFA.val_offset:
            register = cursor.uleb()
            rules[register] = ValOffset(cursor.uleb() * factor)
        case DW_CFA.val_offset_sf:
            register = cursor.uleb()
            rules[register] = ValOffset(cursor.sleb() * factor)
        case DW_CFA.register:
            register = cursor.uleb()
            rules[register] = InRegister(cursor.uleb())
        case DW_CFA.expression:
            register = cursor.uleb()
            rules[register] = Expression(cursor.block())
        case DW_CFA.val_expression:
            register = cursor.uleb()
            rules[register] = ValExpression(cursor.block())
        case DW_CFA.restore:
            _initial(table, low)
        case DW_CFA.restore_extended:
            _initial(table, cursor.uleb())
        case _:
            _state(opcode, cursor, table)


def _initial(table: _Table, register: int) -> None:
    """The rule that the CIE's instructions gave the register; none if they gave none."""
    table.rules.pop(register, None)
    if register in table.initial:
        table.rules[register] = table.initial[register]


def _state(opcode: int, cursor: _Cursor, table: _Table) -> None:
    """§6.4.2.4 Row state, §6.4.2.5 padding, and the instructions of vendors."""
    match opcode:
        case DW_CFA.remember_state:
            table.remember()
        case DW_CFA.restore_state:
            table.restore()
        case DW_CFA.nop:
            pass
        case DW_CFA.GNU_args_size:
            cursor.uleb()
        case DW_CFA.GNU_negative_offset_extended:
            register = cursor.uleb()
            table.rules[register] = Offset(-cursor.uleb() * table.cie.data_align)
        case DW_CFA.AARCH64_negate_ra_state_with_pc:
            table.signed = not table.signed
        case DW_CFA.GNU_window_save if table.aarch64:
            table.signed = not table.signed
        case DW_CFA.GNU_window_save:  # SPARC: registers 16 to 31 lie at the CFA
            for n in range(16):
                table.rules[16 + n] = Offset(n * table.cie.address_size)
        case _:
            raise Invalid(f"instruction {opcode:#x}")


# ----------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class _Section:
    data: bytes
    vaddr: int
    kind: Kind
    byteorder: Order
    address_size: int
    bases: dict[int, int]
    word_at: Callable[[int], int] | None

    def cursor(self, at: int, end: int) -> _Cursor:
        return _Cursor(self, at, end, self.address_size)


def _entry(section: _Section, at: int, wide: bool, cursor: _Cursor) -> Cie | Fde:
    """The CIE or FDE at `at`; the cursor stands behind its length."""
    cie_at = _cie_pointer(section, wide, cursor)
    return _cie(section, at, cursor) if cie_at is None else _fde(section, at, cie_at, cursor)


def _cie_pointer(section: _Section, wide: bool, cursor: _Cursor) -> int | None:
    """The offset of an FDE's CIE; None for a CIE."""
    field = cursor.at
    if section.kind == "debug_frame":
        pointer = cursor.unsigned(8 if wide else 4)
        return None if pointer == (0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF) else pointer
    # LSB Core 5.0 §10.6.1 has a pointer of 4 bytes in 64-bit entries too, binutils one of 8.
    # One of 8 that leads back into the section is no accident.
    pointer = cursor.unsigned(4)
    if wide:
        whole = section.cursor(field, cursor.end).unsigned(8)
        if whole <= field:
            pointer = whole
            cursor.unsigned(4)
    return field - pointer if pointer else None


def _cie_at(section: _Section, at: int) -> Cie:
    if not 0 <= at < len(section.data):
        raise Invalid(f"a CIE at {at:#x}, out of the section")
    cursor = section.cursor(at, len(section.data))
    length = cursor.unsigned(4)
    wide = length == 0xFFFFFFFF
    if wide:
        length = cursor.unsigned(8)
    if cursor.at + length > len(section.data):
        raise Invalid(f"a CIE of {length} bytes at {at:#x}")
    cursor = section.cursor(cursor.at, cursor.at + length)
    if _cie_pointer(section, wide, cursor) is not None:
        raise Invalid(f"no CIE at {at:#x}")
    return _cie(section, at, cursor)


def _cie(section: _Section, at: int, cursor: _Cursor) -> Cie:
    version = cursor.unsigned(1)
    if version not in (1, 3, 4):
        raise Invalid(f"version {version} of the CIE at {at:#x}")
    augmentation = cursor.string()
    address_size, segment_size = section.address_size, 0
    if version == 4:
        address_size, segment_size = cursor.unsigned(1), cursor.unsigned(1)
        if address_size not in (2, 4, 8):
            raise Invalid(f"addresses of {address_size} bytes")
    cursor.address_size = address_size
    if augmentation == "eh":  # gcc 2
        cursor.unsigned(address_size)
    code_align, data_align = cursor.uleb(), cursor.sleb()
    return_address = cursor.unsigned(1) if version == 1 else cursor.uleb()
    pointers, signal = DW_EH_PE.absptr, False
    if augmentation[:1] == "z":
        size = cursor.uleb()
        data = section.cursor(cursor.at, cursor.at + size)
        data.address_size = address_size
        cursor.skip(size)
        pointers, signal = _letters(augmentation, data)
    elif all(letter in "SBG" for letter in augmentation):  # gas, in .debug_frame
        signal = "S" in augmentation
    elif augmentation != "eh" and augmentation[:5] != "armcc":
        raise Invalid(f"augmentation {augmentation!r}")
    program = section.data[cursor.at : cursor.end]
    return Cie(
        section=section,
        offset=at,
        version=version,
        augmentation=augmentation,
        address_size=address_size,
        segment_size=segment_size,
        code_align=code_align,
        data_align=data_align,
        return_address=return_address,
        pointers=pointers,
        signal=signal,
        program=program,
        program_at=cursor.at,
    )


def _letters(augmentation: str, data: _Cursor) -> tuple[int, bool]:
    """R's encoding, and whether S is there: LSB Core 5.0 §10.6.1.1.1; an unknown letter ends it."""
    encoding, signal = DW_EH_PE.absptr, False
    for letter in augmentation[1:]:
        if letter == "R":
            encoding = data.unsigned(1)
        elif letter == "L":
            data.unsigned(1)
        elif letter == "P":
            of_routine = data.unsigned(1)
            if of_routine != DW_EH_PE.omit:
                data.pointer(of_routine & ~DW_EH_PE.indirect, 0)
        elif letter == "S":
            signal = True
        elif letter not in "BG":
            break
    return encoding, signal


def _fde(section: _Section, at: int, cie_at: int, cursor: _Cursor) -> Fde:
    cie = _cie_at(section, cie_at)
    cursor.address_size = cie.address_size
    cursor.skip(cie.segment_size)
    start = cursor.pointer(cie.pointers, 0)
    size = cursor.pointer(cie.pointers & 0x07, 0)  # the format alone: LSB Core 5.0 §10.6.1.1.2
    if cie.augmentation[:1] == "z":
        cursor.skip(cursor.uleb())
    program = section.data[cursor.at : cursor.end]
    return Fde(cie, at, start, start + size, program, cursor.at)


class _Cursor:
    """A place in the section's bytes that moves on as numbers are read: DWARF 5 §7.6."""

    def __init__(self, section: _Section, at: int, end: int, address_size: int):
        self.section, self.at, self.end, self.address_size = section, at, end, address_size

    def is_done(self) -> bool:
        return self.at >= self.end

    def skip(self, size: int) -> bytes:
        if not 0 <= size <= self.end - self.at:
            raise Invalid(f"{size} bytes at {self.at:#x}, where {self.end - self.at} are left")
        self.at += size
        return bytes(self.section.data[self.at - size : self.at])

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.skip(size), self.section.byteorder)

    def uleb(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.unsigned(1)
            value += (byte % 128) << shift
            shift += 7
            if byte < 128:
                return value

    def sleb(self) -> int:
        start = self.at
        value = self.uleb()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >= 1 << (bits - 1) else value

    def block(self) -> bytes:
        return self.skip(self.uleb())

    def string(self) -> str:
        text = ""
        while byte := self.unsigned(1):
            text += chr(byte)
        return text

    def pointer(self, encoding: int, function: int) -> int:
        """An encoded address: LSB Core 5.0 §10.5.1, and gcc's `aligned` and `funcrel`."""
        size, section = self.address_size, self.section
        if encoding == DW_EH_PE.omit:
            raise Invalid("an address that is omitted")
        if encoding & 0x70 == DW_EH_PE.aligned:
            while (section.vaddr + self.at) % size:
                self.skip(1)
        place = section.vaddr + self.at
        match encoding & 0x0F:
            case DW_EH_PE.uleb128:
                value = self.uleb()
            case DW_EH_PE.sleb128:
                value = self.sleb()
            case format if format & 7 in (0, 2, 3, 4):
                width = {0: size, 2: 2, 3: 4, 4: 8}[format & 7]
                value = self.unsigned(width)
                if format & DW_EH_PE.signed and value >> (8 * width - 1):
                    value -= 1 << 8 * width
            case _:
                raise Invalid(f"pointer encoding {encoding:#x}")
        bases = {DW_EH_PE.pcrel: place, DW_EH_PE.funcrel: function, 0: 0, DW_EH_PE.aligned: 0}
        bases |= section.bases
        if encoding & 0x70 not in bases:
            raise Invalid(f"pointer encoding {encoding:#x}")
        value = (value + bases[encoding & 0x70]) % (1 << 8 * size)
        if encoding & DW_EH_PE.indirect:
            if section.word_at is None:
                raise Invalid("an indirect pointer, and no memory")
            value = section.word_at(value)
        return value
