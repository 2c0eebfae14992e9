"""BPF objects for all architectures: what they say of their events, and events made by that."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.events import objects_built, record, types_of
from tests.support import ROOT, python
from unwind.arch.arm64 import ARCH as ARM64
from unwind.arch.mips32 import MIPS32, MIPS32EL
from unwind.arch.x86_64 import ARCH as X86_64
from unwind.arch.x86_64 import RIP, RSP
from unwind.architecture import Architecture
from unwind.bpf.btf import Btf
from unwind.bpf.objects import built_in
from unwind.elf import Elf
from unwind.errors import FormatError, MemoryFault
from unwind.events.event import Event
from unwind.events.memory import EventMemory
from unwind.files import Files
from unwind.snapshot import Snapshot
from unwind.space import AddressSpace
from unwind.transports.core import TRANSPORT as CORES
from unwind.unwinder import unwind

ARCHES = (X86_64, ARM64, MIPS32, MIPS32EL)


@pytest.fixture(autouse=True)
def _objects() -> None:
    objects_built()


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
def test_an_object_is_of_the_byte_order_of_its_architecture(arch: Architecture) -> None:
    header = Elf(Path(built_in(arch.name)).read_bytes()).header
    assert (header.machine, header.elf_class, header.byteorder) == (247, 64, arch.byteorder)


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
def test_registers_are_the_users_in_dwarf_order(arch: Architecture) -> None:
    _, btf = types_of(arch)
    numbers = [arch.register_number(name) for name in btf.struct("registers").members]
    assert None not in numbers
    assert numbers == sorted(set(numbers), key=lambda n: n or 0)
    wanted = {
        n for n in arch.layouts["linux.prstatus"].offsets if n < 31 or n in (arch.pc, arch.sp)
    }
    assert wanted <= set(numbers)


@pytest.mark.parametrize("arch", ARCHES, ids=lambda arch: arch.name)
def test_an_event_is_read_as_its_struct_says(arch: Architecture) -> None:
    layout, btf = types_of(arch)
    width = 8 * arch.word
    numbers = [arch.register_number(name) or 0 for name in btf.struct("registers").members]
    registers = {n: (0x1111_1111_1111_1111 * (n % 15 + 1) + n) % (1 << width) for n in numbers}
    stack = bytes(range(256)) * 16
    event = layout.decode(record(arch, registers, stack, b"left", ip=0x99, time=123, cookie=77))
    assert dict(event.registers) == registers
    assert (event.pid, event.tid, event.comm, event.time) == (7, 8, "program", 123)
    assert (event.ip, event.cookie, event.cut) == (0x99, 77, False)
    assert event.start == registers[arch.sp] & -4096
    assert bytes(event.stack) == stack, "what lies behind the length is not looked at"


def test_mips_has_no_saved_registers_where_a_system_call_keeps_none() -> None:
    layout, btf = types_of(MIPS32)
    flag = btf.enum("event_flag")["EVENT_SYSCALL_REGISTERS"]
    names = btf.struct("registers").members
    registers = {MIPS32.register_number(name) or 0: 5 for name in names}
    event = layout.decode(record(MIPS32, registers, flags=flag))
    lost = {MIPS32.register_name(n) for n in registers.keys() - event.registers.keys()}
    assert lost == {f"s{n}" for n in range(9)}


@pytest.mark.parametrize("flag", ["EVENT_KERNEL_THREAD", "EVENT_COMPAT"])
def test_what_is_no_64_bit_user_has_neither_registers_nor_stack(flag: str) -> None:
    layout, btf = types_of(X86_64)
    event = layout.decode(record(X86_64, {RSP: 5, RIP: 6}, flags=btf.enum("event_flag")[flag]))
    assert (event.is_kernel_thread, event.is_compat) == (flag[6] == "K", flag[6] == "C")
    assert dict(event.registers) == {}
    assert bytes(event.stack) == b""


@pytest.mark.parametrize("name", ["x86_64", "arm64", "mips32el"])
def test_a_recorded_event_unwinds_as_the_core_of_that_moment(name: str, tmp_path: Path) -> None:
    archive = ROOT / f"examples/{name}-crash.tar.xz"
    python("-W", "ignore", "-m", "tarfile", "-e", archive, tmp_path).check_returncode()
    with Files(sysroot=str(tmp_path)) as files, CORES.open(str(tmp_path / "core"), files) as core:
        for thread in core.threads:
            truth = unwind(thread)
            event = _event_of(thread, core.arch)
            kept = Snapshot(event.registers, EventMemory(event, thread.space), thread.space)
            found = unwind(kept)
            assert found.end == truth.end == "outermost"
            assert [f.pc for f in found.frames] == [f.pc for f in truth.frames]
            assert len(found.frames) > 3


def _event_of(thread: Snapshot, arch: Architecture) -> Event:
    """What a program in the kernel would have sent of a thread of a core."""
    layout, _ = types_of(arch)
    pages = []
    at = thread.registers[arch.sp] & -4096
    try:
        while len(pages) < 64:
            pages.append(thread.memory.read(at + 4096 * len(pages), 4096))
    except MemoryFault:
        pass
    return layout.decode(record(arch, thread.registers, b"".join(pages)))


# ------------------------------------------------------------------ damaged and hostile


@pytest.mark.parametrize(
    "fields",
    [
        {"version": 0},
        {"version": 2},
        {"arch": 183},
        {"pid": 0},
        {"tid": 0},
        {"pid": 1 << 31},
        {"stack_length": 8192},
        {"stack_length": 0xFFFF_F000},
        {"stack_length": 100},
        {"stack_start": 0x7FFF_0001},
    ],
    ids=str,
)
def test_a_hostile_event_is_a_format_error(fields: dict[str, int]) -> None:
    layout, _ = types_of(X86_64)
    good = record(X86_64, {RSP: 0x7FFF_0010, RIP: 1}, bytes(4096))
    assert len(layout.decode(good).stack) == 4096
    with pytest.raises(FormatError):
        layout.decode(record(X86_64, {RSP: 0x7FFF_0010, RIP: 1}, bytes(4096), **fields))


@given(st.data())
def test_of_any_bytes_there_is_an_event_that_unwinds_or_a_format_error(data: st.DataObject) -> None:
    layout, _ = types_of(X86_64)
    good = bytearray(record(X86_64, {RSP: 0x7FFF_0010, RIP: 0x40_0000}, bytes(4096)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))
    try:
        event = layout.decode(bytes(good[:cut]))
    except FormatError:
        return
    assert len(event.stack) <= cut
    space = AddressSpace(X86_64, [])
    unwind(Snapshot(event.registers, EventMemory(event, space), space))


@given(st.data())
def test_of_any_btf_there_are_structs_or_a_format_error(data: st.DataObject) -> None:
    elf = Elf(Path(built_in("x86_64")).read_bytes())
    section = elf.section(".BTF")
    assert section is not None
    good = bytearray(elf.data(section))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.one_of(st.integers(0, 23), st.integers(0, len(good) - 1)))
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(good)), st.integers(0, len(good))))
    try:
        btf = Btf(bytes(good[:cut]), "little")
        btf.struct("event")
        btf.enum("event_flag")
    except FormatError:
        pass
