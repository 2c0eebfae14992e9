"""unwind-core: a core dump in, the stack of each of its threads out."""

from __future__ import annotations

import sys

from unwind.cli.options import argument_parser
from unwind.cli.plumbing import Progress, add_common_options, process, run
from unwind.cli.stacks import (
    add_file_options,
    add_output_options,
    add_walk_options,
    files_of,
    print_stacks,
)

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import NoReturn

    from unwind.cli.options import Options, Parser

_PROG = "unwind-core"
_EXAMPLES = """\
examples:
  unwind-core core.1234
      the stack of each thread, the crashed one first
  unwind-core core.1234 --sysroot rootfs --debug-dir debug --explain
      a core of another machine, and how each frame was found
"""


def program() -> NoReturn:
    """The installed command."""
    process(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code comes back."""
    return run(_PROG, _declare, _command, argv)


def parser() -> ArgumentParser:
    """The command line, for its man page and its completion."""
    return argument_parser(_PROG, _declare)


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread of a core dump, how sure each frame is, "
        "and why a stack ends where it does."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "core", metavar="CORE", help="the core, also compressed; - is standard input"
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    from unwind.transports.core import TRANSPORT

    progress = Progress("reading")
    with files_of(options, progress) as files, TRANSPORT.open(options.core, files) as source:
        progress.close()
        return print_stacks(_PROG, options, source)


if __name__ == "__main__":
    sys.exit(main())
