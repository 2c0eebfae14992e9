"""tools/bench.py in small: the program crashes as asked, the tables hold what was measured."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.events import need_bpf
from tests.recordings import our_stacks
from tests.support import ROOT, cannot, need, python
from tools import bench, bench_leaks, bench_live, bench_perf
from tools.bench_plot import Panel, Series, plot


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("cc")
    return bench.build(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(("threads", "frames"), [(2, 50), (9, 300)])
def test_the_program_has_the_threads_and_frames_asked_for(
    program: Path, threads: int, frames: int
) -> None:
    need("gdb")
    core = bench.crash(program, threads, frames)
    done = python("-m", "unwind.cli.core", "--strict", core)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nthread ") == threads
    assert frames / 2 < done.stdout.count("\n#") < frames * 2


def commands() -> tuple[bench.Command, ...]:
    this = Path(sys.executable).parent
    return (
        bench.Command("bare start", (sys.executable, "-c", "pass"), "3.x"),
        bench.Command("unwind-core", (f"{this}/python", "-c", "print('x\\n#0 y')"), "3.x"),
        bench.Command("eu-stack", ("/bin/sh", "-c", "echo"), turns=1),
    )


def test_each_command_runs_once_a_turn_unless_it_has_fewer(tmp_path: Path) -> None:
    case = bench.Case("a case", commands())
    times = bench.measure(case, 3, tmp_path)
    assert [len(seconds) for seconds in times.seconds.values()] == [3, 3, 1]
    assert [times.frames[command] for command in case.commands] == [0, 1, 0]


def made_up() -> tuple[bench.Case, bench.Times]:
    bare, ours, other = commands()
    promises = (
        bench.Promise("net", "ms", 15, bench._net),
        bench.Promise("times faster", "×", 300, bench._net_against("eu-stack"), at_least=True),
        bench.Promise("not here", "×", 1, bench._net_against("gdb"), at_least=True),
    )
    times = bench.Times(
        {bare: [0.005, 0.005, 0.010], ours: [0.015, 0.025, 0.020], other: [2.0]},
        frames={bare: 0, ours: 1234, other: 1234},
        peaks={ours: bench.Peak(60_000_000, 20_000_000)},
    )
    return bench.Case("made up", commands(), promises), times


def test_net_is_taken_turn_by_turn() -> None:
    case, times = made_up()
    assert times.net(case.commands[1]) == pytest.approx([0.010, 0.020, 0.010])


def test_a_promise_says_whether_it_is_kept() -> None:
    case, times = made_up()
    verdicts = [promise.verdict(times, "3.x") for promise in case.promises]
    assert verdicts == ["10.0 ms ✓", "200 × ✗", "–"]


def test_the_tables_hold_every_command_and_its_bare_start() -> None:
    text = bench.report([made_up()], [bench.Interpreter("3.x", Path("bin"))])
    assert "| made up: net | under 15 ms | 10.0 ms ✓ |" in text
    assert (
        "| unwind-core, Python 3.x | 3 | 1,234 | 20.0 ms | 15.0 ms | 5.0 ms | 10.0 ms "
        "| 60.0 MB | 20.0 MB |" in text
    )
    assert "| eu-stack | 1 | 1,234 | 2,000 ms | 2,000 ms | – | – | – | – |" in text


def test_the_page_keeps_all_but_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text(f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n")
    bench.write("new", page)
    assert page.read_text() == f"before\n{bench.BEGIN}\n\nnew\n\n{bench.END}\nafter\n"


def test_the_committed_page_has_its_markers() -> None:
    text = (ROOT / "BENCHMARKS.md").read_text()
    assert text.count(bench.BEGIN) == text.count(bench.END) == 1


def test_memory_beyond_the_core_leaves_the_mapped_core_out(tmp_path: Path) -> None:
    file = tmp_path / "core"
    file.write_bytes(b"x" * (32 << 20))
    code = (
        "import mmap, sys, time; f = open(sys.argv[1], 'rb');"
        "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); m.find(b'y'); time.sleep(0.2)"
    )
    command = bench.Command("reader", (sys.executable, "-c", code, str(file)))
    peak = bench.peak_memory(command, file)
    # No difference to the page: VmHWM comes from counters that lag by some pages (proc(5)), which
    # once made it 4 KiB too small. The interpreter alone has a third of the file's size.
    assert peak.beyond < 16 << 20 < 32 << 20 <= peak.resident


def test_a_plot_shows_each_figure() -> None:
    ours = Series("unwind-perf", [(10, 12.5), (100, 20.0), (1000, 31.0)])
    other = Series("perf", [(10, 40.0), (100, 60.25), (1000, 55.0)])
    picture = ElementTree.fromstring(plot([Panel("depth", [ours, other]), Panel("once", [ours])]))
    texts = [element.text for element in picture.iter() if element.tag.endswith("}title")]
    assert "perf, depth 100: 60.2 us a sample" in texts
    assert len(texts) == 1 + 6 + 3
    lines = [e for e in picture.iter() if e.tag.endswith("}polyline")]
    places = [tuple(map(float, p.split(","))) for p in lines[0].attrib["points"].split()]
    assert [x for x, _ in places] == [0, 105, 210]
    assert places[0][1] > places[1][1] > places[2][1] > 0


@pytest.mark.parametrize("source", ["recursive.cc", "growth.c"])
def test_a_program_of_known_cost_is_recorded(tmp_path: Path, source: str) -> None:
    need("perf")
    need("g++")
    if source == "growth.c":
        [(what, size, recorded), *_] = islice(bench_perf.growth(tmp_path, 1600), 1)
        assert (what, size) == ("samples", 100)
        least = 22  # main, and one call of another
    else:
        program = bench_perf.recursive(tmp_path)
        recorded = bench_perf.record("deep", tmp_path / "data", 16384, [program, "0.05"])
        least = 60
    if recorded.samples == 0:
        cannot("perf records nothing here")
    stacks = our_stacks(recorded.path)
    assert len(stacks) == recorded.samples > 20
    assert max(len(stack.frames) for stack in stacks) >= least


def test_a_target_notes_for_how_long_it_stood_still(tmp_path: Path) -> None:
    need("cc")
    bin = tmp_path / "bin"
    bin.mkdir()
    command = bin / "unwind-live"
    line = f"PYTHONPATH='{ROOT}' exec '{sys.executable}' -m unwind.cli.live \"$@\""
    command.write_text(f"#!/bin/sh\n{line}\n")
    command.chmod(0o755)
    program = bench_live.build(tmp_path)
    found = bench_live.measure(bench.Interpreter("3.x", bin), program, 3, 1, tmp_path)
    ours = found["unwind-live"]
    assert ours.frames > 60
    assert all(len(figures.gap) == 1 for figures in found.values())
    [said] = found["unwind-live --explain, of one thread"].said
    assert 0 < said < 0.5
    table = bench_live.report({3: found})
    assert table.count("| 3 |") == len(found)


def test_a_short_watch_over_an_allocator_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory does not grow, nothing is dropped, and all is counted."""
    need("gcc")
    need_bpf()
    bench_leaks.main(["--print", "--seconds", "2", "--rate", "2000", "lasting"])
    said = capsys.readouterr().out
    assert "2,000 allocations" in said
    assert "0 dropped" in said
