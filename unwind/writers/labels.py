"""Labels: names of a profile in, text that is safe and not too long for any format out."""

from __future__ import annotations

from unwind.writers.escape import escape

__all__ = ["LONGEST", "label"]

LONGEST = 4096  # characters; templates reach thousands, anything beyond is for no reader


def label(name: str) -> str:
    r"""`name` as one line of printable text, of at most `LONGEST` characters.

    Control characters and undecodable bytes become `\xNN`. What is longer keeps its beginning,
    and a checksum that keeps it apart from others that begin so.
    """
    text = escape(name)
    if len(text) <= LONGEST:
        return text
    from zlib import crc32

    check = f"...{crc32(text.encode()):08x}"
    return text[: LONGEST - len(check)] + check
