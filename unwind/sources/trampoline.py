"""Signal trampolines known by their bytes: the interrupted registers lie in a sigcontext."""

from __future__ import annotations

from unwind.errors import MemoryFault
from unwind.frames import Trust
from unwind.rules import NoRow

__all__ = ["TrampolineSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.rules import Row
    from unwind.snapshot import Place


class TrampolineSource:
    """Rows for the few instructions that call sigreturn, wherever they lie."""

    trust = Trust.TRAMPOLINE
    shared = True

    def __init__(self, arch: Architecture):
        self.trampolines = arch.trampolines

    def row(self, place: Place) -> Row | NoRow:
        """The sigcontext row where the code at the place's pc is a known trampoline."""
        for known in self.trampolines:
            for entry in known.entries:
                if self._code(place, entry, len(known.pattern)) == known.pattern:
                    return known.row
        if place.called and place.module is not None and place.module.is_unseen_vdso:
            if len({known.name for known in self.trampolines}) == 1:  # else which one is it?
                return self.trampolines[0].row
        return NoRow("the code is no known signal trampoline")

    def _code(self, place: Place, back: int, size: int) -> bytes | memoryview:
        """The bytes from `back` before pc on: of the image, or of a stack or an anonymous page."""
        if place.image is not None and place.module is not None:
            return place.image.at(place.module.to_vaddr(place.pc) - back, size)
        try:
            return place.memory.read(place.pc - back, size)
        except MemoryFault:
            return b""
