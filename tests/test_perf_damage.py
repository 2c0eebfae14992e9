"""Damaged recordings: what can be read is read, what is lost is said, nothing else happens."""

from __future__ import annotations

import random
import time

import pytest

from tests.entry_points import ENTRY_POINTS, broken
from tests.recordings import shipped
from unwind.files import Files
from unwind.transports.perf_data import TRANSPORT
from unwind.unpack import Input

MUTATED = 10_000
RECORDINGS = sorted(set(shipped()) - {"program"})
_ODD = [bytes(8), b"\xff" * 8, b"\1" + bytes(7), b"\xff\xff\xff\x7f" + bytes(4), b"\0\0\0\x80" * 2]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, taken out, put in, or cut off; the head more often."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        reach = len(made) if chance.random() < 0.6 else min(len(made), 2000)
        at, what = chance.randrange(reach), chance.randrange(6)
        match what:
            case 0:
                made[at] = chance.randrange(256)
            case 1:
                made[at & -8 : (at & -8) + 8] = chance.choice(_ODD)
            case 2:
                made[at & -8 : (at & -8) + 8] = chance.randbytes(8)
            case 3:
                del made[at : at + chance.randrange(1, 64)]
            case 4:
                made[at:at] = chance.randbytes(chance.randrange(16))
            case _:
                del made[max(at, 8) :]
        if not made:
            return b"P"
    return bytes(made)


@pytest.mark.parametrize("name", RECORDINGS)
def test_mutated_recordings_give_samples_or_an_error(name: str) -> None:
    data, chance = shipped()[name], random.Random(name)
    entry = ENTRY_POINTS["perf"]
    began, wrong = time.process_time(), []
    for n in range(MUTATED // len(RECORDINGS) + 1):
        said = broken(entry, mutated(data, chance), traced=False)
        if said:
            wrong.append((n, said))
    assert wrong == []
    assert time.process_time() - began < 30


@pytest.mark.parametrize("name", RECORDINGS)
def test_each_recording_is_read_whole(name: str) -> None:
    with Files() as files, TRANSPORT.read(Input(shipped()[name]), name, files) as source:
        count = sum(1 for _ in source.samples())
        assert count >= 5
        assert (source.warnings, source.skipped) == ([], {})
        assert source.changes.unknown == {}
        assert source.changes.damaged == 0


def test_a_recording_cut_off_anywhere_gives_its_first_samples() -> None:
    data = shipped()["plain.data"]
    with Files() as files, TRANSPORT.read(Input(data), "whole", files) as source:
        whole = [sample[1] for sample in source.samples()]
    begin, length = (int.from_bytes(data[at : at + 8], "little") for at in (40, 48))
    counts = []
    for size in range(begin + 100, begin + length, 97):
        with Files() as files, TRANSPORT.read(Input(data[:size]), "part", files) as source:
            times = [sample[1] for sample in source.samples()]
            assert times == whole[: len(times)]
            assert source.warnings != []
            counts.append(len(times))
    assert counts == sorted(counts)
    assert counts[-1] >= len(whole) - 1


def test_unknown_records_are_skipped_and_counted() -> None:
    data = bytearray(shipped()["plain.data"])
    begin, size = (int.from_bytes(data[at : at + 8], "little") for at in (40, 48))
    strange = (250).to_bytes(4, "little") + bytes(2) + (24).to_bytes(2, "little") + bytes(16)
    early = (40).to_bytes(4, "little") + bytes(2) + (24).to_bytes(2, "little") + bytes(16)
    data[begin:begin] = strange + early + strange
    data[48:56] = (size + 72).to_bytes(8, "little")
    with Files() as files, TRANSPORT.read(Input(bytes(data)), "strange", files) as source:
        assert sum(1 for _ in source.samples()) >= 5
        assert source.changes.unknown == {250: 2, 40: 1}
