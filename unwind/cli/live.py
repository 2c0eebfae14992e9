"""unwind-live: a process' id in, the stack of each of its threads out, while it runs on."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, add_common_options
from unwind.cli.stacks import (
    add_file_options,
    add_output_options,
    add_record_options,
    add_walk_options,
    files_of,
    print_stacks,
)
from unwind.errors import SourceError

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser
    from unwind.files import Files
    from unwind.transports.process import ProcessSource

_PROG = "unwind-live"
_EXAMPLES = """\
examples:
  unwind-live 1234
      the stack of each thread of process 1234, which stands still meanwhile for a moment
  unwind-live --record hang.unwind 1234
      the same, and a small file from which unwind-core prints it anywhere
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread of a running process. It is stopped while registers and "
        "stacks are copied, some 50 us for each thread, and runs on while they are unwound."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument("pid", metavar="PID", help="the id of the process")
    group.add_argument(
        "--max-stop",
        type=_positive,
        default=500.0,
        metavar="MS",
        help="stop the process for at most so many milliseconds (500); what could not be copied "
        "in that time is said",
    )
    group.add_argument(
        "--no-stop",
        action="store_true",
        help="do not stop it: threads that are blocked in the kernel are seen, by pc and sp alone "
        "where no BPF program may be run",
    )
    group.add_argument(
        "--every",
        type=_positive,
        metavar="SECONDS",
        help="look again every SECONDS; with --json one document each, a line each",
    )
    group.add_argument(
        "--count", type=_count, metavar="N", help="with --every: N times (without end)"
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    if options.count is not None and options.every is None:
        raise SourceError("--count says how often --every looks, and that is not given")
    if options.record is not None and options.every is not None:
        raise SourceError("--record keeps one look at the process, and --every takes many")
    from unwind.live.files import OthersFiles

    with OthersFiles(files_of(options)) as files:
        if options.every is None:
            with _opened(options, files) as source:
                return print_stacks(_PROG, options, source, files)
        return _again_and_again(options, files)


def _again_and_again(options: Options, files: Files) -> int:
    """The worst exit code of all. A source is open until the next one is, so that Images live."""
    from time import monotonic, sleep

    code, done = 0, 0
    start = monotonic()
    before = _opened(options, files)
    try:
        while True:
            code = max(code, print_stacks(_PROG, options, before, files))
            sys.stdout.flush()
            done += 1
            if done == options.count:
                return code
            sleep(max(start + done * options.every - monotonic(), 0))
            if not options.json:
                print()
            source = _opened(options, files)
            before.close()
            before = source
    finally:
        before.close()


def _opened(options: Options, files: Files) -> ProcessSource:
    from unwind.transports.process import TRANSPORT

    return TRANSPORT.open(
        options.pid, files, stop=not options.no_stop, longest_stop=options.max_stop / 1000
    )


def _positive(text: str) -> float:
    """argparse: a positive number, of seconds or milliseconds."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


def _count(text: str) -> int:
    """argparse: how often, at least once."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
