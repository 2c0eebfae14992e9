"""Cores: threads, notes and memory in, the bytes of an ELF core out, of any class and order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unwind.architecture import Architecture

__all__ = [
    "NT_AUXV",
    "NT_FILE",
    "NT_PRPSINFO",
    "NT_PRSTATUS",
    "NT_SIGINFO",
    "PAGE",
    "Core",
    "Load",
    "R",
    "W",
    "X",
    "stack_pages",
]

PAGE = 4096
R, W, X = 4, 2, 1

NT_PRSTATUS, NT_PRPSINFO, NT_AUXV = 1, 3, 6
NT_SIGINFO, NT_FILE = 0x53494749, 0x46494C45

AT_PHDR, AT_PHENT, AT_PHNUM, AT_BASE, AT_ENTRY = 3, 4, 5, 7, 9
AT_HWCAP, AT_EXECFN, AT_VDSO = 16, 31, 33


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

    def thread_of(
        self, arch: Architecture, tid: int, registers: Mapping[int, int], signal: int = 0
    ) -> None:
        """NT_PRSTATUS as Linux lays it out for `arch`; `registers` by DWARF number."""
        layout = arch.layouts["linux.prstatus"]
        record = bytearray(layout.size)
        signal_at, pid_at = layout.signal or 0, layout.pid or 0
        record[signal_at : signal_at + 2] = self.pack("h", signal)
        record[pid_at : pid_at + 4] = self.pack("i", tid)
        for number, value in registers.items():
            at = layout.offsets.get(number)
            if at is not None:
                record[at : at + layout.width] = self.pack("P", value)
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
        align = PAGE if kind == 1 else 4  # BFD takes the notes' for how they are padded
        if self.bits == 64:
            return self.pack("IIQQQQQQ", kind, flags, at, start, 0, size, memory, align)
        return self.pack("IIIIIIII", kind, at, start, 0, size, memory, flags, align)


def stack_pages(stacks: Sequence[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The same memory in whole pages, as a core has it; what lies between is zero."""
    found: list[tuple[int, bytearray]] = []
    for at, data in sorted(stacks):
        start, end = at & -PAGE, at + len(data) + PAGE - 1 & -PAGE
        if not found or start > found[-1][0] + len(found[-1][1]):
            found.append((start, bytearray()))
        low, pages = found[-1]
        pages.extend(bytes(max(end - low - len(pages), 0)))
        pages[at - low : at - low + len(data)] = data
    return [(start, bytes(pages)) for start, pages in found]
