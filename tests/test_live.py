"""unwind-live against programs that know their own stacks: tests/programs keep the record."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests import replay
from tests.crashes import Case, Crash
from tests.running import CASES, running
from tests.support import validate
from tests.test_crashes import assert_truth
from unwind.cli import core as unwind_core
from unwind.cli import live as unwind_live


def document(pid: int | str, *options: str, code: int = 0) -> dict[str, Any]:
    """What the command prints of a process, as JSON."""
    printed, _ = command(str(pid), "--json", *options, code=code)
    found: dict[str, Any] = json.loads(printed)
    validate(found)
    assert found["source"]["kind"] == "process"
    return found


def command(*words: str, code: int = 0, main: Any = unwind_live.main) -> tuple[str, str]:
    """What the command prints, and what it says on standard error."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        ended = main(list(words))
    assert ended == code, errors.getvalue()
    return out.getvalue(), errors.getvalue()


def pid_of(crash: Crash) -> str:
    return crash.core.name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_stack_is_the_recorded_one_and_is_replayed(case: Case, tmp_path: Path) -> None:
    with running(case, tmp_path) as crash:
        snapshot = tmp_path / "snapshot"
        asked = ("--registers", "--explain")
        whole = document(pid_of(crash), *crash.options, *asked, "--record", str(snapshot))
    assert_truth(whole, crash)
    assert whole["source"]["warnings"] == []
    assert whole["source"]["pid"] == int(pid_of(crash))
    # The process is gone, and so are its files, perhaps.
    alone = json.loads(command(str(snapshot), "--json", *asked, main=unwind_core.main)[0])
    assert (whole["source"].pop("kind"), alone["source"].pop("kind")) == ("process", "snapshot")
    assert alone["source"].pop("path") == str(snapshot)
    del whole["source"]["path"], whole["source"]["stopped"]
    assert list(replay.differences(whole, alone)) == []
