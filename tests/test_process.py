"""The parts of the transport of live processes: /proc, copies, memory, plans."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.arch.x86_64 import ARCH, FS_BASE, RSP
from unwind.errors import MemoryFault
from unwind.live import copies, ptrace
from unwind.live.copies import Copier, Stretch
from unwind.live.memory import LiveMemory
from unwind.live.proc import Mapped, Proc, mapped
from unwind.live.seen import Seen
from unwind.live.stacks import StackPlan

ME = os.getpid()
MAPS = b"""\
00400000-00401000 r--p 00000000 fe:00 77 /opt/a b (deleted)
00401000-00403000 r-xp 00001000 fe:00 77 /opt/a b (deleted)
00403000-00404000 rw-p 00003000 fe:00 77 /opt/a b (deleted)
00404000-00406000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 ---p 00000000 00:00 0
7f0000001000-7f0000100000 rw-p 00000000 00:00 0
7f1000000000-7f1000001000 r-xp 00000000 00:01 9 /memfd:new\\012line (deleted)
7ffc00000000-7ffc00100000 rw-p 00000000 00:00 0                          [stack]
7ffc00200000-7ffc00202000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


# ---------------------------------------------------------------------------------------- /proc


def test_a_line_of_maps_is_taken_apart() -> None:
    lines = list(mapped(MAPS))
    assert lines[0] == Mapped(0x400000, 0x401000, "r--p", 0, 77, "/opt/a b (deleted)")
    assert lines[1].offset == 0x1000
    assert [line.name for line in lines[3:6]] == ["", "", ""]
    assert lines[6].name == "/memfd:new\nline (deleted)"
    assert [line.name for line in lines[7:]] == ["[stack]", "[vdso]", "[vsyscall]"]
    assert [line.executable for line in lines[:3]] == [False, True, False]
    assert [line.writable for line in lines[:3]] == [False, False, True]
    assert not lines[4].readable


@given(st.binary(max_size=200))
def test_a_line_that_is_none_is_left_out_or_refused(text: bytes) -> None:
    try:
        list(mapped(text))
    except ValueError:
        return


def test_a_status_is_what_the_process_itself_knows() -> None:
    with Proc(ME) as proc:
        status = proc.status()
        assert (status.pid, status.parent, status.uid) == (ME, os.getppid(), os.getuid())
        assert (status.state, status.tracer, status.dead) == ("R", 0, False)
        assert proc.threads()[0] == ME
        assert not proc.is_kernel_thread()
        words = Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")
        assert proc.command() == " ".join(words)


def test_a_process_that_is_gone_is_not_taken_for_its_successor() -> None:
    """The directory was opened before: whoever gets the number later is somebody else."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    proc = Proc(child)
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        proc.read("maps")
    with pytest.raises((ProcessLookupError, FileNotFoundError)):
        proc.threads()
    proc.close()


# --------------------------------------------------------------------------------------- copies


@contextmanager
def room(pages: int, hole: int | None = None) -> Iterator[int]:
    """The address of so many pages of ours, each filled with its number; one may be taken away."""
    area = mmap(-1, 4096 * pages)
    for n in range(pages):
        area[4096 * n : 4096 * (n + 1)] = bytes([n + 1]) * 4096
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    if hole is not None:
        assert not libc.mprotect(ctypes.c_void_p(address + 4096 * hole), 4096, 0)
    yield address
    if hole is not None:
        assert not libc.mprotect(ctypes.c_void_p(address + 4096 * hole), 4096, 3)


@contextmanager
def own_memory() -> Iterator[int]:
    handle = os.open("/proc/self/mem", os.O_RDONLY)
    yield handle
    os.close(handle)


@given(
    ranges=st.lists(st.tuples(st.integers(0, 20000), st.integers(0, 20000)), max_size=8),
    first=st.integers(1, 9000),
    at_once=st.integers(1, 9000),
    vectors=st.booleans(),
)
def test_copies_are_the_bytes_that_lie_there(
    ranges: list[tuple[int, int]], first: int, at_once: int, vectors: bool
) -> None:
    """However they overlap, and in however many calls; by process_vm_readv and by /proc alike."""
    with (
        room(5) as address,
        own_memory() as handle,
        patch.multiple(copies, _FIRST=first, _AT_ONCE=at_once),
    ):
        copier = Copier(ME, handle)
        copier._vectors = vectors
        wanted = [(address + low, address + high) for low, high in ranges]
        found = copier.copy(wanted, lambda: True)
        covered = {at for low, high in ranges for at in range(low, high)}
        assert sum(stretch.filled for stretch in found) == len(covered)
        for stretch in found:
            assert stretch.filled == stretch.end - stretch.start
            skip = stretch.start - address
            expected = bytes((skip + n) // 4096 + 1 for n in range(stretch.filled))
            assert bytes(stretch.data) == expected
            assert set(range(skip, skip + stretch.filled)) <= covered


@pytest.mark.parametrize("vectors", [True, False])
def test_a_copy_goes_as_far_as_can_be_read(vectors: bool) -> None:
    with room(6, hole=2) as address, own_memory() as handle:
        copier = Copier(ME, handle)
        copier._vectors = vectors
        wanted = [(address, address + 4 * 4096), (address + 4 * 4096 + 8, address + 5 * 4096)]
        one, other = copier.copy(wanted, lambda: True)
    if vectors:  # /proc/PID/mem reads even what the process itself may not
        assert (one.filled, one.lacking) == (2 * 4096, "the kernel does not read it")
    assert other.filled == 4096 - 8


def test_when_time_is_up_the_beginnings_are_there() -> None:
    with room(6) as address, own_memory() as handle, patch.object(copies, "_FIRST", 100):
        calls = iter([True, False])
        wanted = [(address + 8192 * n, address + 8192 * n + 4096) for n in range(3)]
        found = Copier(ME, handle).copy(wanted, lambda: next(calls))
    assert [stretch.filled for stretch in found] == [100] * 3
    assert all("--max-stop" in stretch.lacking for stretch in found)


def test_what_is_too_much_is_not_copied() -> None:
    with room(6) as address, own_memory() as handle, patch.object(copies, "_MOST", 4096 + 10):
        wanted = [(address, address + 4096), (address + 8192, address + 3 * 4096)]
        one, other = Copier(ME, handle).copy(wanted, lambda: True)
    assert (one.filled, other.filled) == (4096, 10)
    assert other.lacking == copies.TOO_MUCH


def test_the_memory_of_a_process_that_is_gone_ends_the_copying() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    [found] = Copier(child, -1).copy([(4096, 8192)], lambda: True)
    assert (found.filled, found.lacking) == (0, copies.ENDED)
    assert Copier(child, -1).later(4096, memoryview(bytearray(8))) == 0


# --------------------------------------------------------------------------------------- memory


def made(stretch: Stretch | None = None) -> tuple[LiveMemory, list[int]]:
    """A memory over MAPS of which a stretch was copied; what it reads afterwards is listed."""
    asked: list[int] = []

    def read(address: int, room: memoryview) -> int:
        asked.append(address)
        room[:] = bytes(len(room))
        return len(room)

    return LiveMemory([stretch] if stretch else [], list(mapped(MAPS)), read), asked


def test_of_what_may_have_changed_only_copies_are_read() -> None:
    stretch = Stretch(0x7FFC000FF000, 0x7FFC00100000, memoryview(b"abcd" * 16))
    stretch.filled = 64
    memory, asked = made(stretch)
    assert memory.read(0x7FFC000FF000, 4) == b"abcd"
    view = memory.view(0x7FFC000FF010)
    assert view is not None
    assert (view[0], bytes(view[1])) == (0x7FFC000FF000, b"abcd" * 16)
    for address, words in (
        (0x7FFC000FF040, "--max-stop"),
        (0x7FFC00000000, "only stacks are copied"),
        (0x404000, "only stacks are copied"),
        (0x7F0000000000, "a guard page"),
        (0x10, "nothing was mapped there"),
        (1 << 63, "nothing was mapped there"),
    ):
        with pytest.raises(MemoryFault, match=words):
            memory.read(address, 8)
    assert asked == []
    assert memory.read(0x401FFC, 8) == bytes(8)
    assert memory.read(0x401FFC, 8) == bytes(8)
    assert asked == [0x401000, 0x402000]  # once each: what was read stays what it was
    with pytest.raises(MemoryFault, match="more than"):
        memory.read(0x401000, 1 << 40)
    with pytest.raises(MemoryFault):
        memory.read(0x401000, -1)


def test_code_that_can_be_written_to_is_read_but_where_a_stack_lies() -> None:
    """A JIT makes it; a program with an executable stack has code and frames in one mapping."""
    line = b"7e0000000000-7e0000004000 rwxp 00000000 00:00 0 \n"
    place, asked = 0x7E0000001000, list[int]()

    def read(address: int, room: memoryview) -> int:
        asked.append(address)
        return len(room)

    memory = LiveMemory([], list(mapped(line)), read)
    assert memory.read(place, 8) == bytes(8)
    assert asked == [place]
    stretch = Stretch(place + 0x1000, place + 0x2000, memoryview(bytes(0x1000)))
    stretch.filled = 0x1000
    memory = LiveMemory([stretch], list(mapped(line)), read)
    assert memory.read(place + 0x1000, 8) == bytes(8)
    with pytest.raises(MemoryFault, match="only stacks are copied"):
        memory.read(place, 8)
    assert asked == [place]


def test_code_of_a_process_that_is_gone_comes_from_its_file() -> None:
    memory = LiveMemory([], list(mapped(MAPS)), lambda _address, _room: 0)
    with pytest.raises(MemoryFault, match="has ended"):
        memory.read(0x401000, 4)
    memory = LiveMemory([], list(mapped(MAPS)), lambda _address, _room: 0)
    memory.back(0x401000, memoryview(b"\x90" * 0x2000))
    assert memory.read(0x401FFE, 4) == b"\x90" * 4
    memory.close()
    with pytest.raises(MemoryFault):
        memory.read(0x401FFE, 4)


# ---------------------------------------------------------------------------------------- plans


def plan_of(sp: int, thread_pointer: int = 0, leader: bool = True) -> set[tuple[int, int]]:
    """What is copied because of a thread with these registers, and not in any case."""
    layout = ARCH.layouts["linux.prstatus"]
    record = bytearray(27 * 8)
    for register, value in ((RSP, sp), (FS_BASE, thread_pointer)):
        at = layout.offsets[register] - 112
        record[at : at + 8] = value.to_bytes(8, "little")

    def planned(registers: dict[int, bytes]) -> set[tuple[int, int]]:
        seen = Seen(5)
        seen.registers, seen.maps = registers, MAPS
        return set(StackPlan(ARCH)(seen))

    return planned({5 if leader else 6: bytes(record)}) - planned({})


def test_a_stack_is_copied_from_its_red_zone_to_its_top() -> None:
    assert plan_of(0x7FFC000FE008) == {(0x7FFC000FDF80, 0x7FFC00100000)}
    assert plan_of(0x7FFC00000008) == {(0x7FFC00000000, 0x7FFC00100000)}
    assert plan_of(0x7F0000001010, leader=False) == {(0x7F0000001000, 0x7F0000100000)}


def test_without_a_stack_there_is_nothing_to_copy() -> None:
    whole = {(0x7FFC00000000, 0x7FFC00100000)}  # of the leader: that it comes from
    assert plan_of(0) == plan_of(0x7F0000000800) == plan_of(1 << 63) == whole
    assert plan_of(0, leader=False) == set()


def test_who_is_elsewhere_has_the_stack_it_comes_from_copied_too() -> None:
    """A handler's alternate stack in the heap: nobody knows how deep the other one is."""
    assert plan_of(0x405000) == {(0x404F80, 0x406000), (0x7FFC00000000, 0x7FFC00100000)}
    own = plan_of(0x405000, thread_pointer=0x7F00000FF6C0, leader=False)
    assert own == {(0x404F80, 0x406000), (0x7F0000001000, 0x7F0000100000)}


def test_in_any_case_headers_variables_and_the_kernels_code_are_copied() -> None:
    seen = Seen(5)
    seen.maps = MAPS
    assert set(StackPlan(ARCH)(seen)) == {
        (0x400000, 0x401000),
        (0x403000, 0x404000),
        (0x404000, 0x406000),
        (0x7F1000000000, 0x7F1000001000),
        (0x7FFC00200000, 0x7FFC00202000),
    }


def test_calls_that_fail_tell_why() -> None:
    for call in (ptrace.seize, ptrace.interrupt, ptrace.detach, ptrace.regset):
        with pytest.raises(ProcessLookupError):
            call(1 << 30)
    with pytest.raises(ChildProcessError):
        ptrace.wait(1)
