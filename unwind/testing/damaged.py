"""Strategies of damage: bytes and the areas in them in, bytes with something wrong in them out.

`damage.py` breaks large files by chance, from a seed; here Hypothesis chooses what is broken, so
that a failure shrinks to one small wound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from unwind.testing.damage import Area, Field

if TYPE_CHECKING:
    from unwind.protocols import ByteOrder

__all__ = ["damaged", "wounded"]

_BYTES = st.sampled_from([0x00, 0xFF, 0x80, 0x7F, 0x01])


def damaged(
    sound: st.SearchStrategy[bytes],
    areas: Callable[[bytes], Sequence[Area]] | None = None,
    byteorder: ByteOrder = "little",
) -> st.SearchStrategy[bytes]:
    """What `sound` makes, with one to three things broken in it.

    Bits flip, bytes are replaced, left out, doubled, put elsewhere; the end is cut off. Where
    `areas` tells which numbers lie where, those get values at the edge of something, or each
    other's: wrong lengths, loops, overlaps.
    """
    return sound.flatmap(lambda data: wounded(data, areas(data) if areas else (), byteorder))


@st.composite
def wounded(
    draw: st.DrawFn, data: bytes, areas: Sequence[Area] = (), byteorder: ByteOrder = "little"
) -> bytes:
    """`data` with one to three things broken."""
    fields = [field for area in areas for field in area.fields]
    broken = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        if not broken:
            break
        whole = [field for field in fields if field.offset + field.size <= len(broken)]
        by_number = draw(st.booleans())
        if whole and by_number:
            _number(draw, broken, whole, byteorder)
        else:
            breaking = draw(_BREAKING)
            breaking(draw, broken)
    return bytes(broken)


def _flip(draw: st.DrawFn, data: bytearray) -> None:
    """One bit."""
    data[_place(draw, data)] ^= 1 << draw(st.integers(0, 7))


def _byte(draw: st.DrawFn, data: bytearray) -> None:
    """One byte by one that is special to LEB128, to signs, to lengths."""
    data[_place(draw, data)] = draw(_BYTES)


def _truncate(draw: st.DrawFn, data: bytearray) -> None:
    """The end comes here."""
    del data[_place(draw, data) :]


def _leave_out(draw: st.DrawFn, data: bytearray) -> None:
    """Some bytes are gone, and all that follows lies before its place."""
    at = _place(draw, data)
    del data[at : at + draw(st.integers(1, 16))]


def _double(draw: st.DrawFn, data: bytearray) -> None:
    """Some bytes are there twice, and all that follows lies behind its place."""
    at = _place(draw, data)
    data[at:at] = data[at : at + draw(st.integers(1, 16))]


def _copy(draw: st.DrawFn, data: bytearray) -> None:
    """Some bytes are those of another place."""
    at, other, size = _place(draw, data), _place(draw, data), draw(st.integers(1, 16))
    piece = data[other : other + size][: len(data) - at]
    data[at : at + len(piece)] = piece


_BREAKING = st.sampled_from([_flip, _byte, _truncate, _leave_out, _double, _copy])


def _place(draw: st.DrawFn, data: bytearray) -> int:
    return draw(st.integers(0, len(data) - 1))


def _number(
    draw: st.DrawFn, data: bytearray, fields: Sequence[Field], byteorder: ByteOrder
) -> None:
    """A number by one at the edge of something, or by that of another field."""
    field = draw(st.sampled_from(fields))
    old = _get(data, field, byteorder)
    other = draw(st.sampled_from(fields))
    bits = 8 * field.size
    edges = [0, 1, old + 1, old - 1, old + 4, 2 * old, -old, -1, 1 << bits - 1, len(data)]
    # Another field's value, or the way to it: overlaps, loops.
    edges += [_get(data, other, byteorder), other.offset, field.offset - other.offset]
    new = draw(st.sampled_from(edges)) & ((1 << bits) - 1)
    data[field.offset : field.offset + field.size] = new.to_bytes(field.size, byteorder)


def _get(data: bytearray, field: Field, byteorder: ByteOrder) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], byteorder)
