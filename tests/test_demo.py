"""`make demo`: a program crashed here, or the shipped core, gives the stacks of two threads."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, need, need_plain_cores, run

CRASHED = "read_number read_list read_list read_list main".split()
WAITING = "wait_for_work worker".split()


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """`unwind-core` of this tree beside a `python`, as in the environment of `make demo`."""
    where = tmp_path / "a bin"
    where.mkdir()
    for name, program in (("unwind-core", "-m unwind.cli.core"), ("python", "")):
        (where / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {program} "$@"\n')
        (where / name).chmod(0o755)
    return where / "unwind-core"


def functions(text: str) -> list[str]:
    """The functions of all frames that `unwind-core` printed, without offset and module."""
    return re.findall(r"^#\d+ +0x[0-9a-f]+ (\w+)", text, re.MULTILINE)


def contains(found: list[str], wanted: list[str]) -> bool:
    return any(found[n : n + len(wanted)] == wanted for n in range(len(found)))


@pytest.mark.parametrize("how", ["crashed", "shipped"])
def test_the_demo_prints_the_stacks_of_both_threads(how: str, command: Path) -> None:
    if how == "crashed":
        need("cc")
        need_plain_cores()
    done = run("sh", "examples/demo.sh", command, *(["shipped"] if how == "shipped" else []))
    assert done.returncode == 0, done.stderr
    assert ("Crashing examples/crash.c" in done.stdout) == (how == "crashed")
    found = functions(done.stdout)
    assert contains(found, CRASHED)
    assert contains(found, WAITING)
    assert "_start" in found


def test_make_lists_every_target_with_a_line() -> None:
    need("make")
    listed = run("make", MAKEFLAGS="", MAKELEVEL="0").stdout.splitlines()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in listed} == targets - {"packages"}
    assert all(len(line.split()) > 3 and len(line) <= 100 for line in listed)
