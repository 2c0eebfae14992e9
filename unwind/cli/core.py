"""unwind-core: a core dump, or a snapshot file, in; the stack of each of its threads out."""

from __future__ import annotations

import sys

from unwind.cli.plumbing import Command, Progress, add_common_options
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
    from unwind.files import Files
    from unwind.protocols import FileTransport
    from unwind.snapshot import Source

_PROG = "unwind-core"
_EXAMPLES = """\
examples:
  unwind-core core.1234
      the stack of each thread, the crashed one first
  unwind-core core.1234 --sysroot rootfs --debug-dir debug --explain
      a core of another machine, and how each frame was found
  unwind-core core.1234 --record crash.unwind
      the same as the first, and a small file that stands for core and files
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the stack of each thread of a core dump, how sure each frame is, "
        "and why a stack ends where it does."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument(
        "core",
        metavar="CORE",
        help="the core, or a file that --record wrote, also compressed; - is standard input",
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    progress = Progress("reading")
    with files_of(options, progress) as files, _opened(options.core, files) as source:
        progress.close()
        return print_stacks(_PROG, options, source)


def _opened(path: str, files: Files) -> Source:
    """The core or the snapshot at `path`: the first bytes, unpacked, tell which it is."""
    from unwind.registry import transport_of
    from unwind.transports.core import TRANSPORT, check_head
    from unwind.unpack import load

    found: list[FileTransport] = []

    def choose(head: bytes) -> None:
        transport = transport_of(head, likely="core")
        if transport is None:
            check_head(head, path)
        found.append(transport or TRANSPORT)

    data = load(path, files.progress, choose)
    return found[0].read(data, path, files)


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
