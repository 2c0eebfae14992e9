"""What mips32's instructions do to the stack pointer and to the registers that calls preserve."""

from __future__ import annotations

from unwind.machine import CFA, CONSTANT, NO_CALLER, RETURN_ADDRESS, CodeModel, Machine

__all__ = ["models"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.machine import Instruction
    from unwind.protocols import ByteOrder

    # ("r", number, 0) | ("m", base, displacement) | ("i", value, 0)
    Operand = tuple[str, int, int]

ZERO, T7, GP, SP, S8, RA = 0, 15, 28, 29, 30, 31
_SAVED = (*range(16, 24), S8)
_LOST = (*range(1, 16), 24, 25, GP)  # in a call
_NOWHERE = 4096  # the base of an address that is the sum of two registers
_NAMES = (
    "zero at v0 v1 a0 a1 a2 a3 t0 t1 t2 t3 t4 t5 t6 t7 "
    "s0 s1 s2 s3 s4 s5 s6 s7 t8 t9 k0 k1 gp sp fp ra"
)
_REGISTERS = {f"${name}": number for number, name in enumerate(_NAMES.split())}
_PARSED: dict[str, tuple[Operand, ...]] = {}
_MOST_PARSED = 50_000


def _operands(text: str) -> tuple[Operand, ...]:
    """capstone's operands; the same few thousand texts come again and again."""
    found = _PARSED.get(text)
    if found is None:
        if len(_PARSED) >= _MOST_PARSED:
            _PARSED.clear()
        found = _PARSED[text] = tuple([_operand(part) for part in text.split(", ")] if text else [])
    return found


def _operand(text: str) -> Operand:
    register = _REGISTERS.get(text)
    if register is not None:
        return ("r", register, 0)
    try:
        if text[-1:] == ")":
            displacement, _, inside = text[:-1].partition("(")
            return ("m", _REGISTERS.get(inside, _NOWHERE), int(displacement or "0", 0))
        return ("i", int(text, 0), 0)
    except ValueError:
        return ("?", 0, 0)  # a register that is not followed, or an index


def _effect(machine: Machine, instruction: Instruction) -> bool:
    handler = _HANDLERS.get(instruction[2])
    if handler is not None:
        return handler(machine, instruction) or False
    if instruction[2] not in _READERS:
        # Nearly all instructions write what they name first.
        operands = _operands(instruction[3])
        if operands and operands[0][0] == "r":
            _forget(machine, operands[0][1])
    return False


def _forget(machine: Machine, register: int) -> None:
    if register and register in machine.state.registers:
        machine.set(register, None)


def _assign(machine: Machine, register: int, value: tuple[int, int] | None) -> None:
    if register:
        machine.set(register, value)


def _move(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    value = machine.get(source[1])
    _assign(machine, target[1], value)
    if target[1] == RA and value == (CONSTANT, 0):
        _mark_outermost(machine)


def _mark_outermost(machine: Machine) -> None:
    """The code has zeroed ra, as start-up code does: there is no caller to return to."""
    machine.copy().slots[NO_CALLER, 0] = (RETURN_ADDRESS, 0)


def _sum(sign: int) -> Callable[[Machine, Instruction], None]:
    """addu, addiu, subu: a symbol plus or minus a number is known."""

    def add(machine: Machine, instruction: Instruction) -> None:
        target, left, right = _three(instruction[3])
        one = machine.get(left[1]) if left[0] == "r" else None
        two = _value(machine, right)
        if one is not None and two is not None:
            if two[0] == CONSTANT:
                _assign(machine, target[1], _added(one, sign * two[1]))
                return
            if one[0] == CONSTANT and sign > 0:
                _assign(machine, target[1], _added(two, one[1]))
                return
        _forget(machine, target[1])

    return add


def _three(text: str) -> tuple[Operand, Operand, Operand]:
    """The operands, of which capstone leaves out the second where it equals the first."""
    operands = _operands(text)
    if len(operands) == 2:
        return operands[0], operands[0], operands[1]
    return operands[0], operands[1], operands[2]


def _value(machine: Machine, operand: Operand) -> tuple[int, int] | None:
    kind, number, _ = operand
    if kind == "r":
        return machine.get(number)
    return (CONSTANT, number) if kind == "i" else None


def _added(value: tuple[int, int], amount: int) -> tuple[int, int]:
    total = value[1] + _signed(amount)
    return value[0], _signed(total) if value[0] == CONSTANT else total


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _lui(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    _assign(machine, target[1], (CONSTANT, _signed(source[1] << 16)))


def _ori(machine: Machine, instruction: Instruction) -> None:
    target, left, right = _three(instruction[3])
    value = machine.get(left[1])
    if value is not None and value[0] == CONSTANT and right[0] == "i":
        _assign(machine, target[1], (CONSTANT, _signed(value[1] | right[1])))
    else:
        _forget(machine, target[1])


def _and(machine: Machine, instruction: Instruction) -> None:
    operands = _operands(instruction[3])
    if operands[0] == ("r", SP, 0):
        machine.align(SP)
    else:
        _forget(machine, operands[0][1])


def _load(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    _assign(machine, target[1], machine.load(source[1], source[2]) if source[0] == "m" else None)


def _store(machine: Machine, instruction: Instruction) -> None:
    source, target = _operands(instruction[3])
    if target[0] == "m" and target[1] in machine.state.registers:
        if machine.load(target[1], target[2]) == (RETURN_ADDRESS, 0):
            return  # __builtin_eh_return: the function now returns to what it puts there
        machine.store(target[1], target[2], machine.get(source[1]))


def _overwrite(words: int) -> Callable[[Machine, Instruction], None]:
    """A store of what is not followed: parts of words, floating-point registers."""

    def overwrite(machine: Machine, instruction: Instruction) -> None:
        target = _operands(instruction[3])[-1]
        if target[0] == "m" and target[1] in machine.state.registers:
            at = target[2] & -4
            for offset in range(at, at + 4 * words, 4):
                machine.store(target[1], offset, None)

    return overwrite


def _sc(machine: Machine, instruction: Instruction) -> None:
    _overwrite(1)(machine, instruction)
    _forget(machine, _operands(instruction[3])[0][1])


def _branch(machine: Machine, instruction: Instruction) -> None:
    _leads_to(machine, instruction)
    machine.slot = 1


def _likely(machine: Machine, instruction: Instruction) -> None:
    """A branch whose delay slot is executed only where it is taken."""
    _leads_to(machine, instruction)
    machine.slot = 2


def _leads_to(machine: Machine, instruction: Instruction) -> None:
    target = _operands(instruction[3])[-1]
    if target[0] == "i":
        machine.targets.append(target[1])


def _jump(machine: Machine, instruction: Instruction) -> bool:
    """b, j, jr: a jump by a register returns, calls last of all, or is a switch."""
    _branch(machine, instruction)
    if instruction[2][:2] == "jr" and instruction[3] != "$ra":
        machine.somewhere = 1
    return True


def _call(machine: Machine, instruction: Instruction) -> None:
    """jal, jalr, bal and their like, which set ra before the delay slot is executed."""
    address, _, mnemonic, text = instruction
    operands = _operands(text)
    machine.slot = 1
    if len(operands) == 2 and operands[0][1] != RA and mnemonic[:4] == "jalr":
        _forget(machine, operands[0][1])  # a link in another register
    elif operands[-1] == ("i", address + 8, 0):
        _forget(machine, RA)  # bal .+8: where am I?
    else:
        machine.called = True
        machine.lost = _LOST
        _forget(machine, RA)
        if (RETURN_ADDRESS, 0) not in machine.state.slots.values():
            machine.odd += 1  # it could never return


def _linking_branch(machine: Machine, instruction: Instruction) -> None:
    _call(machine, instruction)
    if instruction[2] in ("bltzall", "bgezall"):
        machine.slot = 2


def _stop(machine: Machine, instruction: Instruction) -> bool:
    return True


def _trap_if_equal(machine: Machine, instruction: Instruction) -> bool:
    operands = _operands(instruction[3])
    return operands[0] == operands[1]  # gcc's __builtin_trap()


def _system_call(machine: Machine, instruction: Instruction) -> None:
    """Linux v6.13 arch/mips/include/asm/stackframe.h: it keeps s0-s8, gp, sp and ra."""
    for register in (2, 3, 7, *range(8, 16), 24, 25):
        _forget(machine, register)


_BRANCHES = "beq bne blez bgtz bltz bgez beqz bnez bc1t bc1f bposge32 bc2t bc2f".split()

_HANDLERS: dict[str, Callable[[Machine, Instruction], bool | None]] = {
    **dict.fromkeys(_BRANCHES, _branch),
    **dict.fromkeys("beql bnel blezl bgtzl bltzl bgezl beqzl bnezl bc1tl bc1fl".split(), _likely),
    **dict.fromkeys(("b", "j", "jr", "jr.hb"), _jump),
    **dict.fromkeys(("jal", "jalr", "jalr.hb", "jalx", "bal"), _call),
    **dict.fromkeys(("bltzal", "bgezal", "bltzall", "bgezall"), _linking_branch),
    **dict.fromkeys(("break", "sdbbp"), _stop),
    "teq": _trap_if_equal,
    "syscall": _system_call,
    "move": _move,
    **dict.fromkeys(("addiu", "addu", "addi", "add"), _sum(1)),
    **dict.fromkeys(("subu", "sub"), _sum(-1)),
    "lui": _lui,
    "ori": _ori,
    "and": _and,
    "lw": _load,
    "sw": _store,
    **dict.fromkeys(("sb", "sh", "swl", "swr", "swc1", "swxc1"), _overwrite(1)),
    **dict.fromkeys(("sdc1", "sdxc1"), _overwrite(2)),
    **dict.fromkeys(("sc", "scd"), _sc),
}

# These only read the general register that they name first.
_READERS = frozenset(
    "nop ssnop ehb sync pref mtc0 mtc1 mthc1 mtc2 ctc1 mthi mtlo mult multu div divu madd maddu "
    "msub msubu tne tge tgeu tlt tltu teqi tnei tgei tlti synci cache wrdsp mthlip".split()
)


def _jumps(byteorder: ByteOrder) -> Callable[[memoryview, int], Iterator[tuple[int, int]]]:
    """b, beq, bne, blez, bgtz and their like, and j, which leave for another function."""

    def jumps(code: memoryview, vaddr: int) -> Iterator[tuple[int, int]]:
        for at, word in _words(code, byteorder):
            operation, here = word >> 26, vaddr + at
            if operation in _BRANCHING and (operation != 1 or word >> 16 & 31 in (0, 1, 2, 3)):
                yield here + 4 + 4 * (((word & 0xFFFF) ^ 0x8000) - 0x8000), here
            elif operation == 2:
                yield here + 4 & 0xF000_0000 | (word & 0x03FF_FFFF) << 2, here

    return jumps


_BRANCHING = frozenset((1, 4, 5, 6, 7, 20, 21, 22, 23))


def _words(code: memoryview, byteorder: ByteOrder) -> Iterator[tuple[int, int]]:
    from struct import iter_unpack

    whole = code[: len(code) & -4]
    form = "<I" if byteorder == "little" else ">I"
    return ((4 * n, word) for n, (word,) in enumerate(iter_unpack(form, whole)))


def _model(byteorder: ByteOrder) -> CodeModel:
    order = "CS_MODE_LITTLE_ENDIAN" if byteorder == "little" else "CS_MODE_BIG_ENDIAN"
    return CodeModel(
        capstone=("CS_ARCH_MIPS", ("CS_MODE_MIPS32", order)),
        effect=_effect,
        sp=SP,
        return_address=RA,
        entry={
            ZERO: (CONSTANT, 0),
            SP: (CFA, 0),
            RA: (RETURN_ADDRESS, 0),
            T7: (T7, 0),
            **{number: (number, 0) for number in _SAVED},
        },
        entry_slots={},
        saved=_SAVED,
        bases=(S8, SP, *range(16, 24), *range(1, 16), 24, 25),
        keeps_slots=True,
        red_zone=0,
        calls=frozenset("jal jalr jalr.hb jalx bal bltzal bgezal bltzall bgezall".split()),
        padding=frozenset({"nop"}),
        jumps=_jumps(byteorder),
        return_carriers=(T7,),
    )


models: dict[ByteOrder, CodeModel] = {"little": _model("little"), "big": _model("big")}
