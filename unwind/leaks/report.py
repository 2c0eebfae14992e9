"""Reports: what is outstanding in, the stacks that it came from out, the largest first."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["Leak", "Left", "Report", "by_block", "by_site"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from unwind.leaks.known import KnownStack
    from unwind.leaks.probes import Block, Sites, Totals

_NS = 1_000_000_000


class Leak(Value):
    """What is outstanding of one stack: bytes in `count` allocations, the oldest of which is so
    many seconds old (None: that was not kept). `stack` None: these have no stack that is known.

    `blocks` are the allocations themselves, ascending by their addresses.
    """

    size: int
    count: int
    oldest: float | None
    stack: KnownStack | None
    blocks: tuple[Block, ...] = ()


class Left(Value):
    """Allocations that a report leaves out, as they are younger than asked for."""

    size: int
    count: int


class Report(Value):
    """What is outstanding of process `pid` at `time` (seconds since 1970).

    `events` allocations were looked at since the beginning, of which `complete` have a stack that
    reaches its outermost frame, and `gone` were outstanding when the process ran another program.
    `elapsed` is the seconds since the beginning. Of the stacks that were looked at again
    (`checked`), so many were not the one that their key stands for (`mistaken`).
    """

    pid: int
    time: float
    elapsed: float
    leaks: tuple[Leak, ...]
    young: Left
    totals: Totals
    complete: int
    gone: int = 0
    checked: int = 0
    mistaken: int = 0

    @property
    def size(self) -> int:
        """The bytes that are outstanding."""
        return sum([leak.size for leak in self.leaks])

    @property
    def count(self) -> int:
        """The allocations that are outstanding."""
        return sum([leak.count for leak in self.leaks])


def by_block(
    blocks: Iterable[Block], stack_of: Callable[[int], KnownStack | None], now: int, age: int
) -> tuple[tuple[Leak, ...], Left]:
    """The leaks among single allocations, and those that are younger than `age`.

    Times are in nanoseconds of CLOCK_MONOTONIC.
    """
    found: dict[KnownStack | None, list[Block]] = {}
    size = count = 0
    for block in blocks:
        if now - block.time < age:
            size, count = size + block.size, count + 1
        else:
            found.setdefault(stack_of(block.stack), []).append(block)
    leaks = []
    for stack, of_one in found.items():
        oldest = max(now - min([block.time for block in of_one]), 0) / _NS
        of_one.sort(key=lambda block: block.address)
        total = sum([block.size for block in of_one])
        leaks.append(Leak(total, len(of_one), oldest, stack, tuple(of_one)))
    return _sorted(leaks), Left(size, count)


def by_site(
    sites: Iterable[Sites], stack_of: Callable[[int], KnownStack | None]
) -> tuple[Leak, ...]:
    """The leaks by the sums that the kernel keeps."""
    found: dict[KnownStack | None, tuple[int, int]] = {}
    for site in sites:
        if site.count and site.current:
            stack = stack_of(site.stack)
            size, count = found.get(stack, (0, 0))
            found[stack] = size + site.size, count + site.count
    leaks = [Leak(size, count, None, stack) for stack, (size, count) in found.items()]
    return _sorted(leaks)


def _sorted(leaks: list[Leak]) -> tuple[Leak, ...]:
    """The largest first; what is not known comes last among equals."""
    leaks.sort(key=lambda leak: (-leak.size, -leak.count, leak.stack is None, _pcs(leak)))
    return tuple(leaks)


def _pcs(leak: Leak) -> tuple[int, ...]:
    return leak.stack.pcs if leak.stack is not None else ()
