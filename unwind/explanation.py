"""Explanation: one step of a walk as facts to print: its row, each rule at work, each refusal."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["Explanation", "Opinion", "RuleExplanation"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.rules import NoRow, Row


class RuleExplanation(Value):
    """One rule at work: `name = formula`, the address it read, the value or why there is none."""

    name: str
    formula: str
    address: int | None = None
    value: int | None = None
    problem: str = ""


class Explanation(Value):
    """How the walk leaves one place: by which row, what each rule gave, what was refused before.

    `row` and `trust` are None and "" where no row could be had; `refused` then holds every
    source's reason. `rules` begins with the CFA.
    """

    row: Row | None
    trust: str
    rules: tuple[RuleExplanation, ...]
    refused: tuple[tuple[str, NoRow], ...]


class Opinion(Value):
    """What one source of rows makes of a place: a caller and a CFA, or a `problem`.

    `agrees`: with the best source that has an opinion, which the walk goes by.
    """

    trust: str
    cfa: int | None = None
    pc: int | None = None
    problem: str = ""
    agrees: bool = False
