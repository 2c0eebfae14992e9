"""Names: options in, what gives pcs their functions and their places in source out."""

from __future__ import annotations

from unwind.errors import SourceError

__all__ = ["SYMBOLIZERS", "add_name_options", "names_of", "source_line_of", "symbolizer_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.cli.options import Options, Parser
    from unwind.files import Files
    from unwind.protocols import Symbolizer
    from unwind.symbols.names import Names

SYMBOLIZERS = ("auto", "built-in", "symbolic", "symbols")


def add_name_options(parser: Parser, *, letters: bool = True, code: bool = True) -> None:
    """What is told of each place; without `letters` where -s and -i mean something else.

    Without `code` no lines of code are printed.
    """
    group = parser.add_argument_group("names and places in source")
    group.add_argument(
        *(["-s"] if letters else []),
        "--source",
        action="store_true",
        help="where each frame is in source: file:line:column; of stacks, small debug info is read "
        "without being asked for",
    )
    group.add_argument(
        *(["-i"] if letters else []),
        "--inlines",
        action="store_true",
        help="the functions that were inlined at each frame, too",
    )
    group.add_argument(
        "--no-inlines", action="store_true", help="no inlined functions, cheap as they may be"
    )
    if code:
        group.add_argument(
            "--source-lines",
            action="store_true",
            help="the line of code itself, where the source file is there",
        )
    group.add_argument(
        "--symbolizer",
        choices=SYMBOLIZERS,
        default="auto",
        metavar="NAME",
        help="what reads debug info: built-in; symbolic (the extra `symbols`), which keeps what it "
        "reads, is fast for many places and tells no columns; symbols: nothing does; auto: "
        "symbolic for profiles, where it is installed",
    )
    group.add_argument(
        "--no-demangle", action="store_true", help="names as they are in the symbol table"
    )


def names_of(options: Options, files: Files | None = None, many: bool = False) -> Names:
    """What names pcs as the options have it.

    `many`: hundreds of places will be asked for, and nobody looks at their columns.
    """
    from unwind.symbols.names import Names

    if options.inlines and options.no_inlines:
        raise SourceError("--inlines and --no-inlines: one of them, please")
    source = options.source or getattr(options, "source_lines", False)
    if not source and not options.inlines and not many and options.symbolizer == "auto":
        return _cheap_names(options, files)
    which = options.symbolizer if source or options.inlines else "symbols"
    return Names(
        symbolizer_of(which, files, many),
        source=source,
        inlines=options.inlines,
        demangled=not options.no_demangle,
    )


def _cheap_names(options: Options, files: Files | None) -> Names:
    """Where nobody has asked for places in source: those that cost next to nothing."""
    from unwind.symbols.debug_info import DebugSymbolizer
    from unwind.symbols.names import Names

    return Names(
        DebugSymbolizer(files, cheap=True),
        source=True,
        inlines=not options.no_inlines,
        demangled=not options.no_demangle,
    )


def source_line_of(options: Options) -> Callable[[str, int], str | None] | None:
    """What gives lines of code, None where they are not wanted."""
    if not options.source_lines:
        return None
    from unwind.symbols.source import SourceFiles

    return SourceFiles(options.sysroot).line


def symbolizer_of(which: str, files: Files | None, many: bool) -> Symbolizer:
    """The symbolizer called so, one of `SYMBOLIZERS`; `many` as of `names_of`."""
    if which == "symbols":
        from unwind.symbols.table import TableSymbolizer

        return TableSymbolizer()
    if which == "symbolic" or (which == "auto" and many):
        from unwind.symbols.symcache import SymbolicSymbolizer, is_installed

        if which == "symbolic" or is_installed():
            return SymbolicSymbolizer(files)
    from unwind.symbols.debug_info import DebugSymbolizer

    return DebugSymbolizer(files)
