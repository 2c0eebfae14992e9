"""Rules as people write them: `CFA = rsp + 16`, `rip = [CFA - 8]`."""

from __future__ import annotations

from unwind.errors import never
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

__all__ = ["cfa_formula", "rule_formula"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.rules import CfaRule, Rule


def cfa_formula(rule: CfaRule | None, name: Callable[[int], str]) -> str:
    """The right side of `CFA = …`; `name` gives a register's name."""
    match rule:
        case CfaRegister(number=number, offset=offset):
            return _plus(name(number), offset)
        case CfaExpression(code=code):
            return _described(code, name)
        case None:
            return "unknown"


def rule_formula(rule: Rule, name: Callable[[int], str]) -> str:
    """The right side of `register = …`; brackets mean the word that memory holds there."""
    match rule:
        case Undefined():
            return "undefined"
        case SameValue():
            return "same value"
        case Offset(n=n):
            return f"[{_plus('CFA', n)}]"
        case ValOffset(n=n):
            return _plus("CFA", n)
        case InRegister(number=number):
            return name(number)
        case Expression(code=code):
            return f"[{_described(code, name)}]"
        case ValExpression(code=code):
            return _described(code, name)
        case _:
            never(rule)


def _plus(base: str, offset: int) -> str:
    return f"{base} {'-' if offset < 0 else '+'} {abs(offset)}" if offset else base


def _described(code: bytes, name: Callable[[int], str]) -> str:
    from unwind.dwarf.expression import describe  # few rules hold any

    return describe(code, name)
