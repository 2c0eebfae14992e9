"""Mappings to modules: which mapped files are loaded images, at what bias, and of what file."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cores import PAGE, R, W, X, lines, shared_object
from tests.crashes import Case, Library, crash
from tests.support import need, run
from unwind.files import Files
from unwind.mappings import Mapping, modules_of
from unwind.memory import Layers, Span
from unwind.modules import Module, State
from unwind.transports.core import TRANSPORT
from unwind.unwinder import unwind

BASE = 0x7F00_0000_0000
ID = bytes(range(20))


def image(*segments: tuple[int, int, int, int, int], build_id: bytes | None = ID) -> bytes:
    """A file of these (flags, offset, vaddr, file size, memory size), headers in the first."""
    data = bytearray(shared_object(build_id))
    data += bytes(max(0, max(at + size for _, at, _, size, _ in segments) - len(data)))
    note = None
    for n in range(data[56]):
        row = data[64 + 56 * n : 64 + 56 * (n + 1)]
        if row[0] == 4:
            note = row
    rows = [
        struct.pack("<IIQQQQQQ", 1, flags, at, vaddr, 0, size, memory, PAGE)
        for flags, at, vaddr, size, memory in segments
    ]
    rows += [bytes(note)] if note else []
    data[64 : 64 + 56 * len(rows)] = b"".join(rows)
    data[56] = len(rows)
    return bytes(data)


class Space:
    """What is mapped, where code may run, and what memory holds of it."""

    def __init__(self) -> None:
        self.mappings: list[Mapping] = []
        self.spans: list[Span] = []
        self.code: dict[int, bool | None] = {}
        self.lent: list[tuple[int, bytes, bool]] = []

    def map(
        self, name: str, start: int, offset: int, size: int, code: bool | None, data: bytes = b""
    ) -> None:
        self.mappings.append(Mapping(start, start + size, offset, name))
        self.code[start] = code
        if data:
            self.spans.append(Span(start, data))

    def map_all(self, name: str, base: int, data: bytes, *, header: bool = True) -> None:
        """Maps a `shared_object` as the kernel does, and keeps its first page in memory."""
        for start, end, offset, _ in lines(base, name):
            page = data[:PAGE] if header and not offset else b""
            self.map(name, start, offset, end - start, offset != 0, page)

    def modules(self, files: Files | None = None, inside_main: int = 0) -> list[Module]:
        return modules_of(
            self.mappings,
            Layers(self.spans),
            files or Files(),
            executable=lambda address: self.code.get(address),
            inside_main=inside_main,
            lend=lambda start, data, code: self.lent.append((start, bytes(data), code)),
            lacking="not there",
        )


def put(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def placed(modules: Sequence[Module]) -> list[tuple[int, tuple[tuple[int, int], ...], str]]:
    return [(m.bias, m.ranges, m.state) for m in modules]


def test_a_file_that_is_loaded_twice_is_two_modules(tmp_path: Path) -> None:
    space, data = Space(), shared_object(ID)
    name = put(tmp_path / "lib.so", data)
    far = BASE + 0x1000_0000
    space.map_all(name, far, data)
    space.map_all(name, BASE, data)
    found = space.modules()
    assert placed(found) == [
        (BASE, ((BASE, BASE + 2 * PAGE),), State.OK),
        (far, ((far, far + 2 * PAGE),), State.OK),
    ]
    assert found[0].image is found[1].image


def test_the_bytes_of_a_found_file_are_lent(tmp_path: Path) -> None:
    space, data = Space(), shared_object(ID)
    space.map_all(put(tmp_path / "lib.so", data), BASE, data)
    space.modules()
    assert space.lent == [
        (BASE, data[:PAGE], False),
        (BASE + PAGE, data[PAGE : 2 * PAGE], True),
    ]


def test_a_file_that_is_mapped_as_data_is_no_module(tmp_path: Path) -> None:
    space, data = Space(), shared_object(ID)
    elf, text = put(tmp_path / "lib.so", data), put(tmp_path / "text", b"some text")
    space.map(elf, BASE, 0, 2 * PAGE, False, data)
    space.map(text, BASE + 0x10_0000, 0, PAGE, False, b"some text")
    space.map(text, BASE + 0x20_0000, 0, PAGE, True, b"some code")  # a compiler's own file
    space.map(text, BASE + 0x30_0000, 0, PAGE, None)  # where nothing tells: the file does
    space.map("/gone", BASE + 0x40_0000, 0, PAGE, False)
    space.map("/gone", BASE + 0x50_0000, PAGE, PAGE, False)
    assert space.modules() == []


def test_an_image_without_code_is_a_module(tmp_path: Path) -> None:
    data = image((R, 0, 0, PAGE, PAGE), (R | W, PAGE, PAGE, PAGE, PAGE))
    space = Space()
    name = put(tmp_path / "data.so", data)
    space.map(name, BASE, 0, PAGE, False, data[:PAGE])
    space.map(name, BASE + PAGE, PAGE, PAGE, False)
    assert [m.state for m in space.modules()] == [State.OK]


def test_several_segments_with_code_and_holes_are_one_module(tmp_path: Path) -> None:
    data = image(
        (R | X, 0, 0, PAGE, PAGE),
        (R, PAGE, 0x20_0000, PAGE, PAGE),
        (R | X, 2 * PAGE, 0x40_0000, PAGE, PAGE),
        (R | W, 3 * PAGE, 0x60_0000, PAGE, 3 * PAGE),
    )
    space = Space()
    name = put(tmp_path / "lib.so", data)
    space.map(name, BASE, 0, PAGE, True, data[:PAGE])
    space.map(name, BASE + 0x1000, PAGE, 0x1F_F000, False)  # what ld.so makes PROT_NONE
    space.map(name, BASE + 0x20_0000, PAGE, PAGE, False)
    space.map("/else", BASE + 0x30_0000, 0, PAGE, True)  # somebody moved into the hole
    space.map(name, BASE + 0x40_0000, 2 * PAGE, PAGE, True)
    space.map(name, BASE + 0x60_0000, 3 * PAGE, PAGE, False)
    found = space.modules()
    assert [(m.name, m.bias, m.state) for m in found] == [
        (name, BASE, State.OK),
        ("/else", BASE + 0x30_0000, State.MISSING),
    ]
    assert found[0].ranges == (
        (BASE, BASE + 0x20_1000),
        (BASE + 0x40_0000, BASE + 0x40_1000),
        (BASE + 0x60_0000, BASE + 0x60_1000),
    )


def test_a_small_program_maps_its_first_page_twice(tmp_path: Path) -> None:
    """Without -z separate-code one page of the file is code, and data as well."""
    data = image((R | X, 0, 0x40_0000, 0x800, 0x800), (R | W, 0x800, 0x60_0800, 0x100, 0x200))
    space = Space()
    name = put(tmp_path / "small", data)
    space.map(name, 0x40_0000, 0, PAGE, True, data[:PAGE])
    space.map(name, 0x60_0000, 0, PAGE, False, data[:PAGE])
    assert placed(space.modules()) == [
        (0, ((0x40_0000, 0x40_1000), (0x60_0000, 0x60_1000)), State.OK)
    ]


def test_a_bias_may_be_negative(tmp_path: Path) -> None:
    data = image((R | X, 0, 0x7000_0000, PAGE, PAGE))
    space = Space()
    space.map(put(tmp_path / "low", data), 0x1000_0000, 0, PAGE, True, data[:PAGE])
    found = space.modules()[0]
    assert found.to_vaddr(0x1000_0010) == 0x7000_0010
    assert found.to_pc(0x7000_0010) == 0x1000_0010


# ----------------------------------------------------------------------- which file serves


def test_other_program_headers_than_in_memory_are_a_mismatch(tmp_path: Path) -> None:
    space, data = Space(), shared_object(ID)
    other = shared_object(ID, b"\xc3" * 33)
    space.map_all(put(tmp_path / "lib.so", other), BASE, data)
    found = space.modules()
    assert (found[0].state, found[0].image, found[0].build_id) == (State.MISMATCH, None, ID)
    assert "program headers differ" in found[0].tried[-2]
    assert found[0].tried[-1] == "not there"


def test_without_build_ids_the_first_pages_are_compared(tmp_path: Path) -> None:
    data = shared_object(None, filler=b"one")
    same, other = (
        put(tmp_path / "same", data),
        put(tmp_path / "other", data.replace(b"one", b"two")),
    )
    space = Space()
    space.map_all(same, BASE, data)
    space.map_all(other, BASE + 0x10_0000, data)
    assert [m.state for m in space.modules()] == [State.OK, State.MISMATCH]


def test_where_memory_has_no_headers_the_mappings_are_compared(tmp_path: Path) -> None:
    same, longer = shared_object(ID), shared_object(ID, b"\xc3" * (PAGE + 1))
    space = Space()
    space.map_all(put(tmp_path / "same", same), BASE, same, header=False)
    space.map_all(put(tmp_path / "longer", longer), BASE + 0x10_0000, same, header=False)
    found = space.modules()
    assert [(m.bias, m.state) for m in found] == [
        (BASE, State.OK),
        (BASE + 0x10_0000, State.MISMATCH),
    ]
    assert found[0].build_id == ID
    assert "its segments are not those in memory" in found[1].tried[-2]


@pytest.mark.parametrize("executable", [True, None])
def test_a_module_may_be_missing_altogether(executable: bool | None) -> None:
    space = Space()
    space.map("/gone", BASE, 0, PAGE, False if executable else None)
    space.map("/gone", BASE + PAGE, PAGE, PAGE, executable)
    space.map("/gone", BASE + 2 * PAGE, 2 * PAGE, PAGE, False if executable else None)
    found = space.modules()
    assert placed(found) == [(BASE, ((BASE, BASE + 3 * PAGE),), State.MISSING)]
    assert found[0].image is None


def test_memory_serves_where_it_holds_code_and_cfi() -> None:
    data = shared_object(ID)
    space = Space()
    space.map_all("/gone", BASE, data)
    assert space.modules()[0].state == State.MISSING
    space.spans.append(Span(BASE + PAGE, data[PAGE:]))
    found = space.modules()[0]
    assert (found.state, found.file) == (State.MEMORY_ONLY, None)
    assert found.image is not None
    assert found.image.read(PAGE, 4) == b"\xc3" * 4


def test_the_main_program_is_where_its_headers_are(tmp_path: Path) -> None:
    data = shared_object(ID)
    mine = put(tmp_path / "mine", data)
    space = Space()
    space.map_all("/program", BASE, data)
    space.map_all("/lib.so", BASE + 0x10_0000, data)
    found = space.modules(Files(executable=mine), inside_main=BASE + 0x10_0040)
    assert [m.file for m in found] == [None, mine]


@pytest.mark.parametrize("mask", ["0x23", "0x0"])
def test_a_replaced_library_is_not_used_whatever_the_core_lacks(tmp_path: Path, mask: str) -> None:
    """0x23 leaves the pages with headers out, 0 all others too; the segments are the same."""
    case = Case(
        mask,
        ("dlopen.c",),
        ("{directory}/plugin.so", "callback", mask, "{directory}/other.so"),
        flags=("-O2", "-rdynamic"),
        libraries=(
            Library("plugin.so", "plugin.c"),
            Library("other.so", "plugin.c", ("-DOTHER", "-Os")),
        ),
        by="kernel",
    )
    with TRANSPORT.open(str(crash(case, tmp_path).core), Files()) as source:
        states = {m.name.rpartition("/")[2]: m.state for m in source.space.modules}
        assert states["plugin.so (deleted)"] in (State.MISMATCH, State.MISSING)
        assert states["program"] == states["libc.so.6"] == State.OK


def test_a_library_rewritten_in_place_is_known_by_its_dynamic_section(tmp_path: Path) -> None:
    case = Case(
        "in-place",
        ("dlopen.c",),
        ("{directory}/plugin.so", "callback", "0x23"),
        flags=("-O2", "-rdynamic"),
        libraries=(Library("plugin.so", "plugin.c"), Library("o.so", "plugin.c", ("-DOTHER",))),
        by="kernel",
    )
    made = crash(case, tmp_path)
    # The core is made to say that the file was there still, under a name of the same length.
    new = b"plugin.so.rewritten"
    made.core.write_bytes(made.core.read_bytes().replace(b"plugin.so (deleted)", new))
    (tmp_path / new.decode()).write_bytes((tmp_path / "o.so").read_bytes())
    with TRANSPORT.open(str(made.core), Files()) as source:
        plugin = next(m for m in source.space.modules if m.name.endswith(new.decode()))
        assert plugin.state == State.MISMATCH
        assert "its dynamic section is another one" in plugin.tried[-2]


# ------------------------------------------------------------------------------------ many


def test_a_database_of_a_hundred_thousand_mappings_is_passed_over(tmp_path: Path) -> None:
    space = Space()
    for n in range(100_000):
        space.mappings.append(
            Mapping(BASE + 2 * n * PAGE, BASE + (2 * n + 1) * PAGE, n % 7 * PAGE, "/data")
        )
    space.code = dict.fromkeys((m.start for m in space.mappings), False)
    assert space.modules() == []


PIECE = r"""
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>

__attribute__((noinline)) int leaf(volatile int *p) { return *p; }
__attribute__((noinline)) int deep(volatile int *p) { return leaf(p) + 1; }

int main(void)
{
    uintptr_t page = (uintptr_t)deep & ~4095ul;
    extern char __executable_start[];
    int file = open("/proc/self/exe", O_RDONLY);
    char *again = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file,
                       page - (uintptr_t)__executable_start);
    int (*copy)(volatile int *) = (void *)(again + ((uintptr_t)deep - page));

    return copy(0) + 1;
}
"""


def test_code_that_a_program_maps_once_more_has_its_files_cfi(tmp_path: Path) -> None:
    """As V8 maps its built-in functions near the code that it compiles."""
    need("gcc", "gdb")
    (tmp_path / "piece.c").write_text(PIECE)
    build = "gcc -O2 -fomit-frame-pointer -fno-ipa-icf -o piece piece.c".split()
    subprocess.run(build, cwd=tmp_path, check=True)
    script = ["-ex", "run", "-ex", "generate-core-file core"]
    run("gdb", "-nx", "-batch", *script, str(tmp_path / "piece"), cwd=tmp_path)
    with Files() as files, TRANSPORT.open(str(tmp_path / "core"), files) as source:
        [snapshot] = source.snapshots()
        frames = unwind(snapshot).frames
        found = [m for m in source.space.modules if m.name.endswith("/piece")]
        names = [
            frame.module.image.symbols.find(frame.module.to_vaddr(frame.lookup_pc)).name
            for frame in frames[:3]
            if frame.module is not None and frame.module.image is not None
        ]
    assert len(found) == 2
    assert names == ["leaf", "deep", "main"]
    assert [frame.trust for frame in frames[1:4]] == ["cfi", "cfi", "cfi"]
    assert frames[0].module is not frames[2].module
