"""Disagreements: an image in, the places out where its CFI is not what its code does.

The code is followed from the start of each FDE, and both rows are compared at every instruction. An
emulation knows less than the author of CFI, so only what it refutes counts:

- Nothing is said of code to which nothing known leads (landing pads, targets of jump tables),
  nor of padding, which never runs, nor of delay slots, where no pc ever is.
- Nothing is said where either row leans on what the emulation lost sight of: a stack that was
  switched, as in longjmp and setcontext, a size in a register, what memory held before.
- An FDE whose first row is not that of a called function (PLT, gcc's .cold, what the PLT jumps to)
  says how its code is entered, and is believed. (Jumps that lead there tell less: gcc lets those
  that are never taken lead to whatever comes next.)
- A row that begins behind a call says that the call does not return: no call changes a row.
"""

from __future__ import annotations

from bisect import bisect_right

from unwind.dwarf.cfi import Broken, Fde
from unwind.dwarf.rows import rows
from unwind.errors import FormatError
from unwind.functions import Functions
from unwind.judge import Judge
from unwind.machine import CFA, RETURN_ADDRESS, State
from unwind.rules import CfaRegister, InRegister, Offset, SameValue
from unwind.starts import Starts
from unwind.values import Value

__all__ = ["Disagreement", "disagreements"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.architecture import Architecture
    from unwind.dwarf.cfi import FrameSection
    from unwind.image import Image
    from unwind.machine import CodeModel, Disassemble, Symbolic
    from unwind.rules import Row


class Disagreement(Value):
    """A stretch of code in which an FDE is wrong, and the two rows at its first instruction."""

    fde: Fde
    start: int
    end: int
    register: int | None  # None: the CFA
    cfi: Row
    code: Row


def disagreements(
    image: Image,
    arch: Architecture,
    disassemble: Disassemble,
    sections: Iterable[FrameSection],
    complain: Callable[[FormatError], None],
    around: int | None = None,
) -> Iterator[Disagreement]:
    """Where FDEs of the `sections` disagree with the code; one for each stretch of an FDE.

    With `around`, only of FDEs that cover this vaddr. What cannot be read of the sections goes to
    `complain`. The architecture must have a code model.
    """
    assert arch.code_model is not None
    model = arch.code_model()
    tables = list(_tables(image, arch, sections, complain))
    starts, entered = set(), {}
    for fde, table in tables:
        starts |= {fde.start, fde.end}
        state = _entered(table[0], model)
        if state is not None:
            entered[fde.start] = state
    functions = Functions(image, model, disassemble, Starts(image, starts), entered)
    judge = Judge(arch, model)
    for fde, table in tables:
        if around is None or fde.start <= around < fde.end:
            yield from _of_function(fde, table, functions, judge)


def _tables(
    image: Image,
    arch: Architecture,
    sections: Iterable[FrameSection],
    complain: Callable[[FormatError], None],
) -> Iterator[tuple[Fde, list[Row]]]:
    """The FDEs of code that the image holds, and their rows; signal frames are entered by none.

    Of a section, one for each start: many over one another would be followed for ever.
    """
    for section in sections:
        seen = set()
        for entry in section.entries():
            if isinstance(entry, Broken):
                complain(entry.error)
            elif isinstance(entry, Fde) and image.at(entry.start, 1) and not entry.cie.signal:
                if entry.start in seen:
                    continue
                seen.add(entry.start)
                try:
                    table = list(rows(entry, arch.vendor_opcodes))
                except FormatError as error:
                    complain(error)
                else:
                    if table:
                        yield entry, table


def _entered(row: Row, model: CodeModel) -> State | None:
    """The state at the first row of an FDE, where that is not the state of a called function."""
    if not isinstance(row.cfa, CfaRegister):
        return State({}, {})
    registers: dict[int, Symbolic] = {row.cfa.number: (CFA, -row.cfa.offset)}
    slots: dict[Symbolic, Symbolic] = {}
    values = [(register, (register, 0)) for register in model.saved]
    for register, value in [*values, (row.return_address, (RETURN_ADDRESS, 0))]:
        match row.rules.get(register):
            case None | SameValue():
                registers[register] = value
            case Offset(n=n):
                slots[CFA, n] = value
            case InRegister(number=number):
                registers[number] = value
    looked_at = (model.sp, model.return_address, *model.saved)
    if slots == dict(model.entry_slots) and all(
        registers.get(register) == model.entry.get(register) for register in looked_at
    ):
        return None
    return State(registers, slots)


def _of_function(
    fde: Fde, table: list[Row], functions: Functions, judge: Judge
) -> Iterator[Disagreement]:
    found: Disagreement | None = None
    for vaddr, end, row, state, mine in _compared(fde, table, functions):
        verdict = judge.difference(row, state, mine, vaddr)
        if verdict is not None and verdict.refuted:
            if found is None:
                found = Disagreement(fde, vaddr, end, verdict.register, row, mine)
            else:
                found = found.replace(end=end)
        elif verdict is None and found is not None:
            yield found
            found = None
    if found is not None:
        yield found


def _compared(
    fde: Fde, table: list[Row], functions: Functions
) -> Iterator[tuple[int, int, Row, State, Row]]:
    """The instructions at which the code is a witness: vaddr, end, CFI's row, and what it tells."""
    model = functions.model
    starts = [row.start for row in table]
    last, was_call = fde.start, False
    returns = True  # as far as is known, the last call did
    _, end = functions.bounds(fde.start) or (0, 0)
    code = bytes(functions.image.at(fde.start, max(0, min(fde.end, end) - fde.start)))
    for vaddr, size, mnemonic, _ in functions.disassemble(code, fde.start):
        if mnemonic in model.padding:
            continue
        row = table[max(0, bisect_right(starts, vaddr) - 1)]
        called = mnemonic in model.calls
        if row.start > last:
            returns = not was_call
        last, was_call = vaddr, called
        made = functions.table(vaddr)
        if made is None or vaddr in made.slots:
            continue
        state, mine = made.state(vaddr, called), made.row(vaddr, called)
        if returns and state is not None and mine is not None and not state.guessed:
            yield vaddr, vaddr + size, row, state, mine
