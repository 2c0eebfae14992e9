"""Events at all kinds of places, of all kinds of processes, on this machine's own kernel."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crashes import OMIT, named
from tests.events import EXIT, PATIENCE, caught, collect, need_bpf
from tests.running import running
from tests.support import ROOT, cannot, need, run
from unwind.bpf.libbpf import BpfError
from unwind.errors import SourceError
from unwind.events.event import Event
from unwind.events.refusals import TRACEFS
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.transports.ring_buffer import RingBufferSource
from unwind.unwinder import Unwinder


@pytest.fixture(autouse=True)
def _bpf() -> None:
    need_bpf()


MALLOCS = """
#include <cstdio>
#include <vector>
__attribute__((noinline)) static std::vector<int> grown(int n)
{
    std::vector<int> found;
    for (int i = 0; i < n; i++)
        found.push_back(i);
    return found;
}
int main() { return std::getchar() == EOF && grown(100).size() == 100 ? 0 : 1; }
"""


@pytest.mark.parametrize("linking", ["dynamic", "static"])
def test_a_uprobe_on_malloc_sees_the_callers_of_new(linking: str, tmp_path: Path) -> None:
    need("g++")
    (tmp_path / "new.cc").write_text(MALLOCS)
    program = tmp_path / "new"
    flags = [*OMIT, *(["-static"] if linking == "static" else [])]
    subprocess.run(["g++", *flags, "-o", program, tmp_path / "new.cc"], check=True)
    process = subprocess.Popen([program], stdin=subprocess.PIPE)
    try:
        place = str(program) if linking == "static" else _libc_of(process.pid)
        with caught(f"{place}:malloc", pid=process.pid, cookie=0xC00C1E) as source:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            source.stop()
            unwinder, names = Unwinder(source.arch), Names(TableSymbolizer())
            seen = []
            for event in source.events():
                assert (event.pid, event.cookie, event.ip) == (process.pid, 0xC00C1E, 0)
                stack = unwinder.unwind(source.snapshot(event))
                assert stack.end == "outermost", stack.detail
                found = [names.name(f.module, f.pc, f.lookup_pc).function for f in stack.frames]
                seen.append([name.partition("(")[0] for name in found if name])
    finally:
        process.kill()
        process.wait()
    # 100 ints: a vector of gcc's library doubles its room.
    grown = [names for names in seen if "grown" in names]
    assert len(grown) == 8
    for names in grown:
        assert names[0] in ("malloc", "__libc_malloc")
        assert names[1] == "operator new"
        assert "main" in names


def _libc_of(pid: int) -> str:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    end = time.monotonic() + PATIENCE
    while not any("/libc.so" in line for line in maps) and time.monotonic() < end:
        time.sleep(0.01)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(line.split()[5] for line in maps if "/libc.so" in line)


@pytest.mark.parametrize("place", ["raw:sched_process_exit", "btf:sched_process_exit"])
def test_a_tracepoint_by_its_name_alone(place: str) -> None:
    with caught(place) as source:
        process = subprocess.Popen(["/bin/true"])
        process.wait()
        unwinder = Unwinder(source.arch)
        for event in source.events(PATIENCE):
            if event.pid == process.pid:
                assert event.ip
                assert unwinder.unwind(source.snapshot(event)).end == "outermost"
                return
    raise AssertionError("no event came")


def test_only_the_wanted_process_has_events_and_never_we_ourselves() -> None:
    python = [sys.executable, "-c", "import os\nwhile True: os.getppid()"]
    with subprocess.Popen(python) as one, subprocess.Popen(python) as other:
        try:
            with caught("raw:sys_enter", pid=one.pid) as source:
                found = {event.pid for event in source.events(0.3)}
            assert found == {one.pid}
            with caught("raw:sys_enter", stack_size=4096) as source:
                found = set()
                for event in source.events(0.3):
                    found.add(event.pid)
                    os.getppid()  # a system call of ours
            assert {one.pid, other.pid} & found
            assert os.getpid() not in found
        finally:
            one.kill()
            other.kill()


def test_samples_of_the_clock_show_who_computes() -> None:
    python = [sys.executable, "-c", "while True: sum(range(9999))"]
    with subprocess.Popen(python) as process:
        try:
            with caught("cpu-clock@200", pid=process.pid) as source:
                unwinder = Unwinder(source.arch)
                ends = [unwinder.unwind(source.snapshot(e)).end for e in source.events(1)]
        finally:
            process.kill()
    assert len(ends) > 20
    assert ends.count("outermost") >= 0.9 * len(ends)


def test_a_thread_of_the_kernel_is_named_as_such() -> None:
    with caught("cpu-clock@400") as source:
        for event in source.events(PATIENCE):
            assert event.is_kernel_thread == (not event.registers)
            if event.is_kernel_thread:
                assert bytes(event.stack) == b""
                return
    cannot("no thread of the kernel has run")


def test_a_32_bit_process_is_named_as_such(tmp_path: Path) -> None:
    need("gcc")
    program = tmp_path / "program"
    source_file = ROOT / "tests/programs/live_i386.S"
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-o", program, source_file], check=True)
    with caught(EXIT) as source:
        process = subprocess.Popen([program])
        time.sleep(0.1)
        process.kill()
        process.wait()
        [event] = collect(source, {process.pid}).values()
    assert event.is_compat
    assert not event.registers


def test_a_process_of_another_pid_namespace_has_our_number_for_it() -> None:
    need("unshare")
    words = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", "exit 0"]
    probe = run(*words)
    if probe.returncode:
        cannot(f"there may be no other namespaces here: {probe.stderr.strip()}")
    with caught(EXIT) as source:
        subprocess.run(words, check=True)
        source.stop()
        unwinder = Unwinder(source.arch)
        stacks = {event.comm: _walk(source, unwinder, event) for event in source.events()}
    assert stacks["sh"] == "outermost"


def _walk(source: RingBufferSource, unwinder: Unwinder, event: Event) -> str:
    if event.is_kernel_thread or event.is_compat:
        return ""
    assert event.pid > 2, "1 is the number that it has for itself"
    return unwinder.unwind(source.snapshot(event)).end


def test_no_descriptor_of_a_process_stays_open(tmp_path: Path) -> None:
    with running(named("threads")[0], tmp_path) as crash, caught(EXIT) as source:
        os.kill(int(crash.core.name), signal.SIGKILL)
        for event in collect(source, set(crash.stacks)).values():
            source.snapshot(event)
        held = [_target(fd) for fd in os.listdir("/proc/self/fd")]
    assert [path for path in held if path.startswith("/proc/") and "self" not in path] == []


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def test_closing_leaves_nothing_open() -> None:
    for place in (EXIT, "cpu-clock@9"):
        before = _of_the_kernel()
        for _ in range(3):
            with caught(place) as source:
                next(iter(source.events(0.01)), None)
        assert _of_the_kernel() == before


def _of_the_kernel() -> list[str]:
    """Our programs, maps, links and events of perf_event_open(2)."""
    found = [_target(fd) for fd in os.listdir("/proc/self/fd")]
    return sorted(path for path in found if path.startswith("anon_inode:"))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("sched:no_such_point", "cannot attach to sched:no_such_point"),
        ("/bin/sh:no_such_function", "there is no function 'no_such_function' in it"),
        ("ret:/bin/sh:no_such_function", "there is no function 'no_such_function' in it"),
        ("ret:do_exit", "no function of a file"),
        ("/no/such/file:main", "cannot attach to /no/such/file"),
        ("btf:no_such_point", "cannot attach to no_such_point|does not load"),
        ("cpu-clock@0", "no number of samples"),
        ("/bin/sh:main+x", "no offset"),
        ("/bin/sh", "no place in a file"),
    ],
)
def test_a_place_that_is_none_is_refused(place: str, said: str) -> None:
    with pytest.raises(SourceError, match=said), caught(place):
        pass


def test_a_function_of_the_kernel_is_refused_with_what_there_is_instead() -> None:
    """kprobe and fentry, where this kernel has none of them: the hint has what it does have."""
    refused = []
    for place in ("vfs_read", "fentry:vfs_read"):
        try:
            with caught(place):
                pass
        except SourceError as error:
            refused.append(error)
    for error in refused:
        assert "no kprobes" in str(error) or "runs no program" in str(error)
        for kind in ("PATH:FUNCTION", "cpu-clock@N"):
            assert kind in error.hint
        is_mounted = any(os.path.isdir(directory) for directory in TRACEFS)  # in no chroot
        assert ("CATEGORY:NAME" in error.hint) == is_mounted


def test_what_the_verifier_says_is_kept(tmp_path: Path) -> None:
    """A program that reads beyond its stack, built as ours are."""
    shutil.copy(ROOT / "bpf/unwind.bpf.c", tmp_path / "bad.bpf.c")
    text, good = (ROOT / "bpf/send.h").read_text(), "event->stack_length = 0;"
    assert good in text
    bad = "event->stack_length = *(volatile __u32 *)((__u64)moment->pid);"
    (tmp_path / "send.h").write_text(text.replace(good, bad))
    words = "-target bpf -D__TARGET_x86_64 -mcpu=v3 -O2 -g -c -I".split()
    made = tmp_path / "bad.o"
    subprocess.run(["clang", *words, ROOT / "bpf", tmp_path / "bad.bpf.c", "-o", made], check=True)
    with pytest.raises(BpfError, match="does not load") as error, caught(EXIT, object=str(made)):
        pass
    assert "invalid mem access 'scalar'" in error.value.log
