"""Man pages and completion are those of the parsers, and man, bash and zsh accept them."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import pytest

from tests.support import ROOT, git_files, need, run
from tools import make_docs


def sample() -> argparse.ArgumentParser:
    """A parser with all that a command's may have."""
    parser = argparse.ArgumentParser(
        prog="unwind-sample",
        description="Says what's in a core.\n\nWith --strict it says less: `a\\b`.\n\n.dot first",
        epilog="examples:\n  unwind-sample core\n\n  unwind-sample --at 0x10 core | head\n\n"
        "exit status:\n  0  all is well\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("core", metavar="CORE", help="the core, or - for standard input")
    where = parser.add_argument_group("where files are", "Read in this order.")
    where.add_argument("-e", "--executable", metavar="EXE", help="the program [its own: 'x']")
    where.add_argument("--debug-dir", metavar="DIR", action="append", help="repeatable, 100 %%")
    where.add_argument("--module", metavar="OLD=NEW", help="read NEW for OLD")
    how = parser.add_argument_group("output")
    how.add_argument("--color", choices=["always", "never"], default="never", help="%(default)s")
    how.add_argument("-n", "--max-frames", metavar="N", type=int, help="stop after N frames")
    how.add_argument("--strict", action="store_true", help="exit 1 when cut short")
    how.add_argument("--secret", help=argparse.SUPPRESS)
    return parser


def tree() -> argparse.ArgumentParser:
    """A parser with subcommands."""
    parser = argparse.ArgumentParser(prog="unwind-tree", description="Two in one.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    make = commands.add_parser("make", description="Makes a tree.")
    make.add_argument("dir", metavar="DIR")
    make.add_argument("--seed", metavar="N", help="where chance begins")
    check = commands.add_parser("check", description="Checks a tree.")
    check.add_argument("--arch", choices=["x86_64", "arm64"], help="only this one")
    return parser


def completed(script: str, words: list[str], tmp_path: Path) -> list[str]:
    """What bash offers for the last of `words`."""
    need("bash")
    name = words[0].replace("-", "_")
    (tmp_path / "completion").write_text(script)
    asked = f'compopt() {{ :; }}; . ./completion; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _{name}'
    done = run(
        "bash", "-c", asked + r'; printf "%s\n" "${COMPREPLY[@]}"', "-", *words, cwd=tmp_path
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("name", make_docs.commands())
def test_help_has_groups_and_two_examples(name: str) -> None:
    parser = importlib.import_module(make_docs.commands()[name]).parser()
    assert parser.prog == name
    page = make_docs.page_of(parser)
    assert page.summary
    pages = page.subcommands or (page,)
    assert all(len(each.groups) >= (2 if page.subcommands else 3) for each in pages)
    assert all(argument.help for each in (page, *pages) for argument in each.arguments())
    examples = dict(page.sections)["examples"]
    assert sum(line.startswith(name) for line in examples.split("\n")) >= 2


def test_the_committed_files_are_those_of_the_parsers() -> None:
    documents = make_docs.documents()
    stale = [path for path, text in documents.items() if _text(ROOT / path) != text]
    assert stale == [], "run `make docs`"
    assert git_files("share") == sorted(documents)


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


@pytest.mark.parametrize("parser", [sample, tree])
def test_the_formats_are_accepted_by_their_readers(
    parser: type[argparse.ArgumentParser], tmp_path: Path
) -> None:
    page = make_docs.page_of(parser())
    (tmp_path / "page.1").write_text(make_docs.man(page, ["unwind-core"]))
    (tmp_path / "page.bash").write_text(make_docs.bash(page))
    (tmp_path / "page.zsh").write_text(make_docs.zsh(page))
    _accepted(tmp_path / "page.1", tmp_path / "page.bash", tmp_path / "page.zsh")


@pytest.mark.parametrize("name", make_docs.commands())
def test_the_committed_files_are_accepted_by_their_readers(name: str) -> None:
    share = ROOT / "share"
    _accepted(
        share / "man/man1" / f"{name}.1",
        share / "bash-completion/completions" / name,
        share / "zsh/site-functions" / f"_{name}",
    )


def _accepted(page: Path, bash: Path, zsh: Path) -> None:
    need("groff", "bash", "zsh")
    for reader, file in (("groff -k -man -ww -z", page), ("bash -n", bash), ("zsh -n", zsh)):
        done = run(*reader.split(), file)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_page_shows_each_option_as_it_is_typed() -> None:
    need("groff")
    source = make_docs.man(make_docs.page_of(sample()), ["unwind-core"])
    shown = run("groff", "-k", "-man", "-Tutf8", "-P-cbou", input=source).stdout
    for wanted in (
        "unwind-sample - Says what's in a core",
        "unwind-sample [option ...] CORE",
        "With --strict it says less: `a\\b`.",
        ".dot first",
        "-e, --executable EXE",
        "--color {always,never}",
        "       unwind-sample --at 0x10 core | head",
        "EXIT STATUS",
        "100 %",
        "unwind-core(1)",
    ):
        assert wanted in shown
    assert "secret" not in shown


def test_a_page_has_neither_date_nor_width(monkeypatch: pytest.MonkeyPatch) -> None:
    page = make_docs.man(make_docs.page_of(sample()), [])
    monkeypatch.setenv("COLUMNS", "20")
    assert make_docs.man(make_docs.page_of(sample()), []) == page


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["--exec"], ["--executable"]),
        (["--max-frames", "1", "--st"], ["--strict"]),
        (["--color", ""], ["always", "never"]),
        (["--color", "=", "n"], ["never"]),
        (["--color", "="], ["always", "never"]),
        (["--debug-dir", "a d"], ["a dir"]),
        (["-e", "a"], [""]),  # left to readline, which knows how to quote names of files
        (["--sec"], [""]),
    ],
)
def test_bash_completes_options_and_values(
    words: list[str], offered: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a dir").mkdir()
    script = make_docs.bash(make_docs.page_of(sample()))
    assert completed(script, ["unwind-sample", *words], tmp_path) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ma"], ["make"]),
        (["make", "--"], ["--help", "--seed"]),
        (["check", "--arch", "a"], ["arm64"]),
    ],
)
def test_bash_completes_subcommands(words: list[str], offered: list[str], tmp_path: Path) -> None:
    script = make_docs.bash(make_docs.page_of(tree()))
    assert completed(script, ["unwind-tree", *words], tmp_path) == offered
