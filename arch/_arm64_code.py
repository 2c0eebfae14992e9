"""What arm64's instructions do to the stack pointer and to the registers that calls preserve."""

from __future__ import annotations

from unwind.arch._distances import each, places
from unwind.machine import CFA, CONSTANT, RESTORED, RETURN_ADDRESS, CodeModel, Machine

__all__ = ["MODEL"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unwind.machine import Instruction, Symbolic

    # A register as (number or -1, bytes of it).
    Register = tuple[int, int]
    # The registers before the bracket, the base, the offset (None: a register's), and what the
    # base is changed by: before or after the access (None: unknown).
    Access = tuple[tuple[Register, ...], int, int | None, int | None, int | None]

X18, X19, X29, X30, SP = 18, 19, 29, 30, 31
_SAVED = tuple(range(X19, X30))
_LAST_LOST = 17  # x0-x17 in a call; x18 is the platform's, where shadow call stacks have it
_SCRATCH = range(9, 18)  # where prologues make sizes that no immediate holds
_NOTHING = (-1, 8)
_HERE = (-5, 0)  # an address within the function


def _names() -> dict[str, Register]:
    """Every name of a register that an operand may have: its number and its bytes."""
    names = {f"x{n}": (n, 8) for n in range(31)} | {f"w{n}": (n, 4) for n in range(31)}
    names |= {"sp": (SP, 8), "wsp": (SP, 4), "fp": (X29, 8), "lr": (X30, 8)}
    for letter, size in (("q", 16), ("d", 8), ("s", 4), ("h", 2), ("b", 1)):
        names |= {f"{letter}{n}": (-1, size) for n in range(32)}
    return names | {"xzr": _NOTHING, "wzr": (-1, 4)}


_REGISTERS = _names()
_ACCESSES: dict[str, Access] = {}
_OPERANDS: dict[str, tuple[str, ...]] = {}
_MOST_PARSED = 50_000


def _operands(text: str) -> tuple[str, ...]:
    found = _OPERANDS.get(text)
    if found is None:
        if len(_OPERANDS) >= _MOST_PARSED:
            _OPERANDS.clear()
        found = _OPERANDS[text] = tuple(text.split(", "))
    return found


def _access(text: str) -> Access:
    """The operands of a load or a store; the same few thousand texts come again and again."""
    found = _ACCESSES.get(text)
    if found is None:
        if len(_ACCESSES) >= _MOST_PARSED:
            _ACCESSES.clear()
        found = _ACCESSES[text] = _parse(text)
    return found


def _parse(text: str) -> Access:
    head, _, rest = text.partition("[")
    inside, _, tail = rest.partition("]")
    base, _, index = inside.partition(", ")
    offset = _number(index) if index else 0
    registers = tuple([_REGISTERS.get(name, _NOTHING) for name in head.split(", ")[:-1]])
    number = _REGISTERS.get(base, _NOTHING)[0]
    if tail == "!":
        return registers, number, 0 if offset is not None else None, offset, 0
    if tail[:2] == ", ":
        return registers, number, 0, 0, _number(tail[2:])
    return registers, number, offset, 0, 0


def _number(text: str) -> int | None:
    """The value of an immediate as capstone prints it, `#-0x10`."""
    if text[:1] != "#":
        return None
    try:
        value = int(text[1:], 0)
    except ValueError:
        return None
    return value - (1 << 64) if value >> 63 == 1 else value  # post-indexed, without a sign


def _effect(machine: Machine, instruction: Instruction) -> bool:
    mnemonic, text = instruction[2], instruction[3]
    handler = _HANDLERS.get(mnemonic)
    if handler is not None:
        return handler(machine, text) or False
    if mnemonic in _READERS:
        return False
    if mnemonic[:2] == "b.":
        return _branch(machine, text)
    if "[" in text:
        _forget_loaded(machine, text)
    else:
        _write(machine, text)
    return False


def _write(machine: Machine, text: str) -> None:
    """What the first operand names is no longer what it was."""
    number = _REGISTERS.get(text.partition(",")[0], _NOTHING)[0]
    if number in machine.state.registers:
        machine.set(number, None)


def _move_base(machine: Machine, base: int, amount: int | None) -> None:
    if amount == 0:
        return
    value = machine.get(base)
    if value is not None:
        machine.set(base, None if amount is None else (value[0], value[1] + amount))


def _store(machine: Machine, text: str) -> None:
    registers, base, offset, before, after = _access(text)
    known = machine.state.registers
    if base not in known:
        return
    values = [known.get(number) if size == 8 else None for number, size in registers]
    _move_base(machine, base, before)
    if offset is not None:
        for (_, size), value in zip(registers, values, strict=True):
            if size == 8:
                machine.store(base, offset, value)
            else:
                _overwrite(machine, base, offset, size)
            offset += size
    _move_base(machine, base, after)


def _overwrite(machine: Machine, base: int, offset: int, size: int) -> None:
    """What lies there is no longer what it was."""
    for slot in range(offset & -8, offset + size, 8):
        machine.store(base, slot, None)


def _store_narrow(size: int) -> Callable[[Machine, str], None]:
    """STRB and STRH store less than their register's name tells."""

    def store(machine: Machine, text: str) -> None:
        _, base, offset, before, after = _access(text)
        if base in machine.state.registers:
            _move_base(machine, base, before)
            if offset is not None:
                _overwrite(machine, base, offset, size)
            _move_base(machine, base, after)

    return store


def _load(machine: Machine, text: str) -> None:
    """LDR, LDUR, LDP: the saved registers come back by them."""
    if "[" not in text:
        _write(machine, text)  # a literal
        return
    registers, base, offset, before, after = _access(text)
    known = machine.state.registers
    _move_base(machine, base, before)
    values: list[Symbolic | None] = []
    for number, size in registers:
        value = machine.load(base, offset) if offset is not None and size == 8 else None
        values.append(value)
        if offset is not None and value == (number, 0) and number in _SAVED:
            # gcc saves each register where it needs it (-fshrink-wrap-separate): from here on
            # control may also come from where this slot was not written.
            machine.copy().slots[RESTORED, number] = (CONSTANT, 0)
        offset = offset + size if offset is not None else None
    for (number, _), value in zip(registers, values, strict=True):
        if number in known or (value is not None and number >= 0):
            machine.set(number, value)
    _move_base(machine, base, after)


def _forget_loaded(machine: Machine, text: str) -> None:
    """All other instructions with an address: the registers before it are written."""
    registers, base, _, before, after = _access(text)
    for number, _ in registers:
        if number in machine.state.registers:
            machine.set(number, None)
    _move_base(machine, base, before)
    _move_base(machine, base, after)


def _mov(machine: Machine, text: str) -> None:
    """MOV of a register or an immediate, which MOVZ may shift."""
    target, source, *shift = _operands(text)
    number = _REGISTERS.get(target, _NOTHING)[0]
    if number < 0:
        return
    immediate = _number(source)
    if immediate is not None:
        bits = _number(shift[0].rpartition(" ")[2]) if shift else 0
        made = number in _SCRATCH and bits is not None
        value = (CONSTANT, immediate << (bits or 0)) if made else None
    else:
        other, size = _REGISTERS.get(source, _NOTHING)
        value = machine.get(other) if size == 8 else None
    machine.set(number, value)


def _movk(machine: Machine, text: str) -> None:
    """MOVK replaces 16 bits."""
    target, source, *shift = _operands(text)
    number = _REGISTERS.get(target, _NOTHING)[0]
    value = machine.get(number)
    if value is None:
        return
    bits = _number(shift[0].rpartition(" ")[2]) if shift else 0
    part = _number(source)
    if value[0] == CONSTANT and bits is not None and part is not None:
        machine.set(number, (CONSTANT, value[1] & ~(0xFFFF << bits) | part << bits))
    else:
        machine.set(number, None)


def _arithmetic(sign: int) -> Callable[[Machine, str], None]:
    """ADD and SUB with an immediate, which may be shifted, or with a register."""

    def add(machine: Machine, text: str) -> None:
        target, source, amount, *shift = _operands(text)
        number, size = _REGISTERS.get(target, _NOTHING)
        if number < 0:
            return
        value = machine.get(_REGISTERS.get(source, _NOTHING)[0]) if size == 8 else None
        if value is None or value == _HERE:
            machine.set(number, value)
            return
        other: Symbolic | None
        immediate = _number(amount)
        if immediate is not None:
            other = (CONSTANT, immediate)
        else:
            other = machine.get(_REGISTERS.get(amount, _NOTHING)[0])
        known = other is not None and other[0] == CONSTANT
        if shift and known and other is not None:
            kind, _, bits = shift[0].partition(" #")
            known = kind in ("lsl", "uxtx") and bits.isdigit()
            other = (CONSTANT, other[1] << int(bits)) if known else None
        if not known or other is None or (value[0] == CONSTANT and number not in _SCRATCH):
            machine.set(number, None)
        else:
            machine.set(number, (value[0], value[1] + sign * other[1]))

    return add


def _and(machine: Machine, text: str) -> None:
    """The stack pointer is aligned by `and sp, x9, #-32`; no other result is known."""
    if text[:3] == "sp,":
        machine.align(SP)
    else:
        _write(machine, text)


def _call(machine: Machine, text: str) -> None:
    machine.called = True
    state = machine.state
    saved = (RETURN_ADDRESS, 0)
    sp = state.registers.get(SP)
    if state.registers.get(X30) == saved and saved not in state.slots.values():
        # A call loses it, so this is no function of its own, or one that never returns.
        if not any(state.registers.get(n) == saved for n in _SAVED):
            machine.odd += 1
    elif sp is not None and sp[0] == CFA and sp[1] % 16:
        machine.odd += 1  # AAPCS64 §6.4.5: sp is a multiple of 16
    for number in [n for n in state.registers if n <= _LAST_LOST or n == X30]:
        machine.set(number, None)


def _jump(machine: Machine, text: str) -> bool:
    _branch(machine, text)
    return True


def _branch(machine: Machine, text: str) -> bool:
    """B, CBZ, TBZ: the target is the last operand."""
    target = _number(text.rpartition(" ")[2])
    if target is not None:
        machine.targets.append(target)
    return False


def _adr(machine: Machine, text: str) -> None:
    """What jump tables count from: `adr x1, here; add x2, x1, w2, sxtb #2; br x2`."""
    number = _REGISTERS.get(text.partition(",")[0], _NOTHING)[0]
    if number >= 0:  # SVE has one for vectors
        machine.set(number, _HERE)


def _indirect(machine: Machine, text: str) -> bool:
    by_table = machine.get(_REGISTERS.get(text.partition(",")[0], _NOTHING)[0]) == _HERE
    machine.somewhere = 2 if by_table else 1
    if not by_table:
        machine.odd += _pops_too_much(machine)
    return True


def _return(machine: Machine, text: str) -> bool:
    sp = machine.get(SP)
    _pops_too_much(machine)
    if sp != (CFA, 0) and sp is not None:
        machine.odd += 1
    return True


def _pops_too_much(machine: Machine) -> bool:
    """Whether what leaves takes away more of the stack than it has put there."""
    sp = machine.get(SP)
    if sp is None or sp[0] != CFA:
        return False
    machine.popped.add(sp[1])
    return sp[1] > 0


def _stop(machine: Machine, text: str) -> bool:
    return True


_BRANCHES = "cbz cbnz tbz tbnz".split()
_CONDITIONAL = "eq ne hs cs lo cc mi pl vs vc hi ls ge lt gt le al nv".split()  # of b.cond
_INDIRECT = "br braa brab braaz brabz".split()
_RETURNS = "ret retaa retab".split()
_STOPS = "eret eretaa eretab drps brk udf hlt".split()

_HANDLERS: dict[str, Callable[[Machine, str], bool | None]] = {
    **dict.fromkeys("stp stnp str stur stlr sttr stlur".split(), _store),
    **dict.fromkeys("strb sturb stlrb sttrb stlurb".split(), _store_narrow(1)),
    **dict.fromkeys("strh sturh stlrh sttrh stlurh".split(), _store_narrow(2)),
    **dict.fromkeys("ldp ldnp ldr ldur ldar ldtr".split(), _load),
    **dict.fromkeys("mov movz".split(), _mov),
    "movk": _movk,
    "add": _arithmetic(1),
    "sub": _arithmetic(-1),
    "and": _and,
    "adr": _adr,
    **dict.fromkeys("bl blr blraa blrab blraaz blrabz".split(), _call),
    "b": _jump,
    **dict.fromkeys(_BRANCHES, _branch),
    **dict.fromkeys(_INDIRECT, _indirect),
    **dict.fromkeys(_RETURNS, _return),
    **dict.fromkeys(_STOPS, _stop),
}

# They write no register that matters. Signing and authentication leave an address what it is.
_READERS = frozenset(
    "cmp cmn tst ccmp ccmn nop fcmp fcmpe fccmp fccmpe prfm prfum bti hint csdb yield wfe sev "
    "dmb dsb isb sb clrex msr dc ic svc "
    "paciasp pacibsp autiasp autibsp paciaz pacibz autiaz autibz pacia1716 pacib1716 autia1716 "
    "autib1716 pacia pacib autia autib paciza pacizb autiza autizb xpaci xpaclri".split()
)


# The last bytes of CBZ, CBNZ and B.cond, and of TBZ and TBNZ, by the bits of their distances.
_BITS_19, _BITS_14 = b"\x34\x35\x54\xb4\xb5", b"\x36\x37\xb6\xb7"


def _jumps(code: memoryview, vaddr: int) -> Iterator[tuple[int, int]]:
    """B, B.cond, CBZ, CBNZ, TBZ and TBNZ, found by the last byte of their words."""
    for n, word in _words(code, rb"[\x14-\x17\x34-\x37\x54\xb4-\xb7]"):
        here = vaddr + 4 * n
        yield here + _jump_distance(word), here


def _jump_distance(word: int) -> int:
    """How far one of these jumps leads, in bytes."""
    kind = word >> 24
    if kind < 0x18:
        return _displacement(word, 26)
    return _displacement(word >> 5, 14 if kind in _BITS_14 else 19)


def _jumps_into(code: memoryview, vaddr: int, start: int, end: int) -> Iterator[int]:
    """Where those of `_jumps` are that lead into [start, end)."""
    data = bytes(code[: len(code) & -4])
    third, fourth, count = data[2::4], data[3::4], len(data) // 4
    low, high = (start - vaddr) // 4, (end - vaddr) // 4  # in words, as the distances are
    found = [n for n in places(third, 16, low, high, 0, count) if fourth[n] & 0xFC == 0x14]
    first, last = max(low - (1 << 18), 0), min(high + (1 << 18), count)
    found += [n for n in places(third, 11, low, high, first, last) if fourth[n] in _BITS_19]
    first, last = max(low - (1 << 13), 0), min(high + (1 << 13), count)
    for kind in _BITS_14:
        found += each(fourth, kind, first, last)
    for n in found:
        source = vaddr + 4 * n
        if (
            start
            <= source + _jump_distance(int.from_bytes(data[4 * n : 4 * n + 4], "little"))
            < end
        ):
            yield source


def _last_calls(code: memoryview, vaddr: int, ends: Iterable[int]) -> set[int]:
    """Where the BLs lead that stand before some ends, or before NOPs there."""
    from itertools import compress

    words, kinds = _all_words(code), bytes(code)[3::4]
    # The words before the ends; then, where those are padding, the ones before them.
    first = vaddr // 4 + 1
    last = [n for end in ends if 0 <= (n := end // 4 - first) < len(kinds)]
    found: set[int] = set()
    for _ in range(_PADDED // 4):
        if not last:
            break
        before = bytes(map(kinds.__getitem__, last))
        # A distance and its own place add up to the target, the same for all that lead there.
        found.update([words[n] + n & 0x3FF_FFFF for n in compress(last, before.translate(_BL))])
        padded = compress(last, before.translate(_MAY_PAD))
        last = [n - 1 for n in padded if n and words[n] in _PADDING]
    return {vaddr + _displacement(target, 26) for target in found}


def _starts(code: memoryview, vaddr: int) -> Iterator[int]:
    """Where calls lead, what seems to be a function's address, and prologues behind a gap."""
    for n, word in _words(code, rb"[\x94-\x97]"):  # bl
        yield vaddr + 4 * n + _displacement(word, 26)
    for n, word in _words(code, rb"[\x14-\x17]"):  # b: after bti c it is all that a function does
        if n and code[4 * n - 4 : 4 * n] == _BTI_C:
            yield vaddr + 4 * n + _displacement(word, 26)
    for n, word in _words(code, rb"[\x90\xb0\xd0\xf0]"):  # adrp
        for target in _completed(code, vaddr, n, word):
            at = target - vaddr
            if 8 <= at < len(code) and target % 4 == 0:
                if _begins(code[at - 8 : at + 4], target) or _makes_frame(code, at):
                    yield target
        if _is_stub(code, n):
            yield vaddr + 4 * n
    jumps = {target for target, _ in _jumps(code, vaddr)}
    loops = {t for t, at in _jumps(code, vaddr) if code[at - vaddr + 3] & 0xFC != 0x14}
    for n, _ in _words(code, rb"[\x00\xd5]"):
        # What begins on a multiple of 16 behind padding behind an end, whatever it begins with.
        start = vaddr + 4 * n + 4
        if start % 16 == 0 and n < len(code) // 4 - 1 and start not in loops:
            if _is_gap(code, n):
                yield start
    for n, word in _words(code, rb"[\xa9\xd1\xd5\xf8]"):
        start = vaddr + 4 * n
        if _is_prologue(word) and n > 1:
            before = int.from_bytes(code[4 * n - 4 : 4 * n], "little")
            # What is jumped to is a function if it is aligned so: by a tail call.
            if before in _PADDING if start in jumps else _ends(before):
                yield start


def _completed(code: memoryview, vaddr: int, n: int, adrp: int) -> Iterator[int]:
    """The addresses that the ADDs near an ADRP, the word n, may make of its page."""
    page = (adrp >> 5 & 0x7FFFF) << 2 | adrp >> 29 & 3
    page = ((vaddr + 4 * n) & -4096) + ((page - (page >> 20 << 21)) << 12)
    if page + 4096 <= vaddr or page >= vaddr + len(code):
        return
    for at in range(4 * n + 4, min(4 * n + 4 * _COMPLETED, len(code) & -4), 4):
        word = int.from_bytes(code[at : at + 4], "little")
        if word & 0xFFC0_0000 == 0x9100_0000 and word >> 5 & 31 == adrp & 31:
            yield page + (word >> 10 & 0xFFF)


def _makes_frame(code: memoryview, start: int) -> bool:
    """Whether code makes a frame soon: compilers mix the prologue with what comes next."""
    for at in range(start, min(start + 4 * _COMPLETED, len(code) & -4), 4):
        word = int.from_bytes(code[at : at + 4], "little")
        if _is_prologue(word):
            return True
        if word >> 26 in (0x05, 0x25) or word >> 25 in (0x2A, 0x6B) or word >> 26 & 0x1F == 0x0D:
            return False  # b, bl; b.cond, br and the like; cbz, tbz
    return False


def _is_gap(code: memoryview, n: int) -> bool:
    """Whether the word n and some before it are padding, and what comes before them ends."""
    for at in range(n, max(n - 4, -1), -1):
        word = int.from_bytes(code[4 * at : 4 * at + 4], "little")
        if word not in _PADDING:
            return at < n and (_ends(word) or word & 0xFC00_0000 == 0x9400_0000)
    return False


def _is_stub(code: memoryview, n: int) -> bool:
    """Whether a stub of the procedure linkage table begins at a word: adrp x16; ldr x17, [x16, n].

    The first of them stores x16 and x30 before, and so do no others.
    """
    before, here, after = (
        int.from_bytes(code[at : at + 4], "little") for at in (4 * max(n - 1, 0), 4 * n, 4 * n + 4)
    )
    load = after & 0xFFC0_03FF == 0xF940_0211
    return here & 0x9F00_001F == 0x9000_0010 and load and before != 0xA9BF_7BF0


def _begins(code: memoryview, vaddr: int) -> bool:
    if vaddr % 4 or len(code) < 12:
        return False
    before = int.from_bytes(code[4:8], "little")
    return _ends(before) or _is_prologue(int.from_bytes(code[8:12], "little"))


def _is_prologue(word: int) -> bool:
    """What functions begin with."""
    return (
        word & 0xFFE0_03E0 == 0xA9A0_03E0  # stp x, x, [sp, #-n]!
        or word & 0xFF80_03FF == 0xD100_03FF  # sub sp, sp, #n
        or word & 0xFFF0_0FE0 == 0xF810_0FE0  # str x, [sp, #-n]!
        or word in (0xD503_233F, 0xD503_237F, 0xD503_245F)  # paciasp, pacibsp, bti c
    )


def _ends(word: int) -> bool:
    """What the code before a function ends with: a jump, a return, a trap, or padding."""
    return (
        word & 0xFC00_0000 == 0x1400_0000  # b
        or word & 0xFFFF_FC1F in (0xD65F_0000, 0xD61F_0000)  # ret, br
        or word & 0xFFE0_001F == 0xD420_0000  # brk
        or word in (0xD65F_0BFF, 0xD65F_0FFF)  # retaa, retab
        or word in _PADDING
    )


_BTI_C = bytes.fromhex("5f2403d5")
_PADDING = (0, 0xD503_201F)  # udf, nop
# By the last byte of a word: whether it is BL, whether it may be padding.
_BL = bytes(kind & 0xFC == 0x94 for kind in range(256))
_MAY_PAD = bytes(kind in (0, 0xD5) for kind in range(256))
_COMPLETED = 16  # words behind an adrp in which its adds are looked for
_PADDED = 64  # bytes of padding that are looked through


def _words(code: memoryview, last: bytes) -> Iterator[tuple[int, int]]:
    """The words of some code whose last byte `last` matches, as (number, word)."""
    import re

    words = _all_words(code)
    for match in re.finditer(last, bytes(code)[3::4], re.DOTALL):
        yield match.start(), words[match.start()]


def _all_words(code: memoryview) -> Sequence[int]:
    import sys

    whole = code[: len(code) & -4]
    if sys.byteorder == "little":
        return whole.cast("I")
    from array import array

    words = array("I", bytes(whole))
    words.byteswap()
    return words


def _displacement(word: int, bits: int) -> int:
    """The signed number of words in the low bits, in bytes."""
    word &= (1 << bits) - 1
    return (word - (word >> bits - 1 << bits)) * 4


MODEL = CodeModel(
    capstone=("CS_ARCH_ARM64", ("CS_MODE_LITTLE_ENDIAN",)),
    effect=_effect,
    sp=SP,
    return_address=X30,
    entry={
        SP: (CFA, 0),
        X30: (RETURN_ADDRESS, 0),
        X18: (X18, 0),
        **{number: (number, 0) for number in _SAVED},
    },
    entry_slots={},
    saved=_SAVED,
    bases=(X29, SP, *range(9, 18), *range(X19, X29), *range(9)),
    keeps_slots=True,
    frame_record=True,
    # AAELF64 §13, the PLT header: stp x16, x30, [sp, #-16]!
    pushed_slots={(CFA, -8): (RETURN_ADDRESS, 0)},
    red_zone=0,
    calls=frozenset("bl blr blraa blrab blraaz blrabz".split()),
    padding=frozenset({"nop", "udf"}),
    jumps=_jumps,
    jumps_into=_jumps_into,
    starts=_starts,
    begins=_begins,
    last_calls=_last_calls,
    stops=frozenset({"b", *_INDIRECT, *_RETURNS, *_STOPS}),
    branches=frozenset({"b", *_BRANCHES, *(f"b.{condition}" for condition in _CONDITIONAL)}),
)
