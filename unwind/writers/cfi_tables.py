"""CFI sections as people know them: entries in, the lines of readelf's two layouts and JSON out.

`readelf --debug-dump=frames-interp` and `--debug-dump=frames` set the layouts, to the blank: what
reads theirs reads these.
"""

from __future__ import annotations

from unwind.dwarf.cfi import Broken, Cie, Terminator
from unwind.dwarf.constants import DW_CFA, DW_OP, VENDOR_OPCODES, cfa_name, op_name
from unwind.dwarf.expression import Operation, operations
from unwind.dwarf.instructions import OPERANDS, Instruction, decode
from unwind.dwarf.rows import initial_row, rows
from unwind.errors import FormatError, never
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    Offset,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.writers.escape import escape

__all__ = ["Tables", "json_row"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from unwind.dwarf.cfi import Fde, FrameSection
    from unwind.rules import CfaRule, Row, Rule


class Tables:
    """Writes entries; `names` are those of registers, `vendor_opcodes` those of the machine.

    What is broken is left out of the lines and handed to `complain`.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        vendor_opcodes: Mapping[int, str] = VENDOR_OPCODES,
        complain: Callable[[FormatError], None] = lambda error: None,
    ):
        self.names = names
        self.vendor_opcodes = vendor_opcodes
        self.complain = complain
        self._named: dict[int, tuple[Cie, frozenset[int]]] = {}

    def name(self, number: int) -> str:
        """A register's name."""
        return self.names.get(number) or f"r{number}"

    def section(self, section: FrameSection, *, raw: bool = False) -> Iterator[str]:
        """A whole section, entry by entry: a text with its line ends for each."""
        yield f"Contents of the .{section.kind} section:\n\n"
        after_terminator = False
        for entry in section.entries():
            is_terminator = isinstance(entry, Terminator)
            if isinstance(entry, Broken):
                self.complain(entry.error)
            elif not (is_terminator and after_terminator):  # readelf passes over the others
                yield self.entry(entry, raw=raw)
            after_terminator = is_terminator
        yield "\n"

    def entry(self, entry: Cie | Fde | Terminator, *, raw: bool = False) -> str:
        """One entry, in the layout of frames-interp, or of frames where `raw` is true."""
        if isinstance(entry, Terminator):
            return f"\n{entry.offset:08x} ZERO terminator\n\n"
        lines = self._program(entry) if raw else self._table(entry)
        text = "".join([f"{line}\n" for line in lines])
        return f"\n{self._head(entry, raw)}\n{text}"

    def json(self, fde: Fde) -> Iterator[str]:
        """The rows of an FDE, each as a line of JSON with its line end."""
        try:
            for row in rows(fde, self.vendor_opcodes):
                yield f"{json_row(row, self.name)}\n"
        except FormatError as error:
            self.complain(error)

    def _head(self, entry: Cie | Fde, raw: bool) -> str:
        cie = entry if isinstance(entry, Cie) else entry.cie
        digits = 2 * cie.encoding.address_size
        start = f"{entry.offset:08x} {entry.length:0{digits}x}"
        if isinstance(entry, Cie):
            identity = "0" * 8 if cie.section == "eh_frame" else "f" * 8
            start = f"{start} {identity * (2 if entry.wide else 1)} CIE"
            if raw:
                return start
            aligned = f"cf={cie.code_align} df={cie.data_align}"
            return f'{start} "{escape(cie.augmentation)}" {aligned} ra={cie.return_address}'
        pointer = cie.offset
        if cie.section == "eh_frame":
            pointer = entry.offset + (12 if entry.wide else 4) - pointer
        return (
            f"{start} {pointer:0{16 if entry.wide else 8}x} FDE cie={cie.offset:08x} "
            f"pc={entry.start:0{digits}x}..{entry.end % 16**digits:0{digits}x}"
        )

    # The layout of frames-interp.

    def _table(self, entry: Cie | Fde) -> Iterator[str]:
        if not entry.instructions.strip(b"\0"):
            return  # nothing but nops: readelf prints no row for them
        cie = entry if isinstance(entry, Cie) else entry.cie
        digits = 2 * cie.encoding.address_size
        try:
            table = (
                iter([initial_row(entry, self.vendor_opcodes)])
                if isinstance(entry, Cie)
                else rows(entry, self.vendor_opcodes, empty=True)
            )
            columns = sorted(self._columns(entry))
            names = ["ra" if n == cie.return_address else self.name(n) for n in columns]
            yield f"{'   LOC':<{digits}} CFA      {self._cells(names)}"
            for row in table:
                cells = self._cells([self._cell(row.rules.get(number)) for number in columns])
                yield f"{row.start:0{digits}x} {self._cfa(row.cfa):<8} {cells}"
        except FormatError as error:
            self.complain(error)

    @staticmethod
    def _cells(texts: list[str]) -> str:
        return "".join([f"{text:<5} " for text in texts])

    def _columns(self, entry: Cie | Fde) -> frozenset[int]:
        """The registers that the program names, and those of its CIE: readelf's columns."""
        cie = entry if isinstance(entry, Cie) else entry.cie
        known = self._named.get(cie.offset)
        if known is None or known[0] is not cie:
            known = self._named[cie.offset] = cie, _named(cie, cie)
        return known[1] if isinstance(entry, Cie) else known[1] | _named(entry, cie)

    def _cfa(self, rule: CfaRule | None) -> str:
        match rule:
            case CfaRegister(number=number, offset=offset):
                return f"{self.name(number)}{offset:+d}"
            case CfaExpression():
                return "exp"
            case None:
                return "u"
            case _:
                never(rule)

    def _cell(self, rule: Rule | None) -> str:
        match rule:
            case None | Undefined():
                return "u"
            case SameValue():
                return "s"
            case Offset(n=n):
                return f"c{n:+d}"
            case ValOffset(n=n):
                return f"v{n:+d}"
            case InRegister(number=number):
                return self._both(number)
            case Expression():
                return "exp"
            case ValExpression():
                return "vexp"
            case _:
                never(rule)

    # The layout of frames.

    def _program(self, entry: Cie | Fde) -> Iterator[str]:
        if isinstance(entry, Cie):
            yield from self._fields(entry)
        if entry.augmentation_data:
            yield f"  Augmentation data:     {entry.augmentation_data.hex(' ')}"
        elif isinstance(entry, Cie):
            yield ""
        cie = entry if isinstance(entry, Cie) else entry.cie
        location = 0 if isinstance(entry, Cie) else entry.start
        digits = 2 * cie.encoding.address_size
        try:
            for instruction in _decoded(entry, cie):
                delta = instruction.number * cie.code_align
                if instruction.opcode in _ADVANCES:
                    location = (location + delta) % 16**digits
                    said = f": {delta} to {location:0{digits}x}"
                elif instruction.opcode == DW_CFA.set_loc:
                    location = instruction.number
                    said = f": {location:0{digits}x}"
                else:
                    said = self._operands(instruction, cie)
                yield f"  {cfa_name(instruction.opcode, self.vendor_opcodes)}{said}"
        except FormatError as error:
            self.complain(error)

    def _fields(self, cie: Cie) -> Iterator[str]:
        yield f"  Version:               {cie.version}"
        yield f'  Augmentation:          "{escape(cie.augmentation)}"'
        if cie.version >= 4:
            yield f"  Pointer Size:          {cie.encoding.address_size}"
            yield f"  Segment Size:          {cie.segment_size}"
        yield f"  Code alignment factor: {cie.code_align}"
        yield f"  Data alignment factor: {cie.data_align}"
        yield f"  Return address column: {cie.return_address}"

    def _operands(self, instruction: Instruction, cie: Cie) -> str:
        """What stands behind an instruction's name."""
        register, number = self._both(instruction.register), instruction.number
        factored = number * cie.data_align
        match instruction.opcode:
            case DW_CFA.def_cfa:
                return f": {register} ofs {number}"
            case DW_CFA.def_cfa_sf:
                return f": {register} ofs {factored}"
            case DW_CFA.def_cfa_offset | DW_CFA.GNU_args_size:
                return f": {number}"
            case DW_CFA.def_cfa_offset_sf:
                return f": {factored}"
            case DW_CFA.def_cfa_expression:
                return f" ({self._expression(instruction.block, cie)})"
            case DW_CFA.expression | DW_CFA.val_expression:
                return f": {register} ({self._expression(instruction.block, cie)})"
            case DW_CFA.offset | DW_CFA.offset_extended | DW_CFA.offset_extended_sf:
                return f": {register} at cfa{factored:+d}"
            case DW_CFA.GNU_negative_offset_extended:
                return f": {register} at cfa{-factored:+d}"
            case DW_CFA.val_offset | DW_CFA.val_offset_sf:
                return f": {register} is cfa{factored:+d}"
            case DW_CFA.register:
                return f": {register} in {self._both(number)}"
        return f": {register}" if OPERANDS[instruction.opcode] else ""

    def _both(self, number: int) -> str:
        """A register by number and name, as in `r7 (rsp)`."""
        name = self.names.get(number)
        return f"r{number} ({name})" if name else f"r{number}"

    def _expression(self, code: bytes, cie: Cie) -> str:
        said = []
        encoding = cie.encoding
        try:
            for operation in operations(code, encoding.address_size, encoding.byteorder):
                said.append(self._operation(operation))
        except FormatError as error:
            said.append(f"<{error.reason}>")
        return "; ".join(said)

    def _operation(self, operation: Operation) -> str:
        opcode, name = operation.opcode, op_name(operation.opcode)
        if DW_OP.reg0 <= opcode <= DW_OP.reg31:
            return f"{name} ({self.name(opcode - DW_OP.reg0)})"
        if DW_OP.breg0 <= opcode <= DW_OP.breg31:
            return f"{name} ({self.name(opcode - DW_OP.breg0)}): {operation.operands[0]}"
        match opcode:
            case DW_OP.addr:
                return f"{name}: {operation.operands[0]:x}"
            case DW_OP.regx:
                number = operation.operands[0]
                return f"{name}: {number} ({self.name(number)})"
            case DW_OP.bregx:
                number, offset = operation.operands
                return f"{name}: {number} ({self.name(number)}) {offset}"
        return f"{name}: {operation.operands[0]}" if operation.operands else name


def json_row(row: Row, name: Callable[[int], str]) -> str:
    """A row as one line of JSON; `name` gives the names of registers."""
    rules = ",".join(
        [f'"{name(number)}":"{_rule_text(rule, name)}"' for number, rule in row.rules.items()]
    )
    match row.cfa:
        case CfaRegister(number=number, offset=offset):
            cfa = f'"{name(number)}{offset:+d}"'
        case CfaExpression(code=code):
            cfa = f'"exp:{code.hex()}"'
        case None:
            cfa = "null"
    origin = row.origin
    signal = "true" if row.signal else "false"
    signed = ',"ra_signed":true' if row.ra_signed else ""
    return (
        f'{{"section":"{origin.section}","fde":{origin.fde},"cie":{origin.cie},'
        f'"start":"{row.start:#x}","end":"{row.end:#x}","signal":{signal},'
        f'"cfa":{cfa},"rules":{{{rules}}}{signed}}}'
    )


def _rule_text(rule: Rule, name: Callable[[int], str]) -> str:
    match rule:
        case Undefined():
            return "u"
        case SameValue():
            return "s"
        case Offset(n=n):
            return f"c{n:+d}"
        case ValOffset(n=n):
            return f"v{n:+d}"
        case InRegister(number=number):
            return f"r:{name(number)}"
        case Expression(code=code):
            return f"exp:{code.hex()}"
        case ValExpression(code=code):
            return f"vexp:{code.hex()}"
        case _:
            never(rule)


_ADVANCES = frozenset(
    {
        DW_CFA.advance_loc,
        DW_CFA.advance_loc1,
        DW_CFA.advance_loc2,
        DW_CFA.advance_loc4,
        DW_CFA.MIPS_advance_loc8,
    }
)

# The instructions whose register is a column; that of the others makes the CFA.
_COLUMNS = frozenset(
    opcode for opcode, operands in OPERANDS.items() if {"register", "low register"} & set(operands)
) - {DW_CFA.def_cfa, DW_CFA.def_cfa_sf, DW_CFA.def_cfa_register}


def _decoded(entry: Cie | Fde, cie: Cie) -> Iterator[Instruction]:
    function = None if isinstance(entry, Cie) else entry.start
    return decode(
        *(entry.instructions, cie.encoding, entry.instructions_offset),
        *(cie.pointer_encoding, function),
    )


def _named(entry: Cie | Fde, cie: Cie) -> frozenset[int]:
    """The columns that a program names, up to where it is bad."""
    found = set()
    try:
        for instruction in _decoded(entry, cie):
            if instruction.opcode in _COLUMNS:
                found.add(instruction.register)
    except FormatError:
        pass  # whoever makes the rows finds it again
    return frozenset(found)
