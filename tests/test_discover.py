"""Modules from memory and the auxiliary vector: AT_PHDR, the dynamic linker's list, a scan."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cores import (
    NT_AUXV,
    NT_FILE,
    PAGE,
    Core,
    Load,
    R,
    W,
    X,
    shared_object,
    without,
)
from tests.crashes import Case, crash
from tests.support import need, need_plain_cores
from unwind.files import Files
from unwind.modules import Module, State
from unwind.transports.core import TRANSPORT, CoreSource

BASE, HEAP, STACK = 0x40_0000_0000, 0x50_0000_0000, 0x7FF0_0000_0000
ID = bytes(range(20))


def opened(path: Path, **options: object) -> CoreSource:
    return TRANSPORT.open(str(path), Files(**options))  # type: ignore[arg-type]


def listed(source: CoreSource) -> list[tuple[bytes | None, int, str, str]]:
    """What is known of each module; libraries may be loaded through links, so real paths."""
    return [
        (m.build_id, m.bias, m.state, os.path.realpath(m.file) if m.file else "")
        for m in source.space.modules
    ]


class World:
    """A process made by hand: images, the dynamic linker's list, the stack."""

    def __init__(self) -> None:
        self.core = Core()
        self.core.thread(1, {16: BASE, 19: STACK}, 11)
        self.heap = bytearray(PAGE)
        self.used = 256
        self.links: list[int] = []

    def string(self, text: str) -> int:
        data = text.encode() + b"\0"
        at = self.used
        self.heap[at : at + len(data)] = data
        self.used += len(data) + -len(data) % 8
        return HEAP + at

    def words(self, *values: int) -> int:
        at = self.used
        struct.pack_into(f"<{len(values)}Q", self.heap, at, *values)
        self.used += 8 * len(values)
        return HEAP + at

    def set(self, address: int, value: int) -> None:
        struct.pack_into("<Q", self.heap, address - HEAP, value)

    def image(self, base: int, data: bytes, *, header: bool = True) -> None:
        """Maps a `program` or `shared_object`: what the kernel dumps of it, or not its header."""
        self.core.loads.append(Load(base, data[:PAGE] if header else b"", PAGE, R))
        self.core.loads.append(Load(base + PAGE, b"", PAGE, R | X))
        if len(data) > 2 * PAGE:
            self.core.loads.append(Load(base + 2 * PAGE, data[2 * PAGE :], PAGE, R | W))

    def link(self, bias: int, name: int, dynamic: int) -> None:
        """Adds an entry to the dynamic linker's list."""
        at = self.words(bias, name, dynamic, 0, self.links[-1] if self.links else 0)
        if self.links:
            self.set(self.links[-1] + 24, at)
        self.links.append(at)

    def open(self, path: Path, **options: object) -> CoreSource:
        self.core.loads.append(Load(HEAP, bytes(self.heap)))
        return opened(self.core.write(path / "core"), **options)


def program(debug: int, build_id: bytes | None = ID, code: bytes = b"\xc3" * 32) -> bytes:
    """As `shared_object`, with a PT_DYNAMIC at 0x2000 whose DT_DEBUG is `debug`, and PT_PHDR."""
    image = bytearray(shared_object(build_id, code.ljust(PAGE, b"\xcc")))
    image += struct.pack("<4Q", 21, debug, 0, 0)
    count = image[56]
    rows = [(1, R | W, 2 * PAGE, 32, PAGE), (2, R | W, 2 * PAGE, 32, 32)]
    for n, (kind, flags, at, size, memory) in enumerate(rows):
        row = struct.pack("<IIQQQQQQ", kind, flags, at, at, 0, size, memory, PAGE)
        image[64 + 56 * (count + n) : 64 + 56 * (count + n + 1)] = row
    image[56] = count + 2
    return bytes(image)


def module(source: CoreSource, name: str) -> Module:
    return next(m for m in source.space.modules if m.name.rpartition("/")[2] == name)


# ------------------------------------------------------------------------------------ real ones


@pytest.mark.parametrize(
    "case",
    [
        Case("pie", ("threads.c",), ("2",)),
        Case("no-pie", ("chain.c",), flags=("-O2", "-fno-pie", "-no-pie")),
        Case("static", ("chain.c",), flags=("-O2", "-static")),
        Case("static-pie", ("chain.c",), flags=("-O2", "-static-pie")),
    ],
    ids=str,
)
@pytest.mark.parametrize("lost", [(NT_FILE,), (NT_FILE, NT_AUXV)], ids=["files", "files and auxv"])
def test_without_nt_file_the_modules_are_the_same(
    tmp_path: Path, case: Case, lost: tuple[int, ...]
) -> None:
    core = crash(case, tmp_path).core
    with opened(core) as source:
        wanted = listed(source)
    data = core.read_bytes()
    for kind in lost:
        data = without(kind, data)
    (tmp_path / "other").write_bytes(data)
    with opened(tmp_path / "other") as source:
        found = listed(source)
    if NT_AUXV in lost:  # only AT_SYSINFO_EHDR tells that it is the vdso
        wanted, found = ([entry for entry in one if entry[3]] for one in (wanted, found))
    assert found == wanted


def test_dlmopen_has_a_list_of_its_own(tmp_path: Path) -> None:
    need("gcc")
    need_plain_cores()
    source = tmp_path / "program.c"
    source.write_text(
        """
        #define _GNU_SOURCE
        #include <dlfcn.h>
        int main(void) {
            if (!dlmopen(LM_ID_NEWLM, "libm.so.6", RTLD_NOW)) return 1;
            return *(volatile int *)0;
        }
        """
    )
    subprocess.run(["gcc", "-o", tmp_path / "program", source], check=True)
    command = ["sh", "-c", "ulimit -c unlimited; exec ./program"]
    subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL, check=False)
    core = next(tmp_path.glob("core*"))
    core.write_bytes(without(NT_FILE, core.read_bytes()))
    with opened(core) as found:
        names = [m.name.rpartition("/")[2] for m in found.space.modules]
        assert names.count("libm.so.6") == 1
        assert names.count("libc.so.6") == 2  # one for each namespace
        assert {m.state for m in found.space.modules} == {State.OK, State.MEMORY_ONLY}


# --------------------------------------------------------------------------------- made by hand


def test_the_list_names_images_in_memory(tmp_path: Path) -> None:
    world = World()
    data = program(world.words(1, 0))
    world.image(BASE, data)
    library = shared_object(bytes(20), b"\xc3" * PAGE) + bytes(8)
    world.image(BASE + 0x10_0000, library)
    name = world.string(f"{tmp_path}/lib.so")
    world.link(BASE, world.string(""), BASE + 0x2000)
    world.link(BASE + 0x10_0000, name, BASE + 0x10_2000 - PAGE)
    world.set(struct.unpack_from("<Q", data, 2 * PAGE + 8)[0] + 8, world.links[0])
    execfn = world.string(f"{tmp_path}/program")
    world.core.auxv(phdr=BASE + 64, phnum=data[56], entry=BASE, execfn=execfn)
    (tmp_path / "program").write_bytes(data)
    (tmp_path / "lib.so").write_bytes(library)
    with world.open(tmp_path) as source:
        assert [(m.name, m.bias, m.state) for m in source.space.modules] == [
            (f"{tmp_path}/program", BASE, State.OK),
            (f"{tmp_path}/lib.so", BASE + 0x10_0000, State.OK),
        ]
        assert source.memory.read(BASE + PAGE, 4) == b"\xc3" * 4  # code, from the file
        assert source.space.executable(BASE + PAGE)
        assert not source.space.executable(BASE)


def qemu_like(tmp_path: Path) -> tuple[World, bytes]:
    """A core without the read-only pages of files, as qemu-user writes it."""
    world = World()
    debug = world.words(1, 0)
    data = program(debug, code=b"\xc3" * 100 + b"/lib/named-in-text.so\0")
    world.image(BASE, data, header=False)
    # This name lies in the program's own read-only pages, as that of its interpreter does.
    world.link(BASE, 0, BASE + 0x2000)
    world.link(BASE + 0x10_0000, BASE + PAGE + 100, BASE + 0x10_2000)
    world.set(debug + 8, world.links[0])
    world.image(BASE + 0x10_0000, program(0), header=False)
    world.core.auxv(phdr=BASE + 64, phnum=data[56], entry=BASE)
    (tmp_path / "root/lib").mkdir(parents=True)
    (tmp_path / "root/lib/named-in-text.so").write_bytes(program(0))
    (tmp_path / "program").write_bytes(data)
    return world, data


def test_a_core_without_headers_of_files_is_led_by_the_executable(tmp_path: Path) -> None:
    world, _ = qemu_like(tmp_path)
    options = {"executable": str(tmp_path / "program"), "sysroot": str(tmp_path / "root")}
    with world.open(tmp_path, **options) as source:
        assert [(m.bias, m.state, m.file) for m in source.space.modules] == [
            (BASE, State.OK, str(tmp_path / "program")),
            (BASE + 0x10_0000, State.OK, str(tmp_path / "root/lib/named-in-text.so")),
        ]
        assert source.warnings == []


def test_without_the_executable_its_program_headers_still_make_a_module(tmp_path: Path) -> None:
    world, _ = qemu_like(tmp_path)
    with world.open(tmp_path, sysroot=str(tmp_path / "root")) as source:
        assert [(m.start, m.state, m.image) for m in source.space.modules] == [
            (BASE, State.MISSING, None)
        ]


@pytest.mark.parametrize("what", ["phnum", "entry", "phdr"])
def test_an_executable_that_was_not_started_there_is_refused(tmp_path: Path, what: str) -> None:
    world, data = qemu_like(tmp_path)
    values = {"phdr": BASE + 64, "phnum": data[56], "entry": BASE}
    values[what] += 8
    world.core.notes.pop()
    world.core.auxv(**values)
    with world.open(tmp_path, executable=str(tmp_path / "program")) as source:
        assert source.space.modules[0].state == State.MISMATCH
        assert source.space.modules[0].image is None
        assert "program: its" in source.warnings[0]


def test_a_scan_finds_what_nothing_names(tmp_path: Path) -> None:
    world = World()
    named = shared_object(ID)
    world.image(BASE, named)
    (tmp_path / ".build-id/00").mkdir(parents=True)
    (tmp_path / f".build-id/00/{ID.hex()[2:]}").write_bytes(named)
    unknown = shared_object(bytes(20))
    world.image(BASE + 0x10_0000, unknown)
    with world.open(tmp_path, debug_dirs=[str(tmp_path)]) as source:
        assert [(m.name, m.state, m.build_id) for m in source.space.modules] == [
            (f"[ELF image at {BASE:#x}]", State.OK, ID),
            (f"[ELF image at {BASE + 0x10_0000:#x}]", State.MISSING, bytes(20)),
        ]


def test_an_elf_file_that_is_mapped_as_data_is_no_module(tmp_path: Path) -> None:
    world = World()
    data = shared_object(ID)
    world.core.loads.append(Load(BASE, data[:PAGE], 2 * PAGE, R))
    other = bytearray(data)
    other[18] = 183  # of another machine
    world.core.loads.append(Load(BASE + 0x10_0000, bytes(other[:PAGE]), 2 * PAGE, R | X))
    with world.open(tmp_path) as source:
        assert source.space.modules == ()


def circle(world: World) -> None:
    world.link(0x1000, world.string("/a"), 0x1000)
    world.set(world.links[-1] + 24, world.links[0])


def endless(world: World) -> None:
    # Each entry is the next one's bytes, shifted: what follows is different every time.
    for n in range(40):
        world.link(n << 32, world.string(f"/lib{n}"), (n + 1) << 32)
    world.set(world.links[-1] + 24, world.links[-1] + 8)


def nowhere(world: World) -> None:
    world.link(0, 0xDEAD_0000, 0xDEAD_0000)
    world.set(world.links[-1] + 24, 0xDEAD_0000)


def top(world: World) -> None:
    world.link((1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1)
    world.set(world.links[-1] + 24, (1 << 64) - 8)


def long_name(world: World) -> None:
    name = world.string("x" * 2000)
    world.link(0x1000, name, 0x1000)
    world.link(0x2000, HEAP + PAGE - 1, 0x2000)  # no NUL before the end of memory


@pytest.mark.parametrize("lie", [circle, endless, nowhere, top, long_name])
def test_a_lying_list_comes_to_an_end(tmp_path: Path, lie: Callable[[World], None]) -> None:
    world = World()
    debug = world.words(2, 0, 0, 0, 0, 0)
    world.set(debug + 40, debug)  # the next namespace is this one
    data = program(debug)
    world.image(BASE, data)
    lie(world)
    world.set(debug + 8, world.links[0])
    world.core.auxv(phdr=BASE + 64, phnum=data[56], entry=BASE)
    with world.open(tmp_path) as source:
        assert source.space.find(BASE) is not None
        assert len(source.space.modules) < 50


def test_fifty_thousand_images_do_not_take_long(tmp_path: Path) -> None:
    world = World()
    page = shared_object(ID)[:PAGE]
    world.core.loads += [Load(BASE + 0x1_0000 * n, b"", PAGE, R | X) for n in range(50_000)]
    image = bytearray(world.core.build())
    at = -(-len(image) // PAGE) * PAGE
    image += bytes(at - len(image)) + page
    for n in range(50_000):  # all of them lie in the same page of the core
        row = 64 + 56 * (n + 1)
        struct.pack_into("<Q", image, row + 8, at)
        struct.pack_into("<QQ", image, row + 32, PAGE, PAGE)
    (tmp_path / "core").write_bytes(image)
    with opened(tmp_path / "core") as source:
        assert 0 < len(source.space.modules) <= 4096
