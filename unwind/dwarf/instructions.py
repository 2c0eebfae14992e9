"""Call frame instructions: the bytes of a CIE's or FDE's program in, Instructions out."""

from __future__ import annotations

from unwind.dwarf.constants import DW_CFA, DW_EH_PE, cfa_name
from unwind.dwarf.reader import Encoding, Reader
from unwind.values import Value

__all__ = ["OPERANDS", "Instruction", "decode"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Instruction(Value):
    """One instruction with its operands as they are written: factored, if they are.

    None has more than one operand of a kind. `number` is the offset, the step, the address to go
    to, or the second register.
    """

    opcode: int
    register: int = 0
    number: int = 0
    block: bytes = b""


# The operands of each instruction in their order: DWARF 5 §6.4.2 and §7.24. Those of the first
# three lie in the opcode's low bits, but for the number of `offset`.
OPERANDS: dict[int, tuple[str, ...]] = {
    DW_CFA.advance_loc: ("low number",),
    DW_CFA.offset: ("low register", "uleb"),
    DW_CFA.restore: ("low register",),
    DW_CFA.nop: (),
    DW_CFA.set_loc: ("pointer",),
    DW_CFA.advance_loc1: ("u8",),
    DW_CFA.advance_loc2: ("u16",),
    DW_CFA.advance_loc4: ("u32",),
    DW_CFA.offset_extended: ("register", "uleb"),
    DW_CFA.restore_extended: ("register",),
    DW_CFA.undefined: ("register",),
    DW_CFA.same_value: ("register",),
    DW_CFA.register: ("register", "uleb"),
    DW_CFA.remember_state: (),
    DW_CFA.restore_state: (),
    DW_CFA.def_cfa: ("register", "uleb"),
    DW_CFA.def_cfa_register: ("register",),
    DW_CFA.def_cfa_offset: ("uleb",),
    DW_CFA.def_cfa_expression: ("block",),
    DW_CFA.expression: ("register", "block"),
    DW_CFA.offset_extended_sf: ("register", "sleb"),
    DW_CFA.def_cfa_sf: ("register", "sleb"),
    DW_CFA.def_cfa_offset_sf: ("sleb",),
    DW_CFA.val_offset: ("register", "uleb"),
    DW_CFA.val_offset_sf: ("register", "sleb"),
    DW_CFA.val_expression: ("register", "block"),
    DW_CFA.MIPS_advance_loc8: ("u64",),
    DW_CFA.AARCH64_negate_ra_state_with_pc: (),
    DW_CFA.GNU_window_save: (),
    DW_CFA.GNU_args_size: ("uleb",),
    DW_CFA.GNU_negative_offset_extended: ("register", "uleb"),
}


def decode(
    code: bytes,
    encoding: Encoding,
    offset: int = 0,
    pointers: int = DW_EH_PE.absptr,
    function: int | None = None,
) -> Iterator[Instruction]:
    """The instructions of `code`, one after the other; FormatError at the first that is bad.

    `offset` is where the code lies in its section. `pointers` is how `set_loc` writes addresses,
    `function` what they are relative to where they are funcrel.
    """
    at, end, last = 0, len(code), len(code) - 1
    while at < end:
        # Nearly all instructions have one or two bytes, and there are few different ones: a
        # program is looked up rather than read.
        byte = code[at]
        known = _ONE_BYTE.get(byte)
        if known is not None:
            at += 1
            yield known
            continue
        if at < last:
            known = _TWO_BYTES.get(byte << 8 | code[at + 1])
            if known is not None:
                at += 2
                yield known
                continue
        reader = Reader(code, encoding, offset, at)
        instruction = _read(reader, pointers, function)
        size, at = reader.at - at, reader.at
        if size == 1:
            _ONE_BYTE[byte] = instruction
        elif size == 2 and byte != DW_CFA.set_loc:  # whose operand depends on the place
            _TWO_BYTES[byte << 8 | code[at - 1]] = instruction
        yield instruction


_ONE_BYTE: dict[int, Instruction] = {}
_TWO_BYTES: dict[int, Instruction] = {}


def _read(reader: Reader, pointers: int, function: int | None) -> Instruction:
    start = reader.at
    byte = reader.u8()
    opcode = byte & 0xC0 or byte
    low = byte & 0x3F
    register, number, block = 0, 0, b""
    if opcode not in OPERANDS:
        reader.at = start
        raise reader.error(f"{cfa_name(opcode)} is no instruction that is known")
    for kind in OPERANDS[opcode]:
        match kind:
            case "low number":
                number = low
            case "low register":
                register = low
            case "register":
                register = reader.uleb()
            case "uleb":
                number = reader.uleb()
            case "sleb":
                number = reader.sleb()
            case "block":
                block = reader.take(reader.uleb())
            case "u8":
                number = reader.u8()
            case "u16":
                number = reader.u16()
            case "u32":
                number = reader.u32()
            case "u64":
                number = reader.u64()
            case "pointer":
                address = reader.pointer(pointers, function=function)
                if address is None:
                    raise reader.error("DW_CFA_set_loc where addresses are omitted")
                number = address
    return Instruction(opcode, register, number, block)
