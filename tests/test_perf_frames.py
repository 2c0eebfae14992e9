"""Frames of recordings made on the spot, compared with perf's own, sample by sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recordings import build, complete, our_stacks, perf_stacks, record
from unwind.frames import End


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a program that perf itself has started."""
    directory = tmp_path_factory.mktemp("direct")
    return record(directory / "perf.data", build(directory, "burn.c"), "400")


def test_every_frame_is_perfs(direct: Path) -> None:
    ours, theirs = our_stacks(direct), perf_stacks(direct)
    assert len(ours) == len(theirs) > 100
    for mine, its in zip(ours, theirs, strict=True):
        assert (mine.comm, mine.pid, mine.tid) == (its.comm, its.pid, its.tid)
        assert (mine.time, mine.event.removesuffix(":")) == (its.time, its.event)
        assert mine.frames == its.frames or mine.end != End.OUTERMOST
    assert complete(ours) > 0.95
    assert max(len(stack.frames) for stack in ours) > 30
