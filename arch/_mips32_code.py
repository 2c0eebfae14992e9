"""What mips32's instructions do to the stack pointer and to the registers that calls preserve."""

from __future__ import annotations

from unwind.arch._distances import each, places
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
    # glibc's SETUP_GPX ($0) is to keep ra in the register that keeps nothing, around its bal.
    if (target[1] == RA and value == (CONSTANT, 0)) or (target[1] == ZERO and source[1] == RA):
        _mark_outermost(machine)


def _mark_outermost(machine: Machine) -> None:
    """The code gives ra up, as start-up code does: there is no caller to return to."""
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
    elif machine.get(T7) == (RETURN_ADDRESS, 0):
        # A lazy binding stub jumps to the dynamic linker; the next one lies behind it.
        _forget(machine, RA)
        machine.anew = True
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


_BRANCHING = frozenset((1, 4, 5, 6, 7, 20, 21, 22, 23))  # b, beq, bne, blez, bgtz and their like


def _jumps(byteorder: ByteOrder) -> Callable[[memoryview, int], Iterator[tuple[int, int]]]:
    """Those branches, and j, which leave for another function."""

    def jumps(code: memoryview, vaddr: int) -> Iterator[tuple[int, int]]:
        for at, word in _words(code, byteorder):
            target = _target(word, vaddr + at)
            if target is not None:
                yield target, vaddr + at

    return jumps


def _target(word: int, here: int) -> int | None:
    """Where one of these jumps leads, None where the word is no such."""
    operation = word >> 26
    if operation == 2:
        return here + 4 & 0xF000_0000 | (word & 0x03FF_FFFF) << 2
    if operation in _BRANCHING and (operation != 1 or word >> 16 & 31 in (0, 1, 2, 3)):
        return here + 4 + 4 * (((word & 0xFFFF) ^ 0x8000) - 0x8000)
    return None


def _jumps_into(byteorder: ByteOrder) -> Callable[[memoryview, int, int, int], Iterator[int]]:
    """The sources of those of `_jumps` that lead into [start, end)."""
    opcode, upper = (3, 1) if byteorder == "little" else (0, 2)

    def jumps_into(code: memoryview, vaddr: int, start: int, end: int) -> Iterator[int]:
        data = bytes(code[: len(code) & -4])
        count, opcodes = len(data) // 4, data[opcode::4]
        # A branch counts words from its delay slot on.
        low, high = (start - vaddr) // 4 - 1, (end - vaddr) // 4 - 1
        first, last = max(low - (1 << 15), 0), min(high + (1 << 15), count)
        found = set(places(data[upper::4], 8, low, high, first, last))
        for kind in b"\x08\x09\x0a\x0b":  # j
            found.update(each(opcodes, kind, 0, count))
        for n in found:
            here = vaddr + 4 * n
            target = _target(int.from_bytes(data[4 * n : 4 * n + 4], byteorder), here)
            if target is not None and start <= target < end:
                yield here

    return jumps_into


# lui gp, n; addiu gp, gp, n; addu gp, gp, t9: how position-independent functions begin.
_JR_RA, _JR_T9 = 0x03E0_0008, 0x0320_0008
_LUI_GP, _ADDIU_GP, _ADDU_GP_T9 = 0x3C1C, 0x279C, 0x0399_E021
_LUI_V0, _ADDIU_V0, _ADDU_V0_T9 = 0x3C02, 0x2442, 0x0059_0021
_LATER = 16  # words in which clang has set up gp, or another register in its place


def _starts(byteorder: ByteOrder) -> Callable[[memoryview, int], Iterator[int]]:
    """Where direct calls lead, where gp is set up, and what stands behind a return."""

    def starts(code: memoryview, vaddr: int) -> Iterator[int]:
        words = [word for _, word in _words(code, byteorder)]
        inside = _inside(words)
        known = {0, *_called(words, vaddr), *_taken(words, vaddr, inside)}
        cases = False  # of a switch may lie here
        behind = True  # nothing falls through to here
        for n, word in enumerate(words):
            begins = word >> 16 == _LUI_GP and _sets_gp(words[n + 1 : n + 3])
            if begins or (word >> 16 == _LUI_V0 and _sets_gp_later(words[n + 1 : n + _LATER])):
                known.add(n)
            elif word and not inside[n] and n >= 2:
                framed = _makes_frame(word) and _is_left(words[n - 2])
                if framed or (behind and not cases):
                    known.add(n)
            if n in known:
                cases = False
            elif word & 0xFC1F_FFFF == 8 and word not in (_JR_RA, _JR_T9):
                cases = True
            if n >= 1 and _leaves(words[n - 1]):
                behind = True
            elif word:
                behind = False
        for n in sorted(known):
            yield vaddr + 4 * n

    return starts


def _called(words: list[int], vaddr: int) -> Iterator[int]:
    """The numbers of the words that jal and bal lead to; some may lie elsewhere."""
    for n, word in enumerate(words):
        if word >> 26 == 3:
            here = vaddr + 4 * n + 4
            yield ((here & 0xF000_0000 | (word & 0x03FF_FFFF) << 2) - vaddr) >> 2
        elif word >> 16 == 0x0411 and word & 0xFFFF != 1:
            yield n + 1 + ((word & 0xFFFF ^ 0x8000) - 0x8000)


def _taken(words: list[int], vaddr: int, inside: list[int]) -> Iterator[int]:
    """The numbers of the words whose addresses lui and addiu make, where a function may begin."""
    upper: dict[int, tuple[int, int]] = {}  # what lui has put into a register, and where
    for n, word in enumerate(words):
        if word >> 21 == 0x1E0:  # lui
            upper[word >> 16 & 31] = n, (word & 0xFFFF) << 16
        elif word >> 26 == 9 and word >> 21 & 31 in upper:  # addiu
            at, value = upper[word >> 21 & 31]
            address = value + ((word & 0xFFFF ^ 0x8000) - 0x8000)
            target = (address - vaddr) >> 2
            if n - at <= 8 and address % 4 == 0 and 2 <= target < len(words):
                if not inside[target] and _is_left(words[target - 2]):
                    yield target
        elif word >> 26 == 0x23:  # lw
            upper.pop(word >> 16 & 31, None)


def _begins(byteorder: ByteOrder) -> Callable[[memoryview, int], bool]:
    """Whether gp is set up there, or what lies before returns or leaves.

    Behind b stand the labels of a function too, which its tables hold (gcc's `&&label`).
    """

    def begins(code: memoryview, vaddr: int) -> bool:
        words = [word for _, word in _words(code[:20], byteorder)]
        if vaddr % 4 or len(words) < 5:
            return False
        sets_gp = words[2] >> 16 == _LUI_GP and _sets_gp(words[3:])
        return sets_gp or (words[0] >> 16 != 0x1000 and _leaves(words[0]))

    return begins


def _sets_gp(words: list[int]) -> bool:
    return len(words) == 2 and words[0] >> 16 == _ADDIU_GP and words[1] == _ADDU_GP_T9


def _sets_gp_later(words: list[int]) -> bool:
    """As clang does: lui v0; addiu v0, v0, n; ... addu r, v0, t9."""
    if not words or words[0] >> 16 != _ADDIU_V0:
        return False
    return any(word & 0xFFFF_07FF == _ADDU_V0_T9 for word in words[1:])


def _inside(words: list[int]) -> list[int]:
    """For each word how many conditional branches lead over it or to it: a function has one part.

    What jumps without a condition may leave for another function.
    """
    steps = [0] * (len(words) + 1)
    for n, word in enumerate(words):
        if word >> 26 in _BRANCHING and word >> 16 != 0x0411:
            target = n + 1 + ((word & 0xFFFF ^ 0x8000) - 0x8000)
            tail = word >> 16 == 0x1000 and _takes_down(words[n + 1 : n + 2])
            if 0 <= target < len(words) and not tail:
                low, high = (n, target) if n < target else (target, n)
                steps[low + 1] += 1
                steps[high + 1] -= 1
    inside, count = [], 0
    for step in steps[:-1]:
        count += step
        inside.append(count)
    return inside


def _makes_frame(word: int) -> bool:
    """Whether it is addiu sp, sp, -n."""
    return word >> 16 == 0x27BD and word & 0x8000 != 0


def _is_left(word: int) -> bool:
    """Whether a function may end with this jump or call: of one that does not return."""
    return _leaves(word) or word >> 26 == 3 or word >> 16 == 0x0411 or word == 0x0320_F809


def _takes_down(slot: list[int]) -> bool:
    """Whether a delay slot frees the frame: addiu sp, sp, n."""
    return bool(slot) and slot[0] >> 16 == 0x27BD and slot[0] & 0x8000 == 0


def _leaves(word: int) -> bool:
    """jr, b or j: nothing falls through what stands behind their delay slots.

    But behind jr by another register than ra and t9 stand the cases of a switch.
    """
    return word in (_JR_RA, _JR_T9) or word >> 16 == 0x1000 or word >> 26 == 2


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
        frame_record=False,
        red_zone=0,
        calls=frozenset("jal jalr jalr.hb jalx bal bltzal bgezal bltzall bgezall".split()),
        padding=frozenset({"nop"}),
        jumps=_jumps(byteorder),
        jumps_into=_jumps_into(byteorder),
        starts=_starts(byteorder),
        begins=_begins(byteorder),
        return_carriers=(T7,),
    )


models: dict[ByteOrder, CodeModel] = {"little": _model("little"), "big": _model("big")}
