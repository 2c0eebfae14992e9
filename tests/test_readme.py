"""README.md's sessions are run: what it shows of a command is what the command prints."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, run

# Indented blocks that begin with a prompt; an empty line within one has no indentation.
SESSIONS = re.findall(
    r"^    \$ .*\n(?:    .*\n|\n(?=    ))*", (ROOT / "README.md").read_text(), re.M
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A search path with this tree's commands in it."""
    for name in ("core", "cfi"):
        command = tmp_path / f"unwind-{name}"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unwind.cli.{name} "$@"\n')
        command.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


@pytest.mark.parametrize("session", SESSIONS)
def test_what_the_readme_shows_is_what_is_printed(session: str, path: str, example: Path) -> None:
    lines = [line[4:] for line in session.split("\n")]
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    shown = [line for line in lines if not line.startswith("$ ")]
    done = run("sh", "-c", "\n".join(typed), cwd=example, PATH=path)
    assert done.stdout.rstrip() == "\n".join(shown).rstrip()


def test_the_readme_shows_three_sessions() -> None:
    assert len(SESSIONS) == 3
