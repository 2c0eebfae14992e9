"""The fast walk gives what the exact walk gives, or leaves the stack to it."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests import crashes
from tests.crashes import CASES, Case, Crashes
from tests.worlds import BIAS, CALL, STACK, World
from unwind.arch.x86_64 import ARCH, RBP, RBX, RIP, RSP
from unwind.fast import FastUnwinder
from unwind.files import Files
from unwind.frames import End
from unwind.testing.assembler import (
    CIE,
    FDE,
    breg,
    code,
    def_cfa,
    def_cfa_expression,
    def_cfa_offset,
    in_register,
    offset,
    undefined,
)
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder

PLAIN = [
    lambda size: [def_cfa_offset(size)],
    lambda size: [def_cfa_offset(size), offset(RBX, 2)],
    lambda size: [def_cfa_offset(size), offset(RBP, 2)],
    lambda size: [def_cfa(RBP, 16), offset(RBP, 2)],
]
ODD = [
    lambda size: [def_cfa_offset(size + 4)],
    lambda size: [def_cfa(RBX, 16)],
    lambda size: [def_cfa_expression(code(breg(RSP, size)))],
    lambda size: [def_cfa_offset(size), in_register(RBP, RBX)],
    lambda size: [def_cfa_offset(size), undefined(RBP)],
    lambda size: [def_cfa_offset(size), offset(RIP, 2)],
    lambda size: [def_cfa_offset(size), offset(RSP, 2)],
    lambda size: [undefined(RIP)],
]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A chain of calls whose stack is right, but for an odd function or a few damaged words."""
    entries, stack, fp = [], [], 1
    saved_fps: list[int] = []  # slots that hold the caller's frame pointer
    depth = draw(st.integers(0, 12))
    for number in range(depth):
        makers = ODD if draw(st.integers(0, 30)) == 0 else PLAIN
        maker = draw(st.sampled_from(makers))
        words = draw(st.integers(2, 6))
        program = maker(8 * words)
        signal = draw(st.integers(0, 40)) == 0
        cie = CIE(augmentation="zRS" if signal else "zR")
        entries.append(FDE(0x1000 + 0x100 * number, 0x100, program, cie=cie))
        slot = len(stack) + words - 2  # of rbx or rbp
        stack += [draw(st.integers(0, 9)) for _ in range(words)]
        stack[-1] = BIAS + 0x1100 + 0x100 * number + 0x10 * draw(st.integers(1, 15))
        if program[0] == def_cfa(RBP, 16):
            for waiting in saved_fps:
                stack[waiting] = STACK + 8 * slot
            fp = STACK + 8 * slot if fp == 1 and not saved_fps else fp
            saved_fps = [slot]
        elif program[-1] == offset(RBP, 2):
            saved_fps.append(slot)
            stack[slot] = 5
    entries.append(FDE(0x1000 + 0x100 * depth, 0x100, [undefined(RIP)]))
    rubbish = st.sampled_from([0, 1, STACK, STACK + 12, BIAS + 0x1010, BIAS + 0x1111, 2**63])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if stack:
            stack[draw(st.integers(0, len(stack) - 1))] = draw(rubbish)
    return World(
        entries,
        {vaddr - 5: CALL for vaddr in range(0x1010, 0x2000, 0x10)},
        stack=[*stack, 1, 2],
        registers={RBP: fp, RBX: STACK, RSP: STACK + draw(st.sampled_from([0] * 9 + [4]))},
        complete=draw(st.booleans()),
    )


@settings(max_examples=1200)
@given(worlds())
def test_the_fast_walk_agrees_with_the_exact_walk(world: World) -> None:
    snapshot = world.snapshot()
    exact = Unwinder(ARCH)
    expected = exact.unwind(snapshot).trace
    fast = FastUnwinder(exact)
    event(f"alone: {fast.pcs(snapshot) is not None and len(expected.pcs) > 2}")
    assert fast.trace(snapshot) == expected
    assert fast.trace(snapshot) == expected, "from memory"


def test_the_fast_walk_goes_alone_by_stack_and_frame_pointer() -> None:
    world = World(
        (
            FDE(0x1000, 0x100),
            FDE(0x1100, 0x100, [def_cfa_offset(24), offset(RBP, 2)]),
            FDE(0x1200, 0x100, [def_cfa(RBP, 16), offset(RBP, 2)]),
            FDE(0x1300, 0x100, [undefined(RIP)]),
        ),
        stack=(BIAS + 0x1110, 0, STACK + 48, BIAS + 0x1210, 7, 7, 0, BIAS + 0x1310),
        registers={RBP: 1},
    )
    fast = FastUnwinder(Unwinder(ARCH))
    assert fast.pcs(world.snapshot()) == [BIAS + v for v in (0x1000, 0x1110, 0x1210, 0x1310)]


def test_a_changed_space_is_compiled_anew() -> None:
    world = World((FDE(0x1000, 0x100, [undefined(RIP)]),), stack=(0,))
    snapshot = world.snapshot()
    fast = FastUnwinder(Unwinder(ARCH))
    assert fast.pcs(snapshot) == [BIAS + 0x1000]
    other = World((FDE(0x1000, 0x100),), stack=(0, 1)).snapshot().space
    snapshot.space.replace(other.modules, other.regions)
    assert fast.pcs(snapshot) is None


def test_the_limit_of_frames_holds_for_both_walks() -> None:
    world = World(
        (FDE(0x1000, 0x100), FDE(0x1100, 0x10, [undefined(RIP)])),
        stack=[*[BIAS + 0x1050] * 30, BIAS + 0x1108],
    )
    fast = FastUnwinder(Unwinder(ARCH, limit=10))
    trace = fast.trace(world.snapshot())
    assert (len(trace.pcs), trace.end) == (10, End.LIMIT)


@pytest.fixture(scope="session")
def crashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    return crashes.crashes_of(request, tmp_path_factory)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_walks_agree_on_every_crash(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    alone = 0
    with Files() as files, TRANSPORT.open(str(crash.core), files) as source:
        exact = Unwinder(source.arch)
        fast = FastUnwinder(exact)
        for snapshot in source.snapshots():
            assert fast.trace(snapshot) == exact.unwind(snapshot).trace
            alone += fast.pcs(snapshot) is not None
    if case.name in ("recursion", "threads", "stack-overflow", "static", "gcore"):
        assert alone == len(crash.stacks)
