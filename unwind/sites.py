"""Sites for a profile: a space and a pc in, the function and the file that lie there out."""

from __future__ import annotations

from unwind.profile import Binary, Site

__all__ = ["Sites"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.modules import Module
    from unwind.space import AddressSpace
    from unwind.symbols.names import Name

_UNNAMED = "[inlined]"  # a function whose name is damaged


class Sites:
    """What `profile.Counts` asks for the site at a pc; `name` is `Names.name`.

    Frames that made no call (the innermost, what a signal interrupted) are looked up where they
    stand, the others within their call.
    """

    def __init__(self, name: Callable[[Module | None, int, int], Name]):
        self._name = name
        # By the id of a module, which is kept with it: to hash all its facts takes 2 us.
        self._binaries: dict[int, tuple[Module, Binary]] = {}
        self._alike: dict[Binary, Binary] = {}  # modules of several processes are of one file

    def __call__(self, space: AddressSpace, pc: int, called: bool) -> Site:
        """The site at `pc`, which is a return address where `called` is true."""
        lookup_pc = space.arch.call_before(pc) if called else pc
        module = space.find(lookup_pc)
        if module is None:
            return Site(None, pc)
        name = self._name(module, pc, lookup_pc)
        inlined = tuple([call.function or _UNNAMED for call in name.inlined])
        vaddr = module.to_vaddr(pc)
        if not inlined:
            return Site(self.binary(module), vaddr, name.function, name.offset)
        return Site(self.binary(module), vaddr, name.function, name.offset, inlined=inlined)

    def forget(self, space: AddressSpace) -> None:
        """Keep no longer what is known of the modules of a space."""
        for module in space.modules:
            self._binaries.pop(id(module), None)

    def binary(self, module: Module) -> Binary:
        """The file behind a module, the same for all processes that map it."""
        known = self._binaries.get(id(module))
        if known is None:
            binary = Binary(
                module.name,
                module.build_id or (module.image.build_id if module.image is not None else None),
                module.to_vaddr(module.start),
                module.to_vaddr(module.end),
            )
            known = self._binaries[id(module)] = module, self._alike.setdefault(binary, binary)
        return known[1]
