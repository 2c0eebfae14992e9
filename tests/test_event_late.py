"""A stack that was not copied at its event: as it lies there now, if that is still the same."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.running import state_of
from unwind.events.late import late_stack


def where(pid: int) -> tuple[int, int]:
    """pc and sp of a sleeping process."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return int(words[-1], 16), int(words[-2], 16)


def test_of_a_thread_that_did_not_move_it_is_read_and_of_another_not() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            end = time.monotonic() + 10
            while state_of(process.pid) != "S" or b"sleep" not in _program(process.pid):
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.05)
            pid, (pc, sp) = process.pid, where(process.pid)
            start = sp & -4096
            found = late_stack(pid, pid, pc, sp, start, 1 << 20)
            assert found is not None
            assert 0 < len(found) < 1 << 20, "it ends where the stack does"
            with open(f"/proc/{pid}/mem", "rb") as memory:
                assert os.pread(memory.fileno(), len(found), start) == found
            assert late_stack(pid, pid, pc, sp, start, 4096) == found[:4096]
            assert late_stack(pid, pid, pc + 1, sp, start, 4096) is None
            assert late_stack(pid, pid, pc, sp - 8, start, 4096) is None
        finally:
            process.kill()


def _program(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_of_one_that_has_ended_the_memory_cannot_be_had() -> None:
    process = subprocess.Popen(["true"])
    end = time.monotonic() + 10
    while state_of(process.pid) != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(OSError, match="No such process"):
        late_stack(process.pid, process.pid, 1, 2, 0, 4096)
    process.wait()
    with pytest.raises(OSError, match="No such file"):
        late_stack(process.pid, process.pid, 1, 2, 0, 4096)
