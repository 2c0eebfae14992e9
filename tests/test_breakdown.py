"""What a profile comes to: recursion counts once, shares add up, cut stacks have their remedy."""

from __future__ import annotations

from tests import profiles
from tests.profiles import LIBC, MAIN, PROGRAM, WORKER
from unwind.breakdown import by_function, by_process, cuts
from unwind.frames import End
from unwind.profile import Thread


def test_recursion_counts_once_in_total() -> None:
    profile = profiles.by_hand([(MAIN, "main f f g f", End.OUTERMOST, 4)], weight=10)
    rows = {hot.function.name: hot for hot in by_function(profile)}
    f = rows["f"]
    assert (f.own, f.total, f.own_count, f.total_count) == (40, 40, 4, 4)
    assert (rows["g"].own, rows["g"].total) == (0, 40)
    assert by_function(profile)[0].function.name == "f"


def test_own_weights_add_up_to_the_whole() -> None:
    for profile in (profiles.small(), profiles.many(), profiles.hostile()):
        rows = by_function(profile)
        assert sum(hot.own for hot in rows) == profile.weight
        assert sum(hot.own_count for hot in rows) == profile.count
        assert max(hot.total for hot in rows) <= profile.weight


def test_functions_of_one_name_in_two_files_are_two() -> None:
    pair = [profiles.site_at("f", PROGRAM), profiles.site_at("f", LIBC)]
    profile = profiles.by_hand([(MAIN, pair, End.OUTERMOST, 1)])
    assert [hot.function.binary for hot in by_function(profile)] == [LIBC.name, PROGRAM.name]


def test_an_inlined_function_takes_what_was_spent_in_it() -> None:
    inlined = profiles.site_at("f", inlined=("inner", "outer"))
    profile = profiles.by_hand([(MAIN, ["main", inlined], End.OUTERMOST, 1)])
    rows = {hot.function.name: (hot.own, hot.total) for hot in by_function(profile)}
    assert rows.pop("inner") == (1000, 1000)
    assert rows == dict.fromkeys(("outer", "f", "main"), (0, 1000))


def test_threads_of_a_process_are_summed_up() -> None:
    other = Thread(7, 7, "other")
    profile = profiles.by_hand(
        [
            (MAIN, "main", End.OUTERMOST, 3),
            (WORKER, "run", End.NO_ROW, 2),
            (other, "main", End.OUTERMOST, 1),
        ]
    )
    first, second = by_process(profile)
    assert (first.pid, first.comms, first.count, first.complete, first.threads) == (
        *(100, ("program", "worker")),
        *(5, 3, 2),
    )
    assert (second.pid, second.count, second.complete) == (7, 1, 1)


def test_cut_stacks_are_told_by_reason_and_file_with_what_mends_them() -> None:
    found = cuts(profiles.small())
    assert [(cut.end, cut.binary, cut.count) for cut in found] == [
        (End.NO_ROW, LIBC.name, 12),
        (End.MEMORY_FAULT, PROGRAM.name, 5),
        (End.NO_MODULE, None, 3),
    ]
    assert "has no CFI" in found[0].remedy
    assert "dwarf,SIZE" in found[1].remedy
    assert "JIT" in found[2].remedy
    assert found[0].detail == "a sentence on no-row"


def test_every_way_to_end_has_a_remedy() -> None:
    ends = [end for name, end in vars(End).items() if name.isupper() and end != End.OUTERMOST]
    assert len(ends) > 5
    for live in (False, True):
        found = cuts(profiles.by_hand([(MAIN, "f", end, 1) for end in ends]), live)
        assert sorted(cut.end for cut in found) == sorted(ends)
        assert all(cut.remedy for cut in found)
        assert any("perf record" in cut.remedy for cut in found) is not live
