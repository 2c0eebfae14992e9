"""What a format says of a profile is what the profile holds, whatever its names are.

The readers in tests/profile_readers.py are ours too; tests/pictures.py asks the viewers themselves.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import assume, given

from tests import profiles
from tests.profile_readers import (
    Pprof,
    Stacks,
    expected,
    read_firefox,
    read_folded,
    read_speedscope,
)
from tests.profiles import LIBC, MAIN, PROGRAM, site_at
from tests.support import need
from unwind.frames import End
from unwind.profile import Binary, Profile, Site
from unwind.writers.amounts import amount, share
from unwind.writers.firefox import FORMAT_VERSION, firefox
from unwind.writers.flamegraph import flamegraph_html, flamegraph_svg
from unwind.writers.folded import folded
from unwind.writers.hottest import summary
from unwind.writers.labels import LONGEST, label
from unwind.writers.pprof import pprof
from unwind.writers.speedscope import speedscope

MADE: dict[str, Callable[[], Profile]] = {
    "small": profiles.small,
    "timed": lambda: profiles.small(timed=True),
    "bytes": lambda: profiles.small(unit="bytes", event="malloc"),
    "samples": lambda: profiles.small(unit="samples", weight=1),
    "empty": profiles.empty,
    "hostile": profiles.hostile,
    "many": profiles.many,
}


@pytest.fixture(params=[*MADE, "example"])
def profile(request: pytest.FixtureRequest) -> Profile:
    if request.param == "example":
        return profiles.of_example(request.getfixturevalue("example"))
    return MADE[request.param]()


def lines(profile: Profile) -> str:
    return "".join(f"{line}\n" for line in folded(profile))


def test_folded_lines_are_the_profiles_stacks(profile: Profile) -> None:
    text = lines(profile)
    assert read_folded(text) == expected(profile, process=True)
    assert len(text.splitlines()) == len(read_folded(text)), "each stack once"
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}


def test_speedscope_has_all_threads_and_each_of_them(profile: Profile) -> None:
    found = read_speedscope("".join(speedscope([profile], "a program")))
    event = label(profile.event)
    assert found.pop(f"{event}, all threads") == expected(profile, process=True)
    threads = {stack.thread for stack in profile.stacks}
    if len(threads) > 1:
        assert sum(found.values(), Counter()) == expected(profile, process=False)
        assert len(found) == len(threads)


def test_speedscope_has_several_events_side_by_side() -> None:
    pair = [profiles.small(), profiles.small(event="page-faults", unit="samples", weight=1)]
    found = read_speedscope("".join(speedscope(pair)))
    for profile in pair:
        whole = found[f"{profile.event}, all threads"]
        assert whole == expected(profile, process=True)


def test_pprof_has_counts_and_weights(profile: Profile) -> None:
    read = Pprof(b"".join(pprof(profile)))
    assert read.stacks(0) == expected(profile, process=False, counts=True)
    if profile.unit != "samples":
        assert read.types == [("samples", "count"), (profile.event, profile.unit)]
        assert read.stacks(1) == expected(profile, process=False)


def test_pprof_tells_of_files_and_threads() -> None:
    read = Pprof(b"".join(pprof(profiles.small())))
    paths = {read.strings[one[5][0]]: read.strings[one[6][0]] for one in read.mappings.values()}
    assert paths[PROGRAM.name] == (PROGRAM.build_id or b"").hex()
    assert read.strings[read.mappings[1][5][0]] == PROGRAM.name, "the program comes first"
    assert all(one[7] == [1] for one in read.mappings.values())
    labels = [read.labels(sample) for sample in read.samples]
    assert {"comm": "worker", "pid": 100, "tid": 101, "truncated": End.MEMORY_FAULT} in labels
    assert {"comm": "program", "pid": 100, "tid": 100} in labels
    for location in read.locations.values():
        if 2 in location:
            mapping = read.mappings[location[2][0]]
            assert mapping[2][0] <= location[3][0] < mapping[3][0]


def test_pprof_addresses_of_callers_lie_within_the_call() -> None:
    function = Site(PROGRAM, 0x1010, "f", 16)
    profile = profiles.by_hand([(MAIN, [function, function], End.OUTERMOST, 1)])
    read = Pprof(b"".join(pprof(profile)))
    assert {location[3][0] for location in read.locations.values()} == {0x1010, 0x100F}


def test_pprof_is_read_by_protoc(profile: Profile) -> None:
    need("protoc")
    data = gzip.decompress(b"".join(pprof(profile)))
    done = subprocess.run(["protoc", "--decode_raw"], input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    top = Counter(line.split(b" ")[0] for line in done.stdout.splitlines() if line[:1] != b" ")
    assert top[b"2"] == len(profile.stacks)
    assert top[b"4"] >= len({(site.binary, site.lookup_vaddr) for site in profile.sites})


def test_the_same_profile_gives_the_same_bytes(profile: Profile) -> None:
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # RFC 1952: deflate, no name, no time
    assert b"".join(pprof(profile)).startswith(head)
    for writer in (pprof, folded, firefox, summary):
        assert list(writer(profile)) == list(writer(profile))


def test_firefox_has_every_thread(profile: Profile) -> None:
    text = "".join(firefox(profile, "a program"))
    scale = {"nanoseconds": 1e6, "bytes": 1}.get(profile.unit)
    found: Stacks = Counter()
    for stacks in read_firefox(text).values():
        found.update({path: round(weight * (scale or 1)) for path, weight in stacks.items()})
    assert +found == +expected(profile, process=False, counts=scale is None)


def test_firefox_says_its_version_and_what_the_threads_are() -> None:
    document = json.loads("".join(firefox(profiles.small(timed=True), "a program")))
    meta = document["meta"]
    assert meta["preprocessedProfileVersion"] == FORMAT_VERSION
    assert (meta["product"], meta["symbolicated"]) == ("a program", True)
    heads = [(t["name"], t["pid"], t["tid"], t["isMainThread"]) for t in document["threads"]]
    assert heads == [("program", "100", 100, True), ("worker", "100", 101, False)]
    times = [time for thread in document["threads"] for time in thread["samples"]["time"]]
    assert (min(times), max(times), len(times)) == (0, 99, 100)
    assert meta["sampleUnits"]["threadCPUDelta"] == "ns"
    taken = [sum(thread["samples"]["threadCPUDelta"]) for thread in document["threads"]]
    assert taken == [75_000, 25_000]
    [libc] = [lib for lib in document["libs"] if lib["path"] == LIBC.name]
    assert libc["codeId"] == (LIBC.build_id or b"").hex()
    assert libc["breakpadId"] == "1716151419181B1A1C1D1E1F202122230"


def test_firefox_gets_a_thread_where_there_is_none() -> None:
    [thread] = json.loads("".join(firefox(profiles.empty())))["threads"]
    assert (thread["samples"]["length"], thread["markers"]["length"]) == (0, 0)


def test_firefox_marks_kernel_and_cut_frames() -> None:
    document = json.loads("".join(firefox(profiles.small())))
    shared = document["shared"]
    names = [shared["stringArray"][n] for n in shared["funcTable"]["name"]]
    categories = [category["name"] for category in document["meta"]["categories"]]
    found = {
        (names[function], categories[category])
        for function, category in zip(
            shared["frameTable"]["func"], shared["frameTable"]["category"], strict=True
        )
    }
    assert {name for name, category in found if category == "Kernel"} == {"do_syscall_64"}
    assert {name for name, category in found if category == "Truncated"} >= {
        "[truncated: no-row]",
        "qsort",
        "leaf",
    }
    assert ("leaf", "User") in found


@given(profiles.any_profile())
def test_any_names_come_through_every_format(profile: Profile) -> None:
    whole, alone = expected(profile, process=True), expected(profile, process=False)
    text = lines(profile)
    assume("\\x3b" not in "".join(name for path in whole for name in path))
    assert read_folded(text) == whole
    assert text.count("\n") == len(whole)
    [first, *_] = read_speedscope("".join(speedscope([profile]))).values()
    assert first == whole
    assert Pprof(b"".join(pprof(profile))).stacks(1) == alone
    found: Stacks = Counter()
    for stacks in read_firefox("".join(firefox(profile))).values():
        found.update({path: round(1e6 * weight) for path, weight in stacks.items()})
    assert found == alone
    root = ElementTree.fromstring("".join(flamegraph_svg(profile)))
    [numbers] = [one.text for one in root.iter() if one.get("type") == "application/json"]
    page = "".join(flamegraph_html(profile))
    assert json.loads(page.partition(' id="profile">')[2].partition("</script>")[0]) == json.loads(
        numbers or ""
    )
    assert all(line.isprintable() for line in summary(profile))


@pytest.mark.parametrize("name", profiles.HOSTILE)
def test_a_label_is_one_printable_line_of_bounded_length(name: str) -> None:
    text = label(name)
    assert text.isprintable()
    assert text.encode()
    assert 0 < len(text) <= LONGEST


def test_long_labels_that_differ_at_their_end_stay_apart() -> None:
    assert label("x" * 5000 + "a") != label("x" * 5000 + "b")
    assert label("x" * LONGEST) == "x" * LONGEST


def test_the_summary_says_what_is_hot_and_what_was_cut() -> None:
    text = "\n".join(summary(profiles.small(), top=3))
    assert "cpu-clock: 100 samples, 100 us, 80.00% with a complete stack" in text
    assert "100.00% program, worker (100), 100 samples" in text
    assert "12.00%  no-row in /usr/lib/libc.so.6\n" in text
    assert "-> its code has no CFI" in text
    assert "3.00%  no-module in code of no file\n" in text
    assert "as in: a sentence on memory-fault" in text
    table = text.rpartition("function\n")[2].splitlines()
    assert [line.split() for line in table] == [
        ["35.00%", "50.00%", "35", "us", "leaf", "(program)"],
        ["25.00%", "60.00%", "25", "us", "work", "(program)"],
        ["15.00%", "15.00%", "15", "us", "std::swap<int>", "(program,", "inlined)"],
    ]


def test_the_summary_fits_a_terminal() -> None:
    long = profiles.site_at("std::" * 100)
    profile = profiles.by_hand([(MAIN, ["main", long], End.OUTERMOST, 1)])
    wide, narrow = list(summary(profile)), list(summary(profile, width=80))
    assert max(map(len, wide)) > 500
    assert max(map(len, narrow)) == 80
    assert [line for line in narrow if line.endswith("... (program)")]


def test_the_summary_shows_the_most_frequent_reasons_and_counts_the_others() -> None:
    files = [profiles.site_at("f", Binary(f"/lib/{n}.so")) for n in range(30)]
    stacks = [(MAIN, [site], End.NO_ROW, 30 - n) for n, site in enumerate(files)]
    said = list(summary(profiles.by_hand(stacks)))
    assert len([line for line in said if " no-row in /lib/" in line]) == 10
    assert "   45.16%  for 20 more reasons" in said  # 210 of 465


def test_the_summary_of_nothing_says_so() -> None:
    assert list(summary(profiles.empty())) == ["cpu-clock: no samples"]


def test_the_summary_survives_any_name(profile: Profile) -> None:
    for line in summary(profile):
        assert line.isprintable()


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 10, "0.00%"),
        (10, 10, "100.00%"),
        (999_999, 1_000_000, ">99.99%"),
        (1, 1_000_000, "<0.01%"),
        (1, 3, "33.33%"),
        (0, 0, "-"),
    ],
)
def test_a_share_is_all_or_nothing_only_where_it_is(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


@pytest.mark.parametrize(
    ("weight", "unit", "text"),
    [
        (1_500_000_000, "nanoseconds", "1.5 s"),
        (999, "nanoseconds", "999 ns"),
        (0, "nanoseconds", "0 ns"),
        (3 << 20, "bytes", "3 MiB"),
        (12, "samples", "12"),
        (12, "cycles", "12 cycles"),
    ],
)
def test_amounts_are_given_in_the_unit_that_fits(weight: int, unit: str, text: str) -> None:
    assert amount(weight, unit) == text


def test_a_stack_without_frames_is_still_counted(tmp_path: Path) -> None:
    profile = profiles.by_hand([(MAIN, [], End.NO_MODULE, 3), (MAIN, [], End.OUTERMOST, 2)])
    assert read_folded(lines(profile)) == expected(profile, process=True)
    assert Pprof(b"".join(pprof(profile))).stacks(0) == expected(profile, False, counts=True)
    assert sum(sum(s.values()) for s in read_firefox("".join(firefox(profile))).values()) > 0
    assert site_at("f").label == "f"
