"""Snapshot files: Snapshots that were recorded in, the bytes of their file out.

docs/snapshot-format.md describes what is written here and read by transports/snapshot_file.py.
"""

from __future__ import annotations

from unwind.errors import SourceError
from unwind.recorded import (
    HEAD,
    LARGEST,
    MAGIC,
    MOST_VALUES,
    REGION,
    VERSION,
    RecordedImage,
    RecordedMemory,
    values_in,
)
from unwind.rules import (
    CfaExpression,
    CfaRegister,
    Expression,
    InRegister,
    NoRow,
    Offset,
    SameValue,
    Undefined,
    ValExpression,
    ValOffset,
)

__all__ = ["contents", "packed"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from unwind.architecture import Architecture
    from unwind.lines.location import Location
    from unwind.modules import Module
    from unwind.recorded import Conclusions, RecordedSection
    from unwind.rules import CfaRule, Row, Rule
    from unwind.snapshot import RecordedSource, Snapshot
    from unwind.space import AddressSpace
    from unwind.symtab import Symbol

_ALIGN = 8  # of the bytes behind the document
_MASK = 0xFFFF_FFFF_FFFF_FFFF


def packed(data: bytes) -> bytes:
    """`data` as gzip packs it: the same bytes each time."""
    from zlib import compressobj

    packer = compressobj(9, wbits=31)
    return packer.compress(data) + packer.flush()


def contents(source: RecordedSource) -> bytes:
    """The file of a source that was recorded, not yet packed.

    SourceError where there is more to say than a reader takes: of 8,000 threads and more.
    """
    from json import dumps

    file = _File()
    text = dumps(file.document(source), separators=(",", ":")).encode("ascii")
    if len(text) > LARGEST or values_in(text) > MOST_VALUES:
        raise SourceError("too much for a snapshot file", source.path, "--thread chooses threads")
    text += b" " * (-(HEAD.size + len(text)) % _ALIGN)
    return HEAD.pack(MAGIC, VERSION, 0, len(text)) + text + b"".join(file.pieces)


class _File:
    """The document, and the `pieces` of bytes that it points to, in its order."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self.spaces: dict[AddressSpace, int] = {}
        self.memories: dict[RecordedMemory, int] = {}
        self.images: dict[RecordedImage, int] = {}

    def document(self, source: RecordedSource) -> dict[str, Any]:
        """All that is no raw bytes."""
        arch = source.arch
        threads = [self._thread(snapshot, arch) for snapshot in source.threads]
        processes = [self._process(space) for space in self.spaces]
        memories = [self._memory(memory) for memory in self.memories]
        images = [self._image(image) for image in self.images]
        return {
            "format": f"unwind-snapshot/{VERSION}",
            "by": source.by,
            "methods": list(source.methods),
            "cross_check": source.cross_checked,
            "source": _source(source),
            "threads": threads,
            "processes": processes,
            "memories": memories,
            "images": images,
        }

    def _keep(self, pieces: Iterable[tuple[int, bytes | memoryview]]) -> list[list[Any]]:
        """The pieces as [place, size, where in the file's bytes]; offsets stay numbers."""
        found = []
        for place, data in pieces:
            found.append([hex(place), len(data), self.size])
            padding = bytes(-len(data) % _ALIGN)
            self.pieces.append(bytes(data) + padding)
            self.size += len(data) + len(padding)
        return found

    def _thread(self, snapshot: Snapshot, arch: Architecture) -> dict[str, Any]:
        memory = snapshot.memory
        assert isinstance(memory, RecordedMemory), "record() makes what can be written"
        known = {
            "process": self.spaces.setdefault(snapshot.space, len(self.spaces)),
            "memory": self.memories.setdefault(memory, len(self.memories)),
            "tid": snapshot.tid,
            "pid": snapshot.pid,
            "name": snapshot.name,
            "crashed": snapshot.crashed,
            "time": snapshot.time,
            "event": snapshot.event,
            "cookie": snapshot.cookie,
        }
        registers = {arch.register_name(n): hex(value) for n, value in snapshot.registers.items()}
        return {**_without_none(known), "registers": registers}

    def _process(self, space: AddressSpace) -> dict[str, Any]:
        modules = [self._module(module) for module in space.modules]
        names: dict[str, int] = {}
        regions = [
            REGION.pack(
                r.start, min(r.end, _MASK), r.executable, names.setdefault(r.name, len(names))
            )
            for r in space.regions
        ]
        return {
            "modules": modules,
            "complete": space.complete,
            "regions": self._keep([(0, b"".join(regions))])[0],
            "names": list(names),
        }

    def _module(self, module: Module) -> dict[str, Any]:
        image = module.image
        assert image is None or isinstance(image, RecordedImage), "record() makes what can be"
        known = {
            "name": module.name,
            "bias": hex(module.bias & _MASK),
            "ranges": [[hex(start), hex(end)] for start, end in module.ranges],
            "state": module.state,
            "file": module.file,
            "build_id": module.build_id.hex() if module.build_id is not None else None,
            "tried": list(module.tried) or None,
            "image": self.images.setdefault(image, len(self.images)) if image is not None else None,
        }
        return _without_none(known)

    def _memory(self, memory: RecordedMemory) -> dict[str, Any]:
        faults = [
            [hex(at), size, hex(fault.address), fault.size, fault.reason]
            for (at, size), fault in memory.faults.items()
        ]
        return {"spans": self._keep(memory.spans), "faults": faults}

    def _image(self, image: RecordedImage) -> dict[str, Any]:
        header, entries = image.elf.header, image.procedure_data
        known = {
            "path": image.path,
            "file": image.elf.path,
            "build_id": image.build_id.hex() if image.build_id is not None else None,
            "elf": {
                "class": header.elf_class,
                "byteorder": header.byteorder,
                "osabi": header.osabi,
                "type": header.type,
                "machine": header.machine,
                "version": header.version,
                "entry": hex(header.entry),
                "flags": header.flags,
            },
            "segments": [
                [row[1], hex(row[3]), hex(row[4]), hex(row[5])] for row in image.elf.program_rows
            ],
            "unwind": list(image.kinds),
            "debug_file": image.debug_path,
            "bytes": self._keep(image.pieces),
            "cfi": [
                self._section(place, section)
                for place, sections in image.sections.items()
                for section in sections
            ],
            "places": list(image.sections),
            "symbols": _symbols(image.names.named_at.items()),
            "stubs": _symbols(image.told.stubs.items()),
            "lines": _lines(image.told.lines) if image.told.lines else None,
            "pdr": self._keep([(0, entries)])[0] if entries is not None else None,
            "analysis": _analysis(image.told),
        }
        return _without_none(known)

    def _section(self, place: str, section: RecordedSection) -> dict[str, Any]:
        text, data = section.encoding.text_base, section.encoding.data_base
        known = {
            "place": place,
            "kind": section.kind,
            "vaddr": hex(section.vaddr),
            "size": section.size,
            "text_base": hex(text) if text is not None else None,
            "data_base": hex(data) if data is not None else None,
            "bytes": self._keep(section.pieces),
            "entries": list(section.offsets) if section.offsets is not None else None,
            "errors": [[hex(vaddr), said] for vaddr, said in section.errors.items()] or None,
        }
        return _without_none(known)


def _without_none(known: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in known.items() if value is not None}


def _source(source: RecordedSource) -> dict[str, Any]:
    signal = source.signal
    known: dict[str, Any] = {
        "kind": source.origin,
        "arch": source.arch.name,
        "code_mask": hex(source.arch.code_mask),
        "pid": source.pid,
        "command": source.command,
        "time": source.time,
        "warnings": list(source.warnings),
    }
    if signal is not None:
        address = hex(signal.address) if signal.address is not None else None
        said = {"number": signal.number, "code": signal.code, "address": address}
        known["signal"] = _without_none(said)
    return _without_none(known)


def _symbols(named: Iterable[tuple[int, Symbol | None]]) -> dict[str, list[Any]]:
    """`names`: the symbols, each once; `at`: vaddrs with the number of their symbol, or null."""
    numbers: dict[Symbol, int] = {}
    at = [
        [hex(vaddr), None if symbol is None else numbers.setdefault(symbol, len(numbers))]
        for vaddr, symbol in named
    ]
    names = [[s.name, hex(s.vaddr), hex(s.size), s.kind, s.binding, s.section] for s in numbers]
    return {"names": names, "at": at}


def _lines(lines: Mapping[int, tuple[Location, ...]]) -> dict[str, list[Any]]:
    """`files`, `places` and, `at` which vaddrs, their numbers, innermost first.

    A place is [function, number of its file, line, column], null for what is not known.
    """
    files: dict[str, int] = {}
    places: dict[Location, int] = {}
    at = [
        [hex(vaddr), *[places.setdefault(place, len(places)) for place in chain]]
        for vaddr, chain in lines.items()
    ]
    rows = [
        [
            place.function,
            None if place.file is None else files.setdefault(place.file, len(files)),
            place.line,
            place.column,
        ]
        for place in places
    ]
    return {"files": list(files), "places": rows, "at": at}


def _analysis(told: Conclusions) -> dict[str, Any]:
    def row(found: Row | NoRow | None) -> dict[str, Any] | None:
        return (
            None if found is None else _no_row(found) if isinstance(found, NoRow) else _row(found)
        )

    return {
        "rows": [[hex(at), called, row(found)] for (at, called), found in told.rows.items()],
        "extents": [
            [hex(at), *([hex(found[0]), hex(found[1])] if found is not None else ())]
            for at, found in told.extents.items()
        ],
        "rows_from": [
            [hex(start), hex(at), called, row(found)]
            for (start, at, called), found in told.rows_from.items()
        ],
    }


def _no_row(found: NoRow) -> dict[str, Any]:
    return {"reason": found.reason, **({"failed": True} if found.failed else {})}


def _row(row: Row) -> dict[str, Any]:
    origin = row.origin
    return {
        "start": hex(row.start),
        "end": hex(row.end),
        "cfa": _cfa(row.cfa),
        "rules": [[number, *_rule(rule)] for number, rule in row.rules.items()],
        "return_address": row.return_address,
        "signal": row.signal,
        "ra_signed": row.ra_signed,
        "origin": [origin.section, origin.fde, origin.cie, origin.note],
    }


def _cfa(rule: CfaRule | None) -> list[Any] | None:
    match rule:
        case CfaRegister(number=number, offset=offset):
            return ["register", number, offset]
        case CfaExpression(code=code):
            return ["expression", code.hex()]
        case None:
            return None


def _rule(rule: Rule) -> Sequence[Any]:
    match rule:
        case Undefined():
            return ("undefined",)
        case SameValue():
            return ("same_value",)
        case Offset(n=n):
            return "offset", n
        case ValOffset(n=n):
            return "val_offset", n
        case InRegister(number=number):
            return "register", number
        case Expression(code=code):
            return "expression", code.hex()
        case ValExpression(code=code):
            return "val_expression", code.hex()
