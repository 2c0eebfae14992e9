"""KnownStack: one stack of an allocator's callers, wherever in memory it lay."""

from __future__ import annotations

from unwind.frames import End, Frame, Stack, Trust
from unwind.registers import Registers

__all__ = ["KnownStack"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.profile import How
    from unwind.space import AddressSpace

_NOTHING = Registers()


class KnownStack:
    """Pcs of `space`, innermost first, and how the walk ended.

    `how` tells of each frame how it was found and whether it made a call; None: as of most.
    `signals` are the frames that are a signal's trampoline, by their numbers.
    """

    __slots__ = ("detail", "end", "how", "pcs", "signals", "space")

    def __init__(
        self,
        space: AddressSpace,
        pcs: tuple[int, ...],
        end: str = End.OUTERMOST,
        how: How | None = None,
        detail: str = "",
        signals: frozenset[int] = frozenset(),
    ):
        self.space, self.pcs, self.end = space, pcs, end
        self.how, self.detail, self.signals = how, detail, signals

    @property
    def complete(self) -> bool:
        """Whether it reaches the outermost frame."""
        return self.end == End.OUTERMOST

    def stack(self) -> Stack:
        """Its frames, without registers: those were not the same each time."""
        space, frames = self.space, []
        how = self.how
        for n, pc in enumerate(self.pcs):
            trust, called = how[n] if how else (Trust.CFI if n else Trust.CONTEXT, n > 0)
            lookup_pc = space.arch.call_before(pc) if called else pc
            module, is_signal = space.find(lookup_pc), n in self.signals
            frames.append(Frame(pc, lookup_pc, _NOTHING, module, trust, called, None, is_signal))
        return Stack(tuple(frames), self.end, self.detail)
