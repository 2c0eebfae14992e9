"""Damaged debug info costs what it hides, in bounded time, and never raises."""

from __future__ import annotations

import time
from random import Random

import pytest

from tests.debug_files import asked, debug_areas, debug_files, lines_of
from unwind.elf import Elf
from unwind.errors import UnwindError

NAMES = ("gcc3.debug", "gcc5.debug", "clang5.debug", "split5.debug")


def flipped(data: bytes, chance: Random) -> bytes:
    """`data` with one to four bytes of its debug sections changed."""
    broken = bytearray(data)
    areas = [area for area in debug_areas(data) if area.end > area.start]
    for _ in range(chance.randint(1, 4)):
        area = chance.choice(areas)
        broken[chance.randrange(area.start, area.end)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(broken)


@pytest.mark.parametrize("name", NAMES)
def test_sound_files_have_all_lines_and_what_is_inlined(name: str) -> None:
    lines = lines_of(debug_files()[name])
    chains = [chain for chain in asked(lines) if chain]
    assert list(lines.problems) == []
    assert len(chains) > 10
    assert {place.function for chain in chains for place in chain} >= {"first", "outer"}
    assert all(place.file and place.file.endswith("small.c") for c in chains for place in c)


@pytest.mark.parametrize("name", NAMES)
def test_a_few_broken_bytes_raise_nothing_and_take_no_time(name: str) -> None:
    data, told, changed = debug_files()[name], 0, 0
    sound = asked(lines_of(data))
    start = time.process_time()
    for seed in range(400):
        lines = lines_of(flipped(data, Random(seed)))
        found = asked(lines)
        told += bool(lines.problems)
        changed += found != sound
        assert all(
            ": .debug_" in problem or "supplementary" in problem for problem in lines.problems
        )
    assert told > 40
    assert changed > told / 2
    assert time.process_time() - start < 60  # a loop without end, not a slow machine


def section(data: bytes, name: str) -> tuple[int, int]:
    found = Elf(data).section(name)
    assert found is not None
    return found.offset, found.size


def test_a_damaged_line_program_leaves_the_functions() -> None:
    data = bytearray(debug_files()["gcc5.debug"])
    offset, _ = section(data, ".debug_line")
    data[offset + 4 : offset + 6] = b"\x09\x00"  # a version that nobody knows
    lines = lines_of(bytes(data))
    chains = [chain for chain in asked(lines) if chain]
    assert {place.function for chain in chains for place in chain} >= {"first", "outer"}
    assert {place.file for chain in chains for place in chain} == {None}
    [problem] = lines.problems
    assert problem == "file: .debug_line at offset 0x0: a line program of version 9"


def test_damaged_entries_leave_the_lines() -> None:
    data = bytearray(debug_files()["gcc5.debug"])
    offset, size = section(data, ".debug_info")
    whole = asked(lines_of(bytes(data)))
    for at in range(offset + 60, offset + size):
        data[at] = 0xFF
    lines = lines_of(bytes(data))
    found = asked(lines)
    assert [chain[0].line for chain in found if chain] == [c[0].line for c in whole if c]
    assert {place.function for chain in found for place in chain} == {None}
    assert any(".debug_info" in problem for problem in lines.problems)


def test_a_table_of_endless_files_is_refused() -> None:
    data = bytearray(debug_files()["gcc5.debug"])
    offset, _ = section(data, ".debug_line")
    # The header's formats: none for folders, and 2**62 of them.
    at = offset + 4 + 2 + 2 + 4 + 6 + data[offset + 17] - 1
    data[at : at + 10] = b"\x00" + b"\xff" * 8 + b"\x3f"
    start = time.process_time()
    lines = lines_of(bytes(data))
    asked(lines)
    assert time.process_time() - start < 5
    assert lines.problems


def test_what_is_no_debug_info_is_a_typed_error_or_nothing() -> None:
    for data in (b"", b"\x7fELF", debug_files()["gcc5.debug"][:100]):
        try:
            assert not any(asked(lines_of(data)))
        except UnwindError:
            pass
