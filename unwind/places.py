"""A pc of a recording in, its Site out: of a file, of code made at run time, or of the kernel."""

from __future__ import annotations

from unwind.profile import Binary, Site
from unwind.sites import Sites

__all__ = ["KERNEL", "Places"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.perf.jit import JitMaps
    from unwind.perf.kallsyms import Kallsyms
    from unwind.perf.processes import ProcessSpace
    from unwind.perf.vmlinux import Vmlinux
    from unwind.space import AddressSpace
    from unwind.symbols.names import Names

KERNEL = "[kernel.kallsyms]"  # what perf calls the kernel proper


class Places:
    """Names the places of samples: `names` those in files, `jit` those in maps of run-time code.

    Without `kallsyms` the kernel's places have no names, but for those that it made at run time:
    `made` has the end and the name of each by its start.
    """

    def __init__(
        self,
        names: Names,
        jit: JitMaps,
        kallsyms: Kallsyms | Vmlinux | None = None,
        made: Mapping[int, tuple[int, str]] | None = None,
    ):
        self.names, self.jit, self.kallsyms = names, jit, kallsyms
        self._made = made if made is not None else {}
        self._sites = Sites(names.name)
        self._binaries: dict[str, Binary] = {}

    def site(self, space: AddressSpace, pc: int, called: bool) -> Site:
        """The place of `pc`, looked up within the call where the frame made one."""
        lookup_pc = space.arch.call_before(pc) if called else pc
        module = space.find(lookup_pc)
        if module is not None and module.image is not None:
            return self._sites(space, pc, called)
        # A process leaves a map of its run-time code; a child may run code of its parents'.
        for pid in getattr(space, "pids", ()):
            found = self.jit.find(pid, lookup_pc, space.regions)
            if found is not None:
                name, offset = found
                return Site(self._binary(self.jit.path(pid)), pc, name, offset + pc - lookup_pc)
        region = space.region(lookup_pc) if module is None else None
        if region is not None and region.name:
            return Site(self._binary(region.name), pc)
        return self._sites(space, pc, called)

    def forget(self, space: ProcessSpace) -> None:
        """Keep no longer what is known of a space that no process has any more."""
        self._sites.forget(space)
        self.jit.forget(space.pids[0])

    def kernel_site(self, pc: int, called: bool) -> Site:
        """The place of `pc` in the kernel."""
        for start, (end, made) in self._made.items():
            if start <= pc - called < end:
                return Site(self._binary(KERNEL), pc, made, pc - start, kernel=True)
        found = self.kallsyms.find(pc - called) if self.kallsyms is not None else None
        if found is None:
            return Site(self._binary(KERNEL), pc, kernel=True)
        name, module, offset = found
        binary = self._binary(f"[{module}]" if module else KERNEL)
        return Site(binary, pc, name, offset + called, kernel=True)

    def _binary(self, name: str) -> Binary:
        """What is known by its name alone, the same object for the same one."""
        known = self._binaries.get(name)
        if known is None:
            known = self._binaries[name] = Binary(name)
        return known
