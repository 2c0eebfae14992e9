"""Rows and their rules: what every row source makes and `apply` evaluates (DWARF 5 §6.4.1)."""

from __future__ import annotations

from unwind.values import Value

__all__ = [
    "CfaExpression",
    "CfaRegister",
    "CfaRule",
    "Expression",
    "InRegister",
    "NoRow",
    "Offset",
    "Origin",
    "Row",
    "Rule",
    "SameValue",
    "Undefined",
    "ValExpression",
    "ValOffset",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Undefined(Value):
    """The caller's value is lost; for the return address: there is no caller."""


class SameValue(Value):
    """The caller's value is still in the register."""


class Offset(Value):
    """The caller's value is saved at address CFA + n."""

    n: int


class ValOffset(Value):
    """The caller's value is the number CFA + n."""

    n: int


class InRegister(Value):
    """The caller's value is in DWARF register `number`."""

    number: int


class Expression(Value):
    """The caller's value is saved at the address that the DWARF expression `code` gives."""

    code: bytes


class ValExpression(Value):
    """The caller's value is what the DWARF expression `code` gives."""

    code: bytes


Rule = Undefined | SameValue | Offset | ValOffset | InRegister | Expression | ValExpression


class CfaRegister(Value):
    """CFA = DWARF register `number` + `offset`."""

    number: int
    offset: int


class CfaExpression(Value):
    """CFA = what the DWARF expression `code` gives."""

    code: bytes


CfaRule = CfaRegister | CfaExpression


class Origin(Value):
    """Where a row comes from: the `section` with section offsets of FDE and CIE, or a `note`."""

    section: str
    fde: int = -1
    cie: int = -1
    note: str = ""


class Row(Value):
    """The rules in effect for vaddrs in [start, end).

    `rules` holds only what the source states; the architecture's defaults apply to the rest.
    `return_address` is the column whose rule gives the caller's pc. `signal`: the frame is a
    signal trampoline, its caller was interrupted and did not call (augmentation S).
    `ra_signed`: the return address carries an arm64 authentication code at this place.
    A Row knows vaddrs only, so processes share it: `apply` gets the module's bias beside it.
    """

    start: int
    end: int
    cfa: CfaRule | None
    rules: Mapping[int, Rule]
    return_address: int
    origin: Origin
    signal: bool = False
    ra_signed: bool = False


class NoRow(Value):
    """Why a source has no row for a place. `failed`: the source covers the place but is broken."""

    reason: str
    failed: bool = False
