"""A recording's bytes in, its records out, in the order of the file; what is packed is unpacked."""

from __future__ import annotations

from struct import Struct

from unwind.errors import MissingPackage
from unwind.perf.constants import RECORD

__all__ = ["Records"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_WINDOW = 1 << 22  # bytes that are announced at once
_LARGEST_PIECE = 1 << 26  # bytes that one compressed record, of 64 kB at most, may unpack to


class Records:
    """The records of `data`, the data section of a recording.

    Iterating gives (kind, misc, buffer, begin, end): the record is buffer[begin:end], its header of
    8 bytes included. A buffer is `data` itself, or what a compressed record held. `complain` gets a
    sentence on what could not be read; `done` is how many bytes of `data` are behind. `soon` is
    told which bytes, from where and how many, are read next.
    """

    def __init__(
        self,
        data: memoryview,
        order: str,
        complain: Callable[[str], None],
        soon: Callable[[int, int], None] | None = None,
    ):
        self.data = data
        self._soon = soon
        self.order = order
        self.complain = complain
        self.done = 0
        self._header = Struct(order + "IHH").unpack_from
        self._u64 = Struct(order + "Q").unpack_from
        self._unpack: Any = None
        self._rest = b""  # of a record that goes on in the next compressed one

    def __iter__(self) -> Iterator[tuple[int, int, memoryview, int, int]]:
        data, header = self.data, self._header
        at, size = 0, len(data)
        announced = 0 if self._soon is not None else size
        while at + 8 <= size:
            if at >= announced and self._soon is not None:
                self._soon(at, _WINDOW)
                announced = at + _WINDOW
            kind, misc, length = header(data, at)
            end = at + length
            if length < 8 or end > size:
                break
            self.done = end
            if kind < RECORD.auxtrace:
                yield kind, misc, data, at, end
            elif kind in (RECORD.compressed, RECORD.compressed2):
                yield from self._packed(kind, at, end)
            else:
                yield kind, misc, data, at, end
                if kind == RECORD.auxtrace and length >= 16:
                    end += self._u64(data, at + 8)[0]  # the trace itself lies behind its record
                    self.done = min(end, size)
            at = end
        if at > size:
            self.complain(f"the recording is truncated: {at - size} bytes of an AUX trace miss")
        elif at < size:
            self.complain(f"no record at byte {at} of the data: the last {size - at} are lost")
        if self._rest:
            self.complain(f"the compressed data ends within a record: {len(self._rest)} bytes")

    def _packed(
        self, kind: int, at: int, end: int
    ) -> Iterator[tuple[int, int, memoryview, int, int]]:
        """The records in a compressed one, which may begin in the one before."""
        begin = at + 8
        if kind == RECORD.compressed2:  # states its size, and is padded
            end = min(end, begin + 8 + self._u64(self.data, begin)[0]) if end - begin >= 8 else end
            begin += 8
        plain = memoryview(self._rest + self._unpacked(self.data[begin:end]))
        here, size, header = 0, len(plain), self._header
        while here + 8 <= size:
            inner, misc, length = header(plain, here)
            if length < 8:
                self.complain(f"no record in the compressed one at byte {at} of the data")
                here = size
                break
            if here + length > size:
                break
            yield inner, misc, plain, here, here + length
            here += length
        self._rest = bytes(plain[here:])

    def _unpacked(self, packed: memoryview) -> bytes:
        """What a piece of the zstd stream holds, b"" where it is damaged."""
        try:
            import zstandard
        except ImportError:
            raise MissingPackage("zstandard", "reading a recording of perf -z", "zstd") from None
        if self._unpack is None:
            self._unpack = zstandard.ZstdDecompressor().decompressobj()
        pieces, total = [], 0
        try:
            for at in range(0, len(packed), 1024):  # a kilobyte of a bomb makes 32 MB
                piece = self._unpack.decompress(packed[at : at + 1024])
                pieces.append(piece)
                total += len(piece)
                if total > _LARGEST_PIECE:
                    raise zstandard.ZstdError("it unpacks to more than a record can hold")
        except zstandard.ZstdError as error:
            self.complain(f"compressed records are lost: {error}")
            self._unpack, self._rest = None, b""
            return b""
        return b"".join(pieces)
