"""Strategies of recordings of perf: samples whose backtraces are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import assume
from hypothesis import strategies as st

from unwind.testing.chains import Chain, Known, chain
from unwind.testing.damaged import wounded
from unwind.testing.dialects import DIALECTS
from unwind.testing.images import FIRST, image
from unwind.testing.recording_files import FIELDS, Recording, Sampled
from unwind.testing.snapshots import NAMES, Drawn

__all__ = ["RecordingMade", "damaged_recordings", "recordings"]

_LARGEST = 60_000  # bytes of stack that a record has room for: its size is a number of 16 bits


@dataclass(frozen=True)
class RecordingMade:
    """The bytes of a recording, the files it names, and what is to be found.

    `frames` are those of each sample, innermost first, in the order of their times.
    """

    data: bytes = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    frames: tuple[tuple[Known, ...], ...]
    recording: Recording = field(repr=False)


@st.composite
def recordings(draw: st.DrawFn, archs: Sequence[str] = NAMES, most: int = 3) -> RecordingMade:
    """A recording of up to `most` processes, as a file or a stream, with any fields in samples.

    Each process runs a program of its own, at an address that they share, and is sampled once, with
    all of its stack. Records of one round come in any order: their times tell the right one.
    """
    dialect = DIALECTS[draw(st.sampled_from(archs))]
    # What lies below the stack pointer is no part of a sample.
    chains = [
        chain(
            Drawn(draw),
            replace(dialect, red_zone=0),
            bias=_BIASES[dialect.arch.word],
            signals=False,
        )
        for _ in range(draw(st.integers(1, most)))
    ]
    stacks = [_stack(found) for found in chains]
    dump = max(len(stack) for stack in stacks)
    assume(dump <= _LARGEST)
    kinds = sum(draw(st.sets(st.sampled_from(FIELDS))))
    read_format = draw(st.integers(0, 31))
    made = Recording(dialect.arch, kinds, dump + -dump % 8, read_format=read_format)
    files: dict[str, bytes] = {}
    rounds = []
    for n, (found, stack) in enumerate(zip(chains, stacks, strict=True)):
        pid, time, name = 100 + n, 1000 * (n + 1), f"/program{n}"
        files[name] = image(found)
        made.comm(pid, pid, time, f"program {n}", exec=True)
        made.mapping(pid, time + 1, FIRST + found.bias, len(files[name]), name)
        made.sample(Sampled(pid, pid, time + 2, found.registers, stack))
        if n == len(chains) - 1 or draw(st.booleans()):
            rounds.append(draw(st.permutations(made.records)))
            made.records.clear()
    for records in rounds:
        made.records += records
        made.round()
    frames = tuple(found.frames for found in chains)
    return RecordingMade(made.build(draw(st.booleans())), files, frames, made)


_BIASES = {8: 0x5555_5555_4000, 4: 0x5555_4000}


def _stack(found: Chain) -> bytes:
    """What a sample has of a chain's stack."""
    [(low, stack)] = found.stacks
    return stack[found.registers[found.dialect.sp] - low :]


@st.composite
def damaged_recordings(draw: st.DrawFn, archs: Sequence[str] = NAMES) -> RecordingMade:
    """A recording with something wrong in it; `frames` are those of before."""
    made = draw(recordings(archs, most=2))
    recording = made.recording
    data = draw(wounded(recording.build(), recording.areas(), recording.arch.byteorder))
    return RecordingMade(data, made.files, made.frames, recording)
