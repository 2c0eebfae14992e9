"""Stacks: options and an opened source in, the stacks of its threads printed out.

What the commands share that print the stacks of one source, each thread as it was at one instant.
"""

from __future__ import annotations

import sys

from unwind.cli.hints import print_hints
from unwind.cli.made_code import made_code
from unwind.cli.names import add_name_options, names_of, source_line_of
from unwind.cli.plumbing import Progress, wants_colour, warn
from unwind.cli.servers import add_server_options, is_sparing, servers_of
from unwind.errors import SourceError
from unwind.frames import End

__all__ = [
    "add_file_options",
    "add_output_options",
    "add_record_options",
    "add_walk_options",
    "files_of",
    "print_stacks",
    "sources_of",
    "write_record",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.architecture import Architecture
    from unwind.cli.options import Options, Parser
    from unwind.explanation import Explanation, Opinion
    from unwind.files import Files
    from unwind.frames import Frame
    from unwind.modules import Module
    from unwind.protocols import RowSource
    from unwind.snapshot import RecordedSource, Snapshot, Source
    from unwind.symbols.names import Names
    from unwind.unwinder import Unwinder

_AT_ONCE = 100  # texts that are put out together: that of one thread is little for a system call


def add_output_options(parser: Parser) -> None:
    """What is printed of the stacks, and of which threads."""
    group = parser.add_argument_group("what to print")
    group.add_argument("--json", action="store_true", help="one JSON document (unwind-stack/1)")
    group.add_argument(
        "--thread",
        type=int,
        action="append",
        metavar="TID",
        help="only this thread; may be repeated",
    )
    group.add_argument("-r", "--registers", action="store_true", help="the registers of each frame")
    group.add_argument(
        "-m",
        "--modules",
        action="store_true",
        help="the modules, their build-ids, and what was found of each",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="for each frame the row and its rules, what they read, and what was refused",
    )
    group.add_argument(
        "--cross-check",
        action="store_true",
        help="for each frame what every source of rows makes of it, agreeing or not",
    )
    group.add_argument("-q", "--quiet", action="store_true", help="no header, and no hints")
    group.add_argument(
        "--perf-map",
        metavar="PATH",
        help="names of code that the program made, %%d for its pid: a map or a jitdump; of a "
        "process, its own /tmp/perf-PID.map without being asked for",
    )
    add_name_options(parser)


def add_file_options(parser: Parser) -> None:
    """Where the files of the modules are looked for; `files_of` reads these."""
    group = parser.add_argument_group("where the modules' files are")
    group.add_argument("-e", "--executable", metavar="FILE", help="the main program")
    group.add_argument(
        "--module",
        action="append",
        default=[],
        type=_pair,
        metavar="OLD=NEW",
        help="read NEW for what the source calls OLD; may be repeated",
    )
    group.add_argument(
        "--sysroot", metavar="DIR", help="look for recorded paths below DIR, and nowhere else"
    )
    group.add_argument(
        "--debug-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="look for binaries and debug files by build-id in DIR/.build-id; may be repeated",
    )
    add_server_options(parser)


def add_walk_options(parser: Parser) -> None:
    """Which sources of rows are asked, and how far a walk goes."""
    group = parser.add_argument_group("how to unwind")
    group.add_argument(
        "-n", "--max-frames", type=_count, metavar="N", help="stop after N frames of a thread"
    )
    group.add_argument(
        "--no-fallback", action="store_true", help="no guesses where a module has no CFI"
    )
    group.add_argument(
        "--methods",
        metavar="M,...",
        help="the sources of rows and their order; all are cfi, trampoline, pdr, emulation, "
        "link_register, frame_pointer, scan",
    )
    group.add_argument(
        "--scan",
        action="store_true",
        help="where all else fails, look through the stack for what may be a return address",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="exit 1 when a printed stack does not reach its outermost frame",
    )


def add_record_options(parser: Parser) -> None:
    """Whether what was printed is kept as a snapshot file."""
    group = parser.add_argument_group("what to keep")
    group.add_argument(
        "--record",
        metavar="FILE",
        help="write to FILE what these stacks took, so that unwind-core FILE prints them anywhere",
    )
    group.add_argument(
        "--with-modules",
        action="store_true",
        help="with --record: all CFI of the modules, not just what was used",
    )


def files_of(options: Options, progress: Progress | None = None) -> Files:
    """The places for files that the options name; `progress` is called while one is unpacked."""
    from unwind.files import Files

    return Files(
        executable=options.executable,
        module_map=dict(options.module),
        sysroot=options.sysroot,
        debug_dirs=options.debug_dir,
        progress=progress,
        servers=servers_of(options),
        sparing=is_sparing(options),
    )


def print_stacks(prog: str, options: Options, source: Source, files: Files | None = None) -> int:
    """Print what the options ask for; 1 when strictness was asked for and not met.

    `files` finds what debug info leads to: the other files that it was put into.

    Raises SourceError where the source has no thread, or none of those that were asked for.
    """
    if options.with_modules and options.record is None:
        raise SourceError("--with-modules says what --record keeps, and that is not given")
    return _Report(prog, options, source, files).print()


def sources_of(options: Options, arch: Architecture) -> list[RowSource]:
    """The sources of rows that the options choose."""
    from unwind.methods import METHODS, default_sources

    if options.methods is None:
        sources = default_sources(arch, fallback=not options.no_fallback)
        return [*sources, METHODS["scan"](arch)] if options.scan else sources
    names = options.methods.split(",")
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise SourceError(f"--methods: no {unknown[0]!r}", hint=f"there are {', '.join(METHODS)}")
    names += ["scan"] if options.scan and "scan" not in names else []
    return [METHODS[name](arch) for name in names]


def write_record(
    options: Options,
    source: Source,
    snapshots: list[Snapshot],
    unwinder: Unwinder,
    names: Names,
    judge: Unwinder | None = None,
) -> None:
    """Keep what these stacks and their names take in the file of --record.

    With `judge` what cross-checks take, too.
    """
    from unwind.recording import record
    from unwind.writers.snapshot_file import contents, packed

    made = record(
        source,
        snapshots,
        unwinder=unwinder,
        judge=judge,
        symbolizer=names.symbolizer,
        with_modules=options.with_modules,
    )
    _replace(options.record, packed(contents(made)), source.path)


class _Report:
    """One run of a command over one opened source."""

    def __init__(self, prog: str, options: Options, source: Source, files: Files | None):
        from unwind.methods import METHODS
        from unwind.unwinder import DEFAULT_LIMIT, Unwinder

        self.prog = prog
        self.options = options
        self.source = source
        sources = sources_of(options, source.arch)
        self.unwinder = Unwinder(source.arch, sources, options.max_frames or DEFAULT_LIMIT)
        self.files = files
        self.names = names_of(options, files)
        # Who cross-checks asks all sources, whichever the walk goes by.
        self.judge = Unwinder(source.arch, [make(source.arch) for make in METHODS.values()])

    def print(self) -> int:
        """Print what was asked for; 1 when strictness was asked for and not met."""
        snapshots = self._chosen()
        if self.files is not None and self.files.servers is not None:
            self._fetch(self.files, snapshots)
        self.names.made = made_code(self.options, self.source, snapshots)
        complete = self._json(snapshots) if self.options.json else self._text(snapshots)
        for name, problem in self.names.problems.items():
            self._warn(f"{name}: no symbols: {problem}")
        for problem in self.names.damage:
            self._warn(f"no lines: {problem}")
        if self.options.record is not None:
            judge = self.judge if self.options.cross_check else None
            write_record(self.options, self.source, snapshots, self.unwinder, self.names, judge)
        if not self.options.quiet:
            # A snapshot may be of another machine, whose packages nobody here knows.
            is_here = self.source.kind != "snapshot"
            print_hints(self.prog, self.options, self.names.unnamed, is_here=is_here)
        return 1 if self.options.strict and not complete else 0

    def _chosen(self) -> list[Snapshot]:
        """The threads to print, the crashed one first."""
        snapshots = list(self.source.snapshots())
        for warning in self.source.warnings:
            self._warn(warning)
        from unwind.snapshot import RecordedSource

        if isinstance(self.source, RecordedSource):
            self._warn_of_methods(self.source)
        wanted = self.options.thread
        if wanted:
            chosen = [snapshot for snapshot in snapshots if snapshot.tid in wanted]
            missing = set(wanted) - {snapshot.tid for snapshot in chosen}
            if missing:
                known = ", ".join(str(snapshot.tid) for snapshot in snapshots[:20])
                more = ", ..." if len(snapshots) > 20 else ""
                raise SourceError(
                    f"no thread {min(missing)}", self.source.path, f"it has {known}{more}"
                )
            snapshots = chosen
        if not snapshots:
            raise SourceError("no thread to unwind", self.source.path)
        return sorted(snapshots, key=lambda snapshot: not snapshot.crashed)

    def _fetch(self, files: Files, snapshots: list[Snapshot]) -> None:
        """Have what the stacks lack in their address spaces before anything is printed."""
        from unwind.mending import Mender

        mender = Mender(files, self.unwinder)
        for snapshot in snapshots:
            mender.mend(snapshot)
        for warning in mender.warnings:
            self._warn(warning)

    def _warn_of_methods(self, source: RecordedSource) -> None:
        """A snapshot has what was asked for when it was taken."""
        asked = ",".join(source.methods)
        wanted = ",".join([rows.trust for rows in self.unwinder.lookup.sources])
        if asked != wanted:
            self._warn(f"recorded with --methods {asked}: what {wanted} would look at may be gone")
        if self.options.cross_check and not source.cross_checked:
            self._warn("recorded without --cross-check: what that would look at may be gone")

    def _json(self, snapshots: list[Snapshot]) -> bool:
        from unwind.explain import cross_check, explain
        from unwind.writers.json_document import document, dumps

        walked = [(snapshot, self.unwinder.unwind(snapshot)) for snapshot in snapshots]

        def how(snapshot: Snapshot, frame: Frame) -> Explanation:
            return explain(self.unwinder, self.unwinder.place(snapshot, frame))

        def opinions(snapshot: Snapshot, frame: Frame) -> tuple[Opinion, ...]:
            return cross_check(self.judge, self.judge.place(snapshot, frame))

        made = document(
            self.source,
            _modules(snapshots),
            walked,
            self.names.name,
            registers=self.options.registers,
            explain=how if self.options.explain else None,
            cross_check=opinions if self.options.cross_check else None,
        )
        if self.options.explain and self.source.stopped is not None:
            made["source"]["stopped"] = self.source.stopped
        print(dumps(made))
        return all(stack.end == End.OUTERMOST for _, stack in walked)

    def _text(self, snapshots: list[Snapshot]) -> bool:
        from unwind.fast import FastUnwinder
        from unwind.writers.text import TextWriter

        options = self.options
        writer = TextWriter(
            self.source.arch,
            self.names.name,
            colour=wants_colour(),
            shorten=options.max_frames is None,
            registers=options.registers,
            source_line=source_line_of(options),
        )
        modules = _modules(snapshots)
        if not options.quiet:
            _put(writer.header(self.source, modules))
            if options.explain and self.source.stopped is not None:
                _put([f"stopped: {1000 * self.source.stopped:.2f} ms"])
        if options.modules:
            _put(writer.modules(modules))
        fast = FastUnwinder(self.unwinder)
        exact = options.registers or options.explain or options.cross_check
        complete = True
        progress = Progress("unwinding")
        lines: list[str] = []
        for n, snapshot in enumerate(snapshots):
            progress(n, len(snapshots))
            if n or not options.quiet:
                lines.append("")
            lines.append(writer.thread(snapshot))
            pcs = None if exact else fast.pcs(snapshot)
            if pcs is not None:
                trusts = fast.trusts(snapshot.space, pcs)
                lines.append(writer.trace(snapshot.space, pcs, trusts))
            else:
                stack = self.unwinder.unwind(snapshot)
                complete = complete and stack.end == End.OUTERMOST
                lines += writer.stack(stack, self._notes(snapshot))
            if len(lines) >= _AT_ONCE:
                _put(lines)
                lines.clear()
        _put(lines)
        progress.close()
        return complete

    def _notes(self, snapshot: Snapshot) -> Callable[[Frame], Iterable[str]] | None:
        """What --explain and --cross-check print below a frame, None where neither is asked for."""
        options = self.options
        if not (options.explain or options.cross_check):
            return None
        from unwind.explain import cross_check, explain
        from unwind.writers.explanation import explanation_lines, opinion_lines

        def notes(frame: Frame) -> Iterator[str]:
            place = self.unwinder.place(snapshot, frame)
            if options.explain:
                yield from explanation_lines(frame, explain(self.unwinder, place))
            if options.cross_check:
                yield from opinion_lines(cross_check(self.judge, place))

        return notes

    def _warn(self, text: str) -> None:
        from unwind.writers.escape import escape

        warn(self.prog, escape(text))


def _modules(snapshots: list[Snapshot]) -> list[Module]:
    """The modules of all address spaces; threads of one process share theirs."""
    spaces = dict.fromkeys(snapshot.space for snapshot in snapshots)
    return [module for space in spaces for module in space.modules]


def _replace(path: str, data: bytes, source: str) -> None:
    """Write a file whole or not at all; not over the source, which may still be looked at.

    As of a core, it is for its owner's eyes: stacks hold whatever the program had in its hands.
    """
    import os

    if path == "-":
        raise SourceError("--record: standard output is for the stacks", path)
    if os.path.exists(path):
        if os.path.exists(source) and os.path.samefile(path, source):
            raise SourceError("--record: the stacks are read from there", path)
        if not os.path.isfile(path):  # a pipe, a device
            with open(path, "wb") as file:
                file.write(data)
            return
    part = f"{path}.{os.getpid()}"
    try:
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise


def _put(lines: Iterable[str]) -> None:
    text = "\n".join(lines)
    if text or lines:
        sys.stdout.write(text + "\n")


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _pair(text: str) -> tuple[str, str]:
    """argparse: OLD=NEW, divided at the first `=`."""
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise ValueError(text)
    return old, new
