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

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser

_PROG = "unwind-live"
_EXAMPLES = """\
examples:
  unwind-live 1234
      the stack of each thread of process 1234, which stands still for a millisecond
  unwind-live --record hang.unwind 1234
      the same, and a small file from which unwind-core prints it anywhere
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread of a running process. It is stopped while registers and "
        "stacks are copied, for a millisecond as a rule, and runs on while they are unwound."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument("pid", metavar="PID", help="the id of the process")
    group.add_argument(
        "--max-stop",
        type=_milliseconds,
        default=500.0,
        metavar="MS",
        help="stop the process for at most so many milliseconds (500); what could not be copied "
        "in that time is said",
    )
    group.add_argument(
        "--no-stop",
        action="store_true",
        help="do not stop it: threads that are blocked in the kernel are seen, by pc and sp alone",
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    from unwind.transports.process import TRANSPORT

    with (
        files_of(options) as files,
        TRANSPORT.open(
            options.pid, files, stop=not options.no_stop, longest_stop=options.max_stop / 1000
        ) as source,
    ):
        return print_stacks(_PROG, options, source)


def _milliseconds(text: str) -> float:
    """argparse: a positive number."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
