"""unwind-perf from the outside: what it prints of recordings made on the spot, and of bad ones."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recordings import build, our_stacks, record
from tests.support import ROOT, cannot, complaints, python, run, validate
from unwind.arch.x86_64 import RSP
from unwind.cli.perf import nanoseconds
from unwind.files import Files
from unwind.transports.perf_data import TRANSPORT
from unwind.unwinder import Unwinder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    build(directory, "burn.c", name="program")
    build(directory, "burners.c", "-pthread", name="burners")
    record(directory / "perf.data", directory / "program", "300", options=["--sample-cpu"])
    record(directory / "threads.data", directory / "burners", "threads")
    return directory


def perf(*arguments: str | Path) -> str:
    """What unwind-perf prints, and nothing on standard error but warnings and hints."""
    done = python("-m", "unwind.cli.perf", *arguments)
    assert done.returncode == 0, done.stderr
    assert all(": warning: " in line for line in complaints(done.stderr).splitlines())
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = python("-m", "unwind.cli.perf", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_the_summary_says_what_is_hot_and_how_complete_stacks_are(place: Path) -> None:
    printed = perf(place / "perf.data")
    count = len(our_stacks(place / "perf.data"))
    assert f"cpu-clock:u: {count} samples" in printed
    assert re.search(r"\d\d% with a complete stack", printed)
    assert re.search(r"msort_with_tmp|qsort", printed)


def test_fields_choose_what_a_script_prints(place: Path) -> None:
    whole = perf(place / "perf.data", "--script")
    count = len(our_stacks(place / "perf.data"))
    assert whole.count("\n\n") == count
    assert len(re.findall(r"^program +\d+/\d+ +\d+\.\d{6}: cpu-clock:u: $", whole, re.M)) == count
    alone = perf(place / "perf.data", "--script", "-F", "ip")
    addresses = re.findall(r"^\t +([0-9a-f]+) ", whole, re.M)
    assert [line.strip() for line in alone.splitlines() if line] == addresses
    offsets = perf(place / "perf.data", "--script", "-F", "cpu,period,ip,sym,symoff")
    assert re.search(r"^\[\d{3}\] +\d+ \n\t +[0-9a-f]+ \S+\+0x[0-9a-f]+$", offsets, re.M)
    assert "no field 'color'" in refused(place / "perf.data", "--script", "-F", "color")


def test_json_lines_name_their_modules_before_they_are_used(place: Path) -> None:
    lines = perf(place / "perf.data", "--json").splitlines()
    document = json.loads(lines[0])
    validate(document)
    assert (document["threads"], document["source"]["kind"]) == ([], "perf")
    modules = document["modules"]
    samples = []
    for line in map(json.loads, lines[1:]):
        if "modules" in line:
            modules = modules + line["modules"]
            continue
        assert all(f["module"] is None or f["module"] < len(modules) for f in line["frames"])
        samples.append(line)
    validate({**document, "modules": modules, "threads": samples})
    ours = our_stacks(place / "perf.data")
    assert len(samples) == len(ours)
    assert [len(sample["frames"]) for sample in samples] == [len(s.frames) for s in ours]
    assert {sample["pid"] for sample in samples} == {module["pid"] for module in modules}
    assert all({"cpu", "period", "time", "event", "tid"} <= set(sample) for sample in samples)


def test_json_lines_have_the_frames_of_the_exact_walk(place: Path, mixed: Path) -> None:
    for recording in (place / "perf.data", mixed):
        lines = [json.loads(line) for line in perf(recording, "--json").splitlines()]
        found = [line["frames"] for line in lines if "frames" in line]
        with Files() as files, TRANSPORT.open(str(recording), files) as source:
            unwinder = Unwinder(source.arch)
            stacks = {
                n: unwinder.unwind(source.snapshot(sample))
                for n, sample in enumerate(source.samples())
                if not n % 5
            }
        assert len(found) - 5 <= max(stacks) < len(found)
        for n, stack in stacks.items():
            frames = found[n]
            expected = [(f.pc, f.cfa, f.registers.get(RSP), f.trust) for f in stack.frames]
            keys = "pc", "cfa", "sp"
            numbers = [tuple(int(f[k], 16) if k in f else None for k in keys) for f in frames]
            given = zip(numbers, [f["trust"] for f in frames], strict=True)
            assert [(*three, trust) for three, trust in given] == expected


def test_filters_choose_samples(place: Path) -> None:
    recording = place / "threads.data"
    ours = our_stacks(recording)
    comm = next(stack.comm for stack in ours if stack.comm and stack.comm.startswith("burner "))
    tid = next(stack.tid for stack in ours if stack.comm == comm)
    of_comm = perf(recording, "--comm", comm, "--script", "-F", "tid").split()
    assert set(of_comm) == {str(tid)}
    of_tid = perf(recording, "--tid", str(tid), "--script", "-F", "tid").split()
    assert len(of_tid) == sum(stack.tid == tid for stack in ours)  # it had another name at first
    times = sorted(stack.time for stack in ours)
    low, high = times[len(times) // 4], times[len(times) // 2]
    span = f"{low / 1e6:.6f},{(high + 1) / 1e6:.6f}"
    between = perf(recording, "--time", span, "--script", "-F", "time").split()
    assert len(between) == sum(low <= time <= high for time in times)
    assert perf(recording, "--pid", "1", "--script") == ""
    assert perf(recording, "--event", "nothing", "--script") == ""
    short = perf(recording, "--max-stack", "2", "--script", "-F", "ip")
    assert max(len(stack.split()) for stack in short.split("\n\n")) == 2


def test_times_are_taken_to_the_last_digit() -> None:
    assert nanoseconds("33756.810342") == 33756_810342_000
    assert (nanoseconds("7"), nanoseconds(".5"), nanoseconds("2.")) == (
        7 * 10**9,
        10**9 // 2,
        2 * 10**9,
    )
    for text in ("", ".", "-1", "1e3", "1.2.3", "nan"):
        with pytest.raises(ValueError, match="^" + re.escape(text)):
            nanoseconds(text)


def test_one_sample_is_explained(place: Path) -> None:
    by_number = perf(place / "perf.data", "--explain", "20")
    stack = our_stacks(place / "perf.data")[20]
    assert by_number.count("CFA    = ") >= len(stack.frames) - 1
    assert by_number == perf(place / "perf.data", "--explain", f"{stack.time / 1e6:.6f}")
    assert "no sample 1000000" in refused(place / "perf.data", "--explain", "1000000")


@pytest.mark.parametrize("name", ["folded", "speedscope", "pprof", "firefox"])
def test_each_profile_is_written(place: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "profile"
    assert perf(place / "perf.data", f"--{name}", "-o", output) == ""
    assert output.stat().st_size > 200


def test_a_picture_is_coloured_by_another_recording(place: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.html"
    base = place / "threads.data"
    assert perf(place / "perf.data", "--flamegraph", picture, "--differential", base) == ""
    assert "qsort" in picture.read_text()


def test_folded_stacks_are_those_of_the_samples(place: Path) -> None:
    lines = perf(place / "perf.data", "--folded").splitlines()
    depths = {line.rpartition(" ")[0].count(";") for line in lines}
    assert depths >= {len(s.frames) for s in our_stacks(place / "perf.data")} - {1}


def test_what_cannot_be_read_is_said_in_a_line(place: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"no recording at all" * 100)
    assert "no recording of perf" in refused(other)
    assert "No such file" in refused(tmp_path / "missing").replace("no such", "No such")
    other.write_bytes((place / "perf.data").read_bytes()[:60])
    assert "truncated" in refused(other)


def test_a_recording_that_is_cut_off_gives_what_it_has(place: Path, tmp_path: Path) -> None:
    data = (place / "perf.data").read_bytes()
    part = tmp_path / "part"
    part.write_bytes(data[: len(data) // 2])
    whole = perf(place / "perf.data", "--script", "-F", "time,ip")
    done = python("-m", "unwind.cli.perf", part, "--script", "-F", "time,ip")
    assert done.returncode == 0
    assert "truncated" in done.stderr
    blocks = done.stdout.split("\n\n")
    assert len(blocks) > whole.count("\n\n") / 3
    assert set(blocks) <= set(whole.split("\n\n"))


def test_its_command_needs_nothing_of_perf(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copy(place / "perf.data", copy)
    printed = python("-m", "unwind.cli.perf", copy, PATH="/nowhere")
    assert printed.stdout == perf(place / "perf.data")


FORMATS = ("script", "json", "folded", "speedscope", "firefox", "pprof", "svg", "html", "summary")


@pytest.fixture(scope="module")
def mixed(place: Path) -> Path:
    """A recording of many processes and threads, of which many stacks are cut short."""
    script = place / "mixed.sh"
    each = f"for n in 1 2 3; do {place}/program 500; done"
    script.write_text(f"{each}; {place}/burners threads; {place}/program 900")
    events = ["-F", "5000", "-e", "page-faults:u"]
    return record(place / "mixed.data", "sh", script, options=events, dump=1024)


@pytest.mark.parametrize("format", FORMATS)
def test_several_processes_print_what_one_does(mixed: Path, tmp_path: Path, format: str) -> None:
    """Each is dealt 256 samples at a time: there must be some more."""
    options = [f"--{format}"]
    match format:
        case "svg" | "html":
            options = ["--event", "cpu-clock:u", "--flamegraph", str(tmp_path / f"p.{format}")]
        case "summary":
            options = []
        case "script" | "json" | "speedscope":
            pass
        case _:
            options += ["--event", "cpu-clock:u"]
    found = []
    for jobs in ("1", "3"):
        output = tmp_path / f"p.{format}"
        where = ["-o", output] if "--flamegraph" not in options else []
        perf(mixed, *options, "--jobs", jobs, *where)
        found.append(output.read_bytes())
    assert found[0] == found[1]
    assert len(found[0]) > 2000
    assert format != "summary" or b"as in: " in found[0]
    if format in ("script", "json"):
        assert found[0].count(b"\n\n" if format == "script" else b'"frames":[') > 1000


def test_nobody_goes_on_when_nobody_listens(place: Path) -> None:
    argv = [sys.executable, "-m", "unwind.cli.perf", place / "perf.data", "--script", "--jobs", "3"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.wait(timeout=20) in (0, 141)


def test_what_fails_in_another_process_is_said(place: Path) -> None:
    said = refused(place / "perf.data", "--script", "--jobs", "2", "-F", "color")
    assert "no field 'color'" in said


def test_gprof2dot_finds_the_same_shares_in_the_script(place: Path, tmp_path: Path) -> None:
    """A reader of `perf script` that is not ours sums up what each function took."""
    if importlib.util.find_spec("gprof2dot") is None:
        cannot("gprof2dot is not installed (pip install gprof2dot)")
    recording, text, dot = place / "perf.data", tmp_path / "script", tmp_path / "dot"
    text.write_text(perf(recording, "--script"))
    options = ["-f", "perf", "--total=callstacks", "-n0", "-e0", "--skew=1", "-o", dot]
    done = run(sys.executable, "-m", "gprof2dot", *options, text)
    assert done.returncode == 0, done.stderr
    found = {}
    label = r'label="[^"]*?\\n([^"]*?)\\n([\d.]+)%\\n\(([\d.]+)%\)'
    for name, total, own in re.findall(label, dot.read_text()):
        found[name] = float(total), float(own)
    stacks = [line.rpartition(" ") for line in perf(recording, "--folded").splitlines()]
    every = sum(int(weight) for _, _, weight in stacks)
    sums: dict[str, list[int]] = {}
    for stack, _, weight in stacks:
        frames = [frame for frame in stack.split(";")[1:] if not frame.startswith("[truncated")]
        for name in {*frames}:
            sums.setdefault(name, [0, 0])[0] += int(weight)
        sums[frames[-1]][1] += int(weight)
    named = {name: shares for name, shares in sums.items() if name[:1] != "["}
    assert len(named) > 8
    for name, (total, own) in named.items():
        shares = 100 * total / every, 100 * own / every
        assert found[name] == pytest.approx(shares, abs=0.02), name


def test_kernel_symbols_that_are_hidden_are_said_to_be(place: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "kallsyms"
    hidden.write_text("0000000000000000 T _stext\n0000000000000000 t run\t[module]\n")
    said = refused(place / "perf.data", "--kallsyms", hidden)
    assert "no kernel symbols with addresses" in said
    assert "kptr_restrict" in said
    hidden.write_text("nothing of the kind\n")
    assert "kptr_restrict" not in refused(place / "perf.data", "--kallsyms", hidden)
