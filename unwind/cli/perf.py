"""unwind-perf: a recording of `perf record --call-graph dwarf` in, its stacks and profiles out."""

from __future__ import annotations

import sys

from unwind.cli.options import argument_parser
from unwind.cli.plumbing import Progress, add_common_options, process, run, warn
from unwind.cli.stacks import add_file_options, add_walk_options, files_of, sources_of

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import NoReturn

    from unwind.cli.options import Options, Parser
    from unwind.transports.perf_data import PerfSource

_PROG = "unwind-perf"
_EXAMPLES = """\
examples:
  unwind-perf perf.data --script
      the stack of each sample of `perf record --call-graph dwarf`, as perf script prints it
  unwind-perf perf.data --script -F ip,sym --sysroot rootfs
      names and addresses alone, of a recording of another machine
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
        "Print the stacks of a recording of perf record --call-graph dwarf, and say how many of "
        "them are complete and why the others are not."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to read")
    group.add_argument("file", metavar="FILE", help="perf.data, or - for a stream of perf record")
    group = parser.add_argument_group("what to print")
    group.add_argument(
        "--script", action="store_true", help="each sample, in the format of perf script"
    )
    group.add_argument(
        "-F",
        "--fields",
        metavar="FIELD,...",
        help="with --script: of comm, pid, tid, cpu, time, period, event, ip, sym, symoff, dso",
    )
    add_file_options(parser)
    add_walk_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    from unwind.transports.perf_data import TRANSPORT

    progress = Progress("reading")
    with files_of(options, progress) as files, TRANSPORT.open(options.file, files) as source:
        progress.close()
        return _Report(options, source).print()


class _Report:
    """One run of the command over one opened recording."""

    def __init__(self, options: Options, source: PerfSource):
        from unwind.perf.jit import JitMaps
        from unwind.places import Places
        from unwind.sampling import Sampler
        from unwind.symbols.names import Names
        from unwind.symbols.table import TableSymbolizer
        from unwind.unwinder import DEFAULT_LIMIT, Unwinder

        self.options, self.source = options, source
        limit = options.max_frames or DEFAULT_LIMIT
        unwinder = Unwinder(source.arch, sources_of(options, source.arch), limit)
        self.sampler = Sampler(source.snapshot, unwinder)
        self.names = Names(TableSymbolizer())
        self.places = Places(self.names, JitMaps())

    def print(self) -> int:
        """Print what was asked for; the exit code."""
        self._script()
        for warning in self.source.warnings:
            warn(_PROG, warning)
        return 0

    def _script(self) -> None:
        from unwind.sampling import split_callchain
        from unwind.writers.perf_script import DEFAULT_FIELDS, ScriptWriter

        fields = self.options.fields
        writer = ScriptWriter(
            fields.split(",") if fields else DEFAULT_FIELDS,
            self.places.site,
            self.places.kernel_site,
        )
        walk, text, put = self.sampler.walk, writer.sample, sys.stdout.write
        pieces: list[str] = []
        for sample in self.source.samples():
            pcs, _, how, _ = walk(sample)
            kernel = split_callchain(sample[5])[0] if sample[5] else ()
            pieces.append(text(sample, kernel, pcs, how))
            if len(pieces) >= 256:
                put("".join(pieces))
                pieces.clear()
        put("".join(pieces))


if __name__ == "__main__":
    sys.exit(main())
