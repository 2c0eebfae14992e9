"""libbpf by ctypes: a BPF object's file in; programs in the kernel, their maps and rings out.

Of the library `libbpf.so.1` is enough: from version 1.0 on, Debian's package libbpf1.
"""

from __future__ import annotations

import os
from errno import ENOENT, ENOSPC

from unwind.errors import SourceError

__all__ = ["BpfError", "BpfObject", "Link", "Map", "Program", "Ring", "load_library"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Self

_NAME = "libbpf.so.1"
_PACKAGE = "apt install libbpf1"
_MOST_LINES = 400  # of the log: the end of what the verifier says is the reason
_MOST_SAID = 1 << 20  # bytes of one message, which may be all that the verifier says
_BATCH = 4096  # entries of a map that are asked for at once


class BpfError(SourceError):
    """A call of libbpf that failed: `number` is its errno, `log` what the library said."""

    def __init__(self, reason: str, path: str = "", hint: str = "", number: int = 0, log: str = ""):
        super().__init__(reason, path, hint)
        self.number, self.log = number, log


class Library:
    """The functions of libbpf, with their types; `log` has what it said since that was cleared."""

    def __init__(self) -> None:
        import ctypes

        self.ctypes = ctypes
        try:
            self.functions: Any = ctypes.CDLL(_NAME, use_errno=True)
        except OSError:
            raise SourceError(
                f"{_NAME}, which loads BPF programs, is not installed", hint=_PACKAGE
            ) from None
        self.log: list[str] = []
        self._declare()
        self._keep_log()

    def error(self, what: str, number: int, path: str = "") -> BpfError:
        """What a failed call comes to; `number` is an errno."""
        said = "\n".join(self.log)
        return BpfError(f"{what}: {os.strerror(number)}", path, "", number, said)

    def pointer(self, found: int | None, what: str, path: str = "") -> int:
        """A pointer that a function gave; BpfError where it is null."""
        if not found:
            raise self.error(what, self.ctypes.get_errno(), path)
        return found

    def done(self, result: int, what: str, path: str = "") -> int:
        """What a function gave that is negative where it failed."""
        if result < 0:
            raise self.error(what, -result, path)
        return result

    def _declare(self) -> None:
        """Pointers have 8 bytes, where ctypes would take them for ints of 4."""
        c = self.ctypes
        pointer, number, size, text = c.c_void_p, c.c_int, c.c_size_t, c.c_char_p
        for name, result, arguments in (
            ("bpf_map__fd", number, [pointer]),
            ("bpf_map__lookup_elem", number, [pointer, pointer, size, pointer, size, c.c_uint64]),
            ("bpf_map__set_initial_value", number, [pointer, pointer, size]),
            ("bpf_map__set_max_entries", number, [pointer, c.c_uint32]),
            ("bpf_map__key_size", c.c_uint32, [pointer]),
            ("bpf_map__value_size", c.c_uint32, [pointer]),
            ("bpf_map_delete_elem", number, [number, pointer]),
            ("bpf_map_lookup_batch", number, [number, *[pointer] * 6]),
            ("bpf_map_lookup_elem", number, [number, pointer, pointer]),
            ("bpf_map_update_elem", number, [number, pointer, pointer, c.c_uint64]),
            ("bpf_iter_create", number, [number]),
            ("bpf_link__destroy", number, [pointer]),
            ("bpf_link__fd", number, [pointer]),
            ("bpf_object__close", None, [pointer]),
            ("bpf_object__find_map_by_name", pointer, [pointer, text]),
            ("bpf_object__load", number, [pointer]),
            ("bpf_object__next_program", pointer, [pointer, pointer]),
            ("bpf_object__open_mem", pointer, [c.c_char_p, size, pointer]),
            ("bpf_program__attach_iter", pointer, [pointer, pointer]),
            ("bpf_program__attach_kprobe", pointer, [pointer, c.c_bool, text]),
            ("bpf_program__attach_perf_event", pointer, [pointer, number]),
            ("bpf_program__attach_raw_tracepoint", pointer, [pointer, text]),
            ("bpf_program__attach_tracepoint", pointer, [pointer, text, text]),
            ("bpf_program__attach_uprobe_opts", pointer, [pointer, number, text, size, pointer]),
            ("bpf_program__attach_trace", pointer, [pointer]),
            ("bpf_program__fd", number, [pointer]),
            ("bpf_program__name", text, [pointer]),
            ("bpf_program__set_attach_target", number, [pointer, number, text]),
            ("bpf_program__set_autoload", number, [pointer, c.c_bool]),
            ("bpf_program__set_expected_attach_type", number, [pointer, number]),
            ("libbpf_num_possible_cpus", number, []),
            ("libbpf_set_print", pointer, [pointer]),
            ("ring_buffer__consume", number, [pointer]),
            ("ring_buffer__free", None, [pointer]),
            ("ring_buffer__new", pointer, [number, pointer, pointer, pointer]),
            ("ring_buffer__poll", number, [pointer, number]),
        ):
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments

    def _keep_log(self) -> None:
        """Have the library's messages kept instead of printed."""
        c = self.ctypes
        format_list = c.CDLL(None).vsnprintf
        format_list.argtypes = [c.c_char_p, c.c_size_t, c.c_char_p, c.c_void_p]
        room = c.create_string_buffer(_MOST_SAID)

        # A va_list is a pointer to where the arguments are, as a function takes it: on x86_64, on
        # arm64 and on mips.
        @c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, c.c_void_p)  # type: ignore[untyped-decorator]
        def keep(level: int, form: bytes, arguments: int) -> int:
            if level < 2:  # LIBBPF_DEBUG
                format_list(room, _MOST_SAID, form, arguments)
                self.log += room.value.decode(errors="replace").rstrip("\n").split("\n")
                del self.log[:-_MOST_LINES]
            return 0

        self._keep = keep  # as long as the library may call it
        self.functions.libbpf_set_print(c.cast(keep, c.c_void_p))


_library: Library | None = None


def load_library() -> Library:
    """The library; SourceError that says what to install where there is none."""
    global _library
    if _library is None:
        _library = Library()
    return _library


class Program:
    """One program of an object."""

    def __init__(self, library: Library, handle: int, name: str):
        self._library, self._handle, self.name = library, handle, name

    def wanted(self, wanted: bool) -> None:
        """Whether it is loaded with the object."""
        self._library.functions.bpf_program__set_autoload(self._handle, wanted)

    def expect(self, kind: int) -> None:
        """Before it is loaded: what it will be attached as (enum bpf_attach_type)."""
        functions = self._library.functions
        result = functions.bpf_program__set_expected_attach_type(self._handle, kind)
        self._library.done(result, self.name)

    @property
    def handle(self) -> int:
        """Its descriptor, once it is loaded."""
        return self._library.done(self._library.functions.bpf_program__fd(self._handle), self.name)

    def attach_kprobe(self, function: str) -> Link:
        """To the first instruction of a function of the kernel."""
        return self._attached("attach_kprobe", function, False, os.fsencode(function))

    def attach_tracepoint(self, category: str, name: str) -> Link:
        """To a tracepoint; the file system tracefs tells its number."""
        words = os.fsencode(category), os.fsencode(name)
        return self._attached("attach_tracepoint", f"{category}:{name}", *words)

    def attach_raw_tracepoint(self, name: str) -> Link:
        """To a tracepoint by its name alone."""
        return self._attached("attach_raw_tracepoint", name, os.fsencode(name))

    def aim(self, name: str) -> None:
        """Before it is loaded: the function or tracepoint that `attach_trace` is for."""
        library = self._library
        library.log.clear()
        result = library.functions.bpf_program__set_attach_target(
            self._handle, 0, os.fsencode(name)
        )
        library.done(result, f"cannot attach to {name}")

    def attach_iterator(self) -> Link:
        """To all that its section names; `Link.read` runs it."""
        return self._attached("attach_iter", self.name, None)

    def attach_trace(self, name: str) -> Link:
        """To what it was aimed at, by the kernel's own types."""
        return self._attached("attach_trace", name)

    def attach_perf_event(self, handle: int) -> Link:
        """To an event of perf_event_open(2), whose descriptor is closed with the link."""
        return self._attached("attach_perf_event", "perf_event", handle)

    def attach_uprobe(
        self,
        path: str,
        function: str | None,
        offset: int,
        pid: int | None,
        cookie: int,
        returning: bool = False,
    ) -> Link:
        """To an instruction of a file: `offset` in the function, without one in the file.

        `pid` None: of all processes that map it. `returning`: to the return of the function that
        begins there.
        """
        c = self._library.ctypes

        class Options(c.Structure):  # type: ignore[misc, name-defined]
            _fields_ = (  # struct bpf_uprobe_opts of libbpf 1.0; later ones take the rest as zeroes
                ("sz", c.c_size_t),
                ("ref_ctr_offset", c.c_size_t),
                ("bpf_cookie", c.c_uint64),
                ("retprobe", c.c_bool),
                ("func_name", c.c_char_p),
            )

        options = Options()
        options.sz, options.bpf_cookie = c.sizeof(options), cookie
        options.retprobe = returning
        options.func_name = os.fsencode(function) if function else None
        where = os.fsencode(path), offset, c.addressof(options)
        return self._attached("attach_uprobe_opts", path, -1 if pid is None else pid, *where)

    def _attached(self, call: str, where: str, *arguments: Any) -> Link:
        library = self._library
        library.log.clear()
        found = getattr(library.functions, f"bpf_program__{call}")(self._handle, *arguments)
        return Link(library, library.pointer(found, f"cannot attach to {where}"))


class Link:
    """An attachment, until it is closed."""

    def __init__(self, library: Library, handle: int):
        self._library, self._handle = library, handle

    def read(self) -> bytes:
        """What an iterator writes, of all that there is now."""
        library = self._library
        what = "the iterator"
        number = library.done(library.functions.bpf_link__fd(self._handle), what)
        handle = library.done(library.functions.bpf_iter_create(number), what)
        pieces = []
        try:
            while piece := os.read(handle, 1 << 16):
                pieces.append(piece)
        finally:
            os.close(handle)
        return b"".join(pieces)

    def close(self) -> None:
        """No event comes from it any more."""
        if self._handle:
            self._library.functions.bpf_link__destroy(self._handle)
            self._handle = 0


class BpfObject:
    """An object: its programs and maps. `load` puts those that are wanted into the kernel."""

    def __init__(self, data: bytes, path: str):
        self._library = library = load_library()
        library.log.clear()
        self.path = path
        found = library.functions.bpf_object__open_mem(data, len(data), None)
        self._handle = library.pointer(found, "cannot be opened as a BPF object", path)
        self.programs = {program.name: program for program in self._programs()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take programs and maps out of the kernel; links and rings are closed before."""
        if self._handle:
            self._library.functions.bpf_object__close(self._handle)
            self._handle = 0

    def load(self, programs: Iterable[str]) -> None:
        """Load these programs and the maps; BpfError with what the kernel's verifier said."""
        names = set(programs)
        for name, program in self.programs.items():
            program.wanted(name in names)
        self._library.log.clear()
        result = self._library.functions.bpf_object__load(self._handle)
        self._library.done(result, "the kernel does not load the BPF programs", self.path)

    def preset(self, name: str, data: bytes) -> None:
        """What a map holds when it is loaded: `.rodata` has the constants."""
        result = self._library.functions.bpf_map__set_initial_value(
            self._map(name), data, len(data)
        )
        self._library.done(result, f"map {name}", self.path)

    def resize(self, name: str, entries: int) -> None:
        """The number of entries of a map that is not loaded yet; of a ring: its bytes."""
        result = self._library.functions.bpf_map__set_max_entries(self._map(name), entries)
        self._library.done(result, f"map {name}", self.path)

    def each_cpu(self, name: str) -> list[bytes]:
        """The first value of a per-CPU array, once for each processor that there may be."""
        library, c = self._library, self._library.ctypes
        found = self._map(name)
        cpus = library.done(library.functions.libbpf_num_possible_cpus(), "processors")
        size = (library.functions.bpf_map__value_size(found) + 7) // 8 * 8
        room, key = c.create_string_buffer(size * cpus), c.c_uint32(0)
        result = library.functions.bpf_map__lookup_elem(
            found, c.addressof(key), 4, c.addressof(room), size * cpus, 0
        )
        library.done(result, f"map {name}", self.path)
        return [room.raw[n * size : (n + 1) * size] for n in range(cpus)]

    def map(self, name: str) -> Map:
        """The map of that name, once it is loaded: an array, or a hash table."""
        return Map(self._library, self._map(name), f"map {name}", self.path)

    def ring(self, name: str, take: Callable[[bytes], bool]) -> Ring:
        """The ring buffer of that name, whose records `take` gets; False: no more for now."""
        handle = self._library.functions.bpf_map__fd(self._map(name))
        return Ring(self._library, handle, take)

    def _map(self, name: str) -> int:
        found = self._library.functions.bpf_object__find_map_by_name(
            self._handle, os.fsencode(name)
        )
        return self._library.pointer(found, f"there is no map {name!r} in it", self.path)

    def _programs(self) -> Iterator[Program]:
        functions, found = self._library.functions, None
        while found := functions.bpf_object__next_program(self._handle, found):
            yield Program(self._library, found, os.fsdecode(functions.bpf_program__name(found)))


class Map:
    """A map in the kernel, whose keys and values are bytes here."""

    def __init__(self, library: Library, handle: int, name: str, path: str):
        functions = library.functions
        self._library, self._name, self._path = library, name, path
        self._handle = library.done(functions.bpf_map__fd(handle), name, path)
        self._sizes = functions.bpf_map__key_size(handle), functions.bpf_map__value_size(handle)

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`, None where there is none."""
        value = self._library.ctypes.create_string_buffer(self._sizes[1])
        result = self._library.functions.bpf_map_lookup_elem(self._handle, key, value)
        if result == -ENOENT:
            return None
        self._done(result)
        return bytes(value)

    def put(self, key: bytes, value: bytes) -> None:
        """Have `value` at `key`."""
        if (len(key), len(value)) != self._sizes:
            raise ValueError(f"{self._name}: keys and values are of {self._sizes} bytes")
        self._done(self._library.functions.bpf_map_update_elem(self._handle, key, value, 0))

    def remove(self, key: bytes) -> None:
        """Have nothing at `key`, which may be so already."""
        result = self._library.functions.bpf_map_delete_elem(self._handle, key)
        if result != -ENOENT:
            self._done(result)

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, in no order.

        What was there all the time comes; what comes or goes meanwhile may, or come twice.
        """
        c, call = self._library.ctypes, self._library.functions.bpf_map_lookup_batch
        (key_size, value_size), room, before = self._sizes, _BATCH, None
        place = c.create_string_buffer(max(key_size, 8))
        while True:
            keys = c.create_string_buffer(room * key_size)
            values = c.create_string_buffer(room * value_size)
            count = c.c_uint32(room)
            after = c.create_string_buffer(len(place))
            result = call(self._handle, before, after, keys, values, c.byref(count), None)
            if result == -ENOSPC:  # those whose keys have one hash do not fit
                room *= 2
                continue
            if result != -ENOENT:
                self._done(result)
            found = memoryview(keys), memoryview(values)
            for n in range(count.value):
                key = bytes(found[0][n * key_size : (n + 1) * key_size])
                yield key, bytes(found[1][n * value_size : (n + 1) * value_size])
            if result:
                return
            before = place = after

    def _done(self, result: int) -> None:
        self._library.done(result, self._name, self._path)


class Ring:
    """A ring buffer of the kernel's. `take` is called with a copy of each record."""

    _FULL = -105  # -ENOBUFS: how our own callback says that it wants no more

    def __init__(self, library: Library, handle: int, take: Callable[[bytes], bool]):
        self._library, c = library, library.ctypes
        copy = c.string_at

        @c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t)  # type: ignore[untyped-decorator]
        def each(_context: int, data: int, size: int) -> int:
            return 0 if take(copy(data, size)) else self._FULL

        self._each = each  # as long as the library may call it
        pointer = c.cast(each, c.c_void_p)
        found = library.functions.ring_buffer__new(handle, pointer, None, None)
        self._handle = library.pointer(found, "cannot map the ring buffer")

    def poll(self, seconds: float) -> None:
        """Take what there is, or wait for it; a signal ends the wait."""
        result = self._library.functions.ring_buffer__poll(self._handle, int(1000 * seconds))
        self._check(result)

    def consume(self) -> None:
        """Take what there is."""
        self._check(self._library.functions.ring_buffer__consume(self._handle))

    def close(self) -> None:
        """Give the memory back; what is in the ring is lost."""
        if self._handle:
            self._library.functions.ring_buffer__free(self._handle)
            self._handle = 0

    def _check(self, result: int) -> None:
        if result < 0 and result not in (self._FULL, -4):  # EINTR
            self._library.done(result, "the ring buffer")
