"""explain: one step taken again with its eyes open: the row, each rule, each read, each refusal."""

from __future__ import annotations

from unwind.errors import MemoryFault, UnwindError
from unwind.explanation import Explanation, Opinion, RuleExplanation
from unwind.formulas import cfa_formula, rule_formula
from unwind.memory import Recording
from unwind.rules import NoRow
from unwind.step import Activation, apply

__all__ = ["cross_check", "explain"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.snapshot import Place
    from unwind.step import Caller
    from unwind.unwinder import Unwinder


def explain(unwinder: Unwinder, place: Place) -> Explanation:
    """The explanation of the step out of `place`: a step depends on its place alone."""
    result = unwinder.step(place)
    row = result.row
    if row is None:
        return Explanation(None, "", (), result.refused)
    memory = Recording(place.memory)
    bias = place.module.bias if place.module is not None else 0
    activation = Activation(place.registers, memory, unwinder.arch, bias)
    name = unwinder.arch.register_name
    try:
        cfa = activation.cfa_pointer(row)
    except UnwindError as error:
        said = RuleExplanation("CFA", cfa_formula(row.cfa, name), problem=str(error))
        return Explanation(row, result.trust, (said,), result.refused)
    rules = [RuleExplanation("CFA", cfa_formula(row.cfa, name), value=cfa)]
    for number, rule in sorted(row.rules.items()):
        memory.reads.clear()
        value, problem = None, ""
        try:
            value = activation.restored(number, rule, cfa)
        except MemoryFault as fault:
            problem = fault.reason or "unreadable"
        except UnwindError as error:
            problem = str(error)
        address = memory.reads[-1][0] if memory.reads else None
        rules.append(
            RuleExplanation(name(number), rule_formula(rule, name), address, value, problem)
        )
    return Explanation(row, result.trust, tuple(rules), result.refused)


def cross_check(unwinder: Unwinder, place: Place) -> tuple[Opinion, ...]:
    """What each source of `unwinder` makes of `place`, best source first."""
    bias = place.module.bias if place.module is not None else 0
    opinions: list[Opinion] = []
    first: Caller | None = None
    for trust, row in unwinder.lookup.rows_at(place):
        if isinstance(row, NoRow):
            opinions.append(Opinion(trust, problem=row.reason))
            continue
        try:
            caller = apply(row, place.registers, place.memory, unwinder.arch, bias)
        except UnwindError as error:
            opinions.append(Opinion(trust, problem=str(error)))
            continue
        first = first or caller
        agrees = (caller.cfa, caller.pc) == (first.cfa, first.pc)
        opinions.append(Opinion(trust, caller.cfa, caller.pc, agrees=agrees))
    return tuple(opinions)
