"""Recordings that strategies make: each sample has the backtrace it was made for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings

from unwind.errors import UnwindError
from unwind.files import Files
from unwind.frames import End
from unwind.sampling import Sampler
from unwind.testing.recordings import RecordingMade, damaged_recordings, recordings
from unwind.transports.perf_data import TRANSPORT
from unwind.unwinder import Unwinder


def walked(made: RecordingMade) -> list[tuple[list[int], str]]:
    """The pcs and the end of each sample's stack, by the walk that profiles take."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, data in made.files.items():
            Path(scratch, name.lstrip("/")).write_bytes(data)
        path = Path(scratch, "perf.data")
        path.write_bytes(made.data)
        with Files(sysroot=scratch) as files, TRANSPORT.open(str(path), files) as source:
            sampler = Sampler(source.snapshot, Unwinder(source.arch, limit=1000))
            found = [sampler.walk(sample) for sample in source.samples()]
            return [(list(pcs), end) for pcs, end, *_ in found]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(recordings())
def test_each_sample_has_the_backtrace_it_was_made_for(made: RecordingMade) -> None:
    expected = [([frame.pc for frame in frames], End.OUTERMOST) for frames in made.frames]
    assert walked(made) == expected
    event(f"{len(made.frames)} processes")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(damaged_recordings())
def test_a_damaged_recording_gives_stacks_or_a_typed_error(made: RecordingMade) -> None:
    try:
        found = walked(made)
        right = [pcs for pcs, _ in found] == [[f.pc for f in frames] for frames in made.frames]
        event("the same" if right else "others")
    except UnwindError as error:
        event(type(error).__name__)
