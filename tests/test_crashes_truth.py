"""The judge is judged: the truth about each crash agrees with the core, and with gdb where it can.

Nothing of `unwind` is used here.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from tests import core_bytes, crashes, truth
from tests.crashes import CASES, PROGRAMS, Case, Crashes
from tests.truth import Ends, Found, Frame, Stack

PROGRAM_CASES = [case for case in CASES if case.shows]
AGREED_CASES = [case for case in CASES if not case.gdb]


@pytest.fixture(scope="session")
def crashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    return crashes.crashes_of(request, tmp_path_factory)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_core_holds_the_recorded_threads_and_no_other(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    found = core_bytes.registers(crash.core.read_bytes())
    assert set(found) == set(crash.stacks)
    first = next(iter(found))
    assert [tid for tid, stack in crash.stacks.items() if stack.crashed] == [first]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recorded_pc_is_the_one_in_the_core(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    found = core_bytes.registers(crash.core.read_bytes())
    known = {
        tid: stack.frames[0].pc
        for tid, stack in crash.stacks.items()
        if stack.frames[0].pc is not None
    }
    assert {tid: found[tid][0] for tid in known} == known


@pytest.mark.parametrize("case", PROGRAM_CASES, ids=str)
def test_program_is_what_the_case_claims(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    for show in case.shows:
        command = show.command.format(program=crash.executable).split()
        printed = subprocess.run(command, capture_output=True, text=True).stdout
        assert show.found_in(printed), f"{' '.join(command)}: {show.pattern}\n{printed}"


@pytest.mark.parametrize("case", AGREED_CASES, ids=str)
def test_gdb_agrees(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    found = crashes.by_gdb(crash)
    compared = {
        tid: truth.differences(stack, found.get(tid, [])) for tid, stack in crash.stacks.items()
    }
    wrong = {tid: differences for tid, differences in compared.items() if differences}
    if wrong and not crashes.gdb_is_known():
        pytest.xfail(f"either may be wrong, this gdb or the truth: {wrong}")
    assert not wrong


@pytest.mark.parametrize("case", crashes.named("stack-overflow"), ids=str)
def test_stack_overflow_is_deep(case: Case, crashed: Crashes) -> None:
    (stack,) = crashed[case].stacks.values()
    assert len(stack.frames) > 20_000


@pytest.mark.parametrize("case", crashes.named("zeroed-stack", "zeroed-hole"), ids=str)
def test_zeroed_stack_keeps_what_lies_below(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    (stack,) = crash.stacks.values()
    image = crash.core.read_bytes()
    _, sp = core_bytes.registers(image)[stack.tid]
    home = next(s for s in core_bytes.segments(image) if s.start <= sp < s.start + s.size)
    held = image[home.offset + sp - home.start : home.offset + home.size]
    kept = stack.ends.at_least
    assert kept is not None
    words = [frame.pc.to_bytes(8, "little") for frame in stack.frames if frame.pc is not None]
    # The return addresses of the kept frames are there, in this order; then come the zeros.
    at = 0
    for word in words[1:kept]:
        at = held.index(word, at) + 8
    zeros = held.index(bytes(48), at)
    assert words[kept] not in held[at:zeros]
    assert any(held[zeros + 48 :]) is (case.name == "zeroed-hole")


# ------------------------------------------------------------------------------- the comparison

PLAIN = Stack(
    tid=1,
    crashed=True,
    frames=(
        Frame(("inner",), 0x10),
        Frame(("outer",), 0x20),
        Frame(("qsort", "qsort_r"), 0x30, span=True),
        Frame(("main",), 0x40),
        Frame(("__libc_start_call_main",), 0x50, named=False),
    ),
    ends=Ends(),
)
RIGHT = [
    Found(0x10, "inner"),
    Found(0x20, "ns::outer(int)"),
    Found(0x30, None),
    Found(0x38, "qsort_r@@GLIBC_2.8"),
    Found(0x40, "main"),
    Found(0x50, None),
]


def test_right_frames_are_accepted() -> None:
    assert truth.differences(PLAIN, RIGHT) == []


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5])
def test_each_missing_frame_is_noticed(number: int) -> None:
    assert truth.differences(PLAIN, RIGHT[:number] + RIGHT[number + 1 :])


@pytest.mark.parametrize("number", [0, 1, 4, 5, 6])
def test_a_frame_too_many_is_noticed(number: int) -> None:
    extra = Found(0x99, "extra")
    assert truth.differences(PLAIN, [*RIGHT[:number], extra, *RIGHT[number:]])


@pytest.mark.parametrize("number", [0, 1, 2, 4, 5])
def test_each_wrong_pc_is_noticed(number: int) -> None:
    wrong = list(RIGHT)
    wrong[number] = replace(wrong[number], pc=0x77)
    assert truth.differences(PLAIN, wrong)


@pytest.mark.parametrize("number", [0, 1, 3, 4, 5])
def test_each_wrong_name_is_noticed(number: int) -> None:
    wrong = list(RIGHT)
    wrong[number] = replace(wrong[number], name="stranger")
    assert truth.differences(PLAIN, wrong)


def test_a_signal_frame_is_no_call() -> None:
    wrong = [*RIGHT[:1], replace(RIGHT[1], signal=True), *RIGHT[2:]]
    assert truth.differences(PLAIN, wrong)


def test_a_prefix_is_enough_where_the_rest_is_lost() -> None:
    short = replace(PLAIN, ends=Ends(short=("memory-fault",), at_least=2))
    assert truth.differences(short, RIGHT[:1])
    assert truth.differences(short, RIGHT[:2]) == []
    assert truth.differences(short, RIGHT[:3]) == []
    assert truth.differences(short, [RIGHT[0], RIGHT[0]])


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("main", "main"),
        ("work.cold", "work"),
        ("work [clone .cold]", "work"),
        ("work[cold]", "work"),
        ("pause@@GLIBC_2.2.5", "pause"),
        ("shop::Guard::~Guard()", "~Guard"),
        ("shop::Guard::burn(int) const", "burn"),
        ("int shop::relay<int>(int)", "relay"),
        ("(anonymous namespace)::Money::operator bool() const", "operator bool"),
        ("Money::operator<(Money const&) const", "operator<"),
        ("Money::operator->() const", "operator->"),
        ("auto main::{lambda(auto:1, auto:2)#1}::operator()<int, double>(int, double) const",
         "operator()"),
        ("main::{lambda(int)#1}::operator()", "operator()"),
        ("int (anonymous namespace)::Countdown<0>::run<main::{lambda(int)#1}&>(int)", "run"),
    ],
)  # fmt: skip
def test_base_name_of(name: str, base: str) -> None:
    assert truth.base_name(name) == base


def test_every_program_has_a_case() -> None:
    sources = {source for case in CASES for source in case.sources}
    sources |= {library.source for case in CASES for library in case.libraries}
    sources.add("live.c")  # which does not crash: tests/test_live.py
    programs = [path for path in PROGRAMS.iterdir() if '#include "truth.h"' in path.read_text()]
    assert {path.name for path in programs} <= sources
