"""Commands that make profiles write the format that was asked for, whole or not at all."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import profiles
from tests.profile_readers import Pprof, expected, read_folded
from tests.support import ROOT
from unwind.cli.options import Options, argument_parser, parse
from unwind.cli.profiles import (
    add_profile_options,
    profile_wanted,
    times_wanted,
    write_profiles,
)
from unwind.errors import SourceError
from unwind.profile import Profile


def options(*words: str) -> Options:
    return parse("unwind-sample", add_profile_options, words)


def written(*words: str, base: Profile | None = None) -> None:
    write_profiles(options(*words), [profiles.small()], "a title", base)


def test_without_a_format_there_is_the_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert not profile_wanted(options())
    written("--top", "1")
    said = capsys.readouterr().out
    assert said.startswith("cpu-clock: 100 samples")
    assert len(said.partition("function\n")[2].splitlines()) == 1


def test_text_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    written("--folded")
    said = capsys.readouterr().out
    assert read_folded(said) == expected(profiles.small(), process=True)
    written("--speedscope")
    assert json.loads(capsys.readouterr().out)["name"] == "a title"
    written("--firefox")
    assert json.loads(capsys.readouterr().out)["meta"]["product"] == "a title"


@pytest.mark.parametrize("name", ["picture.svg", "picture.html"])
def test_a_picture_is_of_the_kind_that_its_name_says(name: str, tmp_path: Path) -> None:
    written("--flamegraph", str(tmp_path / name))
    text = (tmp_path / name).read_text()
    assert text.startswith("<?xml" if name.endswith("svg") else "<!DOCTYPE html>")
    written("--flamegraph", str(tmp_path / name), "--differential", "x", base=profiles.small())
    assert '"base":[' in (tmp_path / name).read_text()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_picture_of_no_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="flame graph is a file"):
        written("--flamegraph", str(tmp_path / "picture.png"))
    with pytest.raises(SourceError, match="colours a picture"):
        written("--folded", "--differential", "x")
    assert list(tmp_path.iterdir()) == []


def test_pprof_goes_to_a_file_or_a_pipe_and_to_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    path = tmp_path / "profile.pb.gz"
    written("--pprof", "-o", str(path))
    assert Pprof(path.read_bytes()).stacks(1) == expected(profiles.small(), process=False)
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    written("--pprof")
    assert pipe.getvalue() == path.read_bytes()
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO()))
    with pytest.raises(SourceError, match="terminal"):
        written("--pprof")


def test_one_format_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--folded", "--pprof")
    assert "not allowed with" in capsys.readouterr().err


def test_times_are_wanted_where_a_viewer_has_an_axis_for_them() -> None:
    wanted = {name for name in ("folded", "speedscope", "pprof", "firefox") if _timed(name)}
    assert wanted == {"speedscope", "firefox"}


def _timed(name: str) -> bool:
    return times_wanted(options(f"--{name}"))


def test_several_events_need_a_format_that_has_room_for_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair = [profiles.small(), profiles.small(event="page-faults")]
    with pytest.raises(SourceError, match="cpu-clock, page-faults"):
        write_profiles(options("--pprof"), pair)
    write_profiles(options(), pair)
    assert "\n\npage-faults: 100 samples" in capsys.readouterr().out
    write_profiles(options("--speedscope"), pair)
    assert len(json.loads(capsys.readouterr().out)["profiles"]) == 6


def test_a_file_that_failed_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(profile: Profile) -> Iterator[bytes]:
        yield b"half"
        raise MemoryError

    path = tmp_path / "profile"
    path.write_bytes(b"before")
    monkeypatch.setattr("unwind.writers.pprof.pprof", broken)
    with pytest.raises(MemoryError):
        written("--pprof", "-o", str(path))
    assert path.read_bytes() == b"before"
    assert [name.name for name in tmp_path.iterdir()] == ["profile"]


def test_the_page_of_profiles_shows_options_that_there_are() -> None:
    text = (ROOT / "docs/profiles.md").read_text()
    shown = set(re.findall(r"unwind-perf [^#\n]*?(--[a-z]+)", text))
    assert len(shown) >= 5
    parser = argument_parser("unwind-sample", add_profile_options)
    assert shown <= set(re.findall(r"--[a-z]+", parser.format_help()))


def test_the_recording_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "perf.data"
    path.write_bytes(b"recording")
    with pytest.raises(SourceError, match="made of"):
        write_profiles(
            options("--folded", "-o", str(path)), [profiles.small()], sources=[str(path)]
        )
    assert path.read_bytes() == b"recording"
