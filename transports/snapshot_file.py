"""Snapshot files, as `--record` writes them: the path of one in, its Snapshots out.

docs/snapshot-format.md describes what is read here. Nothing is believed: a number is looked at
before it is used, and what is missing behind the document is missing in the memory or image.
"""

from __future__ import annotations

from unwind.elf import Header
from unwind.errors import FormatError, MemoryFault, SourceError, UnsupportedArchitecture
from unwind.fields import Fields
from unwind.lines.location import Location
from unwind.mappings import MOST_MODULES
from unwind.modules import Module, State
from unwind.recorded import (
    HEAD,
    LARGEST,
    MAGIC,
    MOST_VALUES,
    REGION,
    VERSION,
    Conclusions,
    RecordedImage,
    RecordedMemory,
    RecordedSection,
    RecordedSymbols,
    skeleton,
    values_in,
)
from unwind.registers import Registers
from unwind.registry import named_architecture
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    NoRow,
    Offset,
    Origin,
    Row,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)
from unwind.snapshot import RecordedSource, Signal, Snapshot
from unwind.space import AddressSpace, Region
from unwind.symtab import Symbol
from unwind.unpack import load

__all__ = ["TRANSPORT", "SnapshotSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.protocols import ByteOrder
    from unwind.rules import CfaRule, Rule
    from unwind.unpack import Input

_MOST_SEGMENTS = 1024  # of an image
_LONGEST_SECTION = 1 << 30
_KINDS = ("eh_frame", "debug_frame", "pdr", "sframe")
_STATES = (State.OK, State.MEMORY_ONLY, State.MISSING, State.MISMATCH)
_TOP = 1 << 64
_LAST_LINE = 1 << 32


class SnapshotSource(RecordedSource):
    """An open snapshot file."""

    def __init__(
        self, arch: Architecture, threads: list[Snapshot], path: str, document: Fields, data: Input
    ):
        said = document.fields("source")
        super().__init__(
            arch,
            threads,
            path,
            said.text("kind", ""),
            document.text("by", ""),
            [method.text() for method in document.items("methods")],
            document.truth("cross_check"),
        )
        self._input = data
        self.pid = said.number("pid") if "pid" in said else None
        self.command = said.text("command") if "command" in said else None
        self.time = said.real("time")
        signal = said.fields("signal") if "signal" in said else None
        if signal is not None:
            code = signal.number("code", -_TOP) if "code" in signal else None
            self.signal = Signal(signal.number("number"), code, signal.address("address", None))
        self.warnings += data.warnings
        self.warnings += [warning.text() for warning in said.items("warnings")]

    def close(self) -> None:
        """Give back the file and its unpacked copy; the Snapshots' memory is gone then."""
        self._input.close()


class _SnapshotTransport:
    kind = "snapshot"

    def detect(self, head: bytes) -> bool:
        """Whether a file, unpacked, begins as a snapshot does."""
        return head.startswith(MAGIC)

    def open(self, path: str, files: Files) -> SnapshotSource:
        """The snapshot at `path` (`-`: standard input), which is packed as a rule.

        Raises SourceError where none can be had from it, FormatError for a damaged one.
        """

        def check(head: bytes) -> None:
            if not self.detect(head):
                raise SourceError("not a snapshot file", path)

        return self.read(load(path, files.progress, check), path, files)

    def read(self, data: Input, path: str, files: Files) -> SnapshotSource:
        """The snapshot in `data`, which is closed with it; of `files` none is wanted."""
        try:
            source = _File(data, path).source()
        except BaseException:
            data.close()
            raise
        if files.executable:
            source.warnings.append(f"{files.executable}: a snapshot wants no file; it was not used")
        return source


class _File:
    """A file whose document is read: the rest is views of its bytes."""

    def __init__(self, data: Input, path: str):
        self.input, self.path = data, path
        view = memoryview(data.data)
        if len(view) < HEAD.size:
            raise FormatError("the file ends within its head", path, len(view))
        magic, version, _, size = HEAD.unpack_from(view)
        if magic != MAGIC:
            raise FormatError("no snapshot file", path, 0)
        if version != VERSION:
            raise SourceError(
                f"a snapshot of version {version}, and only {VERSION} is known here",
                path,
                "a newer unwind may read it",
            )
        if size > min(LARGEST, len(view) - HEAD.size):
            raise FormatError(f"a document of {size} bytes", path, HEAD.size)
        self.document = Fields(_parsed(bytes(view[HEAD.size : HEAD.size + size]), path), path)
        self.rest = view[HEAD.size + size :]

    def source(self) -> SnapshotSource:
        """The source that the document describes."""
        document = self.document
        arch = _architecture(document.fields("source"))
        memories = [self._memory(memory) for memory in document.items("memories")]
        images = [self._image(image) for image in document.items("images")]
        spaces = [self._space(space, arch, images) for space in document.items("processes")]
        threads = []
        for thread in document.items("threads"):
            threads.append(
                Snapshot(
                    registers=_registers(thread.fields("registers"), arch),
                    memory=thread.one_of("memory", memories),
                    space=thread.one_of("process", spaces),
                    tid=thread.number("tid"),
                    pid=thread.number("pid"),
                    name=thread.text("name") if "name" in thread else None,
                    crashed=thread.truth("crashed"),
                    time=thread.real("time"),
                    event=thread.text("event") if "event" in thread else None,
                    cookie=thread.number("cookie") if "cookie" in thread else None,
                )
            )
        return SnapshotSource(arch, threads, self.path, document, self.input)

    def _pieces(self, wanted: Iterator[Fields], limit: int = _TOP) -> list[tuple[int, memoryview]]:
        """Pieces as [place, size, where]; of one that the file does not hold what it holds."""
        found: list[tuple[int, memoryview]] = []
        end = 0
        for piece in wanted:
            place, size, where = piece.at(0).address(), piece.at(1).number(), piece.at(2).number()
            if place < end or place + size > limit:
                raise piece.error("pieces out of order or out of bounds")
            data = self.rest[where : where + size]
            end = place + size
            if len(data):
                found.append((place, data))
        return found

    def _memory(self, said: Fields) -> RecordedMemory:
        faults = {}
        for known in said.items("faults"):
            (at, size), (address, missing) = [
                (known.at(n).signed_address(), known.at(n + 1).number(low=-_TOP)) for n in (0, 2)
            ]
            faults[at, size] = MemoryFault(address, missing, known.at(4).text())
        return RecordedMemory(self._pieces(said.items("spans")), faults)

    def _space(self, said: Fields, arch: Architecture, images: list[RecordedImage]) -> AddressSpace:
        modules = [self._module(module, images) for module in said.items("modules")]
        if len(modules) > MOST_MODULES:
            raise said.error(f"{len(modules)} modules")
        names = [name.text() for name in said.items("names")]
        data = b"".join(piece for _, piece in self._pieces(iter([said.fields("regions")])))
        regions = [
            Region(start, end, bool(flags & 1), names[name] if name < len(names) else "")
            for start, end, flags, name in REGION.iter_unpack(
                data[: len(data) // REGION.size * REGION.size]
            )
        ]
        return AddressSpace(arch, modules, regions, said.truth("complete"))

    def _module(self, said: Fields, images: list[RecordedImage]) -> Module:
        ranges = tuple(
            [(pair.at(0).address(), pair.at(1).address()) for pair in said.items("ranges")]
        )
        if not ranges:
            raise said.error("a module that lies nowhere")
        state = said.text("state")
        if state not in _STATES:
            raise said.error(f"a module of state {state!r}")
        return Module(
            said.text("name"),
            said.address("bias"),
            ranges,
            said.one_of("image", images) if "image" in said else None,
            state,
            said.text("file") if "file" in said else None,
            said.raw("build_id"),
            tuple([tried.text() for tried in said.items("tried")]),
        )

    def _image(self, said: Fields) -> RecordedImage:
        header = _header(said.fields("elf"))
        loads = [
            (row.at(0).number(), *(row.at(n).address() for n in (1, 2, 3)))
            for row in said.items("segments")
        ]
        if len(loads) > _MOST_SEGMENTS:
            raise said.error(f"an image of {len(loads)} segments")
        sections: dict[str, list[RecordedSection]] = {
            place.text(): [] for place in said.items("places")
        }
        for section in said.items("cfi"):
            found = self._section(section, header)
            sections.setdefault(section.text("place"), []).append(found)
        kinds = [kind.text() for kind in said.items("unwind")]
        if not set(kinds) <= set(_KINDS):
            raise said.error(f"one of {kinds} describes no frames")
        entries = None
        if "pdr" in said:
            pieces = self._pieces(iter([said.fields("pdr")]))
            entries = pieces[0][1] if pieces else b""
        return RecordedImage(
            skeleton(header, loads, said.text("file", "")),
            said.text("path") if "path" in said else None,
            said.raw("build_id"),
            kinds=kinds,
            debug_path=said.text("debug_file") if "debug_file" in said else None,
            pieces=self._pieces(said.items("bytes")),
            sections=sections,
            symbols=RecordedSymbols(_symbols(said.fields("symbols"))),
            procedure_data=entries,
            told=_conclusions(
                said.fields("analysis"),
                _symbols(said.fields("stubs")),
                _lines(said.fields("lines")) if "lines" in said else {},
            ),
        )

    def _section(self, said: Fields, header: Header) -> RecordedSection:
        kind = said.text("kind")
        size = said.number("size", high=_LONGEST_SECTION)
        if kind not in ("eh_frame", "debug_frame"):
            raise said.error(f"CFI of kind {kind!r}")
        entries = None
        if "entries" in said:
            entries = [entry.number(high=size) for entry in said.items("entries")]
        return RecordedSection(
            "eh_frame" if kind == "eh_frame" else "debug_frame",
            said.address("vaddr"),
            size,
            header,
            self._pieces(said.items("bytes"), size),
            entries=entries,
            text_base=said.address("text_base", None),
            data_base=said.address("data_base", None),
            errors={pair.at(0).address(): pair.at(1).text() for pair in said.items("errors")},
        )


def _parsed(text: bytes, path: str) -> Any:
    """The JSON document; FormatError where it is none, or one that would fill the memory."""
    from json import loads

    if values_in(text) > MOST_VALUES:
        raise FormatError(f"more than {MOST_VALUES} values in its document", path, HEAD.size)
    try:
        return loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its document is no JSON: {error}", path, HEAD.size) from None


def _architecture(said: Fields) -> Architecture:
    """The architecture by its name, with the size of this process's addresses."""
    name = said.text("arch")
    arch = named_architecture(name)
    if arch is None:
        raise UnsupportedArchitecture(name)
    mask = said.address("code_mask")
    return arch if mask == arch.code_mask else arch.with_address_bits(mask.bit_length())


def _header(said: Fields) -> Header:
    byteorder, elf_class = said.text("byteorder"), said.number("class")
    if elf_class not in (32, 64) or byteorder not in ("little", "big"):
        raise said.error("neither ELF32 nor ELF64, or in no known byte order")
    osabi, kind, machine, version, flags = [
        said.number(key) for key in ("osabi", "type", "machine", "version", "flags")
    ]
    order: ByteOrder = "little" if byteorder == "little" else "big"
    entry = said.address("entry")
    return Header(
        *(elf_class, order, osabi, kind, machine, version, entry, 0, 0, flags, 0, 0, 0, 0, 0)
    )


def _registers(said: Fields, arch: Architecture) -> Registers:
    """The registers by their names, `r` and a number where the ABI gives none."""
    found = Registers()
    numbers = {name: number for number, name in arch.names.items()}
    for name in said:
        number = numbers.get(name)
        if number is None and name[:1] == "r" and name[1:].isdecimal() and len(name) < 8:
            number = int(name[1:])
        if number is None:
            raise said.error(f"no register is called {name[:40]!r}")
        found[number] = said.address(name)
    return found


def _symbols(said: Fields) -> dict[int, Symbol | None]:
    names = []
    for name in said.items("names"):
        vaddr, size = name.at(1).address(), name.at(2).address()
        kind, binding, section = (name.at(n).number() for n in (3, 4, 5))
        names.append(Symbol(name.at(0).text(), vaddr, size, kind, binding, section))
    return {
        pair.at(0).address(): None if pair.at(1).value is None else pair.at(1).pick(names)
        for pair in said.items("at")
    }


def _lines(said: Fields) -> dict[int, tuple[Location, ...]]:
    files = [file.text() for file in said.items("files")]
    places = []
    for place in said.items("places"):
        function, file, line, column = (place.at(n) for n in range(4))
        places.append(
            Location(
                function.text() if function.value is not None else None,
                file.pick(files) if file.value is not None else None,
                line.number(high=_LAST_LINE) if line.value is not None else None,
                column.number(high=_LAST_LINE) if column.value is not None else None,
            )
        )
    return {
        known.at(0).address(): tuple([known.at(n).pick(places) for n in range(1, known.length())])
        for known in said.items("at")
    }


def _conclusions(
    said: Fields, stubs: dict[int, Symbol | None], lines: dict[int, tuple[Location, ...]]
) -> Conclusions:
    rows: dict[tuple[int, bool], Row | NoRow] = {}
    for known in said.items("rows"):
        found = _row_or_none(known.at(2))
        if found is None:
            raise known.error("neither a row nor why there is none")
        rows[known.at(0).address(), known.at(1).truth()] = found
    extents = {
        known.at(0).address(): (known.at(1).address(), known.at(2).address())
        if known.length() == 3
        else None
        for known in said.items("extents")
    }
    rows_from: dict[tuple[int, int, bool], Row | None] = {}
    for known in said.items("rows_from"):
        key = known.at(0).address(), known.at(1).address(), known.at(2).truth()
        found = _row_or_none(known.at(3))
        rows_from[key] = found if isinstance(found, Row) else None
    return Conclusions(rows, extents, rows_from, stubs, lines)


def _row_or_none(said: Fields) -> Row | NoRow | None:
    if said.value is None:
        return None
    if "reason" in said:
        return NoRow(said.text("reason"), said.truth("failed"))
    origin = list(said.items("origin"))
    if len(origin) != 4:
        raise said.error("an origin has a section, two offsets and a note")
    return Row(
        said.address("start"),
        said.address("end"),
        _cfa(said.fields("cfa")),
        {rule.at(0).number(): _rule(rule) for rule in said.items("rules")},
        said.number("return_address"),
        Origin(
            origin[0].text(), origin[1].number(low=-1), origin[2].number(low=-1), origin[3].text()
        ),
        said.truth("signal"),
        said.truth("ra_signed"),
    )


def _cfa(said: Fields) -> CfaRule | None:
    if said.value is None:
        return None
    match said.at(0).text():
        case "register":
            return CfaRegister(said.at(1).number(), said.at(2).number(low=-_TOP))
        case "expression":
            return CfaExpression(said.at(1).raw() or b"")
        case kind:
            raise said.error(f"a CFA of kind {kind!r}")


def _rule(said: Fields) -> Rule:
    match said.at(1).text():
        case "undefined":
            return Undefined()
        case "same_value":
            return SameValue()
        case "offset":
            return Offset(said.at(2).number(low=-_TOP))
        case "val_offset":
            return ValOffset(said.at(2).number(low=-_TOP))
        case "register":
            return InRegister(said.at(2).number())
        case "expression":
            return Expression(said.at(2).raw() or b"")
        case "val_expression":
            return ValExpression(said.at(2).raw() or b"")
        case kind:
            raise said.error(f"a rule of kind {kind!r}")


TRANSPORT = _SnapshotTransport()
