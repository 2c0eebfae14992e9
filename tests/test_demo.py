"""`make demo`: a program crashed here, and shipped cores, give the stacks of two threads each."""

from __future__ import annotations

import platform
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
    printed = re.split(r"^The same program on (\w+):$", done.stdout, flags=re.MULTILINE)
    first = functions(printed[0])
    stacks = {
        name: functions(text) for name, text in zip(printed[1::2], printed[2::2], strict=True)
    }
    if how == "crashed":
        native = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
        assert native not in stacks
        stacks[native] = first
    assert {"x86_64", "arm64", "mips32el"} <= set(stacks)
    for found in stacks.values():
        assert contains(found, CRASHED)
        assert contains(found, WAITING)
        assert {"_start", "__start"} & set(found)
    assert "stack ends here" not in done.stdout


def test_make_lists_every_target_with_a_line() -> None:
    need("make")
    listed = run("make", MAKEFLAGS="", MAKELEVEL="0").stdout.splitlines()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {line.split()[1] for line in listed} == targets - {"packages"}
    assert all(len(line.split()) > 3 and len(line) <= 100 for line in listed)
