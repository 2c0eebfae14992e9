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
        self._entered: dict[int, Table | None] = {}
        self._parts: dict[int, Table] = {}
        self._tables: dict[int, Table] = {}
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
        """The table of the function around `vaddr`, None where there is no code.

        A part of a function that was moved away (gcc's .cold) is entered with the states of the
        jumps that lead into it.
        """
        alone = self._alone(vaddr)
        if alone is None:
            return None
        if alone.start not in self._tables:
            if self._is_part(alone):
                self._tables[alone.start] = self._part(alone)
            elif alone.orphans:
                self._tables[alone.start] = self._whole(alone)
            else:
                self._tables[alone.start] = alone
        return self._tables[alone.start]

    def _alone(self, vaddr: int) -> Table | None:
        """The table as of a function that is entered at its start only."""
        bounds = self.bounds(vaddr)
        if bounds is None:
            return None
        start = bounds[0]
        if start not in self._entered:
            code = self._code(*bounds)
            self._entered[start] = emulate(self.model, code) if code else None
        return self._entered[start]

    def _code(self, start: int, end: int) -> Sequence[Instruction]:
        return self.disassemble(bytes(self.image.at(start, end - start)), start)

    def _is_start(self, vaddr: int) -> bool:
        at = bisect_left(self.starts, vaddr)
        return at < len(self.starts) and self.starts[at] == vaddr

    def _is_part(self, table: Table) -> bool:
        """Whether what the code does shows that it is no function of its own."""
        return table.odd > 0 or self._home(table) is not None

    def _home(self, table: Table) -> State | None:
        """The state that a part returns to, where it jumps back as it was entered.

        Jumping into the middle of a function, without having moved the stack pointer, is sound
        only for what has that function's stack pointer there.
        """
        sp = self.model.sp
        entry = self.model.entry[sp]
        for target, state in table.leaves:
            if state.registers.get(sp) == entry and not self._is_start(target):
                other = self._alone(target)
                there = other.state(target) if other is not None and not other.odd else None
                if there is not None and there.registers.get(sp) not in (None, entry):
                    return there
        return None

    def _part(self, alone: Table) -> Table:
        """The table of a part, entered by jumps from functions or from other parts."""
        known = self._parts.get(alone.start)
        if known is not None:
            return known
        self._parts[alone.start] = alone  # what asks for it meanwhile is content with that
        entries = self._entries(alone, lambda table: table)
        home = self._home(alone)
        if entries or home is not None:
            code = self._code(alone.start, alone.end)
            if home is not None:
                entries.setdefault(alone.start, home)
            found = emulate(self.model, code, entries, callable=False)
            self._parts[alone.start] = found
        return self._parts[alone.start]

    def _whole(self, alone: Table) -> Table:
        """The table of a function some of whose code is reached only from its parts."""
        entries = self._entries(alone, lambda table: None)
        if not entries:
            return alone
        return emulate(self.model, self._code(alone.start, alone.end), entries)

    def _entries(
        self, alone: Table, of_functions: Callable[[Table], Table | None]
    ) -> dict[int, State]:
        """The states at the places where other code jumps into this one."""
        entries: dict[int, State] = {}
        for source, target in self._jumps_into(alone.start, alone.end):
            caller = self._alone(source)
            if caller is None:
                continue
            caller = self._part(caller) if self._is_part(caller) else of_functions(caller)
            for leads_to, state in caller.leaves if caller is not None else ():
                if leads_to == target:
                    entries.setdefault(target, state)
        return entries

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
