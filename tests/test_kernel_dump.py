"""unwind-core --from-kernel: a core through a pipe, of a process that waits, as the kernel does it.

tests/dump_kernel.py has a kernel do it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import crashes
from tests.crashes import Crash
from tests.running import running, state_of
from tests.support import NOBODY, ROOT, as_nobody, cannot, need, need_root, python, validate
from tests.test_crashes import assert_truth
from unwind.cli.core import _declare
from unwind.cli.options import argument_parser
from unwind.elf import Elf
from unwind.errors import FormatError, MemoryFault, SourceError
from unwind.kernel_dump import pipe
from unwind.kernel_dump.crashed import Crashed
from unwind.kernel_dump.memory import DumpMemory
from unwind.kernel_dump.privileges import confine, most_written
from unwind.kernel_dump.store import Store, report_name
from unwind.live.refusals import yama
from unwind.transports.core import loads_of

COMMAND = (sys.executable, "-m", "unwind.cli.core")


class Waiting(NamedTuple):
    """A process that waits, with the truth about it, and a core of it."""

    crash: Crash
    core: bytes

    @property
    def pid(self) -> int:
        return int(self.crash.core.name)


@pytest.fixture(scope="module")
def waiting() -> Iterator[Waiting]:
    """In a directory that everybody may read: the handler is an ordinary user."""
    need("gcore")
    if os.geteuid() and yama():
        cannot("the handler is not root, and Yama shows it no memory")
    [case] = crashes.named("threads")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        with running(case, directory) as crash:
            pid = crash.core.name
            # All mappings, as the kernel does: gcore leaves out those of which it writes nothing.
            Path(f"/proc/{pid}/coredump_filter").write_text("0x7f")
            command = ["gcore", "-o", str(directory / "core"), pid]
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
            yield Waiting(crash, in_order((directory / f"core.{pid}").read_bytes()))


def in_order(core: bytes, mappings: int | None = None) -> bytes:
    """gdb's core as the kernel writes it: headers, notes, memory.

    `mappings`: their number as the ELF header has it.
    """
    [note, *loads] = sorted(Elf(core).program_rows, key=lambda row: row[0] != 4)
    at = 64 + 56 * (1 + len(loads))
    rows, pieces = [(*note[:2], at, *note[3:])], [core[note[2] :][: note[4]]]
    at += note[4]
    pieces.append(bytes(-at % 4096))
    at += -at % 4096
    for load in loads:
        rows.append((*load[:2], at, *load[3:]))
        pieces.append(core[load[2] :][: load[4]])
        at += load[4]
    head = bytearray(core[:64])
    struct.pack_into("<QQ", head, 32, 64, at if mappings else 0)  # e_phoff, e_shoff
    struct.pack_into("<HHHHH", head, 54, 56, mappings or len(rows), 64, 0, 0)
    table = [struct.pack("<IIQQQQQQ", *row[:4], 0, *row[4:]) for row in rows]
    return b"".join([head, *table, *pieces])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir(mode=0o700)
    return made


class Handled(NamedTuple):
    code: int
    said: str
    left: int
    """Bytes that nobody took."""


def words(pid: int | str, store: Path, *options: str) -> list[str]:
    return ["--from-kernel", str(pid), str(pid), "11", "--store", str(store), *options]


def handle(
    core: bytes, pid: int | str, store: Path, *options: str, before: tuple[str, ...] = COMMAND
) -> Handled:
    """Runs the handler with nothing around it, as the kernel does, and writes the core to it."""
    ours, its = os.pipe()
    handler = subprocess.Popen(
        [*before, *words(pid, store, *options)],
        stdin=ours,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    os.close(ours)
    left = len(core)

    def write() -> None:
        nonlocal left
        try:
            while left:
                left -= os.write(its, memoryview(core)[len(core) - left :][: 1 << 16])
        except BrokenPipeError:
            pass
        os.close(its)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        _, said = handler.communicate(timeout=60)
    finally:
        handler.kill()
        writer.join()
    return Handled(handler.returncode, said.decode(), left)


def document(store: Path) -> dict[str, Any]:
    [report] = store.iterdir()
    assert report.suffix == ".json"
    assert report.stat().st_mode & 0o777 == 0o600
    found: dict[str, Any] = json.loads(report.read_text())
    validate(found)
    return found


# ------------------------------------------------------------------------------- whole reports


def test_registers_come_from_the_pipe_and_memory_from_the_process(
    waiting: Waiting, store: Path
) -> None:
    handled = handle(waiting.core, waiting.pid, store, "--json")
    assert handled.code == 0, handled.said
    assert handled.left > len(waiting.core) // 2, "the pipe was read on"
    found = document(store)
    assert found["source"]["warnings"] == []
    assert_truth(found, waiting.crash)


def test_of_a_program_that_may_not_be_read_memory_serves(waiting: Waiting, store: Path) -> None:
    """It lacks names, and no frame."""
    need_root()
    place = waiting.crash.directory
    place.chmod(0o700)
    try:
        assert handle(waiting.core, waiting.pid, store, "--json").code == 0
    finally:
        place.chmod(0o755)
    found = document(store)
    states = {module["name"]: module["state"] for module in found["modules"]}
    assert states[str(waiting.crash.executable)] == "memory-only"
    assert_frames(found, waiting)


def assert_frames(document: dict[str, Any], waiting: Waiting) -> None:
    """As many as there are, of each thread, and all of them certain."""
    for thread in document["threads"]:
        frames = waiting.crash.stacks[thread["tid"]].frames
        span = sum(frame.span for frame in frames)
        assert thread["end"]["reason"] == "outermost"
        assert len(thread["frames"]) >= len(frames) - span
        assert {frame["trust"] for frame in thread["frames"]} <= {"context", "cfi"}
    assert {thread["tid"] for thread in document["threads"]} == set(waiting.crash.stacks)


def test_without_the_process_the_pipe_is_read_on(waiting: Waiting, store: Path) -> None:
    handled = handle(waiting.core, 1 << 30, store, "--json")
    assert (handled.code, handled.left) == (0, 0), handled.said
    found = document(store)
    [warning] = found["source"]["warnings"]
    assert "memory comes from the core" in warning
    assert "it has ended" in warning
    assert_truth(found, waiting.crash)


def test_where_memory_is_refused_the_pipe_is_read_on(waiting: Waiting, tmp_path: Path) -> None:
    """Of root's process an ordinary user gets none."""
    need_root()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        place.chmod(0o755)
        (place / "store").mkdir(mode=0o700)
        os.chown(place / "store", NOBODY, NOBODY)
        (place / "core").write_bytes(waiting.core)
        (place / "core").chmod(0o644)
        ran = as_nobody(
            "unwind.cli.core", *words(waiting.pid, place / "store", "--json"), stdin=place / "core"
        )
        assert ran.returncode == 0, ran.stderr
        found = document(place / "store")
    assert "permission denied" in found["source"]["warnings"][0]
    assert_truth(found, waiting.crash)


def test_a_report_for_people_begins_with_the_crash(waiting: Waiting, store: Path) -> None:
    handled = handle(waiting.core, waiting.pid, store)
    assert handled.code == 0
    [report] = store.iterdir()
    lines = report.read_text().splitlines()
    assert lines[0].startswith(f"crash:   process {waiting.pid}, thread {waiting.pid}, SIGSEGV")
    assert sum(line.startswith("thread ") for line in lines) == len(waiting.crash.stacks)
    assert handled.said.count("\n") == 1
    assert f"was ended by SIGSEGV (11): {report}" in handled.said


def test_it_needs_no_output_and_no_error_stream(waiting: Waiting, store: Path) -> None:
    """The kernel opens the pipe, and no other descriptor."""
    line = 'exec "$@" >&- 2>&-'
    before = ("/bin/sh", "-c", line, "sh", *COMMAND)
    assert handle(waiting.core, waiting.pid, store, "--json", before=before).code == 0
    assert len(document(store)["threads"]) == len(waiting.crash.stacks)


def test_it_works_from_a_home_that_is_closed(waiting: Waiting, store: Path, tmp_path: Path) -> None:
    """All that it may come to need is loaded while it may still read it."""
    home = tmp_path / "home"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "unwind", home / "unwind", ignore=ignored)
    home.chmod(0o700)
    before = ("/usr/bin/env", f"PYTHONPATH={home}", *COMMAND)
    options = ("--explain", "--cross-check", "--scan", "--thread", str(waiting.pid))
    handled = handle(waiting.core, waiting.pid, store, *options, before=before)
    assert handled.code == 0
    text = next(store.iterdir()).read_text()
    assert "Error" not in text
    assert "needs" not in text


# ---------------------------------------------------------------------------- what is given up


def in_the_child(handler: subprocess.Popen[bytes]) -> int:
    """The handler's other half, once it waits for the pipe."""
    end = time.monotonic() + 20
    children = Path(f"/proc/{handler.pid}/task/{handler.pid}/children")
    while time.monotonic() < end:
        for child in map(int, children.read_text().split()):
            if status_of(child)["NoNewPrivs"] == ["1"] and state_of(child) == "S":
                return child
        time.sleep(0.01)
    raise AssertionError("the handler does not read")


@contextmanager
def blocked(pid: int, store: Path, *options: str) -> Iterator[int]:
    """The half of a handler that has an empty pipe to read."""
    ours, its = os.pipe()
    with subprocess.Popen(
        [*COMMAND, *words(pid, store, *options)],
        stdin=ours,
        stderr=subprocess.DEVNULL,
        env={"PYTHONPATH": str(ROOT)},
    ) as handler:
        os.close(ours)
        try:
            yield in_the_child(handler)
        finally:
            os.close(its)
            handler.wait(timeout=20)


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("user", [0, 12345])
def test_privileges_are_given_up_before_the_first_byte_is_read(user: int, store: Path) -> None:
    """A process of root's, or in a container, is looked at by nobody, another one by its user."""
    need_root()
    need("setpriv")
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "sleep", "100"]
    with subprocess.Popen(command) as sleeper:
        try:
            while b"sleep\0" not in Path(f"/proc/{sleeper.pid}/cmdline").read_bytes()[:6]:
                time.sleep(0.01)
            with blocked(sleeper.pid, store) as child:
                found = status_of(child)
                limits = Path(f"/proc/{child}/limits").read_text()
                parent = status_of(int(found["PPid"][0]))
        finally:
            sleeper.kill()
    expected = [str(user or NOBODY)] * 4
    assert (found["Uid"], found["Gid"], found["Groups"]) == (expected, expected, [])
    for kind in ("CapPrm", "CapEff", "CapAmb"):
        assert int(found[kind][0], 16) == 0
    assert found["NoNewPrivs"] == ["1"]
    assert parent["Uid"] == ["0"] * 4
    assert [line.split()[3] for line in limits.splitlines() if "Max data" in line] == ["1073741824"]


def test_the_time_is_bounded(store: Path) -> None:
    ours, its = os.pipe()
    began = time.monotonic()
    try:
        command = [*COMMAND, *words(os.getpid(), store, "--max-time", "1")]
        ran = subprocess.run(command, cwd=ROOT, stdin=ours, capture_output=True, timeout=20)
    finally:
        os.close(ours)
        os.close(its)
    assert ran.returncode == 2
    assert time.monotonic() - began < 15
    assert "not done within 1 s" in ran.stderr.decode()
    [report] = store.iterdir()
    assert "not done within 1 s" in report.read_text()


def test_who_does_not_end_is_ended(store: Path) -> None:
    with blocked(os.getpid(), store, "--max-time", "1") as child:
        os.kill(child, signal.SIGSTOP)
        end = time.monotonic() + 20
        while os.path.exists(f"/proc/{child}") and time.monotonic() < end:
            time.sleep(0.02)
        assert not os.path.exists(f"/proc/{child}")
    [report] = store.iterdir()
    assert "it took more than 1 s" in report.read_text()


def test_an_end_of_the_half_that_reads_is_told(store: Path) -> None:
    with blocked(os.getpid(), store) as child:
        os.kill(child, signal.SIGBUS)
    [report] = store.iterdir()
    assert "it was ended by signal 7" in report.read_text()


def in_a_child(work: Any) -> int:
    """The exit code of `work`, run in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_memory_and_files_are_bounded(tmp_path: Path) -> None:
    def memory() -> int:
        confine(1 << 28, 60)
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
        try:
            bytearray(1 << 29)
        except MemoryError:
            return 7
        return 0

    def file() -> int:
        most_written(1 << 12)
        try:
            (tmp_path / "large").write_bytes(bytes(1 << 13))
        except OSError:
            return 7
        return 0

    assert (in_a_child(memory), in_a_child(file)) == (7, 7)


# ---------------------------------------------------------------------------------- the store


def test_a_process_may_call_itself_what_it_likes() -> None:
    assert report_name(7, b"../../etc/x", 0.0) == "19700101T000000.7.______etc_x"
    assert report_name(7, b"a\n\0\xff;$(b) | c", 0.0) == "19700101T000000.7.a______b____c"
    assert report_name(7, b"", 0.0) == "19700101T000000.7.unknown"


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    for place, mode, reason in (("open", 0o777, "others may"), ("sticky", 0o1777, "others may")):
        (tmp_path / place).mkdir()
        (tmp_path / place).chmod(mode)
        with pytest.raises(SourceError, match=reason):
            Store(str(tmp_path / place))
    with pytest.raises(SourceError, match="No such file"):
        Store(str(tmp_path / "none"))


def test_links_that_lie_in_wait_are_not_followed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    for name in (".x.txt", "x.1.txt"):
        (store / name).symlink_to(tmp_path / "target")
    kept = Store(str(store))
    name, handle = kept.create("x", ".txt")
    os.write(handle, b"report")
    os.close(handle)
    kept.finish(name)
    kept.close()
    assert (name, (store / name).read_text()) == ("x.2.txt", "report")
    assert (tmp_path / "target").read_text() == "kept"


def test_the_oldest_reports_go_first_and_what_is_no_report_stays(store: Path) -> None:
    for n in range(8):
        (store / f"2026010{n}T000000.1.x.txt").write_bytes(b"x" * 8192)
    (store / "notes").write_bytes(b"x" * 100_000)
    stale, fresh = store / ".20260101T000000.1.x.txt", store / ".20260102T000000.1.x.txt"
    stale.write_text("x")
    fresh.write_text("x")
    os.utime(stale, (0, 0))
    kept = Store(str(store))
    kept.prune(3 * 8192, time.time())
    kept.close()
    left = {path.name for path in store.iterdir()}
    assert left == {*(f"2026010{n}T000000.1.x.txt" for n in (5, 6, 7)), "notes", fresh.name}


def test_one_report_stays_however_large(store: Path) -> None:
    (store / "20260101T000000.1.x.txt").write_bytes(b"x" * 8192)
    kept = Store(str(store))
    kept.prune(0, time.time())
    kept.close()
    assert len(list(store.iterdir())) == 1


# ----------------------------------------------------------------------------------- the pipe


def read_head(data: bytes) -> tuple[bytes, int]:
    """The head, and how many bytes were left in the pipe."""
    ours, its = os.pipe()
    writer = threading.Thread(target=lambda: (_write(its, data), os.close(its)))
    writer.start()
    try:
        head = pipe.read_head(ours)
        left = 0
        while piece := os.read(ours, 1 << 16):
            left += len(piece)
        return head, left
    finally:
        os.close(ours)
        writer.join()


def _write(handle: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(handle, data) :]
    except BrokenPipeError:
        pass


def test_the_head_ends_with_the_notes(waiting: Waiting) -> None:
    head, left = read_head(waiting.core)
    assert len(head) + left == len(waiting.core)
    assert head == waiting.core[: len(head)]
    rows = Elf(waiting.core).program_rows
    assert len(head) == next(row[2] + row[4] for row in rows if row[0] == 4)


@pytest.mark.parametrize("size", [64, 65, 100, 1000])
def test_a_head_that_is_cut_short_is_taken_as_it_is(waiting: Waiting, size: int) -> None:
    assert read_head(waiting.core[:size]) == (waiting.core[:size], 0)


def test_what_is_no_core_is_refused() -> None:
    for data in (b"", b"x" * 100, b"\x7fEL"):
        with pytest.raises(SourceError, match="not a core"):
            read_head(data)
    with pytest.raises(FormatError):
        read_head(b"\x7fELF" + b"\xff" * 100)


def test_notes_without_an_end_are_refused(waiting: Waiting) -> None:
    core = bytearray(waiting.core)
    rows = Elf(waiting.core).program_rows
    at = 64 + 56 * next(n for n, row in enumerate(rows) if row[0] == 4)
    struct.pack_into("<Q", core, at + 32, 1 << 60)  # p_filesz
    with pytest.raises(SourceError, match="too much"):
        read_head(bytes(core))


def test_more_mappings_than_the_header_can_count(waiting: Waiting) -> None:
    """Their number stands behind everything else; where the notes lie tells it, too."""
    core = in_order(waiting.core, 0xFFFF)  # PN_XNUM
    note = Elf(waiting.core).program_rows[0]
    assert read_head(core)[0] == core[: note[2] + note[4]]
    assert len(Elf(read_head(core)[0]).program_rows) == len(Elf(waiting.core).program_rows)


# --------------------------------------------------------------------------------- the memory


def test_a_process_that_is_killed_meanwhile_is_told(tmp_path: Path, waiting: Waiting) -> None:
    [case] = crashes.named("recursion")
    with running(case, tmp_path) as crash:
        pid = int(crash.core.name)
        crashed = Crashed(pid)
        start, end = (
            int(word, 16)
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if line.endswith("[stack]")
            for word in line.split()[0].split("-")
        )
        memory = DumpMemory([(1, 6, 0, start, 0, end - start, 4096)], crashed.memory)
        assert memory.is_there()
        assert memory.read(end - 16, 8) == memory.view(end - 16)[1][:8]  # type: ignore[index]
        with pytest.raises(MemoryFault, match="nothing was mapped"):
            memory.read(0x10, 8)
    with pytest.raises(MemoryFault, match="did not wait for us"):
        memory.read(end - 8192, 8)
    assert not DumpMemory([(1, 6, 0, start, 0, end - start, 4096)], crashed.memory).is_there()
    crashed.close()


def test_a_stack_is_complete_though_the_core_has_none_of_it(waiting: Waiting) -> None:
    """As of a core smaller than the pipe: coredump_filter is 0."""
    crashed = Crashed(waiting.pid)
    memory = DumpMemory(loads_of(Elf(waiting.core)), crashed.memory)
    bare = [(*row[:4], 0, row[5], row[6]) for row in loads_of(Elf(waiting.core))]
    for row in bare:
        if row[1]:
            assert DumpMemory(bare, crashed.memory).view(row[3]) == memory.view(row[3])
    crashed.close()


def test_the_line_of_the_readme_fits_into_core_pattern_and_is_understood() -> None:
    for name in ("README.md", "docs/crashes.md"):
        text = (ROOT / name).read_text()
        [line] = re.findall(r"sysctl kernel\.core_pattern='(.*)'", text)
        assert line[:2] == "|/"
        assert len(line) <= 127  # Linux v6.13 fs/coredump.c: CORENAME_MAX_SIZE is 128
        options = argument_parser("x", _declare).parse_args(line.split()[1:])
        assert (options.from_kernel, options.core) == (["%P", "%I", "%s"], None)


def test_its_options_are_for_the_kernels_call_only(store: Path, tmp_path: Path) -> None:
    for options, reason in (
        (["--store", str(store)], "no core is given"),
        (["--store", str(store), "core"], "--store is for --from-kernel"),
        (["--from-kernel", "1", "1", "11"], "takes --store DIR"),
        ([*words(1, store), "core"], "takes --store DIR"),
        ([*words(1, store), "--record", "x"], "takes --store DIR"),
        ([*words("%P", store)], "%P"),
    ):
        ran = python("-m", "unwind.cli.core", *options, cwd=tmp_path)
        assert ran.returncode == 2
        assert reason in ran.stderr
    assert list(store.iterdir()) == []
