"""unwind-live against programs that know their own stacks: tests/programs keep the record."""

from __future__ import annotations

import io
import json
import re
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests import replay
from tests.crashes import OMIT, Case, Crash, compile_c, named
from tests.running import CASES, UNSTOPPABLE, resettle, running
from tests.support import need, validate
from tests.test_crashes import assert_truth
from tests.truth import Ends
from unwind.cli import core as unwind_core
from unwind.cli import live as unwind_live
from unwind.live import copies, halt, ptrace


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


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/programs/live.c, which has its own depths, rests and turns."""
    need("gcc")
    made = tmp_path_factory.mktemp("live") / "live"
    compile_c("gcc", (*OMIT, "-pthread", "-DTRUTH_LIVE"), ("live.c",), made)
    return made


DEPTHS = Case("live", ("live.c",), ("depths", "64"))


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


def test_64_threads_at_64_depths_asleep_and_running(program: Path, tmp_path: Path) -> None:
    with running(DEPTHS, tmp_path, executable=program) as crash:
        found = document(pid_of(crash), "--explain")
        assert_truth(found, crash)
        tids = [thread["tid"] for thread in found["threads"]]
        assert tids[0] == int(pid_of(crash))
        assert len(tids) == 65
        depths = {sum(f["function"] == "descend" for f in t["frames"]) for t in found["threads"]}
        assert depths == set(range(65))
        assert found["source"]["warnings"] == []
        assert 0 < found["source"]["stopped"] < 0.5


def test_the_text_begins_with_the_leader_and_tells_of_the_stop(
    program: Path, tmp_path: Path
) -> None:
    case = Case("live", ("live.c",), ("depths", "2"))
    with running(case, tmp_path, executable=program) as crash:
        pid = pid_of(crash)
        whole, warnings = command(pid, "--explain")
        short, _ = command(pid, "--quiet", "--thread", pid)
    assert warnings == ""
    assert re.match(
        rf"program: {program} depths 2 \(pid {pid}\)\nstopped: \d+\.\d\d ms\n\nthread {pid} ", whole
    )
    assert len(re.findall("^thread ", whole, re.M)) == 3
    assert re.match(rf'thread {pid} "live":\n#0  0x\w+ depths\+0x\w+ \(live\)\n#1 .* main\+', short)


def test_again_and_again(program: Path, tmp_path: Path) -> None:
    case = Case("live", ("live.c",), ("depths", "2"))
    with running(case, tmp_path, executable=program) as crash:
        began = time.monotonic()
        printed, _ = command(pid_of(crash), "--json", "--every", "0.05", "--count", "4")
        assert time.monotonic() - began > 0.15
        assert [len(json.loads(line)["threads"]) for line in printed.splitlines()] == [3] * 4
        for line in printed.splitlines():
            validate(json.loads(line))
        text, _ = command(pid_of(crash), "--every", "0.01", "--count", "2")
        assert text.count("program: ") == 2
        for wrong in (["--count", "2"], ["--every", "1", "--record", "x"]):
            _, said = command(pid_of(crash), *wrong, code=2)
            assert "--every" in said


def test_what_there_was_no_time_for_is_said(program: Path, tmp_path: Path) -> None:
    """The stop ends when it has to; what was copied by then is shown: the innermost frames."""
    clock = [0.0]
    read = ptrace.read_memory

    def slow(pid: int, pieces: Any) -> int:
        clock[0] += 1
        return read(pid, pieces)

    with (
        running(DEPTHS, tmp_path, executable=program) as crash,
        patch.object(halt, "monotonic", lambda: clock[0]),
        patch.object(ptrace, "read_memory", slow),
        patch.object(copies, "_FIRST", 512),
    ):
        found = document(pid_of(crash), "--explain")
    assert found["source"]["stopped"] == 1
    [said] = found["source"]["warnings"]
    assert re.fullmatch(r"\d+ bytes of stacks are missing: not copied, .* --max-stop .*", said)
    ends = Ends(short=("memory-fault",), words=("--max-stop",), at_least=2)
    cut = {tid: replace(stack, ends=ends) for tid, stack in crash.stacks.items()}
    assert_truth(found, replace(crash, stacks=cut))
    assert sum(thread["end"]["reason"] == "memory-fault" for thread in found["threads"]) > 40


def test_after_a_stop_that_was_too_short_nobody_is_held(program: Path, tmp_path: Path) -> None:
    """Threads that had been asked to stop, and did not in time, can be asked again at once."""
    with running(DEPTHS, tmp_path, executable=program) as crash:
        for _ in range(2):
            errors = io.StringIO()
            with redirect_stdout(io.StringIO()), redirect_stderr(errors):
                unwind_live.main([pid_of(crash), "--max-stop", "0.0001"])
            assert "--max-stop" in errors.getvalue()
            resettle(crash)
            assert_truth(document(pid_of(crash)), crash)


def test_a_thread_that_waits_in_vfork_is_not_waited_for(tmp_path: Path) -> None:
    """It cannot be stopped, so of its registers pc and sp are known, and no more."""
    [case] = named(UNSTOPPABLE)
    with running(case, tmp_path) as crash:
        found = document(pid_of(crash), "--explain")
    assert found["source"]["stopped"] < 0.1
    [waiting] = [t for t in found["threads"] if "vfork" in (t["frames"][0]["function"] or "")]
    [said] = found["source"]["warnings"]
    wanted = (
        rf"thread {waiting['tid']} did not stop within .* ms, blocked in the kernel: only pc .*"
    )
    assert re.fullmatch(wanted, said)
    found["threads"].remove(waiting)
    assert crash.stacks.pop(waiting["tid"]).frames[0].names == ("vfork",)
    assert_truth(found, crash)


def test_a_file_that_does_not_fit_is_said_once_for_each_look(program: Path, tmp_path: Path) -> None:
    case = Case("live", ("live.c",), ("depths", "1"))
    with running(case, tmp_path, executable=program) as crash:
        options = ("--json", "-e", "/bin/true", "--every", "0.01", "--count", "2")
        printed, _ = command(pid_of(crash), *options)
    for line in printed.splitlines():
        [said] = json.loads(line)["source"]["warnings"]
        assert said.startswith("/bin/true: its build-id is ")
