"""Rows: an FDE in, the rows that tile it out: what its program states and nothing else."""

from __future__ import annotations

from unwind.dwarf.constants import DW_CFA, VENDOR_OPCODES, cfa_name
from unwind.dwarf.instructions import Instruction, decode
from unwind.errors import FormatError
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    Offset,
    Origin,
    Row,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)

__all__ = ["initial_row", "row_at", "rows"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeVar

    from unwind.dwarf.cfi import Cie, Fde
    from unwind.rules import CfaRule, Rule

    AnyRule = TypeVar("AnyRule")
    _All = tuple[CfaRule | None, int | None, int, dict[int, Rule], bool]

# Each state that is remembered may hold a table of its own.
_DEEPEST = 4096

# Rules are made once: an unwinder's tables hold a few hundred different ones, many times over.
# The limits bound what hostile files can leave behind.
_MOST_RULES = 65_536
_LONGEST_RULE = 64  # bytes of its expression

# A row of many columns costs what they cost, and a hostile FDE can have a row for each byte.
_MOST_COLUMNS = 512


def rows(
    fde: Fde, vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES, *, empty: bool = False
) -> Iterator[Row]:
    """The rows of `fde` in order: each begins where the one before ends, the last ends with it.

    FormatError where the program is bad, after the rows before that place. `empty`: also rows
    that cover nothing, which an advance by 0 makes, or one to the end or beyond.
    """
    end = fde.end
    for start, location, state in _stretches(fde, vendor_opcodes):
        if start < location and start < end:
            yield state.row(start, location if location < end else end)
        elif empty:
            yield state.row(start, start)
        if location >= end and not empty:
            return


def row_at(fde: Fde, vaddr: int, vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES) -> Row | None:
    """The row of `fde` in effect at `vaddr`, None where the FDE does not cover it.

    FormatError where the program is bad before that place; what comes after is not read.
    """
    if fde.start <= vaddr < fde.end:
        for start, location, state in _stretches(fde, vendor_opcodes):
            if vaddr < location:
                return state.row(start, min(location, fde.end))
    return None


def _stretches(fde: Fde, vendor: Mapping[int, str]) -> Iterator[tuple[int, int, _State]]:
    """Each stretch of code that has one set of rules, and the state that holds them meanwhile."""
    cie = fde.cie
    state = _at_entry(fde, vendor)
    execute = state.execute
    start = fde.start
    for instruction in decode(
        fde.instructions, cie.encoding, fde.instructions_offset, cie.pointer_encoding, start
    ):
        opcode = instruction.opcode
        if opcode not in _ADVANCES:
            if opcode != DW_CFA.nop:  # half of all that are no advances are padding
                execute(instruction)
            continue
        # Row creation: DWARF 5 §6.4.2.1.
        if opcode == DW_CFA.set_loc:
            location = instruction.number
            if location < start:
                raise state.error(f"DW_CFA_set_loc goes back to {location:#x}")
        else:
            location = start + instruction.number * cie.code_align
        yield start, location, state
        start = location
    yield start, max(start, fde.end), state


def initial_row(cie: Cie, vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES) -> Row:
    """The rules that every FDE of `cie` begins with, as a row that covers nothing.

    FormatError where the CIE's program is bad.
    """
    return _after(cie, vendor_opcodes).row(0, 0)


_ADVANCES = frozenset(
    {
        DW_CFA.set_loc,
        DW_CFA.advance_loc,
        DW_CFA.advance_loc1,
        DW_CFA.advance_loc2,
        DW_CFA.advance_loc4,
        DW_CFA.MIPS_advance_loc8,
    }
)


class _State:
    """The rules while they are made: the CFA's, the registers', and those remembered.

    `shared`: a row or the stack holds `rules` too, so the next change needs a copy.
    """

    __slots__ = (
        "cfa",
        "cie",
        "entry",
        "initial",
        "offset",
        "origin",
        "ra_signed",
        "register",
        "remembered",
        "rules",
        "shared",
        "vendor",
    )

    def __init__(self, entry: Cie | Fde, cie: Cie, vendor: Mapping[int, str]):
        self.entry = entry
        self.cie = cie
        self.vendor = vendor
        self.cfa: CfaRule | None = None
        self.register: int | None = None  # of the CFA's last rule that is no expression
        self.offset = 0
        self.rules: dict[int, Rule] = {}
        self.initial: Mapping[int, Rule] = {}
        self.ra_signed = False
        self.shared = False
        self.remembered: list[_All] = []
        self.origin = Origin(cie.section, entry.offset, cie.offset)

    def all(self) -> _All:
        """What is in effect now, for `take`."""
        self.shared = True
        return self.cfa, self.register, self.offset, self.rules, self.ra_signed

    def take(self, saved: _All) -> None:
        """Make what `all` gave the state in effect."""
        self.cfa, self.register, self.offset, self.rules, self.ra_signed = saved
        self.shared = True

    def row(self, start: int, end: int) -> Row:
        """What is in effect now, as a row."""
        self.shared = True
        cie = self.cie
        return Row(
            *(start, end, self.cfa, self.rules, cie.return_address),
            *(self.origin, cie.signal, self.ra_signed),
        )

    def error(self, reason: str) -> FormatError:
        """A FormatError about this CIE's or FDE's program."""
        return FormatError(reason, self.cie.encoding.where, self.entry.offset)

    def execute(self, instruction: Instruction) -> None:
        """One instruction that makes no row."""
        register, number = instruction.register, instruction.number
        factored = number * self.cie.data_align  # DWARF 5 §6.4.2: "factored" operands
        match instruction.opcode:
            # CFA definition: DWARF 5 §6.4.2.2.
            case DW_CFA.def_cfa:
                self._define(register, number)
            case DW_CFA.def_cfa_sf:
                self._define(register, factored)
            case DW_CFA.def_cfa_register:
                self._define(register, self.offset)
            case DW_CFA.def_cfa_offset:
                self._move(number)
            case DW_CFA.def_cfa_offset_sf:
                self._move(factored)
            case DW_CFA.def_cfa_expression:
                self.cfa = _rule(CfaExpression, instruction.block)
            # Register rules: DWARF 5 §6.4.2.3.
            case DW_CFA.offset | DW_CFA.offset_extended | DW_CFA.offset_extended_sf:
                self._set(register, _rule(Offset, factored))
            case DW_CFA.undefined:
                self._set(register, _rule(Undefined))
            case DW_CFA.same_value:
                self._set(register, _rule(SameValue))
            case DW_CFA.val_offset | DW_CFA.val_offset_sf:
                self._set(register, _rule(ValOffset, factored))
            case DW_CFA.register:
                self._set(register, _rule(InRegister, number))
            case DW_CFA.expression:
                self._set(register, _rule(Expression, instruction.block))
            case DW_CFA.val_expression:
                self._set(register, _rule(ValExpression, instruction.block))
            case DW_CFA.restore | DW_CFA.restore_extended:
                self._set(register, self.initial.get(register))
            # Row state: DWARF 5 §6.4.2.4.
            case DW_CFA.remember_state:
                self._remember()
            case DW_CFA.restore_state:
                self._restore()
            case DW_CFA.nop:
                pass
            case vendors:
                self._execute_vendors(vendors, register, factored)

    def _execute_vendors(self, opcode: int, register: int, factored: int) -> None:
        """The vendors' instructions, by what the architecture calls them."""
        match self.vendor.get(opcode) or VENDOR_OPCODES.get(opcode):
            case "AARCH64_negate_ra_state" | "AARCH64_negate_ra_state_with_pc":
                self.ra_signed = not self.ra_signed  # AADWARF64 §4.4, CFA operations
            case "GNU_args_size":
                pass  # what a landing pad pops; a callee's frame is found without it
            case "GNU_negative_offset_extended":
                self._set(register, _rule(Offset, -factored))
            case "GNU_window_save":
                # SPARC: the window lies at the CFA, as libgcc's execute_cfa_program has it.
                word = self.cie.encoding.address_size
                for saved in range(16, 32):
                    self._set(saved, _rule(Offset, (saved - 16) * word))
            case _:
                raise self.error(f"{cfa_name(opcode)} is not known on this machine")

    def _define(self, register: int, offset: int) -> None:
        """CFA = register + offset.

        DW_CFA_def_cfa_register alone is lawful after another such rule only, but it is also what
        gas begins the CIEs of MIPS with, where the offset is 0, and libgcrypt's hand-written code
        has it after an expression, with the offset from before that. libgcc obliges both.
        """
        self.register, self.offset = register, offset
        self.cfa = _rule(CfaRegister, register, offset)

    def _move(self, offset: int) -> None:
        """Another offset; an expression stays in effect, as in libgcc's execute_cfa_program."""
        self.offset = offset
        if isinstance(self.cfa, CfaExpression):
            return
        if self.register is None:
            raise self.error("an offset of the CFA, and no register that it is counted from")
        self.cfa = _rule(CfaRegister, self.register, offset)

    def _set(self, register: int, rule: Rule | None) -> None:
        """The rule of a register from here on; None: no rule."""
        if self.shared:
            self.rules = self.rules.copy()
            self.shared = False
        if rule is None:
            self.rules.pop(register, None)
        elif register in self.rules or len(self.rules) < _MOST_COLUMNS:
            self.rules[register] = rule
        else:
            raise self.error(f"rules for more than {_MOST_COLUMNS} registers")

    def _remember(self) -> None:
        if len(self.remembered) == _DEEPEST:
            raise self.error(f"more than {_DEEPEST} states to remember")
        self.remembered.append(self.all())

    def _restore(self) -> None:
        """Bring back all of the last state: the CFA too, as gcc, gdb and libgcc have it."""
        if not self.remembered:
            raise self.error("DW_CFA_restore_state without DW_CFA_remember_state")
        self.take(self.remembered.pop())


def _at_entry(fde: Fde, vendor: Mapping[int, str]) -> _State:
    """The state that the program of `fde` goes on from."""
    made = _after(fde.cie, vendor)
    state = _State(fde, fde.cie, vendor)
    state.take(made.all())
    state.initial = made.rules
    return state


def _after(cie: Cie, vendor: Mapping[int, str]) -> _State:
    """The state that the program of `cie` comes to, kept with it."""
    kept: _State | None = getattr(cie, "memo", None)
    if kept is not None and kept.vendor is vendor:
        return kept
    state = _State(cie, cie, vendor)
    for instruction in decode(
        cie.instructions, cie.encoding, cie.instructions_offset, cie.pointer_encoding
    ):
        if instruction.opcode not in _ADVANCES:  # a CIE is nowhere
            state.execute(instruction)
    object.__setattr__(cie, "memo", state)  # made twice at worst, published at once
    return state


def _rule(make: type[AnyRule], *facts: int | bytes) -> AnyRule:
    """The one object for a rule."""
    key = (make, facts)
    rule = _RULES.get(key)
    if rule is None:
        rule = make(*facts)
        small = not facts or isinstance(facts[0], int) or len(facts[0]) <= _LONGEST_RULE
        if small and len(_RULES) < _MOST_RULES:
            _RULES[key] = rule
    return rule  # type: ignore[return-value]


_RULES: dict[tuple[type, tuple[int | bytes, ...]], object] = {}
