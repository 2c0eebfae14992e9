"""What users install: the sdist builds without git and network, and its wheel lacks nothing.

The build backend is called as pip would call it (PEP 517), in this interpreter's environment
instead of one that would have to be downloaded.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT, git_files, need, python, run
from tools.make_docs import commands
from unwind.version import VERSION

BUILD = """
import sys
sys.path.insert(0, "tools")
import build_backend
print(build_backend.build_{kind}({where!r}))
"""
MAPPED = ("arch", "bpf", "transports")


def build(kind: str, tree: Path, path: str = "") -> Path:
    """The `sdist` or `wheel` of `tree`, made without a look at git or the network.

    Without programs in `path` there is no clang.
    """
    no_tools = {
        "PATH": path,
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    code = BUILD.format(kind=kind, where=str(tree / "dist"))
    done = python("-W", "ignore", "-c", code, cwd=tree, PYTHONPATH="", **no_tools)
    assert done.returncode == 0, done.stderr
    return tree / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git lists, without git, in a directory with a space."""
    tree = tmp_path_factory.mktemp("a checkout")
    for name in git_files():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    return tree


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    return build("sdist", checkout)


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", sdist, "-C", where], check=True)
    [tree] = where.iterdir()
    return tree


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    return build("wheel", unpacked)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and what it requires lent by the tests' own."""
    where = tmp_path_factory.mktemp("an environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    done = python(
        *("-m", "pip", "--python", where / "bin/python", "install", "--no-index", "--no-deps"),
        *("--disable-pip-version-check", wheel),
        PYTHONPATH="",
    )
    assert done.returncode == 0, done.stderr
    [packages] = where.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text("\n".join(site.getsitepackages()))
    return where


def package_files() -> set[str]:
    """What git lists of the packages, by the names that a wheel gives them."""
    files = git_files("unwind", *MAPPED)
    links = {f"unwind/{top}" for top in MAPPED}
    mapped = {f"unwind/{name}" if name.startswith(MAPPED) else name for name in files}
    return {name for name in mapped - links if name.endswith((".py", "py.typed", ".css", ".js"))}


def wheel_files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_package_file_of_git(wheel: Path) -> None:
    packed = {name for name in wheel_files(wheel) if name.startswith("unwind/")}
    assert packed >= package_files(), "a package is missing in setup.cfg"
    assert not [name for name in packed - package_files() if name.endswith(".py")]


def test_a_wheel_has_bpf_objects_where_there_is_clang(
    wheel: Path, unpacked: Path, tmp_path: Path
) -> None:
    need("clang", "make")
    tree = shutil.copytree(unpacked, tmp_path / "tree", ignore=shutil.ignore_patterns("build"))
    built = wheel_files(build("wheel", tree, os.environ["PATH"]))
    programs = [path.name.removesuffix(".bpf.c") for path in (ROOT / "bpf").glob("*.bpf.c")]
    objects = {
        f"unwind/bpf/{program}.{arch}.bpf.o"
        for arch in ("x86_64", "arm64", "mips32", "mips32el")
        for program in programs
    }
    assert len(objects) >= 8
    assert built == wheel_files(wheel) | objects
    assert not objects & wheel_files(wheel), "one was shipped in the sdist"


def test_the_sdist_holds_what_make_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    links = {f"unwind/{top}" for top in MAPPED}
    assert set(git_files()) - links - packed == set(), "a file is missing in MANIFEST.in"
    assert not [name for name in packed if name.startswith(tuple(f"{link}/" for link in links))]


def test_the_sdist_and_the_tree_give_the_same_wheel(checkout: Path, wheel: Path) -> None:
    assert wheel_files(build("wheel", checkout)) == wheel_files(wheel)


def test_links_unpacked_as_text_do_no_harm(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    """A zip download holds the links as small files."""
    tree = Path(shutil.copytree(unpacked, tmp_path / "zip", ignore=shutil.ignore_patterns("build")))
    for top in MAPPED:
        (tree / "unwind" / top).write_text(f"../{top}")
    assert wheel_files(build("wheel", tree)) == wheel_files(wheel)


@pytest.mark.parametrize("name", commands())
def test_an_installed_command_runs(name: str, installed: Path, tmp_path: Path) -> None:
    done = run(installed / "bin" / name, "--version", cwd=tmp_path, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == VERSION


def test_the_installed_package_is_typed_and_whole(installed: Path, tmp_path: Path) -> None:
    names = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in package_files()
        if name.endswith(".py")
    )
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = run(installed / "bin/python", "-c", code, *names, cwd=tmp_path, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert list(installed.glob("lib/python*/site-packages/unwind/py.typed"))


@pytest.mark.parametrize("name", commands())
def test_manual_and_completion_are_installed(name: str, installed: Path) -> None:
    for path in (
        f"man/man1/{name}.1",
        f"bash-completion/completions/{name}",
        f"zsh/site-functions/_{name}",
    ):
        assert os.path.getsize(installed / "share" / path)
