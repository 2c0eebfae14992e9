"""Events as the file has them in, events in the order of time out, some rounds later."""

from __future__ import annotations

from _operator import itemgetter  # what `operator` takes it from, which costs 0.3 ms
from bisect import bisect_right

__all__ = ["MOST_WAITING", "Rounds"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from unwind.perf.samples import Fields

    # time (ns), kind and misc of a record, and where it lies: a buffer, begin and end. Of a sample,
    # what is in it, if that has been read.
    Timed: TypeAlias = tuple[int, int, int, memoryview, int, int, Fields | None]

MOST_WAITING = 1 << 20  # events; a recording without rounds is sorted by pieces of this size


class Rounds:
    """Sorts by time round by round, as perf itself does.

    perf empties the buffers of all processors in turn; a round is done when each has been. Then
    nothing older can come than the newest event of the round before: the processors' buffers were
    emptied one after another, so of one that came early in this round newer events may follow.
    """

    def __init__(self) -> None:
        self.waiting: list[Timed] = []  # whoever has an event puts it here
        self._until = -1  # nothing older than this can come any more

    def finished(self) -> list[Timed]:
        """At the end of a round: the events that can be told to be next, in order."""
        waiting = self.waiting
        waiting.sort(key=_time)
        cut = bisect_right(waiting, self._until, key=_time)
        ready = waiting[:cut]
        del waiting[:cut]
        if waiting:
            self._until = waiting[-1][0]
        return ready

    def older(self) -> list[Timed]:
        """The older half of what waits."""
        self.waiting.sort(key=_time)
        ready = self.waiting[: MOST_WAITING // 2]
        del self.waiting[: MOST_WAITING // 2]
        return ready

    def rest(self) -> list[Timed]:
        """At the end of the file: all that still waits."""
        self.waiting.sort(key=_time)
        return self.waiting


_time = itemgetter(0)
