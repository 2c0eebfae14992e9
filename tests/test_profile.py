"""A profile holds what was counted, whoever counted it in which order; each pc is named once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import profiles
from tests.profiles import MAIN, PROGRAM, WORKER
from tests.support import python
from unwind.arch.x86_64 import ARCH
from unwind.frames import End, Trust
from unwind.profile import Binary, Counts, Profile, SampledStack, Site, Thread, merged
from unwind.space import AddressSpace

Sample = tuple[Thread, tuple[int, ...], str, int, float]


def samples() -> st.SearchStrategy[list[Sample]]:
    """Threads, pcs from the innermost outwards, ends, weights and times."""
    pcs = st.lists(st.integers(0x100, 0x105), max_size=4).map(tuple)
    ends = st.sampled_from([End.OUTERMOST, End.NO_ROW])
    threads, times = st.sampled_from([MAIN, WORKER]), st.integers(0, 9).map(float)
    return st.lists(st.tuples(threads, pcs, ends, st.integers(0, 9), times), max_size=20)


def counted(found: list[Sample], timed: bool = False, limit: int = 20_000) -> Profile:
    counts = Counts("e", "samples", _site, timed=timed, limit=limit)
    space = AddressSpace(ARCH, [])
    for thread, pcs, end, weight, time in found:
        counts.add(counts.table(space, thread), pcs, end, weight, detail=f"{weight}", time=time)
    return counts.profile()


def _site(space: AddressSpace, pc: int, called: bool) -> Site:
    return Site(PROGRAM, pc, f"f{pc:x}{called}", 0)


def functions(profile: Profile, stack: SampledStack) -> list[str]:
    return [profile.sites[n].label for n in stack.sites]


def test_a_stack_is_there_once_with_the_sum_of_its_weights() -> None:
    profile = counted([(MAIN, (1, 2), End.OUTERMOST, 5, 0), (MAIN, (1, 2), End.OUTERMOST, 6, 0)])
    [stack] = profile.stacks
    assert (stack.thread, stack.count, stack.weight, stack.complete) == (MAIN, 2, 11, True)
    assert functions(profile, stack) == ["f1False", "f2True"]
    assert [profile.sites[n].trust for n in stack.sites] == [Trust.CONTEXT, Trust.CFI]
    assert (profile.count, profile.weight) == (2, 11)


@given(samples())
def test_what_was_counted_is_in_the_profile(found: list[Sample]) -> None:
    profile = counted(found)
    expected: dict[tuple[object, ...], tuple[int, int]] = {}
    for thread, pcs, end, weight, _ in found:
        names = tuple(f"f{pc:x}{n > 0}" for n, pc in enumerate(pcs))
        count, so_far = expected.get((thread, names, end), (0, 0))
        expected[thread, names, end] = count + 1, so_far + weight
    assert expected == {
        (stack.thread, tuple(functions(profile, stack)), stack.end): (stack.count, stack.weight)
        for stack in profile.stacks
    }


@given(samples(), st.randoms(use_true_random=False), st.integers(0, 20))
def test_order_and_division_of_the_samples_do_not_matter(
    found: list[Sample], chance: st.randoms, cut: int
) -> None:
    shuffled = chance.sample(found, len(found))
    assert counted(shuffled) == counted(found)
    whole = counted(found, timed=True)
    parts = merged([counted(shuffled[:cut], timed=True), counted(shuffled[cut:], timed=True)])
    assert parts == whole
    assert merged([counted(found), whole]).timeline is None


@given(samples())
def test_the_timeline_has_every_sample_in_the_order_of_time(found: list[Sample]) -> None:
    profile = counted(found, timed=True)
    timeline = profile.timeline
    assert timeline is not None
    assert list(timeline.times) == sorted(time for *_, time in found)
    seen = [
        (profile.stacks[n].thread, len(profile.stacks[n].sites), weight, time)
        for time, n, weight in zip(timeline.times, timeline.stacks, timeline.weights, strict=True)
    ]
    assert sorted(seen, key=str) == sorted([(s[0], len(s[1]), s[3], s[4]) for s in found], key=str)


@given(samples(), st.integers(1, 9))
def test_it_does_not_matter_when_stacks_are_named(found: list[Sample], limit: int) -> None:
    assert counted(found, timed=True, limit=limit) == counted(found, timed=True)


@pytest.mark.parametrize("limit", [1, 20_000])
def test_each_pc_is_named_once_also_where_threads_share_it(limit: int) -> None:
    asked = []

    def site(space: AddressSpace, pc: int, called: bool) -> Site:
        asked.append((pc, called))
        return _site(space, pc, called)

    counts, space = Counts("e", "samples", site, limit=limit), AddressSpace(ARCH, [])
    for thread in (MAIN, WORKER):
        for last in (2, 3, 2):
            counts.add(counts.table(space, thread), (1, 2, 3, last), End.OUTERMOST)
    counts.profile()
    assert asked == [(1, False), (2, True), (3, True)]


def test_what_was_settled_keeps_its_names_when_mappings_change() -> None:
    name = ["old"]
    counts = Counts("e", "samples", lambda space, pc, called: Site(PROGRAM, pc, name[0], 0))
    space = AddressSpace(ARCH, [])
    table = counts.table(space, MAIN)
    counts.add(table, (1,), End.OUTERMOST)
    counts.settle(space)
    name[0] = "new"
    counts.add(table, (1,), End.OUTERMOST)
    counts.forget(space)
    profile = counts.profile()
    assert sorted(functions(profile, stack)[0] for stack in profile.stacks) == ["new", "old"]


def test_the_kernels_frames_lie_above_the_users() -> None:
    counts = Counts("e", "samples", _site, lambda pc, called: Site(None, pc, f"k{pc}{called}", 0))
    table = counts.table(AddressSpace(ARCH, []), MAIN)
    counts.add(table, (1, 2), End.OUTERMOST, kernel=(7, 8))
    profile = counts.profile()
    [stack] = profile.stacks
    assert functions(profile, stack) == ["k7False", "k8True", "f1False", "f2True"]
    assert [profile.sites[n].kernel for n in stack.sites] == [True, True, False, False]


def test_a_frame_that_a_signal_interrupted_is_looked_up_where_it_stood() -> None:
    counts = Counts("e", "samples", _site)
    table = counts.table(AddressSpace(ARCH, []), MAIN)
    how = ((Trust.CONTEXT, False), (Trust.TRAMPOLINE, False), (Trust.FRAME_POINTER, True))
    counts.add(table, (1, 2, 3), End.NO_ROW, how=how, detail="no row")
    profile = counts.profile()
    [stack] = profile.stacks
    assert functions(profile, stack) == ["f1False", "f2False", "f3True"]
    assert [profile.sites[n].trust for n in stack.sites] == [trust for trust, _ in how]
    assert (stack.end, stack.detail, stack.complete) == (End.NO_ROW, "no row", False)


@given(samples())
def test_a_profile_goes_through_pickle(found: list[Sample]) -> None:
    profile = counted(found, timed=True)
    assert pickle.loads(pickle.dumps(profile)) == profile


def test_selected_stacks_bring_their_sites_alone() -> None:
    profile = counted([(MAIN, (1,), End.OUTERMOST, 1, 0), (WORKER, (2,), End.NO_ROW, 1, 0)])
    chosen = profile.select(lambda stack: stack.complete)
    assert [site.vaddr for site in chosen.sites] == [1]
    assert [stack.thread for stack in chosen.stacks] == [MAIN]


@pytest.mark.parametrize(
    ("binary", "label"),
    [
        (Binary("/usr/lib/libc.so.6"), "[libc.so.6]"),
        (Binary("[vdso]"), "[vdso]"),
        (Binary("/tmp/dir/"), "[/tmp/dir/]"),
        (None, "[unknown]"),
    ],
)
def test_a_place_without_a_function_is_called_by_its_file(
    binary: Binary | None, label: str
) -> None:
    assert Site(binary, 1).label == label


def test_profiles_of_different_events_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="one event"):
        merged([profiles.empty(), counted([])])
    with pytest.raises(ValueError, match="one event"):
        merged([])


def test_a_core_makes_a_profile_with_names_and_files(example: Path) -> None:
    profile = profiles.of_example(example)
    said = python("-m", "unwind.cli.core", "--sysroot", example, example / "core").stdout
    stack = max(profile.stacks, key=lambda stack: len(stack.sites))
    sites = [profile.sites[n] for n in stack.sites]
    assert len(sites) > 3
    assert {site.trust for site in sites} > {Trust.CONTEXT}
    for site in sites:
        assert site.binary
        assert site.binary.build_id
        assert site.binary.start <= site.vaddr < site.binary.end
        file = site.binary.name.split("/")[-1]
        named = f" {site.function}+{site.offset or 0:#x} ({file})"
        assert (named if site.function else f" ?? ({file}+{site.vaddr:#x})") in said
    assert "main" in functions(profile, stack)
