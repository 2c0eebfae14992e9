"""Lines of code for --source-lines: read from regular files, within bounds and within a root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unwind.symbols.source import SourceFiles


def test_a_line_is_given_without_its_indentation(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_bytes(b"int a;\n\t  return caf\xe9;  \nlast")
    files = SourceFiles()
    path = str(tmp_path / "a.c")
    assert [files.line(path, n) for n in (1, 2, 3)] == ["int a;", "return caf\udce9;", "last"]
    assert [files.line(path, n) for n in (0, -1, 4, 1 << 40)] == [None] * 4


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")  # to open one for reading would wait for a writer
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", tmp_path, "/dev/zero", "/nowhere", "a\0b"):
        assert SourceFiles().line(str(path), 1) is None


def test_with_a_root_nothing_outside_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret\n")
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    (root / "src/a.c").write_text("inside\n")
    (root / "src/up.c").symlink_to("../../secret")
    (root / "src/absolute.c").symlink_to(tmp_path / "secret")
    files = SourceFiles(str(root))
    assert files.line("/src/a.c", 1) == "inside"
    assert files.line("/src/../src/a.c", 1) == "inside"
    for path in ("/src/up.c", "/src/absolute.c", str(tmp_path / "secret"), "/../secret"):
        assert files.line(path, 1) is None


@pytest.mark.parametrize("size", [10, 100_000])
def test_long_lines_are_cut(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("x" * size)
    line = SourceFiles().line(str(tmp_path / "a.c"), 1)
    assert line is not None
    assert 10 <= len(line) <= 200
