"""Inlined functions and places in source, as every command and writer prints them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.crashes import crash_by_kernel, kernel_writes_cores
from tests.support import cannot, need, python
from tests.test_lines import PROGRAM
from unwind.elf import Elf
from unwind.files import Files
from unwind.profile import Counts, Profile, Thread
from unwind.sites import Sites
from unwind.symbols.debug_info import DebugSymbolizer
from unwind.symbols.names import Names
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder
from unwind.writers.events import frame_lines, inlined_at, place_of
from unwind.writers.flamegraph_data import INLINED, columns
from unwind.writers.folded import folded

# Of the frame that crashes: what is inlined, innermost first, with a word of the line each is at.
CHAIN = [
    ("deepest", "__builtin_trap();"),
    ("operator()", "return deepest(value + 1);"),
    ("apply", "return function(value) * 2;"),
    ("shop::run(int)", "return apply(n, [](int value)"),
]


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a program with inlined functions, and of its core."""
    need("g++")
    if not kernel_writes_cores():
        cannot("the kernel hands its cores to another program here")
    folder = tmp_path_factory.mktemp("inlined")
    program = folder / "program"
    flags = ("-gdwarf-5", "-O2", "-fno-omit-frame-pointer")
    done = os.spawnlp(os.P_WAIT, "g++", "g++", *flags, str(PROGRAM), "-o", str(program))
    assert done == 0
    crash_by_kernel([str(program)], dict(os.environ), folder / "core")
    return folder


def printed(crash: Path, *options: str) -> str:
    done = python("-m", "unwind.cli.core", *options, crash / "core")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def base(function: str | None) -> str:
    """A function's name without scopes and arguments of templates, as far as the test needs it."""
    text = function or ""
    if "operator()" in text:
        return "operator()"
    found = re.search(r"(shop::run\(int\)|deepest|apply)", text)
    return found[1] if found else text


def told(places: Iterable[tuple[str | None, str, int]]) -> list[tuple[str, bool]]:
    """For each place its function, and whether its line is the one of CHAIN."""
    source = PROGRAM.read_text().splitlines()
    found = []
    for (function, file, line), (_, code) in zip(places, CHAIN, strict=True):
        found.append((base(function), file == str(PROGRAM) and code in source[line - 1]))
    return found


WANTED = [(function, True) for function, _ in CHAIN]


def test_json_has_an_element_for_each_inlined_function(crash: Path) -> None:
    [thread] = json.loads(printed(crash, "--json", "-s", "-i"))["threads"]
    frames = thread["frames"]
    innermost = frames[: len(CHAIN)]
    assert told((f["function"], f["file"], f["line"]) for f in innermost) == WANTED
    assert [frame["inline"] for frame in innermost] == [True, True, True, False]
    assert len({frame["pc"] for frame in innermost}) == 1
    assert all(frame["column"] > 0 for frame in innermost)
    assert frames[len(CHAIN)]["function"] == "main"
    plain = json.loads(printed(crash, "--json", "--no-inlines"))["threads"][0]["frames"]
    assert [f["pc"] for f in plain] == [f["pc"] for f in frames if not f["inline"]]


def test_text_has_a_line_for_each_and_numbers_frames(crash: Path) -> None:
    text = printed(crash, "--source", "--inlines")
    places = re.findall(
        r"0x[0-9a-f]+ (.*?)(?: \[inlined\]|\+0x\w+ \(program\)) at (.*):(\d+):\d+", text
    )
    assert told((f, file, int(line)) for f, file, line in places[: len(CHAIN)]) == WANTED
    assert text.count("[inlined]") >= 3
    numbers = [int(number) for number in re.findall(r"^#(\d+) ", text, re.M)]
    assert numbers == list(range(len(numbers)))
    assert "\n    0x" in text


def test_lines_of_code_are_printed(crash: Path) -> None:
    text = printed(crash, "-i", "--source-lines")
    lines = text.splitlines()
    code = [lines[n + 1].strip() for n, line in enumerate(lines) if f"at {PROGRAM}:" in line]
    assert [CHAIN[n][1] in code[n] for n in range(len(CHAIN))] == [True] * 4


def test_without_inlines_the_place_is_where_the_pc_is(crash: Path) -> None:
    first = next(line for line in printed(crash, "-s", "--no-inlines").splitlines() if "#0" in line)
    line = int(re.findall(r":(\d+):\d+$", first)[0])
    assert "shop::run(int)" in first
    assert CHAIN[0][1] in PROGRAM.read_text().splitlines()[line - 1]


def test_both_symbolizers_agree(crash: Path, tmp_path: Path) -> None:
    pytest.importorskip("symbolic")
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    texts = []
    for name in ("built-in", "symbolic", "symbolic"):
        options = ("-m", "unwind.cli.core", "-s", "-i", "--symbolizer", name, crash / "core")
        done = python(*options, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        texts.append(re.sub(r"(:\d+):\d+$", r"\1", done.stdout, flags=re.M))
    built_in, cold, warm = (re.sub(r"\./csu/\S*/", "", text) for text in texts)
    assert _own(built_in) == _own(cold) == _own(warm)
    kept = list((tmp_path / "unwind/symcache").iterdir())
    assert kept
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    for path in kept:  # damaged ones are made anew
        path.write_bytes(b"SYMC" + path.read_bytes()[4:100])
    done = python(
        "-m",
        "unwind.cli.core",
        "-s",
        "-i",
        "--symbolizer",
        "symbolic",
        crash / "core",
        **environment,
    )
    assert done.stdout == warm_text(texts, done.stdout)


def warm_text(texts: list[str], now: str) -> str:
    """What was printed with a sound cache, in the words of `now`, which has no columns either."""
    return texts[2] if re.sub(r"(:\d+):\d+$", r"\1", now, flags=re.M) == texts[2] else ""


def _own(text: str) -> list[str]:
    """The lines about the program's own functions."""
    return [line for line in text.splitlines() if str(PROGRAM) in line]


def profile_of(crash: Path) -> Profile:
    with Files() as files, TRANSPORT.open(str(crash / "core"), files) as source:
        names = Names(DebugSymbolizer(files), inlines=True)
        counts = Counts("crash", "samples", Sites(names.name))
        unwinder = Unwinder(source.arch)
        for snapshot in source.snapshots():
            thread = Thread(snapshot.pid, snapshot.tid, snapshot.name)
            table = counts.table(snapshot.space, thread)
            counts.add_stack(table, unwinder.unwind(snapshot), 1)
        return counts.profile()


def test_folded_stacks_have_inlined_functions_in_their_place(crash: Path) -> None:
    [line] = folded(profile_of(crash))
    names = [base(name) for name in line.rpartition(" ")[0].split(";")]
    assert names[-4:] == [function for function, _ in reversed(CHAIN)]
    assert names[-5] == "main"


def test_pictures_mark_inlined_functions(crash: Path) -> None:
    found = columns(profile_of(crash))
    marked = {base(name) for name, _, _, flags, _ in found.functions if flags & INLINED}
    assert marked >= {function for function, _ in CHAIN[:3]}
    assert "shop::run(int)" not in marked


def test_what_is_cheap_is_told_without_being_asked_for(crash: Path) -> None:
    assert _own(printed(crash)) == _own(printed(crash, "-s", "-i"))
    assert printed(crash).count("[inlined]") == 3
    assert "[inlined]" not in printed(crash, "--no-inlines")
    assert f" at {PROGRAM}:" in printed(crash, "--no-inlines")
    assert f" at {PROGRAM}:" not in printed(crash, "--symbolizer", "symbols")


def test_what_has_to_be_unpacked_is_not_cheap(crash: Path, tmp_path: Path) -> None:
    need("objcopy")
    packed = tmp_path / "program"
    command = ["objcopy", "--compress-debug-sections=zlib", str(crash / "program"), str(packed)]
    assert os.spawnlp(os.P_WAIT, "objcopy", *command) == 0
    assert "[inlined]" not in printed(crash, "-e", str(packed))
    assert _own(printed(crash, "-s", "-i", "-e", str(packed))) == _own(printed(crash, "-s", "-i"))


def test_names_stay_mangled_where_that_is_wanted(crash: Path) -> None:
    [thread] = json.loads(printed(crash, "--json", "--no-demangle"))["threads"]
    names = [frame["function"] for frame in thread["frames"]]
    assert any(name.startswith("_ZN4shop3runEi") for name in names)
    assert all(f["function"] == f["symbol"] for f in thread["frames"])


def test_events_and_leaks_have_inlined_functions_before_their_frame(crash: Path) -> None:
    with Files() as files, TRANSPORT.open(str(crash / "core"), files) as source:
        names = Names(DebugSymbolizer(files), source=True, inlines=True)
        [snapshot] = source.snapshots()
        stack = Unwinder(source.arch).unwind(snapshot)
        lines = list(frame_lines(source.arch, stack, names.name))
        places = [*inlined_at(stack.frames[0], names.name), place_of(stack.frames[0], names.name)]
    assert [line.split()[0] for line in lines[:5]] == ["#0", "#0", "#0", "#0", "#1"]
    assert ["flags=inlined" in line for line in lines[:5]] == [True, True, True, False, False]
    for line, place in zip(lines, places, strict=False):
        assert line.endswith(place)
    found = [re.fullmatch(r"(.*?)(?:\+0x\w+ \(program\))? at (.*):(\d+):\d+", p) for p in places]
    assert told((m[1], m[2], int(m[3])) for m in found if m) == WANTED


@pytest.mark.parametrize("name", [".debug_info", ".debug_line", ".debug_abbrev"])
def test_damaged_debug_info_costs_the_line_and_no_frame(
    name: str, crash: Path, tmp_path: Path
) -> None:
    data = bytearray((crash / "program").read_bytes())
    section = Elf(bytes(data)).section(name)
    assert section is not None
    data[section.offset + 8 : section.offset + section.size] = b"\xff" * (section.size - 8)
    broken = tmp_path / "program"
    broken.write_bytes(data)
    done = python("-m", "unwind.cli.core", "-s", "-i", "-e", broken, crash / "core")
    assert done.returncode == 0
    assert f"warning: no lines: {broken}: .debug_" in done.stderr
    assert done.stderr.count("\n") < 10
    assert _frames(done.stdout) == _frames(printed(crash, "--symbolizer", "symbols"))
    assert len(_frames(done.stdout)) > 3
    assert "shop::run(int)" in done.stdout


def test_a_snapshot_keeps_places_in_source(crash: Path, tmp_path: Path) -> None:
    asked = ("-m", "unwind.cli.core", "--json", "-s", "-i")
    kept, again = tmp_path / "kept", tmp_path / "again"
    whole = json.loads(printed(crash, "--json", "-s", "-i", "--record", str(kept)))
    done = python(*asked, kept, "--record", again)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["threads"] == whole["threads"]
    text = python("-m", "unwind.cli.core", again).stdout
    assert _own(text) == _own(printed(crash))
    assert text.count("[inlined]") == 3


def _frames(text: str) -> list[str]:
    """The lines of frames, without numbers and places in source; not those of what is inlined."""
    return [
        found
        for line in text.splitlines()
        for found in re.findall(r"0x\w+ .*\+0x\w+ \(.*?\)", line)
    ]
