"""Snapshot, Source and Place: a thread at one instant, where it came from, and a spot in it."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["Place", "RecordedSource", "Signal", "Snapshot", "Source"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Self

    from unwind.architecture import Architecture
    from unwind.image import Image
    from unwind.modules import Module
    from unwind.protocols import Memory
    from unwind.registers import Registers
    from unwind.space import AddressSpace


class Signal(Value):
    """The signal that ended a process: `address` only where the kernel set one (a fault)."""

    number: int
    code: int | None = None
    address: int | None = None


class Snapshot(Value):
    """A thread at one instant. Registers that are not in the mapping are unknown."""

    registers: Mapping[int, int]
    memory: Memory
    space: AddressSpace
    tid: int = 0
    pid: int = 0
    name: str | None = None
    crashed: bool = False
    time: float | None = None  # seconds
    event: str | None = None
    cookie: int | None = None


class Place(Value):
    """A spot in a snapshot for which a row is wanted.

    `module` and `image` are None where pc is mapped nowhere, `image` also where no file was
    found. `vaddr` is the link-time address to look up, already stepped back into the call where
    `called` is True; it is False for the innermost frame and for what a signal interrupted.
    """

    image: Image | None
    module: Module | None
    vaddr: int
    pc: int
    space: AddressSpace
    registers: Registers
    memory: Memory
    called: bool

    @property
    def lookup_pc(self) -> int:
        """`vaddr` as an address of the process."""
        return self.module.to_pc(self.vaddr) if self.module is not None else self.vaddr


class Source:
    """What a transport opens: facts about the source, and an iterator of its Snapshots.

    It is a context manager; its Snapshots are good until it is closed.
    """

    kind: str = ""

    def __init__(self, arch: Architecture, path: str = ""):
        self.arch = arch
        self.path = path
        self.pid: int | None = None
        self.command: str | None = None
        self.signal: Signal | None = None
        self.time: float | None = None
        self.stopped: float | None = None  # seconds that a live process stood still for this
        self.warnings: list[str] = []

    def snapshots(self) -> Iterator[Snapshot]:
        """The threads or samples, in the source's order (a core: the crashed thread first)."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the source holds: files, temporary copies."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class RecordedSource(Source):
    """Snapshots that were kept: what walks of them need, and no more (see recording.py).

    `origin` is the kind of the source that they were taken from, `by` who took them. `methods` are
    the sources of rows that were asked, in their order: for others there is less here than they
    would look at. `cross_checked`: all were asked, for each frame.
    """

    kind = "snapshot"

    def __init__(
        self,
        arch: Architecture,
        threads: Iterable[Snapshot],
        path: str = "",
        origin: str = "",
        by: str = "",
        methods: Iterable[str] = (),
        cross_checked: bool = False,
    ):
        super().__init__(arch, path)
        self.threads = tuple(threads)
        self.origin = origin
        self.by = by
        self.methods = tuple(methods)
        self.cross_checked = cross_checked

    def snapshots(self) -> Iterator[Snapshot]:
        """The threads in the order in which they were recorded."""
        return iter(self.threads)
