"""The summary of a profile: how complete it is, why where it is not, and its hottest functions."""

from __future__ import annotations

from unwind.breakdown import by_function, by_process, cuts
from unwind.writers.amounts import amount, share
from unwind.writers.labels import label

__all__ = ["hottest", "summary"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unwind.breakdown import Hot
    from unwind.profile import Profile

_PROCESSES = _CUTS = 10  # that are shown
_SHORTEST = 20  # characters of a function's name, on however narrow a terminal


def summary(
    profile: Profile, top: int = 20, width: int | None = None, live: bool = False
) -> Iterator[str]:
    """The lines of a report: samples, processes, cut stacks, then the `top` hottest functions.

    Names of functions are cut so that the table is no wider than `width`. `live`: as of `cuts`.
    """
    count, weight = profile.count, profile.weight
    event = label(profile.event)
    if not count:
        yield f"{event}: no samples"
        return
    complete = sum([stack.count for stack in profile.stacks if stack.complete])
    of_all = "" if profile.unit == "samples" else f", {amount(weight, profile.unit)}"
    yield f"{event}: {count} samples{of_all}, {share(complete, count)} with a complete stack"
    yield ""
    yield "  complete  threads  processes"
    processes = by_process(profile)
    for one in processes[:_PROCESSES]:
        name = ", ".join([label(comm) for comm in one.comms]) or "[unknown]"
        pid = f" ({one.pid})" if one.pid is not None else ""
        yield (
            f"  {share(one.complete, one.count):>8}  {one.threads:>7}  "
            f"{share(one.weight, weight)} {name}{pid}, {one.count} samples"
        )
    if len(processes) > _PROCESSES:
        yield f"  {'':>17}  and {len(processes) - _PROCESSES} more"
    why = cuts(profile, live)
    if why:
        yield ""
        yield "  samples  stacks that were cut"
    for cut in why[:_CUTS]:
        where = label(cut.binary) if cut.binary is not None else "code of no file"
        yield f"  {share(cut.count, count):>7}  {cut.end} in {where}"
        yield f"  {'':>7}  -> {cut.remedy}"
        if cut.detail:
            yield f"  {'':>7}     as in: {label(cut.detail)}"
    if len(why) > _CUTS:
        left = sum([cut.count for cut in why[_CUTS:]])
        yield f"  {share(left, count):>7}  for {len(why) - _CUTS} more reasons"
    yield ""
    yield from hottest(profile, by_function(profile)[:top], width)


def hottest(profile: Profile, rows: Sequence[Hot], width: int | None = None) -> Iterator[str]:
    """A table of functions: what they took themselves, and with what they called."""
    weight = profile.weight
    yield f"  {'self':>7}  {'total':>7}  {'self':>10}  function"
    for hot in rows:
        function = hot.function
        binary = (function.binary or "").rpartition("/")[2]
        what = [label(binary)] if binary else []
        what += ["kernel"] * function.kernel + ["inlined"] * function.inlined
        where = f" ({', '.join(what)})" if what else ""
        figures = (
            f"  {share(hot.own, weight):>7}  {share(hot.total, weight):>7}  "
            f"{amount(hot.own, profile.unit):>10}  "
        )
        name = label(function.name)
        if width is not None:
            room = max(width - len(figures) - len(where), _SHORTEST)
            name = name if len(name) <= room else name[: room - 3] + "..."
        yield f"{figures}{name}{where}"
