"""Address spaces at events: what the kernel tells of processes, put together by time."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.crashes import compile_c
from tests.events import caught, need_bpf
from tests.support import need
from unwind.arch.x86_64 import ARCH
from unwind.events import spaces as events_spaces
from unwind.events.spaces import Spaces
from unwind.files import Files
from unwind.perf.changes import Changes
from unwind.perf.constants import MISC, RECORD
from unwind.perf.files import CodeFiles
from unwind.perf.processes import Processes

SECOND = 1_000_000_000


@pytest.fixture
def spaces() -> Iterator[Spaces]:
    """Of no machine: nothing is told but by `told`."""
    with patch.object(events_spaces, "processors", list), patch.object(Spaces, "_look_around"):
        made = Spaces(ARCH, Files())
    yield made
    made.close()


def told(spaces: Spaces, time: int, kind: int, body: bytes, misc: int = 0) -> None:
    """A record of the kernel's, with its time at the end."""
    whole = struct.pack("=IHH", kind, misc, 16 + len(body)) + body + struct.pack("=Q", time)
    spaces._waiting.append((time, kind, misc, whole))


def lives(pid: int, parent: int) -> bytes:
    """The body of a fork or an exit."""
    return struct.pack("=IIIIQ", pid, parent, pid, parent, 0)


def runs(spaces: Spaces, time: int, pid: int, path: bytes, start: int) -> None:
    """An exec, and the mapping of its code."""
    told(spaces, time, RECORD.comm, struct.pack("=II8s", pid, pid, b"name"), MISC.comm_exec)
    mapping = struct.pack("=IIQQQ24xII", pid, pid, start, 4096, 0, 4, 2)
    told(spaces, time + 1, RECORD.mmap2, mapping + path.ljust(16, b"\0"))


def names(spaces: Spaces, pid: int) -> list[str]:
    return [region.name for region in spaces.of(pid, pid).regions if region.name[:1] == "/"]


NOBODY = 1 << 29  # above any process' number


def test_of_one_process_alone_nothing_is_kept_of_others() -> None:
    class Ring:
        def records(self) -> list[tuple[int, int, int, bytes]]:
            return waiting

        def close(self) -> None:
            """There is nothing to close."""

    with patch.object(events_spaces, "processors", list):
        made = Spaces(ARCH, Files(), only=NOBODY)
    told(made, 5, RECORD.lost, struct.pack("=QQ", 1, 7))
    for pid in (NOBODY + 1, NOBODY, NOBODY + 2):
        told(made, 10, RECORD.fork, lives(pid, 1))
        runs(made, 20, pid, b"/one", 0x1000)
    waiting, made._waiting = made._waiting, []
    made._rings.append(Ring())  # type: ignore[arg-type]
    made.collect()
    made.until(30)
    assert names(made, NOBODY)[0].startswith("/one")
    assert [names(made, NOBODY + n) for n in (1, 2)] == [[], []]
    assert made.changes.lost == 7
    made.close()


def test_what_is_mapped_is_so_from_its_time_on(spaces: Spaces) -> None:
    told(spaces, 10, RECORD.fork, lives(NOBODY, 1))
    runs(spaces, 20, NOBODY, b"/one", 0x1000)
    runs(spaces, 30, NOBODY, b"/two", 0x1000)
    for time, there in ((21, ["/one"]), (29, ["/one"]), (31, ["/two"]), (40, ["/two"])):
        spaces.until(time)
        assert names(spaces, NOBODY) == there


def test_what_has_ended_keeps_its_mappings_for_a_second(spaces: Spaces) -> None:
    told(spaces, 10, RECORD.fork, lives(NOBODY, 1))
    runs(spaces, 20, NOBODY, b"/one", 0x1000)
    told(spaces, 30, RECORD.exit, lives(NOBODY, 1))
    spaces.until(30 + SECOND)
    assert names(spaces, NOBODY) == ["/one"]
    spaces.until(31 + SECOND)
    assert names(spaces, NOBODY) == []
    assert spaces._ended == {}


def test_a_number_that_is_taken_again_is_of_another_process(spaces: Spaces) -> None:
    told(spaces, 10, RECORD.fork, lives(NOBODY, 1))
    runs(spaces, 20, NOBODY, b"/one", 0x1000)
    told(spaces, 30, RECORD.exit, lives(NOBODY, 1))
    told(spaces, 40, RECORD.fork, lives(NOBODY, 1))
    spaces.until(40)
    assert names(spaces, NOBODY) == []
    runs(spaces, 50, NOBODY, b"/two", 0x1000)
    spaces.until(31 + SECOND)
    assert names(spaces, NOBODY) == ["/two"], "the end of the first is none of the second's"


def test_of_a_process_that_nobody_told_of_nothing_is_known(spaces: Spaces) -> None:
    assert names(spaces, NOBODY) == []


def test_others_who_record_meanwhile_are_told_nothing_else(tmp_path: Path) -> None:
    """The kernel lets one who asks for build-ids write into the records of all others."""
    need("perf", "gcc")
    need_bpf()
    program = tmp_path / "program"
    compile_c("gcc", ("-O2",), ("burn.c",), program)
    recording = tmp_path / "perf.data"
    words = ["perf", "record", "-q", "-e", "cpu-clock:u", "-o", recording, program, "900"]
    with caught("cpu-clock@9"):
        ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shown = subprocess.run(
        ["perf", "script", "-i", recording, "--show-mmap-events"], capture_output=True, text=True
    )
    lines = [line for line in shown.stdout.splitlines() if "PERF_RECORD_MMAP2" in line]
    mapped = [line for line in lines if "r-xp /" in line]
    assert len(mapped) > 2
    for line in mapped:
        inode = os.stat(line.partition("r-xp ")[2]).st_ino
        assert f" {inode} " in line, line


def test_a_device_is_taken_for_no_build_id() -> None:
    """As in a recording that was made while somebody else asked for build-ids."""
    for device, expected in (
        (struct.pack("=IIQQ", 254, 0, 0x52DB4, 0x5BE6001F), None),
        (struct.pack("=IIQQ", 8, 1, 7, 0), None),
        (struct.pack("=IIQQ", 259, 1, 7, 0), None),
        (bytes([20, 0, 0, 0]) + bytes(range(20)), bytes(range(20))),
        (bytes([16, 0, 0, 0]) + bytes(range(16)) + bytes(4), bytes(range(16))),
    ):
        processes = Processes(ARCH, CodeFiles(Files(), {}, None))
        body = struct.pack("=IIQQQ", 7, 7, 0x1000, 0x1000, 0) + device
        body += struct.pack("=II", 5, 0) + b"/none\0\0\0"
        record = struct.pack("=IHH", RECORD.mmap2, MISC.mmap_build_id, 8 + len(body)) + body
        Changes(processes, "<").take(RECORD.mmap2, MISC.mmap_build_id, memoryview(record))
        [mapped] = processes.process(7).mapped
        assert mapped.build_id == expected
