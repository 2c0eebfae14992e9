"""The tests' own tools: what cannot run is skipped with a reason, and fails in strict mode."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import support

SKIPS = """
import pytest
from tests.support import need

def test_tool():
    need("a-program-that-nobody-has")

@pytest.mark.skipif(True, reason="by its mark")
def test_mark():
    raise AssertionError

def test_import():
    pytest.importorskip("a_module_that_nobody_has")

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError
"""
SKIPS_ITSELF = 'import pytest; pytest.skip("whole file", allow_module_level=True)'


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text((support.ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_skips_itself.py").write_text(SKIPS_ITSELF)
    return tmp_path


def outcome(suite: Path, strict: str) -> str:
    command = ("-m", "pytest", "-p", "no:cacheprovider", "-ra", "--continue-on-collection-errors")
    return support.python(*command, suite, cwd=suite, UNWIND_STRICT=strict, COLUMNS="200").stdout


def test_what_cannot_run_is_skipped_with_its_reason(suite: Path) -> None:
    said = outcome(suite, strict="0")
    assert "4 skipped, 1 xfailed" in said
    assert "a-program-that-nobody-has is not installed" in said


def test_what_cannot_run_fails_in_strict_mode_with_its_reason(suite: Path) -> None:
    said = outcome(suite, strict="1")
    assert "2 failed, 1 xfailed, 2 errors" in said
    for reason in ("a-program-that-nobody-has is not", "by its mark", "whole file", "could not"):
        assert f"UNWIND_STRICT=1 allows no skips: Skipped: {reason}" in said


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.skip.Exception, match=r"eu-stack .* \(apt install elfutils\)"):
        support.need("eu-stack")


def test_git_lists_what_lies_behind_the_links_once() -> None:
    files = support.git_files("*.py")
    assert "arch/__init__.py" in files
    assert not [name for name in files if name.startswith("unwind/arch/")]
