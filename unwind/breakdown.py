"""Breakdowns: a profile in; what it comes to by function, by thread and by cut stack out."""

from __future__ import annotations

from unwind.frames import End
from unwind.values import Value

__all__ = ["Cut", "Function", "Hot", "Share", "by_function", "by_process", "cuts", "frames_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.profile import Profile, Site

# What would mend a stack that ended so, by `End`.
_REMEDIES = {
    End.MEMORY_FAULT: "record more of the stack (perf record --call-graph dwarf,SIZE)",
    End.NO_MODULE: "give its file (--sysroot, --debug-dir)",
    End.NO_ROW: "its code has no CFI: give its debug file, or build it with "
    "-fasynchronous-unwind-tables",
    End.UNKNOWN_REGISTER: "record all registers, and the stack (perf record --call-graph dwarf)",
    End.NO_PROGRESS: "ask unwind-cfi --lint whether its CFI is right",
    End.BAD_CFI: "ask unwind-cfi --lint whether its CFI is right",
    End.LIMIT: "allow more frames (--max-stack)",
}
_NOWHERE = "code that no file holds: a JIT's, or of a mapping that was not recorded"
# The same where stacks were taken by our own program, without a recording.
_LIVE = {
    End.MEMORY_FAULT: "copy more of each stack (--stack-size)",
    End.UNKNOWN_REGISTER: "it was saved on another stack, which is not copied",
    End.LIMIT: "allow more frames (--max-frames)",
}
_NOWHERE_LIVE = "code that no file holds: a JIT's, or of a file that is gone"


class Function(Value):
    """A function as profiles tell them apart: its name, the file it lies in, whose it is.

    `name` is `Site.label`; `binary` is the file's path, None where nothing is mapped.
    """

    name: str
    binary: str | None
    kernel: bool = False
    inlined: bool = False


class Hot(Value):
    """What a function took itself (`own`), and with all that it called (`total`).

    A stack with the function in it counts once in `total`, however often it is there. Weights
    are in the profile's unit, counts in samples.
    """

    function: Function
    own: int
    total: int
    own_count: int
    total_count: int


class Share(Value):
    """The stacks of one process: how many samples, how many of them complete."""

    pid: int | None
    comms: tuple[str, ...]
    count: int
    weight: int
    complete: int
    threads: int


class Cut(Value):
    """The stacks that ended early for one reason in one file, and what would mend them.

    `binary` is the file of the outermost frame found; `detail` is a sentence on one of them.
    """

    end: str
    binary: str | None
    count: int
    weight: int
    remedy: str
    detail: str


def frames_of(site: Site) -> Iterator[Function]:
    """The functions at a site, outermost first: that of the symbol, then what it inlines."""
    binary = site.binary.name if site.binary is not None else None
    yield Function(site.label, binary, site.kernel)
    for name in reversed(site.inlined):
        yield Function(name, binary, site.kernel, inlined=True)


def by_function(profile: Profile) -> list[Hot]:
    """The functions of a profile, those that took the most themselves first."""
    numbers: dict[Function, int] = {}
    places = [
        tuple([numbers.setdefault(function, len(numbers)) for function in frames_of(site)])
        for site in profile.sites
    ]
    alone = [place[0] for place in places]
    inlined = {n for n, place in enumerate(places) if len(place) > 1}
    rows = [[0, 0, 0, 0] for _ in numbers]
    for stack in profile.stacks:
        weight, count = stack.weight, stack.count
        if stack.sites:
            innermost = rows[places[stack.sites[0]][-1]]
            innermost[0] += weight
            innermost[2] += count
        met = set(map(alone.__getitem__, stack.sites))
        for site in inlined.intersection(stack.sites) if inlined else ():
            met.update(places[site])
        for number in met:
            row = rows[number]
            row[1] += weight
            row[3] += count
    found = [
        Hot(function, own, total, own_count, total_count)
        for function, (own, total, own_count, total_count) in zip(numbers, rows, strict=True)
    ]
    return sorted(found, key=lambda hot: (-hot.own, -hot.total, _order(hot.function)))


def by_process(profile: Profile) -> list[Share]:
    """The processes of a profile, those with the most weight first."""
    sums: dict[int | None, tuple[list[int], set[str], set[int | None]]] = {}
    for stack in profile.stacks:
        thread = stack.thread
        numbers, comms, threads = sums.setdefault(thread.pid, ([0, 0, 0], set(), set()))
        numbers[0] += stack.count
        numbers[1] += stack.weight
        numbers[2] += stack.count if stack.complete else 0
        comms.add(thread.comm or "")
        threads.add(thread.tid)
    shares = [
        Share(pid, tuple(sorted(comms - {""})), count, weight, complete, len(threads))
        for pid, ((count, weight, complete), comms, threads) in sums.items()
    ]
    return sorted(shares, key=lambda share: (-share.weight, share.pid is None, share.pid or 0))


def cuts(profile: Profile, live: bool = False) -> list[Cut]:
    """Why stacks are incomplete, by reason and file, the most frequent first.

    `live`: they were taken as the programs ran; no recording can be made in another way.
    """
    sums: dict[tuple[str, str | None], tuple[list[int], list[str]]] = {}
    for stack in profile.stacks:
        if stack.complete:
            continue
        outermost = profile.sites[stack.sites[-1]].binary if stack.sites else None
        key = stack.end, outermost.name if outermost is not None else None
        numbers, details = sums.setdefault(key, ([0, 0], []))
        numbers[0] += stack.count
        numbers[1] += stack.weight
        if stack.detail:
            details.append(stack.detail)
    found = [
        Cut(end, binary, count, weight, _remedy(end, binary, live), min(details, default=""))
        for (end, binary), ((count, weight), details) in sums.items()
    ]
    return sorted(found, key=lambda cut: (-cut.count, cut.end, cut.binary or ""))


def _remedy(end: str, binary: str | None, live: bool) -> str:
    if end == End.NO_MODULE and binary is None:
        return _NOWHERE_LIVE if live else _NOWHERE
    remedy = _REMEDIES.get(end, "")
    return _LIVE.get(end, remedy) if live else remedy


def _order(function: Function) -> tuple[object, ...]:
    return function.name, function.binary or "", function.kernel, function.inlined
