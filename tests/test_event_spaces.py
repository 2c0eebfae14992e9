"""Address spaces at events: what the kernel tells of processes, put together by time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from unwind.arch.x86_64 import ARCH
from unwind.events import spaces as events_spaces
from unwind.events.spaces import Spaces
from unwind.files import Files
from unwind.perf.constants import MISC, RECORD

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
