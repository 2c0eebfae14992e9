"""unwind-corpus: a seed in, stacks whose truth is known out; or a command in, how it does on them.

The one command that imports unwind.testing, and of that nothing that needs hypothesis.
"""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, Progress, add_common_options

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unwind.cli.options import Options, Parser
    from unwind.testing.corpus_check import Result

_PROG = "unwind-corpus"
_ARCHS = ("x86_64", "arm64", "mips32el", "mips32")
_EXAMPLES = """\
examples:
  unwind-corpus make corpus --seed 1 --count 200 --arch x86_64
      200 programs with random CFI that stopped somewhere, and what is true of each
  unwind-corpus check corpus --command 'eu-stack --core {core} -e {exe}'
      how eu-stack does on them: right, short, wrong, crashed, timed out
  unwind-corpus check corpus --command 'gdb -nx -batch -ex bt {exe} {core}'
      how gdb does
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Make stacks whose truth is known, and check unwinders by them.\n\n"
        "A corpus holds programs that a real assembler and linker made from random .cfi "
        "directives, a core of each as it would be where it stopped, and the frames, registers "
        "and rows that are true of it. What a seed makes is the same each time."
    )
    parser.epilog = _EXAMPLES
    commands = parser.add_subparsers(metavar="COMMAND", dest="subcommand", required=True)
    _declare_make(commands.add_parser("make", description="Make a corpus.", add_help=False))
    _declare_check(
        commands.add_parser("check", description="Check an unwinder by a corpus.", add_help=False)
    )
    add_common_options(parser)


def _declare_make(parser: Parser) -> None:
    group = parser.add_argument_group("what to make")
    group.add_argument("directory", metavar="DIR", help="a new or empty directory to write")
    group.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the corpus to make; 1 without it"
    )
    group.add_argument(
        "--count",
        type=_count,
        default=100,
        metavar="N",
        help="so many cases of each architecture; 100 without it",
    )
    group.add_argument(
        "--arch",
        action="append",
        choices=_ARCHS,
        help="this architecture, all without it; may be repeated. Each needs its binutils",
    )
    add_common_options(parser)


def _declare_check(parser: Parser) -> None:
    group = parser.add_argument_group("what to check")
    group.add_argument("directory", metavar="DIR", help="a corpus that `make` made")
    group.add_argument(
        "--command",
        required=True,
        metavar="COMMAND",
        help="the unwinder. {core}, {exe}, {dir}, {arch} and {name} are those of the case; no "
        "shell is asked. Of what it prints each line that begins with # and a number is a frame",
    )
    group.add_argument(
        "--arch",
        action="append",
        choices=_ARCHS,
        help="only this architecture; may be repeated",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="for one case; 60 without it",
    )
    group = parser.add_argument_group("what to print")
    group.add_argument("--json", action="store_true", help="the results as one JSON document")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="each case that is not right, and why"
    )
    group.add_argument("--strict", action="store_true", help="exit 1 unless all cases are right")
    add_common_options(parser)


def _count(text: str) -> int:
    """argparse: a positive number with a limit."""
    if not 1 <= (number := int(text)) <= 100_000:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    """argparse: a positive number of seconds."""
    if not 0 < (number := float(text)) < 1e6:
        raise ValueError(text)
    return number


def _command(options: Options) -> int:
    return _make(options) if options.subcommand == "make" else _check(options)


def _make(options: Options) -> int:
    from pathlib import Path

    from unwind.testing.corpus_make import make_corpus

    progress = Progress("making")
    archs = list(dict.fromkeys(options.arch or _ARCHS))
    made = make_corpus(Path(options.directory), options.seed, options.count, archs, progress)
    progress.close()
    print(f"{made} cases in {options.directory}")
    return 0


def _check(options: Options) -> int:
    from pathlib import Path

    from unwind.errors import SourceError
    from unwind.testing.corpus_check import check, table
    from unwind.testing.corpus_format import cases

    chosen = [
        case
        for case in cases(Path(options.directory))
        if not options.arch or case.arch in options.arch
    ]
    if not chosen:
        raise SourceError("no case to check", options.directory)
    progress = Progress("checking")
    results = []
    for n, case in enumerate(chosen):
        progress(n, len(chosen))
        results.append(check(case, options.command, options.timeout))
    progress.close()
    if options.json:
        print(_document(options.command, results))
    else:
        for result in results if options.verbose else ():
            if result.verdict != "right":
                print(f"{result.case}: {result.verdict} {result.detail}".rstrip())
        print(table(results), end="")
    return 1 if options.strict and any(each.verdict != "right" for each in results) else 0


def _document(command: str, results: Iterable[Result]) -> str:
    import json

    found = [
        {
            "case": each.case,
            "arch": each.arch,
            "verdict": each.verdict,
            "detail": each.detail,
            "expected": each.expected,
            "right": each.right,
            "pcs": [None if pc is None else f"{pc:#x}" for pc in each.found],
            "status": each.status,
        }
        for each in results
    ]
    return json.dumps(
        {"format": "unwind-corpus-check/1", "command": command, "results": found}, indent=1
    )


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
