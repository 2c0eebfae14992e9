"""unwind-live --no-stop: what can be known of threads that nobody stops, and no more than that."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.crashes import OMIT, Case, compile_c
from tests.running import running
from tests.support import need
from tests.test_crashes import assert_truth
from tests.test_live import DEPTHS, command, document, pid_of
from tests.truth import State, read_record
from unwind.cli import core as unwind_core
from unwind.live import ptrace, seen
from unwind.live.proc import Proc


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built so that each CFA is rsp and a number: with rbp unknown, other frames end a walk."""
    need("gcc")
    made = tmp_path_factory.mktemp("live") / "live"
    compile_c("gcc", (*OMIT, "-pthread", "-DTRUTH_LIVE", "-DPLAIN_FRAMES"), ("live.c",), made)
    return made


def test_blocked_threads_are_seen_and_running_ones_are_named(program: Path, tmp_path: Path) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("something is stopped")

    with (
        running(DEPTHS, tmp_path, executable=program) as crash,
        patch.multiple(ptrace, seize=forbidden, interrupt=forbidden),
    ):
        found = document(pid_of(crash), "--no-stop", "--explain", "--registers")
        states = {thread.tid: thread.state for thread in read_record(tmp_path / "truth")}
    assert "stopped" not in found["source"]
    turning = {tid for tid, state in states.items() if state == State.SPINNING}
    assert len(turning) == 32
    [said] = found["source"]["warnings"]
    listed = re.fullmatch(
        r"threads ([\d, -]+) ran: without a stop, nothing is known of what runs", said
    )
    assert listed
    spans = [span.split("-") for span in listed[1].split(", ")]
    assert {n for span in spans for n in range(int(span[0]), int(span[-1]) + 1)} == turning
    crash = replace(
        crash, stacks={tid: stack for tid, stack in crash.stacks.items() if tid not in turning}
    )
    assert_truth(found, crash)
    for thread in found["threads"]:
        assert set(thread["frames"][0]["registers"]) == {"rip", "rsp"}


def test_what_was_seen_without_a_stop_is_replayed(program: Path, tmp_path: Path) -> None:
    case = Case("live", ("live.c",), ("depths", "5"))
    snapshot = tmp_path / "snapshot"
    with running(case, tmp_path, executable=program) as crash:
        found = document(pid_of(crash), "--no-stop", "--registers", "--record", str(snapshot))
    alone = json.loads(command(str(snapshot), "--json", "--registers", main=unwind_core.main)[0])
    assert alone["threads"] == found["threads"]
    assert alone["modules"] == found["modules"]
    assert len(found["threads"]) == 4


def test_a_frame_that_needs_more_ends_the_walk(tmp_path: Path) -> None:
    """A frame of main's with alloca has its CFA by rbp, which nobody knows."""
    case = Case("live", ("live.c",), ("depths", "9"), flags=("-O0",))
    with running(case, tmp_path) as crash:
        found = document(pid_of(crash), "--no-stop", "--no-fallback", "--thread", pid_of(crash))
    [thread] = found["threads"]
    assert thread["end"]["reason"] == "unknown-register"
    assert "its row needs rbp, which is not known here" in thread["end"]["detail"]


def test_what_moves_is_left_out_and_named(program: Path, tmp_path: Path) -> None:
    """Two looks must agree, in how often the thread was switched, too."""
    real = seen._blocked
    looked: dict[int, int] = {}

    def moving(proc: Proc, tid: int) -> seen.Blocked | None:
        found = real(proc, tid)
        looked[tid] = looked.get(tid, 0) + 1
        if found is None or tid != victim:
            return found
        return found.replace(switches=looked[tid])  # type: ignore[no-any-return]

    case = Case("live", ("live.c",), ("depths", "3"))
    with running(case, tmp_path, executable=program) as crash:
        victim = next(
            thread.tid for thread in read_record(tmp_path / "truth") if thread.state == State.PARKED
        )
        with patch.object(seen, "_blocked", moving):
            found = document(pid_of(crash), "--no-stop")
    assert victim not in {thread["tid"] for thread in found["threads"]}
    assert (
        f"thread {victim} moved during each of several looks: left out"
        in (found["source"]["warnings"])
    )
    assert looked[victim] == 10
