"""The seams, for users and type checkers: what a memory, a source of rows or names must offer.

No command imports this module at run time (`typing` alone costs 5 ms).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from unwind import symtab
    from unwind.files import Files
    from unwind.image import Image
    from unwind.lines import location
    from unwind.rules import NoRow, Row
    from unwind.snapshot import Place, Source
    from unwind.unpack import Input

__all__ = [
    "ByteOrder",
    "FileTransport",
    "Location",
    "Memory",
    "RowSource",
    "Servers",
    "Symbol",
    "Symbolizer",
    "Told",
    "Transport",
    "Writer",
]

ByteOrder = Literal["little", "big"]


class Memory(Protocol):
    """A process' memory, or what is left of it."""

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes at `address`, or MemoryFault: never fewer, never made-up zeroes.

        A memory may also have `view(address) -> (start, memoryview) | None`, the contiguous
        stretch around an address without a copy; the fast walk uses it where there is one.
        """
        ...


class RowSource(Protocol):
    """A maker of rows: CFI, `.pdr`, trampolines, analysis of code, fixed rows of the ABI."""

    @property
    def trust(self) -> str:
        """The `Trust` of a frame found by such a row."""
        ...

    @property
    def shared(self) -> bool:
        """True: of a place with an image `row` reads just `image`, `vaddr` and `called`.

        So its rows hold for all processes that map the image.
        """
        ...

    def row(self, place: Place) -> Row | NoRow:
        """The row in effect at `place`, or why there is none."""
        ...


class Told(Protocol):
    """What was concluded from all of an image, for who has but a part of it."""

    def row(self, vaddr: int, called: bool) -> Row | NoRow:
        """What the analysis of the code says at `vaddr`."""
        ...

    def extent(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where that is not known."""
        ...

    def row_from(self, start: int, vaddr: int, called: bool) -> Row | None:
        """The row at `vaddr` of a function that is taken to begin at `start`."""
        ...

    def stub(self, vaddr: int) -> symtab.Symbol | None:
        """The stub of a linkage table at `vaddr`, by the name of what it leads to."""
        ...

    def locations(self, vaddr: int) -> tuple[location.Location, ...]:
        """The places in source of `vaddr`, innermost first."""
        ...


class Servers(Protocol):
    """Who has files by their build-ids: see debuginfod/client.py. Nothing is raised."""

    def file(self, build_id: bytes, kind: str, name: str = "") -> str | None:
        """The path of the whole file, of kind `executable` or `debuginfo`, or None."""
        ...

    def section(self, build_id: bytes, section: str, name: str = "") -> str | None:
        """The path of a file with the contents of one section, or None."""
        ...


class Symbol(Protocol):
    """What a place in an image is called."""

    @property
    def name(self) -> str:
        """As in the symbol table, without its version."""
        ...

    @property
    def vaddr(self) -> int:
        """Where the symbol starts."""
        ...


class Location(Protocol):
    """A place in source: a function and where in it; what is not known is None."""

    @property
    def function(self) -> str | None:
        """The function's name, mangled where the compiler mangles it."""
        ...

    @property
    def file(self) -> str | None:
        """The path of the source file, as the compiler wrote it."""
        ...

    @property
    def line(self) -> int | None:
        """Counted from 1."""
        ...

    @property
    def column(self) -> int | None:
        """Counted from 1."""
        ...


class Symbolizer(Protocol):
    """Names for places, and where they are in source."""

    @property
    def problems(self) -> Collection[str]:
        """A sentence for each kind of damage that was met in debug info."""
        ...

    def symbol(self, image: Image, vaddr: int) -> Symbol | None:
        """The best symbol that covers `vaddr`, or None."""
        ...

    def locations(self, image: Image, vaddr: int) -> Sequence[Location]:
        """The places in source of `vaddr`: the innermost inlined call first, the function last.

        Each but the first is where the one before it is called. None where nothing is known.
        """
        ...


class Transport(Protocol):
    """A way to get Snapshots: `transports/*.py` each expose one as `TRANSPORT`."""

    @property
    def kind(self) -> str:
        """As in the JSON: core, perf, ringbuf, process, gdb-remote, snapshot."""
        ...

    def detect(self, head: bytes) -> bool:
        """Whether a file that begins with `head` is of this kind."""
        ...

    def open(self, path: str, files: Files) -> Source:
        """The source at `path`; SourceError or FormatError when it cannot be read."""
        ...


class FileTransport(Transport, Protocol):
    """A transport of files, which may be packed and come through a pipe."""

    def read(self, data: Input, path: str, files: Files) -> Source:
        """The source whose file is `data`, already unpacked; it is closed with the source."""
        ...


class Writer(Protocol):
    """Turns a source and its stacks into lines of text."""

    def lines(self) -> Iterator[str]:
        """The whole output, line by line, without line ends."""
        ...
