"""The notes of cores of both classes and byte orders: threads, process, signal, auxv, files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import unwind.transports.core as transport
from tests.cores import NT_PRSTATUS, NT_SIGINFO, PAGE, Core, Load
from unwind.arch import x86_64
from unwind.architecture import Architecture, Layout
from unwind.core_notes import CoreNotes, read_notes
from unwind.elf import Elf
from unwind.errors import UnknownRegister, UnsupportedArchitecture
from unwind.files import Files
from unwind.snapshot import Signal

SHAPES = [(64, "<"), (64, ">"), (32, "<"), (32, ">")]
shapes = pytest.mark.parametrize(("bits", "order"), SHAPES)


def architecture(bits: int, order: str, **layouts: Layout) -> Architecture:
    """An ABI whose NT_PRSTATUS holds three registers, numbered 7, 16 and 3."""
    word = bits // 8
    offsets = {7: 72 + 2 * word, 16: 72, 3: 72 + 5 * word}
    layout = Layout(size=72 + 6 * word, width=word, offsets=offsets, signal=12, pid=24)
    found: Architecture = x86_64.ARCH.replace(
        elf_class=bits,
        byteorder="little" if order == "<" else "big",
        word=word,
        layouts={"linux.prstatus": layout, **layouts},
    )
    return found


def prstatus(core: Core, tid: int, signal: int, *words: int, size: int = 6) -> None:
    data = bytearray(72) + core.pack(f"{len(words)}P", *words).ljust(size * core.bits // 8, b"\0")
    struct.pack_into(core.order + "h", data, 12, signal)
    struct.pack_into(core.order + "i", data, 24, tid)
    core.note(NT_PRSTATUS, bytes(data))


def notes_of(core: Core, arch: Architecture | None = None) -> CoreNotes:
    return read_notes(Elf(core.build()), arch or architecture(core.bits, core.order))


@shapes
def test_a_core_of_any_class_and_byte_order(
    tmp_path: Path, bits: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = Core(bits, order, loads=[Load(0x7000, b"stack".ljust(PAGE, b"."))])
    prstatus(core, 12, 11, 0xAAAA, 1, 0xBBBB, 2, 3, 0xCCCC)
    prstatus(core, 13, 11)
    core.process(12, b"a name of fifte", b"the whole command line ")
    core.note(NT_SIGINFO, core.pack("iii" + ("xxxx" if bits == 64 else "") + "P", 11, 0, 2, 0xF00))
    core.auxv(phdr=0x1040, entry=0x1000)
    core.files((0x1000, 0x2000, 0, "/lib/one"), (0x5000, 0x7000, 0x3000, "/lib/two"))
    monkeypatch.setattr(transport, "architecture", lambda elf: architecture(bits, order))
    with transport.TRANSPORT.open(str(core.write(tmp_path / "core")), Files()) as source:
        assert source.signal == Signal(11, 2, 0xF00)
        assert (source.pid, source.command) == (12, "the whole command line")
        one, two = source.threads
        assert (one.tid, one.name, one.crashed) == (12, "a name of fifte", True)
        assert one.registers == {16: 0xAAAA, 7: 0xBBBB, 3: 0xCCCC}
        with pytest.raises(UnknownRegister):
            one.registers[99]
        assert (two.tid, two.name, two.crashed) == (13, None, False)
        assert source.memory.read(0x7000, 5) == b"stack"
    notes = notes_of(core)
    assert notes.auxv == {3: 0x1040, 9: 0x1000}
    assert notes.files is not None
    assert [(f.start, f.end, f.offset, f.name) for f in notes.files] == [
        (0x1000, 0x2000, 0, "/lib/one"),
        (0x5000, 0x7000, 0x3000, "/lib/two"),
    ]


@shapes
def test_registers_that_the_record_lacks_are_unknown(bits: int, order: str) -> None:
    core = Core(bits, order)
    prstatus(core, 1, 0, 0xAAAA, 0, 0xBBBB, size=3)
    notes = notes_of(core)
    assert notes.threads[0].registers == {16: 0xAAAA, 7: 0xBBBB}
    assert "cut short" in notes.warnings[0]


def test_a_record_of_another_size_may_have_its_own_layout() -> None:
    other = Layout(size=72 + 16, width=8, offsets={16: 72 + 8}, signal=12, pid=24)
    core = Core()
    prstatus(core, 1, 0, 0xAAAA, 0xBBBB, size=2)
    prstatus(core, 2, 0, 0xAAAA, 0xBBBB)
    notes = notes_of(core, architecture(64, "<", **{"qemu.prstatus": other}))
    assert [thread.registers[16] for thread in notes.threads] == [0xBBBB, 0xAAAA]


def test_registers_may_overlap_in_a_record() -> None:
    arch = architecture(64, "<")
    layout = Layout(size=120, width=8, offsets={0: 72, 1: 72, 2: 76}, signal=12, pid=24)
    core = Core()
    prstatus(core, 1, 0, 0x1111_0000_2222)
    notes = notes_of(core, arch.replace(layouts={"linux.prstatus": layout}))
    assert notes.threads[0].registers == {0: 0x1111_0000_2222, 1: 0x1111_0000_2222, 2: 0x1111}


def test_an_architecture_without_a_layout_is_unsupported() -> None:
    core = Core()
    prstatus(core, 1, 0)
    with pytest.raises(UnsupportedArchitecture, match="no layout of NT_PRSTATUS"):
        notes_of(core, architecture(64, "<").replace(layouts={}))


@pytest.mark.parametrize("before", [12, 16, 24], ids=["16-bit uids", "32-bit uids", "64-bit"])
def test_the_process_is_read_from_the_end_of_its_record(before: int) -> None:
    core = Core()
    data = bytes(before) + struct.pack("<4i16s80s", 7, 1, 7, 7, b"comm", b"x" * 80)
    core.note(3, data)
    notes = notes_of(core)
    assert (notes.pid, notes.name, notes.command) == (7, "comm", "x" * 80)


def test_a_name_that_is_no_utf8_can_be_opened_again() -> None:
    core = Core()
    core.files((0x1000, 0x2000, 0, "/lib"))
    core.notes[-1] = core.notes[-1].replace(b"/lib", b"/\xff\x1b")
    notes = notes_of(core)
    assert notes.files is not None
    assert notes.files[0].name == "/\udcff\x1b"


def test_the_first_of_two_values_in_auxv_counts_and_the_end_ends() -> None:
    core = Core()
    core.note(6, core.pack("10P", 3, 1, 3, 2, 0, 0, 9, 5, 9, 6) + b"rest")
    assert notes_of(core).auxv == {3: 1}
