"""Profiles opened by the programs that people look at them with; `make test-pictures` runs this.

Browser, speedscope and pprof weigh several hundred megabytes, so `make test` does without: there
our own readers look at the same files. Screenshots stay in .pictures/, to be looked at by people.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import profiles
from tests.browser import Browser
from tests.recordings import build, record
from tests.support import ROOT, cannot, need, run
from unwind.breakdown import by_function
from unwind.cli.perf import main
from unwind.profile import Profile
from unwind.writers.firefox import firefox
from unwind.writers.flamegraph import flamegraph_html, flamegraph_svg
from unwind.writers.folded import folded
from unwind.writers.labels import label
from unwind.writers.pprof import pprof
from unwind.writers.speedscope import speedscope

HOME = ROOT / ".pictures"
SPEEDSCOPE = HOME / "node_modules/speedscope/dist/release"
PROFILER_CLI = HOME / "node_modules/@firefox-devtools/profiler-cli/dist/profiler-cli.js"
FLAMEGRAPH_PL = Path("/usr/share/perl5/Devel/NYTProf/flamegraph.pl")

MADE: dict[str, Callable[[], Profile]] = {
    "small": profiles.small,
    "empty": profiles.empty,
    "hostile": profiles.hostile,
    "many": profiles.many,
}


@pytest.fixture(params=[*MADE, "recorded"])
def named(request: pytest.FixtureRequest) -> tuple[str, Profile]:
    """A profile and what it is called; `recorded` is what perf saw of a compiler."""
    if request.param == "recorded":
        return request.param, request.getfixturevalue("recorded")
    return request.param, MADE[request.param]()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    return _recorded(tmp_path_factory.mktemp("perf"), "-O1")


def _recorded(where: Path, *options: str) -> Profile:
    """What perf records, and says, of a compiler at work, which it must not start by a fork."""
    need("perf", "g++")
    compiler = run("g++", "-print-prog-name=cc1plus").stdout.strip()
    machine = run("g++", "-print-multiarch").stdout.strip()
    data, source = where / "perf.data", ROOT / "tests/programs/lambda.cc"
    work = ("-quiet", "-imultiarch", machine, "-D_GNU_SOURCE", "-include", "regex", *options)
    record = ("perf", "record", "-q", "--call-graph", "dwarf,16384", "-e", "cpu-clock", "-F", "997")
    done = run(*record, "-o", data, compiler, *work, source, "-o", where / "lambda.s")
    if done.returncode:
        cannot(f"perf may not record here: {done.stderr.strip()}")
    fields = "comm,pid,tid,time,event,period,ip,sym,dso,symoff"
    said = run("perf", "script", "-i", data, "--no-inline", "-F", fields)
    profile = profiles.of_perf_script(said.stdout, timed=True)
    assert profile.count > 100
    return profile


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def dark() -> Iterator[Browser]:
    with Browser(dark=True) as browser:
        yield browser


def written(name: str, pieces: Iterator[str]) -> str:
    """The address of a file in .pictures/ with what a writer wrote."""
    HOME.mkdir(exist_ok=True)
    (HOME / name).write_text("".join(pieces))
    return (HOME / name).as_uri()


FRAMES = "[...document.querySelectorAll('.frame')]"


def frame(browser: Browser, name: str) -> dict[str, Any]:
    """Where the (first) frame of a function is drawn, and its classes."""
    found = browser.run(
        f"(() => {{ const one = {FRAMES}.find((e) => e.textContent === {json.dumps(name)});"
        " if (!one) return null; const box = one.getBoundingClientRect();"
        " return {x: box.x, y: box.y, width: box.width, kind: one.className,"
        " fill: getComputedStyle(one).backgroundColor + getComputedStyle(one).backgroundImage}"
        " })()"
    )
    assert found is not None, f"{name} is not drawn"
    return dict(found)


@pytest.mark.parametrize("kind", ["html", "svg"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_flame_graph_opens_without_complaint_or_network(
    named: tuple[str, Profile], kind: str, scheme: str, request: pytest.FixtureRequest
) -> None:
    name, profile = named
    browser: Browser = request.getfixturevalue("browser" if scheme == "light" else "dark")
    browser.messages.clear()
    write = flamegraph_html if kind == "html" else flamegraph_svg
    address = written(f"{name}.{kind}", write(profile, f"the profile {name}"))
    browser.open(address)
    assert browser.until(f"{FRAMES}.length") > 0
    browser.screenshot(HOME / f"{name}-{kind}-{scheme}.png")
    assert browser.messages == []
    assert browser.requests() == [address]
    assert browser.run("document.querySelector('.note').textContent").startswith(
        f"{profile.count:,} sample"
    )
    # Nothing lies beyond its row, no two frames on one another.
    assert browser.run(
        f"{FRAMES}.every((e) => e.getBoundingClientRect().right <= innerWidth)"
        f" && new Set({FRAMES}.map((e) => e.style.top + e.style.left)).size === {FRAMES}.length"
    )


def test_the_width_of_a_frame_is_its_share(browser: Browser) -> None:
    browser.open(written("small.html", flamegraph_html(profiles.small())))
    whole = frame(browser, "all")["width"]
    assert frame(browser, "program")["width"] == pytest.approx(0.6 * whole, abs=2)
    assert frame(browser, "worker")["width"] == pytest.approx(0.2 * whole, abs=2)


def test_cut_stacks_look_like_nothing_else(browser: Browser) -> None:
    browser.open(written("small.html", flamegraph_html(profiles.small())))
    cut = frame(browser, "[truncated: no-row]")
    assert "gradient" in cut["fill"]
    assert "gradient" not in frame(browser, "main")["fill"]
    striped = browser.run(
        f"{FRAMES}.filter((e) => getComputedStyle(e).backgroundImage !== 'none')"
        ".map((e) => e.textContent)"
    )
    assert sorted(striped)[:2] == ["[libc.so.6]", "[truncated: memory-fault]"]
    assert len(striped) == 11


def test_a_tooltip_tells_counts_shares_and_trust(browser: Browser) -> None:
    browser.open(written("small.html", flamegraph_html(profiles.small())))
    place = frame(browser, "qsort")
    browser.mouse(place["x"] + 5, place["y"] + 5)
    said = browser.run("document.querySelector('.tip').innerText")
    assert said.split("\n")[:2] == ["qsort", "/usr/lib/libc.so.6"]
    for words in (
        "12.00% of all, 100.00% of its caller",
        "12 us in 12 samples, of it 12 us itself",
        "found by emulation 100.00%",
        "its callers are not known",
    ):
        assert words in said
    browser.screenshot(HOME / "tooltip.png")
    box = browser.run(
        "(({x, y, right, bottom}) => [x, y, innerWidth - right, innerHeight - bottom])"
        "(document.querySelector('.tip').getBoundingClientRect())"
    )
    assert min(box) >= 0, "it lies within the window"


@pytest.mark.parametrize("kind", ["html", "svg"])
def test_a_click_zooms_in_and_escape_out(browser: Browser, kind: str) -> None:
    write = flamegraph_html if kind == "html" else flamegraph_svg
    browser.open(written(f"small.{kind}", write(profiles.small())))
    whole = frame(browser, "all")["width"]
    place = frame(browser, "worker")
    browser.mouse(place["x"] + 5, place["y"] + 5, click=True)
    assert frame(browser, "worker")["width"] == pytest.approx(whole, abs=2)
    assert "above" in frame(browser, "all")["kind"]
    names = browser.run(f"{FRAMES}.map((e) => e.textContent)")
    assert sorted(names) == ["all", "clone3", "run", "start_thread", "work", "worker"]
    browser.press("Escape")
    assert frame(browser, "worker")["width"] == pytest.approx(0.2 * whole, abs=2)


def test_keys_do_all_that_a_mouse_does(browser: Browser) -> None:
    browser.open(written("small.html", flamegraph_html(profiles.small())))

    def said() -> str:
        return str(browser.run("document.querySelector('.foot').textContent"))

    browser.run("document.querySelector('.rows').focus()")
    browser.press("ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")
    assert said().startswith("work — /usr/bin/program · 35.00% of all, 58.33% of its caller")
    browser.press("ArrowLeft")
    assert said().startswith("other — ")
    browser.press("ArrowRight", "Enter")
    names = browser.run(f"{FRAMES}.filter((e) => !e.matches('.above')).map((e) => e.textContent)")
    assert names == ["work", "work", "leaf"]
    browser.press("ArrowDown")
    assert said().startswith("main — ")
    browser.press("Escape")
    assert said().startswith("all — 100.00% of all · 100 us in 100 samples")
    before = frame(browser, "all")["y"]
    browser.press("i")
    assert frame(browser, "all")["y"] < before
    browser.press("i")
    assert frame(browser, "all")["y"] == before


def test_search_tells_the_share_of_what_it_finds(browser: Browser) -> None:
    browser.open(written("small.html", flamegraph_html(profiles.small())))

    def find(text: str) -> str:
        browser.press("Escape", "/")
        browser.press(*text)
        return str(browser.run("document.querySelector('.found').textContent"))

    # work calls itself: its 60 of 100 samples count once.
    assert find("work") == "60.00% found", "also where it is the name of the process"
    matching = browser.run(f"{FRAMES}.filter((e) => e.matches('.match')).map((e) => e.textContent)")
    assert set(matching) == {"work", "worker"}
    assert find("LIBC.so") == "22.00% found"
    assert find("/^(run|leaf)$/") == "70.00% found"
    assert find("(((") == "0.00% found"
    assert find("/(((/") == "0.00% found"
    assert find("do_sys") == "10.00% found"
    browser.press("Enter")
    assert browser.run("document.querySelector('.foot').textContent").startswith("do_syscall_64 —")
    browser.screenshot(HOME / "search.png")
    browser.press("Escape")
    assert browser.run("document.querySelectorAll('.match, .dim').length") == 0


def test_a_comparison_is_coloured_by_what_changed(
    browser: Browser, recorded: Profile, tmp_path: Path
) -> None:
    now = _recorded(tmp_path, "-O3")
    address = written("differential.html", flamegraph_html(now, "-O3 against -O1", recorded))
    browser.messages.clear()
    browser.open(address)
    browser.screenshot(HOME / "differential.png")
    assert browser.messages == []
    kinds = set(browser.run(f"{FRAMES}.map((e) => e.className.split(' ')[1])"))
    assert {"dp0", "dp4"} <= kinds
    assert not [kind for kind in kinds if re.fullmatch("c[0-9]", kind)]
    assert "of the base lies in other stacks" in browser.run(
        "document.querySelector('.note').textContent"
    )


def test_no_name_becomes_a_script(browser: Browser) -> None:
    for kind, write in (("html", flamegraph_html), ("svg", flamegraph_svg)):
        for title in profiles.HOSTILE:
            browser.open(written(f"hostile.{kind}", write(profiles.hostile(), title)))
            elements = browser.run("document.querySelectorAll('img, script').length")
            assert elements == 2, "the numbers and our own"
            assert browser.run("document.title").strip() == label(title).strip()


def test_the_static_picture_shows_without_a_script(browser: Browser) -> None:
    written("small.svg", flamegraph_svg(profiles.small(), "in a page's img"))
    (HOME / "img.html").write_text('<!DOCTYPE html><img src="small.svg">')
    browser.open((HOME / "img.html").as_uri())
    assert browser.until("document.images[0].complete && document.images[0].naturalWidth") == 1200
    browser.screenshot(HOME / "img.png")


def test_a_thousand_frames_deep_and_wide_is_drawn_fast(browser: Browser) -> None:
    browser.open(written("many.html", flamegraph_html(profiles.many())))
    took = browser.run(
        "(() => { const begin = performance.now();"
        " for (let n = 0; n < 10; n++) dispatchEvent(new Event('resize'));"
        " document.body.offsetHeight; return (performance.now() - begin) / 10 })()"
    )
    assert took < 300, "milliseconds for a drawing"


def _speedscope(browser: Browser, name: str, text: str, view: str) -> str:
    """The text of speedscope's page once it shows a file, as its own command opens one."""
    if not SPEEDSCOPE.exists():
        cannot(f"speedscope is not in {SPEEDSCOPE}: make .pictures/ready")
    data = base64.b64encode(text.encode()).decode()
    call = f"speedscope.loadFileFromBase64({json.dumps(name)}, {json.dumps(data)})"
    written("load.js", iter([call]))
    browser.open("about:blank")
    address = (SPEEDSCOPE / "index.html").as_uri()
    browser.open(f"{address}#view={view}&localProfilePath={HOME / 'load.js'}")
    last = "/Symbol Name\\s+\\S/" if view == "sandwich" else "/Sandwich/"
    shown = f"{last}.test(document.body.innerText) && document.body.innerText"
    return str(browser.until(shown))


def test_speedscope_shows_every_function(browser: Browser, named: tuple[str, Profile]) -> None:
    name, profile = named
    text = "".join(speedscope([profile], name))
    said = _speedscope(browser, name, text, "sandwich")
    assert f"{profile.event}, all threads" in said
    cells = [cell.strip() for cell in said.partition("Symbol Name")[2].split("\n\t")]
    rows = by_function(profile)
    if profile.weight:
        hottest = rows[0]
        assert label(hottest.function.name)[:60] in said
        shown = cells[1].rpartition("(")[2].rstrip("%)")
        assert float(shown) == pytest.approx(100 * hottest.own / profile.weight, abs=0.5)
    else:
        assert "No symbols found" in said
    _speedscope(browser, name, text, "left-heavy")
    browser.screenshot(HOME / f"speedscope-{name}.png")


def test_speedscope_imports_what_a_script_prints(browser: Browser, tmp_path: Path) -> None:
    """The text of `perf script`, which speedscope reads by itself, has the functions of a program.

    It gives each sample the time until the next one, so shares are not to the digit ours.
    """
    program = build(tmp_path, "burn.c")
    recording = record(tmp_path / "perf.data", program, "300")
    text, stacks = tmp_path / "script", tmp_path / "folded"
    assert main([str(recording), "--script", "-o", str(text)]) == 0
    assert main([str(recording), "--folded", "-o", str(stacks)]) == 0
    total: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, weight = line.rpartition(" ")
        total.update({name: int(weight) for name in set(stack.split(";"))})
    said = _speedscope(browser, "perf.txt", text.read_text(), "sandwich")
    assert re.search(r"program pid: \d+ tid: \d+", said)
    share = r"\(([<>]?\d+(?:\.\d+)?)%\)\s+"
    for name in ("main", "_start", "__libc_start_main"):
        match = re.search(rf"{share}[^()]+{share}{name}\b", said)
        assert match, said
        assert float(match[1].lstrip("<>")) > 90
        assert total[name] > 0.9 * max(total.values())
    browser.screenshot(HOME / "speedscope-script.png")


def test_speedscope_has_its_schema_kept(named: tuple[str, Profile]) -> None:
    import jsonschema

    if not SPEEDSCOPE.exists():
        cannot(f"speedscope is not in {SPEEDSCOPE}: make .pictures/ready")
    schema = json.loads((SPEEDSCOPE / "file-format-schema.json").read_text())
    document = json.loads("".join(speedscope([named[1]], named[0])))
    jsonschema.validate(document, schema)


def test_the_firefox_profiler_counts_the_same(named: tuple[str, Profile], tmp_path: Path) -> None:
    """profiler-cli is made by the Firefox Profiler's authors, of the same code that loads files."""
    need("node")
    if not PROFILER_CLI.exists():
        cannot(f"{PROFILER_CLI} is missing: make test-pictures installs it")
    name, profile = named
    (tmp_path / "profile.json").write_text("".join(firefox(profile, name)))

    def ask(*words: str) -> str:
        done = run("node", PROFILER_CLI, *words, HOME=str(tmp_path))
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    try:
        ask("load", str(tmp_path / "profile.json"))
        about = json.loads(ask("profile", "info", "--json", "--all"))
        assert about["name"] == name
        threads = list(dict.fromkeys(stack.thread for stack in profile.stacks))
        assert about["threadCount"] == max(len(threads), 1)
        for number, thread in enumerate(threads):
            mine = profile.select(lambda stack, thread=thread: stack.thread == thread)
            words = ("--thread", f"t-{number}", "--include-idle", "--limit", "0", "--json")
            said = json.loads(ask("thread", "functions", *words))
            assert said["friendlyThreadName"] == label(thread.comm or "")
            found: Counter[str] = Counter()
            for row in said["functions"]:
                found[row["name"]] += round(1e6 * row["selfSamples"])
            expected: Counter[str] = Counter()
            for hot in by_function(mine):
                expected[label(hot.function.name)] += hot.own
            assert +found == +expected
    finally:
        ask("stop", "--all")


def test_pprof_prints_the_same_table(named: tuple[str, Profile], tmp_path: Path) -> None:
    need("go")
    name, profile = named
    (tmp_path / "profile.pb.gz").write_bytes(b"".join(pprof(profile)))
    table = ("-top", "-nodecount=10000", "-nodefraction=0", "-sample_index=samples")
    done = run("go", "tool", "pprof", *table, tmp_path / "profile.pb.gz", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    row = r"(?m)^ +(\d+) +[\d.]+% +[\d.]+% +(\d+) +[\d.]+%"
    found = [(int(own), int(total)) for own, total in re.findall(row, done.stdout)]
    assert sum(own for own, _ in found) == profile.count
    if name == "small":  # elsewhere it merges functions whose shortened names are equal
        whole = {(hot.own_count, hot.total_count) for hot in by_function(profile)}
        assert whole <= set(found), "besides, it shows the roots of cut stacks"


def test_pprof_knows_threads_and_cut_stacks(tmp_path: Path) -> None:
    need("go")
    (tmp_path / "profile.pb.gz").write_bytes(b"".join(pprof(profiles.small())))
    done = run("go", "tool", "pprof", "-tags", tmp_path / "profile.pb.gz", HOME=str(tmp_path))
    assert re.search(r"truncated: Total 20\.0us", done.stdout)
    assert re.search(r"12\.0us \(60\.00%\): no-row", done.stdout)
    assert re.search(r"25\.0us \(25\.00%\): worker", done.stdout)


def test_flamegraph_pl_draws_folded_stacks(named: tuple[str, Profile]) -> None:
    if not FLAMEGRAPH_PL.exists():
        cannot("flamegraph.pl is not installed (apt install libdevel-nytprof-perl)")
    name, profile = named
    text = "".join(f"{line}\n" for line in folded(profile))
    done = run("perl", FLAMEGRAPH_PL, "--minwidth=0", "--countname=ns", input=text)
    if not profile.count:
        assert "No stack counts found" in done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "")
    assert f"<title>all ({profile.weight:,} ns, 100%)</title>" in done.stdout
    hottest = by_function(profile)[0].function.name.partition("(")[0]
    assert name == "hostile" or re.search(f"<title>{re.escape(hottest)} ?[(]", done.stdout)
