"""The promise about bad input, at each way in: values or an UnwindError, soon, in little memory.

Every input that fuzzing found to break it is tried again for ever, and so are some that strategies
make from a seed. `make fuzz` looks for more.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.entry_points import ENTRY_POINTS, MEMORY, EntryPoint, broken
from tools.fuzz import minimised
from unwind.errors import FormatError

FINDINGS = Path(__file__).parent / "findings"
KEPT = sorted(path for path in FINDINGS.glob("*/*") if path.is_file())
EXAMPLES = 60  # of each way in


@pytest.mark.parametrize("entry", ENTRY_POINTS.values(), ids=str)
def test_seeded_inputs_keep_the_promise(entry: EntryPoint) -> None:
    tried = []

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(entry.seeds)
    def keeps(data: bytes) -> None:
        tried.append(data)
        assert broken(entry, data) == ""

    keeps()
    assert len(set(tried)) > EXAMPLES / 3


def test_what_was_found_once_is_mended() -> None:
    for path in KEPT:
        what = broken(ENTRY_POINTS[path.parent.name], path.read_bytes())
        assert what == "", path


def test_findings_are_of_ways_in() -> None:
    assert {path.parent.name for path in KEPT} <= set(ENTRY_POINTS)


# ------------------------------------------------------------------------- the judge is judged


def entry(read: object) -> EntryPoint:
    return EntryPoint("made up", read, ENTRY_POINTS["pdr"].seeds)  # type: ignore[arg-type]


def test_an_error_of_another_kind_is_noticed() -> None:
    def typed(_data: bytes) -> None:
        raise FormatError("bad", "nowhere", 0)

    assert broken(entry(typed), b"") == ""
    assert broken(entry(lambda data: data[7]), b"").startswith("IndexError at ")


def test_memory_is_noticed() -> None:
    assert broken(entry(lambda _: bytes(MEMORY - (1 << 20))), b"") == ""
    assert broken(entry(lambda _: bytes(MEMORY + (1 << 20))), b"").endswith(" MB")


def test_time_is_noticed() -> None:
    def slow(_data: bytes) -> None:
        start = time.process_time()
        while time.process_time() - start < 1.2:
            pass

    assert broken(entry(slow), b"", traced=False).endswith(" s")


def test_a_finding_is_made_as_short_as_it_can_be() -> None:
    found = minimised(b"the needle in the haystack" * 20, lambda data: b"needle" in data)
    assert found == b"needle"
