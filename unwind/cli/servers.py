"""Options about servers of debug info in, who is asked for files out."""

from __future__ import annotations

from unwind.cli.plumbing import Progress, warn

__all__ = ["add_server_options", "is_sparing", "servers_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options, Parser
    from unwind.debuginfod.client import Client


def add_server_options(parser: Parser) -> None:
    """Whether servers are asked; `servers_of` reads these."""
    group = parser.add_argument_group("what to fetch (docs/debug-info.md)")
    group.add_argument(
        "--debuginfod",
        action="store_true",
        help="ask the servers in $DEBUGINFOD_URLS for programs and debug info that lie nowhere",
    )
    # Spelled as a name of its own: an option that may take the next word would take the core.
    group.add_argument(
        "--debuginfod=auto",
        action="store_true",
        dest="debuginfod_auto",
        help="ask them only for what lets stacks go on that were cut",
    )
    group.add_argument(
        "--debuginfod-time",
        type=_positive,
        default=30.0,
        metavar="S",
        help="fetch for at most so many seconds in all (30)",
    )
    group.add_argument(
        "--debuginfod-size",
        type=_positive,
        default=512.0,
        metavar="MB",
        help="fetch no file that is larger (512)",
    )
    group.add_argument(
        "--debuginfod-http",
        action="store_true",
        help="ask servers by http too, whose answers anybody on the way may read and change",
    )


def is_sparing(options: Options) -> bool:
    """Whether servers are asked only where a stack was cut."""
    return bool(options.debuginfod_auto and not options.debuginfod)


def servers_of(options: Options) -> Client | None:
    """Who is asked for files that are nowhere else, None where nobody is."""
    if not (options.debuginfod or options.debuginfod_auto):
        return None
    import os

    from unwind.debuginfod.client import client_of
    from unwind.writers.escape import escape

    return client_of(
        os.environ,
        seconds=options.debuginfod_time,
        largest=int(options.debuginfod_size * (1 << 20)),
        http=options.debuginfod_http,
        watch=lambda name: Progress(escape(f"fetching {name}")),
        warn=lambda text: warn(options.prog, escape(text)),
    )


def _positive(text: str) -> float:
    """argparse: a positive number, of seconds or of megabytes."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number
