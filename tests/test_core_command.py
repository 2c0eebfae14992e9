"""unwind-core as a person and a script meet it: its text, options, exit codes and manners."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import crashes
from tests.crashes import Crash, Crashes
from tests.support import ROOT, python, validate

COMMAND = ("-m", "unwind.cli.core")
FRAME = re.compile(r"^#(\d+) +0x([0-9a-f]{16}) (.*)$", re.M)


CASES = (
    "recursion threads stack-overflow noexcept handler-on-altstack gcore vla-alloca-realigned "
    "cut-in-half null-pointer frame-pointers no-pie neither-shapes"
).split()


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashes:
    return Crashes(crashes.named(*CASES), tmp_path_factory.mktemp("crashed"))


def named(crashed: Crashes, name: str) -> Crash:
    [case] = crashes.named(name)
    return crashed[case]


@pytest.fixture
def recursion(crashed: Crashes) -> Crash:
    return named(crashed, "recursion")


@pytest.fixture
def threads(crashed: Crashes) -> Crash:
    return named(crashed, "threads")


def printed(crash: Crash, *options: str, **environment: str) -> str:
    ran = python(*COMMAND, str(crash.core), *crash.options, *options, **environment)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def document(crash: Crash, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(crash, "--json", *options))
    validate(found)
    return found


def frames_of(text: str) -> list[list[tuple[int, str]]]:
    """The frames of each thread: pc and the rest of the line."""
    stacks = text.split("thread ")[1:]
    return [[(int(pc, 16), rest) for _, pc, rest in FRAME.findall(stack)] for stack in stacks]


@pytest.mark.parametrize(
    "name",
    ["recursion", "threads", "noexcept", "handler-on-altstack", "gcore", "vla-alloca-realigned"],
)
def test_text_and_json_show_the_same_frames(crashed: Crashes, name: str) -> None:
    """The text takes the fast walk where it can, the JSON always the exact one."""
    crash = named(crashed, name)
    text = [[pc for pc, _ in stack] for stack in frames_of(printed(crash))]
    assert text == [
        [int(frame["pc"], 16) for frame in thread["frames"]]
        for thread in document(crash)["threads"]
    ]


def test_the_header_tells_program_pid_and_signal(recursion: Crash) -> None:
    lines = printed(recursion).splitlines()
    tid = next(iter(recursion.stacks))
    assert re.match(rf"program: \S*{recursion.executable.name}\b.* \(pid {tid}\)$", lines[0])
    assert re.match(
        r"signal:  SIGSEGV \(11\), address 0x[0-9a-f]+ \(address not mapped\)$", lines[1]
    )
    assert f"thread {tid}" in lines[3]
    assert "(crashed)" in lines[3]


def test_quiet_leaves_the_header_out(recursion: Crash) -> None:
    assert printed(recursion, "-q").startswith("thread ")


def test_the_crashed_thread_comes_first(threads: Crash) -> None:
    said = re.findall(r"^thread (\d+).*?( \(crashed\))?:$", printed(threads), re.M)
    assert [bool(crashed) for _, crashed in said] == [True] + [False] * (len(threads.stacks) - 1)
    assert {int(tid) for tid, _ in said} == set(threads.stacks)


def test_one_thread_can_be_chosen(threads: Crash) -> None:
    tid = max(threads.stacks)
    chosen = document(threads, "--thread", str(tid))
    assert [thread["tid"] for thread in chosen["threads"]] == [tid]


def test_a_thread_that_is_not_there_is_an_error_that_names_some_that_are(recursion: Crash) -> None:
    ran = python(*COMMAND, str(recursion.core), "--thread", "1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert str(next(iter(recursion.stacks))) in ran.stderr


def test_max_frames_cuts_and_says_so(recursion: Crash) -> None:
    for options in (("-n", "7"), ("--max-frames", "7")):
        text = printed(recursion, *options)
        assert len(FRAME.findall(text)) == 7
        assert "stack ends here: limit" in text
    [thread] = document(recursion, "-n", "7")["threads"]
    assert (len(thread["frames"]), thread["end"]["reason"]) == (7, "limit")


def test_a_stack_overflow_is_shown_by_its_two_ends_and_whole_as_json(crashed: Crashes) -> None:
    crash = named(crashed, "stack-overflow")
    text = printed(crash)
    numbers = [int(number) for number, _, _ in FRAME.findall(text)]
    [stack] = crash.stacks.values()
    count = len(stack.frames)
    assert numbers == [*range(1024), *range(count - 16, count)]
    assert f"... {count - 1040} frames left out ..." in text
    assert len(document(crash)["threads"][0]["frames"]) == count
    assert len(FRAME.findall(printed(crash, "-n", "5000"))) == 5000


def test_strict_is_about_the_stacks_that_are_printed(crashed: Crashes) -> None:
    whole, cut = named(crashed, "recursion"), named(crashed, "cut-in-half")
    for format in ((), ("--json",)):
        assert python(*COMMAND, str(whole.core), "--strict", *format).returncode == 0
        assert python(*COMMAND, str(whole.core), "--strict", "-n", "3", *format).returncode == 1
        assert python(*COMMAND, str(cut.core), "--strict", *format).returncode == 1
        assert python(*COMMAND, str(cut.core), *format).returncode == 0


def test_registers_are_those_of_each_frame(recursion: Crash) -> None:
    text = printed(recursion, "--registers", "-n", "2")
    pcs = [int(pc, 16) for pc in re.findall(r"\brip (0x[0-9a-f]+)", text)]
    assert pcs == [pc for pc, _ in frames_of(text)[0]]
    frames = document(recursion, "-r")["threads"][0]["frames"]
    assert all(frame["registers"]["rip"] == frame["pc"] for frame in frames)
    assert all(frame["registers"]["rsp"] == frame["sp"] for frame in frames)
    assert "rax" in frames[0]["registers"]
    assert "rax" not in frames[1]["registers"]


def test_modules_are_listed_with_their_build_ids(recursion: Crash) -> None:
    text = printed(recursion, "-m")
    for module in document(recursion)["modules"]:
        assert module["name"] in text
        assert module["build_id"] in text
        assert module["state"] in text


def test_explain_shows_the_row_and_what_it_read(recursion: Crash) -> None:
    text = printed(recursion, "--explain", "-n", "2")
    for fact in (
        "module   ",
        "row      cfi: eh_frame FDE at 0x",
        "CFA    = rsp + ",
        "= [CFA - 8] =",
    ):
        assert fact in text
    explain = document(recursion, "--explain")["threads"][0]["frames"][1]["explain"]
    by_name = {rule["register"]: rule for rule in explain["rules"]}
    callers = document(recursion)["threads"][0]["frames"][2]
    assert by_name["rip"]["value"] == callers["pc"]
    assert by_name["CFA"]["value"] == callers["sp"]


def test_explain_tells_what_was_refused_first(crashed: Crashes) -> None:
    crash = named(crashed, "null-pointer")
    text = printed(crash, "--explain", "-n", "1")
    assert "refused  cfi: " in text
    assert "row      link_register: " in text


def test_a_scan_finds_the_same_frames_where_nothing_else_may_answer(crashed: Crashes) -> None:
    """Stale return addresses lie on the stack as well: the plausible ones are the right ones."""
    crash = named(crashed, "frame-pointers")
    [expected] = frames_of(printed(crash))
    [found] = frames_of(printed(crash, "--methods", "cfi,trampoline,scan"))
    assert [pc for pc, _ in found] == [pc for pc, _ in expected]
    assert sum("[scan]" in rest for _, rest in found) > 20
    without = printed(crash, "--methods", "cfi,trampoline")
    assert "stack ends here" in without
    assert "stack ends here" not in printed(crash, "--methods", "cfi,trampoline", "--scan")


def test_cross_check_sets_the_sources_side_by_side(recursion: Crash) -> None:
    text = printed(recursion, "--cross-check", "-n", "6")
    assert len(re.findall(r"^ +cfi +CFA 0x[0-9a-f]+, caller 0x[0-9a-f]+$", text, re.M)) == 6
    assert (
        len(re.findall(r"^ +emulation +CFA 0x[0-9a-f]+, caller 0x[0-9a-f]+, agrees$", text, re.M))
        == 6
    )
    frames = document(recursion, "--cross-check")["threads"][0]["frames"]
    for frame in frames[:-1]:
        said = {found["source"]: found for found in frame["explain"]["cross_check"]}
        assert said["cfi"]["pc"] == said["emulation"]["pc"] or "pc" not in said["emulation"]
    agreeing = [f["explain"]["cross_check"][0]["agrees"] for f in frames[:-1]]
    assert all(agreeing)


def test_no_fallback_refuses_to_guess(crashed: Crashes) -> None:
    crash = named(crashed, "frame-pointers")
    assert "[emulation]" in printed(crash)
    without = printed(crash, "--no-fallback")
    assert "[" not in without
    assert "stack ends here: no-row" in without


WITHOUT_CAPSTONE = """
import sys
sys.modules["capstone"] = None  # its import fails as where it is not installed
from unwind.cli.core import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_capstone_the_end_says_so(crashed: Crashes) -> None:
    crash = named(crashed, "neither-shapes")
    text = python("-c", WITHOUT_CAPSTONE, str(crash.core)).stdout
    assert "stack ends here: no-row" in text
    assert "the analysis of code needs the Python package 'capstone'" in text


def test_capstone_is_loaded_when_a_frame_needs_it(crashed: Crashes) -> None:
    code = """
import sys
from unwind.cli.core import main
main(sys.argv[1:])
with open("/proc/self/maps") as maps:
    print("libcapstone" in maps.read())
"""
    for name, loaded in (("recursion", False), ("neither-shapes", True)):
        ran = python("-c", code, str(named(crashed, name).core), "--strict")
        assert ran.stdout.splitlines()[-1] == str(loaded), (name, ran.stderr)


def test_methods_choose_and_order_the_sources_of_rows(crashed: Crashes) -> None:
    crash = named(crashed, "frame-pointers")
    by_chain = printed(crash, "--methods", "cfi,frame_pointer")
    assert "[frame_pointer]" in by_chain
    assert "[emulation]" not in by_chain
    assert frames_of(by_chain) != []
    ran = python(*COMMAND, str(crash.core), "--methods", "cfi,magic")
    assert ran.returncode == 2
    assert "emulation" in ran.stderr, "it names those that there are"


def test_an_executable_of_another_build_is_not_used(recursion: Crash, crashed: Crashes) -> None:
    other = named(crashed, "no-pie").executable
    ran = python(*COMMAND, str(recursion.core), "--json", "-e", str(other))
    modules = {m["name"]: m for m in json.loads(ran.stdout)["modules"]}
    assert modules[str(recursion.executable)]["state"] == "mismatch"
    assert "build-id" in ran.stderr


def test_paths_with_spaces_and_equals_signs_work_everywhere(
    recursion: Crash, tmp_path: Path
) -> None:
    odd = tmp_path / "a dir" / "x = y"
    odd.mkdir(parents=True)
    core = Path(shutil.copy(recursion.core, odd / "my core"))
    program = Path(shutil.copy(recursion.executable, odd / "my program"))
    moved = f"{recursion.executable}={program}"
    ran = python(*COMMAND, str(core), "--json", "--module", moved)
    files = {m["name"]: m["file"] for m in json.loads(ran.stdout)["modules"]}
    assert files[str(recursion.executable)] == str(program)


@pytest.mark.parametrize("option", ["--module=nothing", "--module==new", "-n=0", "-n=x"])
def test_options_that_make_no_sense_are_refused(option: str) -> None:
    ran = python(*COMMAND, "core", option)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "error: argument" in ran.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "empty"),
        (b"#!/bin/sh\n", "not a core"),
        (b"\x7fELF", ""),
    ],
    ids=["missing", "empty", "a script", "four bytes"],
)
def test_what_is_no_core_gives_one_line_and_exit_code_2(
    content: bytes | None, said: str, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    if content is not None:
        core.write_bytes(content)
    ran = python(*COMMAND, str(core))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("unwind-core: ")
    assert said.lower() in ran.stderr.lower()


def test_a_program_instead_of_a_core_gets_a_hint(recursion: Crash) -> None:
    ran = python(*COMMAND, str(recursion.executable))
    assert ran.returncode == 2
    assert "not a core" in ran.stderr
    assert "-e" in ran.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    ran = python(*COMMAND, "--debug", str(tmp_path / "none"))
    assert "Traceback" in ran.stderr


@pytest.mark.parametrize("name", ["core.gz", "-"])
def test_a_core_may_be_compressed_or_come_through_a_pipe(
    recursion: Crash, tmp_path: Path, name: str
) -> None:
    packed = gzip.compress(recursion.core.read_bytes(), 1)
    if name == "-":
        ran = subprocess.run(
            [sys.executable, *COMMAND, "-"],
            input=packed,
            capture_output=True,
            cwd=ROOT,
        )
        text = ran.stdout.decode()
    else:
        (tmp_path / name).write_bytes(packed)
        text = python(*COMMAND, str(tmp_path / name)).stdout
    assert frames_of(text) == frames_of(printed(recursion))


def test_a_closed_pipe_ends_the_command_silently(crashed: Crashes) -> None:
    crash = named(crashed, "stack-overflow")
    words = [sys.executable, *COMMAND, str(crash.core), "-n", "90000"]
    command = f"{shlex.join(words)} | head -n 1"
    ran = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.startswith("program:")
    assert ran.stderr == ""


def test_control_c_ends_it_with_130_and_no_traceback(recursion: Crash) -> None:
    with subprocess.Popen(
        [sys.executable, *COMMAND, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=False,
    ) as running:
        assert running.stdin is not None
        running.stdin.write(recursion.core.read_bytes()[:4096])
        running.stdin.flush()
        # It waits for the rest of the core now.
        while "pipe_read" not in Path(f"/proc/{running.pid}/wchan").read_text() and (
            Path(f"/proc/{running.pid}/syscall").read_text().split()[0] != "0"
        ):
            pass
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == 130
    assert errors == b""


def test_colour_is_for_terminals_only(recursion: Crash) -> None:
    assert "\x1b" not in printed(recursion)
    assert "\x1b[" in on_terminal(recursion)
    assert "\x1b[" not in on_terminal(recursion, NO_COLOR="1")


def on_terminal(crash: Crash, **environment: str) -> str:
    """What the command prints when its standard output is a terminal."""
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        with subprocess.Popen(
            [sys.executable, *COMMAND, str(crash.core), "-n", "3"],
            stdout=its,
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"} | environment,
        ) as running:
            os.close(its)
            text = b""
            try:
                while part := screen.read(65536):
                    text += part
            except OSError:  # EIO: the other side is closed
                pass
        assert running.returncode == 0
    return text.decode()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_are_escaped_in_every_locale(recursion: Crash, tmp_path: Path, locale: str) -> None:
    """The recorded path of the program becomes a terminal's nightmare of the same length."""
    core = bytearray(recursion.core.read_bytes())
    name = os.fsencode(recursion.executable)
    odd = b"/\x1b[31m\n\xff\xc3\xa9".ljust(len(name), b"x")
    core[:] = core.replace(name, odd)
    (tmp_path / "core").write_bytes(core)
    environment = {"LC_ALL": locale, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = python(
        *COMMAND, str(tmp_path / "core"), "-m", "-e", str(recursion.executable), **environment
    )
    assert ran.returncode == 0
    assert "\x1b" not in ran.stdout
    assert "/\\x1b[31m\\x0a\\xff" in ran.stdout
    ran = python(*COMMAND, str(tmp_path / "core"), "--json", **environment)
    [module] = [m for m in json.loads(ran.stdout)["modules"] if "[31m" in m["name"]]
    assert module["name"].startswith("/\x1b[31m\n\\xffé")


def test_version_is_the_packages_own() -> None:
    from unwind.version import VERSION

    assert python(*COMMAND, "--version").stdout == f"unwind {VERSION}\n"
    assert python(*COMMAND, "--version", "core").stdout == f"unwind {VERSION}\n"


def test_help_has_groups_and_three_examples() -> None:
    text = python(*COMMAND, "--help").stdout
    for group in ("what to print:", "where the modules' files are:", "how to unwind:"):
        assert group in text
    assert text.partition("examples:")[2].count("unwind-core ") == 3
