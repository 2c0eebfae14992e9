"""The stepping oracle: shadow stacks, and a sample of what `make oracle-steps` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.foreign import ARM64, MIPSEL
from tests.support import cannot, need
from tools import steps
from tools.steps import LEAST, Program, Result
from unwind.arch.arm64 import ARCH as ARM
from unwind.arch.mips32 import MIPS32EL
from unwind.arch.x86_64 import ARCH as X86
from unwind.architecture import Architecture
from unwind.frames import Trust
from unwind.rules import NoRow, Row
from unwind.snapshot import Place
from unwind.testing.shadow import CALL, OTHER, RETURN, Instruction, ShadowStack
from unwind.testing.stepping import walk_through
from unwind.testing.verdicts import Oracle
from unwind.unwinder import Unwinder

pytest.importorskip("capstone")

STEPS = 2_000
SAMPLES = (
    Program("chain", ("chain.c",), ("9",), ("-O1", "-static"), start=False, steps=STEPS),
    Program(
        "signals", ("signals.c", "signals_x86_64.S"), ("nested",), ("-O2", "-static"), steps=40_000
    ),
    *(
        Program("chain", ("chain.c",), ("9",), ("-O1", "-static"), target, start=False, steps=STEPS)
        for target in (ARM64, MIPSEL)
    ),
)


def native() -> None:
    if os.uname().machine != "x86_64":
        cannot("programs are stepped by ptrace on x86_64 only")


@pytest.mark.parametrize("program", SAMPLES, ids=lambda program: f"{program.arch}-{program.name}")
def test_at_every_instruction_the_stack_is_the_shadow_stack(
    program: Program, tmp_path: Path
) -> None:
    if program.target is None:
        native()
        need("gcc")
    else:
        need(program.target.tool("gcc"), program.target.qemu)
    oracle, _ = steps.run(program, tmp_path)
    result = Result()
    result.add(oracle)
    faults = {name: tally.faults.most_common(5) for name, tally in oracle.tallies.items()}
    assert result.is_met(program.arch), faults
    assert result.ways["cfi"].steps + result.unsettled >= STEPS
    assert result.ways["code"].share >= LEAST[program.arch]
    assert result.ways["fast"].steps > 0


def test_signals_and_depths_are_seen(tmp_path: Path) -> None:
    """The sample above is no sample of nothing: its stacks are deep, with handlers in them."""
    native()
    need("gcc")
    deepest, handlers = 0, 0
    with steps.stepper_of(SAMPLES[1], tmp_path) as stepper:
        for shadow in walk_through(stepper):
            deepest = max(deepest, len(shadow.calls))
            handlers = max(handlers, sum(call.signal for call in shadow.calls))
    assert deepest > 10
    assert handlers == 2  # one in the other


class Wrong:
    """A source of rows that are right at a function's entry alone."""

    trust = Trust.CFI
    shared = True

    def row(self, place: Place) -> Row | NoRow:
        return X86.entry_row if place.vaddr % 3 else NoRow("no opinion")


def test_a_wrong_unwinder_is_found_out(tmp_path: Path) -> None:
    native()
    need("gcc")
    with steps.stepper_of(SAMPLES[0], tmp_path) as stepper:
        wrong = Unwinder(stepper.arch, [Wrong()])
        oracle = Oracle(stepper.arch, stepper.decoder.model.saved, {"wrong": wrong})
        for n, shadow in enumerate(walk_through(stepper)):
            oracle.look(stepper.snapshot, shadow)
            if n == 300:
                break
    tally = oracle.tallies["wrong"]
    assert tally.steps == 301
    assert tally.right < 150
    assert {fault.what for fault in tally.faults} >= {"end", "stop"}


# ------------------------------------------------------------------------------ shadow stacks


class Thread:
    """A thread whose instructions are told one by one."""

    def __init__(self, arch: Architecture, sp: int = 0x7000):
        self.arch = arch
        saved = (3, 6) if arch is X86 else (16, 19)
        self.shadow = ShadowStack(arch, saved, lambda address: address >> 16)
        self.registers = {number: number for number in range(40)} | {arch.sp: sp, arch.pc: 0x1000}

    def step(self, kind: int, pc: int, size: int = 4, slot: int = 0, **changes: int) -> None:
        """One instruction at the pc, of this size, that leads to `pc`."""
        names = {"sp": self.arch.sp, "ra": self.arch.return_address}
        before = dict(self.registers)
        here = before[self.arch.pc]
        self.registers[self.arch.pc] = pc
        self.registers.update({names[name]: value for name, value in changes.items()})
        done = Instruction(here, kind, here + size, slot)
        self.shadow.advance(done, before, self.registers)

    @property
    def calls(self) -> list[tuple[int, int]]:
        return [(call.return_address, call.cfa) for call in self.shadow.calls]


def test_a_call_pushes_and_a_return_drops() -> None:
    thread = Thread(X86)
    thread.step(CALL, 0x2000, size=5, sp=0x6FF8)
    assert thread.calls == [(0x1005, 0x7000)]
    thread.step(OTHER, 0x2004, sp=0x6F00)
    thread.step(CALL, 0x3000, size=5, sp=0x6EF8)
    assert thread.calls == [(0x1005, 0x7000), (0x2009, 0x6F00)]
    thread.step(RETURN, 0x2009, size=1, sp=0x6F00)
    thread.step(OTHER, 0x200D, sp=0x6FF8)
    thread.step(RETURN, 0x1005, size=1, sp=0x7000)
    assert thread.calls == []
    assert thread.shadow.settled


def test_a_call_of_the_next_instruction_is_none() -> None:
    thread = Thread(X86)
    thread.step(CALL, 0x1005, size=5, sp=0x6FF8)
    assert thread.calls == []


def test_a_link_register_is_used_up_where_it_leads() -> None:
    thread = Thread(ARM)
    thread.step(CALL, 0x2000, ra=0x1004)
    thread.step(OTHER, 0x2004, sp=0x6F00)
    thread.step(CALL, 0x3000, ra=0x2008)
    assert thread.calls == [(0x1004, 0x7000), (0x2008, 0x6F00)]
    thread.step(OTHER, 0x4000)  # a tail call
    assert len(thread.calls) == 2
    thread.step(RETURN, 0x2008)
    thread.step(OTHER, 0x200C, sp=0x7000)
    assert thread.calls == [(0x1004, 0x7000)]
    thread.step(RETURN, 0x1004)
    assert thread.calls == []


def test_a_call_with_a_delay_slot_counts_once_that_is_done() -> None:
    thread = Thread(MIPS32EL)
    thread.step(CALL, 0x1004, size=8, slot=0x1004, ra=0x1008)
    assert thread.calls == []
    thread.step(OTHER, 0x2000)
    assert thread.calls == [(0x1008, 0x7000)]


def test_longjmp_leaves_all_between() -> None:
    thread = Thread(X86)
    for n in range(3):
        thread.step(CALL, 0x2000 + n, size=5, sp=0x6FF8 - 0x100 * n)
        thread.step(OTHER, 0x3000, size=1, sp=0x6F00 - 0x100 * n)
    thread.step(OTHER, 0x3001, size=1, sp=0x6FA0)  # the stack pointer of the first of them
    assert len(thread.calls) == 1
    assert thread.shadow.left is not None
    assert not thread.shadow.settled
    thread.step(OTHER, 0x2100)
    assert thread.shadow.settled
    assert len(thread.calls) == 1


def test_each_stack_has_its_own_calls() -> None:
    thread = Thread(X86)
    thread.step(CALL, 0x2000, size=5, sp=0x6FF8)
    kept = thread.calls
    thread.step(OTHER, 0x2004, sp=0x5_7000)  # swapcontext
    assert not thread.shadow.settled
    thread.step(RETURN, 0x3000, size=1, sp=0x5_7008)
    assert thread.calls == []
    assert not thread.shadow.rooted
    thread.step(CALL, 0x4000, size=5, sp=0x5_7000)
    thread.step(OTHER, 0x4004, sp=0x6FF0)  # and back
    thread.step(OTHER, 0x2100)
    assert thread.calls == kept
    assert thread.shadow.rooted


def test_what_a_signal_interrupted_has_all_its_registers() -> None:
    thread = Thread(X86)
    thread.step(CALL, 0x2000, size=5, sp=0x6FF8)
    before = dict(thread.registers)
    after = before | {X86.pc: 0x5000, X86.sp: 0x6C00}
    thread.shadow.interrupt(before, after, 0x6000)
    assert thread.calls == [(0x1005, 0x7000), (0x2000, 0x6FF8), (0x6000, 0x6C08)]
    assert thread.shadow.calls[1].registers == before
    thread.shadow.resume()
    assert thread.calls == [(0x1005, 0x7000)]


def test_the_list_of_errors_has_evidence() -> None:
    entries = steps.listed()
    assert entries
    wanted = {"library", "version", "processors", "function", "what", "instruction", "row"}
    for entry in entries:
        assert set(entry) >= wanted | {"shadow", "code"}
        assert all(entry[name] for name in ("row", "shadow", "code", "instruction"))
