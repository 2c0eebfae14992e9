"""Snapshots whose backtrace is known by construction: both walks find it, and damage ends well."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings

from unwind.fast import FastUnwinder
from unwind.frames import End, Stack, Trust
from unwind.testing.chains import chain
from unwind.testing.choices import Rolled
from unwind.testing.dialects import DIALECTS
from unwind.testing.snapshots import SnapshotMade, damaged_snapshots, snapshots
from unwind.unwinder import Unwinder


def assert_found(made: SnapshotMade, stack: Stack) -> None:
    """Every frame with its pc, CFA and registers, and nothing else."""
    watched = made.chain.dialect.watched
    assert [frame.pc for frame in stack.frames] == [frame.pc for frame in made.frames]
    assert stack.end == End.OUTERMOST
    for found, known in zip(stack.frames, made.frames, strict=True):
        assert found.cfa == known.cfa
        values = {r: found.registers[r] for r in watched if r in found.registers}
        assert values == known.registers
        assert (found.called, found.signal) == (known.called, known.signal)
        assert found.trust in (Trust.CFI, Trust.CONTEXT)


@pytest.mark.parametrize("arch", DIALECTS)
def test_the_walk_finds_what_was_built(arch: str) -> None:
    @settings(max_examples=120)
    @given(snapshots([arch]))
    def find(made: SnapshotMade) -> None:
        stack = Unwinder(made.chain.dialect.arch).unwind(made.snapshot)
        assert_found(made, stack)
        signals = sum(frame.signal for frame in made.frames)
        event(f"{len(made.frames)} frames, {signals} of signals")

    find()


@settings(max_examples=120)
@given(snapshots())
def test_the_fast_walk_finds_what_was_built(made: SnapshotMade) -> None:
    fast = FastUnwinder(Unwinder(made.chain.dialect.arch))
    for _ in range(2):  # the second time from memory
        assert list(fast.trace(made.snapshot).pcs) == [frame.pc for frame in made.frames]


@settings(max_examples=150)
@given(damaged_snapshots())
def test_a_damaged_snapshot_has_a_stack_and_a_reason(made: SnapshotMade) -> None:
    unwinder = Unwinder(made.chain.dialect.arch, limit=1000)
    stack = unwinder.unwind(made.snapshot)
    assert stack.end in {value for name, value in vars(End).items() if name.isupper()}
    event(f"{stack.end}, {len(stack.frames)} frames of {len(made.frames)}")
    assert FastUnwinder(unwinder).trace(made.snapshot) == stack.trace


def test_a_seed_gives_one_chain() -> None:
    for name, dialect in DIALECTS.items():
        first, second = (chain(Rolled(f"{name} 1"), dialect) for _ in range(2))
        assert (first.frames, first.stacks, first.registers) == (
            second.frames,
            second.stacks,
            second.registers,
        )
        assert first.frames != chain(Rolled(f"{name} 2"), dialect).frames
