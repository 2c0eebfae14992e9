"""Events of processes whose files are not ours: in containers, without a name, in memory only."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crashes import compile_c
from tests.events import PATIENCE, caught, need_bpf
from tests.support import need
from unwind.frames import Stack
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.transports.ring_buffer import RingBufferSource
from unwind.unwinder import Unwinder

# Each runs the program "$1" with "$2" for a directory that is its own.
MOUNTED = "mount -t tmpfs none /mnt && cp $1 /mnt/elsewhere && exec /mnt/elsewhere"
CHROOTED = "cp $1 $2/elsewhere && exec chroot $2 /elsewhere"
DELETED = 'cp $1 $2/elsewhere && (sleep 0.1; rm $2/elsewhere) & sleep 0.05; exec "$2/elsewhere"'
MEMFD = (
    "import os, sys; handle = os.memfd_create('elsewhere', 0);"
    "os.write(handle, open(sys.argv[1], 'rb').read()); os.execv(f'/proc/self/fd/{handle}', ['x'])"
)
WORLDS = {
    "mount-namespace": ("unshare", "--mount", "sh", "-ec", MOUNTED.replace("$1", '"$1"'), "sh"),
    "chroot": ("sh", "-ec", CHROOTED.replace("$1", '"$1"').replace("$2", '"$2"'), "sh"),
    "deleted": ("sh", "-ec", DELETED.replace("$1", '"$1"').replace(" $2", ' "$2"'), "sh"),
    "memfd": (sys.executable, "-c", MEMFD),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Static: in a chroot there is no dynamic linker."""
    need("gcc", "unshare")
    need_bpf()
    made = tmp_path_factory.mktemp("worlds") / "program"
    compile_c("gcc", ("-O2", "-fomit-frame-pointer", "-static", "-pthread"), ("busy.c",), made)
    return made


@contextmanager
def started(world: str, program: Path, directory: Path) -> Iterator[int]:
    with subprocess.Popen([*WORLDS[world], program, directory]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def elsewhere(pid: int) -> bool:
    """Whether the process runs the program by now, wherever it lies."""
    try:
        return "elsewhere" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def assert_named(source: RingBufferSource, pid: int) -> None:
    names, unwinder, done = Names(TableSymbolizer()), Unwinder(source.arch), 0
    stack: Stack | None = None
    for event in source.events(PATIENCE):
        if event.pid != pid or not elsewhere(pid):
            continue
        stack = unwinder.unwind(source.snapshot(event))
        found = [names.name(f.module, f.pc, f.lookup_pc).function for f in stack.frames]
        if found[:1] == ["spin"]:
            assert found[:6] == ["spin", "dive", "dive", "dive", "run", "main"]
            assert stack.end == "outermost"
            done += 1
        if done == 10:
            return
    raise AssertionError(stack)


@pytest.mark.parametrize("world", WORLDS)
def test_what_runs_before_has_its_names(world: str, program: Path, tmp_path: Path) -> None:
    with started(world, program, tmp_path) as pid:
        end = time.monotonic() + 10
        while not elsewhere(pid) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.2 if world == "deleted" else 0)
        with caught("cpu-clock@200", pid=pid) as source:
            assert_named(source, pid)


@pytest.mark.parametrize("world", WORLDS)
def test_what_begins_meanwhile_has_its_names(world: str, program: Path, tmp_path: Path) -> None:
    with caught("cpu-clock@200") as source, started(world, program, tmp_path) as pid:
        assert_named(source, pid)


def test_another_file_of_that_name_is_not_taken(program: Path, tmp_path: Path) -> None:
    """In a mount namespace where it lies over one of ours."""
    here = tmp_path / "place"
    here.mkdir()
    compile_c("gcc", ("-O2", "-pthread"), ("returns.c",), here / "elsewhere")
    line = 'mount -t tmpfs none "$2" && cp "$1" "$2/elsewhere" && exec "$2/elsewhere"'
    command = ["unshare", "--mount", "sh", "-ec", line, "sh", program, here]
    with caught("cpu-clock@200") as source, subprocess.Popen(command) as process:
        try:
            assert_named(source, process.pid)
        finally:
            process.kill()
