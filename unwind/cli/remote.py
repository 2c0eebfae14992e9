"""unwind-remote: a GDB stub's address in, the stack of each thread of its target out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, add_common_options, warn
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

_PROG = "unwind-remote"
_EXAMPLES = """\
examples:
  unwind-remote localhost:1234
      the stack of each thread of what runs under gdbserver, which then goes on
  unwind-remote :1234 --wait -e vmlinux --stay
      a kernel under qemu -s, once it stops at a fault, and left there
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread of the target behind a GDB stub: gdbserver, qemu, or an "
        "on-chip debugger. The target stands still meanwhile; then it is let go, never killed."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "stub",
        metavar="HOST:PORT",
        help="where the stub listens; :PORT is on this machine, a name with a / a socket's path",
    )
    group.add_argument(
        "--arch",
        metavar="NAME",
        help="the target's architecture, where neither the stub nor -e tells it",
    )
    group.add_argument(
        "--wait",
        action="store_true",
        help="let the target run first, until it stops by itself (a fault, a breakpoint) or by ^C",
    )
    group.add_argument(
        "--stay",
        action="store_true",
        help="hang up without letting the target go: gdbserver and qemu-system then keep it "
        "stopped for the next debugger, qemu-user lets it run",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long an answer of the stub may take (10)",
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    from unwind.transports.gdb_remote import TRANSPORT

    with (
        files_of(options) as files,
        TRANSPORT.open(
            options.stub, files, arch=options.arch, timeout=options.timeout, wait=options.wait
        ) as source,
    ):
        source.stays = options.stay
        code = print_stacks(_PROG, options, source, files)
        if not options.stay and not source.detach():
            warn(_PROG, "the stub does not say that it lets the target go on")
        return code


def _seconds(text: str) -> float:
    """argparse: a positive number of seconds."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
