"""The plain parser says of a command line what argparse says, or leaves it to argparse."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tools.make_docs import commands
from unwind.cli.options import Options, PlainParser, argument_parser, parse


def declarations(name: str) -> Any:
    return importlib.import_module(commands()[name])._declare


WORDS = """
    core -r -q --json --thread 12 x -n 3 0 --max-frames -3 --module a=b a --modules -m -mq
    --thread=4 -n5 --sysroot dir --sys --debug-dir -e -- - --explain --strict --no-fallback
    --section eh_frame debug_frame text --address 0x10 10 --raw --debug --nonsense -z --module=a=b
"""
ODD_WORDS = ["", "a b", "-a b"]


def by_argparse(name: str, words: list[str]) -> dict[str, object] | None:
    """What argparse makes of it, None where it complains."""
    parser = argument_parser(name, declarations(name))
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return vars(parser.parse_args(words))
        except SystemExit:
            return None


def by_plain(name: str, words: list[str]) -> dict[str, object] | None:
    plain = PlainParser()
    declarations(name)(plain)
    return plain.parse(words)


@pytest.mark.parametrize("name", commands())
@given(words=st.lists(st.sampled_from([*WORDS.split(), *ODD_WORDS]), max_size=6))
def test_a_plain_line_means_what_argparse_makes_of_it(name: str, words: list[str]) -> None:
    found = by_plain(name, words)
    event("plain" if found is not None else "left to argparse")
    if found is not None:
        assert found == by_argparse(name, words)


@pytest.mark.parametrize(
    "line",
    [
        "core",
        "-",
        "core --json",
        "--thread 1 --thread 2 core -r -q",
        "core -n 5 --module /a=/b --debug-dir one --debug-dir two",
        "core --sysroot root --strict --no-fallback -e program",
    ],
)
def test_what_people_type_is_plain(line: str) -> None:
    assert by_plain("unwind-core", line.split()) == by_argparse("unwind-core", line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "a b",
        "core --help",
        "core --version",
        "core --nonsense",
        "core --thread",
        "core --thread -1",
        "core -n x",
        "core -rq",
        "core --sysroot=root",
        "core --sysr root",
        "core --module a",
    ],
)
def test_what_is_wrong_or_rare_is_left_to_argparse(line: str) -> None:
    assert by_plain("unwind-core", line.split()) is None


@pytest.mark.parametrize("line", ["file --section text", "file --raw --json", "file --address x"])
def test_a_value_that_is_no_choice_and_two_rivals_are_left_to_argparse(line: str) -> None:
    assert by_plain("unwind-cfi", line.split()) is None


@pytest.mark.parametrize("line", ["core --thread 3 --thread 4", "core --thread=3 --thr 4"])
def test_both_parsers_give_the_same_kind_of_options(line: str) -> None:
    options = parse("unwind-core", declarations("unwind-core"), line.split())
    assert type(options) is Options
    assert (options.core, options.thread, options.json) == ("core", [3, 4], False)


def test_the_default_of_a_list_stays_as_it_is() -> None:
    plain = PlainParser()
    declarations("unwind-core")(plain)
    assert plain.parse(["core", "--debug-dir", "a"]) != plain.parse(["core"])
    assert plain.parse(["core", "--debug-dir", "a"]) == plain.parse(["core", "--debug-dir", "a"])
