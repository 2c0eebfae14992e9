"""Names for the numbers of .debug_info and .debug_line (DWARF 5 §7, and GNU extensions)."""

from __future__ import annotations

__all__ = [
    "DW_AT",
    "DW_FORM",
    "DW_LNCT",
    "DW_LNE",
    "DW_LNS",
    "DW_RLE",
    "DW_SECT",
    "DW_TAG",
    "DW_UT",
]


class DW_TAG:
    """Tags of entries: those that are looked at (DWARF 5 §7.5.3)."""

    compile_unit, partial_unit, skeleton_unit = 0x11, 0x3C, 0x4A
    subprogram, inlined_subroutine, entry_point = 0x2E, 0x1D, 0x03


class DW_AT:
    """Attributes that are looked at (DWARF 5 §7.5.4; GNU ones: binutils' include/dwarf2.def)."""

    sibling, name, stmt_list, low_pc, high_pc, comp_dir = 0x01, 0x03, 0x10, 0x11, 0x12, 0x1B
    abstract_origin, specification, ranges = 0x31, 0x47, 0x55
    call_column, call_file, call_line, linkage_name = 0x57, 0x58, 0x59, 0x6E
    str_offsets_base, addr_base, rnglists_base, dwo_name = 0x72, 0x73, 0x74, 0x76
    MIPS_linkage_name = 0x2007
    GNU_dwo_name, GNU_dwo_id, GNU_ranges_base, GNU_addr_base = 0x2130, 0x2131, 0x2132, 0x2133


class DW_FORM:
    """Forms of attributes (DWARF 5 §7.5.6; the GNU ones are for split DWARF 4 and for dwz)."""

    addr, block2, block4, data2, data4, data8 = 0x01, 0x03, 0x04, 0x05, 0x06, 0x07
    string, block, block1, data1, flag, sdata, strp = 0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
    udata, ref_addr, ref1, ref2, ref4, ref8 = 0x0F, 0x10, 0x11, 0x12, 0x13, 0x14
    ref_udata, indirect, sec_offset, exprloc, flag_present = 0x15, 0x16, 0x17, 0x18, 0x19
    strx, addrx, ref_sup4, strp_sup, data16, line_strp = 0x1A, 0x1B, 0x1C, 0x1D, 0x1E, 0x1F
    ref_sig8, implicit_const, loclistx, rnglistx, ref_sup8 = 0x20, 0x21, 0x22, 0x23, 0x24
    strx1, strx2, strx3, strx4 = 0x25, 0x26, 0x27, 0x28
    addrx1, addrx2, addrx3, addrx4 = 0x29, 0x2A, 0x2B, 0x2C
    GNU_addr_index, GNU_str_index, GNU_ref_alt, GNU_strp_alt = 0x1F01, 0x1F02, 0x1F20, 0x1F21


class DW_UT:
    """Kinds of units (DWARF 5 §7.5.1)."""

    compile, type, partial, skeleton, split_compile, split_type = 1, 2, 3, 4, 5, 6


class DW_LNS:
    """Standard opcodes of a line program (DWARF 5 §7.22)."""

    copy, advance_pc, advance_line, set_file, set_column, negate_stmt = 1, 2, 3, 4, 5, 6
    set_basic_block, const_add_pc, fixed_advance_pc = 7, 8, 9
    set_prologue_end, set_epilogue_begin, set_isa = 10, 11, 12


class DW_LNE:
    """Extended opcodes of a line program (DWARF 5 §7.22)."""

    end_sequence, set_address, define_file, set_discriminator = 1, 2, 3, 4


class DW_LNCT:
    """What the fields of a file or directory entry are (DWARF 5 §7.22)."""

    path, directory_index = 1, 2


class DW_RLE:
    """Entries of a range list (DWARF 5 §7.25)."""

    end_of_list, base_addressx, startx_endx, startx_length = 0, 1, 2, 3
    offset_pair, base_address, start_end, start_length = 4, 5, 6, 7


class DW_SECT:
    """Columns of a package's index (DWARF 5 §7.3.5.3; GCC's before had 8 for .debug_macro...)."""

    INFO, ABBREV, LINE, STR_OFFSETS, RNGLISTS = 1, 3, 4, 6, 8
