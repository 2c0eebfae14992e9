"""speedscope: profiles in, the pieces of speedscope's own file format out.

Format: https://www.speedscope.app/file-format-schema.json. Weighted samples, no events: a sampler
knows where a program was, not when it came there and left.
"""

from __future__ import annotations

from unwind.breakdown import frames_of
from unwind.call_tree import head_of
from unwind.version import VERSION
from unwind.writers.labels import label

__all__ = ["speedscope"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unwind.breakdown import Function
    from unwind.profile import Profile, SampledStack, Thread

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_UNITS = {"nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"}


def speedscope(profiles: Iterable[Profile], name: str = "") -> Iterator[str]:
    """The document in pieces, to be joined by nothing.

    For each profile one of all its threads, with their processes as outermost frames, and one of
    each thread where there are several: in the order of time where there is a timeline.
    """
    from json import dumps

    numbers: dict[Function, int] = {}
    title = label(name) or "unwind"
    yield f'{{"$schema":"{_SCHEMA}","exporter":"unwind {VERSION}","name":{dumps(title)}'
    yield ',"activeProfileIndex":0,"profiles":['
    first = True
    for profile in profiles:
        for one in _profiles(profile, numbers):
            yield from one(dumps, "" if first else ",")
            first = False
    yield '],"shared":{"frames":['  # last: by now all of them have been met
    for n, function in enumerate(numbers):
        file = f',"file":{dumps(label(function.binary))}' if function.binary else ""
        yield f'{"," if n else ""}\n{{"name":{dumps(label(function.name))}{file}}}'
    yield "]}}\n"


class _One:
    """One of the document's profiles: stacks as text with their weights, in order."""

    def __init__(self, name: str, unit: str, stacks: Sequence[str], samples: Sequence[_Sample]):
        self.name, self.unit, self.stacks, self.samples = name, unit, stacks, samples

    def __call__(self, dumps: Callable[[str], str], before: str) -> Iterator[str]:
        unit = self.unit if self.unit in _UNITS else "none"
        end = sum([weight for _, weight in self.samples])
        yield f'{before}\n{{"type":"sampled","name":{dumps(self.name)},"unit":"{unit}"'
        yield f',"startValue":0,"endValue":{end},"samples":['
        for n, (stack, _) in enumerate(self.samples):
            yield f"{',' if n else ''}\n{self.stacks[stack]}"
        yield '],"weights":['
        yield ",".join([str(weight) for _, weight in self.samples])
        yield "]}"


if TYPE_CHECKING:
    _Sample = tuple[int, int]  # which of the stacks, and its weight


def _profiles(profile: Profile, numbers: dict[Function, int]) -> Iterator[_One]:
    sites = [
        [numbers.setdefault(function, len(numbers)) for function in frames_of(site)]
        for site in profile.sites
    ]

    def text(stack: SampledStack, process: bool) -> str:
        path = [numbers.setdefault(f, len(numbers)) for f in head_of(stack, process)]
        for site in reversed(stack.sites):
            path += sites[site]
        return f"[{','.join(map(str, path))}]"

    event = label(profile.event)
    threads: dict[Thread, list[_Sample]] = {}
    for n, stack in enumerate(profile.stacks):
        threads.setdefault(stack.thread, []).append((n, stack.weight))
    every = [(n, stack.weight) for n, stack in enumerate(profile.stacks)]
    texts = [text(stack, process=True) for stack in profile.stacks]
    yield _One(f"{event}, all threads", profile.unit, texts, every)
    if len(threads) < 2 and profile.timeline is None:
        return
    timeline = profile.timeline
    if timeline is not None:
        threads = {thread: [] for thread in threads}
        for n, weight in zip(timeline.stacks, timeline.weights, strict=True):
            threads[profile.stacks[n].thread].append((n, weight))
    texts = [text(stack, process=False) for stack in profile.stacks]
    for thread, samples in threads.items():
        name = f"{event}, {label(thread.comm or '[unknown]')} {thread.tid}"
        yield _One(name, profile.unit, texts, samples)
