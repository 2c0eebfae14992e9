"""A target's memory: a client of its stub in; bytes, asked for in blocks and kept, out."""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["RemoteMemory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.remote.client import Client

_PAGE = 4096
_TOP = 1 << 64
_LARGEST = 1 << 26  # bytes of one read
_MOST = 1 << 28  # bytes of all blocks: a stub that has all of memory to offer is a lie


class RemoteMemory:
    """The memory of a target that stands still: blocks are asked for once and kept.

    Raises MemoryFault for what the stub does not read.
    """

    __slots__ = ("_block", "_blocks", "_client")

    def __init__(self, client: Client):
        self._client = client
        size = (client.packet_size - 5) // 2
        self._block = min(1 << size.bit_length() - 1, _PAGE)
        self._blocks: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`."""
        start = address & -self._block
        block = self._blocks.get(start, b"")
        at = address - start
        if 0 <= size <= len(block) - at:
            return block[at : at + size]
        return self._read_on(address, size)

    def forget(self) -> None:
        """The target has run: what was read is old."""
        self._blocks.clear()

    def _read_on(self, address: int, size: int) -> bytes:
        """The bytes of a read over the end of a block, or of one that is not there whole."""
        if not 0 <= size <= _LARGEST:
            raise MemoryFault(address, size, "more than is read at once")
        if not 0 <= address <= _TOP - size:
            raise MemoryFault(address, size, "no such address")
        pieces, here, end = [], address, address + size
        while here < end:
            start = here & -self._block
            block = self._blocks.get(start)
            block = self._fetch(start) if block is None else block
            piece = block[here - start :][: end - here]
            if not piece:  # the stub reads no whole blocks there
                piece = self._client.read(here, min(end - here, self._block))
            pieces.append(piece)
            here += len(piece)
        return b"".join(pieces)

    def _fetch(self, start: int) -> bytes:
        """The block at `start`, as far as the stub reads it."""
        if len(self._blocks) * self._block > _MOST:
            raise MemoryFault(start, self._block, f"{_MOST} bytes were read from the stub by now")
        try:
            block = self._client.read(start, self._block)
        except MemoryFault:
            block = b""
        self._blocks[start] = block
        return block
