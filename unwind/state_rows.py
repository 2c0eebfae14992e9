"""What registers and slots hold at a place in, the row that holds there out."""

from __future__ import annotations

from unwind.machine import CFA, CONSTANT, NO_CALLER, RESTORED, RETURN_ADDRESS
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    Offset,
    Origin,
    Row,
    Undefined,
)

__all__ = ["row_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.machine import CodeModel, State, Symbolic
    from unwind.rules import CfaRule, Rule

# Operations of DWARF 5 §7.7.1.
_BREG0, _DEREF, _CONSTS, _PLUS = 0x70, 0x06, 0x11, 0x22


def row_of(
    state: State, model: CodeModel, function: int, called: bool, carrier: int | None
) -> Row | None:
    """The rules that a state comes to, None where nothing known carries the CFA.

    `called`: the instruction is a call and under way, so a link register is lost already.
    `carrier`: the register in which the return address came, where that is not the usual one.
    """
    red_zone = 0 if called else model.red_zone
    cfa = _cfa(state, model, called)
    if cfa is None and (NO_CALLER, 0) in state.slots:
        cfa = CfaRegister(model.sp, 0)  # of start-up code, which aligns sp: nobody needs it
    if cfa is None:
        return None
    where: dict[int, Symbolic] = {}  # the slot of each symbol that lies in one as it was
    top = state.registers.get(model.sp)
    for slot, value in state.slots.items():
        symbol, offset = value
        if offset or symbol in (CFA, CONSTANT):
            continue
        if top is not None and slot[0] == top[0] and slot[1] < top[1] - red_zone:
            continue  # below the stack: a signal or a callee may have written there
        known = where.get(symbol)
        if known is None or (slot[0] == CFA and (known[0] != CFA or slot[1] > known[1])):
            where[symbol] = slot
    rules: dict[int, Rule] = {}
    for register in model.saved:
        kept = state.registers.get(register) == (register, 0)
        saved = where.get(register)
        stays = model.keeps_slots and (RESTORED, register) not in state.slots
        if saved is not None and (not kept or (stays and saved[0] == CFA)):
            rule = _saved_at(saved, state)
            rules[register] = rule if rule is not None else Undefined()
        elif not kept:
            rules[register] = Undefined()
    column = model.return_address
    symbol = RETURN_ADDRESS if carrier is None else carrier
    if called or state.registers.get(column) != (symbol, 0):
        rule = _return_address(where, state, model, called, symbol)
        if rule is None:
            return None
        rules[column] = rule
    elif model.keeps_slots and where.get(symbol, (0, 0))[0] == CFA:
        # In a loop a call has changed the register when control comes back. And a signal in the
        # delay slot of a call leaves the pc at the call, which has set ra already.
        rules[column] = Offset(where[symbol][1])
    origin = Origin("code", note=f"the code from {function:#x} on")
    return Row(0, 0, cfa, rules, column, origin)


def _return_address(
    where: Mapping[int, Symbolic], state: State, model: CodeModel, called: bool, symbol: int
) -> Rule | None:
    """Where the return address is, if not in its own register; None where nowhere."""
    saved = where.get(symbol)
    rule = _saved_at(saved, state) if saved is not None else None
    top = state.registers.get(model.sp)
    # glibc's vfork has taken it off the stack, where the child writes what it likes.
    freed = saved is not None and top is not None and saved[0] == top[0] and saved[1] < top[1]
    if rule is not None and not freed:
        return rule
    for register, value in state.registers.items():
        if value == (symbol, 0) and (not called or register in model.saved):
            return InRegister(register)
    return rule


def _cfa(state: State, model: CodeModel, called: bool) -> CfaRule | None:
    """How the CFA is had: from a register, else from where one was saved (gcc's DRAP).

    While a call is under way, only what the callee gives back as it was has its value still. Nor
    is such a register believed where a slot tells the same: where paths meet, that of the other
    one may have been used for something else.
    """
    stack = state.registers.get(model.sp)
    saved = _saved_cfa(state, stack)
    for register in model.bases:
        value = state.registers.get(register)
        if value is None or value[0] != CFA:
            continue
        if (called or saved) and register != model.sp and register not in model.saved:
            continue
        if register != model.sp and stack is not None and stack[0] == CFA:
            # It may point into the frame for another reason, and further down in a loop elsewhere.
            record = state.slots.get(value) == (register, 0)
            if not (record if model.frame_record else value == stack):
                continue
        return CfaRegister(register, -value[1])
    return saved or _saved_cfa(state, None)


def _saved_cfa(state: State, stack: Symbolic | None) -> CfaRule | None:
    """The CFA by a slot that holds it; with `stack`, one that does not lie below that."""
    for slot, (symbol, offset) in state.slots.items():
        below = stack is not None and slot[0] == stack[0] and slot[1] < stack[1]
        if symbol == CFA and not below:
            address = _address(slot, state)
            if address is not None:
                more = b"" if not offset else bytes([_CONSTS]) + _sleb(-offset) + bytes([_PLUS])
                return CfaExpression(address + bytes([_DEREF]) + more)
    return None


def _saved_at(slot: Symbolic, state: State) -> Rule | None:
    if slot[0] == CFA:
        return Offset(slot[1])
    if slot[0] == NO_CALLER:
        return Undefined()
    address = _address(slot, state)
    return Expression(address) if address is not None else None


def _address(slot: Symbolic, state: State) -> bytes | None:
    """An expression for the address of a slot, by a register that points near it."""
    for register, (symbol, offset) in state.registers.items():
        if symbol == slot[0] and register < 32:
            return bytes([_BREG0 + register]) + _sleb(slot[1] - offset)
    return None


def _sleb(value: int) -> bytes:
    out = bytearray()
    while not -64 <= value < 64:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value & 0x7F])
