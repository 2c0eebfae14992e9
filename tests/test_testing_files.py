"""ELF files and cores that strategies make: what was put in is read, damage gives typed errors."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings

from unwind.elf import Elf
from unwind.errors import UnwindError
from unwind.files import Files
from unwind.frames import End, Stack
from unwind.image import Image
from unwind.symbol_sections import symbols_of
from unwind.testing.cores import CoreMade, core_files, damaged_core_files
from unwind.testing.elves import ElfMade, damaged_elf_files, elf_files
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder


@settings(max_examples=100)
@given(elf_files())
def test_what_was_put_into_an_elf_file_is_read(made: ElfMade) -> None:
    elf = Elf(made.data, "made")
    assert (elf.header.elf_class, elf.header.byteorder) == made.shape
    assert [(s.vaddr, bytes(s.data), s.memory_size) for s in elf.segments] == [
        (s.vaddr, s.data, len(s.data) if s.memory_size is None else s.memory_size)
        for s in made.segments
    ]
    for section in made.sections:
        found = elf.section(section.name)
        assert found is not None
        assert (
            found.size == len(section.data)
            or [s.name for s in made.sections].count(section.name) > 1
        )
    if made.sections:
        table = symbols_of(elf, lambda: None)
        for symbol in made.symbols:
            if symbol.size:
                assert table.find(symbol.value) is not None
    event(f"{len(made.sections)} sections, {len(made.symbols)} symbols")


@settings(max_examples=250)
@given(damaged_elf_files())
def test_a_damaged_elf_file_is_read_or_refused(data: bytes) -> None:
    try:
        image = Image(Elf(data, "damaged"))
        image.at(0x1000)
        _ = image.build_id, image.frame_sections, image.segments
        for section in image.frame_sections:
            list(section.entries())
        symbols_of(image.elf, lambda: None).find(0x1000)
        event("read")
    except UnwindError:
        event("refused")


def unwound(data: bytes, limit: int = 1000) -> Stack:
    """The stack of the first thread of a core."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "core")
        path.write_bytes(data)
        with Files() as files, TRANSPORT.open(str(path), files) as source:
            for snapshot in source.snapshots():
                return Unwinder(source.arch, limit=limit).unwind(snapshot)
    return Stack((), End.UNKNOWN_REGISTER)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(core_files())
def test_the_backtrace_of_a_core_is_the_one_it_was_made_for(made: CoreMade) -> None:
    stack = unwound(made.data)
    assert [(f.pc, f.cfa) for f in stack.frames] == [(f.pc, f.cfa) for f in made.frames]
    assert stack.end == End.OUTERMOST


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(damaged_core_files())
def test_a_damaged_core_gives_a_stack_or_a_typed_error(made: CoreMade) -> None:
    try:
        stack = unwound(made.data)
        right = [f.pc for f in stack.frames] == [f.pc for f in made.frames]
        event("the same" if right else stack.end)
    except UnwindError as error:
        event(type(error).__name__)
