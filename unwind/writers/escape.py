"""escape: the crashed program's words in, one line of printable text out."""

from __future__ import annotations

__all__ = ["escape"]


def escape(text: str) -> str:
    r"""`text` with control characters and undecodable bytes written as `\xNN` or `\uNNNN`.

    Names, paths and command lines are the crashed program's words: they may hold terminal
    sequences, line ends or bytes that are no UTF-8 (which Python keeps as lone surrogates).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)


def _escaped(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # PEP 383: the byte itself
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
