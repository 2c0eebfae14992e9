"""Readers of profile formats, written from their specifications: bytes in, weight by stack out.

They share no code with the writers. A stack is the names of its frames from the outermost on.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from unwind.profile import Profile
from unwind.writers.labels import label

Stacks = Counter[tuple[str, ...]]


def expected(profile: Profile, process: bool, counts: bool = False) -> Stacks:
    """What a format must say of a profile, with the processes as outermost frames or without."""
    found: Stacks = Counter()
    for stack in profile.stacks:
        path = [] if stack.complete else [f"[truncated: {stack.end}]"]
        if process:
            path.append(label(stack.thread.comm or "[unknown]"))
        for number in stack.sites[::-1]:
            site = profile.sites[number]
            path += [label(name) for name in (site.label, *site.inlined[::-1])]
        found[tuple(path)] += stack.count if counts else stack.weight
    return found


def read_folded(text: str) -> Stacks:
    """As flamegraph.pl does: what follows the last blank is the weight."""
    found: Stacks = Counter()
    for line in text.splitlines():
        stack, _, weight = line.rpartition(" ")
        found[tuple(word.replace("\\x3b", ";") for word in stack.split(";"))] += int(weight)
    return found


def read_speedscope(text: str) -> dict[str, Stacks]:
    """The stacks of each profile in the file, by its name."""
    document = json.loads(text)
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    names = [frame["name"] for frame in document["shared"]["frames"]]
    found = {}
    for profile in document["profiles"]:
        assert profile["type"] == "sampled"
        stacks = found[profile["name"]] = Stacks()
        assert profile["endValue"] - profile["startValue"] == sum(profile["weights"])
        for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
            stacks[tuple(names[number] for number in sample)] += weight
    return found


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer's message: numbers, and bytes of a length."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    at = 0
    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            assert key & 7 == 2
            length = varint()
            assert at + length <= len(message)
            yield key >> 3, message[at : at + length]
            at += length


def grouped(message: bytes) -> dict[int, list[Any]]:
    """The fields of a message, by number."""
    found: dict[int, list[Any]] = {}
    for number, value in fields(message):
        found.setdefault(number, []).append(value)
    return found


class Pprof:
    """What a profile.proto holds, with its numbers resolved."""

    def __init__(self, data: bytes):
        top = grouped(gzip.decompress(data))
        self.strings = [text.decode() for text in top[6]]
        assert self.strings[0] == ""
        self.types = [
            (self.strings[kind[1][0]], self.strings[kind[2][0]]) for kind in map(grouped, top[1])
        ]
        self.mappings = {one[1][0]: one for one in map(grouped, top.get(3, []))}
        self.locations = {one[1][0]: one for one in map(grouped, top.get(4, []))}
        self.functions = {one[1][0]: one for one in map(grouped, top.get(5, []))}
        self.samples = list(map(grouped, top.get(2, [])))

    def stacks(self, value: int) -> Stacks:
        """The weight of each stack by one of the sample types, counted from 0."""
        found: Stacks = Counter()
        for sample in self.samples:
            path = [self.names(number) for number in _packed(sample.get(1, [b""])[0])]
            path = [list(reversed(names)) for names in reversed(path)]
            weight = list(_packed(sample[2][0]))[value]
            found[tuple(name for names in path for name in names)] += weight
        return found

    def names(self, location: int) -> list[str]:
        """The functions at a location, innermost first; its file where there is none."""
        fields_of = self.locations[location]
        lines = [grouped(line)[1][0] for line in fields_of.get(4, [])]
        if lines:
            return [self.strings[self.functions[number][2][0]] for number in lines]
        if 2 not in fields_of:
            return ["[unknown]"]
        path = self.strings[self.mappings[fields_of[2][0]][5][0]]
        name = path.rpartition("/")[2] or path
        return [name if name.startswith("[") else f"[{name}]"]

    def labels(self, sample: dict[int, list[Any]]) -> dict[str, object]:
        """The labels of a sample."""
        found = {}
        for told in map(grouped, sample.get(3, [])):
            value = self.strings[told[2][0]] if 2 in told else told[3][0]
            found[self.strings[told[1][0]]] = value
        return found


def _packed(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0


def read_firefox(text: str) -> dict[str, Stacks]:
    """The stacks of each thread, by pid, tid and name, once all tables are found to be sound."""
    document = json.loads(text)
    shared = document["shared"]
    strings, libs = shared["stringArray"], document["libs"]
    for table in _tables(document):
        for name, column in table.items():
            assert (
                name == "length"
                or column is None
                or not isinstance(column, list)
                or (len(column) == table["length"])
            ), name
    stacks, frames, functions = shared["stackTable"], shared["frameTable"], shared["funcTable"]
    for number, prefix in enumerate(stacks["prefix"]):
        assert prefix is None or prefix < number, "a caller's stack comes before"
    assert all(0 <= number < frames["length"] for number in stacks["frame"])
    assert all(0 <= number < functions["length"] for number in frames["func"])
    assert all(
        number is None or 0 <= number < shared["nativeSymbols"]["length"]
        for number in frames["nativeSymbol"]
    )
    assert all(-1 <= number < len(libs) for number in functions["resource"])
    assert all(0 <= number < len(libs) for number in shared["nativeSymbols"]["libIndex"])
    categories = document["meta"]["categories"]
    assert all(0 <= number < len(categories) for number in frames["category"])
    assert categories[0]["color"] == "grey"
    found: dict[str, Stacks] = {}
    for thread in document["threads"]:
        samples = thread["samples"]
        assert samples["time"] == sorted(samples["time"])
        weights = samples["weight"] or [1] * samples["length"]
        mine = found.setdefault(f"{thread['pid']} {thread['tid']} {thread['name']}", Stacks())
        for at, weight in zip(samples["stack"], weights, strict=True):
            path = []
            while at is not None:
                path.append(strings[functions["name"][frames["func"][stacks["frame"][at]]]])
                at = stacks["prefix"][at]
            mine[tuple(reversed(path))] += weight
    return found


def _tables(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (table for table in document["shared"].values() if isinstance(table, dict))
    for thread in document["threads"]:
        yield from (thread["samples"], thread["markers"])
