"""Distances to some code: where in other code the upper bits of one may lie.

A direct jump holds the distance to its target, which is another one wherever it stands. Its upper
bits are the same over a long stretch, though, and a byte or two are found much faster than all
jumps are looked at.
"""

from __future__ import annotations

__all__ = ["each", "places", "stretches"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def stretches(
    shift: int, low: int, high: int, first: int, last: int
) -> Iterator[tuple[int, int, int]]:
    """Stretches of [first, last), with the bits from `shift` on of distances to [low, high).

    As (begin, end, bits), each stretch with all the bits that there may be.
    """
    for begin in range(first, last, 1 << shift):
        end = min(begin + (1 << shift), last)
        for upper in range(low - (end - 1) >> shift, (high - 1 - begin >> shift) + 1):
            yield begin, end, upper


def places(column: bytes, shift: int, low: int, high: int, first: int, last: int) -> Iterator[int]:
    """Each n of [first, last) that holds a byte of a distance from n to some place in [low, high).

    `column[n]` has the bits from `shift` on of what may be such a distance.
    """
    for begin, end, upper in stretches(shift, low, high, first, last):
        yield from each(column, upper & 255, begin, end)


def each(column: bytes, wanted: int, first: int, last: int) -> Iterator[int]:
    """Each place in [first, last) where a byte has some value."""
    find = column.find
    n = find(wanted, first, last)
    while n >= 0:
        yield n
        n = find(wanted, n + 1, last)
