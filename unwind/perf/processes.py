"""What a recording says of processes in; each one's threads and its address space, as of now, out.

fork inherits, exec drops, and what is mapped replaces what was there: perf records no munmap.
"""

from __future__ import annotations

from bisect import bisect_left

from unwind.modules import VDSO
from unwind.perf.files import CodeFiles
from unwind.space import AddressSpace, Region
from unwind.values import Value

__all__ = ["Mapped", "Process", "ProcessSpace", "Processes", "Task"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.architecture import Architecture
    from unwind.modules import Module

_MOST_DEAD = 256  # processes whose names are remembered after their end
_MOST_PARENTS = 8  # whose run-time code a process is looked for in
_MOST_MAPPINGS = 65536  # of one process: Linux's vm.max_map_count


class Mapped(Value):
    """[start, end) maps `name` from byte `offset` on, and code may run there."""

    start: int
    end: int
    offset: int
    name: str
    build_id: bytes | None = None


class Task:
    """One thread under one name. `comm` is None where the recording does not tell it."""

    __slots__ = ("comm", "pid", "process", "tid")

    def __init__(self, process: Process, tid: int, comm: str | None):
        self.process = process
        self.pid, self.tid, self.comm = process.pids[0], tid, comm


class ProcessSpace(AddressSpace):
    """The address space of the process pids[0], or one it was forked from: the others.

    `users` is how many processes have it now: a child has that of its parent until one of them
    maps something.
    """

    __slots__ = ("pids", "users")

    pids: tuple[int, ...]
    users: int


class Process:
    """A process: what code it has mapped, and the AddressSpace made of that.

    `space` is None where a mapping has changed since; `current` makes it anew. A space that a
    sample may have met is only ever extended. Where something is replaced, or the space is shared
    since a fork, another one takes its place: so walkers may keep what they know of a space, and
    the children of a shell share what is known of it.
    """

    __slots__ = ("_all", "_known", "mapped", "pids", "space", "tids")

    def __init__(self, pids: tuple[int, ...], all: Processes):
        self.pids = pids
        self.space: ProcessSpace | None = None
        self.mapped: list[Mapped] = []  # by address, without overlap
        self._all = all
        self._known: ProcessSpace | None = None  # what `space` was before a mapping was added
        self.tids: set[int] = set()  # of its threads

    def map(self, new: Mapped | None, start: int, end: int) -> None:
        """[start, end) is replaced by `new`, by nothing that runs where that is None."""
        mapped = self.mapped
        low = bisect_left(mapped, start, key=lambda entry: entry.end - 1)
        high = low
        pieces = []
        while high < len(mapped) and mapped[high].start < end:
            pieces += _around(mapped[high], start, end)
            high += 1
        if new is None and high == low:
            return
        if new is not None and high == low + 1 and mapped[low] == new:
            return
        if len(mapped) >= _MOST_MAPPINGS:
            return
        if high > low:
            self._leave()
        elif self.space is not None:
            self._known, self.space = self.space, None
        if new is not None:
            pieces.append(new)
            pieces.sort(key=lambda entry: entry.start)
        self.mapped = [*mapped[:low], *pieces, *mapped[high:]]

    def forked(self, pid: int) -> Process:
        """A child with the same mappings."""
        child = Process((pid, *self.pids[:_MOST_PARENTS]), self._all)
        child.mapped, child.space, child._known = self.mapped, self.space, self._known
        held = self.space or self._known
        if held is not None:
            held.users += 1
        return child

    def current(self) -> ProcessSpace:
        """The address space as it is now."""
        if self.space is not None:
            return self.space
        known, mapped, all = self._known, self.mapped, self._all
        if known is not None and known.users == 1 and known.pids == self.pids:
            there = {region.start for region in known.regions}
            added = [entry for entry in mapped if entry.start not in there]
            known.extend(all.modules_of(added), _regions(added))
            self.space, self._known = known, None
            return known
        self._leave()
        fixed = [Region(a, b, True, name) for a, b, name in all.arch.fixed_regions]
        regions = [*_regions(mapped), *fixed]
        space = self.space = ProcessSpace(all.arch, all.modules_of(mapped), regions, False)
        space.pids, space.users = self.pids, 1
        return space

    def end(self) -> None:
        """Nothing is mapped any more."""
        self.mapped = []
        self._leave()

    def _leave(self) -> None:
        """Have a space no longer."""
        held = self.space or self._known
        self.space = self._known = None
        if held is not None:
            held.users -= 1
            if held.users == 0:
                self._all.gone(held)


class Processes:
    """The processes of a recording and their threads, as its records tell of them.

    `gone` is called with a space that no process has any more: no sample will be in it, and who
    keeps something by spaces may forget that.
    """

    def __init__(self, arch: Architecture, files: CodeFiles):
        self.arch = arch
        self.tasks: dict[int, Task] = {}
        self.kernel: list[Mapped] = []
        self.kernel_symbols: dict[int, tuple[int, str]] = {}  # by their starts: the end, the name
        self.count = 0
        self.gone: Callable[[ProcessSpace], None] = lambda _: None
        self._files = files
        self._processes: dict[int, Process] = {}
        self._dead: dict[int, None] = {}  # in the order of their ends

    def task(self, pid: int, tid: int) -> Task:
        """The thread `tid`, also one that no record told of."""
        task = self.tasks.get(tid)
        if task is None or task.pid != pid:
            leader = self.tasks.get(pid)
            comm = leader.comm if leader is not None and leader.pid == pid else None
            task = self._put(self.process(pid), tid, comm)
        return task

    def process(self, pid: int) -> Process:
        """The process `pid`, also one that no record told of."""
        process = self._processes.get(pid)
        if process is None:
            process = self._processes[pid] = Process((pid,), self)
            self.count += 1
        return process

    def comm(self, pid: int, tid: int, name: str, exec: bool) -> None:
        """A thread is called `name` from now on; `exec`: because it runs another program."""
        if exec:
            self._replace(pid, Process((pid,), self))
        self._dead.pop(pid, None)
        self._put(self.process(pid), tid, name)

    def fork(self, pid: int, tid: int, parent_pid: int, parent_tid: int, bare: bool) -> None:
        """A thread, or with a pid of its own a process, is made; `bare`: without mappings."""
        parent = self.tasks.get(parent_tid)
        comm = parent.comm if parent is not None and parent.pid == parent_pid else None
        if pid != parent_pid:
            known = self._processes.get(parent_pid)
            bare = bare or known is None
            child = known.forked(pid) if known and not bare else Process((pid,), self)
            self._replace(pid, child)
            self._dead.pop(pid, None)
            self.count += 1
        self._put(self.process(pid), tid, comm)

    def exit(self, pid: int, tid: int) -> None:
        """A thread ends. The kernel may still be sampled on its behalf: its name stays a while."""
        process = self._processes.get(pid)
        if process is None:
            return
        process.tids.discard(tid)
        if tid != pid:
            self.tasks.pop(tid, None)
        if process.tids:
            return
        process.end()
        self._dead[pid] = None
        if len(self._dead) > _MOST_DEAD:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            gone = self._processes.pop(oldest)
            for thread in (oldest, *gone.tids):
                self.tasks.pop(thread, None)
            gone.end()

    def map(self, pid: int, new: Mapped, executable: bool) -> None:
        """A process maps something, perhaps over what was there."""
        if new.end <= new.start:
            return
        if pid == 0xFFFF_FFFF:
            self.kernel.append(new)
        else:
            self.process(pid).map(new if executable else None, new.start, new.end)

    def kernel_symbol(self, start: int, size: int, name: str) -> None:
        """The kernel has made code at run time, as it does of BPF programs."""
        if len(self.kernel_symbols) < _MOST_MAPPINGS:
            self.kernel_symbols[start] = start + size, name

    def modules_of(self, mapped: list[Mapped]) -> list[Module]:
        """The modules among what a process has mapped: files, and the vdso."""
        return [
            self._files.module(entry.name, entry.start, entry.end, entry.offset, entry.build_id)
            for entry in mapped
            if entry.name == VDSO or (entry.name[:1] == "/" and entry.name[:2] != "//")
        ]

    def _replace(self, pid: int, process: Process) -> None:
        """The process `pid` is this from now on."""
        before = self._processes.get(pid)
        self._processes[pid] = process
        if before is not None:
            before.end()

    def _put(self, process: Process, tid: int, comm: str | None) -> Task:
        task = self.tasks[tid] = Task(process, tid, comm)
        process.tids.add(tid)
        return task


def _regions(mapped: list[Mapped]) -> list[Region]:
    return [Region(entry.start, entry.end, True, entry.name) for entry in mapped]


def _around(entry: Mapped, start: int, end: int) -> list[Mapped]:
    """What is left of a mapping when [start, end) is taken out of it."""
    left: list[Mapped] = []
    if entry.start < start:
        left.append(entry.replace(end=start))
    if entry.end > end:
        offset = entry.offset + end - entry.start
        left.append(entry.replace(start=end, offset=offset))
    return left
