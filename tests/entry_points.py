"""Where bytes from outside come in: each way in, what to ask of them, where seeds come from.

tests/test_findings.py holds each to the promise about bad input: values or an UnwindError, soon,
and without much memory. `make fuzz` looks for bytes that break it.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import os
import resource
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import strategies as st

from tests.debug_files import asked, debug_areas, debug_files, lines_of
from tests.recordings import shipped
from unwind.advice import advice
from unwind.debug_links import alternate_of, debug_link_of, supplement_of
from unwind.debuginfod.assembled import with_debug_frame, with_eh_frame
from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.dwarf.expression import describe, evaluate
from unwind.dwarf.rows import row_at, rows
from unwind.elf import SHT, Elf
from unwind.emulate import emulate
from unwind.errors import UnsupportedArchitecture, UnwindError
from unwind.fast import FastUnwinder
from unwind.files import Files
from unwind.frames import End
from unwind.image import Image
from unwind.memory import Span
from unwind.modules import Module
from unwind.pdr import Procedures
from unwind.perf.jit import JitMaps
from unwind.perf.jitdump import jit_symbols
from unwind.places import Places
from unwind.protocols import ByteOrder
from unwind.registry import architecture
from unwind.relocations import relocated
from unwind.remote import documents, packets
from unwind.sampling import Sampler, split_callchain
from unwind.snapshot import Source
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.testing.cores import core_files, damaged_core_files
from unwind.testing.damaged import damaged
from unwind.testing.dialects import DIALECTS
from unwind.testing.elf_files import Sect, make_elf
from unwind.testing.elves import damaged_elf_files, elf_areas, elf_files
from unwind.testing.images import image
from unwind.testing.programs import expressions
from unwind.testing.sections import damaged_headers, damaged_sections
from unwind.testing.snapshots import chains
from unwind.transports.core import TRANSPORT as CORE
from unwind.transports.perf_data import TRANSPORT as PERF
from unwind.transports.snapshot_file import TRANSPORT as SNAPSHOT
from unwind.unpack import Input, load
from unwind.unwinder import Unwinder
from unwind.writers.cfi_tables import Tables
from unwind.writers.perf_script import DEFAULT_FIELDS, ScriptWriter

__all__ = ["ENTRY_POINTS", "EntryPoint", "broken"]

SECONDS = 1.0  # of the processor, for one input
MEMORY = 64 << 20  # bytes beyond the input's own
_FRAMES = 100  # how far stacks are walked: a million frames of a loop are no fault of the reader


@dataclass(frozen=True)
class EntryPoint:
    """A way in: `read` asks for all that can be had from some bytes, which strategies make."""

    name: str
    read: Callable[[bytes], None]
    seeds: st.SearchStrategy[bytes]

    def __str__(self) -> str:
        return self.name


def broken(entry: EntryPoint, data: bytes, traced: bool = True) -> str:
    """How `data` breaks the promise at this way in, "" if it does not.

    `traced`: what Python allocates is counted; else what the process has grown by is.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if traced:
        tracemalloc.start()
    start = time.process_time()
    try:
        entry.read(data)
    except UnwindError:
        pass
    except Exception as error:
        return f"{type(error).__name__} at {_place(error)}: {error}"
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
        tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    taken = peak if traced else grown * 1024
    if taken > MEMORY + len(data):
        return f"{taken >> 20} MB"
    if seconds > SECONDS * (4 if traced else 1):  # tracing takes the most part of it
        return f"{seconds:.1f} s"
    return ""


def _place(error: BaseException) -> str:
    """The innermost line of the library that an exception came by."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "unwind" in code.co_filename or "/arch/" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno} ({code.co_name})"
        trace = trace.tb_next
    return place


# ------------------------------------------------------------------------------- the ways in


def _each(questions: Iterable[Callable[[], object]]) -> None:
    """Asks all; each may be refused by itself."""
    for question in questions:
        try:
            question()
        except UnwindError:
            pass


def _elf(data: bytes) -> None:
    """A file: its headers, contents, symbols, and what of it describes code."""
    whole = Image(Elf(data))
    elf = whole.elf
    vaddrs = [0, 1, 1 << 63, elf.header.entry, *(s.vaddr for s in islice(elf.segments, 8))]
    sections = elf.sections[:64]
    _each(
        [
            *(functools.partial(elf.data, section) for section in sections),
            *(functools.partial(relocated, elf, section) for section in sections),
            lambda: [bytes(segment.data) for segment in elf.segments],
            lambda: list(elf.notes()),
            lambda: (elf.build_id, elf.dynamic, elf.describe(), whole.unwind_kinds),
            *(functools.partial(whole.symbols.find, vaddr) for vaddr in vaddrs),
            *(functools.partial(whole.symbols.code_around, vaddr) for vaddr in vaddrs),
            lambda: (list(whole.symbols), whole.symbols.named("main")),
            lambda: whole.procedures and [whole.procedures.find(vaddr) for vaddr in vaddrs],
        ]
    )
    for section in whole.frame_sections:
        _each(functools.partial(section.find, vaddr) for vaddr in vaddrs)


def _tables(data: bytes) -> None:
    """A file, printed as `unwind-cfi` does."""
    elf = Elf(data)
    try:
        arch = architecture(elf)
    except UnsupportedArchitecture:
        return
    complaints: list[UnwindError] = []
    tables = Tables(arch.names, arch.vendor_opcodes, complaints.append)
    for section in Image(elf).frame_sections:
        for raw in (True, False):
            for _ in islice(tables.section(section, raw=raw), 2000):
                pass


def _lines(data: bytes) -> None:
    """A file's lines and inlined functions; damage is told, not raised."""
    lines = lines_of(data)
    asked(lines)
    assert all(isinstance(problem, str) for problem in lines.problems)


def _core(data: bytes) -> None:
    """A core: its threads are walked, exactly and fast."""
    with _nowhere() as files, CORE.read(Input(data), "core", files) as source:
        _walk(source)


def _snapshot(data: bytes) -> None:
    """A snapshot file, as it is when it is unpacked."""
    with _nowhere() as files, SNAPSHOT.read(Input(data), "snapshot", files) as source:
        _walk(source)


def _perf(data: bytes) -> None:
    """A recording of perf: its samples are walked, and printed as perf script prints them."""
    with _nowhere() as files, PERF.read(Input(data), "perf.data", files) as source:
        sampler = Sampler(source.snapshot, Unwinder(source.arch, limit=_FRAMES))
        places = Places(Names(TableSymbolizer()), JitMaps(f"{_empty()}/%d"))
        writer = ScriptWriter(DEFAULT_FIELDS, places.site, places.kernel_site)
        for n, sample in enumerate(source.samples()):
            if n < 32:
                pcs, end, how, _ = walked = sampler.walk(sample)
                writer.write(sample, split_callchain(sample[5])[0], pcs, how, [])
                assert end == End.OUTERMOST or sampler.detail(sample, walked)


def _walk(source: Source) -> None:
    exact = Unwinder(source.arch, limit=_FRAMES)
    fast = FastUnwinder(exact)
    for snapshot in islice(source.snapshots(), 16):
        exact.unwind(snapshot)
        fast.pcs(snapshot)


def _nowhere() -> Files:
    """Files of an empty sysroot: what a hostile core names is not to be read here."""
    return Files(sysroot=_empty())


@functools.cache
def _empty() -> str:
    return mkdtemp(prefix="unwind-nothing-")


def _packed(data: bytes) -> None:
    """A compressed file."""
    handle = os.memfd_create("packed")
    try:
        os.write(handle, data)
        load(f"/proc/self/fd/{handle}").close()
    finally:
        os.close(handle)


def _cfi(data: bytes) -> None:
    """A section of call frame information; the first byte says of which kind and target."""
    kind = data[0] if data else 0
    byteorder, size = _shape(kind)
    section = FrameSection(
        memoryview(data)[1:],
        0x1000,
        "debug_frame" if kind & 4 else "eh_frame",
        byteorder,
        size,
        text_base=0x2000,
        data_base=0x3000,
        dereference=lambda vaddr: vaddr,
    )
    for entry in islice(section.entries(), 200):
        if isinstance(entry, Fde):
            _each(
                [
                    functools.partial(lambda fde: list(islice(rows(fde), 1000)), entry),
                    functools.partial(row_at, entry, entry.start),
                    functools.partial(row_at, entry, entry.end - 1),
                    functools.partial(lambda fde: fde.lsda, entry),
                ]
            )
    _each(functools.partial(section.find, v) for v in (0, 0x1000, 0x2000, 0x10000, 1 << 63))
    _each([lambda: section.around(0x2000), lambda: section.starts(0, 1 << 40)])


def _search_table(data: bytes) -> None:
    """An .eh_frame_hdr, after a byte that says of which target."""
    byteorder, size = _shape(data[0] if data else 0)
    table = SearchTable(memoryview(data)[1:], 0x1000, byteorder, size)
    vaddrs = (0, 0x1000, 0x2000, 1 << 31, 1 << 63)
    _each(functools.partial(table.find, vaddr) for vaddr in vaddrs)
    _each([lambda: list(islice(table.entries(), 10_000)), lambda: table.starts(0, 1 << 32)])


def _expression(data: bytes) -> None:
    """A DWARF expression, after a byte that says of which target."""
    byteorder, word = _shape(data[0] if data else 0)
    code, memory = data[1:], Span(0x1000, bytes(range(256)) * 4)
    registers = {number: 0x1000 + 8 * number for number in range(32)}
    for initial in ((), (0x1080,)):
        given = {"word": word, "byteorder": byteorder, "initial": initial, "bias": 0x10}
        _each([functools.partial(evaluate, code, registers, memory, **given)])  # type: ignore[arg-type]
    _each([functools.partial(describe, code)])


def _pdr(data: bytes) -> None:
    """A .pdr section."""
    for byteorder in ("little", "big"):
        found = Procedures(memoryview(data), byteorder)
        for vaddr in (0, 0x400000, *islice(found.starts, 100)):
            procedure = found.find(vaddr)
            if procedure is not None:
                _each([functools.partial(found.end, procedure)])


def _jitdump(data: bytes) -> None:
    """A dump of code that a process has made, or its map."""
    _each([functools.partial(jit_symbols, data)])
    handle = os.memfd_create("map")
    try:
        os.write(handle, data)
        maps = JitMaps(f"/proc/self/fd/{handle}")
        for address in (0, 0x1000, 0x1004, 0x5000, 1 << 63):
            maps.find(7, address)
    finally:
        os.close(handle)


def _links(data: bytes) -> None:
    """A file that says in which others its debug info lies, and of what package it is."""
    elf = Elf(data)
    module = Module("/x", 0, ((0, 4096),), Image(elf))
    _each(
        [
            functools.partial(debug_link_of, elf),
            functools.partial(alternate_of, elf),
            functools.partial(supplement_of, elf),
            functools.partial(advice, module, 1, root=_empty()),
        ]
    )


def _fetched(data: bytes) -> None:
    """Sections that a server sent of a program: .eh_frame_hdr up to a mark, .eh_frame behind it."""
    program = Elf(shipped()["program"])
    header, _, eh_frame = data.partition(_MARK)
    made = functools.partial(with_eh_frame, program, header, eh_frame)
    others = functools.partial(with_debug_frame, program, data)
    for make in (made, others):
        try:
            image = Image(Elf(make()))
        except UnwindError:
            continue
        for section in image.frame_sections:
            _each(functools.partial(section.find, vaddr) for vaddr in (0x1040, 0x1200, 1 << 40))


def _remote(data: bytes) -> None:
    """What a stub of the GDB protocol says: a packet, or one of its documents."""
    _each(
        [
            functools.partial(packets.decoded, data),
            functools.partial(documents.description, lambda _name: data, "target.xml"),
            functools.partial(documents.threads, data, "threads"),
            functools.partial(documents.libraries, data, "libraries"),
        ]
    )


def _code(data: bytes) -> None:
    """Machine code, after a byte that says of which architecture."""
    dialects = list(DIALECTS.values())
    arch = dialects[(data[0] if data else 0) % len(dialects)].arch
    assert arch.code_model is not None
    model = arch.code_model()
    instructions = disassembler(model)(data[1:4096], 0x1000)
    if instructions:
        table = emulate(model, instructions)
        for instruction in instructions:
            for called in (False, True):
                _each([functools.partial(table.row, instruction[0], called)])


def _shape(selector: int) -> tuple[ByteOrder, int]:
    return "big" if selector & 1 else "little", 4 if selector & 2 else 8


# ------------------------------------------------------------------------------------- seeds


@st.composite
def _sections(draw: st.DrawFn) -> bytes:
    section = draw(damaged_sections()).section
    target = section.target
    kind = 4 if section.kind == "debug_frame" else 0
    selector = kind | (target.byteorder == "big") | (target.address_size == 4) << 1
    return bytes([selector]) + bytes(section.data)


@st.composite
def _headers(draw: st.DrawFn) -> bytes:
    header = draw(damaged_headers())
    target = header.made.section.target
    return bytes([(target.byteorder == "big") | (target.address_size == 4) << 1]) + header.data


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


_PACKERS = (functools.partial(gzip.compress, mtime=0), lzma.compress, _zstd)
_PACKED = st.builds(
    lambda pack, data, times: pack(data * times),
    st.sampled_from(_PACKERS),
    st.binary(max_size=300),
    st.sampled_from([1, 2, 1000]),
)


def _recorded(core: bytes) -> bytes:
    """The snapshot file, unpacked, that `unwind-core --record` makes of a core."""
    import contextlib
    import io
    from tempfile import TemporaryDirectory

    from unwind.cli.core import main

    with TemporaryDirectory() as directory:
        given, made = Path(directory) / "core", Path(directory) / "snapshot"
        given.write_bytes(core)
        with contextlib.redirect_stdout(io.StringIO()):
            main([str(given), "--record", str(made), "--sysroot", _empty()])
        return bytes(load(str(made)).data)


_MARK = b"\0between two sections\0"


def _sent() -> bytes:
    """What a good server sends of the program that the recordings are of."""
    program = Elf(shipped()["program"])
    pieces = [program.section(name) for name in (".eh_frame_hdr", ".eh_frame")]
    return _MARK.join(bytes(program.data(section)) for section in pieces if section is not None)


def _linking() -> list[bytes]:
    """Files with each of the sections that lead to others, and with a note of their package."""
    said = b'{"type":"deb","name":"hello"}\0'
    note = struct.pack("<III4s", 4, len(said), 0xCAFE1A7E, b"FDO\0") + said
    contents = {
        ".gnu_debuglink": b"lib.debug\0\0\0\x12\x34\x56\x78",
        ".gnu_debugaltlink": b"../x.debug\0" + bytes(range(20)),
        ".debug_sup": b"\5\0\0x.debug\0\4abcd",
        ".note.package": note,
    }
    return [
        make_elf(sections=[Sect(name, SHT.NOTE if name[:2] == ".n" else SHT.PROGBITS, data)])
        for name, data in contents.items()
    ]


def _dump() -> bytes:
    """A dump of two functions, one of which moved."""
    pack = struct.pack
    code = pack("<IIQQQQ", 7, 7, 0x1000, 0x1000, 16, 1) + b"one\0" + bytes(16)
    moved = pack("<IIQQQQQ", 7, 7, 0x5000, 0x1000, 0x5000, 16, 1)
    records = [(0, code), (2, bytes(16)), (1, moved), (3, b"")]
    head = pack("<IIIIIIQQ", 0x4A695444, 1, 40, 62, 0, 7, 0, 0)
    return head + b"".join(pack("<IIQ", n, 16 + len(body), 0) + body for n, body in records)


_DOCUMENTS = st.sampled_from(
    [
        b'<target><architecture>aarch64</architecture><xi:include href="core.xml"/>'
        b'<feature name="c"><reg name="x0" bitsize="64" regnum="0" type="int"/>'
        b'<reg name="sp" bitsize="64"/></feature></target>',
        b'<threads><thread id="p1.1" core="0" name="a"/><thread id="2"/></threads>',
        b'<library-list-svr4 version="1.0" main-lm="0x1"><library name="/lib/l.so" lm="0x10" '
        b'l_addr="0x7f00" l_ld="0x7f10"/></library-list-svr4>',
        b"T05thread:p1.1;06:0000000000000000;07:10e0ffff*!}]0*~",
    ]
)

ENTRY_POINTS = {
    entry.name: entry
    for entry in (
        EntryPoint("cfi", _cfi, _sections()),
        EntryPoint("search-table", _search_table, _headers()),
        EntryPoint("expression", _expression, expressions().map(lambda code: b"\0" + code)),
        EntryPoint("pdr", _pdr, st.binary(max_size=200)),
        EntryPoint("code", _code, st.binary(max_size=300)),
        EntryPoint("remote", _remote, damaged(_DOCUMENTS)),
        EntryPoint(
            "jitdump", _jitdump, damaged(st.sampled_from([_dump(), b"1000 10 f\n20 8 g\n"]))
        ),
        EntryPoint("links", _links, damaged(st.sampled_from(_linking()), elf_areas)),
        EntryPoint("fetched", _fetched, damaged(st.just(_sent()))),
        EntryPoint("packed", _packed, damaged(_PACKED)),
        EntryPoint("elf", _elf, elf_files().map(lambda made: made.data) | damaged_elf_files()),
        EntryPoint(
            "lines",
            _lines,
            damaged(st.sampled_from(list(debug_files().values())), debug_areas),
        ),
        EntryPoint("tables", _tables, damaged(chains(most=4).map(image), elf_areas)),
        EntryPoint(
            "core",
            _core,
            core_files().map(lambda made: made.data)
            | damaged_core_files().map(lambda made: made.data),
        ),
        EntryPoint(
            "perf",
            _perf,
            st.sampled_from([data for name, data in shipped().items() if name != "program"])
            | damaged(st.sampled_from([shipped()["fields.data"], shipped()["stream.data"]])),
        ),
        EntryPoint(
            "snapshot",
            _snapshot,
            damaged(core_files(most=4).map(lambda made: _recorded(made.data))),
        ),
    )
}
