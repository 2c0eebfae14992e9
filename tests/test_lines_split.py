"""Debug info in several files: .dwo files, packages of them, and what dwz shares."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import need
from tests.test_lines import PROGRAM, llvm
from tools.lines import Chain, addresses, by_llvm, compare
from unwind.files import Files
from unwind.symbols.debug_info import DebugSymbolizer

WAYS = ("g++ -gdwarf-5", "g++ -gdwarf-4", "g++ -gdwarf-5 -gdwarf64", "clang++ -gdwarf-5")


def built(way: str, folder: Path, *sources: Path) -> Path:
    """A program of `sources` whose units are split, in `folder`."""
    need(way.split()[0])
    command = [*way.split(), "-gsplit-dwarf", "-O2", "-fno-split-dwarf-inlining"]
    command = command[: None if "clang" in way else -1]
    run([*command, *map(str, sources or [PROGRAM]), "-o", "program"], folder)
    return folder / "program"


def run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)


def told(program: Path, vaddrs: list[int]) -> tuple[list[Chain], list[str]]:
    """The chains at `vaddrs`, and what was damaged."""
    with Files() as files:
        image = files.image(str(program)).image
        assert image is not None
        symbolizer = DebugSymbolizer(files)
        chains = [symbolizer.locations(image, vaddr) for vaddr in vaddrs]
        return [tuple((p.file, p.line) for p in chain) for chain in chains], [*symbolizer.problems]


def vaddrs_of(program: Path) -> list[int]:
    image = Files().image(str(program)).image
    assert image is not None
    return addresses(image.elf, 150, 5)


def agrees(program: Path) -> None:
    """Every chain is llvm-symbolizer's, and most places have something inlined."""
    vaddrs = vaddrs_of(program)
    mine, problems = told(program, vaddrs)
    assert problems == []
    score = compare("llvm", vaddrs, mine, by_llvm(llvm())(program, vaddrs), 0, True)
    assert score.share == 1, score.differences
    assert sum(len(chain) > 1 for chain in mine) > 50


@pytest.mark.parametrize("way", WAYS)
def test_split_units_are_found_and_used(way: str, tmp_path: Path) -> None:
    agrees(built(way, tmp_path))


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_package_of_split_units_is_used(way: str, tmp_path: Path) -> None:
    need("llvm-dwp")
    program = built(way, tmp_path)
    run(["llvm-dwp", "-e", "program", "-o", "program.dwp"], tmp_path)
    for part in tmp_path.glob("*.dwo"):
        part.unlink()
    agrees(program)


def test_without_the_split_part_lines_are_left(tmp_path: Path) -> None:
    program = built(WAYS[0], tmp_path)
    vaddrs = vaddrs_of(program)
    whole, _ = told(program, vaddrs)
    for part in tmp_path.glob("*.dwo"):
        part.unlink()
    rest, _ = told(program, vaddrs)
    assert [chain[:1] for chain in rest] == [chain[:1] for chain in whole]
    assert max(map(len, rest)) == 1


def test_the_split_part_of_another_build_is_not_used(tmp_path: Path) -> None:
    program = built(WAYS[0], tmp_path)
    vaddrs = vaddrs_of(program)
    other = tmp_path / "other"
    other.mkdir()
    built(WAYS[0] + " -O1", other)
    [part] = tmp_path.glob("*.dwo")
    shutil.copy(other / part.name, part)
    chains, _ = told(program, vaddrs)
    assert max(map(len, chains)) == 1


def test_what_dwz_shares_is_used(tmp_path: Path) -> None:
    need("dwz")
    programs = []
    for name in ("one", "two"):
        run(["g++", "-gdwarf-5", "-O2", str(PROGRAM), "-o", name], tmp_path)
        programs.append(name)
    before, _ = told(tmp_path / "one", vaddrs_of(tmp_path / "one"))
    run(["dwz", "-m", "common", *programs], tmp_path)
    assert (tmp_path / "common").stat().st_size > 1000
    after, problems = told(tmp_path / "one", vaddrs_of(tmp_path / "one"))
    assert (after, problems) == (before, [])
    agrees(tmp_path / "one")


def test_names_that_dwz_shares_are_found(tmp_path: Path) -> None:
    need("dwz")
    for name in ("one", "two"):
        run(["g++", "-gdwarf-5", "-O2", str(PROGRAM), "-o", name], tmp_path)

    def names(program: Path) -> list[str | None]:
        with Files() as files:
            image = files.image(str(program)).image
            assert image is not None
            symbolizer = DebugSymbolizer(files)
            vaddrs = vaddrs_of(program)
            return [p.function for vaddr in vaddrs for p in symbolizer.locations(image, vaddr)]

    before = names(tmp_path / "one")
    assert sum(name is not None for name in before) > 100
    run(["dwz", "-m", "common", "one", "two"], tmp_path)
    assert names(tmp_path / "one") == before
    (tmp_path / "common").unlink()
    lost = names(tmp_path / "one")
    assert len(lost) == len(before)
    assert lost.count(None) > before.count(None)
