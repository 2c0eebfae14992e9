"""What was seen of a process in; sentences on what is missing of it, and why, out."""

from __future__ import annotations

from unwind.live.copies import ENDED, OUT_OF_TIME, TOO_MUCH

__all__ = ["shortcomings"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from unwind.live.seen import Seen
    from unwind.live.stacks import StackPlan


def shortcomings(looks: Sequence[Seen], plan: StackPlan) -> Iterator[str]:
    """What is missing of the threads and their stacks."""
    for seen in looks:
        yield from _of_code(seen, plan)
        if seen.late:
            yield from _late(seen)
        elif seen.ran:
            yield f"{_threads(seen.ran)} ran: without a stop, nothing is known of what runs"
        if seen.refused:
            yield f"{_threads(seen.refused)} could not be stopped: traced by somebody else"
        for lacking in (OUT_OF_TIME, TOO_MUCH, ENDED):
            short = [s for s in seen.stretches if s.lacking == lacking]
            size = sum(s.end - s.start - s.filled for s in short)
            if size:
                yield f"{size} bytes of stacks are missing: {lacking}"
    if looks and looks[-1].moved:
        yield f"{_threads(looks[-1].moved)} moved during each of several looks: left out"


def _of_code(seen: Seen, plan: StackPlan) -> Iterator[str]:
    foreign = [tid for tid, record in seen.registers.items() if plan.registers(record) is None]
    if foreign:
        yield f"{_threads(foreign)} ran 32-bit code, which is not unwound"


def _late(seen: Seen) -> Iterator[str]:
    """What became of the threads that did not stop."""
    time = f"did not stop within {1000 * seen.seconds:.1f} ms"
    blocked = [tid for tid in seen.late if tid in seen.places]
    others = [tid for tid in seen.late if tid not in seen.places]
    if blocked:
        yield f"{_threads(blocked)} {time}, blocked in the kernel: only pc and sp are known"
    if others:
        yield f"{_threads(others)} {time}: left out (--max-stop gives time)"


def _threads(tids: Iterable[int]) -> str:
    """`thread 1` or `threads 1, 4-9`: all of them."""
    known = sorted(tids)
    spans: list[list[int]] = []
    for tid in known:
        if spans and tid == spans[-1][1] + 1:
            spans[-1][1] = tid
        else:
            spans.append([tid, tid])
    words = [f"{low}" if low == high else f"{low}-{high}" for low, high in spans]
    return f"thread{'s' * (len(known) > 1)} {', '.join(words)}"
