"""unwind-symbolize: what it prints is what addr2line and llvm-symbolizer print."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import need, python, run
from tests.test_lines import PROGRAM, llvm
from tools.lines import addresses, opened
from unwind.elf import Elf
from unwind.lines.lookup import Lines


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("g++")
    path = tmp_path_factory.mktemp("symbolize") / "program"
    subprocess.run(["g++", "-g", "-O2", str(PROGRAM), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def vaddrs(program: Path) -> list[str]:
    """Places with lines; `_start` with a symbol alone; and one that is nowhere."""
    elf = opened(program)
    lines = Lines(elf)
    # Of local symbols without lines the tools say the file that STT_FILE names, we do not.
    places = [vaddr for vaddr in addresses(elf, 80, 3) if lines.at(vaddr)]
    assert len(places) > 50
    return [f"{place:x}" for place in [*places, elf.header.entry, 0xFFFF_FFFF]]


@pytest.fixture(autouse=True)
def a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def symbolize(*arguments: str | Path, input: str | None = None) -> str:
    done = python("-m", "unwind.cli.symbolize", *arguments, input=input)
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_discriminators(text: str) -> str:
    return re.sub(r" \(discriminator \d+\)", "", text)


@pytest.mark.parametrize(
    "options", ["", "-f", "-a -f", "-i", "-a -i -f -C", "-a -i -f -C -p", "-s"]
)
def test_the_text_is_addr2lines(options: str, program: Path, vaddrs: list[str]) -> None:
    need("addr2line")
    theirs = run("addr2line", *options.split(), "-e", program, *vaddrs).stdout
    ours = symbolize(*options.split(), program, *vaddrs)
    wanted = without_discriminators(theirs).splitlines()
    assert len(wanted) >= len(vaddrs)
    pairs = list(zip(ours.splitlines(), wanted, strict=True))
    # addr2line 2.40 names another file at one place in twenty, and the outer function at a lambda.
    assert [(a, b) for a, b in pairs if _line(a) != _line(b)] == []
    assert sum(a != b for a, b in pairs) < len(pairs) / 10


def _line(text: str) -> str:
    found = re.search(r":(\d+|\?)$", text)
    return found[1] if found else ""


def test_the_text_is_llvm_symbolizers(program: Path, vaddrs: list[str]) -> None:
    given = "".join(f"0x{vaddr}\n" for vaddr in vaddrs)
    theirs = run(llvm(), f"--obj={program}", input=given).stdout
    ours = symbolize("--llvm", program, input=given)
    assert _places(ours) == _places(theirs)
    assert len(ours.split("\n\n")) == len(vaddrs) + 1


def _places(text: str) -> list[list[str]]:
    """The places of each block: names differ where a symbol has several."""
    return [block.strip("\n").split("\n")[1::2] for block in text.split("\n\n")]


def test_addresses_are_read_from_standard_input(program: Path, vaddrs: list[str]) -> None:
    given = "".join(f"{vaddr}\n" for vaddr in vaddrs)
    ours = symbolize("-f", "-i", "--symbolizer", "built-in", program, input=given)
    assert ours == symbolize("-f", "-i", program, *vaddrs)


def test_json_has_all_levels(program: Path, vaddrs: list[str]) -> None:
    found = [json.loads(line) for line in symbolize("--json", program, *vaddrs).splitlines()]
    assert [entry["address"] for entry in found] == [f"0x{vaddr}" for vaddr in vaddrs]
    deepest = max(found, key=lambda entry: len(entry["frames"]))
    assert len(deepest["frames"]) > 2
    assert [frame["inline"] for frame in deepest["frames"]][-2:] == [True, False]
    assert all(frame["line"] and frame["column"] for frame in deepest["frames"])
    assert found[-1]["frames"] == []
    assert found[-2]["function"] == "_start"


def test_what_is_no_address_is_told_and_answered(program: Path) -> None:
    done = python("-m", "unwind.cli.symbolize", program, input="zz\n0\n")
    assert (done.returncode, done.stdout) == (0, "??:0\n??:0\n")
    assert "'zz' is no address" in done.stderr


def test_an_object_file_has_lines(tmp_path: Path) -> None:
    need("gcc")
    source = tmp_path / "one.c"
    source.write_text("int one(int n)\n{\n\treturn n * 7;\n}\n")
    subprocess.run(["gcc", "-g", "-c", "one.c"], cwd=tmp_path, check=True)
    assert symbolize("-f", "-s", tmp_path / "one.o", "0") == "one\none.c:2\n"


@pytest.mark.parametrize("content", [b"", b"no ELF file at all", b"\x7fELF"])
def test_what_is_no_elf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    done = python("-m", "unwind.cli.symbolize", path, "0")
    assert done.returncode == 2
    assert done.stderr.startswith(f"unwind-symbolize: {path}: ")
    assert done.stderr.count("\n") == 1


def test_a_debug_file_serves_for_its_stripped_program(program: Path, tmp_path: Path) -> None:
    need("objcopy")
    for command in (
        f"objcopy --only-keep-debug {program} p.debug",
        f"objcopy --strip-all --add-gnu-debuglink=p.debug {program} p",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    assert Elf((tmp_path / "p").read_bytes()).section(".debug_info") is None
    vaddr = f"{opened(program).header.entry + 0x200:x}"
    wanted = symbolize("-f", "-i", program, vaddr)
    assert "?" not in wanted
    assert symbolize("-f", "-i", tmp_path / "p", vaddr) == wanted
    assert symbolize("-f", "-i", tmp_path / "p.debug", vaddr) == wanted
