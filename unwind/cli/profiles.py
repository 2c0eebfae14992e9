"""What commands that make profiles share: options that ask for formats, and writing those."""

from __future__ import annotations

import os
import sys

from unwind.errors import SourceError

__all__ = [
    "add_format_options",
    "add_profile_options",
    "ids_wanted",
    "profile_wanted",
    "times_wanted",
    "write_profiles",
    "write_text",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from unwind.cli.options import Options, Parser
    from unwind.profile import Profile

_FORMATS = ("folded", "speedscope", "pprof", "firefox")


def add_format_options(parser: Parser) -> None:
    """The formats of profiles. One of them may be asked for."""
    group = parser.add_argument_group("profiles").add_mutually_exclusive_group()
    group.add_argument("--folded", action="store_true", help="folded stacks, for flamegraph.pl")
    group.add_argument("--speedscope", action="store_true", help="for www.speedscope.app")
    group.add_argument("--pprof", action="store_true", help="for pprof, packed by gzip")
    group.add_argument("--firefox", action="store_true", help="for profiler.firefox.com")
    group.add_argument(
        "--flamegraph", metavar="FILE", help="a picture that is one file: FILE.svg or FILE.html"
    )


def add_profile_options(parser: Parser) -> None:
    """The formats of profiles, and where they go."""
    add_format_options(parser)
    more = parser.add_argument_group("of profiles")
    more.add_argument(
        "--differential",
        metavar="FILE",
        help="with --flamegraph: colour what grew and what shrank since the profile of FILE",
    )
    more.add_argument(
        "--top", metavar="N", type=_count, default=20, help="in the summary: so many functions"
    )
    more.add_argument("-o", "--output", metavar="FILE", help="write there [standard output]")


def profile_wanted(options: Options) -> bool:
    """Whether a format was asked for; otherwise there is the summary."""
    return bool(options.flamegraph) or any(getattr(options, name) for name in _FORMATS)


def times_wanted(options: Options) -> bool:
    """Whether the time of each sample is of use: `Counts(timed=...)`."""
    return bool(options.firefox or options.speedscope)


def ids_wanted(options: Options) -> bool:
    """Whether pid and tid of a thread are of use, or its name alone: `Counts.table`."""
    return not (options.folded or options.flamegraph)


def write_profiles(
    options: Options,
    profiles: Sequence[Profile],
    title: str = "",
    base: Profile | None = None,
    sources: Iterable[str] = (),
    live: bool = False,
) -> None:
    """Write what was asked for, else the summary; `profiles` are those of several events.

    `base` is what --differential compares with. `sources` are files that must not be written to.
    `live`: there is no recording that could be made in another way.
    SourceError where a format has room for one event and there are more, or where bytes would go
    to a terminal.
    """
    path = options.flamegraph or options.output
    for source in sources:
        if path and os.path.exists(path) and os.path.exists(source):
            if os.path.samefile(path, source):
                raise SourceError("the profile would be written over what it is made of", path)
    if getattr(options, "differential", None) and not options.flamegraph:
        raise SourceError("--differential colours a picture", hint="add --flamegraph FILE.html")
    if options.flamegraph:
        write_text(path, _picture(options.flamegraph, _one(profiles), title, base))
    elif options.pprof:
        _put_bytes(path, _pprof(_one(profiles)))
    else:
        write_text(path, _text(options, profiles, title, live))


def _text(options: Options, profiles: Sequence[Profile], title: str, live: bool) -> Iterator[str]:
    if options.speedscope:
        from unwind.writers.speedscope import speedscope

        yield from speedscope(profiles, title)
    elif options.firefox:
        from unwind.writers.firefox import firefox

        yield from firefox(_one(profiles), title)
    elif options.folded:
        from unwind.writers.folded import folded

        for line in folded(_one(profiles)):
            yield f"{line}\n"
    else:
        from unwind.writers.hottest import summary

        for n, profile in enumerate(profiles):
            for line in ("",) * (n > 0) + tuple(summary(profile, options.top, _columns(), live)):
                yield f"{line}\n"


def _picture(path: str, profile: Profile, title: str, base: Profile | None) -> Iterator[str]:
    from unwind.writers.flamegraph import flamegraph_html, flamegraph_svg

    if path.endswith(".svg"):
        return flamegraph_svg(profile, title, base)
    if path.endswith((".html", ".htm")):
        return flamegraph_html(profile, title, base)
    raise SourceError("a flame graph is a file .svg or .html", path)


def _pprof(profile: Profile) -> Iterator[bytes]:
    from unwind.writers.pprof import pprof

    return pprof(profile)


def _one(profiles: Sequence[Profile]) -> Profile:
    if len(profiles) == 1:
        return profiles[0]
    if not profiles:
        raise SourceError("there are no samples")
    events = ", ".join([profile.event for profile in profiles])
    raise SourceError(f"this format has room for one event, and there are {events}", hint="--event")


def write_text(path: str | None, pieces: Iterable[str]) -> None:
    """Write pieces of text to a file, whole or not at all, or to standard output."""
    if path is None or path == "-":
        for piece in pieces:
            sys.stdout.write(piece)
    else:
        _put_bytes(path, (piece.encode() for piece in pieces))


def _put_bytes(path: str | None, pieces: Iterable[bytes]) -> None:
    """Write a file whole or not at all; a pipe or a device as it comes."""
    if path is None or path == "-":
        if sys.stdout.isatty():
            raise SourceError("this is for no terminal", hint="-o FILE")
        sys.stdout.flush()
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        return
    whole = not os.path.exists(path) or os.path.isfile(path)
    part = f"{path}.{os.getpid()}" if whole else path
    try:
        with open(part, "xb" if whole else "wb") as file:
            for piece in pieces:
                file.write(piece)
        if whole:
            os.replace(part, path)
    except BaseException:
        if whole and os.path.exists(part):
            os.unlink(part)
        raise


def _columns() -> int | None:
    """How wide the terminal is, None where standard output is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None


def _count(text: str) -> int:
    """argparse: a positive number."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number
