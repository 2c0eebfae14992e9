"""CoreMemory: what the core dumped, then the files, then a fault that says why."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.cores import PAGE, R, W, X
from unwind.core_memory import CoreMemory
from unwind.errors import MemoryFault

DATA = bytes(range(256)) * 64  # four pages


def load(start: int, offset: int, held: int, size: int, flags: int = R | W) -> tuple[int, ...]:
    return (1, flags, offset, start, held, size, PAGE)


def fault(memory: CoreMemory, address: int, size: int = 8) -> str:
    with pytest.raises(MemoryFault) as caught:
        memory.read(address, size)
    assert (caught.value.address, caught.value.size) == (address, size)
    return caught.value.reason


def test_reads_run_on_from_one_mapping_into_the_next() -> None:
    memory = CoreMemory(DATA, [load(0x3000, 0, PAGE, PAGE), load(0x2000, 2 * PAGE, PAGE, PAGE, R)])
    assert memory.read(0x2FFC, 8) == DATA[3 * PAGE - 4 : 3 * PAGE] + DATA[:4]
    assert memory.read(0x3000, 0) == b""
    assert fault(memory, 0x3FFC) == "nothing was mapped there"
    assert fault(memory, 0x1FFC) == "nothing was mapped there"


def test_view_gives_the_stretch_without_a_copy() -> None:
    memory = CoreMemory(DATA, [load(0x2000, PAGE, 2 * PAGE, 3 * PAGE)])
    found = memory.view(0x3123)
    assert found is not None
    start, view = found
    assert (start, bytes(view)) == (0x2000, DATA[PAGE : 3 * PAGE])
    assert memory.view(0x4000) is None
    assert memory.view(0x1FFF) is None


def test_view_reads_what_is_short_instead_of_touching_the_mapping() -> None:
    reads = []

    def read(offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return DATA[offset : offset + size]

    memory = CoreMemory(DATA, [load(0x2000, PAGE, 2 * PAGE, 3 * PAGE)], read)
    found = memory.view(0x3123)
    assert found is not None
    assert (found[0], bytes(found[1])) == (0x3123, DATA[2 * PAGE + 0x123 : 3 * PAGE])
    assert reads == [(2 * PAGE + 0x123, PAGE - 0x123)]


def test_what_was_not_dumped_is_no_zero() -> None:
    memory = CoreMemory(DATA, [load(0x2000, 0, PAGE, 2 * PAGE), load(0x8000, 0, 0, PAGE, 0)])
    assert "coredump_filter" in fault(memory, 0x3000)
    assert "guard page" in fault(memory, 0x8000)
    memory.names[0x2000] = "/lib/libx.so"
    assert "/lib/libx.so" in fault(memory, 0x3000)


def test_files_serve_what_was_not_dumped_and_nothing_else() -> None:
    file = memoryview(b"F" * PAGE)
    rows = [load(0x2000, 0, 0, PAGE, R | X), load(0x3000, 0, 16, PAGE, R)]
    memory = CoreMemory(DATA, rows)
    memory.back(0x2000, file)
    memory.back(0x3000, file)
    assert memory.read(0x2000, 16) == b"F" * 16
    assert memory.read(0x2FF8, 16) == b"F" * 8 + DATA[:8]  # dumped bytes come first
    assert memory.read(0x300C, 8) == DATA[12:16] + b"FFFF"
    assert memory.view(0x2010) == (0x2010, file[16:])


def test_a_file_serves_where_gcore_wrote_no_header_at_all() -> None:
    memory = CoreMemory(DATA, [load(0x5000, 0, PAGE, PAGE)])
    memory.back(0x4000, memoryview(b"F" * 3 * PAGE))
    assert memory.read(0x4000, 4) == b"FFFF"
    assert memory.read(0x4FFE, 4) == b"FF" + DATA[:2]  # and never in place of what was dumped


def test_where_the_core_is_cut_it_says_how_much_is_there() -> None:
    memory = CoreMemory(DATA[:6000], [load(0x2000, PAGE, 3 * PAGE, 3 * PAGE)])
    assert memory.read(0x2000, 8) == DATA[PAGE : PAGE + 8]
    assert fault(memory, 0x2000 + 1900) == (
        "the core is truncated there (6000 of 16384 bytes present)"
    )


def test_a_file_does_not_serve_for_data_that_was_cut_off_but_for_code() -> None:
    rows = [load(0x2000, 9 * PAGE, PAGE, PAGE), load(0x3000, 10 * PAGE, PAGE, PAGE, R | X)]
    memory = CoreMemory(DATA, rows)
    memory.back(0x2000, memoryview(b"F" * 2 * PAGE))
    assert "truncated" in fault(memory, 0x2000)
    assert memory.read(0x3000, 4) == b"FFFF"


def test_headers_that_lie_do_no_harm() -> None:
    top = 1 << 64
    memory = CoreMemory(
        DATA,
        [
            load(top - PAGE, 0, PAGE, 1 << 63),
            load(0x2000, top - 1, top - 1, top - 1),
            load(0x3000, 0, PAGE, 0),
            load(0x2800, 0, PAGE, PAGE),
            load(0x9000, 0, 0, 0),
        ],
    )
    assert memory.read(top - 8, 8) == DATA[PAGE - 8 : PAGE]
    assert fault(memory, top - 4) == "nothing was mapped there"
    assert "truncated" in fault(memory, 0x2000)
    assert memory.read(0x3000, 4) == DATA[:4]
    assert fault(memory, 0x2000, 1 << 62) == "more than is read at once"
    assert fault(memory, 0x2000, -1) == "more than is read at once"
    ranges = [(start, end) for start, end, _ in memory.mappings()]
    assert ranges == sorted(ranges)
    assert all(one[1] <= other[0] for one, other in pairwise(ranges))


def test_executable_knows_three_answers() -> None:
    memory = CoreMemory(DATA, [load(0x2000, 0, PAGE, PAGE, R | X), load(0x3000, 0, PAGE, PAGE)])
    assert memory.executable(0x2FFF) is True
    assert memory.executable(0x3000) is False
    assert memory.executable(0x4000) is None


def test_the_mapping_around_code_is_told_as_the_list_of_mappings_has_it() -> None:
    rows = [
        load(0x1000, 0, 0, 0x2000, R | X),
        load(0x2000, 0, 0, 0x2000, R | X),
        load(0x5000, 0, 0, 16),
    ]
    memory = CoreMemory(b"", rows)  # the first reaches into the second
    for start, end, executable in memory.mappings():
        expected = (start, end) if executable else None
        assert memory.code(start) == memory.code(end - 1) == expected
    assert [memory.code(at) for at in (0xFFF, 0x4000, 0x5000)] == [None] * 3
    assert memory.code(0x1FFF) == (0x1000, 0x2000)


def test_after_close_there_is_no_memory() -> None:
    memory = CoreMemory(DATA, [load(0x2000, 0, PAGE, PAGE)])
    memory.close()
    fault(memory, 0x2000)
