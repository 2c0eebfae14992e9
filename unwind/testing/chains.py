"""Chains: random rows in, the stack that they imply out, so that the right backtrace is known.

A chain is built from its outermost frame inwards. Each frame is given the registers of its caller
as they were at the call, decides where it keeps which of them and how its CFA is found, writes the
values there, and goes on with registers of its own. So nothing is ever computed the way an
unwinder computes it: what the caller had is known because it was there first.

`chain(choices, dialect)` asks `Choices` for everything; the answers 0 and "the first" make the
simplest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from unwind.dwarf.constants import DW_EH_PE, DW_OP
from unwind.dwarf.instructions import Instruction
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    CfaRule,
    Expression,
    InRegister,
    Offset,
    Rule,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.testing.assembler import (
    CIE,
    Operation,
    breg,
    code,
    negate_ra_state,
)
from unwind.testing.bodies import Body, body, cfa_instruction, rule_instruction
from unwind.testing.choices import Choices
from unwind.testing.dialects import Dialect

__all__ = ["Chain", "Function", "Known", "chain"]


@dataclass(frozen=True)
class Function:
    """A function of the chain: [start, start + size), stopped at start + site."""

    name: str
    start: int  # a vaddr
    body: Body
    cie: CIE
    calls: bool  # a call ends at the site
    handles: bool = False  # its FDE names a personality routine and data for it

    @property
    def pc(self) -> int:
        """Where it stopped, as a vaddr."""
        return self.start + self.body.site


@dataclass(frozen=True)
class Known:
    """A frame as it must be found: `registers` are those that can be known there, and no others."""

    pc: int
    cfa: int
    registers: Mapping[int, int]
    called: bool
    signal: bool
    function: str


@dataclass(frozen=True)
class Chain:
    """Functions by address, the frames innermost first, and what was in registers and memory."""

    dialect: Dialect
    bias: int
    functions: tuple[Function, ...]
    frames: tuple[Known, ...]
    registers: Mapping[int, int]
    stacks: tuple[tuple[int, bytes], ...] = field(repr=False)  # address and contents, ascending


@dataclass
class _Made:
    """A frame while the chain is built, with what its row does to the caller's registers."""

    function: Function
    cfa: int
    values: dict[int, int]
    signal: bool
    called: bool
    rules: dict[int, Rule]
    cfa_rule: CfaRule
    size: int  # of the frame


def chain(
    choices: Choices,
    dialect: Dialect,
    *,
    bias: int = 0,
    text: int = 0x2_0000,
    least: int = 0,
    most: int = 8,
    signals: bool = True,
) -> Chain:
    """A chain of `least` + 1 to `most` + 1 frames, whose code lies around vaddr `text`."""
    return _Builder(choices, dialect, bias, text).build(least, most, signals)


# Where stacks begin, below the top of what Linux gives a program on each size of machine.
_TOPS = {8: 0x7FFF_F7E0_0000, 4: 0x7FDF_0000}


class _Builder:
    """A chain that grows inwards. `values` and `sp` are those of the frame made last, at its call.

    `needed` are the registers by which frames further out are found: no frame within may lose them.
    """

    def __init__(self, choices: Choices, dialect: Dialect, bias: int, text: int):
        self.choices, self.dialect, self.bias = choices, dialect, bias
        self.signs = dialect.pac and choices.chance(3)  # compiled with -mbranch-protection
        self.word = dialect.arch.word
        self.mask = (1 << 8 * self.word) - 1
        self.low = self.high = text  # where functions lie
        self.functions: list[Function] = []
        self.frames: list[_Made] = []  # the outermost first
        self.memory: dict[int, int] = {}
        self.sp = _TOPS[self.word] - 16 * choices.integer(0, 64)
        self.values: dict[int, int] = {}
        self.needed: set[int] = set()

    def build(self, least: int, most: int, signals: bool) -> Chain:
        """The chain; of its frames only the innermost and what a signal stopped made no call."""
        choices = self.choices
        kinds = [signals and choices.chance(8) for _ in range(choices.integer(least, most))]
        if kinds:
            kinds[-1] = False  # innermost: a handler, not the trampoline
        self.values = {register: self.value() for register in self.dialect.saved}
        inner = [*kinds, True]  # is the frame within this one a signal's, or is there none?
        self.outermost(called=not inner[0])
        for n, signal in enumerate(kinds):
            if signal:
                self.trampoline(called=not inner[n + 1])
            elif inner[n + 1] or not self.recurse():
                self.call(called=not inner[n + 1], innermost=n == len(kinds) - 1)
        registers = self.frames[-1].values
        registers[self.dialect.arch.pc] = self.frames[-1].function.pc + self.bias
        self.fill(self.sp - max(self.dialect.red_zone, 64), self.sp)
        functions = sorted(self.functions, key=lambda function: function.start)
        return Chain(
            *(self.dialect, self.bias, tuple(functions), tuple(self.known()), registers),
            tuple(self.stacks()),
        )

    # ------------------------------------------------------------------------- frames

    def outermost(self, called: bool) -> None:
        """The frame whose return address is undefined: there is no caller (DWARF 5 §6.4.4)."""
        cfa, size = self.sp, self.size()
        self.fill(cfa - size, cfa + 8 * self.word)  # and what the kernel put there
        column = self.dialect.arch.return_address
        rules: dict[int, Rule] = {column: Undefined()}
        self.sp = cfa - size
        self.finish(cfa, CfaRegister(self.dialect.sp, size), rules, called)

    def call(self, called: bool, innermost: bool) -> None:
        """A function that the last one called; `called`: it makes a call itself."""
        choices, dialect = self.choices, self.dialect
        caller, cfa, size = self.values, self.sp, self.size()
        # What a signal interrupts keeps its link register only if the trampoline's CFI has a
        # column of its own for the pc.
        leaf = not called and (innermost or dialect.signal_columns[0] != dialect.link)
        size = size if leaf else max(size, 2 * self.word, dialect.frame_align)
        self.sp = sp = cfa - size
        self.fill(sp, cfa)
        slots = list(range(sp, cfa, self.word))
        home = cfa - self.word
        if dialect.link is None:  # the call pushed it
            slots.remove(home)
        pc = self.frames[-1].function.pc + self.bias
        signed = self.signs and choices.often(4)
        stored = pc | choices.bits(7) << 48 if signed else pc
        self.values = dict(caller)
        kept = choices.some(dialect.saved, min(6, len(slots) // 2))
        rules = {r: self.keep(r, caller[r], cfa, slots) for r in kept}
        hosts = [r for r in kept if isinstance(rules[r], Offset | Expression)]
        hosts += [r for r in kept if isinstance(rules[r], ValOffset | ValExpression)]
        uses: set[int] = set()
        self.move(caller, rules, hosts, uses)
        rule, column = self.return_address(stored, cfa, slots, hosts, uses, leaf), dialect.link
        if rule is not None:
            rules[dialect.arch.return_address] = rule
        elif column is None:
            self.memory[home] = stored
        if column is not None and (rule is not None or called):
            self.values[column] = self.value()
        cfa_rule = self.cfa_rule(cfa, hosts, slots, uses)
        passed = {r for r in self.needed if r not in rules and r in dialect.saved}
        self.needed = uses | passed
        self.finish(cfa, cfa_rule, rules, called, signed=signed)

    def recurse(self) -> bool:
        """Perhaps the function called last calls itself from the same place."""
        last, dialect = self.frames[-1], self.dialect
        column = dialect.arch.return_address
        # Only what lies in slots can be done again with other values.
        by_slots = all(isinstance(rule, Offset) for rule in last.rules.values())
        by_slots = by_slots and (dialect.link is None or column in last.rules)
        if last.cfa_rule != CfaRegister(dialect.sp, last.size) or not by_slots:
            return False
        if last.signal or not last.called or len(self.frames) < 2 or not self.choices.chance(3):
            return False
        caller, cfa, pc = self.values, self.sp, last.function.pc + self.bias
        self.sp = cfa - last.size
        self.fill(self.sp, cfa)
        self.values = dict(caller)
        places = {column: cfa - self.word}
        places |= {r: cfa + rule.n for r, rule in last.rules.items() if isinstance(rule, Offset)}
        for register, slot in places.items():
            self.memory[slot] = pc if register == column else caller[register]
            if register != column:
                self.values[register] = self.value()
        self.values[dialect.sp] = self.sp
        if dialect.link is not None:
            self.values[dialect.link] = pc
        self.needed = {r for r in self.needed if r not in last.rules}
        self.frames.append(replace(last, cfa=cfa, values=self.values))
        return True

    def trampoline(self, called: bool) -> None:
        """A signal's frame: the kernel saved every register of what it interrupted."""
        choices, dialect = self.choices, self.dialect
        interrupted, word = self.frames[-1], self.word
        values = interrupted.values
        for register in dialect.scratch:
            values.setdefault(register, self.value())
        pc = interrupted.function.pc + self.bias
        column = choices.pick(dialect.signal_columns)
        if not interrupted.called and self.leaf(interrupted) and column == dialect.link:
            column = dialect.signal_columns[0]
        if column == dialect.link:
            values[column] = pc
        everything = {**values, dialect.sp: self.sp, column: pc}
        if choices.chance(4):
            below = self.sp & ~0xFFFF_FFFF if word == 8 else self.sp & ~0xFF_FFFF
            base = below - 16 * choices.integer(1, 64)  # sigaltstack(2), in another mapping
        else:
            base = self.sp - dialect.red_zone - 16 * choices.integer(0, 9)
        head = choices.integer(0, 20)
        room = (head + len(everything) + 4) * word
        self.sp = sp = (base - room) & -dialect.frame_align
        self.fill(sp, base)
        self.needed = set()
        by_expression = choices.chance(2)
        cfa = everything[dialect.sp] if by_expression else sp + choices.integer(0, 4) * word
        rules: dict[int, Rule] = {}
        cfa_rule: CfaRule = CfaRegister(dialect.sp, cfa - sp)
        for n, (register, value) in enumerate(everything.items()):
            slot = sp + (head + n) * word
            self.memory[slot] = value
            if not by_expression:
                rules[register] = Offset(slot - cfa)
            elif register == dialect.sp:
                cfa_rule = CfaExpression(self.code(breg(dialect.sp, slot - sp), DW_OP.deref))
            else:
                rules[register] = Expression(self.code(breg(dialect.sp, slot - sp)))
        self.values = {register: self.value() for register in dialect.saved}
        self.finish(cfa, cfa_rule, rules, called, column, signal=True)

    def leaf(self, made: _Made) -> bool:
        """Whether a frame needs the link register to find its caller."""
        return self.dialect.link is not None and self.dialect.link not in made.rules

    def finish(
        self,
        cfa: int,
        cfa_rule: CfaRule,
        rules: dict[int, Rule],
        called: bool,
        column: int = -1,
        *,
        signal: bool = False,
        signed: bool = False,
    ) -> None:
        """The function whose rules these are, and its frame."""
        dialect, choices = self.dialect, self.choices
        wanted: list[Instruction] = [cfa_instruction(cfa_rule)]
        wanted += [rule_instruction(dialect, r, rule) for r, rule in rules.items()]
        wanted += [negate_ra_state()] if signed else []
        made = body(choices, dialect, wanted, called, trampoline=signal)
        handles = choices.chance(5)
        cie = CIE(
            dialect.initial,
            version=choices.pick((1, 3)),
            augmentation=("zPLR" if handles else "zR") + "S" * signal,
            personality_encoding=DW_EH_PE.pcrel | DW_EH_PE.sdata4,
            personality=self.low,
            lsda_encoding=DW_EH_PE.pcrel | DW_EH_PE.sdata4,
            code_align=dialect.code_align,
            data_align=dialect.data_align,
            return_address=column if signal else dialect.arch.return_address,
        )
        name = f"{'trampoline' if signal else 'f'}{len(self.functions)}"
        function = Function(name, self.place(made.size), made, cie, called and not signal, handles)
        self.functions.append(function)
        pc = function.pc + self.bias
        self.values[dialect.sp] = self.sp
        if called and dialect.link is not None:
            self.values[dialect.link] = pc  # the call put it there
        if not called:
            link = () if dialect.link is None else (dialect.link,)
            for register in (*dialect.scratch, *link):
                self.values.setdefault(register, self.value())
        size = cfa - self.sp
        self.frames.append(_Made(function, cfa, self.values, signal, called, rules, cfa_rule, size))

    # ------------------------------------------------------------------------- rules

    def keep(self, register: int, value: int, cfa: int, slots: list[int]) -> Rule:
        """A rule by which `value`, the caller's, is found again; the register itself is free."""
        choices, sp = self.choices, self.dialect.sp
        self.values[register] = self.value()
        slot = slots.pop(choices.integer(0, len(slots) - 1))
        distance = self.signed(value - cfa)
        kind = choices.pick(("slot",) * 6 + ("expression", "value", "number", "lost"))
        if kind == "lost" and register not in self.needed:
            return Undefined()
        if kind == "number" and abs(distance) < 1 << 20 and not distance % self.dialect.data_align:
            return ValOffset(distance)
        if kind == "value":
            secret = choices.bits(15)
            self.memory[slot] = value ^ secret
            constant: Operation = (DW_OP.const2u, secret)
            return ValExpression(
                self.code(breg(sp, slot - self.sp), DW_OP.deref, constant, DW_OP.xor)
            )
        self.memory[slot] = value
        if kind == "expression":
            if choices.chance(2):
                return Expression(self.code(breg(sp, slot - self.sp)))
            return Expression(self.code((DW_OP.consts, slot - cfa), DW_OP.plus))
        return Offset(slot - cfa)

    def move(
        self, caller: dict[int, int], rules: dict[int, Rule], hosts: list[int], uses: set[int]
    ) -> None:
        """Perhaps one more register's value waits in one that is saved already."""
        left = [register for register in self.dialect.saved if register not in rules]
        if not hosts or not left or not self.choices.chance(6):
            return
        host, register = hosts.pop(), self.choices.pick(left)
        rules[register] = InRegister(host)
        self.values[host] = caller[register]
        self.values[register] = self.value()
        uses.add(host)

    def return_address(
        self,
        pc: int,
        cfa: int,
        slots: list[int],
        hosts: list[int],
        uses: set[int],
        leaf: bool,
    ) -> Rule | None:
        """The rule for the return address; None where that of the CIE holds."""
        choices, link = self.choices, self.dialect.link
        if link is not None and leaf and (not slots or choices.chance(2)):
            self.values[link] = pc  # a leaf, or one that has not saved it yet
            return None
        if link is None and not (slots and choices.chance(6)):
            return None
        if hosts and choices.chance(6):
            host = hosts.pop()
            self.values[host] = pc
            uses.add(host)
            return InRegister(host)
        slot = slots.pop()
        self.memory[slot] = pc
        if choices.chance(6):
            return Expression(self.code((DW_OP.consts, slot - cfa), DW_OP.plus))
        return Offset(slot - cfa)

    def cfa_rule(self, cfa: int, hosts: list[int], slots: list[int], uses: set[int]) -> CfaRule:
        """How the CFA is found: by the stack pointer, by a frame pointer, by an expression."""
        choices, sp = self.choices, self.dialect.sp
        distance = cfa - self.sp
        kind = choices.pick(("stack",) * 4 + ("frame", "frame", "sum", "saved"))
        if kind == "frame" and hosts:
            register, offset = hosts.pop(), self.word * choices.integer(0, 12)
            self.values[register] = cfa - offset
            uses.add(register)
            if choices.chance(5):
                return CfaExpression(self.code(breg(register, offset)))
            return CfaRegister(register, offset)
        if kind == "sum":
            return CfaExpression(self.code(breg(sp, distance - 5), (DW_OP.const1u, 5), DW_OP.plus))
        if kind == "saved" and slots:
            slot = slots.pop()
            self.memory[slot] = cfa
            return CfaExpression(self.code(breg(sp, slot - self.sp), DW_OP.deref))
        return CfaRegister(sp, distance)

    # ------------------------------------------------------------------------- values

    def size(self) -> int:
        """The bytes of a frame: few as a rule, sometimes many."""
        align = self.dialect.frame_align
        most = 2000 if self.choices.chance(12) else 16
        least = 16 if self.dialect.link is None else 0
        return least + align * self.choices.integer(0, most * 8 // align)

    def value(self) -> int:
        """A value that a register may have, decoys among them."""
        kind = self.choices.pick(("small", "stack", "code", "any"))
        if kind == "small":
            return self.choices.integer(0, 255)
        if kind == "stack":
            return self.sp + self.word * self.choices.integer(-8, 64)
        if kind == "code" and self.functions:
            return self.choices.pick(self.functions).pc + self.bias
        return self.choices.bits(8 * self.word)

    def fill(self, start: int, end: int) -> None:
        """Memory that nobody wrote in this frame: what older frames left there."""
        seed = self.choices.integer(0, 0xFFFF)
        known = [function.pc + self.bias for function in self.functions] or [0]
        for n, address in enumerate(range(start, end, self.word)):
            # Old return addresses, zeroes and numbers, by a rule: to ask for each would take long.
            turn = (seed + n) * 0x9E37 >> 3 & 7
            old = known[(seed + n) % len(known)]
            self.memory[address] = (0, seed, old, n, start, 0, seed << 16 | n, old)[turn]

    def code(self, *operations: Operation) -> bytes:
        return code(*operations, word=self.word, byteorder=self.dialect.arch.byteorder)

    def signed(self, value: int) -> int:
        value &= self.mask
        return value - ((value >> (8 * self.word - 1)) << 8 * self.word)

    def place(self, size: int) -> int:
        """Where a function of so many bytes lies: next to the others, on either side."""
        unit = self.dialect.unit
        gap = unit * self.choices.integer(0, 8) if self.choices.chance(2) else 0
        if self.choices.chance(2):
            self.low -= size + gap
            return self.low
        start = self.high + gap
        self.high = start + size
        return start

    # ------------------------------------------------------------------------- results

    def known(self) -> list[Known]:
        """What can be known of each frame: registers that no frame within it lost."""
        dialect, found = self.dialect, list[Known]()
        registers = dict(self.frames[-1].values)
        registers.pop(dialect.arch.pc, None)
        for made, outer in zip(
            reversed(self.frames), [*reversed(self.frames[:-1]), None], strict=True
        ):
            pc = made.function.pc + self.bias
            name = made.function.name
            found.append(Known(pc, made.cfa, registers, made.called, made.signal, name))
            if outer is None:
                break
            before, registers = registers, {}
            for register in dialect.watched:
                rule = made.rules.get(register)
                if isinstance(rule, Undefined):
                    continue
                if isinstance(rule, InRegister) and rule.number not in before:
                    continue
                is_lost = register in dialect.scratch or register not in before
                if rule is None and is_lost and register not in (dialect.sp, dialect.link):
                    continue
                if register in outer.values:
                    registers[register] = outer.values[register]
            if dialect.link is not None and outer.called:
                registers[dialect.link] = outer.function.pc + self.bias
        return found

    def stacks(self) -> list[tuple[int, bytes]]:
        """The memory in contiguous pieces."""
        order, word, found = self.dialect.arch.byteorder, self.word, list[tuple[int, bytearray]]()
        for address in sorted(self.memory):
            data = (self.memory[address] & self.mask).to_bytes(word, order)
            if found and found[-1][0] + len(found[-1][1]) == address:
                found[-1][1].extend(data)
            else:
                found.append((address, bytearray(data)))
        return [(address, bytes(data)) for address, data in found]
