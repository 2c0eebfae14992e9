"""What every command shares: errors become one line, a closed pipe silence, ^C its exit code."""

from __future__ import annotations

import os
import sys

from unwind.cli.options import argument_parser, parse
from unwind.errors import MissingPackage, SourceError, UnwindError
from unwind.version import VERSION

__all__ = ["Command", "Progress", "add_common_options", "wants_colour", "warn"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from unwind.cli.options import Options, Parser

# Exit codes, the same for every command: 0 done, 1 asked-for strictness not met.
COULD_NOT = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CLOSED_PIPE = 141  # 128 + SIGPIPE


class Command:
    """A command: `declare` adds its options to a parser, `work` does what they ask for."""

    def __init__(
        self, name: str, declare: Callable[[Parser], None], work: Callable[[Options], int]
    ):
        self.name, self._declare, self._work = name, declare, work

    def program(self) -> NoReturn:
        """The installed command: all that this process is for."""
        import gc

        # Hardly an object of ours lies in a circle, and to look for those takes a twentieth of all.
        gc.set_threshold(100_000)
        code = self.main()
        # What was printed is out and files are closed. Taking the interpreter apart, object by
        # object, would take 2 ms more, of the 9 that a small core takes.
        os._exit(code)

    def parser(self) -> ArgumentParser:
        """The command line, for its man page and its completion."""
        return argument_parser(self.name, self._declare)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command; the exit code comes back, whatever happens."""
        words = sys.argv[1:] if argv is None else list(argv)
        if words == ["--version"]:  # without the 10 ms that argparse costs
            return _written(lambda: print(f"unwind {VERSION}") or 0)
        options = parse(self.name, self._declare, words)
        options.prog = self.name
        # Names are any bytes, terminals and locales differ: what cannot be written is escaped.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return _written(lambda: self._work(options))
        except KeyboardInterrupt:
            return INTERRUPTED
        except (UnwindError, OSError, MemoryError) as error:
            if options.debug:
                raise
            print(f"{self.name}: {_line(error)}", file=sys.stderr)
            return COULD_NOT


def warn(prog: str, text: str) -> None:
    """A warning on standard error, after what was printed so far."""
    sys.stdout.flush()
    print(f"{prog}: warning: {text}", file=sys.stderr)


def wants_colour() -> bool:
    """Colour goes to terminals only, and not where NO_COLOR (no-color.org) is set."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def add_common_options(parser: Parser) -> None:
    """The options that every command has."""
    group = parser.add_argument_group("other")
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    group.add_argument("--version", action="version", version=f"unwind {VERSION}")
    group.add_argument("--debug", action="store_true", help="show the Python traceback of an error")


class Progress:
    """A bar on standard error, on a terminal, for what takes longer than a second."""

    def __init__(self, what: str):
        self.what = what
        self._shown = -1
        self._start: float | None = None
        self._on = sys.stderr.isatty()

    def __call__(self, done: int, total: int | None) -> None:
        """Say that `done` of `total` (any unit; None: unknown) is done."""
        if not self._on:
            return
        from time import monotonic

        now = monotonic()
        if self._start is None:
            self._start = now
        if now - self._start < 1:
            return
        tenths = int(20 * min(done, total) / total) if total else int(now * 4) % 20
        if tenths != self._shown:
            self._shown = tenths
            bar = "#" * tenths + "." * (20 - tenths)
            print(f"\r{self.what} [{bar}]", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._shown >= 0:
            print(f"\r{' ' * (len(self.what) + 24)}\r", end="", file=sys.stderr, flush=True)
            self._shown = -1


def _written(work: Callable[[], int]) -> int:
    """The exit code of `work`, once all that it printed is out; a closed pipe ends it silently."""
    try:
        code = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return code


def _line(error: BaseException) -> str:
    """One line for an error, with the hint it carries."""
    from unwind.writers.escape import escape

    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return escape(f"{name}{error.strerror}")
    hint = error.hint if isinstance(error, SourceError) else ""
    if isinstance(error, MissingPackage):
        hint = ""
    return escape(f"{error} ({hint})" if hint else str(error))
