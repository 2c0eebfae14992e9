"""Live processes that run code of their own making."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.crashes import compile_c
from tests.running import state_of
from tests.support import need, python


def stack_of(pid: int) -> tuple[list[str | None], str]:
    """The functions of the leader's frames, None in no file, and why there are no more."""
    ran = python("-m", "unwind.cli.live", "--json", "--thread", str(pid), str(pid))
    assert ran.returncode == 0, ran.stderr
    [thread] = json.loads(ran.stdout)["threads"]
    return [frame["function"] for frame in thread["frames"]], thread["end"]["reason"]


def test_a_stack_goes_on_through_code_that_was_made_at_run_time(tmp_path: Path) -> None:
    need("gcc")
    program = tmp_path / "program"
    compile_c("gcc", ("-O2", "-fomit-frame-pointer"), ("jit.c",), program)
    with subprocess.Popen([program]) as process:
        try:
            end = time.monotonic() + 10
            while state_of(process.pid) != "S" and time.monotonic() < end:
                time.sleep(0.01)
            names, reason = stack_of(process.pid)
        finally:
            process.kill()
    assert names[1:6] == ["hold", None, None, "run", "main"]
    assert reason == "outermost"


def test_a_stack_goes_on_through_what_node_has_compiled() -> None:
    """The page of the code is writable now and then: V8 goes on compiling."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")  # no tool of these tests
    code = "setInterval(()=>{let s=0;for(let i=0;i<1e6;i++)s+=i},1)"
    with subprocess.Popen([node, "-e", code]) as process:
        try:
            time.sleep(0.5)
            found = [stack_of(process.pid) for _ in range(4)]
        finally:
            process.kill()
    through = [(names, reason) for names, reason in found if None in names]
    assert all(reason == "outermost" for names, reason in through), through
