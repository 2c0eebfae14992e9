"""The corpus: one seed makes one corpus, what it says is true, and checks judge by it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, need, python
from unwind.cli.corpus import main
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.files import Files
from unwind.frames import End
from unwind.image import Image
from unwind.testing.corpus_check import frames_of, judge
from unwind.testing.corpus_format import Expected
from unwind.testing.corpus_make import TOOLS
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder
from unwind.writers.cfi_tables import json_row

COUNT = 14


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need(*(tools.prefix + name for tools in TOOLS.values() for name in ("as", "ld")))
    where = tmp_path_factory.mktemp("corpus") / "made"
    assert main(["make", str(where), "--seed", "7", "--count", str(COUNT)]) == 0
    return where


def documents(corpus: Path) -> list[tuple[Path, dict[str, Any]]]:
    names = json.loads((corpus / "corpus.json").read_text())["cases"]
    assert len(names) == COUNT * len(TOOLS)
    return [
        (corpus / name, json.loads((corpus / name / "case.json").read_text())) for name in names
    ]


def files(tree: Path) -> dict[str, bytes]:
    paths = [path for path in tree.rglob("*") if path.is_file()]
    return {str(path.relative_to(tree)): path.read_bytes() for path in paths}


def test_a_seed_makes_the_same_bytes_each_time(corpus: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "again"
    done = python(
        *("-m", "unwind.cli.corpus", "make", again, "--seed", "7", "--count", str(COUNT)),
        cwd=tmp_path,
        PYTHONHASHSEED="1",
        LC_ALL="C",
    )
    assert done.returncode == 0, done.stderr
    assert files(corpus) == files(again)
    other = tmp_path / "other"
    assert main(["make", str(other), "--seed", "8", "--count", "2", "--arch", "x86_64"]) == 0
    name = "x86_64-0001/case.json"
    assert files(other)[name] != files(corpus)[name]


def test_our_frames_and_registers_are_those_that_are_true(corpus: Path) -> None:
    found = 0
    for where, truth in documents(corpus):
        with (
            Files(executable=str(where / "exe")) as opened,
            TRANSPORT.open(str(where / "core"), opened) as source,
        ):
            [snapshot] = source.snapshots()
            stack = Unwinder(source.arch).unwind(snapshot)
            number = source.arch.register_number
            frames = truth["frames"]
            assert [f"{f.pc:#x}" for f in stack.frames] == [f["pc"] for f in frames], where
            assert stack.end == End.OUTERMOST == truth["end"]
            for frame, wanted in zip(stack.frames, frames, strict=True):
                assert (f"{frame.cfa:#x}", frame.signal) == (wanted["cfa"], wanted["signal"])
                values = {number(name): int(v, 16) for name, v in wanted["registers"].items()}
                assert len(values) > 1
                assert {n: frame.registers.get(n) for n in values} == values
                found += 1
    assert found > 3 * COUNT * len(TOOLS)
    biases = [truth["bias"] for _, truth in documents(corpus)]
    assert 0 < sum(bias != "0x0" for bias in biases) < len(biases) // 2


def test_the_assembled_rows_are_those_that_are_true(corpus: Path) -> None:
    for where, truth in documents(corpus):
        image = Image(Elf((where / "exe").read_bytes(), "exe"))
        with Files() as opened, TRANSPORT.open(str(where / "core"), opened) as source:
            arch = source.arch
        assert [f".{s.kind}" for s in image.frame_sections] == truth["cfi"]
        for section in image.frame_sections:
            made = {entry.start: entry for entry in section.entries() if isinstance(entry, Fde)}
            assert sorted(made) == [int(f["start"], 16) for f in truth["functions"]]
            for function in truth["functions"]:
                table = rows(made[int(function["start"], 16)], arch.vendor_opcodes)
                found = [json.loads(json_row(row, arch.register_name)) for row in table]
                for row in found:
                    del row["section"], row["fde"], row["cie"]
                assert found == function["rows"]


def test_gdb_agrees(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("gdb")
    command = "gdb -nx -batch -ex bt {exe} {core}"
    code = main(["check", str(corpus), "--command", command, "--arch", "x86_64", "--strict"])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert shown.split("\n")[1].split()[:3] == ["x86_64", str(COUNT), str(COUNT)]


@pytest.mark.parametrize("layout", ["", " --json"])
def test_our_own_output_is_understood(layout: str, corpus: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m unwind.cli.core {{core}} -e {{exe}}{layout}"
    assert main(["check", str(corpus), "--command", command, "--arch", "arm64", "--strict"]) == 0


COMMANDS = {
    "sh -c 'echo \"#0 0x1\"'": "wrong",
    "sh -c 'kill -SEGV $$'": "crashed",
    "sh -c 'sh -c \"kill -ABRT \\$\\$\"; exit $?'": "crashed",
    "false": "crashed",
    "true": "short",
    "sleep 100": "timed out",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_judged(
    command: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert main(["make", str(small), "--count", "1", "--arch", "x86_64"]) == 0
    capsys.readouterr()
    options = ["--json", "--timeout", "0.5", "--strict"]
    assert main(["check", str(small), "--command", command, *options]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "unwind-corpus-check/1"
    [result] = document["results"]
    assert (result["case"], result["verdict"]) == ("x86_64-0000", COMMANDS[command])


GDB = """\
[New LWP 1000]
#0  0x0000000000410014 in f3 ()
#0  0x0000000000410014 in f3 ()
#1  <signal handler called>
#2  0x000000000040ffee in f1 (n=0x1234) at f.c:7
#3  main () at f.c:8
"""
EU_STACK = """\
PID 1000 - core
TID 1000:
#0  0x0000000000410014 f3
#1  0x000000000040ffee - 1 f1
TID 1001:
#0  0x0000000000410014 f3
"""
LLDB = """\
* thread #1, stop reason = signal SIGSEGV
  * frame #0: 0x0000000000410014 exe`f3 + 4
    frame #1: 0x000000000040ffee exe`f1 + 9
"""
OURS = """\
thread 1000 "exe" (crashed):
#0  0x0000000000410014 f3+0xf (exe)
#1  0x000000000040ffee f1+0x9 (exe)

thread 1001 "exe":
#0  0x0000000000410014 f3+0xf (exe)
"""


@pytest.mark.parametrize(
    ("text", "pcs"),
    [
        (GDB, [0x410014, None, 0x40FFEE, None]),
        (EU_STACK, [0x410014, 0x40FFEE]),
        (LLDB, [0x410014, 0x40FFEE]),
        (OURS, [0x410014, 0x40FFEE]),
        ("#0 00410014 f3\n#1 0040ffee f1\n", [0x410014, 0x40FFEE]),
        ("#1  0x410014 in f\n", []),
        ('{"threads": [{"frames": [{"pc": "0x410014"}]}]}', [0x410014]),
        ('{"threads": []}', []),
        ("{", []),
        ("", []),
    ],
)
def test_frames_are_read(text: str, pcs: list[int | None]) -> None:
    assert list(frames_of(text)) == pcs


FRAMES = [Expected(0x10, False), Expected(0x20, True), Expected(0x30, False)]


@pytest.mark.parametrize(
    ("found", "status", "verdict"),
    [
        ([0x10, 0x20, 0x30], 0, "right"),
        ([0x10, None, 0x30], 0, "right"),
        ([0x10, 0x20, None], 0, "wrong"),
        ([0x10, 0x20], 1, "short"),
        ([], 0, "short"),
        ([], 1, "crashed"),
        ([0x10, 0x20, 0x30, 0x40], 0, "wrong"),
        ([0x10, 0x21, 0x30], 0, "wrong"),
        ([0x10, 0x20, 0x30], -11, "crashed"),
        ([0x10, 0x20, 0x30], 139, "crashed"),
        ([0x10, 0x20, 0x30], None, "timed out"),
    ],
)
def test_a_stack_is_judged(found: list[int | None], status: int | None, verdict: str) -> None:
    assert judge(found, FRAMES, status)[0] == verdict


def test_a_directory_with_something_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("")
    assert main(["make", str(tmp_path), "--arch", "x86_64"]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "not of the format"),
        ('{"format": "unwind-corpus/1"}', "no list of cases"),
        ('{"format": "unwind-corpus/1", "cases": ["../x"]}', "no list of cases"),
        ('{"format": "unwind-corpus/1", "cases": ["gone"]}', "No such file"),
        ('{"format": "unwind-corpus/1", "cases": []}', "no case to check"),
        ('{"format": "unwind-corpus/2", "cases": []}', "not of the format"),
    ],
)
def test_what_is_no_corpus_is_refused(
    index: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.json").write_text(index)
    assert main(["check", str(tmp_path), "--command", "true"]) == 2
    assert complaint in capsys.readouterr().err


def test_a_case_whose_files_lie_elsewhere_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.json").write_text('{"format": "unwind-corpus/1", "cases": ["a"]}')
    (tmp_path / "a").mkdir()
    case = {"format": "unwind-corpus/1", "arch": "x86_64", "frames": []}
    (tmp_path / "a/case.json").write_text(json.dumps({**case, "exe": "/bin/sh", "core": "core"}))
    assert main(["check", str(tmp_path), "--command", "true"]) == 2
    assert "its files lie elsewhere" in capsys.readouterr().err


def test_a_command_that_is_not_there_is_said(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(corpus), "--command", "no-such-unwinder {core}"]) == 2
    assert "no-such-unwinder" in capsys.readouterr().err


def keys(value: object) -> set[str]:
    """The keys of our own in a document: none that are names of registers."""
    if isinstance(value, list):
        return set().union(*map(keys, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    inner = [keys(each) for key, each in value.items() if key not in ("registers", "rules")]
    return set(value).union(*inner)


def test_the_page_names_every_key(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/corpus.md").read_text()
    found = {key for _, document in documents(corpus) for key in keys(document)}
    command = ["check", str(corpus), "--arch", "x86_64", "--command", "true", "--json"]
    assert main(command) == 0
    found |= keys(json.loads(capsys.readouterr().out))
    assert "ra_signed" in found
    assert {key for key in found if f"`{key}`" not in page} == set()


def test_a_corpus_needs_no_hypothesis(tmp_path: Path) -> None:
    code = "import sys; sys.modules['hypothesis'] = None; from unwind.cli.corpus import main"
    make = f"main(['make', {str(tmp_path / 'made')!r}, '--count', '1', '--arch', 'x86_64'])"
    check = f"main(['check', {str(tmp_path / 'made')!r}, '--command', 'true'])"
    done = python("-c", f"{code}; assert {make} == {check} == 0")
    assert done.returncode == 0, done.stderr
