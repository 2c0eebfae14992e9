"""Outlines: an FDE in, of each of its rows what tells where the caller's pc and CFA are, out.

`rows` makes rows whole: every register, every rule, each with its origin. A profile of a compiler
meets five thousand FDEs, and of each row it wants the CFA, the return address and the frame
pointer. So this reads the instructions that compilers write, and leaves an FDE that has any other
to `rows`. `outline` makes the same of a Row: a property holds the two together.
"""

from __future__ import annotations

from unwind.dwarf.constants import DW_CFA
from unwind.dwarf.rows import initial_row
from unwind.rules import CfaRegister, Offset, SameValue, Undefined

__all__ = [
    "ODD",
    "UNDEFINED",
    "UNSAVED",
    "Outline",
    "Outlines",
    "entry_outline",
    "outline",
    "outlines",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from unwind.dwarf.cfi import Cie, Fde, Program
    from unwind.rules import Row

    # The CFA's register (ODD: an expression, or nothing) and the offset from there; where from
    # the CFA on the return address and the frame pointer are saved, or one of the words below;
    # the same for the stack pointer, which hardly a row states.
    Outline: TypeAlias = tuple[int, int, int, int, int]
    # The vaddrs at which the rows begin, ascending, and the row that begins there; the last one
    # ends with the FDE.
    Outlines: TypeAlias = tuple[list[int], list[Outline]]

# In place of an offset; none of these is one that a stack could have.
UNSAVED = 1 << 62  # nothing is said of it; the frame pointer is still in its register
UNDEFINED = (1 << 62) + 1
ODD = (1 << 62) + 2  # an expression, another register, …


def outline(row: Row, fp: int, sp: int) -> Outline:
    """What a Row comes to, where `fp` and `sp` are the frame and the stack pointer."""
    cfa = row.cfa
    if isinstance(cfa, CfaRegister):
        number, offset = cfa.number, cfa.offset
    else:
        number = offset = ODD
    saved_fp = UNSAVED if row.rules.get(fp) == SameValue() else _place(row, fp)
    return number, offset, _place(row, row.return_address), saved_fp, _place(row, sp)


def outlines(fde: Program | Fde, fp: int, sp: int, entry: Outline) -> Outlines | None:
    """The outlines of an FDE's rows; None where only `rows` can tell.

    `entry` is the outline of what its CIE comes to, `entry_outline(fde.cie, fp, sp)`.
    """
    if entry[0] == ODD or fde.cie.return_address in (fp, sp):
        return None
    try:
        return _follow(fde, fp, sp, entry)
    except (IndexError, StopIteration):  # it ends within an instruction
        return None


def entry_outline(cie: Cie, fp: int, sp: int) -> Outline:
    """The outline of what every FDE of a CIE begins with; FormatError where its program is bad."""
    return outline(initial_row(cie), fp, sp)


def _follow(fde: Program | Fde, fp: int, sp: int, entry: Outline) -> Outlines | None:
    """What the program of an FDE comes to; None at an instruction that is not a usual one.

    The usual ones (DWARF 5 §6.4.2) stand here in the order of how often compilers write them.
    """
    cie, end = fde.cie, fde.end
    code_align, data_align, column = cie.code_align, cie.data_align, cie.return_address
    register, offset, saved_pc, saved_fp, saved_sp = entry
    start = location = fde.start
    starts: list[int] = []
    found: list[Outline] = []
    remembered: list[Outline] = []
    code = iter(fde.instructions)
    take = code.__next__
    for opcode in code:
        if opcode >= _ADVANCE:
            number = opcode & 0x3F
            if opcode < _OFFSET:
                location += number * code_align
                if location > start:
                    starts.append(start)
                    found.append((register, offset, saved_pc, saved_fp, saved_sp))
                    if location >= end:
                        return starts, found
                    start = location
            elif opcode < _RESTORE:
                value = take()
                if value >= 0x80:
                    value = _uleb(value, take)
                if number == fp:
                    saved_fp = value * data_align
                elif number == column:
                    saved_pc = value * data_align
                elif number == sp:
                    return None
            elif number == fp:
                saved_fp = entry[3]
            elif number == column:
                saved_pc = entry[2]
        elif opcode == _DEF_CFA_OFFSET:
            offset = take()
            if offset >= 0x80:
                offset = _uleb(offset, take)
        elif opcode == _NOP:
            continue
        elif opcode == DW_CFA.remember_state:
            remembered.append((register, offset, saved_pc, saved_fp, saved_sp))
        elif opcode == DW_CFA.restore_state:
            register, offset, saved_pc, saved_fp, saved_sp = remembered.pop()
        elif opcode in _FAR:
            operand = bytes([take() for _ in range(_FAR[opcode])])
            location += int.from_bytes(operand, cie.encoding.byteorder) * code_align
            if location > start:
                starts.append(start)
                found.append((register, offset, saved_pc, saved_fp, saved_sp))
                if location >= end:
                    return starts, found
                start = location
        elif opcode == DW_CFA.def_cfa:
            register = _uleb(take(), take)
            offset = _uleb(take(), take)
        elif opcode == DW_CFA.def_cfa_register:
            register = _uleb(take(), take)
        elif opcode == DW_CFA.GNU_args_size:
            _uleb(take(), take)
        elif opcode == DW_CFA.undefined:
            if _uleb(take(), take) != column:
                return None
            saved_pc = UNDEFINED
        else:
            return None
    starts.append(start)
    found.append((register, offset, saved_pc, saved_fp, saved_sp))
    return starts, found


# The opcodes that are met most, by names that cost nothing to look up.
_NOP, _DEF_CFA_OFFSET = DW_CFA.nop, DW_CFA.def_cfa_offset
_ADVANCE, _OFFSET, _RESTORE = DW_CFA.advance_loc, DW_CFA.offset, DW_CFA.restore


# How many bytes of operand the longer ways to advance have.
_FAR = {DW_CFA.advance_loc1: 1, DW_CFA.advance_loc2: 2, DW_CFA.advance_loc4: 4}


def _uleb(byte: int, take: Callable[[], int]) -> int:
    """A ULEB128 (DWARF 5 §7.6) that begins with `byte`."""
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        byte = take()
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise IndexError
    return value


def _place(row: Row, register: int) -> int:
    """Where a register is saved, counted from the CFA, or one of the words for it."""
    match row.rules.get(register):
        case None:
            return UNSAVED
        case Offset(n=n):
            return n
        case Undefined():
            return UNDEFINED
        case _:
            return ODD
