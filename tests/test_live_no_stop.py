"""unwind-live --no-stop: what can be known of threads that nobody stops, and no more than that."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.crashes import OMIT, Case, compile_c
from tests.events import need_bpf
from tests.running import running
from tests.support import need
from tests.test_crashes import assert_truth
from tests.test_live import DEPTHS, command, document, pid_of
from tests.truth import State, read_record
from unwind.architecture import Architecture
from unwind.cli import core as unwind_core
from unwind.errors import SourceError
from unwind.events import tasks
from unwind.live import ptrace, seen
from unwind.live.proc import Proc
from unwind.registers import Registers
from unwind.registry import architectures


@pytest.fixture
def no_bpf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an ordinary user: nothing but pc and sp can be known."""

    def refused(*_: Any) -> dict[int, Any]:
        raise SourceError("the kernel does not load the BPF programs: Operation not permitted")

    monkeypatch.setattr(tasks, "task_registers", refused)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built so that each CFA is rsp and a number: with rbp unknown, other frames end a walk."""
    need("gcc")
    made = tmp_path_factory.mktemp("live") / "live"
    compile_c("gcc", (*OMIT, "-pthread", "-DTRUTH_LIVE", "-DPLAIN_FRAMES"), ("live.c",), made)
    return made


@pytest.mark.usefixtures("no_bpf")
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


@pytest.mark.usefixtures("no_bpf")
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


def test_by_bpf_all_registers_of_blocked_threads_are_known(program: Path, tmp_path: Path) -> None:
    """They are those that a stop shows, but for what the interrupted system call has for them."""
    need_bpf()
    case = Case("live", ("live.c",), ("depths", "20"))
    kept = {"rbx", "rbp", "rsp", "r12", "r13", "r14", "r15", "rip"}

    def registers(*options: str) -> dict[int, dict[str, str]]:
        found = document(pid_of(crash), "--registers", *options)["threads"]
        return {thread["tid"]: thread["frames"][0]["registers"] for thread in found}

    with running(case, tmp_path, executable=program) as crash:
        looked = registers("--no-stop")
        stopped = registers()
    assert len(looked) == 11
    for tid, found in looked.items():
        assert {name: found[name] for name in kept} == {name: stopped[tid][name] for name in kept}
        assert len(found) == 19


def test_by_bpf_a_frame_that_needs_more_than_sp_is_followed(tmp_path: Path) -> None:
    """The same as above that ends early without."""
    need_bpf()
    case = Case("live", ("live.c",), ("depths", "9"), flags=("-O0",))
    with running(case, tmp_path) as crash:
        found = document(pid_of(crash), "--no-stop", "--no-fallback", "--explain")
        states = {thread.tid: thread.state for thread in read_record(tmp_path / "truth")}
    blocked = {tid: stack for tid, stack in crash.stacks.items() if states[tid] != State.SPINNING}
    assert len(blocked) > 4
    assert_truth(found, replace(crash, stacks=blocked))


def test_registers_that_do_not_fit_what_was_seen_are_not_taken(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another moment."""
    real = tasks.task_registers

    def moved(arch: Architecture, pid: int) -> dict[int, Registers]:
        found = real(arch, pid)
        return {tid: Registers({**all, arch.sp: all[arch.sp] + 8}) for tid, all in found.items()}

    need_bpf()
    monkeypatch.setattr(tasks, "task_registers", moved)
    case = Case("live", ("live.c",), ("depths", "3"))
    with running(case, tmp_path, executable=program) as crash:
        found = document(pid_of(crash), "--no-stop", "--registers")
    assert len(found["threads"]) > 1
    for thread in found["threads"]:
        assert set(thread["frames"][0]["registers"]) == {"rip", "rsp"}


def test_only_threads_of_the_process_are_read(tmp_path: Path) -> None:
    need_bpf()
    [arch] = [arch for arch in architectures() if arch.name == os.uname().machine]
    with subprocess.Popen(["sleep", "100"]) as one, subprocess.Popen(["sleep", "100"]) as other:
        try:
            found = tasks.task_registers(arch, one.pid)
        finally:
            one.kill()
            other.kill()
    assert set(found) == {one.pid}
    assert tasks.task_registers(arch, 1 << 30) == {}
