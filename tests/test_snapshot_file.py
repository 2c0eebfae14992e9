"""Snapshot files: what is written is what is read, by us and as the format's description has it."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests import crashes
from tests.crashes import Case, Crashes, named
from tests.replay import differences, printed
from tests.support import ROOT, complaints, python
from tests.test_core_command import WITHOUT_CAPSTONE
from tests.test_recording import told
from tests.worlds import World
from unwind.errors import FormatError, SourceError, UnsupportedArchitecture, UnwindError
from unwind.files import Files
from unwind.recorded import HEAD, MAGIC, VERSION, RecordedImage
from unwind.recording import record
from unwind.registry import transport, transport_of
from unwind.snapshot import RecordedSource, Source
from unwind.testing.snapshots import SnapshotMade, snapshots
from unwind.transports.snapshot_file import TRANSPORT
from unwind.unpack import Input
from unwind.unwinder import Unwinder
from unwind.writers.snapshot_file import contents, packed

COMMAND = ("-m", "unwind.cli.core")


@pytest.fixture(scope="session")
def crashed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    return crashes.crashes_of(request, tmp_path_factory)


@pytest.fixture(scope="module")
def snapshot(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of the shipped example."""
    path = tmp_path_factory.mktemp("snapshot") / "crash.unwind"
    ran = python(*COMMAND, example / "core", "--sysroot", example, "--record", path)
    assert (ran.returncode, complaints(ran.stderr)) == (0, "")
    return path


def opened(data: bytes) -> RecordedSource:
    """The source of an unpacked file."""
    return TRANSPORT.read(Input(data), "a file", Files())


def parts(path: Path) -> tuple[Any, bytes]:
    """The document and the bytes of a snapshot file, as its description has it."""
    data = zlib.decompress(path.read_bytes(), 31)
    magic, version, zero = data[:16], data[16:20], data[20:24]
    assert (magic, version, zero) == (b"unwind-snapshot\n", b"\1\0\0\0", bytes(4))
    end = 32 + int.from_bytes(data[24:32], "little")
    return json.loads(data[32:end]), data[end:]


# ------------------------------------------------------------------------------- there and back


@settings(max_examples=60)
@given(snapshots())
def test_what_is_written_is_what_is_read(made: SnapshotMade) -> None:
    kept = record(Source(made.snapshot.space.arch), [made.snapshot])
    data = contents(kept)
    again = opened(data)
    [one], [other] = kept.snapshots(), again.snapshots()
    assert dict(one.registers) == dict(other.registers)
    assert one.memory.spans == other.memory.spans
    assert one.space.regions == other.space.regions
    unwinder = Unwinder(kept.arch), Unwinder(again.arch)
    assert told(unwinder[0].unwind(one)) == told(unwinder[1].unwind(other))
    assert contents(record(again)) == data


def test_the_file_is_the_same_each_time(example: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        python(*COMMAND, example / "core", "--sysroot", example, "--record", tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_the_description_of_the_format_reads_it(snapshot: Path) -> None:
    """docs/snapshot-format.md has a reader in a few lines; here it finds the crashed stack."""
    text = (ROOT / "docs/snapshot-format.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    out = io.StringIO()
    exec(code, {"path": str(snapshot), "print": lambda *words: print(*words, file=out)})
    document, _ = parts(snapshot)
    pointer = document["threads"][0]["registers"]["rsp"]
    assert pointer in out.getvalue()


def test_every_key_is_described() -> None:
    text = (ROOT / "docs/snapshot-format.md").read_text()
    writer = (ROOT / "unwind/writers/snapshot_file.py").read_text()
    keys = set(re.findall(r'"(\w+)":', writer)) | set(re.findall(r'known\["(\w+)"\]', writer))
    assert len(keys) > 50
    assert {key for key in keys if f"`{key}`" not in text} == set()


# -------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("how", ["gzip", "unpacked", "xz", "-"])
def test_it_may_be_packed_otherwise_or_come_through_a_pipe(
    snapshot: Path, tmp_path: Path, how: str
) -> None:
    expected = python(*COMMAND, snapshot).stdout
    assert "#8  " in expected
    data = gzip.decompress(snapshot.read_bytes())
    pack: dict[str, Callable[[bytes], bytes]]
    pack = {"gzip": gzip.compress, "unpacked": bytes, "xz": lzma.compress, "-": gzip.compress}
    path = tmp_path / "file"
    path.write_bytes(pack[how](data))
    given = path.read_bytes() if how == "-" else None
    ran = subprocess.run(
        [sys.executable, *COMMAND, "-" if how == "-" else str(path)],
        input=given,
        capture_output=True,
        cwd=ROOT,
    )
    assert ran.stdout.decode() == expected
    assert complaints(ran.stderr.decode()) == ""


@pytest.mark.parametrize("options", [(), ("-r",), ("-m",), ("--explain",), ("--thread", "13158")])
def test_the_text_is_the_same(
    example: Path, tmp_path: Path, options: tuple[str, ...], snapshot: Path
) -> None:
    sysroot = ("--sysroot", example)
    whole = python(*COMMAND, example / "core", *sysroot, *options)
    alone = python(*COMMAND, snapshot, *options)
    assert (alone.stdout, alone.stderr) == (whole.stdout, whole.stderr)


METHODS = named("neither-signals", "procedure-linkage-table", "frame-pointers", "lld-clang")


@pytest.mark.parametrize("option", ["--scan", "--cross-check", "--methods=cfi,scan"])
@pytest.mark.parametrize("case", METHODS, ids=str)
def test_it_keeps_what_other_methods_look_at(
    case: Case, option: str, tmp_path: Path, crashed: Crashes
) -> None:
    crash = crashed[case]
    path = tmp_path / "snapshot"
    whole = printed(crash.core, "--json", option, "--record", path)
    alone = printed(path, "--json", option)
    assert list(differences(whole["threads"], alone["threads"])) == []


@pytest.mark.parametrize("case", named("frame-pointers"), ids=str)
def test_rows_from_code_need_no_capstone(case: Case, tmp_path: Path, crashed: Crashes) -> None:
    path = tmp_path / "snapshot"
    whole = python(*COMMAND, crashed[case].core, "--record", path)
    assert "[emulation]" in whole.stdout
    alone = python("-c", WITHOUT_CAPSTONE, path)
    assert (alone.stdout, alone.stderr) == (whole.stdout, "")


def test_other_methods_than_those_of_the_time_are_warned_of(snapshot: Path) -> None:
    ran = python(*COMMAND, snapshot, "--scan")
    assert "warning: recorded with --methods cfi,trampoline," in ran.stderr
    ran = python(*COMMAND, snapshot, "--cross-check", "-n", "1")
    assert "warning: recorded without --cross-check" in ran.stderr
    assert "the snapshot holds no code around" in ran.stdout


def test_further_than_it_was_recorded_a_walk_ends_with_a_reason(
    example: Path, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot"
    python(*COMMAND, example / "core", "--sysroot", example, "-n", "3", "--record", path)
    text = python(*COMMAND, path, "--thread", "13157").stdout
    assert len(re.findall("^#", text, re.M)) in (3, 4)
    assert "stack ends here" in text
    assert "stack ends here: limit" in python(*COMMAND, path, "-n", "3").stdout


def test_a_snapshot_can_be_recorded_again(snapshot: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    one = printed(snapshot, "--json", "--explain", "--record", again)
    other = printed(again, "--json", "--explain")
    assert one.pop("source")["kind"] == other.pop("source")["kind"] == "snapshot"
    assert list(differences(one, other)) == []


def test_all_cfi_can_be_kept(example: Path, tmp_path: Path, snapshot: Path) -> None:
    whole = tmp_path / "whole"
    sysroot = ("--sysroot", example)
    python(*COMMAND, example / "core", *sysroot, "--record", whole, "--with-modules")
    assert python(*COMMAND, whole).stdout == python(*COMMAND, snapshot).stdout
    with TRANSPORT.open(str(whole), Files()) as source:
        space = next(source.snapshots()).space
        images = [module.image for module in space.modules]
        counts = []
        for image in images:
            assert isinstance(image, RecordedImage)
            [section] = image.sections["eh_frame"]
            counts.append(sum(1 for _ in section.entries()))
    assert max(counts) > 1000, "those of libc"


def test_it_is_its_owners(snapshot: Path) -> None:
    assert stat.S_IMODE(snapshot.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["core", "-", "no/such/directory/file"])
def test_it_is_not_written_just_anywhere(example: Path, tmp_path: Path, name: str) -> None:
    core = tmp_path / "core"
    core.write_bytes((example / "core").read_bytes())
    before = core.read_bytes()
    ran = python(
        *COMMAND, core, "--sysroot", example, "--record", name if name == "-" else tmp_path / name
    )
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert core.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["core"]


def test_options_that_do_nothing_are_told_of(snapshot: Path, example: Path) -> None:
    ran = python(*COMMAND, snapshot, "-e", "/bin/true")
    assert "#8  " in ran.stdout
    assert "/bin/true: a snapshot wants no file; it was not used" in ran.stderr
    ran = python(*COMMAND, example / "core", "--with-modules")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "--record" in ran.stderr


# -------------------------------------------------------------------------- detection, refusals


def test_its_transport_is_found_by_its_first_bytes(snapshot: Path) -> None:
    head = gzip.decompress(snapshot.read_bytes())[:64]
    assert transport_of(head, likely="core") is TRANSPORT
    assert transport("snapshot") is TRANSPORT
    assert transport_of(b"#!/bin/sh", likely="core") is None


def test_of_a_file_cut_short_the_rest_still_serves(snapshot: Path) -> None:
    data = gzip.decompress(snapshot.read_bytes())
    size = HEAD.size + HEAD.unpack_from(data)[3]
    [first, _] = opened(data[:size]).snapshots()
    stack = Unwinder(first.space.arch).unwind(first)
    assert len(stack.frames) == 1
    assert stack.detail


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"unwind-snapshot\n", FormatError, "ends within its head"),
        (HEAD.pack(MAGIC, VERSION + 1, 0, 0), SourceError, "version 2"),
        (HEAD.pack(MAGIC, VERSION, 0, 1 << 60), FormatError, "a document of 1152921504606846976"),
        (HEAD.pack(MAGIC, VERSION, 0, 4) + b"nope", FormatError, "no JSON"),
        (HEAD.pack(MAGIC, VERSION, 0, 2) + b"{}", FormatError, "no 'source'"),
        (HEAD.pack(MAGIC, VERSION, 0, 2) + b"[]", FormatError, "not an object"),
    ],
    ids=["head", "version", "size", "no JSON", "empty", "list"],
)
def test_what_is_no_snapshot_is_refused(data: bytes, error: type[UnwindError], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        opened(data)


def changed(snapshot: Path, change: Callable[[Any], None]) -> bytes:
    """The file with another document."""
    document, rest = parts(snapshot)
    change(document)
    text = json.dumps(document).encode()
    return HEAD.pack(MAGIC, VERSION, 0, len(text)) + text + rest


def test_an_unknown_architecture_is_named(snapshot: Path) -> None:
    data = changed(snapshot, lambda document: document["source"].update(arch="pdp11"))
    with pytest.raises(UnsupportedArchitecture, match="pdp11"):
        opened(data)


def test_a_place_in_the_document_is_named(snapshot: Path) -> None:
    data = changed(snapshot, lambda document: document["threads"][1].update(tid="x"))
    with pytest.raises(FormatError, match=re.escape("a file: document.threads[1].tid")):
        opened(data)


def test_a_deep_document_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(FormatError, match="no JSON"):
        opened(HEAD.pack(MAGIC, VERSION, 0, len(text)) + text)


def test_a_document_of_too_many_values_is_refused_at_once() -> None:
    text = b"[" + b"0," * 300_000 + b"0]"
    with pytest.raises(FormatError, match="values in its document"):
        opened(HEAD.pack(MAGIC, VERSION, 0, len(text)) + text)


def test_what_would_be_refused_is_not_written() -> None:
    made = World().snapshot()
    many = [made.replace(tid=n) for n in range(1, 40_000)]
    kept = RecordedSource(made.space.arch, [*record(Source(made.space.arch), [made]).snapshots()])
    [one] = kept.snapshots()
    kept.threads = tuple(one.replace(tid=n.tid) for n in many)
    with pytest.raises(SourceError, match="too much"):
        contents(kept)


def test_a_section_may_claim_a_gigabyte_and_takes_none(snapshot: Path) -> None:
    import tracemalloc

    def claim(document: Any) -> None:
        for image in document["images"]:
            for section in image["cfi"]:
                section["size"] = 1 << 30

    data = changed(snapshot, claim)
    tracemalloc.start()
    try:
        for thread in opened(data).snapshots():
            assert len(Unwinder(thread.space.arch).unwind(thread).frames) > 5
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_packing_is_undone_by_gzip() -> None:
    assert gzip.decompress(packed(b"abc" * 1000)) == b"abc" * 1000
