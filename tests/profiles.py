"""Profiles for tests: by hand, of an example core, and of random stacks by the thousand."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypothesis import strategies as st

from unwind.arch.x86_64 import ARCH
from unwind.files import Files
from unwind.frames import End, Trust
from unwind.profile import Binary, Counts, Profile, Site, Thread
from unwind.sites import Sites
from unwind.space import AddressSpace
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.transports.core import TRANSPORT
from unwind.unwinder import Unwinder

PROGRAM = Binary("/usr/bin/program", bytes(range(20)), 0x1000, 0x9000)
LIBC = Binary("/usr/lib/libc.so.6", bytes(range(20, 40)), 0x2_0000, 0x20_0000)
KERNEL = Binary("[kernel.kallsyms]", None, 0, 1 << 63)
MAIN = Thread(100, 100, "program")
WORKER = Thread(100, 101, "worker")

# What a name in a profile may be: a symbol table is anybody's.
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a;b",
    "line\nbreak\r",
    "\x1b[31mred\x00\x07\x7f",
    "bytes\udcff\udc80",
    ']]> & "quotes" \' \\ `',
    "12 34",
    " ",
    "\u202eright to left, \u2028 and a \ufffe that XML has no place for",
    "long" * 250_000,
)


def site_at(function: str | None, binary: Binary | None = PROGRAM, **fields: object) -> Site:
    """A site of a function, 16 bytes from its start; functions of one name lie at one place."""
    at = random.Random(repr(function)).randrange(0x1000, 0x9000, 16)
    made: Site = Site(binary, at, function, None if function is None else 16).replace(**fields)
    return made


def by_hand(
    stacks: Iterable[tuple[Thread, str, Sequence[Site | str], str, int]],
    event: str = "cpu-clock",
    unit: str = "nanoseconds",
    weight: int = 1_000,
    timed: bool = False,
) -> Profile:
    """A profile of (thread, frames from the OUTERMOST inwards, end, count), fed as a reader does.

    The frames are sites, or words: names of functions, all of them found by CFI.
    """
    numbers: dict[Site, int] = {}
    counts = Counts(event, unit, lambda space, pc, called: list(numbers)[pc], timed=timed)
    space = AddressSpace(ARCH, [])
    time = 0.0
    for thread, frames, end, count in [_words(stack) for stack in stacks]:
        made = [site_at(frame) if isinstance(frame, str) else frame for frame in reversed(frames)]
        pcs = tuple([numbers.setdefault(site, len(numbers)) for site in made])
        how = tuple([(site.trust, n > 0) for n, site in enumerate(made)])
        for _ in range(count):
            counts.add(
                *(counts.table(space, thread), pcs, end, weight, how),
                detail="" if end == End.OUTERMOST else f"a sentence on {end}",
                time=time,
            )
            time += 0.001
    return counts.profile()


def _words(
    stack: tuple[Thread, str | Sequence[Site | str], str, int],
) -> tuple[Thread, Sequence[Site | str], str, int]:
    thread, frames, end, count = stack
    return thread, frames.split() if isinstance(frames, str) else frames, end, count


def small(**options: object) -> Profile:
    """A profile that has recursion, cut stacks, kernel frames, inlined ones and two threads."""
    cut = [site_at(None, LIBC), site_at("qsort", LIBC, trust=Trust.EMULATION)]
    kernel = site_at("do_syscall_64", KERNEL, kernel=True, trust=Trust.RECORDED)
    inlined = site_at("leaf", inlined=("std::swap<int>", "swap_all"))
    return by_hand(
        [
            (MAIN, "_start main work", End.OUTERMOST, 5),
            (MAIN, "_start main work work leaf", End.OUTERMOST, 30),
            (MAIN, ["_start", "main", "other", inlined], End.OUTERMOST, 15),
            (MAIN, ["_start", "main", site_at("write", LIBC), kernel], End.OUTERMOST, 10),
            (MAIN, cut, End.NO_ROW, 12),
            (MAIN, [site_at(None, None)], End.NO_MODULE, 3),
            (WORKER, "clone3 start_thread run work", End.OUTERMOST, 20),
            (WORKER, "work leaf", End.MEMORY_FAULT, 5),
        ],
        **options,  # type: ignore[arg-type]
    )


def empty() -> Profile:
    """No sample at all."""
    return by_hand([])


def hostile() -> Profile:
    """Names that mean something to whoever reads a format carelessly."""
    stacks = []
    for n, name in enumerate(HOSTILE):
        binary = Binary(f"/tmp/{name[:1000]}.so", b"\xff" * 20, 0, 0x9000)
        thread = Thread(n, n, name[:1000])
        stacks.append((thread, ["_start", site_at(name, binary)], End.OUTERMOST, n + 1))
        stacks.append((thread, [site_at(name, binary), "inner"], End.NO_ROW, 1))
    return by_hand(stacks)


@functools.cache
def many(seed: int = 1, stacks: int = 3_000, depth: int = 60, functions: int = 700) -> Profile:
    """A profile as a compiler's: thousands of different stacks, some 1,000 frames deep."""
    chance = random.Random(seed)
    names = [f"ns{n % 17}::function_{n}(int, std::vector<char>&)" for n in range(functions)]
    made: list[tuple[Thread, Sequence[Site | str], str, int]] = []
    path = ["_start", "main"]
    for n in range(stacks):
        del path[max(2, len(path) - chance.randrange(12)) :]
        path += chance.choices(names, k=max(0, min(chance.randrange(14), depth - len(path))))
        deep = ["recurse"] * 1_000 if n % 500 == 0 else []
        whole = chance.random() > 0.1
        end = End.OUTERMOST if whole else chance.choice([End.MEMORY_FAULT, End.NO_ROW])
        frames = [*path, *deep] if whole else path[len(path) // 2 :]
        made.append((chance.choice([MAIN, WORKER]), frames, end, chance.randrange(1, 9)))
    return by_hand(made)


def of_example(where: Path, weight: int = 1) -> Profile:
    """The threads of the example core (see tests/conftest.py), one sample each."""
    with Files(sysroot=str(where)) as files, TRANSPORT.open(str(where / "core"), files) as source:
        unwinder = Unwinder(source.arch)
        counts = Counts("crash", "samples", Sites(Names(TableSymbolizer()).name))
        for snapshot in source.snapshots():
            thread = Thread(snapshot.pid, snapshot.tid, snapshot.name)
            table = counts.table(snapshot.space, thread)
            counts.add_stack(table, unwinder.unwind(snapshot), weight)
        return counts.profile()


_OUTERMOST = {"_start", "clone", "clone3", "__clone", "__clone3", "ret_from_fork", "kthread"}


def of_perf_script(text: str, timed: bool = False) -> Profile:
    """The profile in what `perf script -F comm,pid,tid,time,event,period,ip,sym,dso,symoff` says.

    perf knows no ends: a stack is complete here where its outermost function is known to be one.
    """
    sites: dict[tuple[str, bool], int] = {}
    places: list[Site] = []
    counts = Counts(
        *("cpu-clock", "nanoseconds"),
        lambda space, pc, called: places[pc],
        lambda pc, called: places[pc],
        timed=timed,
    )
    space = AddressSpace(ARCH, [])
    for block in filter(None, text.split("\n\n")):
        head, *frames = block.strip("\n").split("\n")
        comm, ids, time, period, *_ = head.rsplit(None, 4)
        kernel, user, last = [], [], ""
        for frame in frames:
            address, _, rest = frame.strip().partition(" ")
            symbol, _, file = rest.rpartition(" (")
            last, plus, offset = symbol.rpartition("+")
            in_kernel = file.startswith(("[kernel", "[guest"))
            key = frame, in_kernel
            if key not in sites:
                sites[key] = len(places)
                name = (last or symbol).partition("@")[0] if symbol != "[unknown]" else None
                binary = Binary(file.rstrip(")"), None, 0, 1 << 63)
                at = int(offset, 16) if plus and name else None
                places.append(Site(binary, int(address, 16), name, at))
            (kernel if in_kernel else user).append(sites[key])
        pid, tid = map(int, ids.split("/"))
        whole = last in _OUTERMOST or not user
        counts.add(
            *(counts.table(space, Thread(pid, tid, comm)), tuple(user)),
            End.OUTERMOST if whole else End.MEMORY_FAULT,
            int(period),
            kernel=tuple(kernel),
            time=float(time.rstrip(":")),
        )
    return counts.profile()


@st.composite
def any_profile(draw: st.DrawFn) -> Profile:
    """A few stacks of functions, files and processes with any names whatever."""
    names = st.text(st.characters(codec=None), min_size=1, max_size=8)
    threads = st.builds(Thread, st.integers(0, 3), st.integers(0, 9), names)
    binaries = st.none() | st.builds(Binary, names, st.none() | st.binary(max_size=20))
    sites = st.builds(
        Site,
        binaries,
        st.integers(0, (1 << 64) - 1),
        st.none() | names,
        st.integers(0, 0xFFFF),
        st.sampled_from([Trust.CFI, Trust.SCAN]),
        st.booleans(),
        st.lists(names, max_size=2).map(tuple),
    )
    ends = st.sampled_from([End.OUTERMOST, End.NO_ROW])
    stacks = st.tuples(threads, st.lists(sites, max_size=4), ends, st.integers(1, 5))
    return by_hand(draw(st.lists(stacks, max_size=5)), timed=draw(st.booleans()))
