"""unwind-profile on this machine's own kernel: profiles of what runs, nothing in between."""

from __future__ import annotations

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
from tests.profile_readers import Stacks, read_firefox, read_folded
from tests.support import ROOT, as_nobody, need, python
from tests.test_memleak import attached

MODULE = "unwind.cli.profiler"
SECONDS = "0.4"  # for each profile: at 500 Hz there is enough in it, however slow the machine
THREADS = 3


@pytest.fixture(scope="module")
def bpf() -> None:
    need_bpf()


@contextmanager
def busy(directory: Path, *words: str, name: str = "busy") -> Iterator[subprocess.Popen[bytes]]:
    """The program, built without frame pointers, once it computes."""
    need("gcc")
    program = directory / name
    compile_c("gcc", ("-O2", "-fomit-frame-pointer", "-pthread"), ("busy.c",), program)
    with subprocess.Popen([program, *words]) as process:
        try:
            end = time.monotonic() + 20
            wanted = 1 + int(words[0] if words else 0)
            while len(os.listdir(f"/proc/{process.pid}/task")) < wanted and time.monotonic() < end:
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def profiled(*words: str, seconds: str = SECONDS) -> subprocess.CompletedProcess[str]:
    ran = python("-m", MODULE, "-F", "500", "--duration", seconds, *words)
    assert ran.returncode == 0, ran.stderr
    return ran


def assert_true(stacks: Stacks, threads: int = THREADS) -> None:
    """Each stack is one of those that the program has; there are some of several threads."""
    depths = {"busy": 3, **{f"busy {n}": 4 + n for n in range(threads)}}
    met = set()
    for stack in stacks:
        assert "truncated" not in stack[0], stack
        thread, own = stack[0], stack[stack.index("run") :]
        assert own[:-1] == ("run", *["dive"] * depths[thread]), stack
        assert own[-1] == "spin"
        assert ("main" in stack) is (thread == "busy")
        met.add(thread)
    assert len(met) > 1, met


def counts(said: str) -> tuple[int, int]:
    found = re.search(r"unwind-profile: (\d+) samples, (\d+) dropped", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


@pytest.mark.usefixtures("bpf")
def test_each_stack_of_each_thread_is_the_programs_own(tmp_path: Path) -> None:
    with busy(tmp_path, str(THREADS)) as process:
        ran = profiled("-p", str(process.pid), "--folded", "--strict")
    stacks = read_folded(ran.stdout)
    assert_true(stacks)
    samples, dropped = counts(ran.stderr)
    assert dropped == 0
    assert sum(stacks.values()) == samples * (1_000_000_000 // 500)


@pytest.mark.usefixtures("bpf")
def test_formats_say_the_same_of_a_process(tmp_path: Path) -> None:
    with busy(tmp_path, str(THREADS)) as process:
        pid = str(process.pid)
        summary = profiled("-p", pid).stdout
        firefox = read_firefox(profiled("-p", pid, "--firefox").stdout)
        pprof = tmp_path / "pprof"
        profiled("-p", pid, "--pprof", "-o", str(pprof))
    assert re.search(r"cpu-clock: \d+ samples, .*, 100.00% with a complete stack", summary)
    assert re.search(r"100.00% +\d.* spin \(busy\)", summary)
    assert {stack[-1] for stacks in firefox.values() for stack in stacks} == {"spin"}
    assert pprof.read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.usefixtures("bpf")
def test_all_processes_but_oneself_are_met(tmp_path: Path) -> None:
    with busy(tmp_path, "1"):
        command = [
            sys.executable,
            "-m",
            MODULE,
            "-a",
            "-F",
            "500",
            "--folded",
            "--duration",
            SECONDS,
        ]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            out, said = process.communicate(timeout=60)
    assert counts(said)[0] > 0
    stacks = read_folded(out)
    assert_true(Stacks({s: n for s, n in stacks.items() if s[0].startswith("busy")}), 1)
    assert not [stack for stack in stacks if any("_lookup_fast" in name for name in stack)]


@pytest.mark.usefixtures("bpf")
def test_threads_are_chosen_by_name_and_number(tmp_path: Path) -> None:
    with busy(tmp_path, str(THREADS)) as process:
        pid = str(process.pid)
        named = read_folded(profiled("-p", pid, "--folded", "--comm", "busy 1").stdout)
        ran = profiled("-p", pid, "--folded", "--tid", pid)
    assert {stack[0] for stack in named} == {"busy 1"}
    assert {stack[0] for stack in read_folded(ran.stdout)} == {"busy"}
    assert re.search(r"[1-9]\d* not asked for", ran.stderr)


@pytest.mark.usefixtures("bpf")
def test_what_comes_and_goes_has_its_names() -> None:
    """Of processes that live for some milliseconds, after the profile has begun."""
    command = [sys.executable, "-m", MODULE, "-a", "-F", "2000", "--folded", "--duration", "60"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            attached(process)
            for _ in range(30):
                subprocess.run(["/bin/sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"])
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    shells = {s: n for s, n in read_folded(out).items() if s[0] in ("sh", "dash")}
    inside = [n for s, n in shells.items() if "__libc_start_main" in s]
    assert sum(inside) > 0.5 * sum(shells.values()) > 0  # the rest: exec and the dynamic linker


@pytest.mark.usefixtures("bpf")
def test_what_does_not_fit_the_ring_is_counted(tmp_path: Path) -> None:
    """The reader stands still for longer than a small ring has room for."""
    with busy(tmp_path, "1") as process:
        words = ["-p", str(process.pid), "-F", "5000", "--ring-size", "1", "--stack-size", "1024"]
        command = [sys.executable, "-m", MODULE, *words, "--duration", "60", "--folded"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as profiler:
            try:
                attached(profiler)
                profiler.send_signal(signal.SIGSTOP)
                time.sleep(1)
                profiler.send_signal(signal.SIGCONT)
                profiler.send_signal(signal.SIGINT)
                _, said = profiler.communicate(timeout=60)
            finally:
                profiler.kill()
    assert counts(said)[1] > 0


@pytest.mark.usefixtures("bpf")
def test_a_stack_that_was_cut_has_our_own_remedy(tmp_path: Path) -> None:
    with busy(tmp_path) as process:
        found = profiled("-p", str(process.pid), "--max-frames", "2").stdout
    assert "-> allow more frames (--max-frames)" in found
    assert "perf record" not in found


@pytest.mark.usefixtures("bpf")
def test_a_recording_is_compared_with(tmp_path: Path) -> None:
    need("perf")
    with busy(tmp_path, "1") as process:
        data = tmp_path / "perf.data"
        options = "-q -e cpu-clock --call-graph dwarf".split()
        subprocess.run(
            ["perf", "record", *options, "-p", str(process.pid), "-o", data, "--", "sleep", "0.3"],
            check=True,
            capture_output=True,
        )
        picture = tmp_path / "picture.html"
        words = ("-p", str(process.pid), "--flamegraph", str(picture))
        profiled(*words, "--differential", str(data))
    assert '"base":[' in picture.read_text().replace(" ", "")


def test_what_cannot_be_done_is_said() -> None:
    for words, reason in (
        ([], "-p PID, or -a"),
        (["-a", "-F", "1000000"], "no more than 100000"),
        (["-a", "--stack-size", "1"], "not between 4 kB and 8 MB"),
    ):
        ran = python("-m", MODULE, *words)
        assert ran.returncode == 2
        assert reason in ran.stderr


@pytest.mark.usefixtures("bpf")
def test_a_process_that_does_not_run_leaves_no_profile() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            ran = python("-m", MODULE, "-p", str(process.pid), "--duration", "0.2")
        finally:
            process.kill()
    assert ran.returncode == 2
    assert "no sample" in ran.stderr


def test_an_ordinary_user_is_refused() -> None:
    ran = as_nobody(MODULE, "-a", "--duration", "1")
    assert ran.returncode == 2
    assert "lets only the privileged load BPF programs" in ran.stderr
    assert "sudo" in ran.stderr
