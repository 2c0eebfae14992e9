"""Real crashes: every frame of every thread equals what the crashed program itself recorded."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import crashes, truth
from tests.crashes import CASES, Case, Crash, Crashes
from tests.replay import assert_replayed
from tests.support import cannot, need, python, run, validate
from tests.truth import Ends, Found, Stack

_TRIES = 20  # until a thread that was made has not run: where no real-time priority is given


@pytest.fixture(scope="session")
def crashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    return crashes.crashes_of(request, tmp_path_factory)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_stack_is_the_recorded_one(case: Case, crashed: Crashes) -> None:
    crash = crashed[case]
    assert_truth(unwound(crash), crash)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_snapshot_gives_the_same_document(case: Case, crashed: Crashes, tmp_path: Path) -> None:
    crash = crashed[case]
    assert_replayed(crash.core, tmp_path / "snapshot", files=crash.options)


def test_a_thread_that_has_not_run_yet_has_no_caller(tmp_path: Path) -> None:
    """Behind clone()'s system call: its registers, and the rows there, are its maker's."""
    need("gcc")
    if not crashes.kernel_writes_cores():
        cannot("a debugger would let the new thread run")
    program, core = tmp_path / "program", tmp_path / "core"
    crashes.compile_c("gcc", ("-O2", "-fno-omit-frame-pointer"), ("newborn.c",), program)
    for _ in range(_TRIES):
        crashes.crash_by_kernel([str(program)], dict(os.environ), core)
        ran = python("-m", "unwind.cli.core", str(core), "--json")
        made = json.loads(ran.stdout)["threads"][1]
        if made["frames"][0]["function"].endswith("clone"):
            assert [frame["function"] for frame in made["frames"]] == ["__clone"]
            assert made["end"]["reason"] == "outermost"
            return
    cannot("the new thread always ran first")


def unwound(crash: Crash, *options: str) -> dict[str, Any]:
    """The document of `unwind-core CORE --json`."""
    command = ("-m", "unwind.cli.core", str(crash.core), "--json", *crash.options, *options)
    ran = python(*command)
    assert ran.returncode == 0, ran.stderr
    document: dict[str, Any] = json.loads(ran.stdout)
    validate(document)
    return document


def assert_truth(document: dict[str, Any], crash: Crash) -> None:
    """Fails unless each thread has the true frames, found as they should be, and the true end."""
    threads = {thread["tid"]: thread for thread in document["threads"]}
    assert set(threads) == set(crash.stacks)
    names = demangled(document)
    wrong = []
    for tid, stack in crash.stacks.items():
        thread = threads[tid]
        found = [
            Found(int(frame["pc"], 16), name(frame, names), frame.get("signal", False))
            for frame in thread["frames"]
            if not frame["inline"]
        ]
        faults = [
            *truth.differences(stack, found),
            *wrong_end(stack, found, thread["end"]),
            *wrong_trust(crash.case, stack, thread["frames"]),
        ]
        if thread.get("crashed", False) is not stack.crashed:
            faults.append("it crashed" if stack.crashed else "it has not crashed")
        if faults:
            wrong.append(f"thread {tid}: {'; '.join(faults)}\n{beside(stack, found)}")
    assert not wrong, "\n".join(wrong)


def wrong_end(stack: Stack, found: list[Found], end: dict[str, str]) -> list[str]:
    """What is wrong with the reason given for the end of the stack."""
    ends = stack.ends
    complete = not truth.differences(replace(stack, ends=Ends()), found)
    allowed = ends.complete if complete else ends.short
    detail = end.get("detail", "")
    faults = []
    if end["reason"] not in allowed:
        faults.append(f"ends as {end['reason']} ({detail}), not {' or '.join(allowed)}")
    if not complete:
        faults += [
            f"its end does not speak of {word}: {detail}"
            for word in ends.words
            if word not in detail
        ]
    return faults


def wrong_trust(case: Case, stack: Stack, frames: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the ways in which the frames were found."""
    trusts = [frame["trust"] for frame in frames]
    faults = []
    if trusts[:1] != ["context"]:
        faults.append(f"the innermost frame comes from {trusts[:1]}")
    if case.libc == "glibc" and (strange := set(trusts[1:]) - {"cfi", *case.trust, *case.perhaps}):
        faults.append(f"frames found by {sorted(strange)}")
    if stack.crashed and (unused := set(case.trust) - set(trusts)):
        faults.append(f"no frame found by {sorted(unused)}")
    return faults


def name(frame: dict[str, Any], names: dict[str, str]) -> str | None:
    """The frame's symbol, demangled by binutils; else what the document calls its function."""
    symbol: str | None = frame.get("symbol")
    function: str | None = frame.get("function")
    if symbol is None:
        return function
    assert function is None or truth.base_name(function) == truth.base_name(names[symbol])
    return names[symbol]


def demangled(document: dict[str, Any]) -> dict[str, str]:
    """symbol -> name, for all symbols of the document."""
    need("c++filt")
    frames = (frame for thread in document["threads"] for frame in thread["frames"])
    symbols = sorted({frame["symbol"] for frame in frames if frame.get("symbol")})
    printed = run("c++filt", input="".join(f"{symbol}\n" for symbol in symbols)).stdout
    return dict(zip(symbols, printed.splitlines(), strict=True))


def beside(stack: Stack, found: list[Found]) -> str:
    """The truth and what was found, in two columns."""
    return "\n".join(truth.columns([truth.describe(f) for f in stack.frames], found))
