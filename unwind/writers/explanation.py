"""The lines of --explain: how the walk left one frame, and what was refused before."""

from __future__ import annotations

from unwind.writers.escape import escape

__all__ = ["explanation_lines", "opinion_lines"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unwind.explanation import Explanation, Opinion
    from unwind.frames import Frame
    from unwind.rules import Row

_INDENT = "      "


def explanation_lines(frame: Frame, said: Explanation) -> Iterator[str]:
    """Module, refusals, row and rules, each on a line of its own below the frame."""
    module = frame.module
    if module is not None:
        vaddr = module.to_vaddr(frame.lookup_pc)
        place = f"{escape(module.name)} ({module.state}), bias {module.bias:#x}, vaddr {vaddr:#x}"
        yield f"{_INDENT}module   {place}"
        if module.file is not None and module.file != module.name:
            yield f"{_INDENT}file     {escape(module.file)}"
    for trust, no in said.refused:
        yield f"{_INDENT}refused  {trust}: {escape(no.reason)}"
    if said.row is None:
        return
    yield f"{_INDENT}row      {said.trust}: {_origin(said.row)}"
    for rule in said.rules:
        read = f" = [{rule.address:#x}]" if rule.address is not None else ""
        value = f" = {rule.value:#x}" if rule.value is not None else ""
        problem = f" ({escape(rule.problem)})" if rule.problem else ""
        formula = f"{rule.formula}{read}" if rule.formula[:1] == "[" else rule.formula
        yield f"{_INDENT}  {rule.name:<7}= {formula}{value}{problem}"


def opinion_lines(opinions: Iterable[Opinion]) -> Iterator[str]:
    """The lines of --cross-check: what each source of rows makes of a frame, side by side."""
    first = True
    for opinion in opinions:
        if opinion.cfa is None:
            yield f"{_INDENT}{opinion.trust:<14} no row: {escape(opinion.problem)}"
            continue
        caller = f"caller {opinion.pc:#x}" if opinion.pc is not None else "no caller"
        verdict = "" if first else ", agrees" if opinion.agrees else ", DIFFERS"
        yield f"{_INDENT}{opinion.trust:<14} CFA {opinion.cfa:#x}, {caller}{verdict}"
        first = False


def _origin(row: Row) -> str:
    origin = row.origin
    if origin.fde < 0:
        return escape(origin.note)
    signal = ", signal frame" if row.signal else ""
    return (
        f"{escape(origin.section)} FDE at {origin.fde:#x}, CIE at {origin.cie:#x}, "
        f"vaddr {row.start:#x}-{row.end:#x}{signal}"
    )
