"""The sources of rows by the trust of what they find; one is loaded when a place needs it."""

from __future__ import annotations

from unwind.frames import Trust
from unwind.sources.cfi import CfiSource

__all__ = ["METHODS", "default_sources"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.architecture import Architecture
    from unwind.protocols import RowSource
    from unwind.rules import NoRow, Row
    from unwind.snapshot import Place


class _Later:
    """A source of rows whose module is loaded when a place has no row from a better one."""

    def __init__(self, trust: str, shared: bool, module: str, name: str, arch: Architecture):
        self.trust, self.shared = trust, shared
        self._module, self._name, self._arch = module, name, arch
        self._source: RowSource | None = None

    def row(self, place: Place) -> Row | NoRow:
        """What the source itself says."""
        if self._source is None:
            module = __import__(f"unwind.sources.{self._module}", fromlist=[self._name])
            self._source = getattr(module, self._name)(self._arch)
            assert (self._source.trust, self._source.shared) == (self.trust, self.shared)
        return self._source.row(place)


def _later(trust: str, shared: bool, module: str, name: str) -> Callable[[Architecture], RowSource]:
    return lambda arch: _Later(trust, shared, module, name, arch)


# The sources of rows by the trust of what they find, best first.
METHODS: dict[str, Callable[[Architecture], RowSource]] = {
    Trust.CFI: CfiSource,
    Trust.TRAMPOLINE: _later(Trust.TRAMPOLINE, True, "trampoline", "TrampolineSource"),
    Trust.PDR: _later(Trust.PDR, True, "pdr", "PdrSource"),
    Trust.EMULATION: _later(Trust.EMULATION, True, "emulation", "EmulationSource"),
    Trust.LINK_REGISTER: _later(Trust.LINK_REGISTER, False, "entry", "EntrySource"),
    Trust.FRAME_POINTER: _later(Trust.FRAME_POINTER, False, "frame_pointer", "FramePointerSource"),
    Trust.SCAN: _later(Trust.SCAN, False, "scan", "ScanSource"),
}

# These know what they say; the others conclude it.
_KNOWING = (Trust.CFI, Trust.TRAMPOLINE, Trust.PDR, Trust.LINK_REGISTER)


def default_sources(arch: Architecture, fallback: bool = True) -> list[RowSource]:
    """The sources of rows, best first; without `fallback` only those that know, not guess.

    A scan is for those who ask for it: it finds what may have been a return address once.
    """
    return [
        make(arch)
        for trust, make in METHODS.items()
        if trust != Trust.SCAN and (fallback or trust in _KNOWING)
    ]
