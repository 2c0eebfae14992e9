"""What is said of modules whose frames have no names: the package, or the build-id to ask for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import need, python, run
from tests.test_debug_files import SOURCE, built, identity, opened, tool
from unwind.advice import advice, package_of
from unwind.files import Files
from unwind.modules import Module, State


def stripped(where: Path, note: str = "", **about: str) -> Path:
    """A program without symbols, with a note of the package it is of."""
    text = json.dumps(about) if about else note
    packaged = f"""
    asm(".pushsection .note.package, \\"a\\", @note; .balign 4; .long 4, {len(text) + 1}, "
        "0xcafe1a7e; .asciz \\"FDO\\"; .asciz {json.dumps(json.dumps(text))[1:-1]}; .balign 4; "
        ".popsection");
    """
    program = built(where, source=SOURCE + (packaged if text else ""))
    tool(where, "strip", program.name)
    return program


def module_of(path: Path, name: str | None = None, state: str = State.OK) -> Module:
    image = opened(path, Files())
    return Module(name or str(path), 0, ((0, 4096),), image, state, str(path), image.build_id)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stripped(tmp_path_factory.mktemp("stripped"))


def listed(root: Path, package: str, *paths: str) -> str:
    lists = root / "var/lib/dpkg/info"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{package}.list").write_text("/.\n" + "\n".join(paths) + "\n")
    return str(root)


def test_a_module_without_symbols_is_named_with_its_build_id(plain: Path, tmp_path: Path) -> None:
    text = advice(module_of(plain), 3, root=str(tmp_path))
    assert text == (
        f"no names for 3 places in {plain}: --debuginfod (debug info of build-id "
        f"{identity(plain).hex()})"
    )
    asked = advice(module_of(plain), 1, root=str(tmp_path), servers=True)
    assert asked == (
        f"no names for 1 place in {plain}: its debug info of build-id {identity(plain).hex()} "
        "is needed"
    )


def test_of_a_missing_file_the_file_is_needed(tmp_path: Path) -> None:
    module = Module("/opt/x.so", 0, ((0, 4096),), None, State.MISSING, None, bytes(20))
    text = advice(module, 1, root=str(tmp_path))
    assert text is not None
    assert text.endswith(f"--debuginfod (file of build-id {bytes(20).hex()})")
    nameless = module.replace(build_id=None)
    assert advice(nameless, 1) == "no names for 1 place in /opt/x.so: its file is needed"


def test_where_there_are_symbols_nothing_would_help(tmp_path: Path) -> None:
    assert advice(module_of(built(tmp_path)), 1) is None
    for name in ("", "[vdso]", "//anon", "/memfd:code (deleted)", "/dev/zero (deleted)"):
        assert advice(Module(name, 0, ((0, 1),), None), 1) is None


@pytest.mark.parametrize(
    ("package", "path", "name"),
    [
        ("libc6:amd64", "/lib/x86_64-linux-gnu/libc.so.6", "libc6-dbg"),
        ("libstdc++6:amd64", "/usr/lib/libstdc++.so.6.0.30", "libstdc++6-dbgsym"),
        ("libglib2.0-0", "/usr/lib/libglib-2.0.so.0", "libglib2.0-0-dbgsym"),
        ("coreutils", "/bin/sleep", "coreutils-dbgsym"),
    ],
)
def test_dpkg_knows_whose_file_it_is(
    plain: Path, tmp_path: Path, package: str, path: str, name: str
) -> None:
    root = listed(tmp_path, package, "/usr/bin/other", path)
    listed(tmp_path, "other", path + ".1", "/x" + path)
    recorded = path if path.startswith("/usr") else f"/usr{path}"
    text = advice(module_of(plain, recorded), 1, root=root)
    assert text is not None
    assert f": apt install {name}, or --debuginfod (" in text
    replaced = module_of(plain, recorded, State.MISMATCH)
    assert "apt" not in (advice(replaced, 1, root=root) or "apt")


@pytest.mark.parametrize("path", ["/usr/bin/sleep", "/usr/lib/x86_64-linux-gnu/libm.so.6"])
def test_dpkg_itself_names_the_same_package(path: str, plain: Path) -> None:
    need("dpkg")
    done = run("dpkg", "-S", path)
    if done.returncode:  # since /usr was merged, the list has the other name
        done = run("dpkg", "-S", path.removeprefix("/usr"))
    package = done.stdout.partition(":")[0]
    assert package
    assert package_of(module_of(plain, path)) == ("deb", package)


def test_a_note_tells_the_package_anywhere(tmp_path: Path) -> None:
    program = stripped(tmp_path, type="deb", os="debian", name="hello", version="2.10-3")
    assert package_of(module_of(program)) == ("deb", "hello")
    assert "apt install hello-dbgsym" in (advice(module_of(program), 1) or "")
    program = stripped(tmp_path, type="rpm", os="fedora", name="hello", version="2.12-1")
    text = identity(program).hex()
    place = f"/usr/lib/debug/.build-id/{text[:2]}/{text[2:]}.debug"
    assert f"install {place}, or" in (advice(module_of(program), 1) or "")


def test_on_fedora_the_build_id_tells_the_package(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/fedora-release").write_text("Fedora release 42\n")
    text = advice(module_of(plain), 1, root=str(tmp_path))
    assert "dnf --enablerepo='*debug*' install /usr/lib/debug/.build-id/" in (text or "")


@pytest.mark.parametrize(
    "note",
    [
        '{"type":"deb","name":"x; rm -rf ~"}',
        '{"type":"deb","name":"--force"}',
        '{"type":"deb","name":""}',
        '{"type":"deb","name":7}',
        '{"type":"deb"}',
        "[" * 3000,
        "[1]",
        "no JSON",
    ],
    ids=range(8),
)
def test_a_note_may_say_anything(tmp_path: Path, note: str) -> None:
    module = module_of(stripped(tmp_path, note=note))
    assert package_of(module, str(tmp_path)) is None
    assert (advice(module, 1, root=str(tmp_path)) or "").partition(": ")[2].startswith("--debug")


def test_it_is_said_once_for_each_module(example: Path, tmp_path: Path) -> None:
    core = str(example / "core")
    done = python("-m", "unwind.cli.core", core, "--sysroot", str(example))
    hints = [line for line in done.stderr.splitlines() if ": hint: " in line]
    nameless = [line for line in done.stdout.splitlines() if " ?? " in line]
    assert len(hints) == 1
    assert len(nameless) > 1
    assert f"no names for {len(nameless)} places in /usr/lib/" in hints[0]
    assert "--debuginfod" in hints[0]
    quiet = python("-m", "unwind.cli.core", core, "--sysroot", str(example), "-q")
    assert quiet.stderr == ""


def test_of_a_running_program_the_package_is_told() -> None:
    need("dpkg", "sleep")
    path = shutil.which("sleep")
    assert path is not None
    with subprocess.Popen([path, "100"]) as sleeper:
        try:
            done = python("-m", "unwind.cli.live", str(sleeper.pid))
        finally:
            sleeper.kill()
    assert "apt install coreutils-dbgsym" in done.stderr
