"""Unpacking: what a path or standard input holds, compressed or not, whole or not."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT
from unwind import unpack
from unwind.errors import MissingPackage, SourceError
from unwind.unpack import load

# Bytes that do not compress, holes of several sizes, and an end within a page.
DATA = (
    random.Random(1).randbytes(300_000)
    + bytes(700_000)
    + b"x" * 10
    + bytes(5_000_000)
    + random.Random(2).randbytes(10_001)
)


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    return bytes(zstandard.ZstdCompressor(write_checksum=True).compress(data))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstd,  # with a checksum, as the command `zstd` writes it
}
packers = pytest.mark.parametrize("method", PACKERS)


def packed(tmp_path: Path, method: str, data: bytes = DATA) -> Path:
    path = tmp_path / "core.with-any-name"
    path.write_bytes(PACKERS[method](data))
    return path


def test_a_plain_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(DATA)
    assert load(str(path)).data[:] == DATA


@packers
def test_compression_is_known_by_its_magic(tmp_path: Path, method: str) -> None:
    found = load(str(packed(tmp_path, method)))
    assert found.data[:] == DATA
    assert found.warnings == []


@packers
def test_several_members_are_one_file(tmp_path: Path, method: str) -> None:
    path = tmp_path / "core"
    pack = PACKERS[method]
    path.write_bytes(pack(DATA[:1000]) + pack(b"") + pack(DATA[1000:]))
    assert load(str(path)).data[:] == DATA


@pytest.mark.parametrize("method", ["gzip", "xz"])
def test_padding_after_a_member_is_skipped_and_other_bytes_are_told_of(
    tmp_path: Path, method: str
) -> None:
    path = packed(tmp_path, method)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(64))
    assert load(str(path)).warnings == []
    path.write_bytes(whole + b"rubbish")
    found = load(str(path))
    assert found.data[:] == DATA
    assert "ignored" in found.warnings[0]


@packers
def test_a_truncated_stream_gives_what_it_holds_and_a_warning(tmp_path: Path, method: str) -> None:
    path = packed(tmp_path, method)
    os.truncate(path, path.stat().st_size * 2 // 3)
    found = load(str(path))
    assert 0 < len(found.data) < len(DATA)
    assert found.data[:] == DATA[: len(found.data)]
    assert f"{method} data" in found.warnings[0]
    assert str(len(found.data)) in found.warnings[0]


@packers
def test_a_damaged_stream_gives_what_comes_before_the_damage(tmp_path: Path, method: str) -> None:
    path = packed(tmp_path, method)
    image = bytearray(path.read_bytes())
    middle = len(image) // 2
    image[middle : middle + 2000] = random.Random(3).randbytes(2000)
    path.write_bytes(image)
    found = load(str(path))
    assert len(found.data) < len(DATA)
    assert f"{method} data" in found.warnings[0]


@packers
def test_a_stream_without_any_contents_is_an_error(tmp_path: Path, method: str) -> None:
    path = packed(tmp_path, method)
    os.truncate(path, 7)
    with pytest.raises(SourceError, match=f"the {method} data"):
        load(str(path))
    path.write_bytes(PACKERS[method](b""))
    with pytest.raises(SourceError, match="no bytes"):
        load(str(path))


def test_zstd_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "core"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(64))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingPackage, match=r"unwind-core\[zstd\]"):
        load(str(path))


def test_a_pipe_is_copied_with_its_holes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(DATA,))
    writer.start()
    assert load(str(fifo)).data[:] == DATA
    writer.join()


@pytest.mark.parametrize("how", ["pipe", "file", "gzip in a pipe", "single bytes"])
def test_standard_input_is_read(tmp_path: Path, how: str) -> None:
    data = b"\x7fELF" + DATA[:50_000]
    code = "import hashlib; from unwind.unpack import load"
    code += "; print(hashlib.sha256(load('-').data[:]).hexdigest())"
    import hashlib

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    path = tmp_path / "core"
    path.write_bytes(gzip.compress(data) if "gzip" in how else data)
    command = [sys.executable, "-c", code]
    if how == "file":
        with path.open("rb") as file:
            out = subprocess.check_output(command, stdin=file, env=environment)
    else:
        one = "import sys,os\nfor b in sys.stdin.buffer.read(): os.write(1, bytes([b]))"
        dd = [sys.executable, "-c", one] if how == "single bytes" else ["cat"]
        with path.open("rb") as file:
            feed = subprocess.Popen(dd, stdin=file, stdout=subprocess.PIPE)
        out = subprocess.check_output(command, stdin=feed.stdout, env=environment)
        assert feed.stdout is not None
        feed.stdout.close()
        feed.wait()
    assert out.decode().strip() == hashlib.sha256(data).hexdigest()


def test_holes_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    with path.open("wb") as file:
        size = 0
        for start in range(0, len(DATA), unpack._CHUNK):
            chunk = DATA[start : start + unpack._CHUNK]
            unpack.write_sparse(file.fileno(), start, chunk)
            size = start + len(chunk)
        os.truncate(file.fileno(), size)
    assert path.read_bytes() == DATA
    assert path.stat().st_blocks * 512 < 350_000


def test_megabytes_of_zeroes_costs_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "core.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 22))
    written = []
    monkeypatch.setattr(unpack, "_write", lambda *arguments: written.append(arguments))
    assert len(load(str(path)).data) == 1 << 28
    assert written == []


def test_the_copy_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "gzip")
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setenv("TMPDIR", str(room))
    found = load(str(path))
    assert os.listdir(room) == []
    monkeypatch.delattr(os, "O_TMPFILE")
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=False)  # as where it is unknown
    assert load(str(path)).data[:] == found.data[:]
    assert os.listdir(room) == []


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = packed(tmp_path, "gzip")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SourceError, match="no space left on device") as caught:
        load(str(path))
    assert "TMPDIR" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_bomb_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "LARGEST", 1 << 20)
    with pytest.raises(SourceError, match="unpacks to more than 1048576 bytes"):
        load(str(packed(tmp_path, "gzip", bytes(1 << 24))))


@pytest.mark.parametrize("method", [None, *PACKERS])
def test_what_is_not_wanted_is_not_unpacked(
    tmp_path: Path, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(head: bytes) -> None:
        raise SourceError(f"begins with {head!r}")

    path = tmp_path / "core"
    data = b"a log" + bytes(1 << 22)
    path.write_bytes(PACKERS[method](data) if method else data)
    monkeypatch.setattr(unpack, "write_sparse", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(SourceError, match="b'a log"):
        load(str(path), None, check)


def test_progress_is_told(tmp_path: Path) -> None:
    path = packed(tmp_path, "gzip")
    told: list[tuple[int, int | None]] = []
    load(str(path), lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
)
def test_what_cannot_be_read_is_a_source_error(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "core")
    with pytest.raises(SourceError, match=reason):
        load(str(tmp_path / "core"))


def test_a_name_with_a_nul_is_a_source_error() -> None:
    with pytest.raises(SourceError, match="null"):
        load("core\0")


def test_close_leaves_views_in_use_alone(tmp_path: Path) -> None:
    path = tmp_path / "core"
    path.write_bytes(DATA)
    found = load(str(path))
    view = memoryview(found.data)[:4]
    found.close()
    assert bytes(view) == DATA[:4]
