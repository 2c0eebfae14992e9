"""Stacks of allocations: each kind that the kernel sends in, walked once, the same one out."""

from __future__ import annotations

from unwind.fast import FastUnwinder
from unwind.leaks.known import KnownStack

__all__ = ["Stacks"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container

    from unwind.profile import How
    from unwind.snapshot import Snapshot
    from unwind.space import AddressSpace
    from unwind.unwinder import Unwinder


class Stacks:
    """By the kernel's keys, which are several for one stack where old words lie in its frames.

    `checked` stacks of a known key were sent again and walked anew; `mistaken` of them were others
    than the key stands for. Neither should a hash collide, nor what is hashed be too little: this
    is how it would be seen.
    """

    def __init__(self, unwinder: Unwinder):
        self.unwinder = unwinder
        self._fast = FastUnwinder(unwinder)
        self._alike: dict[tuple[object, ...], KnownStack] = {}
        self._by_key: dict[int, KnownStack] = {}
        # The same by pcs of one space, which must live as long as its id is used.
        self._seen: dict[tuple[object, ...], KnownStack] = {}
        self._spaces: dict[int, AddressSpace] = {}
        self.checked = self.mistaken = 0

    def take(self, key: int, snapshot: Snapshot) -> KnownStack:
        """What a key stands for: the stack of the first snapshot that came with it."""
        found = self._walked(snapshot)
        known = self._by_key.get(key)
        if known is None:
            known = self._by_key[key] = found
        else:
            self.checked += 1
            self.mistaken += known is not found
        return known

    def get(self, key: int) -> KnownStack | None:
        """The stack of a key, None where it was not sent: there was no room."""
        return self._by_key.get(key)

    @property
    def keys(self) -> int:
        """How many keys are known."""
        return len(self._by_key)

    def keep(self, keys: Container[int]) -> None:
        """Forget what is known of all other keys."""
        self._by_key = {key: known for key, known in self._by_key.items() if key in keys}
        kept = {id(known) for known in self._by_key.values()}
        self._alike = {key: known for key, known in self._alike.items() if id(known) in kept}
        self._seen.clear()
        self._spaces.clear()

    def __len__(self) -> int:
        return len(self._alike)

    def _walked(self, snapshot: Snapshot) -> KnownStack:
        """The stack of a snapshot, the same object for alike ones."""
        space = snapshot.space
        how: How | None = None
        found = self._fast.pcs(snapshot)
        if found is not None:
            trusts = self._fast.trusts(space, found)
            if trusts is not None:
                how = tuple([(trust, n > 0) for n, trust in enumerate(trusts)])
            made = KnownStack(space, tuple(found), how=how)
        else:
            stack = self.unwinder.unwind(snapshot)
            frames = stack.frames
            how = tuple([(frame.trust, frame.called) for frame in frames])
            signals = frozenset([n for n, frame in enumerate(frames) if frame.signal])
            pcs = tuple([frame.pc for frame in frames])
            made = KnownStack(space, pcs, stack.end, how, stack.detail, signals)
        seen = id(space), made.pcs, made.end, made.how
        known = self._seen.get(seen)
        if known is not None:
            return known
        places = tuple([_place(space, pc, n > 0) for n, pc in enumerate(made.pcs)])
        known = self._seen[seen] = self._alike.setdefault((places, made.end, made.how), made)
        self._spaces[id(space)] = space
        return known


def _place(space: AddressSpace, pc: int, called: bool) -> tuple[str, int]:
    """A pc as it is in all spaces that map the same file."""
    module = space.find(space.arch.call_before(pc) if called else pc)
    return (module.name, module.to_vaddr(pc)) if module is not None else ("", pc)
