"""Firefox Profiler: a profile in, the pieces of its processed format, version 60, out.

Format: src/types/profile.ts and docs-developer/CHANGELOG-formats.md of
https://github.com/firefox-devtools/profiler. Version 60 is the first whose tables are shared by all
threads; profiler.firefox.com upgrades what is older than itself, and refuses what is newer.
"""

from __future__ import annotations

from unwind.breakdown import frames_of
from unwind.call_tree import head_of
from unwind.profile import Thread
from unwind.version import VERSION
from unwind.writers.labels import label

__all__ = ["FORMAT_VERSION", "firefox"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.breakdown import Function
    from unwind.profile import Binary, Profile, Site

FORMAT_VERSION = 60
_GECKO_VERSION = 31  # of the format that Firefox itself writes: nothing here depends on it
_LIBRARY = 1  # ResourceType.Library

# What the colours in the timeline stand for; the first grey one is that of everything else.
_CATEGORIES = (("Other", "grey"), ("User", "blue"), ("Kernel", "orange"), ("Truncated", "magenta"))
_OTHER, _USER, _KERNEL, _TRUNCATED = range(4)
_SAMPLE_UNITS = {"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"}


def firefox(profile: Profile, name: str = "") -> Iterator[str]:
    """The document in pieces, to be joined by nothing.

    Its times are those of the timeline. Without one, each stack is a sample of its own, a
    millisecond after the one before, and only shares mean something. Frames of stacks that were
    cut have a category, and a root, of their own.
    """
    from json import dumps

    tables = _Tables(profile)
    stacks = tables.stacks()
    samples = _samples(profile)
    interval = _interval(profile)
    last = max([taken[-1][0] for taken in samples.values() if taken], default=0.0)
    meta = {
        "interval": interval,
        "startTime": 0,
        "profilingStartTime": 0,
        "profilingEndTime": last + interval,
        "processType": 0,
        "product": label(name) or "unwind",
        "importedFrom": f"unwind {VERSION}",
        "stackwalk": 1,
        "version": _GECKO_VERSION,
        "preprocessedProfileVersion": FORMAT_VERSION,
        "categories": [
            {"name": name, "color": colour, "subcategories": ["Other"]}
            for name, colour in _CATEGORIES
        ],
        "markerSchema": [],
        **({"sampleUnits": _SAMPLE_UNITS} if _is_timed(profile) else {}),
        "symbolicated": True,
        "usesOnlyOneStackType": True,
        "sourceCodeIsNotOnSearchfox": True,
    }
    yield f'{{"meta":{dumps(meta)},\n"libs":{dumps(tables.libs)},\n"threads":['
    for n, (thread, taken) in enumerate(samples.items()):
        yield ("," if n else "") + "\n" + dumps(_thread(profile, thread, taken, stacks))
    yield '],\n"shared":{'
    for key, table in tables.shared().items():
        yield f'"{key}":{dumps(table)},\n'
    yield '"sources":{"length":0,"id":[],"filename":[]}}}\n'


if TYPE_CHECKING:
    _Sample = tuple[float, int, int]  # milliseconds, which stack, weight
    _Json = dict[str, object]


def _samples(profile: Profile) -> dict[Thread, list[_Sample]]:
    """The samples of each thread, in the order of time."""
    found: dict[Thread, list[_Sample]] = {stack.thread: [] for stack in profile.stacks}
    if not found:  # a document without a thread is one that the profiler does not open
        return {Thread(None, None, None): []}
    timeline = profile.timeline
    if timeline is None:
        for n, stack in enumerate(profile.stacks):
            found[stack.thread].append((float(n), n, stack.weight))
        return found
    start = timeline.times[0] if timeline.times else 0.0
    for time, n, weight in zip(timeline.times, timeline.stacks, timeline.weights, strict=True):
        sample = (round(1000 * (time - start), 6), n, weight)
        found[profile.stacks[n].thread].append(sample)
    return found


def _is_timed(profile: Profile) -> bool:
    """Whether it is known when how much of the processor's time was taken."""
    return profile.timeline is not None and profile.unit == "nanoseconds"


def _interval(profile: Profile) -> float:
    """The milliseconds between two samples of a thread, roughly."""
    timeline = profile.timeline
    if timeline is None or len(timeline.times) < 2:
        return 1.0
    threads = len({stack.thread for stack in profile.stacks})
    span = timeline.times[-1] - timeline.times[0]
    return round(max(1000 * span * threads / len(timeline.times), 0.001), 6)


def _thread(
    profile: Profile, thread: Thread, samples: list[_Sample], stacks: list[int | None]
) -> _Json:
    kind, weights = _weights(profile.unit, [weight for _, _, weight in samples])
    if profile.timeline is None and weights is None:
        weights = [profile.stacks[n].count for _, n, _ in samples]
    name = label(thread.comm or "[unknown]")
    return {
        "processType": "default",
        "processStartupTime": 0,
        "processShutdownTime": None,
        "registerTime": 0,
        "unregisterTime": None,
        "pausedRanges": [],
        "name": name,
        "processName": name,
        "isMainThread": thread.pid == thread.tid,
        "pid": str(thread.pid if thread.pid is not None else "unknown"),
        "tid": thread.tid if thread.tid is not None else "unknown",
        "samples": {
            "stack": [stacks[n] for _, n, _ in samples],
            "time": [time for time, _, _ in samples],
            "weight": weights,
            "weightType": kind,
            # What a sampler of time weighs is the processor's time since the sample before.
            **({"threadCPUDelta": [w for _, _, w in samples]} if _is_timed(profile) else {}),
            "length": len(samples),
        },
        "markers": {
            **dict.fromkeys(("data", "name", "startTime", "endTime", "phase", "category"), ()),
            "length": 0,
        },
    }


def _weights(unit: str, weights: list[int]) -> tuple[str, list[float] | None]:
    """What the format makes of a unit: of those it does not know, samples alone are counted."""
    match unit:
        case "bytes":
            return "bytes", [*weights]
        case "nanoseconds":
            return "tracing-ms", [weight / 1_000_000 for weight in weights]
        case _:
            return "samples", None


class _Tables:
    """The tables of the document: columns of numbers that point into one another."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.libs: list[dict[str, str | None]] = []
        self._binaries: dict[Binary, int] = {}
        self._strings: dict[str, int] = {}
        self._functions: dict[Function, tuple[int, int, int]] = {}  # number, name, resource
        self._symbols: dict[tuple[int, int, int], int] = {}  # library, address, name
        # address, depth, category, function, symbol
        self._frames: dict[tuple[int, int, int, int, int | None], int] = {}
        self._stacks: dict[tuple[int | None, int], int] = {}  # caller's stack, frame

    def stacks(self) -> list[int | None]:
        """The number in the stack table for each stack of the profile, None for an empty one."""
        sites = self.profile.sites
        whole = [self._frames_of(site, _KERNEL if site.kernel else _USER) for site in sites]
        cut: dict[int, list[int]] = {}
        found: list[int | None] = []
        for stack in self.profile.stacks:
            at: int | None = None
            for function in head_of(stack, process=False):
                at = self._stack(at, self._frame(-1, 0, _TRUNCATED, function))
            for number in reversed(stack.sites):
                frames = whole[number]
                if not stack.complete:
                    if number not in cut:
                        cut[number] = self._frames_of(sites[number], _TRUNCATED)
                    frames = cut[number]
                for frame in frames:
                    at = self._stack(at, frame)
            found.append(at)
        return found

    def shared(self) -> dict[str, object]:
        """Everything that threads share, by the names of the format."""
        frames, count = list(self._frames), len(self._frames)
        functions = list(self._functions.values())
        symbols, stacks = list(self._symbols), list(self._stacks)
        return {
            "stackTable": {
                "frame": [frame for _, frame in stacks],
                "prefix": [prefix for prefix, _ in stacks],
                "length": len(stacks),
            },
            "frameTable": {
                "address": [frame[0] for frame in frames],
                "inlineDepth": [frame[1] for frame in frames],
                "category": [frame[2] for frame in frames],
                "subcategory": [0] * count,
                "func": [frame[3] for frame in frames],
                "nativeSymbol": [frame[4] for frame in frames],
                "innerWindowID": [0] * count,
                "line": [None] * count,
                "column": [None] * count,
                "length": count,
            },
            "funcTable": {
                "name": [name for _, name, _ in functions],
                "isJS": [False] * len(functions),
                "relevantForJS": [False] * len(functions),
                "resource": [resource for _, _, resource in functions],
                "source": [None] * len(functions),
                "lineNumber": [None] * len(functions),
                "columnNumber": [None] * len(functions),
                "length": len(functions),
            },
            "resourceTable": {  # one for each library, in their order
                "lib": list(range(len(self.libs))),
                "name": [self._string(lib["name"] or "") for lib in self.libs],
                "host": [None] * len(self.libs),
                "type": [_LIBRARY] * len(self.libs),
                "length": len(self.libs),
            },
            "nativeSymbols": {
                "libIndex": [library for library, _, _ in symbols],
                "address": [address for _, address, _ in symbols],
                "name": [name for _, _, name in symbols],
                "functionSize": [None] * len(symbols),
                "length": len(symbols),
            },
            "stringArray": list(self._strings),
        }

    def _frames_of(self, site: Site, category: int) -> list[int]:
        """The frames of a site, outermost first: several where functions are inlined there."""
        binary, address, symbol = site.binary, -1, None
        if binary is not None:
            library = self._library(binary)
            address = _relative(site.lookup_vaddr, binary)
            if site.function is not None:
                start = _relative(site.vaddr - (site.offset or 0), binary)
                key = library, start, self._string(site.function)
                symbol = self._symbols.setdefault(key, len(self._symbols))
        return [
            self._frame(address, depth, category, function, symbol, binary)
            for depth, function in enumerate(frames_of(site))
        ]

    def _frame(
        self,
        address: int,
        depth: int,
        category: int,
        function: Function,
        symbol: int | None = None,
        binary: Binary | None = None,
    ) -> int:
        if function not in self._functions:
            resource = self._library(binary) if binary is not None else -1
            number = len(self._functions)
            self._functions[function] = number, self._string(function.name), resource
        key = address, depth, category, self._functions[function][0], symbol
        return self._frames.setdefault(key, len(self._frames))

    def _stack(self, caller: int | None, frame: int) -> int:
        return self._stacks.setdefault((caller, frame), len(self._stacks))

    def _library(self, binary: Binary) -> int:
        number = self._binaries.get(binary)
        if number is None:
            number = self._binaries[binary] = len(self._binaries)
            path = label(binary.name)
            name = path.rpartition("/")[2] or path
            build_id = binary.build_id or b""
            self.libs.append(
                {
                    "arch": "",
                    "name": name,
                    "path": path,
                    "debugName": name,
                    "debugPath": path,
                    "breakpadId": _breakpad_id(build_id),
                    "codeId": build_id.hex() or None,
                }
            )
        return number

    def _string(self, text: str) -> int:
        return self._strings.setdefault(label(text), len(self._strings))


def _relative(vaddr: int, binary: Binary) -> int:
    """An address as the format has it: from the start of the library, -1 where that is no number.

    A kernel's start may be unknown, and JavaScript's numbers are exact up to 2**53.
    """
    address = vaddr - binary.start
    return address if 0 <= address < 1 << 53 else -1


def _breakpad_id(build_id: bytes) -> str:
    """Breakpad's name for a build-id: its first 16 bytes as a GUID, with little-endian numbers."""
    if not build_id:
        return ""
    guid = build_id[:16].ljust(16, b"\0")
    return (guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]).hex().upper() + "0"
