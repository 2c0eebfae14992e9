"""Options in, which samples of a recording they choose, and whose turn each of those is, out."""

from __future__ import annotations

__all__ = ["AT_ONCE", "Chooser", "is_in"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from unwind.cli.options import Options
    from unwind.perf.event import Event
    from unwind.perf.processes import Task
    from unwind.perf.samples import Sample

    Share: TypeAlias = tuple[int, int]  # the number of a process, and of how many

AT_ONCE = 256  # samples whose text is put out together; and how they are dealt out


class Chooser:
    """Chooses samples by the options, and of those a share, as cards are dealt out.

    `wanted` tells that of a sample by its thread, time and event, before any more of it is read;
    it is None where every sample is wanted.
    """

    def __init__(self, options: Options, share: Share):
        self.share = share
        self._number = -1  # of the last one that the options chose
        self._comms, self._events = set(options.comm or ()), set(options.event or ())
        self._pids, self._tids = set(options.pid or ()), set(options.tid or ())
        span: tuple[int, int] = options.time or (0, 1 << 64)
        self._from, self._to = span
        filters = options.comm, options.event, options.pid, options.tid, options.time
        takes_all = share[1] == 1 and not any(filters)
        self.wanted: Callable[[Task, int, Event], bool] | None = None
        if not takes_all:
            self.wanted = self._is_wanted

    def numbered(self, samples: Iterable[Sample]) -> Iterator[tuple[int, Sample]]:
        """The samples that were chosen, each with its number among those of all shares."""
        if self.wanted is None:
            return enumerate(samples)
        return ((self._number, sample) for sample in samples)

    def _is_wanted(self, task: Task, time: int, event: Event) -> bool:
        if (
            (self._comms and task.comm not in self._comms)
            or (self._pids and task.pid not in self._pids)
            or (self._tids and task.tid not in self._tids)
            or (self._events and event.name not in self._events)
            or not self._from <= time <= self._to
        ):
            return False
        self._number += 1
        return is_in(self._number, self.share)


def is_in(number: int, share: Share) -> bool:
    """Whether the sample of that number is in a share."""
    n, jobs = share
    return number // AT_ONCE % jobs == n
