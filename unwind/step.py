"""apply: a row and a frame's registers and memory in, the caller's registers out."""

from __future__ import annotations

from unwind.errors import FormatError, UnwindError, never
from unwind.registers import Registers
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
from unwind.values import Value

__all__ = ["Activation", "Caller", "apply"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.architecture import Architecture
    from unwind.protocols import Memory
    from unwind.rules import Row, Rule


class Caller(Value):
    """What one step gives: the frame's `cfa`, and the caller's `pc` and registers.

    `pc` is None where the row says that there is no caller: its return address is undefined
    (DWARF 5 §6.4.4). A pc of 0 was found as such and is for the walker to judge.
    """

    cfa: int
    pc: int | None
    registers: Registers
    return_address: int = 0  # as it was found, with the bits that are none of the pc


def apply(
    row: Row, registers: Mapping[int, int], memory: Memory, arch: Architecture, bias: int = 0
) -> Caller:
    """The caller's state as `row` finds it from `registers` and `memory`.

    `bias` is added to DW_OP_addr operands, which a file states as vaddrs. Whether the return
    address was signed (`row.ra_signed`) makes no difference: no code address has bits where the
    signature is, so they are stripped from every one.

    Raises MemoryFault and UnknownRegister where the CFA or the return address needs what is not
    there, FormatError for a rule that makes no sense. Any other register that cannot be had is
    absent in the result.
    """
    activation = Activation(registers, memory, arch, bias)
    pointer = activation.cfa_pointer(row)
    cfa = arch.data_address(pointer)
    caller = Registers(registers)
    column = row.return_address
    for number, rule in {**arch.defaults, **row.rules}.items():
        if number == column:
            continue
        try:
            value = activation.restored(number, rule, pointer)
        except UnwindError:
            value = None
        if value is None:
            caller.pop(number, None)
        else:
            caller[number] = value
    found = activation.return_address(row, cfa)
    if found is None:
        caller.pop(arch.pc, None)
        return Caller(cfa, None, caller)
    pc = caller[arch.pc] = arch.code_address(found)
    # On arm64 the return instruction authenticated it; on MIPS bit 0 of it tells the code there.
    caller[column] = pc if arch.upper_half else found
    return Caller(cfa, pc, caller, found)


class Activation:
    """The values of one frame, which rules are evaluated against.

    Its methods raise MemoryFault, UnknownRegister and FormatError.
    """

    __slots__ = ("arch", "bias", "memory", "registers")

    def __init__(
        self, registers: Mapping[int, int], memory: Memory, arch: Architecture, bias: int = 0
    ):
        self.registers = Registers(registers) if type(registers) is not Registers else registers
        self.memory = memory
        self.arch = arch
        self.bias = bias

    def cfa(self, row: Row) -> int:
        """The canonical frame address."""
        return self.arch.data_address(self.cfa_pointer(row))

    def cfa_pointer(self, row: Row) -> int:
        """The CFA as the registers have it: with the tag of a tagged stack (arm64 MTE).

        The caller's stack pointer had that tag, too.
        """
        match row.cfa:
            case CfaRegister(number=number, offset=offset):
                return self._wrap(self.registers[number] + offset)
            case CfaExpression(code=code):
                return self._evaluate(code)
            case None:
                raise FormatError("no rule for the CFA", row.origin.section, row.origin.fde)

    def return_address(self, row: Row, cfa: int) -> int | None:
        """The return address as it lies there, None where the row says that there is none."""
        column = row.return_address
        if column in row.rules:
            return self.restored(column, row.rules[column], cfa)
        if column == self.arch.pc:
            # Elsewhere the column is a link register, which a row without a word leaves alone.
            where = row.origin.section
            raise FormatError("no rule for the return address", where, row.origin.fde)
        return self.registers[column]

    def restored(self, number: int, rule: Rule, cfa: int) -> int | None:
        """The caller's value of register `number`, None where it is lost (DWARF 5 §6.4.1).

        `cfa` is what `cfa_pointer` gives.
        """
        match rule:
            case Undefined():
                return None
            case SameValue():
                return self.registers.get(number)
            case Offset(n=n):
                return self._load(self._wrap(cfa + n))
            case ValOffset(n=n):
                return self._wrap(cfa + n)
            case InRegister(number=other):
                return self.registers[other]
            case Expression(code=code):
                return self._load(self._evaluate(code, cfa))
            case ValExpression(code=code):
                return self._evaluate(code, cfa)
            case _:
                never(rule)

    def _wrap(self, value: int) -> int:
        return value & ((1 << 8 * self.arch.word) - 1)

    def _load(self, address: int) -> int:
        word = self.memory.read(self.arch.data_address(address), self.arch.word)
        return int.from_bytes(word, self.arch.byteorder)

    def _evaluate(self, code: bytes, *initial: int) -> int:
        arch, memory = self.arch, self.memory
        from unwind.dwarf.expression import evaluate  # few rows have one

        return evaluate(
            code,
            self.registers,
            memory if not arch.upper_half else _Untagged(memory, arch),
            word=arch.word,
            byteorder=arch.byteorder,
            initial=initial,
            bias=self.bias,
        )


class _Untagged:
    """A memory that is read by pointers with tags."""

    __slots__ = ("arch", "memory")

    def __init__(self, memory: Memory, arch: Architecture):
        self.memory = memory
        self.arch = arch

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(self.arch.data_address(address), size)
