"""Files: which file serves for a recorded name and a build-id, and which must not be touched."""

from __future__ import annotations

import gc
import os
import socket
import zlib
from pathlib import Path

import pytest

from tests.cores import shared_object
from unwind.elf import Elf
from unwind.files import Files, resolve
from unwind.modules import State

ID, OTHER = bytes(range(20)), bytes(range(100, 120))


def put(path: Path, data: bytes | None = None) -> str:
    """Writes an ELF file, and what directories it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shared_object(ID) if data is None else data)
    return str(path)


def by_id(directory: Path, build_id: bytes, suffix: str = "") -> Path:
    return directory / ".build-id" / build_id.hex()[:2] / (build_id.hex()[2:] + suffix)


# ------------------------------------------------------------------------------- where it looks


def test_the_recorded_path_serves(tmp_path: Path) -> None:
    name = put(tmp_path / "lib with a space.so")
    found = Files().image(name, ID)
    assert (found.state, found.file) == (State.OK, name)
    assert found.image is not None
    assert found.image.build_id == ID
    assert found.data is not None
    assert bytes(found.data) == shared_object(ID)


def test_what_is_missing_is_told_place_by_place(tmp_path: Path) -> None:
    files = Files(debug_dirs=[str(tmp_path / "debug")])
    found = files.image(f"{tmp_path}/lib.so (deleted)", ID)
    assert (found.state, found.image, found.file) == (State.MISSING, None, None)
    assert [said.rpartition(": ")[2] for said in found.tried] == 4 * ["no such file"]
    places = [said.rpartition(": ")[0] for said in found.tried]
    assert places == [
        str(by_id(tmp_path / "debug", ID)),
        str(by_id(Path("/usr/lib/debug"), ID)),
        f"{tmp_path}/lib.so (deleted)",
        f"{tmp_path}/lib.so",
    ]


def test_another_build_id_is_a_mismatch_and_not_used(tmp_path: Path) -> None:
    name = put(tmp_path / "lib.so", shared_object(OTHER))
    found = Files().image(name, ID)
    assert (found.state, found.image, found.file) == (State.MISMATCH, None, None)
    assert f"its build-id is {OTHER.hex()}, the one in memory is {ID.hex()}" in found.tried[-1]


def test_no_build_id_where_memory_has_one_is_a_mismatch(tmp_path: Path) -> None:
    name = put(tmp_path / "lib.so", shared_object(None))
    found = Files().image(name, ID)
    assert found.state == State.MISMATCH
    assert "it has no build-id" in found.tried[-1]


def test_without_build_ids_the_callers_check_decides(tmp_path: Path) -> None:
    name = put(tmp_path / "lib.so", shared_object(None))
    assert Files().image(name, None).state == State.OK

    def check(elf: Elf) -> str:
        return "its program headers differ"

    found = Files().image(name, None, check=check)
    assert found.state == State.MISMATCH
    assert found.tried == (f"{name}: its program headers differ",)


def test_the_successor_of_a_deleted_file_is_used_only_when_its_build_id_is_the_same(
    tmp_path: Path,
) -> None:
    name = put(tmp_path / "lib.so")
    assert Files().image(f"{name} (deleted)", ID).file == name
    found = Files().image(f"{name} (deleted)", None)
    assert found.state == State.MISSING
    assert "another file than the deleted one" in found.tried[-1]
    called_so = put(tmp_path / "lib.so (deleted)")
    assert Files().image(called_so, None).file == called_so


def test_a_debug_directory_holds_binaries_by_build_id(tmp_path: Path) -> None:
    name = put(tmp_path / "lib.so", shared_object(OTHER))
    stored = put(by_id(tmp_path / "debug", ID))
    found = Files(debug_dirs=["/nowhere", str(tmp_path / "debug")]).image(name, ID)
    assert (found.state, found.file) == (State.OK, stored)


def test_the_executable_option_wins_for_the_main_program_alone(tmp_path: Path) -> None:
    recorded, mine = put(tmp_path / "program"), put(tmp_path / "mine")
    files = Files(executable=mine)
    assert files.image(recorded, ID, main=True).file == mine
    assert files.image(recorded, ID).file == recorded


@pytest.mark.parametrize(
    ("old", "new", "recorded"),
    [
        ("/a/lib.so", "{}/x/lib.so", "/a/lib.so"),
        ("/a/lib.so", "{}/x/lib.so", "/a/lib.so (deleted)"),
        ("lib.so", "{}/x/lib.so", "/a/b/lib.so"),
        ("/a", "{}/x", "/a/lib.so"),
        ("/a/", "{}/x", "/a/lib.so"),
        ("/a/b", "{}/x", "/a/b/lib.so"),
    ],
)
def test_the_module_map_takes_paths_names_and_directories(
    tmp_path: Path, old: str, new: str, recorded: str
) -> None:
    put(tmp_path / "x/lib.so")
    files = Files(module_map={old: new.format(tmp_path), "/a/bc": "/wrong", "/": "/wrong"})
    found = files.image(recorded, ID)
    assert (found.state, found.file) == (State.OK, f"{tmp_path}/x/lib.so")


def test_the_module_map_wins_over_the_recorded_path(tmp_path: Path) -> None:
    recorded, mine = put(tmp_path / "lib.so"), put(tmp_path / "mine.so")
    assert Files(module_map={recorded: mine}).image(recorded, ID).file == mine


@pytest.mark.parametrize("option", ["executable", "module_map"])
def test_a_named_file_with_another_build_id_is_refused_loudly(tmp_path: Path, option: str) -> None:
    recorded = put(tmp_path / "program")
    wrong = put(tmp_path / "wrong", shared_object(OTHER))
    named = {"executable": wrong} if option == "executable" else {"module_map": {recorded: wrong}}
    files = Files(**named)
    found = files.image(recorded, ID, main=True)
    assert found.state == State.MISMATCH
    assert found.file == recorded
    assert wrong in files.warnings[0]
    assert "build-id" in files.warnings[0]


def test_a_named_file_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    files = Files(executable="/no/such")
    assert files.image(put(tmp_path / "program"), ID, main=True).state == State.OK
    assert files.warnings == ["/no/such: no such file; it was not used"]


def test_a_relative_name_starts_from_the_given_directory(tmp_path: Path) -> None:
    name = put(tmp_path / "bin/program")
    assert Files().image("bin/program", ID, base=str(tmp_path)).file == name
    assert Files().image("program", ID, base=str(tmp_path / "bin")).file == name


@pytest.mark.parametrize("name", ["", "[vdso]", "[heap]", "//anon", "libonly"])
def test_what_is_no_path_is_not_looked_for(name: str) -> None:
    found = Files().image(name, None)
    assert (found.state, found.tried) == (State.MISSING, ())


# ------------------------------------------------------------------------------------- sysroot


def test_with_a_sysroot_recorded_paths_lie_in_it(tmp_path: Path) -> None:
    outside, inside = put(tmp_path / "lib.so"), put(tmp_path / f"root{tmp_path}/lib.so")
    files = Files(sysroot=str(tmp_path / "root"))
    assert files.image(outside, ID).file == inside
    os.unlink(inside)
    assert files.image(outside, ID).state == State.MISSING


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("root/usr/lib.so", "{}/outside.so"),
        ("root/usr/lib.so", "../../outside.so"),
        ("root/usr/lib.so", "../../../../../../../../../..{}/outside.so"),
        ("root/usr", "{}"),
        ("root/usr", ".."),
    ],
)
def test_no_link_leads_out_of_the_sysroot(tmp_path: Path, link: str, target: str) -> None:
    put(tmp_path / "outside.so")
    put(tmp_path / "lib.so")
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(target.format(tmp_path))
    found = Files(sysroot=str(tmp_path / "root")).image("/usr/lib.so", ID)
    assert (found.state, found.file) == (State.MISSING, None)


@pytest.mark.parametrize("target", ["/real/lib.so", "../real/lib.so", "../../../real/./lib.so"])
def test_links_within_the_sysroot_are_followed(tmp_path: Path, target: str) -> None:
    stored = put(tmp_path / "root/real/lib.so")
    (tmp_path / "root/usr").mkdir()
    (tmp_path / "root/usr/lib.so").symlink_to(target)
    found = Files(sysroot=str(tmp_path / "root")).image("/usr/lib.so", ID)
    assert (found.state, found.file) == (State.OK, stored)


def test_dots_in_a_recorded_path_stay_in_the_sysroot(tmp_path: Path) -> None:
    put(tmp_path / "lib.so")
    put(tmp_path / "root/keep")
    found = Files(sysroot=f"{tmp_path}/root/").image("/../../lib.so", ID)
    assert found.state == State.MISSING


def test_named_files_may_lie_outside_the_sysroot(tmp_path: Path) -> None:
    mine = put(tmp_path / "mine.so")
    (tmp_path / "root").mkdir()
    files = Files(executable=mine, module_map={"/lib.so": mine}, sysroot=str(tmp_path / "root"))
    assert files.image("/bin/program", ID, main=True).file == mine
    assert files.image("/lib.so", ID).file == mine


def test_the_sysroots_own_debug_directory_is_used_and_not_the_systems(tmp_path: Path) -> None:
    root = tmp_path / "root"
    stored = put(by_id(root / "usr/lib/debug", ID))
    assert Files(sysroot=str(root)).image("/lib.so", ID).file == stored
    os.unlink(stored)
    os.symlink(put(tmp_path / "outside.so"), stored)
    assert Files(sysroot=str(root)).image("/lib.so", ID).state == State.MISSING


def test_with_a_sysroot_links_do_not_lead_out_of_a_debug_directory(tmp_path: Path) -> None:
    link = by_id(tmp_path / "debug", ID)
    link.parent.mkdir(parents=True)
    link.symlink_to(put(tmp_path / "lib.so"))
    (tmp_path / "root").mkdir()
    debug = [str(tmp_path / "debug")]
    assert Files(debug_dirs=debug).image("/none", ID).state == State.OK
    files = Files(debug_dirs=debug, sysroot=str(tmp_path / "root"))
    assert files.image("/none", ID).state == State.MISSING


def test_resolve_ends() -> None:
    assert resolve("/", "/no/such/../file") == "/no/file"
    assert resolve("/", "/") == "/"
    assert resolve("/no/root", "/../..") == "/no/root"


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    found = Files(sysroot=str(tmp_path)).image("/one/lib.so", ID)
    assert "too many symbolic links" in found.tried[-1]
    found = Files().image(f"{tmp_path}/one/lib.so", ID)
    assert "symbolic links" in found.tried[-1]


# --------------------------------------------------------------------------- hostile file names


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    opened = []
    really = os.open

    def record(path: str, *arguments: int) -> int:
        opened.append(path)
        return really(path, *arguments)

    monkeypatch.setattr(os, "open", record)
    names = [f"{tmp_path}/{name}" for name in ("fifo", "directory", "link", "socket")]
    for name in [*names, "/dev/zero", "/dev/tty", "/dev/null", "/proc/self/fd/0"]:
        found = Files().image(name, None)
        assert found.state == State.MISSING
        assert found.tried[-1].endswith(("not a regular file", "the file is empty")), found.tried
    assert [name for name in opened if name != "/proc/self/fd/0"] == []


@pytest.mark.parametrize(
    "name",
    [
        "/etc\0/passwd",
        "/" + "x" * 5000,
        "/" + "x/" * 3000,
        "/\ud800",
        "/\udcff\udc80",
        "/\x1b[31m\n",
        "/proc/self/mem",
        "/proc/kcore",
        "/proc/self/environ",
        "/sys/kernel/notes",
        "/etc/passwd",
        "relative/../../../etc/passwd",
    ],
)
@pytest.mark.parametrize("sysroot", [None, "/"])
def test_a_name_may_be_anything(name: str, sysroot: str | None) -> None:
    found = Files(sysroot=sysroot).image(name, ID, base="/tmp")
    assert found.image is None
    assert found.tried


def test_a_file_that_is_no_elf_is_foreign(tmp_path: Path) -> None:
    found = Files().image(put(tmp_path / "data", b"some data"), None)
    assert (found.state, found.foreign) == (State.MISSING, True)
    found = Files().image(put(tmp_path / "empty", b""), None)
    assert found.tried[-1].endswith("the file is empty")
    core = bytearray(shared_object(ID))
    core[16] = 4
    found = Files().image(put(tmp_path / "core", bytes(core)), ID)
    assert found.tried[-1].endswith("neither a program nor a library")


# ---------------------------------------------------------------------------------- debug files


def linked(tmp_path: Path, debug: bytes, name: str = "lib.debug", crc: int | None = None) -> Files:
    """Puts lib.so, which names a debug file by .gnu_debuglink."""
    crc = zlib.crc32(debug) if crc is None else crc
    put(tmp_path / "usr/lib.so", shared_object(ID, link=(name, crc)))
    return Files(debug_dirs=[str(tmp_path / "debug")])


def debug_path(files: Files, name: Path) -> str | None:
    image = files.image(str(name), ID).image
    assert image is not None
    return image.debug.path if image.debug is not None else None


DEBUG = shared_object(ID, filler=b"debug")


@pytest.mark.parametrize("suffix", ["usr/lib.debug", "usr/.debug/lib.debug", "debug{}/lib.debug"])
def test_a_debuglink_is_looked_for_in_three_places(tmp_path: Path, suffix: str) -> None:
    files = linked(tmp_path, DEBUG)
    stored = put(tmp_path / suffix.format(tmp_path / "usr"), DEBUG)
    assert debug_path(files, tmp_path / "usr/lib.so") == stored


@pytest.mark.parametrize("debug", [DEBUG + b"x", shared_object(OTHER), b"no ELF", b""], ids=len)
def test_a_debuglink_with_another_crc_is_not_used(tmp_path: Path, debug: bytes) -> None:
    files = linked(tmp_path, DEBUG)
    put(tmp_path / "usr/lib.debug", debug)
    assert debug_path(files, tmp_path / "usr/lib.so") is None


def test_a_debuglink_with_the_right_crc_and_another_build_id_is_not_used(tmp_path: Path) -> None:
    other = shared_object(OTHER)
    files = linked(tmp_path, other)
    put(tmp_path / "usr/lib.debug", other)
    assert debug_path(files, tmp_path / "usr/lib.so") is None


@pytest.mark.parametrize("name", ["../lib.debug", "/etc/passwd", "..", "."])
def test_a_debuglink_names_a_file_and_no_path(tmp_path: Path, name: str) -> None:
    files = linked(tmp_path, DEBUG, name)
    put(tmp_path / "lib.debug", DEBUG)
    assert debug_path(files, tmp_path / "usr/lib.so") is None


def test_a_debug_file_is_found_by_build_id(tmp_path: Path) -> None:
    name = tmp_path / "lib.so"
    put(name)
    stored = by_id(tmp_path / "debug", ID, ".debug")
    put(stored, shared_object(OTHER))
    files = Files(debug_dirs=[str(tmp_path / "debug")])
    assert debug_path(files, name) is None
    put(stored, DEBUG)
    assert debug_path(Files(debug_dirs=[str(tmp_path / "debug")]), name) == str(stored)


def test_within_a_sysroot_debug_files_come_from_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "usr/lib.so", shared_object(ID, link=("lib.debug", zlib.crc32(DEBUG))))
    files = Files(sysroot=str(root))
    stored = put(root / "usr/lib/debug/usr/lib.debug", DEBUG)
    image = files.image("/usr/lib.so", ID).image
    assert image is not None
    assert image.debug is not None
    assert image.debug.path == stored
    os.unlink(stored)
    os.symlink(put(tmp_path / "outside.debug", DEBUG), root / "usr/lib.debug")
    image = Files(sysroot=str(root)).image("/usr/lib.so", ID).image
    assert image is not None
    assert image.debug is None


# ---------------------------------------------------------------------------------------- cache


def test_one_file_is_one_image_for_as_long_as_somebody_uses_it(tmp_path: Path) -> None:
    name = put(tmp_path / "lib.so")
    os.link(name, tmp_path / "same.so")
    files = Files()
    one = files.image(name, ID).image
    assert files.image(str(tmp_path / "same.so"), ID).image is one
    assert len(files._images) == 1
    del one
    gc.collect()
    assert len(files._images) == 0


def test_a_replaced_file_is_another_image(tmp_path: Path) -> None:
    name = tmp_path / "lib.so"
    put(name)
    with Files() as files:
        one = files.image(str(name), ID).image
        os.unlink(name)
        put(name, shared_object(OTHER))
        other = files.image(str(name), OTHER).image
        assert one is not None
        assert other is not None
        assert (one.build_id, other.build_id) == (ID, OTHER)
    assert one.build_id == ID  # what is in use outlives Files
