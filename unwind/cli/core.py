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
from unwind.errors import SourceError

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
        nargs="?",
        metavar="CORE",
        help="the core, or a file that --record wrote, also compressed; - is standard input",
    )
    add_output_options(parser)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    _add_kernel_options(parser)
    add_common_options(parser)


def _add_kernel_options(parser: Parser) -> None:
    group = parser.add_argument_group("as the kernel's handler of crashes (docs/crashes.md)")
    group.add_argument(
        "--from-kernel",
        nargs=3,
        metavar="ID",
        help="in kernel.core_pattern, with %%P %%I %%s; the core comes by standard input",
    )
    group.add_argument("--store", metavar="DIR", help="write the report to a new file in DIR")
    group.add_argument(
        "--store-limit",
        type=_count,
        default=256,
        metavar="MB",
        help="remove the oldest reports where all take more than so much (256)",
    )
    group.add_argument(
        "--max-time",
        type=_count,
        default=30,
        metavar="S",
        help="end after so many seconds, for which the process is kept (30)",
    )


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _command(options: Options) -> int:
    if options.from_kernel is not None:
        from unwind.cli.from_kernel import handle

        return handle(options)
    if options.core is None:
        raise SourceError("no core is given", hint="unwind-core CORE, or - for standard input")
    if options.store is not None:
        raise SourceError("--store is for --from-kernel")
    progress = Progress("reading")
    with files_of(options, progress) as files, _opened(options.core, files) as source:
        progress.close()
        return print_stacks(_PROG, options, source, files)


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
