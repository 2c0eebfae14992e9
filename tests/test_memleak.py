"""unwind-memleak on this machine's own kernel: what it prints, counts and leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crashes import compile_c
from tests.events import need_bpf
from tests.support import ROOT, as_nobody, need, python, validate
from unwind.bpf.objects import built_in
from unwind.errors import SourceError
from unwind.events.refusals import has_kprobes

MODULE = "unwind.cli.memleak"
EVENT = re.compile(r"\[event\] pid=(\d+) comm=(\S+) pc=0x[0-9a-f]+")
FRAME = re.compile(
    r"  #(\d+) pc=0x[0-9a-f]+ sp=(?:0x[0-9a-f]+|-) ra=(0x[0-9a-f]+|-) flags=([\w,]+) (\S+) ?.*"
)


@contextmanager
def watching(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it is attached: its own child `true` is the first event that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def attached(process: subprocess.Popen[str]) -> None:
    """Returns when the programs are in the kernel: their names are among its links'."""
    end = time.monotonic() + 20
    handles = Path(f"/proc/{process.pid}/fdinfo")
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        for name in os.listdir(handles):
            try:
                text = (handles / name).read_text()
            except OSError:
                continue
            if "link_type:" in text:
                return
        time.sleep(0.01)
    raise AssertionError("it does not attach")


def counts(printed: str) -> dict[str, int]:
    """The closing counts."""
    lines = [line for line in printed.splitlines() if line[:1] not in ("[", " ")]
    return {name: int(n) for name, n in re.findall(r"^(\w+): (\d+)", "\n".join(lines), re.M)}


def stacks_of(printed: str) -> list[tuple[int, str, list[tuple[str, str, str]]]]:
    """pid, comm and the frames (ra, flags, place) of each event."""
    found: list[tuple[int, str, list[tuple[str, str, str]]]] = []
    for line in printed.splitlines():
        if event := EVENT.fullmatch(line):
            found.append((int(event[1]), event[2], []))
        elif frame := FRAME.fullmatch(line):
            assert int(frame[1]) == len(found[-1][2])
            found[-1][2].append((frame[2], frame[3], frame[4]))
        else:
            assert line[:1] not in ("[", " "), f"an odd line: {line}"
    return found


@pytest.fixture
def bpf() -> None:
    need_bpf()


@pytest.mark.usefixtures("bpf")
def test_a_thousand_short_lives_have_their_stacks_and_names() -> None:
    with watching("--symbol", "do_exit", "--duration", "60") as process:
        attached(process)
        pids = set()
        for _ in range(1000):
            child = subprocess.Popen(["/bin/true"])
            pids.add(child.pid)
            child.wait()
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0
    ours = [event for event in stacks_of(printed) if event[0] in pids]
    assert len(ours) == 1000
    for _, comm, frames in ours:
        assert comm == "true"
        assert frames[0][2].startswith("_exit+")
        assert {"exit", "__libc_start_main"} <= {place.partition("+")[0] for *_, place in frames}
        assert frames[-1][0] == "-"
        assert {flags for _, flags, _ in frames} == {"context", "cfi"}
    found = counts(printed)
    assert found["events"] == len(stacks_of(printed))
    assert found["events"] == found["complete"] + found["partial"]
    assert found["dropped"] == 0
    if not has_kprobes():
        assert "no kprobes" in said
        assert "sched_process_exit" in said


@pytest.mark.usefixtures("bpf")
def test_quiet_prints_the_counts_alone() -> None:
    with watching("--symbol", "do_exit", "--duration", "1.5", "--quiet") as process:
        attached(process)
        for _ in range(10):
            subprocess.run(["/bin/true"], check=True)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "[event]" not in printed
    assert counts(printed)["complete"] >= 10


@pytest.mark.usefixtures("bpf")
def test_events_are_recorded_and_replayed_to_the_bit(tmp_path: Path) -> None:
    file = tmp_path / "events.unwind"
    with watching(
        *("--symbol", "do_exit", "--duration", "60", "--json", "--record", str(file))
    ) as process:
        attached(process)
        children = [subprocess.Popen(["/bin/true"]) for _ in range(5)]
        for child in children:
            assert child.wait() == 0
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    whole = json.loads(printed)
    validate(whole)
    done = python("-m", "unwind.cli.core", "--json", file)
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout)
    assert whole["source"].pop("kind") == "ringbuf"
    assert alone["source"].pop("kind") == "snapshot"
    assert whole["source"].pop("path")
    assert alone["source"].pop("path") == str(file)
    assert whole == alone
    ours = [thread for thread in whole["threads"] if thread["pid"] in {c.pid for c in children}]
    assert len(ours) == 5
    for thread in ours:
        assert thread["end"] == {"reason": "outermost"}
        assert {"exit", "__libc_start_main"} <= {frame["function"] for frame in thread["frames"]}
        assert thread["event"]
        assert thread["time"] > 0
    assert re.search(r"^events: \d+$", said, re.M)


@pytest.mark.usefixtures("bpf")
def test_without_a_stack_there_is_one_frame_and_a_warning(tmp_path: Path) -> None:
    need("gcc")
    compile_c("gcc", ("-O2",), ("lost.c",), tmp_path / "lost")
    with watching("--symbol", "do_exit", "--duration", "60") as process:
        attached(process)
        child = subprocess.Popen([tmp_path / "lost"])
        assert child.wait() == 0
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0
    [frames] = [event[2] for event in stacks_of(printed) if event[0] == child.pid]
    assert [(ra, flags) for ra, flags, _ in frames] == [("-", "context,partial")]
    assert frames[0][2].startswith("main+")
    assert f"[warn] open /proc/{child.pid}/mem failed\n" in said
    assert counts(printed)["partial"] >= 1
    assert re.search(r"^partial: \d+ \(.*memory-fault \d+", printed, re.M)


@pytest.mark.usefixtures("bpf")
def test_without_privileges_it_says_what_helps() -> None:
    done = as_nobody(MODULE, "--symbol", "do_exit", "--duration", "1")
    assert done.returncode == 2
    assert "only the privileged" in done.stderr
    assert "sudo" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_objects_it_says_how_to_come_by_them() -> None:
    with pytest.raises(SourceError, match="not built") as error:
        built_in("another")
    assert "apt install clang" in error.value.hint


def test_without_a_mode_it_names_them() -> None:
    done = python("-m", MODULE)
    assert done.returncode == 2
    assert "--symbol" in done.stderr
    assert "--bpf" in done.stderr
