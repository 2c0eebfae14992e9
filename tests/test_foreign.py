"""Crashes of other processors: every frame of every thread equals what the program recorded."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import crashes, foreign
from tests.crashes import Crash
from tests.foreign import ForeignCase
from tests.replay import assert_replayed
from tests.test_crashes import assert_truth, unwound

Made = tuple[Crash, dict[str, Any]]


@pytest.fixture(scope="session")
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Made | BaseException]:
    """The crash of each chosen case with the document of its stacks, as many at once as can be."""
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    chosen = [spec.params.get("case") for spec in parameters if spec]
    cases = list({case.name: case for case in chosen if isinstance(case, ForeignCase)}.values())
    directory = tmp_path_factory.getbasetemp() / "foreign"

    def attempt(crash: Crash | BaseException) -> Made | BaseException:
        try:
            return crash if isinstance(crash, BaseException) else (crash, unwound(crash))
        except BaseException as error:
            return error

    crashed = crashes.crash_all(cases, directory, foreign.crash)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(crashed, pool.map(attempt, crashed.values()), strict=True))


@pytest.mark.parametrize("case", foreign.CASES, ids=str)
def test_every_stack_is_the_recorded_one(
    case: ForeignCase, made: dict[str, Made | BaseException]
) -> None:
    result = made[case.name]
    if isinstance(result, BaseException):
        raise result
    crash, document = result
    for show in case.shows:
        command = show.command.format(program=crash.executable).split()
        printed = subprocess.run(command, capture_output=True, text=True).stdout
        assert show.found_in(printed), f"{' '.join(command)}: {show.pattern}\n{printed}"
    assert_truth(document, crash)


@pytest.mark.parametrize("case", foreign.CASES, ids=str)
def test_a_snapshot_gives_the_same_document(
    case: ForeignCase, made: dict[str, Made | BaseException], tmp_path: Path
) -> None:
    result = made[case.name]
    if isinstance(result, BaseException):
        raise result
    crash, _ = result
    assert_replayed(crash.core, tmp_path / "snapshot", files=crash.options)
