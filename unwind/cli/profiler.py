"""unwind-profile: what runs, so many times a second, in; a profile of it out."""

from __future__ import annotations

import sys

from unwind.cli.names import add_name_options
from unwind.cli.plumbing import Command, add_common_options
from unwind.cli.profiles import add_profile_options
from unwind.cli.stacks import add_file_options, add_walk_options, files_of
from unwind.cli.stopping import Stopping
from unwind.errors import SourceError

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser

_PROG = "unwind-profile"
_FASTEST = 100_000  # samples a second
_EXAMPLES = """\
examples:
  unwind-profile -p 1234 --duration 10
      the hottest functions of a process, of ten seconds
  unwind-profile -F 499 -a --flamegraph profile.html
      all that runs on this machine, until ^C or for ten seconds, as a picture
  unwind-profile -p 1234 --folded | flamegraph.pl >profile.svg
      for other programs
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Take the stacks of what runs, many times a second on each processor, and make a profile "
        "of them. A BPF program copies registers and stack, so that programs without frame "
        "pointers have whole stacks, and no recording is kept. This takes root."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to watch")
    which = group.add_mutually_exclusive_group()
    which.add_argument("-p", "--pid", type=_count, metavar="PID", help="this process")
    which.add_argument("-a", "--all", action="store_true", help="all processes but this one itself")
    group.add_argument(
        "-F",
        "--frequency",
        type=_count,
        default=99,
        metavar="HZ",
        help="so many times a second on each processor (99)",
    )
    group.add_argument(
        "--duration",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="for so many seconds (10); ^C ends it before",
    )
    for name, what, kind in (("--comm", "NAME", str), ("--tid", "TID", int)):
        told = f"only threads of this {name[2:]}; may be repeated"
        group.add_argument(name, type=kind, action="append", metavar=what, help=told)
    group.add_argument(
        "--stack-size",
        type=_count,
        default=32,
        metavar="KB",
        help="how much of each stack is copied, 4 to 8192 kB (32)",
    )
    group.add_argument(
        "--ring-size",
        type=_count,
        default=32,
        metavar="MB",
        help="how much the kernel keeps until it is looked at (32, and up to a power of 2); "
        "samples that do not fit it counts",
    )
    group.add_argument(
        "--perf-map",
        metavar="PATH",
        default="/tmp/perf-%d.map",
        help="where processes name the code they made, %%d for the pid [/tmp/perf-%%d.map]",
    )
    add_profile_options(parser)
    add_name_options(parser, code=False)
    add_file_options(parser)
    add_walk_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    if options.pid is None and not options.all:
        raise SourceError("nothing to watch", hint="-p PID, or -a for all that runs")
    if options.frequency > _FASTEST:
        raise SourceError(f"-F: no more than {_FASTEST} times a second")
    from unwind.bpf.libbpf import BpfError
    from unwind.cli.profiler_report import ProfilerReport
    from unwind.transports.ring_buffer import TRANSPORT, RingOptions

    ring = RingOptions(
        pid=options.pid,
        stack_size=options.stack_size << 10,
        ring_size=options.ring_size << 20,
    )
    place = f"cpu-clock@{options.frequency}"
    try:
        with (
            Stopping() as stopping,
            files_of(options) as files,
            TRANSPORT.open(place, files, ring) as source,
        ):
            stopping.end(source.stop)
            return ProfilerReport(_PROG, options, source, files).print()
    except BpfError as error:
        print(error.log, file=sys.stderr)
        raise


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    """argparse: a positive number."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
