"""unwind-perf: a recording of `perf record --call-graph dwarf` in, its stacks and profiles out."""

from __future__ import annotations

import sys

from unwind.cli.names import add_name_options
from unwind.cli.plumbing import Command, Progress, add_common_options
from unwind.cli.profiles import add_profile_options
from unwind.cli.servers import is_sparing
from unwind.cli.stacks import add_file_options, add_walk_options, files_of

__all__ = ["main", "nanoseconds", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser

_PROG = "unwind-perf"
_EXAMPLES = """\
examples:
  unwind-perf perf.data
      of `perf record --call-graph dwarf PROGRAM`: the hottest functions, and which stacks were cut
  unwind-perf perf.data --flamegraph profile.html
      a picture to search and to zoom in
  unwind-perf perf.data --script | stackcollapse-perf.pl
      the stack of each sample, as perf script prints it
  unwind-perf perf.data --json --comm worker --time 12.5,13
      the samples of half a second, for programs
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Make profiles of a recording of perf record --call-graph dwarf, say how many of its "
        "stacks are complete and why the others are not, or print its samples."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument("file", metavar="FILE", help="perf.data, or - for a stream of perf record")
    group.add_argument(
        "--kallsyms",
        metavar="FILE",
        help="names of the kernel's functions: a list as /proc/kallsyms has, or a vmlinux; "
        "`recorded`: of the recorded kernel, as perf kept them in ~/.debug, of the running one, or "
        "by its vmlinux where that is found",
    )
    group.add_argument(
        "--perf-map",
        metavar="PATH",
        default="/tmp/perf-%d.map",
        help="where processes name the code they made, %%d for the pid [/tmp/perf-%%d.map]",
    )
    group = parser.add_argument_group("which samples")
    for name, what, kind in (
        ("--comm", "NAME", str),
        ("--pid", "PID", int),
        ("--tid", "TID", int),
        ("--event", "EVENT", str),
    ):
        told = f"only those of this {name[2:]}; may be repeated"
        group.add_argument(name, type=kind, action="append", metavar=what, help=told)
    group.add_argument(
        "--time",
        type=_span,
        metavar="FROM,TO",
        help="only those between two times, in seconds as --script prints them; either may lack",
    )
    group.add_argument(
        "--max-stack",
        type=_count,
        metavar="N",
        help="of each stack only the N innermost frames",
    )
    group = parser.add_argument_group("what to print")
    group = group.add_mutually_exclusive_group()
    group.add_argument(
        "--script", action="store_true", help="each sample, in the format of perf script"
    )
    group.add_argument(
        "--json", action="store_true", help="each sample, as JSON lines (unwind-stack/1)"
    )
    group.add_argument(
        "--explain",
        type=_sample,
        metavar="SAMPLE",
        help="one sample, its number from 0 on or its time, and how each frame was found",
    )
    parser.add_argument(
        "-F",
        "--fields",
        metavar="FIELD,...",
        help="with --script: of comm, pid, tid, cpu, time, period, event, ip, sym, symoff, dso",
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        default=1,
        metavar="N",
        help="share the work among N processes, for the same output [1]",
    )
    add_profile_options(parser)
    add_name_options(parser, code=False)
    add_file_options(parser)
    add_walk_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    from unwind.cli.perf_report import Report
    from unwind.transports.perf_data import TRANSPORT

    progress = Progress("reading")
    with files_of(options, progress) as files:
        if is_sparing(options):
            from unwind.cli.perf_cut import allow_cut_modules

            allow_cut_modules(options, files)
        with TRANSPORT.open(options.file, files) as source:
            progress.close()
            return Report(_PROG, options, source, files).print()


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _sample(text: str) -> tuple[str, int | None, int]:
    """argparse: a number from 0 on, or a time in seconds; that is in nanoseconds then."""
    return text, int(text) if text.isdecimal() else None, nanoseconds(text)


def _span(text: str) -> tuple[int, int]:
    """argparse: two times in seconds, in nanoseconds."""
    first, comma, last = text.partition(",")
    if not comma:
        raise ValueError(text)
    return nanoseconds(first) if first else 0, nanoseconds(last) if last else 1 << 64


def nanoseconds(text: str) -> int:
    """Seconds as --script prints them, exactly: no float has 33756.810342."""
    whole, _, fraction = text.strip().partition(".")
    if not (whole + fraction).isdecimal():
        raise ValueError(text)
    return int((whole or "0") + fraction[:9].ljust(9, "0"))


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
