"""A sample of what `make oracle` does: the rows of real files equal to readelf's."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.support import need
from tests.test_cfi_tables import object_with
from tools import oracle
from unwind.testing.assembler import FDE, RBX, Section, def_cfa_offset, offset

ROWS = 100_000
LARGEST = 8 << 20  # bytes of a file: the largest take a minute each


def test_rows_of_this_machine_are_readelfs(capsys: pytest.CaptureFixture[str]) -> None:
    need("readelf")
    files = [
        path for path in oracle.elf_files(oracle.PLACES) if Path(path).stat().st_size < LARGEST
    ]
    random.Random(0).shuffle(files)
    # The interpreter comes first: there is one everywhere, and it is no small file.
    total = oracle.compare(str(Path(sys.executable).resolve()))
    for path in files:
        if total.ours.rows >= ROWS:
            break
        total += oracle.compare(path)
    with capsys.disabled():
        print(
            f" [{total.ours.files} files, {total.ours.fdes:,} FDEs, {total.ours.rows:,} rows]",
            end="",
        )
    assert [str(difference) for difference in total.differences] == []
    assert total.ours == total.theirs
    assert total.ours.rows >= ROWS


def test_the_oracle_sees_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("readelf")
    (tmp_path / "one").mkdir()
    fdes = [FDE(0x5000, 16, [def_cfa_offset(16)]), FDE(0x6000, 16, [offset(RBX, 2)])]
    path = str(object_with(tmp_path / "one", Section(*fdes, vaddr=0)))
    assert oracle.compare(path).differences == []
    fdes[1] = FDE(0x6000, 16, [offset(RBX, 3)])
    other = str(object_with(tmp_path, Section(*fdes, vaddr=0)))
    theirs = oracle._theirs
    monkeypatch.setattr(oracle, "_theirs", lambda _, layout: theirs(other, layout))
    seen = oracle.compare(path).differences
    assert [(one.place.offset, one.layout) for one in seen] == [
        (72, "frames-interp"),
        (72, "frames"),
    ]
    assert "unwind   0000000000006000 rsp+8    c-16  c-8" in str(seen[0])
    assert "readelf  0000000000006000 rsp+8    c-24  c-8" in str(seen[0])


def test_an_entry_that_only_one_side_has_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("readelf")
    path = str(object_with(tmp_path, Section(FDE(0x5000, 16), vaddr=0)))
    monkeypatch.setattr(oracle, "_theirs", lambda *_: iter([]))
    found = oracle.compare(path)
    assert [one.theirs for one in found.differences] == [None] * 4
    assert (found.ours.files, found.theirs.files) == (1, 0)
    assert (found.ours.fdes, found.theirs.fdes) == (1, 0)
