"""The tree is as ruff and mypy want it: `make lint`, as tests so that none of them is forgotten."""

from __future__ import annotations

import pytest

from tests.support import python


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", "mypy --strict -p unwind"]
)
def test_nothing_to_complain_about(command: str) -> None:
    done = python("-m", *command.split(), timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
