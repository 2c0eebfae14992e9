"""The fast walk gives what the exact walk gives, or leaves the stack to it."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests import crashes
from tests.crashes import CASES, Case, Crashes
from tests.worlds import BIAS, CALL, STACK, World
from unwind.arch import arm64
from unwind.arch.x86_64 import ARCH, RBP, RBX, RIP, RSP
from unwind.dwarf.instructions import Instruction
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
    negate_ra_state,
    offset,
    offset_extended_sf,
    undefined,
)
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder

BL = bytes.fromhex("00000094")

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


X19, X29, X30, SP = arm64.X19, arm64.X29, arm64.X30, arm64.SP
_CIE = CIE([def_cfa(SP, 0)], code_align=4, return_address=X30)
_SIGNAL_CIE = CIE([def_cfa(SP, 0)], augmentation="zRS", code_align=4, return_address=X30)


def _record(bottom: int) -> list[Instruction]:
    """CFI of a frame record `bottom` words below the CFA."""
    return [offset(X29, bottom), offset(X30, bottom - 1)]


# Each takes the words of the frame; clang's record lies at the top and carries the CFA.
PLAIN_ARM64 = [
    lambda words: [def_cfa_offset(8 * words), *_record(words)],
    lambda words: [def_cfa_offset(8 * words), *_record(words), negate_ra_state()],
    lambda words: [def_cfa_offset(8 * words), offset(X30, 1)],
    lambda words: [def_cfa(X29, 16), *_record(2)],
]
ODD_ARM64 = [
    lambda words: [def_cfa_offset(8 * words + 4), *_record(words)],
    lambda words: [def_cfa_offset(8 * words)],
    lambda words: [def_cfa(X19, 16), *_record(2)],
    lambda words: [def_cfa_offset(8 * words), offset_extended_sf(X30, -1)],
    lambda words: [def_cfa_offset(8 * words), offset(X30, words + 1)],
    lambda words: [def_cfa_offset(8 * words), *_record(words), undefined(X29)],
    lambda words: [undefined(X30)],
]


@st.composite
def arm64_worlds(draw: st.DrawFn) -> World:
    """As `worlds`, on a machine that keeps the return address in a register until it is saved."""
    entries: list[CIE | FDE | bytes] = []
    stack: list[int] = []
    depth = draw(st.integers(0, 12))
    saved_fps: list[int] = []  # slots that hold the caller's frame pointer
    fp, lr = 1, BIAS + 0x1110
    for number in range(depth):
        odd = draw(st.integers(0, 30)) == 0
        words = draw(st.integers(2, 6))
        signal = draw(st.integers(0, 40)) == 0
        pc = BIAS + 0x1100 + 0x100 * number + 0x10 * draw(st.integers(1, 15))
        pc |= draw(st.sampled_from([0, 0, 0x7F, 0x15])) << 48
        if number == 0 and draw(st.booleans()):  # a leaf: the return address is in x30
            words = draw(st.integers(0, 3))
            program, lr = [def_cfa_offset(8 * words)], pc
            stack += [5] * words
        else:
            program = draw(st.sampled_from(ODD_ARM64 if odd else PLAIN_ARM64))(words)
            frame = [draw(st.integers(0, 9)) for _ in range(words)]
            rules = dict.fromkeys(program)
            bottom = words if _record(words)[0] in rules else 2
            frame[-1 if offset(X30, 1) in rules else 1 - bottom] = pc
            slot = len(stack) + words - bottom
            if program[0] == def_cfa(X29, 16):
                for waiting in saved_fps:
                    stack[waiting] = STACK + 8 * slot | draw(st.sampled_from([0, 3])) << 56
                fp = STACK + 8 * slot if fp == 1 and not saved_fps else fp
                saved_fps = []
            stack += frame
            if offset(X29, bottom) in rules:
                saved_fps.append(slot)
        cie = _SIGNAL_CIE if signal else _CIE
        entries.append(FDE(0x1000 + 0x100 * number, 0x100, program, cie=cie))
    entries.append(FDE(0x1000 + 0x100 * depth, 0x100, [undefined(X30)], cie=_CIE))
    rubbish = st.sampled_from([0, 1, STACK, STACK + 12, BIAS + 0x1010, BIAS + 0x1112, 2**63])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        if stack:
            stack[draw(st.integers(0, len(stack) - 1))] = draw(rubbish)
    sp = STACK + draw(st.sampled_from([0] * 9 + [4])) | draw(st.sampled_from([0, 5])) << 56
    return World(
        entries,
        {vaddr - 4: BL for vaddr in range(0x1010, 0x2000, 0x10)},
        stack=[*stack, 1, 2],
        registers={X29: fp, X30: lr, X19: STACK, SP: sp},
        complete=draw(st.booleans()),
        arch=arm64.ARCH,
    )


@settings(max_examples=1200)
@given(arm64_worlds())
def test_the_walks_agree_where_calls_leave_the_return_address_in_a_register(world: World) -> None:
    snapshot = world.snapshot()
    exact = Unwinder(arm64.ARCH)
    expected = exact.unwind(snapshot).trace
    fast = FastUnwinder(exact)
    event(f"alone: {fast.pcs(snapshot) is not None and len(expected.pcs) > 2}")
    assert fast.trace(snapshot) == expected
    assert fast.trace(snapshot) == expected, "from memory"


def test_the_fast_walk_goes_alone_through_a_leaf_signed_addresses_and_frame_records() -> None:
    signed = 0x2A << 48
    world = World(
        (
            FDE(0x1000, 0x100, [def_cfa_offset(16)], cie=_CIE),
            FDE(0x1100, 0x100, [def_cfa_offset(32), *_record(4), negate_ra_state()], cie=_CIE),
            FDE(0x1200, 0x100, [def_cfa(X29, 16), *_record(2)], cie=_CIE),
            FDE(0x1300, 0x100, [undefined(X30)], cie=_CIE),
        ),
        {vaddr - 4: BL for vaddr in (0x1110, 0x1210, 0x1310)},
        stack=(7, 7, STACK + 56, BIAS + 0x1210 | signed, 0, 0, 7, 0, BIAS + 0x1310 | signed),
        registers={X30: BIAS + 0x1110},
        arch=arm64.ARCH,
    )
    fast = FastUnwinder(Unwinder(arm64.ARCH))
    assert fast.pcs(world.snapshot()) == [BIAS + v for v in (0x1000, 0x1110, 0x1210, 0x1310)]


def test_the_fast_walk_goes_alone_by_stack_and_frame_pointer() -> None:
    world = World(
        (
            FDE(0x1000, 0x100),
            FDE(0x1100, 0x100, [def_cfa_offset(24), offset(RBP, 2)]),
            FDE(0x1200, 0x100, [def_cfa(RBP, 16), offset(RBP, 2)]),
            FDE(0x1300, 0x100, [undefined(RIP)]),
        ),
        {vaddr - 5: CALL for vaddr in (0x1110, 0x1210, 0x1310)},
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
