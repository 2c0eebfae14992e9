"""Very many events: each stack as its program recorded it, each event received or counted."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crashes import OMIT, compile_c
from tests.events import need_bpf
from tests.support import ROOT, need
from tests.truth import CLONE
from unwind.arch.x86_64 import RDI
from unwind.fast import FastUnwinder
from unwind.files import Files
from unwind.frames import Trust
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.transports.ring_buffer import TRANSPORT, RingOptions
from unwind.unwinder import Unwinder

DEPTH = 120  # a call of the recursion takes two frames
LIBC = 2  # frames behind a thread's first function: start_thread, clone
TAIL = {"start_thread", *CLONE, None}  # local symbols are in debug files only


@pytest.fixture(autouse=True)
def _bpf() -> None:
    need_bpf()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc")
    made = tmp_path_factory.mktemp("marks") / "marks"
    compile_c("gcc", (*OMIT, "-pthread"), ("marks.c",), made)
    return made


@contextmanager
def waiting(program: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, which begins when its standard input is closed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([program, *words], stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def recorded(path: Path) -> dict[int, list[int]]:
    """The return addresses of each event, innermost first."""
    data, size = path.read_bytes(), 8 * (DEPTH + 8)
    found = {}
    for number in range(len(data) // size):
        count, *words = struct.unpack_from(f"{DEPTH + 8}Q", data, number * size)
        found[number] = words[:count]
    return found


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_every_stack_of_thousands_is_the_recorded_one(
    program: Path, tmp_path: Path, exact: bool
) -> None:
    """The frames are found by CFI, all of them, out to where the C library made the thread."""
    threads, events, rate = (2, 300, 300) if exact else (4, 2500, 1500)
    walked: dict[int, list[int]] = {}
    record = tmp_path / "record"
    with (
        waiting(program, str(record), *map(str, (threads, events, DEPTH, rate))) as process,
        Files() as files,
        TRANSPORT.open(
            # There is room for all of them, however slow this machine is at the moment.
            f"{program}:mark",
            files,
            RingOptions(pid=process.pid, stack_size=1 << 14, ring_size=1 << 28),
        ) as source,
    ):
        unwinder = Unwinder(source.arch)
        fast = FastUnwinder(unwinder)
        names = Names(TableSymbolizer())
        assert process.stdin is not None
        process.stdin.close()
        for event in source.events(30):
            snapshot = source.snapshot(event)
            pcs = None if exact else fast.pcs(snapshot)
            if pcs is None:
                stack = unwinder.unwind(snapshot)
                assert stack.end == "outermost", stack.detail
                assert {frame.trust for frame in stack.frames} == {Trust.CONTEXT, Trust.CFI}
                assert exact, "the fast walk is for such stacks"
                pcs = [frame.pc for frame in stack.frames]
                last = stack.frames[-LIBC:]
                assert {names.name(f.module, f.pc, f.lookup_pc).symbol for f in last} <= TAIL
            else:
                assert fast.trusts(snapshot.space, pcs) is None
            walked[event.registers[RDI]] = pcs
            if len(walked) == threads * events:
                break
        assert source.dropped() == 0
    truth = recorded(record)
    assert len(truth) == len(walked) == threads * events
    # The return address into mark's caller is the only one that it does not record itself.
    wrong = [n for n, pcs in walked.items() if pcs[2 : len(pcs) - LIBC + 1] != truth[n]]
    assert wrong == []
    assert len({pcs[1] for pcs in walked.values()}) == 1
    assert len({len(pcs) for pcs in walked.values()}) >= 50


def test_what_is_sent_is_received_or_counted_as_dropped(program: Path) -> None:
    threads, events = 2, 50_000
    received, numbers = 0, set()
    with (
        waiting(program, "-", str(threads), str(events), str(DEPTH)) as process,
        Files() as files,
        TRANSPORT.open(
            f"{program}:mark", files, RingOptions(pid=process.pid, ring_size=1 << 20)
        ) as source,
    ):
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)  # meanwhile nobody looks
        source.stop()
        for event in source.events():
            received += 1
            numbers.add(event.registers[RDI])
        assert received == source.received == source.sent() == len(numbers)
        assert received > 20
        assert source.dropped() == threads * events - received
        assert source.damaged == {}


LIMIT = 1 << 30  # bytes


def test_malloc_of_everything_does_not_eat_the_machine() -> None:
    """Without a pid: all allocations of the machine, ours and those that we cause excepted."""
    libc = "/lib/x86_64-linux-gnu/libc.so.6"
    words = ("--symbol", f"{libc}:malloc", "--duration", "1", "--quiet")
    with subprocess.Popen(  # allocates for as long as it lives
        [sys.executable, "-c", "while True: [bytearray(n) for n in range(9999)]"]
    ) as eater:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "unwind.cli.memleak", *words],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
            )
        finally:
            eater.kill()
    assert done.returncode == 0, done.stderr
    counts = dict(line.split(": ") for line in done.stdout.splitlines())
    assert int(counts["events"]) > 100
