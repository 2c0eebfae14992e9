"""Samples of a recording in, the profile of each event out, the same by however many processes."""

from __future__ import annotations

from unwind.cli.profiles import ids_wanted, times_wanted
from unwind.frames import End
from unwind.profile import Counts, Thread, merged
from unwind.sampling import split_callchain

__all__ = ["Counting", "joined"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from unwind.cli.options import Options
    from unwind.perf.event import Event
    from unwind.perf.processes import ProcessSpace, Task
    from unwind.perf.samples import Sample
    from unwind.places import Places
    from unwind.profile import Profile, Table
    from unwind.sampling import Sampler
    from unwind.space import AddressSpace

    # By thread and by the id of an Event, which is kept with it.
    _Tables: TypeAlias = dict[tuple[Task, int], tuple[Event, Counts, Table]]


class Counting:
    """Walks samples and counts them, each in the profile of its event.

    Of the stacks that end early for one reason in one file the first one is explained, in a
    sentence behind the number of its sample: that tells `joined` which one was the first of all.
    """

    def __init__(self, places: Places, sampler: Sampler, options: Options):
        self.is_complete = True
        self._places, self._sampler = places, sampler
        self._has_times, self._has_ids = times_wanted(options), ids_wanted(options)
        self._by_event: dict[tuple[str, str], Counts] = {}
        self._tables: dict[AddressSpace, _Tables] = {}
        self._explained: set[tuple[str, str, str | None]] = set()
        self._last: tuple[AddressSpace, Task, Event] | tuple[None, None, None] = None, None, None
        self._counts: Counts
        self._table: Table

    def add(self, number: int, sample: Sample) -> None:
        """Count one sample."""
        task, time, event, _, weight, chain, space = sample[:7]
        last = self._last
        if last[0] is not space or last[1] is not task or last[2] is not event:
            self._turn_to(space, task, event)
        walked = self._sampler.walk(sample)
        pcs, end, how, _ = walked
        detail = ""
        if end != End.OUTERMOST:
            self.is_complete = False
            cut = event.name, end, self._file_of(space, pcs, how is None or how[-1][1])
            if cut not in self._explained:
                self._explained.add(cut)
                detail = f"{number:015} {self._sampler.detail(sample, walked)}"
        kernel = split_callchain(chain)[0] if chain else ()
        self._counts.add(self._table, tuple(pcs), end, weight, how, kernel, detail, time / 1e9)

    def forget(self, space: ProcessSpace) -> None:
        """Name what was counted of a space that no process has any more, and let it go."""
        self._tables.pop(space, None)
        for counts in self._by_event.values():
            counts.forget(space)
        self._places.forget(space)

    def profiles(self) -> list[Profile]:
        """What was counted, named."""
        return [counts.profile() for counts in self._by_event.values()]

    def _turn_to(self, space: AddressSpace, task: Task, event: Event) -> None:
        """The next samples are of this thread."""
        tables = self._tables.setdefault(space, {})
        known = tables.get((task, id(event)))
        if known is None:
            counts = self._by_event.get((event.name, event.unit))
            if counts is None:
                site, kernel_site = self._places.site, self._places.kernel_site
                counts = Counts(event.name, event.unit, site, kernel_site, self._has_times)
                self._by_event[event.name, event.unit] = counts
            pid, tid = (task.pid, task.tid) if self._has_ids else (None, None)
            table = counts.table(space, Thread(pid, tid, task.comm))
            known = tables[task, id(event)] = event, counts, table
        self._last = space, task, event
        _, self._counts, self._table = known

    def _file_of(self, space: AddressSpace, pcs: list[int], called: bool) -> str | None:
        """The file of the outermost frame that was found, as its Site has it."""
        if not pcs:
            return None
        module = space.find(pcs[-1] - 1) if called else space.find(pcs[-1])
        if module is not None and module.image is not None:
            return module.name
        binary = self._places.site(space, pcs[-1], called).binary
        return binary.name if binary is not None else None


def joined(parts: Iterable[Profile], events: Iterable[Event]) -> list[Profile]:
    """The profile of each event in the order of `events`, of parts that were counted apart."""
    by_event: dict[tuple[str, str], list[Profile]] = {}
    for part in parts:
        by_event.setdefault((part.event, part.unit), []).append(part)
    places = {(event.name, event.unit): n for n, event in enumerate(events)}
    order = sorted(by_event, key=lambda kind: (places.get(kind, len(places)), kind))
    found = [by_event[kind] for kind in order]
    return [_explained(merged(of_one) if len(of_one) > 1 else of_one[0]) for of_one in found]


def _explained(profile: Profile) -> Profile:
    """The profile with one sentence for all stacks that end for one reason in one file."""
    first: dict[tuple[str, str | None], int] = {}
    stacks = list(profile.stacks)
    told = [n for n, stack in enumerate(stacks) if stack.detail]
    for n in sorted(told, key=lambda n: stacks[n].detail):
        stack = stacks[n]
        binary = profile.sites[stack.sites[-1]].binary if stack.sites else None
        kept = first.setdefault((stack.end, binary.name if binary is not None else None), n)
        detail = stack.detail.partition(" ")[2] if kept == n else ""
        stacks[n] = stack.replace(detail=detail)
    made: Profile = profile.replace(stacks=tuple(stacks))
    return made
