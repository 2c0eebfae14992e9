"""What unwind-live does to its target: nothing that it would notice, whatever happens to us."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.crashes import compile_c
from tests.running import state_of
from tests.support import need
from unwind.arch.x86_64 import ARCH
from unwind.errors import SourceError
from unwind.files import Files
from unwind.live import halt as halting
from unwind.live import proc, ptrace
from unwind.live.stacks import StackPlan
from unwind.transports.process import TRANSPORT
from unwind.unwinder import unwind

STOPS = 1000
NONE = Files()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc")
    made = tmp_path_factory.mktemp("live") / "live"
    compile_c("gcc", ("-O2", "-fomit-frame-pointer", "-pthread", "-DTRUTH_LIVE"), ("live.c",), made)
    return made


@contextmanager
def started(program: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The program, once it says that it is ready."""
    pipe = subprocess.PIPE
    # In a group of its own: SIGTSTP stops nobody whose group is orphaned (POSIX.1-2017 §2.4.3), as
    # ours is where no shell has started it.
    process = subprocess.Popen(
        [program, *words], stdin=pipe, stdout=pipe, text=True, cwd="/", process_group=0
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def ended(process: subprocess.Popen[str]) -> dict[str, int]:
    """What a program that `works` has counted, if it has noticed nothing."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    said = process.stdout.read()
    assert process.wait(timeout=20) == 0, said
    assert said.startswith("fine ")
    return {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", said)}


def threads_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


def assert_let_go(pid: int) -> None:
    """Fails unless nobody traces the process and each of its threads runs or sleeps by itself."""
    for tid in threads_of(pid):
        try:
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        assert "\nTracerPid:\t0\n" in text
        assert state_of(tid) in ("R", "S", "D", "Z", "X", ""), text


def test_thousands_of_stops_do_no_harm(program: Path) -> None:
    with started(program, "works") as process, proc.Proc(process.pid) as target:
        plan = StackPlan(ARCH)
        for _ in range(STOPS):
            seen = halting.halt(target, plan, 1)
            assert (len(seen.registers), seen.late, seen.refused) == (5, [], {})
            os.close(target._open.pop())  # its memory
        assert_let_go(process.pid)
        counts = ended(process)
    assert min(counts["exchanged"], counts["slept"], counts["computed"]) > 10


@contextmanager
def signals_in_between(pid: int) -> Iterator[list[int]]:
    """Sends a signal to a thread that is seized and not yet asked to stop: so it stops for that.

    The list has what the thread is given when it is let go.
    """
    given: list[int] = []
    interrupt, detach = ptrace.interrupt, ptrace.detach

    def signalling(tid: int) -> None:
        if tid == pid:
            os.kill(pid, signal.SIGRTMIN)
            time.sleep(0.001)
        interrupt(tid)

    def noting(tid: int, number: int = 0) -> None:
        given.append(number)
        detach(tid, number)

    with patch.multiple(ptrace, interrupt=signalling, detach=noting):
        yield given


def test_each_signal_arrives_once_and_none_is_lost(program: Path) -> None:
    with started(program, "works") as process:
        with signals_in_between(process.pid) as given:
            for _ in range(60):
                TRANSPORT.open(str(process.pid), NONE).close()
        assert given.count(signal.SIGRTMIN) > 30
        time.sleep(0.1)
        assert ended(process)["signals"] == 60


@pytest.mark.parametrize("last", [signal.SIGSTOP, signal.SIGTSTP])
def test_a_stopped_process_stays_stopped(program: Path, last: signal.Signals) -> None:
    with started(program, "works") as process:
        process.send_signal(last)
        _until(lambda: {state_of(tid) for tid in threads_of(process.pid)} == {"T"})
        for _ in range(20):
            with TRANSPORT.open(str(process.pid), NONE) as source:
                assert len(source.threads) == 5
                assert unwind(source.threads[0]).end == "outermost"
        time.sleep(0.02)
        assert {state_of(tid) for tid in threads_of(process.pid)} == {"T"}
        process.send_signal(signal.SIGCONT)
        ended(process)


def test_a_signal_that_stops_does_so_after_a_stop_of_ours(program: Path) -> None:
    with started(program, "works") as process:
        for _ in range(50):
            process.send_signal(signal.SIGSTOP)
            TRANSPORT.open(str(process.pid), NONE).close()
            _until(lambda: {state_of(tid) for tid in threads_of(process.pid)} == {"T"})
            process.send_signal(signal.SIGCONT)
            TRANSPORT.open(str(process.pid), NONE).close()
            _until(lambda: "T" not in {state_of(tid) for tid in threads_of(process.pid)})
        ended(process)


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.001)


# ------------------------------------------------------------- whatever happens to us

CALLS = ("seize", "interrupt", "wait", "regset", "read_memory", "detach")


class Step:
    """Counts the steps of a halt, and does something at one of them."""

    def __init__(self, number: int, deed: Callable[[], object]):
        self.count, self.number, self.deed = 0, number, deed

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.number:
            self.deed()


@contextmanager
def steps(number: int, deed: Callable[[], object]) -> Iterator[Step]:
    """`deed` is done before step `number` of a halt: a call of ptrace, a look into /proc."""
    step = Step(number, deed)

    def stepping(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            step()
            return real(*arguments, **more)

        return call

    with (
        patch.multiple(ptrace, **{name: stepping(getattr(ptrace, name)) for name in CALLS}),
        patch.object(proc.Proc, "read", stepping(proc.Proc.read)),
        patch.object(proc.Proc, "threads", stepping(proc.Proc.threads)),
    ):
        yield step


def steps_of(pid: int) -> int:
    with steps(0, lambda: None) as step:
        TRANSPORT.open(str(pid), NONE).close()
    return step.count


class Surprise(Exception):
    pass


def test_the_target_runs_on_after_an_error_at_any_step(program: Path) -> None:
    def fail() -> None:
        raise Surprise

    with started(program, "works") as process:
        surprised = 0
        for number in range(1, steps_of(process.pid) + 5):
            with steps(number, fail):
                try:
                    TRANSPORT.open(str(process.pid), NONE).close()
                except Surprise:
                    surprised += 1
            _until(lambda: _is_let_go(process.pid))
        assert surprised > 25
        ended(process)


def _is_let_go(pid: int) -> bool:
    """The kernel lets go of what a thread of ours has seized when that has ended: soon."""
    try:
        assert_let_go(pid)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_the_target_runs_on_when_we_are_killed_at_any_step(
    program: Path, number: signal.Signals
) -> None:
    """In forks of this process: to start an interpreter for each would take a minute."""
    with started(program, "works") as process:
        done, last = 0, min(steps_of(process.pid) for _ in range(3))  # it varies how often we wait
        some = range(1, last + 1, 1 if number == signal.SIGKILL else 3)
        for step in some:
            done += _killed(process.pid, step, number)
            _until(lambda: _is_let_go(process.pid))
        assert done > max(0.5 * len(some), 8)
        ended(process)


def _killed(pid: int, step: int, number: int) -> bool:
    """Whether a fork of ours has ended by that signal while it halted the process."""
    child = os.fork()
    if child == 0:
        try:
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            if number == signal.SIGINT:
                signal.signal(number, signal.default_int_handler)
            with steps(step, lambda: os.kill(os.getpid(), number)):
                TRANSPORT.open(str(pid), NONE).close()
            os._exit(0)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -number, 130), f"at step {step}: {code}"
    return code != 0


def test_when_we_are_suspended_the_target_runs_on_first(program: Path) -> None:
    """^Z in the middle of it: that is obeyed once nobody stands still because of us."""
    with started(program, "works") as process:
        last = min(steps_of(process.pid) for _ in range(3))
        for step in range(2, last, 5):
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)  # nobody suspends a group that no shell looks after
                with steps(step, lambda: os.kill(os.getpid(), signal.SIGTSTP)):
                    TRANSPORT.open(str(process.pid), NONE).close()
                os._exit(0)
            _, status = os.waitpid(child, os.WUNTRACED)
            try:
                assert os.WIFSTOPPED(status), f"not suspended at step {step}"
                assert_let_go(process.pid)
            finally:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        ended(process)


def test_when_we_are_killed_the_target_gets_its_signal_all_the_same(program: Path) -> None:
    with started(program, "works") as process:
        held = 0
        for _ in range(30):
            child = os.fork()
            if child == 0:
                with signals_in_between(process.pid):
                    ptrace.detach = lambda tid, number: tid == process.pid and os._exit(number)
                    TRANSPORT.open(str(process.pid), NONE)
            held += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signal.SIGRTMIN
        assert held > 10
        _until(lambda: _is_let_go(process.pid))
        time.sleep(0.1)
        assert ended(process)["signals"] == 30


# --------------------------------------------------- a target that does not hold still


@contextmanager
def may_have_ended() -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        if "ended" not in str(error):
            raise


def test_threads_that_are_born_meanwhile_are_seen(program: Path) -> None:
    """After the stop there is no thread that was not asked to: mothers make them all the time."""
    with started(program, "births") as process:
        missed: list[set[int]] = []
        found: list[int] = []
        real = halting._Halt._look

        def look(self: Any) -> None:
            alive = {tid for tid in threads_of(process.pid) if state_of(tid) not in ("Z", "X", "")}
            missed.append(alive - set(self.signals))
            found.append(len(self.signals))
            real(self)

        with patch.object(halting._Halt, "_look", look):
            for _ in range(150):
                with TRANSPORT.open(str(process.pid), NONE) as source:
                    assert source.warnings == []
        assert missed == [set()] * 150
        assert min(found) >= 4
        assert max(found) > 4
        assert_let_go(process.pid)


def test_a_process_that_forks_can_be_read(program: Path) -> None:
    with started(program, "forks") as process:
        for _ in range(150):
            with TRANSPORT.open(str(process.pid), NONE) as source:
                assert len(source.threads) == 1
                assert source.warnings == []
        assert process.poll() is None


def test_a_process_that_execs_can_be_read(program: Path) -> None:
    """Each of its programs has other threads and lies elsewhere; it gets to its end."""
    command = [program, "execs", "1000"]
    pipe = subprocess.PIPE
    seen, wrong, tries = 0, [], 0
    while seen < 50 and tries < 20:
        tries += 1
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, text=True) as process:
            while process.poll() is None:
                with may_have_ended(), TRANSPORT.open(str(process.pid), NONE) as source:
                    for stack in map(unwind, source.threads):
                        seen += 1
                        if stack.end != "outermost":
                            wrong.append(stack.detail)
            assert process.stdout is not None
            assert process.stdout.read() == "over\n"
        assert process.returncode == 9
    assert seen >= 50
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "running"])
def test_a_process_that_ends_is_no_surprise(program: Path, stop: bool) -> None:
    """Killed by somebody before each step, it is read or said to have ended."""
    for number in range(1, 60, 2 if stop else 7):  # BPF programs take a while to load
        with (
            started(program, "works") as process,
            steps(number, process.kill),
            may_have_ended(),
        ):
            TRANSPORT.open(str(process.pid), NONE, stop=stop).close()


def test_a_leader_that_has_ended_is_no_error(program: Path) -> None:
    with started(program, "works") as process:
        with pytest.raises(SourceError, match="there is none"):
            TRANSPORT.open("4194303", NONE)
        process.kill()
        _until(lambda: state_of(process.pid) == "Z" and threads_of(process.pid) == [process.pid])
        with pytest.raises(SourceError, match=f"its parent, {os.getpid()}, did not wait for it"):
            TRANSPORT.open(str(process.pid), NONE)
        assert process.wait() == -signal.SIGKILL
