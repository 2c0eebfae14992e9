"""Profiles: sampled stacks in, each kind of stack once with its weight out; a pc is named once.

Two stages. `Counts` takes samples as raw pcs, at the price of one look into a dict, and knows no
names. `Counts.profile()` names what was counted: a `Profile` is plain data without processes,
modules or files behind it, which writers print, `pickle` carries and `merged` adds up.

    counts = Counts("cpu-clock", "nanoseconds", site)   # site(space, pc, called) -> Site
    table = counts.table(space, Thread(pid, tid, comm))   # kept, not asked for with each sample
    counts.add(table, pcs, End.OUTERMOST, period)         # for each sample
    profile = counts.profile()
"""

from __future__ import annotations

from unwind.frames import End, Trust
from unwind.values import Value

__all__ = [
    "Binary",
    "Counts",
    "Profile",
    "SampledStack",
    "Site",
    "Tally",
    "Thread",
    "Timeline",
    "merged",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeAlias

    from unwind.frames import Stack
    from unwind.space import AddressSpace

    # How each frame was found, and whether it made a call (see `Counts.add`).
    How: TypeAlias = tuple[tuple[str, bool], ...]
    # What is counted of one thread: by its pcs, the end, `how` and the pcs in the kernel.
    Table: TypeAlias = "dict[tuple[tuple[int, ...], str, How | None, tuple[int, ...]], Tally]"


class Thread(Value):
    """Who was sampled, by the names that the source had for it then; None is unknown."""

    pid: int | None
    tid: int | None
    comm: str | None


class Binary(Value):
    """A file with code, whichever processes map it: its path as recorded, its build-id.

    `start` and `end` are the vaddrs between which it has anything mapped.
    """

    name: str
    build_id: bytes | None = None
    start: int = 0
    end: int = 0


class Site(Value):
    """A place in code as a profile knows it, with how its frame was found.

    `vaddr` is that of the pc in `binary`; where nothing is mapped (`binary` None) the pc itself.
    `function` is demangled, None where no symbol covers the place, and `offset` counts bytes from
    its start. `inlined` are the functions that were inlined there, innermost first. `kernel`: the
    frame is the kernel's. `trust` is one of `Trust`; `called` says that the frame made a call,
    and `vaddr` is where that returns to.
    """

    binary: Binary | None
    vaddr: int
    function: str | None = None
    offset: int | None = None
    trust: str = Trust.CFI
    kernel: bool = False
    inlined: tuple[str, ...] = ()
    called: bool = False

    @property
    def lookup_vaddr(self) -> int:
        """An address within the instruction: a return address may lie in the next function."""
        return self.vaddr - 1 if self.called else self.vaddr

    @property
    def label(self) -> str:
        """What people call the place: its function, else its file, in brackets."""
        if self.function is not None:
            return self.function
        if self.binary is not None:
            name = self.binary.name.rpartition("/")[2] or self.binary.name
            return name if name[:1] == "[" else f"[{name}]"  # as in [vdso]
        return "[unknown]"


class Tally:
    """How often a stack was met (`count`) and what that weighs, in the profile's unit.

    `detail` is a sentence on why the stack ends early, of one of the samples.
    """

    __slots__ = ("count", "detail", "number", "weight")

    def __init__(self, number: int):
        self.number = number  # in the order of appearance
        self.count = 0
        self.weight = 0
        self.detail = ""

    def take(self, count: int, weight: int, detail: str) -> None:
        """Add what another tally of the same stack has."""
        self.count += count
        self.weight += weight
        # Which of several sentences stays must not depend on the order in which they come.
        if detail and (not self.detail or detail < self.detail):
            self.detail = detail


class SampledStack(Value):
    """A stack of a profile: `sites` are indices into `Profile.sites`, innermost first.

    `end` is one of `End`; `weight` is in the profile's unit, `count` in samples.
    """

    thread: Thread
    sites: tuple[int, ...]
    end: str
    count: int
    weight: int
    detail: str = ""

    @property
    def complete(self) -> bool:
        """Whether the walk got to the outermost frame."""
        return self.end == End.OUTERMOST


class Timeline(Value):
    """Every sample in the order of time: when (seconds), which of the stacks, and its weight."""

    times: array[float]
    stacks: array[int]
    weights: array[int]


class Profile(Value):
    """Weighted stacks of one event.

    `unit` says what weights are: `samples`, `nanoseconds`, `bytes`, or the event's own, as
    `cycles`. Sites and stacks are sorted: the same samples give the same profile, in whichever
    order they came. `timeline` is there only if it was asked for.
    """

    event: str
    unit: str
    sites: tuple[Site, ...]
    stacks: tuple[SampledStack, ...]
    timeline: Timeline | None = None

    @property
    def count(self) -> int:
        """The number of samples."""
        return sum([stack.count for stack in self.stacks])

    @property
    def weight(self) -> int:
        """What all stacks weigh."""
        return sum([stack.weight for stack in self.stacks])

    def select(self, wanted: Callable[[SampledStack], bool]) -> Profile:
        """The profile of those stacks alone that are `wanted`; without a timeline."""
        gathering = _Gathering()
        for stack in filter(wanted, self.stacks):
            gathering.stack(stack, [self.sites[n] for n in stack.sites])
        return gathering.profile(self.event, self.unit)


class Counts:
    """Counts samples by their raw pcs, and names each pc once.

    `site(space, pc, called)` is the Site at `pc` of `space`; where the frame made a call
    (`called`) it is looked up within the call. `kernel_site(pc, called)` names places in the
    kernel. How a site's frame was found is set here. With `timed` every sample's time is kept, at
    24 bytes each.

    Names are looked up once, late: in `settle`, which must be called before a mapping of the space
    is replaced or taken away, or in `profile`. Where more than `limit` stacks wait for their names,
    all are named, since named ones take a tenth of the memory.
    """

    def __init__(
        self,
        event: str,
        unit: str,
        site: Callable[[AddressSpace, int, bool], Site],
        kernel_site: Callable[[int, bool], Site] | None = None,
        timed: bool = False,
        limit: int = 20_000,
    ):
        self.event = event
        self.unit = unit
        self._site = site
        self._tables: dict[AddressSpace, dict[Thread, Table]] = {}
        self._gathering = _Gathering()
        name = kernel_site or (lambda pc, called: Site(None, pc))
        number = self._gathering.number
        self._interrupted = _Numbers(lambda pc: number(_in_kernel(name(pc, False), False)))
        self._kernel_callers = _Numbers(lambda pc: number(_in_kernel(name(pc, True), True)))
        self._named: dict[AddressSpace, dict[tuple[str, bool], _Numbers]] = {}
        self._limit = limit
        self._waiting = 0  # stacks without names
        self._made = 0
        self._settled: list[int] = []  # for each of `_made`: the number of its named tally
        self._times: tuple[array[float], array[int], array[int]] | None = None
        if timed:
            from array import array  # 0.8 ms, with the collections that it loads

            self._times = array("d"), array("Q"), array("q")

    def table(self, space: AddressSpace, thread: Thread) -> Table:
        """What is counted of a thread: hand it to `add`. It stays the same until `forget`."""
        tables = self._tables.setdefault(space, {})
        table = tables.get(thread)
        if table is None:
            table = tables[thread] = {}
        return table

    def add(
        self,
        table: Table,
        pcs: tuple[int, ...],
        end: str,
        weight: int = 1,
        how: How | None = None,
        kernel: tuple[int, ...] = (),
        detail: str = "",
        time: float = 0.0,
        count: int = 1,
    ) -> None:
        """One sample of a table's thread, or `count`, whose user stack is `pcs`, innermost first.

        `how` is a pair for each of the pcs: the frame's Trust, and whether it made a call. None
        says: the innermost is the source's, the others are return addresses found by CFI.
        `kernel` is what the kernel's own frames were, innermost first; they lie above the user's.
        """
        key = (pcs, end, how, kernel)
        tally = table.get(key)
        if tally is None:
            if self._waiting >= self._limit:
                self._name_all()
            tally = table[key] = Tally(self._made)
            self._made += 1
            self._waiting += 1
        tally.count += count
        tally.weight += weight
        if detail and (not tally.detail or detail < tally.detail):
            tally.detail = detail
        if self._times is not None:
            times, numbers, weights = self._times
            times.append(time)
            numbers.append(tally.number)
            weights.append(weight)

    def add_stack(
        self,
        table: Table,
        stack: Stack,
        weight: int = 1,
        kernel: tuple[int, ...] = (),
        time: float = 0.0,
    ) -> None:
        """One sample that was walked exactly: its frames tell how they were found."""
        frames = stack.frames
        pcs = tuple([frame.pc for frame in frames])
        # A signal's trampoline is what its handler returns to: no call leads there.
        how = tuple([(frame.trust, frame.called and not frame.signal) for frame in frames])
        if how == _plain(len(how)):
            self.add(table, pcs, stack.end, weight, None, kernel, stack.detail, time)
        else:
            self.add(table, pcs, stack.end, weight, how, kernel, stack.detail, time)

    def settle(self, space: AddressSpace) -> None:
        """Name what was counted of `space` so far, and forget what lies where in it."""
        self._name(space)
        self._named.pop(space, None)

    def forget(self, space: AddressSpace) -> None:
        """Settle a space whose process has gone, and hold it no longer."""
        self.settle(space)
        self._tables.pop(space, None)

    def profile(self) -> Profile:
        """All that was counted so far, named."""
        self._name_all()
        times = self._times
        if times is None:
            return self._gathering.profile(self.event, self.unit)
        settled = self._settled
        samples = ((t, settled[n], w) for t, n, w in zip(*times, strict=True))
        return self._gathering.profile(self.event, self.unit, samples)

    def _name_all(self) -> None:
        for space in self._tables:
            self._name(space)
        self._waiting = 0

    def _name(self, space: AddressSpace) -> None:
        """Move what waits in the tables of a space to where stacks have names."""
        self._settled += [-1] * (self._made - len(self._settled) if self._times else 0)
        known = self._named.setdefault(space, {})

        def numbers(trust: str, called: bool) -> _Numbers:
            found = known.get((trust, called))
            if found is None:
                site, number = self._site, self._gathering.number
                found = known[trust, called] = _Numbers(
                    lambda pc: number(_found(site(space, pc, called), trust, called))
                )
            return found

        innermost, callers = numbers(Trust.CONTEXT, False), numbers(Trust.CFI, True)
        for thread, table in self._tables.get(space, {}).items():
            for (pcs, end, how, kernel), tally in table.items():
                sites = [*map(self._interrupted.__getitem__, kernel[:1])]
                sites += map(self._kernel_callers.__getitem__, kernel[1:])
                if how is None:
                    sites += map(innermost.__getitem__, pcs[:1])
                    sites += map(callers.__getitem__, pcs[1:])
                else:
                    sites += [numbers(*way)[pc] for pc, way in zip(pcs, how, strict=True)]
                whole = self._gathering.tally(thread, tuple(sites), end)
                whole.take(tally.count, tally.weight, tally.detail)
                if self._times is not None:
                    self._settled[tally.number] = whole.number
            table.clear()


def merged(profiles: Iterable[Profile]) -> Profile:
    """One profile of several of the same event and unit, as if all had been counted at once.

    ValueError if there is none, or if events or units differ. The timeline is that of all, and
    missing if one of them lacks it.
    """
    profiles = list(profiles)
    kinds = {(profile.event, profile.unit) for profile in profiles}
    if len(kinds) != 1:
        raise ValueError(f"profiles of one event are wanted, not {sorted(kinds)}")
    [(event, unit)] = kinds
    gathering = _Gathering()
    samples: list[tuple[float, int, int]] | None = []
    for profile in profiles:
        numbers = []
        for stack in profile.stacks:
            sites = [profile.sites[n] for n in stack.sites]
            numbers.append(gathering.stack(stack, sites))
        timeline = profile.timeline
        if timeline is None or samples is None:
            samples = None
            continue
        columns = zip(timeline.times, timeline.stacks, timeline.weights, strict=True)
        samples += [(time, numbers[n], weight) for time, n, weight in columns]
    return gathering.profile(event, unit, samples)


class _Numbers(dict[int, int]):
    """The number of the site at each pc, made when first asked for."""

    def __init__(self, make: Callable[[int], int]):
        self._make = make

    def __missing__(self, pc: int) -> int:
        number = self[pc] = self._make(pc)
        return number


class _Gathering:
    """Named stacks, in the order in which they come; sorted at the end."""

    def __init__(self) -> None:
        self._sites: dict[Site, int] = {}
        self._stacks: dict[tuple[Thread, tuple[int, ...], str], Tally] = {}
        self._alike: dict[tuple[int, ...], tuple[int, ...]] = {}  # threads share their stacks

    def number(self, site: Site) -> int:
        """The number of a site, the same for equal ones."""
        return self._sites.setdefault(site, len(self._sites))

    def tally(self, thread: Thread, sites: tuple[int, ...], end: str) -> Tally:
        """What is counted of a stack of numbered sites."""
        tally = self._stacks.get((thread, sites, end))
        if tally is None:
            sites = self._alike.setdefault(sites, sites)
            tally = self._stacks[thread, sites, end] = Tally(len(self._stacks))
        return tally

    def stack(self, stack: SampledStack, sites: Sequence[Site]) -> int:
        """Count a stack of another profile, whose sites are `sites`; its number here."""
        numbers = tuple([self.number(site) for site in sites])
        tally = self.tally(stack.thread, numbers, stack.end)
        tally.take(stack.count, stack.weight, stack.detail)
        return tally.number

    def profile(
        self, event: str, unit: str, samples: Iterable[tuple[float, int, int]] | None = None
    ) -> Profile:
        """Everything sorted; `samples` are time, number of a stack and weight."""
        sites = sorted(self._sites, key=_site_order)
        rank = dict(zip([self._sites[site] for site in sites], range(len(sites)), strict=True))
        keyed = [
            ((_thread_order(thread), tuple([rank[n] for n in numbers]), end), thread, tally)
            for (thread, numbers, end), tally in self._stacks.items()
        ]
        keyed.sort(key=lambda entry: entry[0])
        stacks = tuple(
            SampledStack(thread, numbers, end, tally.count, tally.weight, tally.detail)
            for (_, numbers, end), thread, tally in keyed
        )
        timeline = None
        if samples is not None:
            place = {tally.number: n for n, (_, _, tally) in enumerate(keyed)}
            timeline = _timeline((time, place[n], weight) for time, n, weight in samples)
        return Profile(event, unit, tuple(sites), stacks, timeline)


def _timeline(samples: Iterator[tuple[float, int, int]]) -> Timeline:
    from array import array

    times, stacks, weights = array("d"), array("Q"), array("q")
    for time, stack, weight in sorted(samples):
        times.append(time)
        stacks.append(stack)
        weights.append(weight)
    return Timeline(times, stacks, weights)


def _found(site: Site, trust: str, called: bool) -> Site:
    made: Site = site.replace(trust=trust, called=called)
    return made


def _in_kernel(site: Site, called: bool) -> Site:
    made: Site = site.replace(trust=Trust.RECORDED, called=called, kernel=True)
    return made


def _plain(count: int) -> How:
    """How the frames of most stacks were found."""
    return ((Trust.CONTEXT, False), *[(Trust.CFI, True)] * (count - 1))[:count]


def _site_order(site: Site) -> tuple[object, ...]:
    binary = site.binary
    whose = (binary.name, binary.build_id or b"", binary.start, binary.end) if binary else ()
    known = (site.function or "", site.offset or 0, site.trust, site.inlined)
    return site.kernel, whose, site.vaddr, site.called, site.function is None, *known


def _thread_order(thread: Thread) -> tuple[object, ...]:
    pid, tid = thread.pid, thread.tid
    return (
        *(pid is None, pid or 0, tid is None, tid or 0),
        *(thread.comm is None, thread.comm or ""),
    )
