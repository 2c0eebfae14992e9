"""Frames of recordings made on the spot, compared with perf's own, sample by sample.

Where they differ, the difference belongs to a class (`recordings.Difference`), and of each sample
it is proved that it does: what perf prints must be what the class says, to the last frame.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recordings import (
    Difference,
    Ours,
    Theirs,
    build,
    complete,
    difference,
    our_stacks,
    perf_stacks,
    record,
)
from tests.support import ROOT, python, run
from unwind.frames import End, Trust

CUT = {Difference.LAST_WORD, Difference.BOGUS}
PROGRAM = "program"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `program` (burn.c), `burners` and `libburning.so` are."""
    directory = tmp_path_factory.mktemp("programs")
    build(directory, "burn.c", name=PROGRAM)
    build(directory, "burners.c", "-pthread", name="burners")
    build(directory, "burning.c", "-shared", "-fPIC", name="libburning.so")
    return directory


def pairs(recording: Path, least: int = 15) -> list[tuple[Ours, Theirs]]:
    """Each sample as we have it and as perf has it."""
    theirs = perf_stacks(recording)
    ours = our_stacks(recording, against=theirs)
    assert len(ours) == len(theirs) >= least
    for mine, its in zip(ours, theirs, strict=True):
        assert (mine.comm, mine.pid, mine.tid) == (its.comm, its.pid, its.tid)
        assert (mine.time, mine.event) == (its.time, its.event)
    return list(zip(ours, theirs, strict=True))


def assert_same(found: list[tuple[Ours, Theirs]], *allowed: Difference) -> None:
    """perf's frames are ours, but where its copy of the stack ends, and but for what is allowed."""
    classes = {difference(mine, its): (mine, its) for mine, its in found}
    unwanted = classes.keys() - CUT - {Difference.NONE, *allowed}
    assert not unwanted, [classes[one] for one in unwanted]


def outermost(mine: Ours) -> str:
    """The file of the outermost frame."""
    return mine.frames[-1][0].rpartition("/")[2]


@pytest.mark.parametrize("options", [(), ("-z",)], ids=["plain", "compressed"])
def test_every_frame_of_a_program_is_perfs(
    place: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    found = pairs(record(tmp_path / "perf.data", place / PROGRAM, "400", options=options), least=50)
    assert_same(found)
    assert complete([mine for mine, _ in found]) > 0.95
    assert max(len(mine.frames) for mine, _ in found) > 25


def test_a_stream_has_the_frames_of_a_file(place: Path, tmp_path: Path) -> None:
    recording = record(tmp_path / "stream", place / PROGRAM, "300", stream=True)
    found = pairs(recording, least=50)
    assert_same(found)
    whole = python("-m", "unwind.cli.perf", recording, "--script")
    with recording.open("rb") as stream:
        piped = subprocess.run(
            [sys.executable, "-m", "unwind.cli.perf", "-", "--script"],
            stdin=stream,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
    assert whole.stdout == piped.stdout
    assert whole.stdout.count("cpu-clock") == len(found)


def test_a_small_copy_of_the_stack_cuts_stacks_short(place: Path, tmp_path: Path) -> None:
    found = pairs(record(tmp_path / "perf.data", place / PROGRAM, "400", dump=512), least=50)
    assert_same(found)
    # Where ours end for want of memory perf's may, or go on for a bogus frame.
    cut = [mine.end == End.MEMORY_FAULT or difference(mine, its) in CUT for mine, its in found]
    assert sum(cut) > len(found) / 4
    for (mine, its), short in zip(found, cut, strict=True):
        assert short or (mine.frames == its.frames and mine.end == End.OUTERMOST)


def test_threads_have_their_names_and_stacks(place: Path, tmp_path: Path) -> None:
    found = pairs(record(tmp_path / "perf.data", place / "burners", "threads"))
    assert_same(found)
    burning = {mine.comm for mine, _ in found if mine.comm and mine.comm.startswith("burner ")}
    assert len(burning) >= 3
    assert len({mine.tid for mine, _ in found if mine.comm in burning}) == len(burning)


def test_a_library_that_is_loaded_late_is_met(place: Path, tmp_path: Path) -> None:
    library = place / "libburning.so"
    found = pairs(record(tmp_path / "perf.data", place / "burners", "library", library))
    assert_same(found)
    inside = [mine for mine, _ in found if mine.frames[0][0] == str(library)]
    assert len(inside) > len(found) / 2
    assert all(len(mine.frames) >= 8 and outermost(mine) == "burners" for mine in inside)


def test_an_unlinked_library_is_named_and_can_be_given(place: Path, tmp_path: Path) -> None:
    library = tmp_path / "unlinked.so"
    shutil.copy(place / "libburning.so", library)
    recording = record(tmp_path / "perf.data", place / "burners", "unlinked", library)
    lost = [mine for mine in our_stacks(recording) if mine.end == End.NO_MODULE]
    assert len(lost) > 10
    assert {mine.frames for mine in lost if len(mine.frames) > 1} == set()
    assert {mine.frames[0][0] for mine in lost} == {str(library)}
    found = our_stacks(recording, {"unlinked.so": str(place / "libburning.so")})
    inside = [mine for mine in found if mine.frames[0][0] == str(library)]
    assert len(inside) >= len(lost)
    assert all(mine.end == End.OUTERMOST and len(mine.frames) >= 8 for mine in inside)


def test_a_child_has_the_mappings_of_its_parent(place: Path, tmp_path: Path) -> None:
    found = pairs(record(tmp_path / "perf.data", place / "burners", "fork"))
    assert_same(found)
    leaders = {mine.pid for mine, _ in found if len(mine.frames) > 10}
    assert len(leaders) == 1
    assert leaders != {min(mine.pid for mine, _ in found)} or len({m.pid for m, _ in found}) == 1


def test_a_child_that_runs_another_program_has_whole_stacks(place: Path, tmp_path: Path) -> None:
    recording = record(tmp_path / "perf.data", place / "burners", "exec", place / PROGRAM, "600")
    found = [pair for pair in pairs(recording) if pair[0].comm == PROGRAM]
    assert len(found) > 15
    whole = [mine for mine, _ in found if mine.end == End.OUTERMOST]
    assert len(whole) > 0.9 * len(found)
    assert {outermost(mine) for mine in whole} <= {PROGRAM, "ld-linux-x86-64.so.2"}
    assert_same(found, Difference.LOST_CFI)


def test_code_made_at_run_time_is_walked_and_named(place: Path, tmp_path: Path) -> None:
    recording = record(tmp_path / "perf.data", place / "burners", "made")
    found = pairs(recording)
    pid = found[0][0].pid
    inside = [(mine, its) for mine, its in found if mine.frames[0][0] == ""]
    assert len(inside) > 15
    for mine, its in inside:
        assert [address for _, address in its.frames] == [mine.frames[0][1]]
        assert difference(mine, its) == Difference.RUN_TIME
        assert mine.end == End.OUTERMOST
        assert outermost(mine) == "burners"
        assert mine.trusts is not None
        assert mine.trusts[1] in (Trust.FRAME_POINTER, Trust.EMULATION, Trust.LINK_REGISTER)
    printed = python("-m", "unwind.cli.perf", recording, "--script", "-F", "ip,sym,dso").stdout
    os.unlink(f"/tmp/perf-{pid}.map")
    assert printed.count(f" made at run time (/tmp/perf-{pid}.map)\n") == len(inside)


def test_samples_of_several_events_are_told_apart(place: Path, tmp_path: Path) -> None:
    events = ("-e", "task-clock:u", "-e", "page-faults:u")
    found = pairs(record(tmp_path / "perf.data", place / PROGRAM, "300", options=events))
    assert {mine.event for mine, _ in found} >= {"cpu-clock:u", "page-faults:u"}
    differ = [
        mine
        for mine, its in found
        if mine.frames != its.frames and difference(mine, its) not in CUT
    ]
    # When the kernel maps the program, no record has told of that yet.
    assert all(mine.end in (End.NO_MODULE, End.MEMORY_FAULT) for mine in differ)
    assert len(differ) <= 8


def test_callchains_of_frame_pointers_are_taken_as_they_are(place: Path, tmp_path: Path) -> None:
    recording = record(tmp_path / "perf.data", place / PROGRAM, "200", graph="fp")
    found = our_stacks(recording)
    assert len(found) > 15
    assert {mine.end for mine in found} == {End.UNKNOWN_REGISTER}
    assert all(set(mine.trusts or ()) == {Trust.RECORDED} for mine in found)
    said = python("-m", "unwind.cli.perf", recording).stdout
    assert "perf record --call-graph dwarf" in said
    assert "as in: the kernel followed frame pointers" in said


def test_samples_without_any_stack_have_the_place_where_they_stood(
    place: Path, tmp_path: Path
) -> None:
    recording = tmp_path / "perf.data"
    record(recording, place / PROGRAM, "200", graph="none")
    theirs = run("perf", "script", "-i", recording, "-F", "ip").stdout.split()
    assert (
        python("-m", "unwind.cli.perf", recording, "--script", "-F", "ip").stdout.split() == theirs
    )
    ours = our_stacks(recording)
    assert len(ours) == len(theirs) > 15
    assert {mine.end for mine in ours} == {End.UNKNOWN_REGISTER}
    assert {mine.trusts for mine in ours} == {(Trust.CONTEXT,)}
    said = python("-m", "unwind.cli.perf", recording).stdout
    assert "as in: perf recorded where the sample stood" in said
