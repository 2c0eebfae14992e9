"""unwind-cfi as a person and a script meet it: what it prints, its exit codes and manners."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import ROOT, need, python, run
from tests.test_cfi_tables import object_with
from unwind.cli.cfi import main, parser
from unwind.elf import EM
from unwind.testing.assembler import (
    CIE,
    FDE,
    RBX,
    Section,
    Target,
    advance_loc,
    breg,
    code,
    def_cfa_expression,
    def_cfa_offset,
    negate_ra_state,
    offset,
    restore_state,
)
from unwind.version import VERSION

COMMAND = ("-m", "unwind.cli.cfi")
SOURCE = """
int leaf(int n) { return n + 1; }
int outer(int n) { volatile int kept[9]; kept[n] = leaf(n); return kept[n]; }
int main(int argc, char **argv) { return outer(argc); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with .eh_frame, .debug_frame and symbols, in a directory with a space."""
    need("gcc", "readelf")
    directory = tmp_path_factory.mktemp("a program")
    (directory / "small.c").write_text(SOURCE)
    flags = "-g -O1 -fno-inline -fno-omit-frame-pointer"
    done = run("gcc", *flags.split(), "small.c", "-c", "-o", "small.o", cwd=directory)
    assert done.returncode == 0, done.stderr
    done = run("gcc", "small.o", "-o", "small", cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory / "small"


def printed(*arguments: str | Path) -> str:
    done = python(*COMMAND, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(*arguments: str | Path) -> str:
    """The one line on standard error of a command that could not."""
    done = python(*COMMAND, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def readelf(path: Path, layout: str) -> str:
    """What readelf prints of the frames; since binutils 2.44 it begins with .eh_frame_hdr."""
    printed = run("readelf", "--debug-dump=no-follow-links", f"--debug-dump={layout}", path).stdout
    before, header, after = printed.partition("Contents of the .eh_frame_hdr section:")
    return before + after[after.index("Contents of the") :] if header else printed


def address_of(program: Path, name: str) -> int:
    lines = run("readelf", "-sW", program).stdout.split("\n")
    return next(int(line.split()[1], 16) for line in lines if line.endswith(f" {name}"))


# What it prints.


@pytest.mark.parametrize(("options", "layout"), [([], "frames-interp"), (["--raw"], "frames")])
def test_whole_files_are_printed_as_readelf_prints_them(
    options: list[str], layout: str, program: Path
) -> None:
    assert printed(*options, program) == readelf(program, layout)
    assert printed(*options, program.with_suffix(".o")) == readelf(
        program.with_suffix(".o"), layout
    )


def test_one_place_is_told_with_its_origin_and_formulas(program: Path) -> None:
    vaddr = address_of(program, "outer") + 4
    first, origin, row, *rules = printed("--address", hex(vaddr), program).split("\n")
    assert first == f"{vaddr:#x} in outer+0x4"
    assert origin.startswith(".eh_frame: FDE at 0x")
    assert f"for {vaddr - 4:#x}..0x" in origin
    assert ", CIE at 0x" in origin
    assert row.startswith(f"row for {vaddr:#x}..0x")
    assert rules == ["  CFA = rbp + 16", "  rbp = [CFA - 16]", "  rip = [CFA - 8]", ""]


@pytest.mark.parametrize("write", [hex, str, "{:x}".format, "0X{:X}".format])
def test_an_address_may_be_written_in_any_way(write: object, tmp_path: Path) -> None:
    path = object_with(tmp_path, Section(FDE(0xABCDE, 16), vaddr=0))
    assert callable(write)
    text = write(0xABCDE)
    assert printed("--address", text, path).startswith("0xabcde\n")


def test_one_place_as_json_and_as_instructions(program: Path) -> None:
    vaddr = address_of(program, "leaf")
    (line,) = printed("--json", "--address", hex(vaddr), program).splitlines()
    row = json.loads(line)
    assert int(row["start"], 16) <= vaddr < int(row["end"], 16)
    assert (row["cfa"], row["rules"]) == ("rsp+8", {"rip": "c-8"})
    raw = printed("--raw", "--address", hex(vaddr), program)
    assert raw.count(" CIE\n") == raw.count(" FDE ") == 1
    assert f"pc={vaddr:016x}.." in raw


def test_json_has_a_line_for_each_row(program: Path) -> None:
    rows = [json.loads(line) for line in printed("--json", program).splitlines()]
    assert {row["section"] for row in rows} == {"eh_frame"}
    by_fde: dict[int, list[dict[str, str]]] = {}
    for row in rows:
        by_fde.setdefault(row["fde"], []).append(row)
    for table in by_fde.values():
        assert all(one["end"] == two["start"] for one, two in pairwise(table))


def test_a_signal_frame_and_a_signed_address_are_said(tmp_path: Path) -> None:
    cie = CIE(augmentation="zRS", program=[negate_ra_state()])
    path = object_with(tmp_path, Section(FDE(0x5000, 16, cie=cie), vaddr=0), EM.AARCH64)
    text = printed("--address", "0x5000", path)
    assert ", signal frame\n" in text
    assert "row for 0x5000..0x5010, return address signed:\n" in text


def test_a_cfa_by_expression_is_said_in_words(tmp_path: Path) -> None:
    program = [def_cfa_expression(code(breg(7, 16)))]
    path = object_with(tmp_path, Section(FDE(0x5000, 16, program), vaddr=0))
    assert "  CFA = breg7(" in printed("--address", "0x5000", path)


def test_one_section_may_be_asked_for(program: Path) -> None:
    need("objcopy")
    both = program.with_name("both")
    (program.with_name("empty.c")).write_text("int lonely(void) { return 0; }\n")
    flags = "-g -fno-asynchronous-unwind-tables -c empty.c -o empty.o"
    assert run("gcc", *flags.split(), cwd=program.parent).returncode == 0
    done = run("gcc", "small.o", "empty.o", "-o", both.name, cwd=program.parent)
    assert done.returncode == 0
    whole = printed(both)
    assert whole == readelf(both, "frames-interp")
    eh, debug = printed("--section", "eh_frame", both), printed("--section", "debug_frame", both)
    assert eh + debug == whole
    assert debug.startswith("Contents of the .debug_frame section:\n")
    lonely = address_of(both, "lonely")
    assert ".debug_frame: FDE" in printed("--address", hex(lonely), both)


@pytest.mark.parametrize("compress", ["zlib", "zlib-gnu"])
def test_a_compressed_section_is_read(compress: str, tmp_path: Path) -> None:
    need("gcc", "readelf")
    path = tmp_path / "packed.o"
    flags = f"-g -fno-asynchronous-unwind-tables -Wa,--compress-debug-sections={compress}"
    functions = [f"int f{n}(void) {{ return 0; }}\n" for n in range(99)]
    (tmp_path / "one.c").write_text("".join(functions))
    assert run("gcc", *flags.split(), "-c", "one.c", "-o", path, cwd=tmp_path).returncode == 0
    expected = readelf(path, "frames-interp").replace(".zdebug_frame", ".debug_frame")
    assert expected.count(" FDE ") == 99
    assert printed("--section", "debug_frame", path) == expected


def test_a_separate_debug_file_is_read_alone(program: Path, tmp_path: Path) -> None:
    debug = tmp_path / "small.debug"
    assert run("objcopy", "--only-keep-debug", program, debug).returncode == 0
    assert "it has no CFI" in refused(debug)


def test_registers_of_an_unknown_machine_have_numbers(tmp_path: Path) -> None:
    section = Section(FDE(0x5000, 16, [offset(RBX, 2)]), target=Target("big", 4), vaddr=0)
    path = object_with(tmp_path, section, machine=21)
    text = printed(path)
    assert "r7+8     c-16  c-8" in text
    assert "   LOC   CFA      r3    ra    \n" in text


# What it refuses.


def test_files_that_are_no_elf_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    assert "no ELF file" in refused(tmp_path / "text")
    assert "an empty file" in refused(tmp_path / "empty")
    assert "no regular file" in refused(tmp_path / "pipe")
    assert "Is a directory" in refused(tmp_path)
    assert "No such file" in refused(tmp_path / "missing")


def test_control_bytes_in_a_name_are_escaped(tmp_path: Path) -> None:
    assert r"\x1b[31m" in refused(tmp_path / "\x1b[31m")


def test_a_file_without_cfi_says_so(program: Path, tmp_path: Path) -> None:
    stripped = tmp_path / "bare"
    flags = ("-R", ".eh_frame", "-R", ".debug_frame", "-R", ".eh_frame_hdr")
    assert run("objcopy", *flags, program.with_suffix(".o"), stripped).returncode == 0
    assert "it has no CFI, neither .eh_frame nor .debug_frame" in refused(stripped)
    assert "it has no .debug_frame" in refused("--section", "debug_frame", program)


def test_a_core_is_left_to_unwind_core(tmp_path: Path) -> None:
    path = object_with(tmp_path, Section(vaddr=0))
    data = bytearray(path.read_bytes())
    data[16] = 4
    data[40:48] = bytes(8)
    path.write_bytes(data)
    assert "unwind-core reads cores" in refused(path)


def test_an_address_that_no_fde_covers_is_said(program: Path) -> None:
    assert "no FDE covers 0x1 " in refused("--address", "1", program)


@pytest.mark.parametrize(
    "arguments", [["--address", "x", "f"], ["--address", "-1", "f"], ["--raw", "--json", "f"], []]
)
def test_wrong_arguments_are_told(arguments: list[str]) -> None:
    done = python(*COMMAND, *arguments)
    assert done.returncode == 2
    assert "usage: unwind-cfi" in done.stderr


def test_what_is_broken_is_warned_of_and_the_rest_printed(tmp_path: Path) -> None:
    section = Section(FDE(0x5000, 16, [advance_loc(4), restore_state()]), vaddr=0)
    section.add(FDE(0x6000, 16, [def_cfa_offset(16)]))
    done = python(*COMMAND, object_with(tmp_path, section))
    assert done.returncode == 0
    assert "0000000000006000 rsp+16" in done.stdout
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("unwind-cfi: warning: ")
    assert ".eh_frame at offset 0x18: DW_CFA_restore_state without" in warning


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = python(*COMMAND, "--debug", tmp_path / "missing")
    assert "Traceback" in done.stderr


# Its manners.


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unwind {VERSION}\n"


def test_help_names_every_option() -> None:
    text = parser().format_help()
    for option in ("--address", "--section", "--raw", "--json", "--debug", "--version"):
        assert option in text


def test_a_closed_pipe_ends_it_silently() -> None:
    program = os.path.realpath("/proc/self/exe")
    command = [sys.executable, *COMMAND, program]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_an_interrupt_ends_it_with_130() -> None:
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.rpartition(" ")[2] for line in lines if line.endswith(".so.6")}
    program = max(mapped, key=os.path.getsize)  # whose tables are more than a pipe holds
    with subprocess.Popen(
        [sys.executable, *COMMAND, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()  # it runs, and the pipe fills
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait() == 130
