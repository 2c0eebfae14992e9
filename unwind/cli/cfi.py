"""unwind-cfi: an ELF file in; its unwind tables, or the row at one address, out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, add_common_options

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser

_PROG = "unwind-cfi"
_EXAMPLES = """\
examples:
  unwind-cfi /usr/bin/ls
      the rows of every function, as readelf --debug-dump=frames-interp has them
  unwind-cfi --address 0x29d90 /lib/x86_64-linux-gnu/libc.so.6
      the row in effect at one address, and where it comes from
  unwind-cfi --lint ./hand-written.so
      the functions whose CFI is wrong, by what their instructions do
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the call frame information of an ELF file: how to get from each place "
        "in its code to the caller's registers."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument("file", metavar="FILE", help="a program, library, object or debug file")
    group.add_argument(
        "--section",
        choices=("eh_frame", "debug_frame"),
        help="this section only; both are read otherwise, eh_frame first",
    )
    group.add_argument(
        "--address",
        type=_address,
        metavar="A",
        help="only what is in effect at link-time address A: the row, where it comes from, and "
        "its rules as formulas",
    )
    group = parser.add_argument_group("what to print")
    layout = group.add_mutually_exclusive_group()
    layout.add_argument(
        "--raw", action="store_true", help="the instructions instead of the rows they make"
    )
    layout.add_argument(
        "--json", action="store_true", help="each row, or finding, as a line of JSON"
    )
    group.add_argument(
        "--lint",
        action="store_true",
        help="where the CFI says something else than the code does: each stretch of a function "
        "once, and what either has at its first instruction. Nothing is said where the code alone "
        "does not tell",
    )
    add_common_options(parser)


def _address(text: str) -> int:
    """argparse: a number in any of C's notations, or hexadecimal digits alone."""
    try:
        value = int(text, 0)
    except ValueError:
        value = int(text, 16)
    if value < 0:
        raise ValueError(text)
    return value


def _command(options: Options) -> int:
    from unwind.cli.cfi_report import report

    report(options)
    return 0


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
