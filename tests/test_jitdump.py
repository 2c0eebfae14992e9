"""Code that programs make: dumps (jit-PID.dump) and maps, in recordings, processes and cores."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recordings import build, record
from tests.support import cannot, need, python, run
from unwind.errors import FormatError
from unwind.perf.jit import JitMaps
from unwind.perf.jitdump import jit_symbols
from unwind.space import Region
from unwind.testing.damaged import damaged


def head(order: str = "<", size: int = 40) -> bytes:
    return struct.pack(order + "IIIIIIQQ", 0x4A695444, 1, size, 62, 0, 7, 0, 0).ljust(size, b"\0")


def load(start: int, size: int, name: bytes, index: int, order: str = "<") -> bytes:
    body = struct.pack(order + "IIQQQQ", 7, 7, start, start, size, index) + name + b"\0" + b"\x90"
    return struct.pack(order + "IIQ", 0, 16 + len(body), 0) + body


def move(old: int, new: int, size: int, index: int, order: str = "<") -> bytes:
    body = struct.pack(order + "IIQQQQQ", 7, 7, new, old, new, size, index)
    return struct.pack(order + "IIQ", 1, 16 + len(body), 0) + body


def other(kind: int, body: bytes = b"", order: str = "<") -> bytes:
    return struct.pack(order + "IIQ", kind, 16 + len(body), 0) + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [40, 64])
def test_functions_have_their_names(order: str, size: int) -> None:
    records = load(0x1000, 16, b"one", 1, order) + other(2, bytes(16), order)
    data = head(order, size) + records + load(0x2000, 32, b"two", 2, order)
    assert jit_symbols(data) == {0x1000: (0x1010, "one"), 0x2000: (0x2020, "two")}


def test_code_that_moved_is_where_it_is() -> None:
    data = head() + load(0x1000, 16, b"one", 1) + move(0x1000, 0x5000, 16, 1)
    assert jit_symbols(data) == {0x5000: (0x5010, "one")}
    assert jit_symbols(head() + move(0x1000, 0x5000, 16, 1)) == {}


def test_what_was_last_at_an_address_counts_and_the_end_is_the_end() -> None:
    data = head() + load(0x1000, 16, b"old", 1) + load(0x1000, 8, b"new", 2)
    assert jit_symbols(data) == {0x1000: (0x1008, "new")}
    assert jit_symbols(data + other(3) + load(0x9000, 16, b"late", 3)) == jit_symbols(data)


def test_a_dump_that_is_still_written_gives_what_it_has() -> None:
    data = head() + load(0x1000, 16, b"one", 1) + load(0x2000, 16, b"two", 2)
    for cut in range(len(data)):
        try:
            found = jit_symbols(data[:cut])
        except FormatError:
            assert cut < 40
            continue
        assert set(found) <= {0x1000, 0x2000}
        assert (0x1000 in found) == (cut >= 40 + 16 + 40 + 5)


DUMPS = st.just(head() + load(0x1000, 16, b"one", 1) + move(0x1000, 0x5000, 16, 1) + other(3))


@given(damaged(DUMPS))
def test_a_damaged_dump_gives_names_or_an_error_of_ours(data: bytes) -> None:
    try:
        found = jit_symbols(data)
    except FormatError:
        return
    assert all(start < end for start, (end, _) in found.items())


def test_a_dump_is_found_by_the_mapping_of_it(tmp_path: Path) -> None:
    path = tmp_path / "root/x/jit-7.dump"
    path.parent.mkdir(parents=True)
    path.write_bytes(head() + load(0x1000, 16, b"one", 1))
    regions = [Region(0, 1, False, "/lib/libc.so.6"), Region(2, 3, True, "/x/jit-7.dump")]
    maps = JitMaps(f"{tmp_path}/none-%d", str(tmp_path / "root"))
    assert maps.find(7, 0x1004, regions) == ("one", 4)
    assert maps.find(7, 0x1010, regions) is None
    assert maps.path(7) == "/x/jit-7.dump"
    path.unlink()
    os.mkfifo(path)
    assert JitMaps(f"{tmp_path}/none-%d", str(tmp_path / "root")).find(7, 0x1004, regions) is None


# -------------------------------------------------------------------------------- a real program


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.uname().machine != "x86_64":
        cannot("the program makes code of x86-64")
    directory = tmp_path_factory.mktemp("made code")
    build(directory, "jitted.c", "-O1", name="jitted")
    return directory


def hottest(path: Path, cwd: Path) -> dict[str, str]:
    """The functions that were made, with the file that they are said to be of."""
    done = python("-m", "unwind.cli.perf", str(path), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"(made::\w+) \((\S+)\)", done.stdout))


def test_a_recording_is_named_by_the_dump_and_by_what_perf_makes_of_it(place: Path) -> None:
    words = ["-k", "mono"]
    here = os.getcwd()
    os.chdir(place)  # the program writes its dump where it runs
    try:
        recording = record(place / "perf.data", "./jitted", "300", options=words)
    finally:
        os.chdir(here)
    (dump,) = place.glob("jit-*.dump")
    names = hottest(recording, place)
    assert names == {"made::counts": dump.name, "made::moves": dump.name}
    done = run("perf", "inject", "--jit", "-i", "perf.data", "-o", "injected.data", cwd=place)
    assert done.returncode == 0, done.stderr
    injected = hottest(place / "injected.data", place)
    assert set(injected) == set(names)
    assert all(re.fullmatch(r"jitted-\d+-\d+\.so", file) for file in injected.values())
    dump.write_bytes(dump.read_bytes()[:100])
    assert hottest(recording, place) == {}


@pytest.fixture
def running(place: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([place / "jitted", "60000"], cwd=tmp_path) as program:
        try:
            dump = tmp_path / f"jit-{program.pid}.dump"
            while not (dump.exists() and dump.stat().st_size > 250):
                assert program.poll() is None
            yield program
        finally:
            program.kill()


def test_a_process_has_names_for_the_code_that_it_made(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    for _ in range(20):
        done = python("-m", "unwind.cli.live", str(running.pid))
        if "(JIT)" in done.stdout:
            break
    assert re.search(r"#0 +0x\w+ made::(counts|moves)\+0x\w+ \(JIT\)", done.stdout), done.stdout


def test_a_core_has_them_by_the_map_that_is_named(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    need("gcore")
    for _ in range(20):
        done = run("gcore", "-o", str(tmp_path / "core"), str(running.pid))
        assert done.returncode == 0, done.stderr
        core = tmp_path / f"core.{running.pid}"
        dump = f"{tmp_path}/jit-%d.dump"
        named = python("-m", "unwind.cli.core", str(core), "--perf-map", dump)
        if "(JIT)" in named.stdout:
            break
    os.kill(running.pid, signal.SIGKILL)
    assert "(JIT)" in named.stdout, named.stdout
    assert "(JIT)" not in python("-m", "unwind.cli.core", str(core)).stdout
    (start, name) = next(
        (start, name)
        for start, (_, name) in jit_symbols(
            (tmp_path / f"jit-{running.pid}.dump").read_bytes()
        ).items()
        if name in named.stdout
    )
    plain = tmp_path / "map"
    plain.write_text(f"{start:x} b {name}\n")
    by_map = python("-m", "unwind.cli.core", str(core), "--perf-map", str(plain))
    assert by_map.stdout == named.stdout
