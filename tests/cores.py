"""Cores and ELF files made by hand, of any class and byte order, for tests of what reads them."""

from __future__ import annotations

import struct

from unwind.testing.core_files import (
    NT_AUXV,
    NT_FILE,
    NT_PRPSINFO,
    NT_PRSTATUS,
    NT_SIGINFO,
    PAGE,
    Core,
    Load,
    R,
    W,
    X,
)


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
    "lines",
    "map_file",
    "shared_object",
    "without",
]
