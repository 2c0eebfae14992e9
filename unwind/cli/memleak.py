"""unwind-memleak: what a process has not freed; or the stack of whoever comes by a place."""

from __future__ import annotations

import sys

from unwind.cli.names import add_name_options
from unwind.cli.plumbing import Command, add_common_options, warn
from unwind.cli.profiles import add_format_options
from unwind.cli.stacks import (
    add_file_options,
    add_record_options,
    add_walk_options,
    files_of,
)
from unwind.errors import SourceError

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser
    from unwind.cli.stopping import Stopping
    from unwind.files import Files

_PROG = "unwind-memleak"
_DEFAULT = "do_exit"
_RING_SIZE = 32  # MB
_EXAMPLES = """\
examples:
  unwind-memleak -c ./program
      run it, and print at its end what it has not freed, and from where
  unwind-memleak -p 1234 30
      every 30 seconds, what process 1234 has allocated since and not freed
  unwind-memleak -p 1234 --duration 60 --flamegraph leaks.html
      the same after a minute, as a picture
  unwind-memleak --symbol do_exit --duration 10
      for ten seconds, the stack of each thread that ends
  unwind-memleak --symbol /lib/x86_64-linux-gnu/libc.so.6:malloc -p 1234
      the stack of each allocation of process 1234
"""


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print what a process has allocated and not freed, by the stacks of the allocations "
        "(-p, -c); or the stack of each thread that comes by a place in the kernel or in a "
        "program (--symbol, --bpf). BPF programs copy registers and stack at that very moment. "
        "This takes root, and nothing is stopped."
    )
    parser.epilog = _EXAMPLES
    _declare_target(parser)
    _declare_leaks(parser)
    group = parser.add_argument_group("the stack of each event")
    group.add_argument(
        "--symbol",
        metavar="PLACE",
        help="a function of the kernel (do_exit, the default with --bpf), a tracepoint "
        "(CATEGORY:NAME, raw:NAME or btf:NAME), a function of a file (PATH:FUNCTION, perhaps "
        "+OFFSET), or cpu-clock@N: whatever runs, N times a second",
    )
    group.add_argument(
        "--bpf", metavar="FILE", help="a BPF object in place of the one that is built in"
    )
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no events: only warnings and the counts"
    )
    add_format_options(parser)
    add_name_options(parser, letters=False, code=False)
    add_file_options(parser)
    add_walk_options(parser)
    add_record_options(parser)
    add_common_options(parser)


def _declare_target(parser: Parser) -> None:
    group = parser.add_argument_group("whom to watch, and for how long")
    group.add_argument("-p", "--pid", type=_count, metavar="PID", help="this process")
    group.add_argument(
        "-c",
        "--command",
        metavar="COMMAND",
        help="this command, in one word, from its start; what it forks is not watched",
    )
    group.add_argument(
        "--duration",
        type=_seconds,
        metavar="S",
        help="for so many seconds (with --symbol or --bpf 10); ^C ends it before",
    )
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
        metavar="MB",
        help="how much the kernel keeps until it is looked at (128 of allocations, 32 of events, "
        "and up to a power of 2); what does not fit it counts",
    )


def _declare_leaks(parser: Parser) -> None:
    group = parser.add_argument_group("what is not freed")
    group.add_argument(
        "interval",
        nargs="?",
        type=_seconds,
        metavar="INTERVAL",
        help="seconds between reports (5; of a command there is one, at its end)",
    )
    group.add_argument("count", nargs="?", type=_count, metavar="COUNT", help="so many reports")
    group.add_argument(
        "-t", "--trace", action="store_true", help="print each call of the allocator, too"
    )
    group.add_argument(
        "-a", "--show-allocs", action="store_true", help="the allocations of each stack one by one"
    )
    group.add_argument(
        "-o",
        "--older",
        type=_milliseconds,
        metavar="OLDER_MS",
        help="only what is older than so many milliseconds (500; 0 once the process has ended)",
    )
    group.add_argument(
        "-z", "--min-size", type=_size, metavar="BYTES", help="only allocations at least as large"
    )
    group.add_argument(
        "-Z", "--max-size", type=_size, metavar="BYTES", help="only allocations at most as large"
    )
    group.add_argument(
        "-s",
        "--sample-rate",
        type=_count,
        default=1,
        metavar="N",
        help="look at one of N allocations, by chance (1)",
    )
    group.add_argument(
        "-T", "--top", type=_count, metavar="N", help="the N stacks with the most bytes (10)"
    )
    group.add_argument(
        "-O",
        "--obj",
        metavar="OBJ",
        help="the allocator is in this program or library, and in no other",
    )
    group.add_argument(
        "--wa-missing-free",
        action="store_true",
        help="what lies at an address that is given out again counts as freed: it always does",
    )
    group.add_argument(
        "--combined-only",
        action="store_true",
        help="by the sums that the kernel keeps for each stack: quicker with millions of "
        "allocations, and without their ages",
    )
    group.add_argument(
        "--max-blocks",
        type=_count,
        default=1 << 20,
        metavar="N",
        help="the kernel has room for so many outstanding allocations (1048576, of 100 bytes each)",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="one JSON document a report, a line each (unwind-leaks/1); "
        "of events one at the end (unwind-stack/1)",
    )
    group.add_argument("--output", metavar="FILE", help="write there [standard output]")


def _command(options: Options) -> int:
    from unwind.bpf.libbpf import BpfError
    from unwind.cli.stopping import Stopping

    is_events = options.symbol is not None or options.bpf is not None
    if not is_events and options.pid is None and options.command is None:
        raise SourceError(
            "nothing to watch",
            hint="-p PID or -c COMMAND: what is not freed; "
            "--symbol PLACE, or --bpf FILE: the stack at each event",
        )
    if options.record is not None and not is_events:
        raise SourceError("--record keeps the stacks of events: --symbol or --bpf")
    if options.command is not None and (is_events or options.pid is not None):
        raise SourceError("-c begins the process whose allocations are watched, and no other")
    try:
        with Stopping() as stopping, files_of(options) as files:
            if is_events:
                return _print_events(options, stopping, files)
            from unwind.cli.memleak_leaks import print_leaks

            return print_leaks(options, stopping, files)
    except BpfError as error:
        print(error.log, file=sys.stderr)
        raise


def _print_events(options: Options, stopping: Stopping, files: Files) -> int:
    from unwind.cli.memleak_events import EventReport
    from unwind.events.points import point
    from unwind.transports.ring_buffer import TRANSPORT, RingOptions

    place = options.symbol or _DEFAULT
    where = point(place)
    ring = RingOptions(
        object=options.bpf,
        pid=options.pid,
        stack_size=options.stack_size << 10,
        ring_size=(options.ring_size or _RING_SIZE) << 20,
    )
    with TRANSPORT.open(place, files, ring) as source:
        stopping.end(source.stop)
        if where.kind != "kprobe" and place.isidentifier():
            instead = ":".join(filter(None, (where.inside, where.name)))
            warn(_PROG, f"this kernel has no kprobes: attached to the tracepoint {instead}")
        return EventReport(options, source, files).print()


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _size(text: str) -> int:
    """argparse: a number of bytes."""
    if not 0 <= (number := int(text, 0)) < 1 << 64:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    """argparse: a positive number."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


def _milliseconds(text: str) -> float:
    """argparse: a number that may be 0."""
    if not 0 <= (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
