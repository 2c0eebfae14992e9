"""A kernel's list of symbols (/proc/kallsyms) in, the names of its addresses out."""

from __future__ import annotations

import os
from bisect import bisect_right
from struct import Struct, error

from unwind.errors import SourceError

__all__ = ["Kallsyms", "is_elf", "read_kallsyms", "recorded_kallsyms"]

_CODE = b"tTwWvV"
_MOST_BYTES = 1 << 28
_NT_GNU_BUILD_ID = 3


class Kallsyms:
    """Symbols of code by address; `module` of each, None for those of the kernel proper."""

    def __init__(self, symbols: list[tuple[int, bytes, bytes]]):
        symbols.sort(key=lambda symbol: symbol[0])
        self._starts = [start for start, _, _ in symbols]
        self._names = [(name, module) for _, name, module in symbols]

    def find(self, address: int) -> tuple[str, str | None, int] | None:
        """The name, the module and the offset of `address`, None below all symbols."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        name, module = self._names[at]
        offset = address - self._starts[at]
        return os.fsdecode(name), os.fsdecode(module) if module else None, offset


def read_kallsyms(path: str) -> Kallsyms:
    """The symbols in a file as /proc/kallsyms is; SourceError where there are none.

    Who may not see the kernel's addresses reads zeroes, which are no symbols.
    """
    try:
        with open(path, "rb") as file:
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError as error:
        raise SourceError((error.strerror or str(error)).lower(), path) from None
    symbols, is_hidden = [], False
    for line in lines:
        words = line.split(None, 3)
        if len(words) < 3 or words[1] not in _CODE:
            continue
        try:
            address = int(words[0], 16)
        except ValueError:
            continue
        is_hidden = is_hidden or not address
        if address:
            module = words[3].strip(b"[] ") if len(words) > 3 else b""
            symbols.append((address, words[2], module))
    if not symbols:
        hint = "root sees them; others with kptr_restrict=0 and perf_event_paranoid<=1"
        raise SourceError("no kernel symbols with addresses", path, hint if is_hidden else "")
    return Kallsyms(symbols)


def is_elf(path: str) -> bool:
    """Whether a file is rather a kernel itself than a list of its symbols."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def recorded_kallsyms(build_id: bytes | None, running: str = "/") -> str:
    """The path of the symbols of a kernel: what perf kept of it, or the running kernel's own.

    perf keeps them in ~/.debug as it records. `running` is where /proc and /sys lie. SourceError
    where neither is of the kernel with that build-id, or the recording does not tell it.
    """
    wanted = "--kallsyms recorded"
    if build_id is None:
        raise SourceError("the recording does not tell the kernel's build-id", wanted)
    name = f"~/.debug/[kernel.kallsyms]/{build_id.hex()}/kallsyms"
    kept = os.path.expanduser(name)
    if os.path.isfile(kept):
        return kept
    if _own_build_id(os.path.join(running, "sys/kernel/notes")) == build_id:
        return os.path.join(running, "proc/kallsyms")
    raise SourceError(f"no {name}, and another kernel is running", wanted, "--kallsyms FILE")


def _own_build_id(path: str) -> bytes | None:
    """The build-id in the notes of the running kernel."""
    head = Struct("=III")
    try:
        with open(path, "rb") as file:
            data, at = file.read(65536), 0
        while True:
            name_size, size, kind = head.unpack_from(data, at)
            begin = at + head.size + (name_size + 3 & -4)
            if kind == _NT_GNU_BUILD_ID and data[at + head.size :][:4] == b"GNU\0":
                return data[begin : begin + size]
            at = begin + (size + 3 & -4)
    except (OSError, error):  # the notes have come to their end
        return None
