"""What cannot be looked at: each refusal names its cause, and a remedy that works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.running import state_of
from tests.support import NOBODY, as_nobody, cannot, need, need_root, run
from unwind.errors import SourceError, UnsupportedArchitecture
from unwind.files import Files
from unwind.live import proc, ptrace, refusals
from unwind.transports.process import TRANSPORT

PROGRAMS = Path(__file__).parent / "programs"
MODULE = "unwind.cli.live"
COMMAND = [sys.executable, "-m", MODULE]


@contextmanager
def sleeping(*command: str) -> Iterator[int]:
    """A process that sleeps; by default in C, as sleep(1)."""
    with subprocess.Popen(command or ("sleep", "1000"), stdin=subprocess.DEVNULL) as process:
        end = time.monotonic() + 10
        while state_of(process.pid) != "S" and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(0.03)
        try:
            yield process.pid
        finally:
            process.kill()


def refused(pid: int | str) -> str:
    """What the library says of a process that it cannot look at, with the remedy."""
    with pytest.raises(SourceError) as caught:
        TRANSPORT.open(str(pid), Files())
    return f"{caught.value} ({caught.value.hint})"


def complaints(said: str) -> list[str]:
    """What a command says on standard error, but for where names could be had."""
    return [line for line in said.splitlines() if ": hint: " not in line]


# ------------------------------------------------------------------------ no process to unwind


@pytest.mark.parametrize("text", ["x", "", "-1", "1.5", "0x10", "²", "99999999999999999999"])
def test_what_is_no_process_id_is_said(text: str) -> None:
    assert "not the id of a process" in refused(text) or "there is none" in refused(text)


def test_a_kernel_thread_is_named() -> None:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > 1:
            try:
                with proc.Proc(int(name)) as found:
                    kernel = found.is_kernel_thread()
                    called = found.status().name
            except OSError:
                continue
            if kernel:
                assert refused(name).startswith(
                    f"process {name}: it is a kernel thread ({called}) and has no user stack"
                )
                return
    cannot("no kernel thread is to be seen here: another PID namespace")


def test_a_32_bit_process_is_named_and_not_unwound(tmp_path: Path) -> None:
    need("gcc")
    program = tmp_path / "program"
    built = run(*("gcc", "-m32", "-nostdlib", "-static", "-o", program, PROGRAMS / "live_i386.S"))
    assert built.returncode == 0, built.stderr
    if not _runs(program):
        cannot("the kernel runs no 32-bit programs")
    with sleeping(str(program)) as pid:
        assert refused(pid) == (
            f"process {pid}: it is a 32-bit process (machine EM_I386 (3), ELF32, little endian, "
            "flags 0x0), which is not unwound here ()"
        )
        assert state_of(pid) == "S"


def _runs(program: Path) -> bool:
    try:
        with subprocess.Popen([program]) as process:
            time.sleep(0.05)
            process.kill()
    except OSError:
        return False
    return process.returncode == -signal.SIGKILL


def test_registers_of_32_bit_code_are_none_of_ours() -> None:
    """A thread of a 64-bit program may run 32-bit code: the size of its registers tells."""
    from unwind.arch.arm64 import ARCH as ARM64
    from unwind.arch.mips32 import ARCH as MIPS32
    from unwind.arch.x86_64 import ARCH as X86_64
    from unwind.live.stacks import StackPlan

    # Linux v6.13: user_regs_struct of x86_64 and i386, user_pt_regs of arm64, 45 words of mips.
    mips = MIPS32[0] if isinstance(MIPS32, tuple) else MIPS32
    for arch, size, other in ((X86_64, 27 * 8, 17 * 4), (ARM64, 34 * 8, 18 * 4), (mips, 180, 72)):
        plan = StackPlan(arch)
        record = b"".join(n.to_bytes(arch.word, arch.byteorder) for n in range(size // arch.word))
        found = plan.registers(record)
        assert found is not None
        assert len(found) == len(arch.layouts["linux.prstatus"].offsets)
        assert plan.registers(record[:other]) is None
    record = b"".join(n.to_bytes(8, "little") for n in range(27))
    registers = StackPlan(X86_64).registers(record)
    assert registers is not None
    assert (registers[X86_64.pc], registers[X86_64.sp]) == (16, 19)  # RIP, RSP of <sys/reg.h>


def test_a_thread_is_told_from_its_process() -> None:
    script = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    with sleeping(sys.executable, "-c", script) as pid:
        end = time.monotonic() + 10
        while len(os.listdir(f"/proc/{pid}/task")) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        other = max(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
        assert refused(other) == (
            f"process {other}: it is a thread of process {pid} (unwind-live --thread {other} {pid})"
        )


def test_unwind_live_does_not_look_at_itself() -> None:
    assert "it is this very process" in refused(os.getpid())


# --------------------------------------------------------------------------- may not be looked at


def test_a_traced_process_is_reported_with_its_tracer() -> None:
    with sleeping() as pid:
        child = os.fork()
        if child == 0:
            ptrace.seize(pid)
            time.sleep(100)
            os._exit(0)
        try:
            end = time.monotonic() + 10
            while not _tracer(pid) and time.monotonic() < end:
                time.sleep(0.005)
            said = refused(pid)
            assert f"it is being traced by process {child} (" in said
            assert "--no-stop" in said
            # The remedy works.
            with TRANSPORT.open(str(pid), Files(), stop=False) as source:
                assert len(source.threads) == 1
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        TRANSPORT.open(str(pid), Files()).close()


def _tracer(pid: int) -> int:
    with proc.Proc(pid) as found:
        return found.status().tracer


def test_one_thread_that_is_traced_leaves_the_others() -> None:
    start = "threading.Thread(target=time.sleep, args=(99,)).start()"
    script = f"import threading, time\nfor _ in 1, 2: {start}"
    with sleeping(sys.executable, "-c", script) as pid:
        end = time.monotonic() + 10
        while len(os.listdir(f"/proc/{pid}/task")) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        leader, other, taken = sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
        child = os.fork()
        if child == 0:
            ptrace.seize(taken)
            time.sleep(100)
            os._exit(0)
        try:
            while not _tracer_of(pid, taken) and time.monotonic() < end:
                time.sleep(0.005)
            with TRANSPORT.open(str(pid), Files()) as source:
                assert [snapshot.tid for snapshot in source.threads] == [leader, other]
                assert source.warnings == [
                    f"thread {taken} could not be stopped: traced by somebody else"
                ]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with TRANSPORT.open(str(pid), Files()) as source:
            assert len(source.threads) == 3


def _tracer_of(pid: int, tid: int) -> int:
    with proc.Proc(pid) as found:
        return found.status(tid).tracer


def test_another_users_process_is_refused_and_one_capability_is_enough() -> None:
    with sleeping() as pid:
        ran = as_nobody(MODULE, str(pid))
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.count("\n") == 1
        assert (
            f"process {pid}: it may not be looked at: it belongs to another user, root"
            in ran.stderr
        )
        assert "--inh-caps +sys_ptrace --ambient-caps +sys_ptrace" in ran.stderr
        unseen = as_nobody(MODULE, "--no-stop", str(pid))
        assert unseen.returncode == 2
        assert "belongs to another user, root" in unseen.stderr
        allowed = as_nobody(MODULE, str(pid), capabilities="+sys_ptrace")
        assert (allowed.returncode, complaints(allowed.stderr)) == (0, [])
        assert "__libc_start_main" in allowed.stdout
        unseen = as_nobody(MODULE, "--no-stop", str(pid), capabilities="+sys_ptrace")
        assert "with the capability dac_read_search besides sys_ptrace" in unseen.stderr
        both = "+sys_ptrace,+dac_read_search"
        seen = as_nobody(MODULE, "--no-stop", str(pid), capabilities=both)
        assert (seen.returncode, complaints(seen.stderr)) == (0, [])
        assert "#1 " in seen.stdout


def test_a_process_that_is_not_dumpable_is_refused_to_its_own_user() -> None:
    """prctl(PR_SET_DUMPABLE, 0), as ssh-agent and others do."""
    script = (
        "import ctypes, os, time; os.setgid({0}); os.setuid({0}); "
        "assert not ctypes.CDLL(None).prctl(4, {1}, 0, 0, 0); time.sleep(99)"
    )
    need_root()
    for dumpable in (0, 1):
        with sleeping(sys.executable, "-c", script.format(NOBODY, dumpable)) as pid:
            end = time.monotonic() + 10
            while "python" in _where(pid) and time.monotonic() < end:
                time.sleep(0.01)
            ran = as_nobody(MODULE, str(pid))
            if dumpable:
                assert (ran.returncode, complaints(ran.stderr)) == (0, [])
            else:
                assert ran.returncode == 2
                assert "it is not dumpable" in ran.stderr
                allowed = as_nobody(MODULE, str(pid), capabilities="+sys_ptrace")
                assert allowed.returncode == 0, allowed.stderr


def _where(pid: int) -> str:
    """What a process is at that still starts: "python", until it sleeps."""
    text = Path(f"/proc/{pid}/syscall").read_text().split()
    return "" if text and text[0] in ("230", "35") else "python"  # clock_nanosleep, nanosleep


SECCOMP = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# A classic BPF program: ptrace (101) and process_vm_readv (310) fail with EPERM, all else goes.
code = [(0x20, 0, 0, 0), (0x15, 1, 0, 101), (0x15, 0, 1, 310), (0x06, 0, 0, 0x50001),
        (0x06, 0, 0, 0x7FFF0000)]
filter = b"".join(struct.pack("<HBBI", *line) for line in code)
room = ctypes.create_string_buffer(filter)
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(room)))
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, program)
from unwind.cli.live import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_containers_filter_is_named() -> None:
    with sleeping() as pid:
        ran = run(sys.executable, "-c", SECCOMP, str(pid))
        assert ran.returncode == 2
        assert "a seccomp filter forbids ptrace here, as containers have it" in ran.stderr
        assert "--cap-add=SYS_PTRACE" in ran.stderr
        # Memory can be read without process_vm_readv, and threads seen without ptrace.
        seen = run(sys.executable, "-c", SECCOMP, "--no-stop", str(pid))
        assert (seen.returncode, complaints(seen.stderr)) == (0, [])
        assert "#1 " in seen.stdout


@pytest.mark.parametrize(
    ("scope", "words", "remedy"),
    [
        (1, "Yama lets only its parents trace it", "sysctl kernel.yama.ptrace_scope=0"),
        (2, "Yama wants CAP_SYS_PTRACE", "sysctl kernel.yama.ptrace_scope=0"),
        (3, "Yama forbids it to everybody", "cannot be undone before the next start"),
    ],
)
def test_yama_is_named(scope: int, words: str, remedy: str, tmp_path: Path) -> None:
    """With what its file would say: on this kernel there may be no Yama at all."""
    file = tmp_path / "ptrace_scope"
    file.write_text(f"{scope}\n")
    with sleeping() as pid, proc.Proc(pid) as found, patch.object(refusals, "_YAMA", str(file)):
        owner = refusals.Owner()
        owner.effective, owner.filtered = 0, False
        its = found.status().replace(uid=owner.uid, permitted=0)
        cause, hint = refusals._cause(found, its, owner)
    assert words in cause
    assert f"ptrace_scope is {scope}" in cause
    assert remedy in hint


def test_what_else_refuses_is_said_as_far_as_it_is_known() -> None:
    with sleeping() as pid, proc.Proc(pid) as found:
        owner = refusals.Owner()
        its = found.status().replace(permitted=1 << 12)
        owner.effective, owner.filtered, owner.scope = 0, False, 0
        assert "capabilities that unwind-live has not" in refusals._cause(found, its, owner)[0]
        its = its.replace(permitted=0)
        assert "a security module" in refusals._cause(found, its, owner)[0]
        owner.effective = 1 << 19
        assert "user namespace" in refusals._cause(found, its, owner)[0]


def test_an_unknown_machine_is_named() -> None:
    from unwind.transports import process

    head = bytearray(64)
    head[:7] = b"\x7fELF\x02\x01\x01"
    head[16:20] = (2).to_bytes(2, "little") + (243).to_bytes(2, "little")  # EM_RISCV
    with (
        sleeping() as pid,
        patch.object(process, "_head", lambda _: bytes(head)),
        pytest.raises(UnsupportedArchitecture, match="EM_RISCV"),
    ):
        TRANSPORT.open(str(pid), Files())
