"""Where unwind-live finds what a process has mapped: in its own root, in the kernel, in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crashes import OMIT, Case, compile_c, named
from tests.running import build, resettle, running, state_of
from tests.support import cannot, need, need_root, run
from tests.test_crashes import assert_truth
from tests.test_live import command, document, pid_of
from unwind.files import Files
from unwind.transports.process import TRANSPORT
from unwind.unwinder import unwind


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc")
    made = tmp_path_factory.mktemp("live") / "live"
    compile_c("gcc", (*OMIT, "-pthread", "-static", "-DTRUTH_LIVE"), ("live.c",), made)
    return made


CASE = Case("live", ("live.c",), ("depths", "3"))


def main_module(found: dict[str, object], name: str) -> dict[str, object]:
    modules = found["modules"]
    assert isinstance(modules, list)
    [module] = [module for module in modules if name in module["name"]]
    assert isinstance(module, dict)
    return module


def test_a_program_that_was_deleted_is_read_all_the_same(program: Path, tmp_path: Path) -> None:
    need_root()
    copy = tmp_path / "copy"
    shutil.copy(program, copy)
    with running(CASE, tmp_path, executable=copy) as crash:
        copy.unlink()
        found = document(pid_of(crash))
        shutil.copy("/bin/true", copy)  # another file is there now
        resettle(crash)
        again = document(pid_of(crash))
    assert_truth(found, crash)
    assert_truth(again, crash)
    for each in (found, again):
        module = main_module(each, "/copy (deleted)")
        assert module["state"] == "ok"
        assert str(module["file"]).startswith(f"/proc/{pid_of(crash)}/map_files/")


def test_without_the_right_to_map_files_memory_serves(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without a name, where the kernel does not hand it out: CFI is in memory, too."""
    copy = tmp_path / "copy"
    shutil.copy(program, copy)
    real = os.stat

    def stat(path: object, *rest: object, **more: object) -> os.stat_result:
        if "map_files" in str(path):
            raise PermissionError(1, "Operation not permitted", str(path))
        return real(path, *rest, **more)  # type: ignore[arg-type]

    with running(CASE, tmp_path, executable=copy) as crash:
        copy.unlink()
        monkeypatch.setattr(os, "stat", stat)
        found = document(pid_of(crash))
        monkeypatch.undo()
    module = main_module(found, "/copy (deleted)")
    assert (module["state"], module["file"]) == ("memory-only", None)
    wanted = {tid: [f.pc for f in stack.frames] for tid, stack in crash.stacks.items()}
    for thread in found["threads"]:
        pcs = [int(frame["pc"], 16) for frame in thread["frames"]]
        assert len(pcs) == len(wanted[thread["tid"]])
        assert thread["end"]["reason"] == "outermost"


def test_a_program_in_a_memfd_is_read(program: Path) -> None:
    need_root()
    handle = os.memfd_create("hidden")
    os.write(handle, program.read_bytes())
    process = subprocess.Popen(
        ["sh", "-c", f"exec /proc/self/fd/{handle} depths 2"],
        pass_fds=(handle,),
        stdout=subprocess.DEVNULL,
    )
    os.close(handle)
    try:
        wait_for_sleep(process.pid, 3)
        found = document(process.pid)
    finally:
        process.kill()
        process.wait()
    module = main_module(found, "/memfd:hidden")
    assert module["state"] == "ok"
    assert str(module["file"]).startswith(f"/proc/{process.pid}/map_files/")
    leader = [frame["function"] for frame in found["threads"][0]["frames"]]
    assert leader[:2] == ["depths", "main"]
    assert leader[-1] == "_start"


def wait_for_sleep(pid: int, threads: int) -> None:
    """Until the leader sleeps, and all threads are there."""
    end = time.monotonic() + 10
    while len(os.listdir(f"/proc/{pid}/task")) < threads or state_of(pid) != "S":
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(0.05)


# pivot_root(2) as container engines do it: of the old root nothing is left.
PIVOT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(result):
    if result:
        sys.exit(f"errno {ctypes.get_errno()}")
root = sys.argv[1].encode()
NEWNS, BIND, PRIVATE, DETACH = 0x20000, 0x1000, 0x44000, 2
call(libc.unshare(NEWNS))
call(libc.mount(None, b"/", None, PRIVATE, None))
call(libc.mount(root, root, None, BIND, None))
os.chdir(root)
call(libc.syscall(155, b".", b"."))
call(libc.umount2(b".", DETACH))
os.chdir("/")
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def contained(how: str, root: Path, *command: str) -> Iterator[int]:
    """A process whose / is `root`, by a mount namespace of its own or by chroot(2)."""
    need("unshare")
    need_root()
    probe = run("unshare", "--mount", "true")
    if probe.returncode:  # as in a chroot, whose root is nothing that is mounted
        cannot(f"there may be no other mount namespace here: {probe.stderr.strip()}")
    if how == "namespace":
        words = [sys.executable, "-c", PIVOT, root, *command]
    else:
        words = ["unshare", "--mount", "--root", root, *command]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["namespace", "chroot"])
def test_a_containers_files_are_those_of_its_own_root(how: str, tmp_path: Path) -> None:
    """Its libraries lie where ours do, and are others; a link in it leads to its own root."""
    [case] = named("dlopen")
    executable = build(case, tmp_path)
    root = tmp_path / "root"
    (root / "opt").mkdir(parents=True)
    libc = next(
        Path(line.split()[2])
        for line in subprocess.check_output(["ldd", executable], text=True).splitlines()
        if "libc.so.6" in line
    )
    for name in (libc, Path("/lib64/ld-linux-x86-64.so.2")):
        place = root / str(name)[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name.resolve(), place)
    shutil.copy(executable, root / "opt/real")
    (root / "opt/program").symlink_to("/opt/real")
    shutil.copy(tmp_path / "plugin.so", root / "opt/plugin.so")
    with contained(how, root, "/opt/program", "/opt/plugin.so", "crash") as pid:
        wait_for_sleep(pid, 1)
        found = document(pid)
        text, warnings = command(str(pid), "--modules")
    assert warnings == ""
    seen = str(root) if how == "chroot" else ""  # what the kernel calls it when we ask
    names = {module["name"]: module for module in found["modules"]}
    assert {f"{seen}/opt/real", f"{seen}/opt/plugin.so", f"{seen}{libc}", "[vdso]"} <= set(names)
    for name, module in names.items():
        if name != "[vdso]":
            assert module["state"] == "ok"
            assert module["file"] == (name if seen else f"/proc/{pid}/root{name}")
    functions = [frame["function"] for frame in found["threads"][0]["frames"]]
    assert "plugin_entry" in functions
    assert "main" in functions
    assert functions[-1] == "_start"
    assert (f"read from /proc/{pid}/root/opt/plugin.so" in text) is (how == "namespace")


def test_a_fifo_or_device_that_lies_at_a_modules_path_is_not_opened(
    program: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copy(program, copy)
    with running(CASE, tmp_path, executable=copy) as crash:
        copy.unlink()
        os.mkfifo(copy)
        began = time.monotonic()
        found = document(pid_of(crash))
        assert time.monotonic() - began < 5
    assert_truth(found, crash)


def test_the_kernels_own_code_is_known(tmp_path: Path) -> None:
    """The vdso has no file: it is copied while the process stands still."""
    with running(CASE, tmp_path) as crash:
        found = document(pid_of(crash))
    module = main_module(found, "[vdso]")
    assert (module["state"], module["unwind"]) == ("memory-only", ["eh_frame"])


def test_a_file_that_is_cut_short_while_it_is_looked_at_does_no_harm(
    program: Path, tmp_path: Path
) -> None:
    """A mapped page that is gone would end the reader by SIGBUS; only its owner can do that."""
    need_root()
    handle = os.memfd_create("shrinking")
    os.write(handle, program.read_bytes())
    with subprocess.Popen(
        [f"/proc/self/fd/{handle}", "depths", "2"], pass_fds=(handle,)
    ) as process:
        try:
            wait_for_sleep(process.pid, 3)
            with TRANSPORT.open(str(process.pid), Files()) as source:
                process.kill()
                process.wait()
                os.ftruncate(handle, 0)
                stacks = [unwind(snapshot) for snapshot in source.threads]
        finally:
            process.kill()
            os.close(handle)
    assert [stack.end for stack in stacks] == ["outermost"] * 3
