"""DWARF expressions: code, registers and memory in, one number out; or the code in words."""

from __future__ import annotations

from unwind.dwarf.constants import DW_OP, op_name
from unwind.dwarf.reader import Encoding, Reader
from unwind.errors import FormatError, UnknownRegister, UnwindError
from unwind.values import Value

__all__ = ["OPERANDS", "Operation", "describe", "distance", "evaluate", "operations"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from unwind.protocols import ByteOrder, Memory

# An expression can loop for ever by DW_OP_skip, and push in each round. Those that compilers
# write for CFI have some ten operations and need a few words.
MOST_STEPS = 10_000
MOST_WORDS = 256


class Operation(Value):
    """One operation at `offset` of its expression, with its operands as numbers."""

    opcode: int
    operands: tuple[int, ...]
    offset: int
    end: int  # where the next one begins


# The operands of the operations that have any: DWARF 5 §2.5.1, §7.7.1; `word` is an address.
OPERANDS: dict[int, tuple[str, ...]] = {
    DW_OP.addr: ("word",),
    DW_OP.const1u: ("u8",),
    DW_OP.const1s: ("s8",),
    DW_OP.const2u: ("u16",),
    DW_OP.const2s: ("s16",),
    DW_OP.const4u: ("u32",),
    DW_OP.const4s: ("s32",),
    DW_OP.const8u: ("u64",),
    DW_OP.const8s: ("s64",),
    DW_OP.constu: ("uleb",),
    DW_OP.consts: ("sleb",),
    DW_OP.pick: ("u8",),
    DW_OP.plus_uconst: ("uleb",),
    DW_OP.bra: ("s16",),
    DW_OP.skip: ("s16",),
    **dict.fromkeys(range(DW_OP.breg0, DW_OP.breg31 + 1), ("sleb",)),
    DW_OP.regx: ("uleb",),
    DW_OP.bregx: ("uleb", "sleb"),
    DW_OP.deref_size: ("u8",),
    DW_OP.xderef_size: ("u8",),
}

_KNOWN = frozenset(OPERANDS) | frozenset(range(DW_OP.lit0, DW_OP.reg31 + 1))
_KNOWN |= {number for number in vars(DW_OP).values() if isinstance(number, int)}


def evaluate(
    code: bytes,
    registers: Mapping[int, int],
    memory: Memory,
    *,
    word: int,
    byteorder: ByteOrder,
    initial: tuple[int, ...] = (),
    bias: int = 0,
) -> int:
    """The top of the stack after `code`, modulo 2 to the power of the bits of a `word`.

    `initial` is what the stack begins with: the CFA for a register's expression, nothing for a
    CFA's (DWARF 5 §6.4.2.2, §6.4.2.3). `bias` turns the addresses in the code into run-time ones.
    Memory is read where an operation asks for it and nowhere else. FormatError for code that is
    bad or does not end; UnknownRegister and MemoryFault where what it needs is not there.
    """
    machine = _Machine(registers, memory, word, byteorder, bias)
    for value in initial:
        machine.push(value)
    at, steps = 0, 0
    while at < len(code):
        operation = _operation(code, at, word, byteorder)
        steps += 1
        try:
            if steps > MOST_STEPS:
                raise _Wrong(f"no end after {MOST_STEPS} operations")
            at = operation.end + machine.execute(operation)
            if not 0 <= at <= len(code):
                raise _Wrong("a jump out of the expression")
        except _Wrong as wrong:
            raise _error(f"{op_name(operation.opcode)}: {wrong}", operation.offset) from None
    if not machine.stack:
        raise _error("nothing is left on the stack", at)
    return machine.stack[-1]


def distance(
    code: bytes,
    register: int,
    known: Mapping[int, int],
    memory: Memory,
    *,
    word: int,
    byteorder: ByteOrder,
) -> int | None:
    """The n for which the expression is `register` + n, whatever the register holds, or None.

    `known` are other registers that the n may depend on. So is every entry of a linkage table: its
    CFA depends on how far the pc has come in it, and on the stack pointer.
    """
    last = bytes([DW_OP.plus])
    if register > 31 or code[:1] != bytes([DW_OP.breg0 + register]) or code[-1:] != last:
        return None
    try:
        first = _operation(code, 0, word, byteorder)
        between = code[first.end : -1]
        added = evaluate(between, known, memory, word=word, byteorder=byteorder)
    except UnwindError:
        return None
    try:  # one value is what it must leave, and none be left when that is gone
        drop = between + bytes([DW_OP.drop])
        evaluate(drop, known, memory, word=word, byteorder=byteorder)
    except FormatError:
        n = first.operands[0] + added & (1 << 8 * word) - 1
        return n - (n >> 8 * word - 1 << 8 * word)
    return None


def operations(code: bytes, word: int, byteorder: ByteOrder) -> Iterator[Operation]:
    """The operations of `code` as they are written; FormatError at the first that is bad."""
    at = 0
    while at < len(code):
        operation = _operation(code, at, word, byteorder)
        yield operation
        at = operation.end


def describe(
    code: bytes,
    name: Callable[[int], str] | None = None,
    *,
    word: int = 8,
    byteorder: ByteOrder = "little",
) -> str:
    """The code as people read it: `breg7(rsp)+8, deref`. What cannot be read is said, not raised.

    `name` gives the names of registers by their numbers.
    """
    said = []
    try:
        for operation in operations(code, word, byteorder):
            said.append(_describe(operation, name or "r{}".format))
    except FormatError as error:
        said.append(f"<{error.reason}>")
    return ", ".join(said)


def _describe(operation: Operation, name: Callable[[int], str]) -> str:
    opcode, operands = operation.opcode, operation.operands
    text = op_name(opcode).removeprefix("DW_OP_")
    if DW_OP.reg0 <= opcode <= DW_OP.reg31:
        return f"{text}({name(opcode - DW_OP.reg0)})"
    if DW_OP.breg0 <= opcode <= DW_OP.breg31:
        return f"{text}({name(opcode - DW_OP.breg0)}){operands[0]:+d}"
    match opcode:
        case DW_OP.regx:
            return f"{text}({name(operands[0])})"
        case DW_OP.bregx:
            return f"{text}({name(operands[0])}){operands[1]:+d}"
        case DW_OP.addr:
            return f"{text} {operands[0]:#x}"
        case DW_OP.bra | DW_OP.skip:
            return f"{text} to {operation.end + operands[0]}"
    return " ".join([text, *map(str, operands)])


def _operation(code: bytes, at: int, word: int, byteorder: ByteOrder) -> Operation:
    opcode = code[at]
    if opcode not in _KNOWN:
        raise _error(f"{op_name(opcode)} is no operation for CFI", at)
    if opcode not in OPERANDS:
        return Operation(opcode, (), at, at + 1)
    encoding = Encoding(byteorder, word, where=_WHERE)
    reader = Reader(code, encoding, at=at + 1)
    operands = tuple([_operand(reader, kind) for kind in OPERANDS[opcode]])
    return Operation(opcode, operands, at, reader.at)


def _operand(reader: Reader, kind: str) -> int:
    match kind:
        case "uleb":
            return reader.uleb()
        case "sleb":
            return reader.sleb()
        case "word":
            return reader.unsigned(reader.encoding.address_size)
    size = int(kind[1:]) // 8
    return reader.signed(size) if kind[0] == "s" else reader.unsigned(size)


def _error(reason: str, offset: int) -> FormatError:
    return FormatError(reason, _WHERE, offset)


_WHERE = "DWARF expression"


class _Wrong(Exception):
    """What is wrong with an operation; its place is added by who knows it."""


class _Machine:
    """The stack and what operations act on: DWARF 5 §2.5.1. Values are unsigned words."""

    __slots__ = ("bias", "bits", "byteorder", "mask", "memory", "registers", "stack", "word")

    def __init__(
        self,
        registers: Mapping[int, int],
        memory: Memory,
        word: int,
        byteorder: ByteOrder,
        bias: int,
    ):
        self.registers = registers
        self.memory = memory
        self.word = word
        self.byteorder = byteorder
        self.bias = bias
        self.bits = 8 * word
        self.mask = (1 << self.bits) - 1
        self.stack: list[int] = []

    def push(self, value: int) -> None:
        """A value, of which the low word counts."""
        if len(self.stack) >= MOST_WORDS:
            raise _Wrong(f"more than {MOST_WORDS} values on the stack")
        self.stack.append(value & self.mask)

    def pop(self) -> int:
        """The top of the stack, taken off."""
        if not self.stack:
            raise _Wrong("the stack is empty")
        return self.stack.pop()

    def execute(self, operation: Operation) -> int:
        """What one operation does; where to go on, counted from its end."""
        opcode, operands = operation.opcode, operation.operands
        if operands and DW_OP.const1u <= opcode <= DW_OP.consts:
            self.push(operands[0])  # literals: DWARF 5 §2.5.1.1
        elif DW_OP.lit0 <= opcode <= DW_OP.lit31:
            self.push(opcode - DW_OP.lit0)
        elif DW_OP.breg0 <= opcode <= DW_OP.breg31:
            self.push(self._register(opcode - DW_OP.breg0) + operands[0])
        elif DW_OP.reg0 <= opcode <= DW_OP.reg31:
            # A location and no value, by DWARF; in CFI it means the register's value to libgcc.
            self.push(self._register(opcode - DW_OP.reg0))
        elif opcode in _BINARY:
            second = self.pop()
            self.push(self._binary(opcode, self.pop(), second))
        elif opcode in _UNARY:
            self.push(self._unary(opcode, self.pop(), operands))
        else:
            return self._other(opcode, operands)
        return 0

    def _other(self, opcode: int, operands: tuple[int, ...]) -> int:
        match opcode:
            case DW_OP.addr:
                self.push(operands[0] + self.bias)
            # Register values: DWARF 5 §2.5.1.2.
            case DW_OP.regx:
                self.push(self._register(operands[0]))
            case DW_OP.bregx:
                self.push(self._register(operands[0]) + operands[1])
            # Stack operations: DWARF 5 §2.5.1.3.
            case DW_OP.dup:
                self._pick(0)
            case DW_OP.drop:
                self.pop()
            case DW_OP.pick:
                self._pick(operands[0])
            case DW_OP.over:
                self._pick(1)
            case DW_OP.swap:
                top, second = self.pop(), self.pop()
                self.stack += [top, second]
            case DW_OP.rot:
                top, second, third = self.pop(), self.pop(), self.pop()
                self.stack += [top, third, second]
            case DW_OP.xderef:
                self.push(self._read_space(self.pop(), self.pop(), self.word))
            case DW_OP.xderef_size:
                self.push(self._read_space(self.pop(), self.pop(), operands[0]))
            # Control flow: DWARF 5 §2.5.1.5.
            case DW_OP.skip:
                return operands[0]
            case DW_OP.bra:
                return operands[0] if self.pop() else 0
        return 0  # DW_OP_nop: DWARF 5 §2.5.1.6

    def _unary(self, opcode: int, value: int, operands: tuple[int, ...]) -> int:
        match opcode:
            case DW_OP.deref:
                return self._read(value, self.word)
            case DW_OP.deref_size:
                return self._read(value, operands[0])
            # Arithmetic and logic: DWARF 5 §2.5.1.4.
            case DW_OP.abs:
                return abs(self._signed(value))
            case DW_OP.neg:
                return -value
            case DW_OP.plus_uconst:
                return value + operands[0]
        return ~value  # DW_OP_not

    def _binary(self, opcode: int, first: int, second: int) -> int:
        """Arithmetic and logic of two values, `second` from the top: DWARF 5 §2.5.1.4."""
        match opcode:
            case DW_OP.and_:
                return first & second
            case DW_OP.div:
                return self._divide(self._signed(first), self._signed(second))
            case DW_OP.minus:
                return first - second
            case DW_OP.mod:  # unsigned, as libgcc and gdb have it
                if second == 0:
                    raise _Wrong("division by zero")
                return first % second
            case DW_OP.mul:
                return first * second
            case DW_OP.or_:
                return first | second
            case DW_OP.plus:
                return first + second
            case DW_OP.shl:
                return first << second if second < self.bits else 0
            case DW_OP.shr:
                return first >> second if second < self.bits else 0
            case DW_OP.shra:
                return self._signed(first) >> min(second, self.bits)
            case DW_OP.xor:
                return first ^ second
        return self._compare(opcode, self._signed(first), self._signed(second))

    def _compare(self, opcode: int, first: int, second: int) -> bool:
        """Comparisons of signed values: DWARF 5 §2.5.1.5."""
        match opcode:
            case DW_OP.eq:
                return first == second
            case DW_OP.ge:
                return first >= second
            case DW_OP.gt:
                return first > second
            case DW_OP.le:
                return first <= second
            case DW_OP.lt:
                return first < second
        return first != second  # DW_OP_ne

    def _divide(self, first: int, second: int) -> int:
        if second == 0:
            raise _Wrong("division by zero")
        quotient = abs(first) // abs(second)  # towards zero, where Python's // goes down
        return quotient if (first < 0) == (second < 0) else -quotient

    def _signed(self, value: int) -> int:
        return value - ((value >> (self.bits - 1)) << self.bits)

    def _register(self, number: int) -> int:
        try:
            return self.registers[number]
        except KeyError:  # of a plain dict; Registers raises the other one itself
            raise UnknownRegister(number) from None

    def _pick(self, index: int) -> None:
        if index >= len(self.stack):
            raise _Wrong(f"entry {index} of a stack of {len(self.stack)}")
        self.push(self.stack[-1 - index])

    def _read_space(self, address: int, space: int, size: int) -> int:
        if space != 0:
            raise _Wrong(f"address space {space:#x}")
        return self._read(address, size)

    def _read(self, address: int, size: int) -> int:
        if not 1 <= size <= self.word:
            raise _Wrong(f"a read of {size} bytes, where a word has {self.word}")
        return int.from_bytes(self.memory.read(address, size), self.byteorder)


_UNARY = frozenset(
    {DW_OP.deref, DW_OP.deref_size, DW_OP.abs, DW_OP.neg, DW_OP.not_, DW_OP.plus_uconst}
)
_BINARY = frozenset(
    {
        *(DW_OP.and_, DW_OP.div, DW_OP.minus, DW_OP.mod, DW_OP.mul, DW_OP.or_, DW_OP.plus),
        *(DW_OP.shl, DW_OP.shr, DW_OP.shra, DW_OP.xor),
        *(DW_OP.eq, DW_OP.ge, DW_OP.gt, DW_OP.le, DW_OP.lt, DW_OP.ne),
    }
)
