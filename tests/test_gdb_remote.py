"""unwind-remote against real stubs: gdbserver, qemu-user of each processor, qemu-system.

The truth is what the program has written down of its own calls, as for its core.
"""

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
from typing import Any

import pytest

from tests import crashes, foreign
from tests.crashes import Case, Crash
from tests.foreign import Target
from tests.stubs import gdbserver, qemu_system, qemu_user
from tests.support import ROOT, complaints, need, python, validate
from tests.test_crashes import assert_truth
from tests.truth import expected

COMMAND = ("-m", "unwind.cli.remote")
X86_64 = Target("x86_64", "x86_64-linux-gnu", "qemu-x86_64-static", "x86_64", True)
FRAME = re.compile(r"^#\d+ +0x0*([0-9a-f]+) (.*?)\+0x", re.M)


def remote(stub: str, *options: str, **environment: str) -> str:
    ran = python(*COMMAND, stub, *options, **environment)
    assert (ran.returncode, complaints(ran.stderr)) == (0, "")
    return ran.stdout


def document(stub: str, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(remote(stub, "--json", *options))
    validate(found)
    assert found["source"]["kind"] == "gdb-remote"
    return found


def assert_kept(snapshot: Path, found: dict[str, Any]) -> None:
    """Fails unless the snapshot alone gives the document that was found."""
    ran = python("-m", "unwind.cli.core", snapshot, "--json")
    assert (ran.returncode, complaints(ran.stderr)) == (0, "")
    alone = json.loads(ran.stdout)
    assert alone["source"]["kind"] == "snapshot"
    assert (alone["threads"], alone["modules"]) == (found["threads"], found["modules"])


def environment(record: Path) -> dict[str, str]:
    return {"UNWIND_TRUTH": str(record), "MALLOC_ARENA_MAX": "1"}


def crash_of(case: Case, executable: Path, record: Path) -> Crash:
    """The truth about a program that has crashed, without a core."""
    stacks = expected(record, executable, case.libc, case.nameless, case.ends)
    directory = executable.parent
    return Crash(case, directory, executable, record, {stack.tid: stack for stack in stacks})


NATIVE = ("recursion", "threads", "neither-O2-stripped", "static-pie", "noexcept", "musl", "dlopen")


@pytest.mark.parametrize("name", NATIVE)
def test_behind_gdbserver_every_stack_is_the_recorded_one(name: str, tmp_path: Path) -> None:
    [case] = [case for case in crashes.CASES if case.name == name]
    executable = crashes.build(case, tmp_path)
    record = tmp_path / "truth"
    words = [word.format(directory=tmp_path) for word in case.arguments]
    with gdbserver(str(executable), *words, **environment(record)) as (stub, pid):
        found = document(stub, "--wait", "--stay", "--record", str(tmp_path / "snapshot"))
        assert_kept(tmp_path / "snapshot", found)
        assert found["source"]["pid"] == pid
        assert found["source"]["command"] == str(executable)
        assert_truth(found, crash_of(case, executable, record))
        # It stood still, so the next one sees the same, in text too.
        assert document(stub, "--stay")["threads"] == found["threads"]
        thread = found["threads"][0]
        text = remote(stub, "--thread", str(thread["tid"]))
        assert [f"0x{pc}" for pc, _ in FRAME.findall(text)] == [f["pc"] for f in thread["frames"]]


QEMU = [
    (target, name)
    for target in (foreign.ARM64, foreign.MIPSEL, foreign.MIPS)
    for name in ("recursion", "neither-stripped", "threads", "static")
]


@pytest.mark.parametrize(("target", "name"), QEMU, ids=str)
def test_behind_qemu_every_stack_is_the_recorded_one(
    target: Target, name: str, tmp_path: Path
) -> None:
    [case] = [case for case in foreign.CASES if case.name == f"{target}-{name}"]
    executable = foreign.build(case, tmp_path)
    _check_under_qemu(case, target, executable, ("--sysroot", target.sysroot))


def test_behind_qemu_of_this_processor_every_stack_is_the_recorded_one(tmp_path: Path) -> None:
    [case] = [case for case in crashes.CASES if case.name == "recursion"]
    executable = crashes.build(case, tmp_path)
    native = Target("x86_64", "", "qemu-x86_64-static", "x86_64", True)
    _check_under_qemu(case, native, executable, ())


def _check_under_qemu(
    case: Case, target: Target, executable: Path, options: tuple[str, ...]
) -> None:
    record = executable.parent / "truth"
    words = [word.format(directory=executable.parent) for word in case.arguments]
    with qemu_user(target, executable, *words, **environment(record)) as (stub, _):
        snapshot = executable.with_name("snapshot")
        kept = ("--record", str(snapshot))
        found = document(stub, "--wait", "-e", str(executable), *options, *kept)
        assert_kept(snapshot, found)
        whole = executable.with_name("program.whole")
        named = whole if whole.exists() else executable
        crash = crash_of(case, named, record)
        stacks = foreign.without_isa_bits(target, crash.stacks.values())
        made = {stack.tid: stack for stack in stacks}
        assert_truth(found, Crash(case, crash.directory, executable, record, made))


# ------------------------------------------------------------------- the target goes on, or stays


@pytest.fixture(scope="module")
def sleeper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that waits for a line, then says `done` and ends with code 7."""
    need("gcc")
    directory = tmp_path_factory.mktemp("sleeper")
    source = directory / "sleeper.c"
    source.write_text(
        "#include <stdio.h>\n"
        "__attribute__((noinline)) int waits(void) { int c = getchar(); return c + 1; }\n"
        'int main(void) { int c = waits(); puts("done"); fflush(stdout); return c ? 7 : 8; }\n'
    )
    subprocess.run(["gcc", "-O1", "-g0", source, "-o", directory / "sleeper"], check=True)
    return directory / "sleeper"


@contextmanager
def started(sleeper: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, once it waits for its line.

    gdbserver interrupts a process by its process group: it must have one of its own.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sleeper], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 20
        status = Path(f"/proc/{process.pid}/status")
        # Before `main` it sleeps for nobody.
        while "State:\tS" not in status.read_text() or "sleeper" not in status.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process


def test_a_process_goes_on_after_its_stack_was_read(sleeper: Path) -> None:
    with started(sleeper) as process:
        with gdbserver("--attach", str(process.pid)) as (stub, _):
            text = remote(stub)
        said, _ = process.communicate("x\n", timeout=20)
    assert (said, process.returncode) == ("done\n", 7)
    assert re.search(r"#\d+ +0x\w+ waits\+.*\n#\d+ +0x\w+ main\+", text), text
    assert f"(pid {process.pid})" in text
    assert "signal:" not in text


def test_an_interrupt_ends_the_wait(sleeper: Path) -> None:
    with started(sleeper) as process:
        with gdbserver("--attach", str(process.pid)) as (stub, _):
            command = subprocess.Popen(
                [sys.executable, *COMMAND, stub, "--wait"],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            time.sleep(1)
            command.send_signal(signal.SIGINT)
            text, _ = command.communicate(timeout=20)
        said, _ = process.communicate("x\n", timeout=20)
    assert "waits+" in text
    assert (said, process.returncode) == ("done\n", 7)


def test_a_program_that_ends_meanwhile_is_an_error(tmp_path: Path) -> None:
    with gdbserver("/bin/true") as (stub, _):
        ran = python(*COMMAND, stub, "--wait")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "the program has ended with exit code 0" in ran.stderr


def test_a_second_debugger_is_told_so(sleeper: Path) -> None:
    ran = python(*COMMAND, "localhost:1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "cannot connect: connection refused" in ran.stderr


def test_under_qemu_the_program_goes_on(sleeper: Path) -> None:
    with qemu_user(X86_64, sleeper) as (stub, process):
        assert "_start+" in remote(stub, "-e", str(sleeper))
        assert process.wait(20) in (7, 8)


# ----------------------------------------------------------------------------- what has no Linux

BARE = """
__attribute__((noinline)) long leaf(volatile long *n) { for (;;) (*n)++; }
__attribute__((noinline)) long middle(long n)
{ volatile char room[64]; volatile long x = n; room[n & 63] = 1; return leaf(&x) + room[1]; }
__attribute__((noinline)) long outer(long n) { return middle(n * 3) + 1; }
"""
START = """
    .global _start
_start:
    .cfi_startproc
    .cfi_undefined x30
    ldr x1, =0x41000000
    mov sp, x1
    mov x0, #5
    bl outer
1:  b 1b
    .cfi_endproc
"""


def test_a_machine_without_an_operating_system_has_the_stack_of_its_program(
    tmp_path: Path,
) -> None:
    need("aarch64-linux-gnu-gcc", "qemu-system-aarch64")
    (tmp_path / "bare.c").write_text(BARE)
    (tmp_path / "start.S").write_text(START)
    kernel = tmp_path / "bare"
    subprocess.run(
        "aarch64-linux-gnu-gcc -O2 -ffreestanding -nostdlib -static -no-pie -fno-pie "
        "-Wl,-Ttext=0x40100000,--build-id=none start.S bare.c -o bare".split(),
        cwd=tmp_path,
        check=True,
    )
    machine = ("-M", "virt", "-cpu", "cortex-a57", "-kernel", kernel)
    with qemu_system("qemu-system-aarch64", *machine, path=tmp_path / "stub") as stub:
        deadline = time.monotonic() + 20
        names: list[str] = []
        while len(names) < 4:  # until the machine has come as far
            names = [name for _, name in FRAME.findall(remote(stub, "-e", str(kernel)))]
            assert time.monotonic() < deadline, names
        assert names == ["leaf", "middle", "outer", "_start"]
        first = document(stub, "-e", str(kernel), "-r", "--stay")["threads"]
        time.sleep(0.1)
        again = document(stub, "-e", str(kernel), "-r")["threads"]
        assert [thread["frames"] for thread in again] == [thread["frames"] for thread in first]
        time.sleep(0.1)
        later = document(stub, "-e", str(kernel), "-r")["threads"]
        assert later[0]["frames"][0]["registers"] != first[0]["frames"][0]["registers"]
