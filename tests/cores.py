"""Cores and ELF files made by hand, of any class and byte order, for tests of what reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
R, W, X = 4, 2, 1

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6
NT_SIGINFO, NT_FILE = 0x53494749, 0x46494C45

AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_ENTRY, AT_EXECFN, AT_VDSO = 3, 4, 5, 7, 9, 31, 33


@dataclass
class Load:
    """A PT_LOAD of a core; `size` is that of the mapping, `data` what was dumped of it."""

    start: int
    data: bytes = b""
    size: int | None = None
    flags: int = R | W


@dataclass
class Core:
    """An ELF core before it is written."""

    bits: int = 64
    order: str = "<"
    machine: int = 62
    flags: int = 0
    type: int = 4
    loads: list[Load] = field(default_factory=list)
    notes: list[bytes] = field(default_factory=list)

    @property
    def word(self) -> str:
        return "Q" if self.bits == 64 else "I"

    def pack(self, layout: str, *values: int | bytes) -> bytes:
        """`struct.pack` in the core's byte order; P stands for a word."""
        return struct.pack(self.order + layout.replace("P", self.word), *values)

    def note(self, kind: int, data: bytes, owner: bytes = b"CORE\0") -> None:
        head = self.pack("III", len(owner), len(data), kind)
        self.notes.append(head + owner + bytes(-len(owner) % 4) + data + bytes(-len(data) % 4))

    def thread(self, tid: int, registers: dict[int, int] | None = None, signal: int = 0) -> None:
        """NT_PRSTATUS as Linux lays it out for x86_64; `registers` by index in pr_reg."""
        record = bytearray(336)
        struct.pack_into(self.order + "h", record, 12, signal)
        struct.pack_into(self.order + "i", record, 32, tid)
        for index, value in (registers or {}).items():
            struct.pack_into(self.order + "Q", record, 112 + 8 * index, value)
        self.note(NT_PRSTATUS, bytes(record))

    def process(self, pid: int, name: bytes, arguments: bytes) -> None:
        """NT_PRPSINFO as 64-bit Linux and 32-bit Linux with 16-bit uids lay it out."""
        before = 24 if self.bits == 64 else 12
        numbers = self.pack("4i", pid, 1, pid, pid)
        self.note(NT_PRPSINFO, bytes(before) + numbers + struct.pack("16s80s", name, arguments))

    def auxv(self, **values: int) -> None:
        """NT_AUXV: `phdr=0x400040` is AT_PHDR."""
        pairs = [(globals()[f"AT_{name.upper()}"], value) for name, value in values.items()]
        self.note(NT_AUXV, b"".join(self.pack("PP", *pair) for pair in [*pairs, (0, 0)]))

    def files(self, *mapped: tuple[int, int, int, str]) -> None:
        """NT_FILE: (start, end, offset in bytes, name) each."""
        data = self.pack("PP", len(mapped), PAGE)
        for start, end, offset, _ in mapped:
            data += self.pack("PPP", start, end, offset // PAGE)
        self.note(NT_FILE, data + b"".join(name.encode() + b"\0" for *_, name in mapped))

    def pieces(self, extended: bool = False) -> Iterable[tuple[int, bytes]]:
        """(offset, bytes) of what the file holds; `extended`: counted in a section header."""
        headers: list[tuple[int, int, int, bytes, int | None]] = [(4, R, 0, b"", None)]
        headers += [(1, load.flags, load.start, load.data, load.size) for load in self.loads]
        header_size, entry = (64, 56) if self.bits == 64 else (52, 32)
        notes = b"".join(self.notes)
        offset = header_size + entry * len(headers)
        table, contents = bytearray(), [(offset, notes)]
        for kind, flags, start, data, size in headers:
            body = notes if kind == 4 else data
            at = offset if kind == 4 else -(-offset // PAGE) * PAGE
            memory = len(body) if size is None else size
            table += self._program(kind, flags, at, start, len(body), 0 if kind == 4 else memory)
            if kind == 1 and body:
                contents.append((at, body))
            offset = at + len(body)
        count, sections = len(headers), 0
        if extended:
            sections = -(-offset // PAGE) * PAGE
            tail = (0, 0, 0, 0, 0, 1, 0, count, 0, 0)
            contents.append((sections, self.pack("IIPPPPIIPP", *tail)))
            count = 0xFFFF
        yield 0, self._head(header_size, entry, count, sections) + bytes(table)
        yield from contents

    def build(self, extended: bool = False) -> bytes:
        image = bytearray()
        for offset, data in self.pieces(extended):
            image += bytes(offset - len(image)) if offset > len(image) else b""
            image[offset : offset + len(data)] = data
        return bytes(image)

    def write(self, path: Path, extended: bool = False) -> Path:
        path.write_bytes(self.build(extended))
        return path

    def _head(self, size: int, entry: int, count: int, sections: int) -> bytes:
        ident = b"\x7fELF" + bytes((self.bits // 32, 1 if self.order == "<" else 2, 1)) + bytes(9)
        numbers = (self.type, self.machine, 1, 0, size, sections, self.flags, size, entry, count)
        shentsize = (64 if self.bits == 64 else 40) if sections else 0
        return ident + self.pack("HHIPPPIHHHHHH", *numbers, shentsize, 1 if sections else 0, 0)

    def _program(self, kind: int, flags: int, at: int, start: int, size: int, memory: int) -> bytes:
        if self.bits == 64:
            return self.pack("IIQQQQQQ", kind, flags, at, start, 0, size, memory, PAGE)
        return self.pack("IIIIIIII", kind, at, start, 0, size, memory, flags, PAGE)


def shared_object(
    build_id: bytes | None = bytes(range(20)),
    code: bytes = b"\xc3" * 32,
    *,
    link: tuple[str, int] | None = None,
    filler: bytes = b"",
) -> bytes:
    """A small ELF64 library: a page of headers and notes (R), a page of code (RX) at 0x1000.

    `link` is the name and the CRC of its .gnu_debuglink, `filler` lies in the first page.
    """
    note = b""
    if build_id is not None:
        note = struct.pack("<III4s", 4, len(build_id), 3, b"GNU\0") + build_id
        note += bytes(-len(note) % 4)
    rows = [(1, R, 0, 0, PAGE, PAGE), (1, R | X, PAGE, PAGE, len(code), len(code))]
    if note:
        rows.append((4, R, 512, 512, len(note), len(note)))
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, at, vaddr, 0, size, memory, PAGE)
        for kind, flags, at, vaddr, size, memory in rows
    )
    body, shoff, shnum = b"", 0, 0
    if link is not None:
        name = link[0].encode() + b"\0"
        content = name + bytes(-len(name) % 4) + struct.pack("<I", link[1])
        names = b"\0.gnu_debuglink\0.shstrtab\0"
        at = PAGE + len(code)
        body = content + names
        sections = [(0,) * 10]
        sections.append((1, 1, 0, 0, at, len(content), 0, 0, 1, 0))
        sections.append((16, 3, 0, 0, at + len(content), len(names), 0, 0, 1, 0))
        shoff, shnum = at + len(body), len(sections)
        body += b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in sections)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    numbers = (3, 62, 1, 0, 64, shoff, 0, 64, 56, len(rows), 64, shnum, max(shnum - 1, 0))
    head = ident + struct.pack("<HHIQQQIHHHHHH", *numbers) + table
    page = head + bytes(512 - len(head)) + note + filler
    return page + bytes(PAGE - len(page)) + code + body


def map_file(core: Core, data: bytes, base: int, name: str, *, text: bool = False) -> None:
    """Maps a `shared_object` at `base` as the kernel dumps it: its first page, `text` only if so.

    The line for NT_FILE has to be written by the caller: `core.files(*lines(base, name))`.
    """
    code = data[PAGE : 2 * PAGE]
    core.loads.append(Load(base, data[:PAGE], PAGE, R))
    core.loads.append(Load(base + PAGE, code if text else b"", PAGE, R | X))


def lines(base: int, name: str) -> list[tuple[int, int, int, str]]:
    """What NT_FILE says of a `shared_object` mapped at `base`."""
    return [(base, base + PAGE, 0, name), (base + PAGE, base + 2 * PAGE, PAGE, name)]


def without(kind: int, core: bytes) -> bytes:
    """A little-endian core whose notes of type `kind` are of a type that nobody knows."""
    return core.replace(
        struct.pack("<I5s", kind, b"CORE"), struct.pack("<I5s", 0x7FFF0000, b"CORE")
    )
