"""Labels: names of a profile in, text that is safe and not too long for any format out."""

from __future__ import annotations

from unwind.writers.escape import escape

__all__ = ["LONGEST", "label", "short"]

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


def short(name: str) -> str:
    """`name` with the arguments of its templates folded: `std::vector<…>::push_back(int const&)`.

    For where there is little room. What stands in angle brackets at the beginning of a name or of
    an argument stays, as in Rust's `<Type as Trait>::method`, and so do C++'s operators.
    """
    parts: list[str] = []
    depth, at = 0, 0
    while at < len(name):
        character = name[at]
        if character == "<" and not depth and name.endswith("operator", 0, at):
            end = at + 1
            while end < len(name) and name[end] in "<=>":
                end += 1
            parts.append(name[at:end])
            at = end
            continue
        if character == "<" and (
            depth or (at and (name[at - 1].isalnum() or name[at - 1] in "_:"))
        ):
            depth += 1
            if depth == 1:
                parts.append("<…>")
        elif character == ">" and depth and name[at - 1] not in "-=":
            depth -= 1
        elif not depth:
            parts.append(character)
        at += 1
    return "".join(parts) if not depth else name
