"""Functions: an image's code in, the emulated table of the function around a vaddr out."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from unwind.emulate import Table, emulate

__all__ = ["Functions"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from unwind.emulate import CodeModel, Instruction, State
    from unwind.image import Image


class Functions:
    """The functions of an image, from their starts; tables are made when they are asked for.

    `disassemble(code, vaddr)` gives the instructions of some code.
    """

    def __init__(
        self,
        image: Image,
        model: CodeModel,
        starts: Iterable[int],
        disassemble: Callable[[bytes, int], Sequence[Instruction]],
    ):
        self.image = image
        self.model = model
        self.starts = sorted(set(starts))
        self.disassemble = disassemble
        self._tables: dict[int, Table | None] = {}
        self._whole: dict[int, Table | None] = {}
        self._jumps: tuple[list[int], list[int]] | None = None

    def bounds(self, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None before the first one."""
        at = bisect_right(self.starts, vaddr) - 1
        if at < 0:
            return None
        start = self.starts[at]
        size = len(self.image.at(start))
        end = self.starts[at + 1] if at + 1 < len(self.starts) else start + size
        return start, min(end, start + size)

    def table(self, vaddr: int) -> Table | None:
        """The table of the function around `vaddr`.

        A part of a function that was moved away (gcc's .cold) is entered with the state of the
        jumps that lead into it.
        """
        found = self._alone(vaddr)
        if found is None or not self._is_part(found):
            return found
        if found.start not in self._whole:
            self._whole[found.start] = found  # what asks for it meanwhile is content with that
            self._whole[found.start] = self._joined(found)
        return self._whole[found.start]

    def _alone(self, vaddr: int) -> Table | None:
        """The table as of a function that is entered at its start only."""
        bounds = self.bounds(vaddr)
        if bounds is None:
            return None
        start, end = bounds
        if start not in self._tables:
            code = self.disassemble(bytes(self.image.at(start, end - start)), start)
            self._tables[start] = emulate(self.model, code) if code else None
        return self._tables[start]

    def _is_start(self, vaddr: int) -> bool:
        at = bisect_left(self.starts, vaddr)
        return at < len(self.starts) and self.starts[at] == vaddr

    def _is_part(self, table: Table) -> bool:
        """Whether what the code does shows that it is no function of its own."""
        return table.odd_calls > 0 or any(not self._is_start(target) for target, _ in table.leaves)

    def _joined(self, table: Table) -> Table | None:
        entries: dict[int, State] = {}
        for source, target in self._jumps_into(table.start, table.end):
            caller = self.table(source)
            if caller is None:
                continue
            for leads_to, state in caller.leaves:
                if leads_to == target:
                    entries.setdefault(target, state)
        if not entries:
            return table
        bounds = table.start, table.end
        code = self.disassemble(bytes(self.image.at(bounds[0], bounds[1] - bounds[0])), bounds[0])
        return emulate(self.model, code, entries, not table.odd_calls)

    def _jumps_into(self, start: int, end: int) -> list[tuple[int, int]]:
        if self._jumps is None:
            found: list[tuple[int, int]] = []
            for segment in self.image.segments:
                if segment.executable:
                    found += self.model.jumps(segment.data, segment.vaddr)
            found.sort()
            self._jumps = [target for target, _ in found], [source for _, source in found]
        targets, sources = self._jumps
        low, high = bisect_left(targets, start), bisect_left(targets, end)
        return [(sources[n], targets[n]) for n in range(low, high) if not start <= sources[n] < end]
