"""A dump of code that was made at run time (jit-PID.dump) in, its functions out.

Linux v6.13 tools/perf/Documentation/jitdump-specification.txt. Code comes and moves as the program
runs; what was last at an address counts.
"""

from __future__ import annotations

import os
from struct import Struct

from unwind.errors import FormatError

__all__ = ["jit_symbols"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.protocols import ByteOrder

_MAGIC = 0x4A695444  # "JiTD"
_LOAD, _MOVE, _CLOSE = 0, 1, 3
_LONGEST_NAME = 1 << 16
_MOST = 1 << 21  # functions; a large node process has 100,000


def jit_symbols(data: bytes | memoryview) -> dict[int, tuple[int, str]]:
    """For each start of a function its end and its name; FormatError where it is no dump.

    A dump that is cut short, as of a process that runs on, gives what it has.
    """
    view = memoryview(data).cast("B")
    order = _byteorder(view)
    sign = "<" if order == "little" else ">"
    prefix, load, move = Struct(sign + "II8x"), Struct(sign + "8x8xQQQ"), Struct(sign + "8x8xQQQQ")
    found: dict[int, tuple[int, str]] = {}
    names: dict[int, str] = {}  # by the index of the code, which stays when it moves
    at = int.from_bytes(view[8:12], order)  # the header's own size: it may grow
    while at + prefix.size <= len(view) and len(names) < _MOST:
        kind, size = prefix.unpack_from(view, at)
        body = view[at + prefix.size : at + size]
        if size < prefix.size or at + size > len(view) or kind == _CLOSE:
            break
        at += size
        if kind == _LOAD and len(body) >= load.size:
            start, length, index = load.unpack_from(body)
            text, end, _ = bytes(body[load.size :][:_LONGEST_NAME]).partition(b"\0")
            if end and length:
                names[index] = os.fsdecode(text)
                found[start] = start + length, names[index]
        elif kind == _MOVE and len(body) >= move.size:
            old, new, length, index = move.unpack_from(body)
            if index in names and length:
                found.pop(old, None)
                found[new] = new + length, names[index]
    return found


def _byteorder(view: memoryview) -> ByteOrder:
    """The byte order of the machine that wrote it, by the magic number."""
    orders: tuple[ByteOrder, ...] = ("little", "big")
    for order in orders:
        if int.from_bytes(view[:4], order) == _MAGIC and len(view) >= 40:
            return order
    raise FormatError("no dump of code made at run time", offset=0)
