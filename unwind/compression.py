"""Compressed sections: their bytes in, what they unpack to out, as far as it was asked for.

`where` names the section in errors: FormatError for damaged data, MissingPackage for zstd where
Python has none.
"""

from __future__ import annotations

from unwind.errors import FormatError, MissingPackage

__all__ = ["inflate", "unxz", "unzstd"]

_MOST_UNPACKED = 1 << 28  # bytes of .gnu_debugdata when unpacked; libxul's take a tenth


def inflate(raw: memoryview, size: int, where: str) -> bytes:
    """At most `size` bytes of a zlib stream, which may end before them."""
    import zlib

    try:
        return zlib.decompressobj().decompress(raw, size) if size else b""
    except zlib.error as error:
        raise FormatError(f"damaged zlib data: {error}", where) from None
    except MemoryError:
        raise FormatError(f"no memory for {size} bytes when decompressed", where) from None


def unzstd(raw: memoryview, size: int, where: str) -> bytes:
    """As `inflate`, by the package `zstandard`."""
    try:
        import zstandard
    except ImportError:
        raise MissingPackage("zstandard", f"reading {where}", "zstd") from None
    pieces: list[bytes] = []
    try:
        with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            while size > 0 and (piece := stream.read(min(size, 1 << 20))):
                pieces.append(piece)
                size -= len(piece)
        return b"".join(pieces)
    except zstandard.ZstdError as error:
        raise FormatError(f"damaged zstd data: {error}", where) from None
    except MemoryError:
        raise FormatError("no memory for what is decompressed", where) from None


def unxz(raw: memoryview, where: str) -> bytes:
    """What an xz stream holds, which tells no size beforehand."""
    import lzma

    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MOST_UNPACKED)
        # Symbol tables shrink to a fifth; what shrinks to a hundredth is not read to its end.
        return unpacker.decompress(raw, min(_MOST_UNPACKED, (1 << 16) + 100 * len(raw)))
    except lzma.LZMAError as error:
        raise FormatError(f"damaged xz data: {error}", where) from None
    except MemoryError:
        raise FormatError("no memory for what is decompressed", where) from None
