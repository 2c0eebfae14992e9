"""pprof: a profile in, the bytes of a profile.proto out, packed by gzip.

Format: https://github.com/google/pprof/blob/main/proto/profile.proto; its numbers of fields stand
here by their names. Protocol buffers are few rules (https://protobuf.dev/programming-guides/
encoding): a package for them would be larger than this file.
"""

from __future__ import annotations

from unwind.breakdown import Function, frames_of
from unwind.call_tree import head_of
from unwind.writers.labels import label

__all__ = ["pprof"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from unwind.profile import Binary, Profile, SampledStack, Site


class _Profile:
    sample_type, sample, mapping, location, function, string_table = 1, 2, 3, 4, 5, 6
    period_type, comment, default_sample_type = 11, 13, 14


class _ValueType:
    type, unit = 1, 2


class _Sample:
    location_id, value, label = 1, 2, 3


class _Label:
    key, str, num = 1, 2, 3


class _Mapping:
    id, memory_start, memory_limit, filename, build_id, has_functions = 1, 2, 3, 5, 6, 7
    has_inline_frames = 10


class _Location:
    id, mapping_id, address, line = 1, 2, 3, 4


class _Line:
    function_id = 1


class _Function:
    id, name, system_name, filename = 1, 2, 3, 4


def pprof(profile: Profile) -> Iterator[bytes]:
    """The file in pieces; the same profile gives the same bytes, whenever it is written.

    Addresses are vaddrs, within the calls where frames made one, so that profiles of runs at
    different addresses add up. Every sample has the labels comm, pid and tid; one that was cut has
    `truncated`, the reason, and a frame of that name as its outermost.
    """
    from zlib import compressobj

    packer = compressobj(9, wbits=31)  # gzip's header, without name and time
    for message in _Encoder(profile).messages():
        if piece := packer.compress(message):
            yield piece
    yield packer.flush()


class _Encoder:
    def __init__(self, profile: Profile):
        self.profile = profile
        self._strings: dict[str, int] = {"": 0}
        self._functions: dict[Function, int] = {}
        self._locations: dict[object, int] = {}
        self._new: list[bytes] = []  # functions and locations that no message has told of yet

    def messages(self) -> Iterator[bytes]:
        """The fields of the outermost message, one after another."""
        profile = self.profile
        event = profile.event or "samples"
        counted = [("samples", "count")]
        if profile.unit != "samples":
            counted.append((event, profile.unit))
        for kind in counted:
            yield _field(_Profile.sample_type, self._value_type(*kind))
        yield _field(_Profile.period_type, self._value_type(*counted[-1]))
        yield _field(_Profile.default_sample_type, self._string(counted[-1][0]))
        mappings = self._mappings()
        yield from [
            _field(_Profile.mapping, self._mapping(binary, mappings)) for binary in mappings
        ]
        sites = [self._location(site, mappings) for site in profile.sites]
        for stack in profile.stacks:
            sample = self._sample(stack, sites)
            yield b"".join(self._new)
            self._new.clear()
            yield sample
        for text in self._strings:
            yield _field(_Profile.string_table, text.encode())

    def _sample(self, stack: SampledStack, sites: list[int]) -> bytes:
        path = [sites[number] for number in stack.sites]
        path += [self._pseudo(function) for function in head_of(stack, process=False)]
        values = [stack.count]
        if self.profile.unit != "samples":
            values.append(stack.weight)
        thread = stack.thread
        parts = [_packed(_Sample.location_id, path), _packed(_Sample.value, values)]
        for key, text in ("comm", thread.comm), ("truncated", "" if stack.complete else stack.end):
            if text:
                told = _field(_Label.str, self._string(text))
                parts.append(_field(_Sample.label, self._key(key) + told))
        for key, number in ("pid", thread.pid), ("tid", thread.tid):
            if number is not None:
                parts.append(_field(_Sample.label, self._key(key) + _field(_Label.num, number)))
        return _field(_Profile.sample, b"".join(parts))

    def _key(self, name: str) -> bytes:
        return _field(_Label.key, self._string(name))

    def _mappings(self) -> dict[Binary, tuple[int, int, int]]:
        """The files with their ids and the vaddrs that they hold; the program's comes first.

        pprof calls a profile by its first mapping. The program is where stacks begin, and the
        heaviest of those that did, since few are cut there.
        """
        outermost: dict[Binary | None, int] = {}
        for stack in self.profile.stacks:
            if stack.complete and stack.sites:
                binary = self.profile.sites[stack.sites[-1]].binary
                outermost[binary] = outermost.get(binary, 0) + stack.weight
        ranges: dict[Binary, tuple[int, int]] = {}
        for site in self.profile.sites:
            if (binary := site.binary) is not None:
                low, high = ranges.get(binary, (binary.start, binary.end))
                at = site.lookup_vaddr
                ranges[binary] = min(low, at), max(high, at + 1)
        ordered = sorted(ranges, key=lambda binary: -outermost.get(binary, 0))
        return {binary: (n, *ranges[binary]) for n, binary in enumerate(ordered, 1)}

    def _mapping(self, binary: Binary, mappings: Mapping[Binary, tuple[int, int, int]]) -> bytes:
        number, start, end = mappings[binary]
        parts = [
            _field(_Mapping.id, number),
            _field(_Mapping.memory_start, start),
            _field(_Mapping.memory_limit, end),
            _field(_Mapping.filename, self._string(binary.name)),
            _field(_Mapping.build_id, self._string((binary.build_id or b"").hex())),
            _field(_Mapping.has_functions, 1),
        ]
        sites = self.profile.sites
        if any(site.inlined for site in sites if site.binary == binary):
            parts.append(_field(_Mapping.has_inline_frames, 1))
        return b"".join(parts)

    def _location(self, site: Site, mappings: Mapping[Binary, tuple[int, int, int]]) -> int:
        """The id of a site; sites that differ in their trust alone are one location."""
        key = site.replace(trust="")
        number = self._locations.get(key)
        if number is not None:
            return number
        number = self._locations[key] = len(self._locations) + 1
        parts = [_field(_Location.id, number)]
        if site.binary is not None:
            parts.append(_field(_Location.mapping_id, mappings[site.binary][0]))
        parts.append(_field(_Location.address, site.lookup_vaddr))
        # Innermost first: the last line is the function that the others are inlined into.
        known = site.function is not None or site.inlined
        for function in reversed(list(frames_of(site))) if known else ():
            line = _field(_Line.function_id, self._function(function))
            parts.append(_field(_Location.line, line))
        self._new.append(_field(_Profile.location, b"".join(parts)))
        return number

    def _pseudo(self, function: Function) -> int:
        """The id of a frame that is no place in code."""
        number = self._locations.get(function)
        if number is None:
            number = self._locations[function] = len(self._locations) + 1
            line = _field(_Line.function_id, self._function(function))
            parts = _field(_Location.id, number) + _field(_Location.line, line)
            self._new.append(_field(_Profile.location, parts))
        return number

    def _function(self, function: Function) -> int:
        number = self._functions.get(function)
        if number is None:
            number = self._functions[function] = len(self._functions) + 1
            name = _field(_Function.name, self._string(function.name))
            system_name = _field(_Function.system_name, self._string(function.name))
            message = _field(_Function.id, number) + name + system_name
            self._new.append(_field(_Profile.function, message))
        return number

    def _value_type(self, kind: str, unit: str) -> bytes:
        return _field(_ValueType.type, self._string(kind)) + _field(
            _ValueType.unit, self._string(unit)
        )

    def _string(self, text: str) -> int:
        return self._strings.setdefault(label(text), len(self._strings))


def _varint(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF  # an int64 below zero takes its ten bytes
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _field(number: int, value: int | bytes) -> bytes:
    """A field: a number as a varint (wire type 0), anything else with its length (2)."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _packed(number: int, values: Iterable[int]) -> bytes:
    return _field(number, b"".join(map(_varint, values)))
