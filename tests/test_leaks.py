"""unwind-memleak -c and -p: what a program has not freed, against the program's own record."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOMEM
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from tests.crashes import OMIT, compile_c
from tests.events import need_bpf
from tests.profile_readers import Pprof
from tests.support import ROOT, as_nobody, need, python, validate_leaks
from unwind.bpf.libbpf import BpfError
from unwind.cli import memleak
from unwind.files import Files
from unwind.transports.ring_buffer import TRANSPORT, RingBufferSource, RingOptions

MODULE = "unwind.cli.memleak"
DEEPEST = 128  # tests/programs/leaks.c
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
# Who allocates in the program besides it itself: the C library's own, of a thread or at the start.
OTHERS = {"pthread_create", "__pthread_create", "_dl_init", "_dl_non_dynamic_init"}


class Block(NamedTuple):
    """An allocation that was not freed: bytes, and return addresses, innermost first."""

    size: int
    calls: tuple[int, ...]


@pytest.fixture(autouse=True)
def _bpf() -> None:
    need_bpf()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tests/programs/leaks.c by its linkage."""
    need("gcc", "musl-gcc")
    home = tmp_path_factory.mktemp("two words")
    flags = (*OMIT, "-pthread")
    built = {
        "dynamic": ("gcc", flags),
        "static": ("gcc", (*flags, "-static")),
        "musl": ("musl-gcc", flags),
        "musl-static": ("musl-gcc", (*flags, "-static")),
    }
    for name, (compiler, words) in built.items():
        compile_c(compiler, words, ("leaks.c",), home / name)
    return {name: home / name for name in built}


def recorded(path: Path) -> dict[int, Block]:
    """What the program has not freed, by address."""
    data, size = path.read_bytes(), 8 * (DEEPEST + 3)
    found = {}
    for at in range(0, len(data), size):
        address, length, count, *calls = struct.unpack_from(f"{DEEPEST + 3}Q", data, at)
        found[address] = Block(length, tuple(calls[:count]))
    return found


def watched(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command, when it has ended."""
    return subprocess.run(
        [sys.executable, "-m", MODULE, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def document_of(command: str, *options: str, **more: Any) -> dict[str, Any]:
    """The last report of a command, which is valid."""
    done = watched("-c", command, "--json", *options, **more)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    validate_leaks(found)
    return found


def leaked(found: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Address, bytes and the stack of each allocation."""
    for leak in found["leaks"]:
        assert leak["count"] == len(leak["allocations"])
        assert leak["bytes"] == sum(each["bytes"] for each in leak["allocations"])
        for each in leak["allocations"]:
            yield int(each["address"], 16), each["bytes"], leak["stack"]


def assert_exact(found: dict[str, Any], truth: dict[int, Block]) -> None:
    """Each block of the record is there with its bytes and calls, and no other one of its code."""
    met = set()
    for address, size, stack in leaked(found):
        block = truth.get(address)
        if block is None:
            names = {frame.get("symbol") for frame in stack["frames"]}
            assert not names.isdisjoint(OTHERS) or None in names, names
            continue
        met.add(address)
        assert size == block.size
        assert stack["end"]["reason"] == "outermost"
        pcs = [int(frame["pc"], 16) for frame in stack["frames"]]
        # The allocator's function, and the return address into the function that called it.
        assert tuple(pcs[2 : 2 + len(block.calls)]) == block.calls
        assert {frame["trust"] for frame in stack["frames"]} <= {"context", "cfi", "emulation"}
    assert met == truth.keys()
    left = sum(leak["count"] for leak in found["leaks"])
    assert found["events"] == found["freed"] + found["gone"] + left
    assert found["outstanding"]["count"] == left
    assert found["complete"] == found["events"]
    assert found["dropped"] == 0
    nothing = {"bytes": 0, "count": 0}
    assert found["off"] == {"missing": nothing, "too_much": nothing}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(("dynamic", ""), ("dynamic", "fork"), ("dynamic", "exec")),
        *(("static", ""), ("musl", ""), ("musl-static", "")),
    ],
)
def test_every_leak_is_the_recorded_one(
    programs: dict[str, Path], tmp_path: Path, name: str, more: str
) -> None:
    """By each function, in each thread, at each depth; bytes, count and stack of each."""
    record = tmp_path / "record"
    found = document_of(f"'{programs[name]}' '{record}' 2 25 70 {more}", "-a")
    truth = recorded(record)
    assert found["gone"] == (more == "exec")
    assert len(truth) > 500
    assert len({block.calls for block in truth.values()}) > 60
    assert_exact(found, truth)


def test_thousands_of_blocks_at_fifty_depths(programs: dict[str, Path], tmp_path: Path) -> None:
    """There is room for all of their stacks, however seldom somebody looks."""
    record = tmp_path / "record"
    words = ("-a", "--ring-size", "256", "--stack-size", "16")
    found = document_of(f"'{programs['dynamic']}' '{record}' 1 260 112", *words)
    truth = recorded(record)
    assert found["events"] > 10_000
    assert len({len(block.calls) for block in truth.values()}) >= 50
    assert_exact(found, truth)


def test_stacks_that_look_known_are(tmp_path: Path) -> None:
    """Of many thousands of a few kinds one in 1,024 is walked again."""
    need("gcc")
    program = tmp_path / "churn"
    compile_c("gcc", (*OMIT, "-pthread"), ("churn.c",), program)
    with waiting(program, "2", "0", "0", "50") as process:
        words = ("-p", str(process.pid), "--json", "-o", "0", "0.5")
        with watching(*words) as command:
            assert command.stdout is not None
            command.stdout.readline()  # it is attached
            tell(process)
            assert process.stdout is not None
            pairs = int(process.stdout.readline().split()[0])
            command.send_signal(signal.SIGINT)
            printed, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    found = json.loads(printed.splitlines()[-1])
    assert found["events"] >= pairs >= 200_000
    assert found["checked"] > 50
    assert found["mistaken"] == 0


@pytest.mark.parametrize("library", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4"])
def test_another_allocator_is_watched_by_its_file(
    programs: dict[str, Path], tmp_path: Path, library: str
) -> None:
    file = LIBRARIES / library
    assert file.exists(), f"tests/debian-packages.txt has the package of {file}"
    record = tmp_path / "record"
    command = f"env LD_PRELOAD={file} '{programs['dynamic']}' '{record}' 2 25 70"
    found = document_of(command, "-a", "-O", str(file))
    truth, files = recorded(record), set()
    for address, size, stack in leaked(found):
        files.add(found["modules"][stack["frames"][0]["module"]]["name"])
        if address in truth:
            block = truth.pop(address)
            pcs = [int(frame["pc"], 16) for frame in stack["frames"]]
            assert (size, tuple(pcs[2 : 2 + len(block.calls)])) == block
    assert {os.path.realpath(name) for name in files} == {os.path.realpath(file)}
    # What is left is of functions that the file has not: mmap, and the C library's pvalloc.
    assert all(address % 4096 == 0 for address in truth)
    assert len(truth) < 200


def test_new_and_delete_are_seen_through(tmp_path: Path) -> None:
    need("g++")
    program = tmp_path / "new"
    compile_c("g++", OMIT, ("leaks_new.cpp",), program)
    done = watched("-c", str(program), "--json")
    assert done.returncode == 0
    size, count = map(int, done.stderr.split()[-2:])
    found = json.loads(done.stdout)
    ours = [
        leak
        for leak in found["leaks"]
        if any("leak_" in (frame.get("function") or "") for frame in leak["stack"]["frames"])
    ]
    assert len(ours) == 3
    assert (sum(leak["bytes"] for leak in ours), sum(leak["count"] for leak in ours)) == (
        *(size, count),
    )
    assert all(leak["count"] == 10 for leak in ours)


LATE = """\
#include <poll.h>
#include <stdlib.h>
static void *volatile kept;
int main(void)
{
	struct pollfd input = { 0, POLLIN, 0 };

	while (!poll(&input, 1, 10))	/* until it may read */
		kept = malloc(1000);
	return 0;
}
"""


def test_a_program_that_another_one_becomes_has_its_own_allocator(tmp_path: Path) -> None:
    need("gcc")
    source, program = tmp_path / "late.c", tmp_path / "late"
    source.write_text(LATE)
    subprocess.run(["gcc", *OMIT, "-static", source, "-o", program], check=True)
    words = ("-c", f"sh -c 'exec $0' '{program}'", "--json", "-z", "1000", "-Z", "1000", "-o", "0")
    with watching(*words, "0.2") as command:
        assert command.stdin is not None
        assert command.stdout is not None
        while not json.loads(command.stdout.readline())["leaks"]:
            pass
        command.stdin.close()
        command.stdin = None
        printed, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    [leak] = json.loads(printed.splitlines()[-1])["leaks"]
    assert leak["bytes"] == 1000 * leak["count"]
    assert leak["stack"]["frames"][1]["function"] == "main"
    assert f"{program} was mapped later" in said


@contextmanager
def waiting(program: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The program, which is done with its work when its output says so."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([program, *words], stdin=pipe, stdout=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


SLEEPER = """\
import ctypes, sys, time
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
print("ready", flush=True)
sys.stdin.readline()
for n in range(7):
    libc.malloc(ctypes.c_size_t(100_000 + n))
gone = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(200_000))) for _ in range(5)]
for block in gone:
    libc.free(block)
print("done", flush=True)
sys.stdin.readline()
"""


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[str]]:
    """A process that leaks seven blocks of 100,000 bytes and some, once it is told to."""
    with waiting(Path(sys.executable), "-c", SLEEPER) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


@contextmanager
def watching(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once its probes are there: a process with links has them."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, *words],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_running_process_is_reported_again_and_again() -> None:
    words = ("--json", "-z", "100000", "-Z", "150000", "-o", "0")
    with sleeper() as process, watching("-p", str(process.pid), *words, "0.3") as command:
        assert command.stdout is not None
        assert json.loads(command.stdout.readline())["leaks"] == []
        tell(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        command.stdout.readline()  # it may have been made meanwhile
        found = json.loads(command.stdout.readline())
        command.send_signal(signal.SIGINT)
        rest, said = command.communicate(timeout=60)
        assert process.poll() is None, "it runs on"
    assert command.returncode == 0, said
    last = json.loads(rest.splitlines()[-1])
    for report in (found, last):
        validate_leaks(report)
        assert report["pid"] == process.pid
        assert sum(leak["count"] for leak in report["leaks"]) == 7
        assert sum(leak["bytes"] for leak in report["leaks"]) == sum(range(100_000, 100_007))
        assert report["events"] == 7


def test_as_many_reports_as_were_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "reports"
    file.write_text("of before\n")
    with sleeper() as process:
        done = watched("-p", process.pid, "--json", "0.2", "3")
        assert process.poll() is None
        kept = watched("-p", process.pid, "--json", "--output", file, "0.2", "2")
    assert done.returncode == kept.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert kept.stdout == ""
    reports = [json.loads(line) for line in file.read_text().splitlines()]
    assert [report["pid"] for report in reports] == [process.pid] * 2


def test_calls_are_told_one_by_one() -> None:
    with (
        sleeper() as process,
        watching("-p", str(process.pid), "-t", "-z", "100000", "0.5") as command,
    ):
        assert command.stdout is not None
        command.stdout.readline()  # a report: it is attached
        tell(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        process.kill()
        rest, said = command.communicate(timeout=60)
    assert command.returncode == 0, said
    made, gone = (
        re.findall(rf"^\[{kind}\] pid=\d+ tid=\d+ time=\S+ address=(\S+) size=(\d+)", rest, re.M)
        for kind in ("alloc", "free")
    )
    assert [size for _, size in made] == [*map(str, range(100_000, 100_007)), *["200000"] * 5]
    assert gone == made[-5:]


def test_sums_of_the_kernel_are_those_of_the_blocks(
    programs: dict[str, Path], tmp_path: Path
) -> None:
    command = f"'{programs['static']}' '{tmp_path / 'record'}' 1 30 70"
    single, sums = document_of(command), document_of(command, "--combined-only")
    assert single["outstanding"] == sums["outstanding"]
    keys = [
        sorted((leak["bytes"], leak["count"]) for leak in found["leaks"])
        for found in (single, sums)
    ]
    assert keys[0] == keys[1]
    assert all("oldest" not in leak for leak in sums["leaks"])


def test_sizes_and_samples_and_the_largest_alone(programs: dict[str, Path], tmp_path: Path) -> None:
    record = tmp_path / "record"
    command = f"'{programs['dynamic']}' '{record}' 1 100 60"
    found = document_of(command, "-a", "-z", "50", "-Z", "90")
    truth = {a: block for a, block in recorded(record).items() if 50 <= block.size <= 90}
    assert len(truth) > 100
    assert {a: size for a, size, _ in leaked(found)} == {a: b.size for a, b in truth.items()}
    found = document_of(command, "-a", "-s", "10", "-T", "3")
    assert len(found["leaks"]) == 3
    sampled = found["outstanding"]["count"]
    assert 0.02 * len(recorded(record)) < sampled < 0.3 * len(recorded(record))
    assert found["events"] == found["freed"] + sampled


def test_what_has_no_room_is_counted(programs: dict[str, Path], tmp_path: Path) -> None:
    record = tmp_path / "record"
    found = document_of(f"'{programs['dynamic']}' '{record}' 0 100 60", "--max-blocks", "100")
    left = found["outstanding"]["count"]
    assert left <= 100
    assert found["dropped"] == found["off"]["missing"]["count"] > 500
    missing = sum(block.size for block in recorded(record).values()) - found["outstanding"]["bytes"]
    assert 0 < missing <= found["off"]["missing"]["bytes"]
    text = watched("-c", f"'{programs['dynamic']}' '{record}' 0 100 60", "--max-blocks", "100")
    assert re.search(r"for \d+ allocations of \d+ bytes there was no room", text.stdout)


def test_the_text_has_the_largest_stacks_first(programs: dict[str, Path], tmp_path: Path) -> None:
    done = watched("-c", f"'{programs['dynamic']}' '{tmp_path / 'record'}' 1 20 60", "-T", "4")
    assert done.returncode == 0, done.stderr
    sizes = [int(n) for n in re.findall(r"^ {4}(\d+) bytes in \d+ allocat", done.stdout, re.M)]
    assert len(sizes) == 4
    assert sizes == sorted(sizes, reverse=True)
    assert re.search(r"^        by_\w+\+0x[0-9a-f]+ \(dynamic\)$", done.stdout, re.M)
    assert "stacks complete: 100.00 %" in done.stdout
    assert done.stdout.count("dropped: 0") == 1


@pytest.mark.parametrize("form", ["--folded", "--pprof", "--flamegraph"])
def test_profiles_weigh_bytes(programs: dict[str, Path], tmp_path: Path, form: str) -> None:
    record, file = tmp_path / "record", tmp_path / "out.html"
    where = (form, str(file)) if form == "--flamegraph" else (form, "--output", str(file))
    done = watched("-c", f"'{programs['dynamic']}' '{record}' 0 20 60", *where)
    assert done.returncode == 0, done.stderr
    data = file.read_bytes()
    if form == "--pprof":
        read = Pprof(data)
        weights = read.stacks(read.types.index(("outstanding", "bytes")))
        assert sum(weights.values()) >= sum(block.size for block in recorded(record).values())
    elif form == "--folded":
        total = sum(int(line.rpartition(" ")[2]) for line in data.decode().splitlines())
        assert total >= sum(block.size for block in recorded(record).values())
        assert ";by_malloc;" in data.decode()
    else:
        assert b"by_malloc" in data


def test_only_the_command_that_is_there_is_begun(tmp_path: Path) -> None:
    for command in ("no-such-command-here", f"'{tmp_path}'"):
        done = watched("-c", command)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    done = watched("-p", str(2**22 - 3))
    assert done.returncode == 2
    assert "no process" in done.stderr
    done = watched("-c", "true", "-O", "/bin/true")
    assert done.returncode == 2
    assert "no functions of an allocator" in done.stderr


def test_modes_do_not_mix() -> None:
    for words in (("-c", "true", "-p", "1"), ("-c", "true", "--symbol", "do_exit")):
        done = python("-m", MODULE, *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    done = python("-m", MODULE)
    assert done.returncode == 2
    for mode in ("-p PID", "-c COMMAND", "--symbol", "--bpf"):
        assert mode in done.stderr


def test_nobody_is_told_what_helps() -> None:
    done = as_nobody(MODULE, "-c", "true")
    assert done.returncode == 2
    assert "only the privileged" in done.stderr
    assert "sudo" in done.stderr


def test_a_command_that_runs_on_is_ended(tmp_path: Path) -> None:
    begun = tmp_path / "pid"
    done = watched("-c", f"sh -c 'echo $$ > {begun}; exec sleep 1000'", "--duration", "1")
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


LIMIT = 1 << 30  # bytes


def test_a_process_that_does_nothing_but_allocate_does_not_eat_the_machine() -> None:
    """However many stacks it has, and however late they are looked at."""
    code = "while True: [bytearray(n) for n in range(9999)]"
    with waiting(Path(sys.executable), "-c", code) as eater:
        done = watched(
            *("-p", str(eater.pid), "--json", "-o", "0", "--duration", "1.5", "0.5"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
        )
        assert eater.poll() is None
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) >= 2
    events = [report["events"] for report in reports]
    assert events == sorted(events)
    assert events[-1] > 1000


def test_where_there_is_no_memory_for_a_large_ring_a_small_one_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked, watch = [], TRANSPORT.watch

    def scarce(where: Any, files: Files, options: RingOptions) -> RingBufferSource:
        asked.append(options.ring_size >> 20)
        if options.ring_size > 1 << 23:
            raise BpfError("no room", number=ENOMEM)
        return watch(where, files, options)

    with patch.object(TRANSPORT, "watch", scarce):
        assert memleak.main(["-c", "true", "--json"]) == 0
    assert asked == [128, 32, 8]
    validate_leaks(json.loads(capsys.readouterr().out))
