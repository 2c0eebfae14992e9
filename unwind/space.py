"""AddressSpace: the modules and mappings of one process, and which of them hold an address."""

from __future__ import annotations

from bisect import bisect_right

from unwind.values import Value

__all__ = ["AddressSpace", "Region", "regions_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.architecture import Architecture
    from unwind.modules import Module

_PAGE = 4096


class Region(Value):
    """One mapping: addresses in [start, end), whether code may run there, what it maps."""

    start: int
    end: int
    executable: bool
    name: str = ""


class AddressSpace:
    """What one process has mapped now.

    `regions` are the mappings in ascending order, without overlap. A library user who has only
    modules leaves them out: the modules' ranges serve, and `complete` is False, since code may lie
    elsewhere too; a source that knows but some of the mappings says so itself. `generation` goes
    up with each change, so that walkers know when what they remember no longer holds.

    A core of a thousand threads has two thousand mappings, of which a walk wants to know whether
    there is code: `regions` may be a function that makes them once they are asked for, and
    `code` one that tells of some addresses the mapping around them where code may run, from where
    to where, and of none wrongly.
    """

    __slots__ = (
        "__weakref__",
        "_code",
        "_make_regions",
        "_region_starts",
        "_regions",
        "_starts",
        "_table",
        "arch",
        "complete",
        "generation",
        "modules",
    )

    def __init__(
        self,
        arch: Architecture,
        modules: Iterable[Module],
        regions: Iterable[Region] | Callable[[], Iterable[Region]] | None = None,
        complete: bool = True,
        code: Callable[[int], tuple[int, int] | None] | None = None,
    ):
        self.arch = arch
        self.generation = -1
        self.replace(modules, regions, complete, code)

    def replace(
        self,
        modules: Iterable[Module],
        regions: Iterable[Region] | Callable[[], Iterable[Region]] | None = None,
        complete: bool = True,
        code: Callable[[int], tuple[int, int] | None] | None = None,
    ) -> None:
        """Everything that is mapped is this from now on."""
        self.generation += 1
        self._code = code
        self.complete = complete and regions is not None
        modules = tuple(modules)
        ranges = sorted(
            ((start, end, module) for module in modules for start, end in module.ranges),
            key=lambda entry: entry[0],
        )
        if regions is None:
            regions = tuple(
                Region(start, end, _may_execute(module, start, end), module.name)
                for start, end, module in ranges
            )
        self._starts = [start for start, _, _ in ranges]
        self._table = [(end, module) for _, end, module in ranges]
        self.modules: tuple[Module, ...] = modules
        self._regions: tuple[Region, ...] | None = None
        self._region_starts: list[int] = []
        if callable(regions):
            self._make_regions = regions
        else:
            given = tuple(regions)  # a generator may want what is there now
            self._make_regions = lambda: given

    def exchange(self, old: Module, new: Module) -> None:
        """`new` is known of what was `old`: another image, or one at last."""
        modules = [new if module is old else module for module in self.modules]
        self.replace(modules, self.regions, self.complete, self._code)

    def extend(self, modules: Iterable[Module], regions: Iterable[Region]) -> None:
        """These are mapped too from now on, where nothing was before.

        What walkers remember still holds, as they remember nothing of places where nothing is. So
        `generation` stays, and a library that is loaded late costs them nothing.
        """
        generation, complete = self.generation, self.complete
        self.replace((*self.modules, *modules), (*self.regions, *regions), complete, self._code)
        self.generation, self.complete = generation, complete

    @property
    def regions(self) -> tuple[Region, ...]:
        """The mappings, ascending."""
        found = self._regions
        if found is None:
            found = tuple(sorted(self._make_regions(), key=lambda region: region.start))
            self._region_starts = [region.start for region in found]
            self._regions = found
        return found

    def find(self, address: int) -> Module | None:
        """The module that has `address` in one of its ranges, or None."""
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        end, module = self._table[at]
        return module if address < end else None

    def region(self, address: int) -> Region | None:
        """The mapping that holds `address`, or None."""
        regions = self.regions
        at = bisect_right(self._region_starts, address) - 1
        if at < 0:
            return None
        region = regions[at]
        return region if address < region.end else None

    def code(self, address: int) -> tuple[int, int] | None:
        """The mapping around `address`, from where to where, if code may run there, or None."""
        found = self._code(address) if self._code is not None else None
        if found is None:
            region = self.region(address)
            if region is not None and region.executable:
                found = region.start, region.end
        return found

    def executable(self, address: int) -> bool:
        """Whether code may run at `address`."""
        return self.code(address) is not None


def regions_of(module: Module) -> Iterator[Region]:
    """The mappings that the segments of the module's image want, in whole pages."""
    for segment in module.image.segments if module.image is not None else ():
        start = module.to_pc(segment.vaddr) & -_PAGE
        end = module.to_pc(segment.vaddr + segment.memory_size + _PAGE - 1) & -_PAGE
        if start < end:
            yield Region(start, end, segment.executable, module.name)


def _may_execute(module: Module, start: int, end: int) -> bool:
    """Whether [start, end) of `module` meets an executable segment of its image."""
    if module.image is None:
        return True
    low, high = module.to_vaddr(start), module.to_vaddr(end - 1)
    return any(
        segment.executable and segment.vaddr <= high and low < segment.vaddr + segment.memory_size
        for segment in module.image.segments
    )
