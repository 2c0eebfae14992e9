"""Generated programs: a sample of what `make oracle-programs` does, and the generator itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.generate import Call, Point, Program, program, smaller, source
from tests.support import need
from tools import programs

SAMPLE = range(3)
CRASHES = 3


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[programs.Outcome]]:
    """What comes of the sample of each target, as many programs at once as can be."""
    need("gcc", "clang")
    for target in programs.FOREIGN.values():
        need(target.tool("gcc"), target.qemu)
    chosen = [program(seed, target) for target in programs.TARGETS for seed in SAMPLE]
    directory = tmp_path_factory.mktemp("generated")
    made = list(programs.attempt_all(chosen, directory, CRASHES, os.cpu_count() or 1))
    return {
        target: [outcome for outcome in made if outcome.program.target == target]
        for target in programs.TARGETS
    }


@pytest.mark.parametrize("target", programs.TARGETS)
def test_stacks_of_generated_programs_are_the_recorded_ones(
    target: str, outcomes: dict[str, list[programs.Outcome]]
) -> None:
    found = outcomes[target]
    assert [outcome.failures for outcome in found] == [()] * len(SAMPLE)
    assert sum(outcome.crashes for outcome in found) == len(SAMPLE) * CRASHES
    assert sum(outcome.frames for outcome in found) > len(SAMPLE) * CRASHES * 5


def test_a_wrong_stack_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("gcc", "clang")
    unwound = programs.unwound

    def without_a_frame(crash: Any, *options: str) -> dict[str, Any]:
        document = unwound(crash, *options)
        del document["threads"][0]["frames"][2]
        return document

    monkeypatch.setattr(programs, "unwound", without_a_frame)
    assert len(programs.attempt(program(0, "x86_64"), tmp_path, 1).failures) == 1


@pytest.mark.parametrize("target", programs.TARGETS)
def test_a_seed_makes_the_same_program_again_and_another_one_does_not(target: str) -> None:
    texts = [source(program(seed, target)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_programs_have_all_that_they_may_have_in_them() -> None:
    made = [program(seed, target) for target in programs.TARGETS for seed in range(200)]
    calls = [call for one in made for call in everything(one) if isinstance(call, Call)]
    points = [point for one in made for point in everything(one) if isinstance(point, Point)]
    assert {call.way for call in calls} == set(programs.generate.WAYS)
    assert {point.deed for point in points} == set(programs.generate.DEEDS)
    assert {(call.moved > 0, call.told) for call in calls} == {
        (False, False),
        (True, False),
        (True, True),
    }
    assert any(function.noreturn for one in made for function in one.functions)
    assert any(function.varargs for one in made for function in one.functions)
    assert any(function.returned > 16 for one in made for function in one.functions)


def everything(one: Program) -> Iterator[object]:
    return (statement for function in one.functions for statement in function.body)


def test_a_failing_program_is_reduced_to_what_fails() -> None:
    def fails(one: Program) -> bool:
        return any(isinstance(call, Call) and call.way == "qsort" for call in everything(one))

    whole = next(filter(fails, (program(seed, "arm64") for seed in range(100))))
    least = programs.reduced(whole, fails)
    assert [len(function.body) for function in least.functions].count(1) == 1
    assert sum(len(function.body) for function in least.functions) == 1
    assert not any(function.parameters for function in least.functions)


def test_what_is_smaller_is_a_program_still() -> None:
    for seed in range(20):
        whole = program(seed, "mips")
        for less in smaller(whole):
            assert less != whole
            numbers = [function.number for function in less.functions]
            assert numbers == list(range(len(numbers)))
            called = {call.function for call in everything(less) if isinstance(call, Call)}
            assert called <= set(numbers)
