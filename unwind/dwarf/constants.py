"""The numbers of DWARF call frame information, by the names that the specifications give them."""

from __future__ import annotations

__all__ = ["DW_CFA", "DW_EH_PE", "DW_OP", "VENDOR_OPCODES", "cfa_name", "op_name"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class DW_CFA:
    """Call frame instructions: DWARF 5 §7.24, table 7.29; the vendors' as in binutils' dwarf2.def.

    The first three keep an operand in their low six bits.
    """

    advance_loc = 0x40
    offset = 0x80
    restore = 0xC0

    nop = 0x00
    set_loc = 0x01
    advance_loc1 = 0x02
    advance_loc2 = 0x03
    advance_loc4 = 0x04
    offset_extended = 0x05
    restore_extended = 0x06
    undefined = 0x07
    same_value = 0x08
    register = 0x09
    remember_state = 0x0A
    restore_state = 0x0B
    def_cfa = 0x0C
    def_cfa_register = 0x0D
    def_cfa_offset = 0x0E
    def_cfa_expression = 0x0F
    expression = 0x10
    offset_extended_sf = 0x11
    def_cfa_sf = 0x12
    def_cfa_offset_sf = 0x13
    val_offset = 0x14
    val_offset_sf = 0x15
    val_expression = 0x16

    MIPS_advance_loc8 = 0x1D
    AARCH64_negate_ra_state_with_pc = 0x2C
    GNU_window_save = 0x2D  # AARCH64_negate_ra_state on that machine
    GNU_args_size = 0x2E
    GNU_negative_offset_extended = 0x2F


# What the vendors' opcodes mean where no architecture says otherwise.
VENDOR_OPCODES = {
    DW_CFA.MIPS_advance_loc8: "MIPS_advance_loc8",
    DW_CFA.AARCH64_negate_ra_state_with_pc: "AARCH64_negate_ra_state_with_pc",
    DW_CFA.GNU_window_save: "GNU_window_save",
    DW_CFA.GNU_args_size: "GNU_args_size",
    DW_CFA.GNU_negative_offset_extended: "GNU_negative_offset_extended",
}


class DW_OP:
    """Operations of DWARF expressions: DWARF 5 §7.7.1, table 7.9.

    `lit0`, `reg0` and `breg0` begin series of 32. Operations that CFI may not use (DWARF 5
    §6.4.2: those that need a compilation unit, an object or another frame) are left out.
    """

    addr = 0x03
    deref = 0x06
    const1u = 0x08
    const1s = 0x09
    const2u = 0x0A
    const2s = 0x0B
    const4u = 0x0C
    const4s = 0x0D
    const8u = 0x0E
    const8s = 0x0F
    constu = 0x10
    consts = 0x11
    dup = 0x12
    drop = 0x13
    over = 0x14
    pick = 0x15
    swap = 0x16
    rot = 0x17
    xderef = 0x18
    abs = 0x19
    and_ = 0x1A
    div = 0x1B
    minus = 0x1C
    mod = 0x1D
    mul = 0x1E
    neg = 0x1F
    not_ = 0x20
    or_ = 0x21
    plus = 0x22
    plus_uconst = 0x23
    shl = 0x24
    shr = 0x25
    shra = 0x26
    xor = 0x27
    bra = 0x28
    eq = 0x29
    ge = 0x2A
    gt = 0x2B
    le = 0x2C
    lt = 0x2D
    ne = 0x2E
    skip = 0x2F
    lit0 = 0x30
    lit31 = 0x4F
    reg0 = 0x50
    reg31 = 0x6F
    breg0 = 0x70
    breg31 = 0x8F
    regx = 0x90
    bregx = 0x92
    deref_size = 0x94
    xderef_size = 0x95
    nop = 0x96


class DW_EH_PE:
    """How a pointer is written: LSB Core 5.0 §10.5.1: a format, an application, and `indirect`."""

    absptr = 0x00
    uleb128 = 0x01
    udata2 = 0x02
    udata4 = 0x03
    udata8 = 0x04
    signed = 0x08  # of the size of an address
    sleb128 = 0x09
    sdata2 = 0x0A
    sdata4 = 0x0B
    sdata8 = 0x0C

    pcrel = 0x10
    textrel = 0x20
    datarel = 0x30
    funcrel = 0x40
    aligned = 0x50

    indirect = 0x80
    omit = 0xFF


def cfa_name(opcode: int, vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES) -> str:
    """`DW_CFA_offset` for 0x80, `DW_CFA_0x3e` for what nobody defines."""
    name = vendor_opcodes.get(opcode) or _names(DW_CFA).get(opcode)
    return f"DW_CFA_{name or hex(opcode)}"


def op_name(opcode: int) -> str:
    """`DW_OP_breg7` for 0x77, `DW_OP_0xf0` for what CFI may not use."""
    for series, first in (("lit", DW_OP.lit0), ("reg", DW_OP.reg0), ("breg", DW_OP.breg0)):
        if first <= opcode < first + 32:
            return f"DW_OP_{series}{opcode - first}"
    name = _names(DW_OP).get(opcode)
    return f"DW_OP_{name.rstrip('_') if name else hex(opcode)}"


def _names(table: type) -> dict[int, str]:
    names = _known.get(table)
    if names is None:
        pairs = vars(table).items()
        names = {number: name for name, number in pairs if isinstance(number, int)}
        _known[table] = names
    return names


_known: dict[type, dict[int, str]] = {}
