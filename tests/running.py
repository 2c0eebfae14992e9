"""Programs that run: a case of tests/crashes.py in, its process, asleep where it would crash, out.

They are built with -DTRUTH_LIVE (tests/programs/truth.h) and keep the record of their calls as
those that crash do.
"""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests import crashes
from tests.crashes import Case, Crash
from tests.truth import Ends, State, expected, read_record

# They end by a fault of their own making, in a library or in no code at all, and cannot be kept.
FAULTS = {"abort.c", "overflow.c", "plt.c", "pointers.c", "vdso.c", "vsyscall.c"}
FAULTY_ARGUMENTS = {"entry", "prologue", "epilogue", "leaf", "tail", "abort"}
# A thread of it waits for its child in vfork(2), where it cannot be stopped: test_live.py has that.
UNSTOPPABLE = "vfork-parent"
PATIENCE = 20.0  # seconds

# The same program as another case's, and the same ways to its files: what the cores differ in
# does not matter here.
ALIKE = {
    *(f"neither-{level}{more}" for level in ("O0", "O1", "O3", "Os") for more in ("", "-stripped")),
    *(
        f"library-{fate}-{how}"
        for fate in ("unlinked", "replaced")
        for how in ("filter-3f", "gcore")
    ),
    *("recursion-clang", "lld-clang", "noreturn-call-is-last-clang", "vla-alloca-realigned-clang"),
    *("gcore", "debug-frame-zlib-gnu", "threads-clang", "two-executable-segments-lld"),
}

CASES = tuple(
    case
    for case in crashes.CASES
    if not FAULTS & set(case.sources)
    and not FAULTY_ARGUMENTS & set(case.arguments)
    and case.damage is None
    and case.name not in {UNSTOPPABLE, *ALIKE}
)


def build(case: Case, directory: Path) -> Path:
    """Compiles the case's program, with its libraries, so that it stays where it would crash."""
    libraries = [replace(lib, flags=(*lib.flags, "-DTRUTH_LIVE")) for lib in case.libraries]
    live = replace(case, flags=(*case.flags, "-DTRUTH_LIVE"), libraries=tuple(libraries))
    return crashes.build(live, directory)


@contextmanager
def running(case: Case, directory: Path, *, executable: Path | None = None) -> Iterator[Crash]:
    """The case's program, asleep, and the truth about its stacks.

    `core` of what comes back is /proc/PID; all of its threads are killed in the end.
    """
    executable = executable or build(case, directory)
    record = directory / "truth"
    words = [word.format(directory=directory) for word in case.arguments]
    environment = {**os.environ, "UNWIND_TRUTH": str(record), "MALLOC_ARENA_MAX": "1"}
    process = subprocess.Popen(
        [executable, *words],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        pid = _pid_of(_settled(process, record))
        ends = Ends() if case.libc == "glibc" else case.ends
        found = expected(record, executable, case.libc, case.nameless, ends)
        stacks = {stack.tid: replace(stack, crashed=False) for stack in found}
        yield Crash(case, directory, executable, Path(f"/proc/{pid}"), stacks)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _settled(process: subprocess.Popen[bytes], record: Path) -> int:
    """The id of the thread that would have crashed, once all threads are where they stay."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        try:
            threads = list(read_record(record))
        except (OSError, AssertionError, struct.error):  # it has just begun to write that
            threads = []
        for thread in threads:
            if thread.state == State.CRASHED and state_of(thread.tid) == "S":
                return thread.tid
        time.sleep(0.005)
    raise AssertionError(f"{process.args} does not come to its end")


def resettle(crash: Crash) -> None:
    """Until all who sleep do so again, after a stop: their system calls have to begin anew."""
    end = time.monotonic() + PATIENCE
    waiting = {
        thread.tid: thread.pc
        for thread in read_record(crash.directory / "truth")
        if thread.state in (State.PARKED, State.CRASHED) and thread.pc
    }
    while waiting and time.monotonic() < end:
        for tid, pc in list(waiting.items()):
            words = (crash.core / f"task/{tid}/syscall").read_text().split()
            if words[0] != "running" and int(words[-1], 16) == pc:
                del waiting[tid]
        time.sleep(0.005)
    assert not waiting


def state_of(tid: int) -> str:
    """The state letter of a thread, "" where it is no longer."""
    try:
        return Path(f"/proc/{tid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _pid_of(tid: int) -> int:
    lines = Path(f"/proc/{tid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Tgid:"))
