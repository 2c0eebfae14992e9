"""Runs: what is learned of stacks, and that a run is taken only where all of it lies there."""

from __future__ import annotations

from array import array
from itertools import pairwise

from unwind.runs import Runs

MARK = -6
STACK = [1, 10, 20, 30, 40, 50, 60, 70]  # pcs, innermost first
STEPS = {10: 3, 20: 2, 30: 1, 40: 5, 50: 2, 60: 4, 70: -2}


def words_of(pcs: list[int]) -> memoryview:
    """The words of a stack behind the return address `pcs[0]`."""
    words = []
    for pc, caller in pairwise(pcs):
        words += [999] * (STEPS[pc] - 1) + [caller]
    return memoryview(array("Q", words))


def learned(times: int) -> tuple[Runs, dict[int, int]]:
    called = dict(STEPS)
    runs = Runs(called, MARK)
    for _ in range(times):
        runs.learn(STACK)
    return runs, called


def test_what_was_seen_once_is_no_run():
    runs, called = learned(1)
    assert not runs.known
    assert called == STEPS


def test_a_run_reads_the_return_addresses_from_where_they_lie():
    runs, called = learned(4)
    read, expected, reach, step = runs.known[10]
    assert expected == (20, 30, 40, 50, 60, 70)
    assert (reach, step) == (3 + 2 + 1 + 5 + 2 + 4, 3)
    assert called[10] == MARK
    assert runs.step(10) == 3
    assert read(words_of(STACK[1:]), 0) == expected


def test_one_other_return_address_is_seen():
    runs, _ = learned(4)
    read, expected, _, _ = runs.known[10]
    for n in range(2, len(STACK)):
        words = words_of(STACK[1:])
        words[words.tolist().index(STACK[n])] ^= 1
        assert read(words, 0) != expected


def test_runs_begin_behind_callers_that_differ():
    called = {**STEPS, 31: 1, 32: 2, 33: 3}
    runs = Runs(called, MARK)
    for n in range(50):
        runs.learn([1, 10, 31 + n % 3, *STACK[2:]])
    assert set(runs.known) == {20, 31, 32, 33}
    assert runs.known[31][1] == (20, 30, 40, 50, 60, 70)


def test_a_run_that_fails_is_given_up_for_good():
    runs, called = learned(4)
    for _ in range(8):
        runs.failed(10)
    assert 10 not in runs.known
    assert called == STEPS
    runs.learn(STACK)
    assert 10 not in runs.known


def test_only_plain_steps_make_a_run():
    called = {**STEPS, 40: -1}
    runs = Runs(called, MARK)
    for _ in range(10):
        runs.learn(STACK)
    assert not runs.known


def test_the_less_comes_of_it_the_less_is_learned():
    runs, _ = learned(20)
    assert runs.due == 512
