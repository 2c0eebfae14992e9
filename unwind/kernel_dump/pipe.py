"""The pipe of a crash in; the head of the core, where its notes lie, out; and the rest on demand.

The kernel writes headers, notes and memory in this order (Linux v6.13 fs/binfmt_elf.c
elf_core_dump). What is left unread keeps it waiting, and the process with it.
"""

from __future__ import annotations

import os
from mmap import PROT_READ, mmap

from unwind.elf import PT, Elf
from unwind.errors import SourceError
from unwind.unpack import Input, write_sparse

__all__ = ["LARGEST_HEAD", "read_head", "read_on"]

LARGEST_HEAD = 1 << 28  # bytes: 65,535 mappings with long names, and 30,000 threads
_CHUNK = 1 << 18
_HEADER = 64


def read_head(pipe: int) -> bytes:
    """A core up to the end of its notes; less where the pipe ends before.

    Raises SourceError for what is no core or has no end of notes in sight, FormatError for a
    header that contradicts itself.
    """
    head = _filled(pipe, bytearray(), _HEADER)
    if head[:4] != b"\x7fELF":
        raise SourceError("not a core: it does not begin with an ELF header", "-")
    while len(head) < (wanted := _wanted(head)):
        if wanted > LARGEST_HEAD:
            raise SourceError(f"its notes end after {wanted} bytes, which is too much", "-")
        before = len(head)
        if len(_filled(pipe, head, wanted)) < wanted and len(head) == before:
            break
    return bytes(head)


def read_on(head: bytes, pipe: int, file: int, most: int) -> Input:
    """All of the core, `most` bytes at the utmost, by way of a new `file`, which is mapped.

    A core that is cut there is like any other that is truncated.
    """
    write_sparse(file, 0, head)
    size = len(head)
    while size < most and (piece := os.read(pipe, min(_CHUNK, most - size))):
        write_sparse(file, size, piece)
        size += len(piece)
    os.truncate(file, size)
    return Input(mmap(file, size, prot=PROT_READ), [], file)


def _wanted(head: bytearray) -> int:
    """How many bytes there must be to know all of the notes, as far as `head` tells."""
    elf = Elf(bytes(head).ljust(_HEADER, b"\0"), "-")
    header = elf.header
    end = header.phoff + header.phnum * header.phentsize
    if len(head) < min(header.phoff + header.phentsize, LARGEST_HEAD):
        # Of 65,535 and more mappings only the place of the notes tells how many there are.
        return header.phoff + header.phentsize
    return max([end, *[row[2] + row[4] for row in elf.program_rows if row[0] == PT.NOTE]])


def _filled(pipe: int, head: bytearray, size: int) -> bytearray:
    """`head` with what comes until it has `size` bytes, or nothing comes any more."""
    while len(head) < size and (piece := os.read(pipe, min(size - len(head), _CHUNK))):
        head += piece
    return head
