"""Amounts: weights and shares in, as people read them out."""

from __future__ import annotations

__all__ = ["amount", "share"]

_TIMES = (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1))
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))


def share(part: int, whole: int) -> str:
    """A share as people read it: 100 % is all, and what is little is not nothing."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if part and percent < 0.01:
        return "<0.01%"
    if part != whole and percent > 99.99:
        return ">99.99%"
    return f"{percent:.2f}%"


def amount(weight: int, unit: str) -> str:
    """A weight with its unit, in the size that fits."""
    sizes = {"nanoseconds": _TIMES, "bytes": _SIZES}.get(unit)
    if sizes is None:
        return f"{weight}" if unit == "samples" else f"{weight} {unit}"
    for name, size in sizes:
        if abs(weight) >= size:
            return f"{weight / size:.3g} {name}" if size > 1 else f"{weight} {name}"
    return f"0 {sizes[-1][0]}"
