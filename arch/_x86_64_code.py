"""What x86_64's instructions do to the stack pointer and to the registers that calls preserve."""

from __future__ import annotations

from struct import Struct

from unwind.arch._distances import stretches
from unwind.machine import CFA, CONSTANT, RETURN_ADDRESS, CodeModel, Machine

__all__ = ["MODEL"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unwind.machine import Flow, Instruction

    # ("r", number, all 64 bits?) | ("m", base, displacement, bytes) | ("i", value)
    Operand = tuple[str, int, int, int]

RAX, RDX, RCX, RBX, RSI, RDI, RBP, RSP = range(8)
RIP = 16
_SAVED = (RBX, RBP, 12, 13, 14, 15)
_LOST = (RAX, RDX, RCX, RSI, RDI, 8, 9, 10, 11)  # in a call
_NOWHERE = 4096  # the base of an address that depends on more than one register


def _names() -> dict[str, tuple[int, int]]:
    """Every name of a general register: its number, and the bytes of it."""
    names = {}
    for number, letter in enumerate("adcb"):
        for name, size in (("r{}x", 8), ("e{}x", 4), ("{}x", 2), ("{}l", 1), ("{}h", 1)):
            names[name.format(letter)] = (number, size)
    for number, stem in ((RSI, "si"), (RDI, "di"), (RBP, "bp"), (RSP, "sp")):
        for name, size in (("r{}", 8), ("e{}", 4), ("{}", 2), ("{}l", 1)):
            names[name.format(stem)] = (number, size)
    for number in range(8, 16):
        for suffix, size in (("", 8), ("d", 4), ("w", 2), ("b", 1)):
            names[f"r{number}{suffix}"] = (number, size)
    return names


_REGISTERS = _names()
_SIZES = {"byte": 1, "word": 2, "dword": 4, "qword": 8, "xmmword": 16, "ymmword": 32, "zmmword": 64}
_PARSED: dict[str, tuple[Operand, ...]] = {}
_MOST_PARSED = 50_000


def _operands(text: str) -> tuple[Operand, ...]:
    """capstone's operands in Intel's syntax; the same few thousand texts come again and again."""
    found = _PARSED.get(text)
    if found is None:
        if len(_PARSED) >= _MOST_PARSED:
            _PARSED.clear()
        found = _PARSED[text] = tuple([_operand(part) for part in text.split(", ")] if text else [])
    return found


def _operand(text: str) -> Operand:
    register = _REGISTERS.get(text)
    if register is not None:
        return ("r", register[0], register[1], 0)
    if text[-1:] == "]":
        kind, _, inside = text.rpartition("[")
        size = _SIZES.get(kind.partition(" ")[0], 8)
        if ":" in kind:
            return ("m", _NOWHERE, 0, size)  # fs: and gs:
        words = inside[:-1].split(" ")
        base = _REGISTERS.get(words[0])
        if base is None or base[1] != 8 or len(words) not in (1, 3):
            return ("m", _NOWHERE, 0, size)
        if len(words) == 1:
            return ("m", base[0], 0, size)
        number = _integer(words[2])
        if number is None or words[1] not in "+-":
            return ("m", _NOWHERE, 0, size)
        return ("m", base[0], -number if words[1] == "-" else number, size)
    number = _integer(text)
    return ("?", 0, 0, 0) if number is None else ("i", number, 0, 0)


def _integer(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _effect(machine: Machine, instruction: Instruction) -> bool:
    handler = _HANDLERS.get(instruction[2])
    if handler is not None:
        return handler(machine, instruction) or False
    if instruction[2] not in _READERS:
        _write(machine, _operands(instruction[3]))
    return False


def _write(machine: Machine, operands: tuple[Operand, ...]) -> None:
    """What the first operand names is no longer what it was."""
    if not operands:
        return
    kind, number, at, size = operands[0]
    if kind == "r":
        _lose(machine, number)
    elif kind == "m" and number in machine.state.registers:
        for offset in range(at & -8, at + size, 8):
            machine.store(number, offset, None)


def _lose(machine: Machine, register: int) -> None:
    """A register holds what nobody knows, which is an address still if it is the stack pointer."""
    if register == RSP:
        machine.lose(RSP)
    elif register in machine.state.registers:
        machine.set(register, None)


def _value(machine: Machine, operand: Operand) -> tuple[int, int] | None:
    kind, number, at, size = operand
    if kind == "r":
        return machine.get(number) if at == 8 else None
    if kind == "m":
        return machine.load(number, at) if size == 8 else None
    return (CONSTANT, number) if kind == "i" else None


def _assign(machine: Machine, operand: Operand, value: tuple[int, int] | None) -> None:
    kind, number, at, size = operand
    if kind == "r":
        if value is not None and (at == 8 or value[0] == CONSTANT):
            machine.set(number, value)
        else:
            _lose(machine, number)
    elif kind == "m" and size == 8:
        machine.store(number, at, value)
    elif kind == "m":
        _write(machine, (operand,))


def _push(machine: Machine, instruction: Instruction) -> None:
    value = _value(machine, _operands(instruction[3])[0]) if instruction[3] else None
    _add(machine, RSP, -8)
    machine.store(RSP, 0, value)


def _pop(machine: Machine, instruction: Instruction) -> None:
    value = machine.load(RSP, 0)
    _add(machine, RSP, 8)
    if instruction[3]:
        _assign(machine, _operands(instruction[3])[0], value)


def _add(machine: Machine, register: int, amount: int) -> None:
    value = machine.get(register)
    if value is not None:
        machine.set(register, (value[0], value[1] + amount))


def _mov(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    if source[0] == "i" and target[0] == "m":
        _write(machine, (target,))
    else:
        _assign(machine, target, _value(machine, source))


def _movabs(machine: Machine, instruction: Instruction) -> None:
    _mov(machine, instruction)


def _lea(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    base = machine.get(source[1]) if source[0] == "m" else None
    value = (base[0], base[1] + source[2]) if base is not None else None
    _assign(machine, target, value if target[2] == 8 else None)


def _arithmetic(sign: int) -> Callable[[Machine, Instruction], None]:
    def add(machine: Machine, instruction: Instruction) -> None:
        target, source = _operands(instruction[3])
        base = _value(machine, target) if target[0] == "r" else None
        amount = _value(machine, source) if base is not None else None
        if base is not None and amount is not None and amount[0] == CONSTANT:
            _assign(machine, target, (base[0], base[1] + sign * _signed(amount[1])))
        elif base is not None and target[1] == RSP and sign < 0:
            machine.align(RSP)  # alloca
        else:
            _write(machine, (target,))

    return add


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


def _or(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    if source[:2] != ("i", 0):  # `or [rsp], 0` only touches a page of the stack, or is a barrier
        _write(machine, (target,))


def _and(machine: Machine, instruction: Instruction) -> None:
    target, source = _operands(instruction[3])
    if target[0] == "r" and target[2] == 8 and target[1] == RSP and source[0] == "i":
        machine.align(RSP)
    else:
        _write(machine, (target,))


def _leave(machine: Machine, instruction: Instruction) -> None:
    machine.set(RSP, machine.get(RBP))
    value = machine.load(RSP, 0)
    _add(machine, RSP, 8)
    machine.set(RBP, value)


def _enter(machine: Machine, instruction: Instruction) -> None:
    size, level = _operands(instruction[3])
    value = machine.get(RBP)
    _add(machine, RSP, -8)
    machine.store(RSP, 0, value)
    machine.set(RBP, machine.get(RSP) if not level[1] else None)
    _add(machine, RSP, -size[1])


def _xchg(machine: Machine, instruction: Instruction) -> None:
    for operand in _operands(instruction[3])[:2]:
        _write(machine, (operand,))


def _clobber(*registers: int) -> Callable[[Machine, Instruction], None]:
    def clobber(machine: Machine, instruction: Instruction) -> None:
        for register in registers:
            if register in machine.state.registers:
                machine.set(register, None)

    return clobber


def _call(machine: Machine, instruction: Instruction) -> None:
    address, size, _, text = instruction
    operand = _operands(text)[0] if text else ("?", 0, 0, 0)
    if operand[0] == "i" and operand[1] == address + size:  # call the next instruction, and pop it
        _add(machine, RSP, -8)
        machine.store(RSP, 0, None)
        return
    machine.called = True
    sp = machine.get(RSP)
    if sp is not None and sp[0] == CFA and sp[1] % 16:
        # x86-64 psABI 1.0 §3.2.2: rsp is a multiple of 16 there, but for local functions that need
        # no such stack (gcc's -fipa-stack-alignment).
        machine.askew += 1
    _clobber(*_LOST)(machine, instruction)


def _jump(machine: Machine, instruction: Instruction) -> bool:
    operand = _operands(instruction[3])[0]
    if operand[0] == "i":
        machine.targets.append(operand[1])
    elif "rip" not in instruction[3]:  # a stub of the procedure linkage table
        machine.somewhere = 1
    _pops_too_much(machine)
    return True


def _cmp(machine: Machine, instruction: Instruction) -> None:
    address, size, _, text = instruction
    if "rsp" in text:
        one, other = _operands(text)
        if one[0] == other[0] == "r" and RSP in (one[1], other[1]):
            machine.compared = one[1] + other[1] - RSP, address + size


def _unequal(machine: Machine, instruction: Instruction) -> None:
    """`jne`, as which it may end a loop that touches each page of a large frame.

    gcc's -fstack-clash-protection and clang's probe-stack: `lea r11, [rsp - N]`, then `sub rsp,
    4096; or qword [rsp], 0; cmp rsp, r11; jne`. Behind it both are equal.
    """
    _branch(machine, instruction)
    register, end = machine.compared
    limit = machine.get(register) if end == instruction[0] else None
    if limit is not None and machine.targets and machine.targets[-1] < instruction[0]:
        machine.loop = machine.targets[-1]
        machine.set(RSP, limit)


def _branch(machine: Machine, instruction: Instruction) -> None:
    operand = _operands(instruction[3])[0]
    if operand[0] == "i":
        machine.targets.append(operand[1])


def _return(machine: Machine, instruction: Instruction) -> bool:
    machine.returned |= machine.get(RSP) == (CFA, -8)
    _pops_too_much(machine)
    return True


def _pops_too_much(machine: Machine) -> None:
    """What leaves with the stack pointer above the return address was not entered by a call."""
    sp = machine.get(RSP)
    if sp is not None and sp[0] == CFA:
        machine.popped.add(sp[1] + 8)
        machine.odd += sp[1] > -8


def _stop(machine: Machine, instruction: Instruction) -> bool:
    return True


_CONDITIONS = "a ae b be c e g ge l le na nae nb nbe nc ne ng nge nl nle no np ns nz o p pe po s z"
_BRANCHES = [f"j{condition}" for condition in _CONDITIONS.split()] + ["jrcxz", "jecxz", "loop"]
_BRANCHES += ["loope", "loopne"]

_HANDLERS: dict[str, Callable[[Machine, Instruction], bool | None]] = {
    **dict.fromkeys(_BRANCHES, _branch),
    **{f"{prefix}{name}": _branch for name in _BRANCHES for prefix in ("bnd ", "notrack ")},
    "jne": _unequal,
    "cmp": _cmp,
    "push": _push,
    "pushfq": _push,
    "pop": _pop,
    "popfq": _pop,
    "mov": _mov,
    "movabs": _movabs,
    "lea": _lea,
    "add": _arithmetic(1),
    "sub": _arithmetic(-1),
    "and": _and,
    **dict.fromkeys(("or", "xor", "lock or", "lock add", "lock sub"), _or),
    "leave": _leave,
    "enter": _enter,
    "xchg": _xchg,
    "xadd": _xchg,
    "mulx": _xchg,
    "cpuid": _clobber(RAX, RBX, RCX, RDX),
    "mul": _clobber(RAX, RDX),
    "div": _clobber(RAX, RDX),
    "idiv": _clobber(RAX, RDX),
    "syscall": _clobber(RAX, RCX, 11),
    "call": _call,
    "bnd call": _call,
    "notrack call": _call,
    **dict.fromkeys(("jmp", "bnd jmp", "notrack jmp", "ljmp"), _jump),
    **dict.fromkeys(("ret", "bnd ret", "repz ret", "rep ret", "retf", "retfq", "iretq"), _return),
    **dict.fromkeys(("ud2", "hlt", "ud1", "ud0"), _stop),
}

# The first operand is only read; the commonest instructions of all.
_READERS = frozenset("test nop endbr64 bt prefetcht0 prefetchw pause cmpxchg".split()) - {"cmpxchg"}


def _jumps(code: memoryview, vaddr: int) -> Iterator[tuple[int, int]]:
    """What may be `jmp rel32` (E9) or `jcc rel32` (0F 80-8F), no further than 64 MiB."""
    import re

    data, distance = bytes(code), Struct("<i").unpack_from
    pattern = rb"(?:\xe9|\x0f[\x80-\x8f])(?=...[\x00-\x03\xfc-\xff])"
    for match in re.finditer(pattern, data, re.DOTALL):
        at = match.end()
        yield vaddr + at + 4 + distance(data, at)[0], vaddr + match.start()


def _jumps_into(code: memoryview, vaddr: int, start: int, end: int) -> Iterator[int]:
    """The sources of those of `_jumps` that lead into [start, end)."""
    import re

    data, low, high = bytes(code), start - vaddr, end - vaddr
    # The upper half of a distance is looked for; what follows the jump is 2 bytes behind it.
    for first, last, upper in stretches(16, low - 2, high - 2, 3, len(data) - 1):
        half = re.escape((upper & 0xFFFF).to_bytes(2, "little"))
        pattern = half + rb"(?<=[\xe9\x80-\x8f].." + half + b")"
        for match in re.compile(pattern, re.DOTALL).finditer(data, first, last + 1):
            at = match.start() - 2
            if low <= at + 4 + int.from_bytes(data[at : at + 4], "little", signed=True) < high:
                if data[at - 1] == 0xE9:
                    yield vaddr + at - 1
                elif data[at - 2 : at - 1] == b"\x0f":
                    yield vaddr + at - 2


# What ends before a function, in bytes: ret, int3, nop and jmp rel8 or rel32 are told by theirs;
# a function begins with endbr64, push or sub rsp.
_CALLED = rb"\xe8"
_TAKEN = rb"[\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d]"  # lea reg, [rip + disp32]
_BEHIND = rb"(?:\xc3|\xcc|\x90|\xe9....|\xeb.|\x0f\x0b|\x0f\x1f.{1,6}\x00)"
_BEGINS = rb"(?:\xf3\x0f\x1e\xfa|\x41?[\x50-\x57]|\x48[\x81\x83]\xec)"


def _starts(code: memoryview, vaddr: int) -> Iterator[int]:
    """Where calls lead, what seems to be a function's address, and prologues behind a gap."""
    import re

    end = len(code) - 4
    for pattern in (_CALLED, _TAKEN):
        for match in re.finditer(pattern, code):
            at = match.end()
            if at > end:
                continue
            target = at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
            if pattern is _CALLED or (
                8 <= target < len(code) and _begins(code[target - 8 :], vaddr + target)
            ):
                yield vaddr + target
    jumps = {target for target, _ in _jumps(code, vaddr)}
    for match in re.finditer(_BEHIND + b"(?=" + _BEGINS + b")", code, re.DOTALL):
        start = vaddr + match.end()
        if start % 16 == 0 and start not in jumps:
            yield start


def _begins(code: memoryview, vaddr: int) -> bool:
    import re

    return vaddr % 16 == 0 and re.search(_BEHIND + rb"\Z", code[:8], re.DOTALL) is not None


# What a function may not look at before it has set it: rax, rbx, rbp, r11 to r15.
_EMPTY = frozenset({RAX, RBX, RBP, 11, 12, 13, 14, 15})
_FIRST = 8


def _enters(instructions: Sequence[Instruction]) -> int:
    """Whether a function may begin with these instructions: 0 no, 1 perhaps, 2 likely, 3 surely.

    Landing pads and targets of jump tables use what the code before them left in registers and in
    the frame; a function has nothing but its arguments.
    """
    written: set[int] = set()
    saved = 0
    moved = False  # what lies on the stack is its own
    for number, (_, _, mnemonic, text) in enumerate(instructions[:_FIRST]):
        parts = text.split(", ") if text else []
        if mnemonic == "endbr64" and number == 0:
            saved = 2
        elif mnemonic == "and" and parts[0] == "rsp":
            saved = 2
            moved = True
        elif text == "r10, [rsp + 8]":
            continue  # gcc keeps the CFA there while it realigns the stack
        elif mnemonic == "push":  # of rax: clang moves the stack pointer that way
            saved += text in _PUSHED
            moved = True
        elif mnemonic == "sub" and parts[0] == "rsp":
            saved = max(saved, 1)
            moved = True
        elif text == "rbp, rsp" and saved:
            saved = 2
            written.add(RBP)
        elif _KINDS.get(mnemonic, "mov") not in ("mov", "lea", "padding"):
            break
        elif _reads_too_much(mnemonic, text, parts, written, moved):
            return 0
    return min(saved, 2) + 1


def _reads_too_much(
    mnemonic: str, text: str, parts: list[str], written: set[int], moved: bool
) -> bool:
    """Whether an instruction uses what no caller gave; what it sets is added to `written`."""
    if not moved and "[rsp + " in text:
        return True
    cleared = mnemonic in ("xor", "pxor", "sub") and len(set(parts)) == 1
    moves = mnemonic[:3] in ("mov", "lea", "set") and parts[:1] != [] and parts[0][-1] != "]"
    used = [] if cleared or text == "al, al" else parts[1:] if moves else parts
    for part in used:
        names = part.replace("[", " ").replace("]", " ").replace("*", " ").split()
        numbers = {_REGISTERS[name][0] for name in names if name in _REGISTERS}
        if numbers & _EMPTY - written:
            return True
    if parts and parts[0] in _REGISTERS:
        written.add(_REGISTERS[parts[0]][0])
    return False


_PUSHED = frozenset({"rbx", "rbp", "r12", "r13", "r14", "r15"})
_KINDS = {
    **dict.fromkeys(("call", "bnd call", "notrack call"), "call"),
    **dict.fromkeys(("jmp", "bnd jmp", "notrack jmp"), "jump"),
    **dict.fromkeys([f"{p}{b}" for p in ("", "bnd ", "notrack ") for b in _BRANCHES], "branch"),
    **dict.fromkeys(("ret", "bnd ret", "repz ret", "ud2", "hlt"), "end"),
    **dict.fromkeys(("nop", "int3", "data16 nop"), "padding"),
    "lea": "lea",
    "mov": "mov",
}


def _survey(instructions: Sequence[Instruction], flow: Flow) -> None:
    """Add what instructions tell of where control goes."""
    kinds, behind, padded = _KINDS, flow.behind, flow.padded
    for address, size, mnemonic, text in instructions:
        kind = kinds.get(mnemonic)
        if kind != "padding":
            if behind:
                if behind == 1 or padded:
                    flow.leaders.append(address)
                behind = 0
            elif padded:
                flow.behind_padding.append(address)
            padded = False
        if kind is None:
            continue
        if kind == "mov":
            if text[-1] != "]" and ", 0x" in text:  # an address of a program that is no PIE
                number = text.rpartition(", ")[2]
                if len(number) > 6 and number[:2] == "0x":
                    flow.taken.setdefault(int(number, 16), address)
            elif "*8 + 0x" in text and text[-1] == "]":
                flow.tables.append((int(text.rpartition(" ")[2][:-1], 16), address))
        elif kind == "padding":
            padded = True
        elif kind == "lea":
            if "[rip " in text:
                number = text.rpartition("[rip ")[2][:-1].replace(" ", "")
                flow.taken.setdefault(address + size + int(number, 0), address)
        elif kind == "end":
            behind = 1
        elif kind == "call":
            behind = 2
            if text[:2] == "0x" and int(text, 16) != address + size:
                flow.calls.append((int(text, 16), address + size))
        elif text[:2] == "0x":
            flow.jumps.append((int(text, 16), address, kind == "branch"))
            behind = int(kind == "jump")
        else:
            if "*8 + 0x" in text:
                flow.tables.append((int(text.rpartition(" ")[2][:-1], 16), address))
            behind = 1
    flow.behind, flow.padded = behind, padded


MODEL = CodeModel(
    capstone=("CS_ARCH_X86", ("CS_MODE_64",)),
    effect=_effect,
    sp=RSP,
    return_address=RIP,
    entry={RSP: (CFA, -8), **{number: (number, 0) for number in _SAVED}},
    entry_slots={(CFA, -8): (RETURN_ADDRESS, 0)},
    saved=_SAVED,
    bases=(RBP, RSP, 10, 11, RBX, 12, 13, 14, 15, RAX, RDX, RCX, RSI, RDI, 8, 9),
    keeps_slots=True,
    frame_record=True,
    red_zone=128,
    calls=frozenset({"call", "bnd call", "notrack call"}),
    padding=frozenset({"nop", "int3", "data16 nop"}),
    jumps=_jumps,
    jumps_into=_jumps_into,
    starts=_starts,
    begins=_begins,
    survey=_survey,
    enters=_enters,
)
