"""A report of outstanding allocations in, the lines that people read out."""

from __future__ import annotations

from unwind.frames import End
from unwind.writers.escape import escape
from unwind.writers.events import inlined_at, place_of

__all__ = ["call_line", "report_lines"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.leaks.probes import Call
    from unwind.leaks.report import Leak, Report
    from unwind.modules import Module
    from unwind.symbols.names import Name

_NAMES = {
    "ALLOCATE_ARRAY": "array",
    "ALLOCATE_ALIGNED": "aligned",
    "ALLOCATE_INTO": "aligned",
    "RESIZE": "resized",
    "RESIZE_ARRAY": "resized",
    "MAP": "mapped",
    "REMAP": "remapped",
}


def report_lines(
    report: Report,
    name: Callable[[Module | None, int, int], Name],
    top: int,
    blocks: bool = False,
    every: int = 1,
) -> Iterator[str]:
    """The `top` largest stacks and what to think of the whole; with `blocks` each allocation.

    `every`: only one of so many allocations was looked at.
    """
    from time import localtime, strftime

    at = strftime("%H:%M:%S", localtime(report.time))
    listed = report.leaks[:top]
    shown = "stacks" if len(listed) == len(report.leaks) else f"stacks, {len(listed)} of them here"
    yield (
        f"[{at}] pid {report.pid}: {report.size} bytes in {report.count} allocations outstanding, "
        f"of {len(report.leaks)} {shown}"
    )
    for leak in listed:
        yield from _leak_lines(leak, name, blocks, report)
    yield from _closing(report, every)


def call_line(call: Call, pid: int) -> str:
    """One call, with --trace."""
    if call.function in ("FREE", "UNMAP"):
        kind = "unmap" if call.function == "UNMAP" else "free"
        return f"[{kind}] pid={pid} tid={call.tid} time={call.time / 1e9:.6f} {_block(call)}"
    kind = _NAMES.get(call.function, "")
    given = f" {kind}" if kind else ""
    return f"[alloc] pid={pid} tid={call.tid} time={call.time / 1e9:.6f} {_block(call)}{given}"


def _block(call: Call) -> str:
    return f"address={call.address:#x} size={call.size}"


def _leak_lines(
    leak: Leak, name: Callable[[Module | None, int, int], Name], blocks: bool, report: Report
) -> Iterator[str]:
    old = f", the oldest {leak.oldest:.1f} s old" if leak.oldest is not None else ""
    yield f"    {leak.size} bytes in {leak.count} allocations{old}, from stack"
    if leak.stack is None:
        yield "        ?? the ring had no room for it, or there were too many stacks"
    else:
        stack = leak.stack.stack()
        for frame in stack.frames:
            found = " signal" if frame.signal else ""
            trust = f" [{frame.trust}]" if frame.trust not in ("context", "cfi") else ""
            for inlined in inlined_at(frame, name):
                yield f"        {inlined} [inlined]"
            yield f"        {place_of(frame, name)}{found}{trust}"
        if stack.end != End.OUTERMOST:
            yield f"        partial: {stack.end}: {escape(stack.detail)}"
    for block in leak.blocks if blocks else ():
        yield f"        address={block.address:#x} size={block.size} tid={block.tid}"


def _closing(report: Report, every: int) -> Iterator[str]:
    """What came, and by how much all this may be off."""
    totals = report.totals
    share = 100 * report.complete / totals.allocations if totals.allocations else 100.0
    yield (
        f"    allocations: {totals.allocations} (stacks complete: {share:.2f} %), "
        f"freed: {totals.frees}, dropped: {totals.dropped}"
    )
    if every > 1:
        yield f"    one of {every} allocations was looked at: there is some {every} times as much"
    if report.young.count:
        yield (
            f"    left out as younger than asked for: {report.young.size} bytes in "
            f"{report.young.count} allocations"
        )
    if totals.dropped:
        yield (
            f"    for {totals.dropped} allocations of {totals.dropped_bytes} bytes there was no "
            "room (--max-blocks): by at most that much is missing above"
        )
    if totals.replaced:
        yield (
            f"    {totals.replaced} times an address was given out again that counted as "
            f"outstanding ({totals.replaced_bytes} bytes): of others, too, the free may not have "
            "been seen, and as much may be too much above"
        )
    if totals.nowhere:
        yield f"    {totals.nowhere} allocations came when there were too many stacks: without one"
    if report.mistaken:
        yield (
            f"    {report.mistaken} of {report.checked} stacks that were looked at again were "
            "not what they were counted as"
        )
