"""The core transport: threads, signal, modules and memory of real cores and of hostile ones."""

from __future__ import annotations

import gc
import gzip
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cores import (
    NT_AUXV,
    NT_FILE,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PAGE,
    Core,
    Load,
    R,
    W,
    without,
)
from tests.crashes import Case, Library, crash
from tests.support import need
from unwind.errors import (
    FormatError,
    MemoryFault,
    SourceError,
    UnsupportedArchitecture,
    UnwindError,
)
from unwind.files import Files
from unwind.modules import State
from unwind.snapshot import Signal
from unwind.transports.core import TRANSPORT, CoreSource

RIP, RSP = 16, 7  # DWARF numbers
PR_RIP, PR_RSP = 16, 19  # in pr_reg


def opened(path: Path, **options: object) -> CoreSource:
    return TRANSPORT.open(str(path), Files(**options))  # type: ignore[arg-type]


def small(threads: int = 1) -> Core:
    """A core with one mapping, at which each thread's sp points."""
    core = Core(loads=[Load(0x7000_0000, b"stack" + bytes(4091))])
    for tid in range(100, 100 + threads):
        core.thread(tid, {PR_RIP: 0x40_0000 + tid, PR_RSP: 0x7000_0000}, signal=11)
    return core


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a real crash, of five threads and a library of one's own."""
    case = Case("threads", ("threads.c",), ("5",))
    return crash(case, tmp_path_factory.mktemp("threads")).directory


@pytest.fixture
def source(crashed: Path) -> Iterator[CoreSource]:
    with opened(crashed / "core") as found:
        yield found


# ---------------------------------------------------------------------------------- real cores


def test_the_crashed_thread_is_the_first(source: CoreSource) -> None:
    assert [thread.crashed for thread in source.threads] == [True] + 5 * [False]
    assert source.signal == Signal(11, 1, 0)
    assert len({thread.tid for thread in source.threads}) == 6
    assert {thread.pid for thread in source.threads} == {source.pid}
    assert list(source.snapshots()) == list(source.threads)
    assert source.kind == TRANSPORT.kind == "core"
    assert source.warnings == []


def test_the_command_line_is_told(source: CoreSource) -> None:
    assert source.command is not None
    assert source.command.endswith("/program 5")
    names = {thread.tid: thread.name for thread in source.threads}
    assert names.pop(source.pid or 0) == "program"
    assert set(names.values()) == {None}


def test_modules_have_their_files(source: CoreSource, crashed: Path) -> None:
    found = {os.path.basename(module.name): module for module in source.space.modules}
    assert set(found) == {"program", "libc.so.6", "ld-linux-x86-64.so.2", "[vdso]"}
    assert found.pop("[vdso]").state == State.MEMORY_ONLY
    for module in found.values():
        assert module.state == State.OK
        assert module.file == module.name
        assert module.image is not None
        assert module.build_id == module.image.build_id
    pc = source.threads[0].registers[RIP]
    program = source.space.find(pc)
    assert program is not None
    assert program.name == str(crashed / "program")
    assert program.image is not None
    assert program.image.executable(program.to_vaddr(pc))


def test_memory_is_the_core_and_then_the_files(source: CoreSource) -> None:
    thread = source.threads[0]
    assert source.memory.view(thread.registers[RSP]) is not None
    module = source.space.find(thread.registers[RIP])
    assert module is not None
    assert module.image is not None
    code = source.memory.read(thread.registers[RIP], 8)  # the kernel leaves code out
    assert code == module.image.read(module.to_vaddr(thread.registers[RIP]), 8)
    with pytest.raises(MemoryFault, match="nothing was mapped there"):
        source.memory.read(0, 8)


def test_regions_are_named_and_executable_where_code_may_run(source: CoreSource) -> None:
    space = source.space
    region = space.region(source.threads[0].registers[RIP])
    assert region is not None
    assert region.name.endswith("/program")
    assert region.executable
    stack = space.region(source.threads[0].registers[RSP])
    assert stack is not None
    assert not stack.executable
    vsyscall = space.region(0xFFFF_FFFF_FF60_0000)
    assert vsyscall is not None
    assert (vsyscall.name, vsyscall.executable) == ("[vsyscall]", True)
    for one in space.regions:
        assert space.code(one.start) == ((one.start, one.end) if one.executable else None)
    assert all(one.end <= other.start for one, other in pairwise(space.regions))


def test_nothing_is_left_open(crashed: Path) -> None:
    def files() -> list[str]:
        held = "/proc/self/fd"
        return [
            os.readlink(f"{held}/{n}") for n in os.listdir(held) if os.path.exists(f"{held}/{n}")
        ]

    with opened(crashed / "core") as source:
        memory, sp = source.memory, source.threads[0].registers[RSP]
        assert str(crashed / "core") in files()
    assert str(crashed / "core") not in files()
    with pytest.raises(MemoryFault):
        memory.read(sp, 8)
    del source
    gc.collect()
    assert str(crashed / "program") not in files()


@pytest.mark.parametrize("suffix", ["gz", "xz", "zst"])
def test_a_compressed_core_is_the_same_core(
    crashed: Path, tmp_path: Path, suffix: str, source: CoreSource
) -> None:
    need(program := {"gz": "gzip", "xz": "xz", "zst": "zstd"}[suffix])
    if suffix == "zst":
        pytest.importorskip("zstandard")
    path = tmp_path / "core"
    with path.open("wb") as file:
        subprocess.run([program, "-c", crashed / "core"], stdout=file, check=True)
    with opened(path) as other:
        assert [t.registers for t in other.threads] == [t.registers for t in source.threads]
        assert [m.name for m in other.space.modules] == [m.name for m in source.space.modules]
        sp = other.threads[3].registers[RSP]
        assert other.memory.read(sp, 4096) == source.memory.read(sp, 4096)


def test_a_truncated_compressed_core_is_a_truncated_core(crashed: Path, tmp_path: Path) -> None:
    path = tmp_path / "core.gz"
    path.write_bytes(gzip.compress((crashed / "core").read_bytes()))
    os.truncate(path, path.stat().st_size // 2)
    with opened(path) as found:
        assert len(found.threads) == 6
        assert "the gzip data ends early" in found.warnings[0]
        assert "the core is truncated" in found.warnings[1]


def test_gcore_of_a_crash(tmp_path: Path) -> None:
    made = crash(Case("gcore", ("threads.c",), ("3",), by="gdb"), tmp_path)
    with opened(made.core) as found:
        assert found.signal == Signal(11, 1, 0)
        assert [thread.crashed for thread in found.threads] == [True, False, False, False]
        assert {t.tid: t.crashed for t in found.threads} == {
            tid: stack.crashed for tid, stack in made.stacks.items()
        }
        names = {os.path.basename(m.name) for m in found.space.modules if m.state == State.OK}
        assert names == {"program", "libc.so.6", "ld-linux-x86-64.so.2"}
        assert found.space.executable(found.threads[0].registers[RIP])


def test_gcore_of_a_running_process_has_no_signal_and_no_crashed_thread(tmp_path: Path) -> None:
    need("gdb", "sleep")
    process = subprocess.Popen(["sleep", "60"])
    try:
        script = ["-ex", f"generate-core-file {tmp_path}/core"]
        ran = subprocess.run(
            ["gdb", "-nx", "-batch", "-p", str(process.pid), *script],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
    finally:
        process.kill()
        process.wait()
    if not (tmp_path / "core").exists():
        pytest.skip(f"gdb cannot attach here: {ran.stderr}")
    with opened(tmp_path / "core") as found:
        assert found.signal is None
        assert [thread.crashed for thread in found.threads] == [False]
        assert found.command is not None  # some versions of gdb lose the arguments
        assert found.command.startswith("sleep")


@pytest.mark.parametrize("fate", ["unlinked", "replaced"])
@pytest.mark.parametrize("mask", ["0x33", "0x3f"])
def test_a_library_whose_file_is_gone(tmp_path: Path, fate: str, mask: str) -> None:
    libraries = (
        Library("plugin.so", "plugin.c"),
        Library("other.so", "plugin.c", ("-DOTHER", "-Os")),
    )
    arguments = ("{directory}/plugin.so", "callback", mask)
    case = Case(
        fate,
        ("dlopen.c",),
        (*arguments, "{directory}/other.so") if fate == "replaced" else arguments,
        flags=("-O2", "-rdynamic"),
        libraries=libraries,
        by="kernel",
    )
    with opened(crash(case, tmp_path).core) as found:
        module = next(m for m in found.space.modules if "plugin.so" in m.name)
        assert module.name.endswith("plugin.so (deleted)")
        assert module.file is None
        assert module.build_id is not None
        if fate == "replaced":
            assert module.state == State.MISMATCH
            assert any(module.build_id.hex() in said for said in module.tried)
        else:
            assert module.state == (State.MISSING if mask == "0x33" else State.MEMORY_ONLY)
        if mask == "0x33":
            assert module.image is None
            assert "coredump_filter" in module.tried[-1]
        else:
            assert module.image is not None
            assert module.image.unwind_kinds == ("eh_frame",)


# ------------------------------------------------------------------------- options for files


def test_the_executable_is_for_the_main_program_alone(crashed: Path, tmp_path: Path) -> None:
    moved = shutil.copy(crashed / "program", tmp_path / "elsewhere")
    with opened(crashed / "core", executable=str(moved)) as found:
        files = {os.path.basename(m.name): m.file for m in found.space.modules}
        assert files["program"] == str(moved)
        assert files["libc.so.6"] != str(moved)


def test_the_executable_is_used_where_no_auxiliary_vector_tells(
    crashed: Path, tmp_path: Path
) -> None:
    moved = shutil.copy(crashed / "program", tmp_path / "elsewhere")
    data = (crashed / "core").read_bytes()
    path = tmp_path / "core"
    path.write_bytes(without(NT_AUXV, data))
    with opened(path, executable=str(moved)) as found:
        assert str(moved) in [m.file for m in found.space.modules]
    path.write_bytes(without(NT_PRPSINFO, without(NT_AUXV, data)))
    with opened(path, executable=str(moved)) as found:
        assert str(moved) not in [m.file for m in found.space.modules]
        assert "where the main program lies is unknown" in found.warnings[0]


def test_another_executable_is_refused_and_said(crashed: Path) -> None:
    with opened(crashed / "core", executable="/bin/ls") as found:
        program = next(m for m in found.space.modules if m.name.endswith("/program"))
        assert program.state == State.MISMATCH
        assert program.file == program.name  # the recorded path still serves
        assert any("/bin/ls" in warning and "build-id" in warning for warning in found.warnings)


def test_an_empty_sysroot_leaves_no_file(crashed: Path, tmp_path: Path) -> None:
    with opened(crashed / "core", sysroot=str(tmp_path)) as found:
        states = {m.name: m.state for m in found.space.modules}
        assert states.pop("[vdso]") == State.MEMORY_ONLY
        assert set(states.values()) == {State.MISSING}
        program = next(m for m in found.space.modules if m.name.endswith("/program"))
        assert any(f"{tmp_path}{crashed}/program: no such file" in said for said in program.tried)


# ---------------------------------------------------------------------------- damage and lies


def test_half_a_core_gives_every_thread_it_holds(crashed: Path, tmp_path: Path) -> None:
    whole = (crashed / "core").read_bytes()
    path = tmp_path / "core"
    path.write_bytes(whole[: len(whole) // 2])
    with opened(path) as found:
        assert len(found.threads) == 6
        missing = len(whole) - len(whole) // 2
        assert f"{missing} of {len(whole)} bytes are missing" in found.warnings[0]
        with pytest.raises(MemoryFault, match="the core is truncated there"):
            found.memory.read(found.threads[0].registers[RSP], 8)


def test_a_core_cut_anywhere_is_told_of(tmp_path: Path) -> None:
    core = small(threads=3)
    core.process(100, b"small", b"small -x")
    core.files((0x1000, 0x2000, 0, "/none"))
    whole = core.build()
    path = tmp_path / "core"
    for size in range(0, 2 * PAGE, 17):  # into the stack, the last thing in it
        path.write_bytes(whole[:size])
        if size < 64:
            with pytest.raises((SourceError, FormatError)):
                opened(path)
            continue
        with opened(path) as found:
            assert "truncated" in "".join(found.warnings)
            assert len(found.threads) <= 3


@pytest.mark.parametrize("kind", [NT_PRSTATUS, NT_PRPSINFO, NT_SIGINFO, NT_FILE, 6])
def test_notes_of_any_size_do_no_harm(tmp_path: Path, kind: int) -> None:
    for size in (*range(40), 111, 112, 113, 335, 337, 5000):
        for filler in (b"\0", b"\xff", b"\x41"):
            core = small()
            core.notes.clear()
            core.note(kind, filler * size)
            with opened(core.write(tmp_path / "core")) as found:
                assert found.kind == "core"


def test_nt_file_that_lies_about_its_count(tmp_path: Path) -> None:
    for count in (0, 3, 1000, 1 << 31, (1 << 64) - 1):
        core = small()
        data = core.pack("PP", count, PAGE) + core.pack("PPP", 0x1000, 0x2000, 0) + b"/a\0"
        core.note(NT_FILE, data)
        with opened(core.write(tmp_path / "core")) as found:
            assert count < 3 or f"of {count} mapped files" in "".join(found.warnings)


def test_a_note_larger_than_the_file_is_cut(tmp_path: Path) -> None:
    core = small()
    core.notes.append(core.pack("III", 5, 0xFFFF_FFF0, NT_PRSTATUS) + b"CORE\0\0\0\0")
    with opened(core.write(tmp_path / "core")) as found:
        assert found.threads[0].tid == 100


def test_damaged_cores_raise_nothing_but_unwind_errors(crashed: Path, tmp_path: Path) -> None:
    whole = (crashed / "core").read_bytes()
    table = 64 + 56 * int.from_bytes(whole[56:58], "little")
    places = [range(16), range(16, 64), range(64, table), range(table, table + 3000)]
    chance = random.Random(7)
    path = tmp_path / "core"
    outcomes = {"opened": 0, "refused": 0}
    for n in range(400):
        image = bytearray(whole)
        where = places[n % len(places)]
        for _ in range(chance.choice((1, 2, 8))):
            image[chance.choice(where)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, n & 0xFF))
        path.write_bytes(image)
        try:
            with opened(path) as found:
                for thread in found.threads:
                    for register in (RIP, RSP):
                        try:
                            found.memory.read(thread.registers.get(register, 0), 64)
                        except MemoryFault:
                            pass
            outcomes["opened"] += 1
        except UnwindError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10, outcomes


# ------------------------------------------------------------------------- what is no core


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "does not begin with an ELF header"),
        (b"\x7fELF", "neither ELF32 nor ELF64"),
        (b"\x7fELF\2\1\1" + bytes(60), "not a core but an ELF file of another type"),
    ],
)
def test_what_is_no_core_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "core"
    path.write_bytes(content)
    with pytest.raises((SourceError, FormatError), match=reason) as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_a_program_is_refused_with_a_hint() -> None:
    with pytest.raises(SourceError, match="not a core but a program") as caught:
        opened(Path("/bin/sh"))
    assert "-e" in caught.value.hint


@pytest.mark.parametrize(
    ("core", "words"),
    [
        (Core(bits=32), ("EM_X86_64", "ELF32")),  # x32
        (Core(bits=32, machine=3), ("EM_I386", "ELF32", "little")),
        (Core(machine=243, flags=5), ("EM_RISCV", "ELF64", "0x5")),
        (Core(order=">", machine=22), ("EM_S390", "big")),
        (Core(order=">"), ("EM_X86_64", "big")),
        (Core(machine=0xFEED), ("65261",)),
    ],
)
def test_an_abi_that_nobody_describes_is_named(
    tmp_path: Path, core: Core, words: tuple[str, ...]
) -> None:
    core.thread(1)
    with pytest.raises(UnsupportedArchitecture) as caught:
        opened(core.write(tmp_path / "core"))
    assert all(word in str(caught.value) for word in words)


def test_detect_knows_cores_of_both_byte_orders() -> None:
    assert TRANSPORT.detect(Core().build()[:64])
    assert TRANSPORT.detect(Core(bits=32, order=">").build()[:64])
    assert not TRANSPORT.detect(Core(type=3).build()[:64])
    assert not TRANSPORT.detect(b"\x7fELF")
    assert not TRANSPORT.detect(b"")


# ---------------------------------------------------------------------------------- large ones


@pytest.mark.parametrize("extended", [False, True])
def test_more_program_headers_than_fit_into_e_phnum(tmp_path: Path, extended: bool) -> None:
    core = small(threads=2)
    first = 0x10_0000_0000
    count = 70_000 if extended else 1_000
    core.loads += [Load(first + 2 * PAGE * n, b"", PAGE, R) for n in range(count)]
    core.loads[-1].data = b"last"
    path = core.write(tmp_path / "core", extended)
    with opened(path) as found:
        assert len(found.space.regions) == count + 2  # the stack, [vsyscall]
        last = first + 2 * PAGE * (count - 1)
        assert found.memory.read(last, 4) == b"last"
        assert found.warnings == []
    if extended:  # the section header that holds the number is the first thing to be cut off
        os.truncate(path, path.stat().st_size - 64)
        with opened(path) as found:
            assert found.memory.read(last, 4) == b"last"


def test_a_sparse_core_of_64_gigabytes_costs_what_it_touches(tmp_path: Path) -> None:
    core = small(threads=1)
    core.loads += [Load(0x1_0000_0000 * (n + 2), b"", 0x1_0000_0000) for n in range(16)]
    table = bytearray(core.build())
    # Let each mapping of 4 GB be dumped: the file grows by 64 GB of hole.
    offset = -(-len(table) // PAGE) * PAGE
    for n in range(2, 18):
        at = 64 + 56 * n
        table[at + 8 : at + 16] = offset.to_bytes(8, "little")
        table[at + 32 : at + 40] = (0x1_0000_0000).to_bytes(8, "little")
        offset += 0x1_0000_0000
    path = tmp_path / "core"
    with path.open("wb") as file:
        file.write(table)
        try:
            file.truncate(offset)
        except OSError as error:
            pytest.skip(f"no sparse file of 64 GB can be made here: {error}")
    touched = faults()
    with opened(path) as found:
        assert found.memory.read(0x1_0000_0000 * 17 + 0xFFFF_0000, 64) == bytes(64)
        assert found.threads[0].tid == 100
        assert found.warnings == []
    assert faults() - touched < 10_000  # of 16 million pages
    assert path.stat().st_blocks * 512 < 1 << 20


def faults() -> int:
    """How many pages this process has touched anew so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def test_a_thousand_threads_are_read(tmp_path: Path) -> None:
    core = small(threads=1000)
    core.loads += [Load(0x1_0000_0000 + 2 * PAGE * n, b"", PAGE, W | R) for n in range(2000)]
    path = core.write(tmp_path / "core")
    with opened(path) as found:
        assert len({thread.tid for thread in found.threads}) == 1000


# --------------------------------------------------------------------- without a signal's note


@pytest.mark.parametrize(
    ("siginfo", "expected"),
    [
        (None, Signal(11)),
        ((11, 0, 1, 0xDEAD), Signal(11, 1, 0xDEAD)),
        ((11, 0, 128, 0xDEAD), Signal(11, 128)),  # SI_KERNEL: no address was recorded
        ((11, 0, -6, 0xDEAD), Signal(11, -6)),  # tkill
        ((19, 0, 128, 0), Signal(11)),  # gdb's own stop
    ],
)
def test_the_address_is_told_of_faults_alone(
    tmp_path: Path, siginfo: tuple[int, int, int, int] | None, expected: Signal
) -> None:
    core = small()
    if siginfo is not None:
        core.note(NT_SIGINFO, core.pack("iiixxxxQ", *siginfo) + bytes(104))
    with opened(core.write(tmp_path / "core")) as found:
        assert found.signal == expected


def test_a_core_without_threads_says_so(tmp_path: Path) -> None:
    with opened(Core().write(tmp_path / "core")) as found:
        assert found.threads == ()
        assert found.signal is None
        assert "NT_PRSTATUS" in found.warnings[0]


def test_notes_of_other_owners_are_not_taken_for_the_kernels(tmp_path: Path) -> None:
    core = small()
    core.note(NT_PRSTATUS, bytes(336), b"FreeBSD\0")
    with opened(core.write(tmp_path / "core")) as found:
        assert len(found.threads) == 1
