"""Survey: all code of an image in, where its functions and parts of functions seem to start out.

What nobody tells, the code does. It is disassembled once, from one end to the other. Then a
function starts where a call leads, and behind a gap, which is the padding after what does not go on
(a return, a jump), where an address in data leads or where no jump from nearby does: labels are
aligned, too. Behind a gap to which code from elsewhere branches, a part of a function starts (gcc's
.cold). Jump tables are read, as their targets are labels.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from struct import iter_unpack

from unwind.machine import Flow

__all__ = ["survey"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from unwind.image import Image
    from unwind.machine import CodeModel, Disassemble

    Pieces = Sequence[tuple[int, memoryview]]

# Disassembled at a time, in bytes: as objects the instructions are fifty times as large.
_PIECE = 1 << 18
_MOST_ENTRIES = 2048  # of a jump table
_ALIGNED = 16
_LONGEST = 1 << 16  # bytes of a function
_LOOKED_AT = 32  # bytes of what may be a function
_ENTRY = 64  # bytes of start-up code


def survey(
    image: Image,
    model: CodeModel,
    disassemble: Disassemble,
    pieces: Pieces,
    pointers: Iterable[int],
) -> tuple[set[int], set[int]]:
    """The starts of functions, and those of parts, in `pieces` of code: (vaddr, code), ascending.

    `pointers` are words of data that may lead into the code. The model must have a survey.
    """
    made = _Survey(image, model, disassemble, pieces)
    return made.starts(pointers)


class _Survey:
    def __init__(self, image: Image, model: CodeModel, disassemble: Disassemble, pieces: Pieces):
        self.image = image
        self.model = model
        self.disassemble = disassemble
        self.pieces = pieces
        self.lows = [low for low, _ in pieces]
        self.flow = Flow()
        self.marks: list[bytearray] = []  # by piece: 1 where an instruction begins
        assert model.survey is not None
        for low, code in pieces:
            marks = bytearray(len(code))
            self.marks.append(marks)
            self.flow.behind = 1
            at = 0
            while at < len(code):
                found = disassemble(bytes(code[at : at + _PIECE]), low + at)
                if at + _PIECE < len(code) and len(found) > 1:
                    found = found[:-1]  # it may have been cut off
                if not found:
                    break
                model.survey(found, self.flow)
                for instruction in found:
                    marks[instruction[0] - low] = 1
                at = found[-1][0] + found[-1][1] - low

    def begins(self, vaddr: int) -> bool:
        """Whether an instruction begins there, as far as can be told."""
        at = bisect_right(self.lows, vaddr) - 1
        if at < 0:
            return False
        marks = self.marks[at]
        offset = vaddr - self.lows[at]
        return offset < len(marks) and marks[offset] == 1

    def starts(self, pointers: Iterable[int]) -> tuple[set[int], set[int]]:
        """The starts of functions and of parts."""
        flow = self.flow
        jumps = sorted(jump for jump in [*flow.jumps, *self.tables()] if self.begins(jump[0]))
        targets = [jump[0] for jump in jumps]
        called = {vaddr for vaddr, _ in flow.calls if self.begins(vaddr)}
        entry = self.image.elf.header.entry
        called |= {vaddr for vaddr in (entry, *self.taken_at(entry)) if self.begins(vaddr)}
        pointed = {*pointers, *flow.taken}
        called |= {end for _, end in flow.calls if end in pointed and self.looks(end)}
        leaders = {*self.lows, *flow.leaders}
        never = {vaddr for vaddr, end in flow.calls if end in called}  # they do not return
        leaders |= {end for vaddr, end in flow.calls if vaddr in never}
        surely = {end for _, end in flow.calls if end % _ALIGNED == 0 and self.looks(end) == 3}
        surely |= {
            vaddr
            for vaddr in flow.behind_padding
            if vaddr in pointed and vaddr % _ALIGNED == 0 and self.looks(vaddr)
        }
        known = sorted(called)
        functions = set(called)
        parts: set[int] = set()
        for vaddr in sorted((leaders | surely) - called):
            at = bisect_right(known, vaddr)
            low, high = known[at - 1] if at else 0, known[at] if at < len(known) else 1 << 64
            sources = jumps[bisect_left(targets, vaddr) : bisect_right(targets, vaddr)]
            far = [source for _, source, _ in sources if not low <= source < high]
            shared = bool(far) and max(far) - min(far) > _LONGEST  # by several functions
            near = len(far) < len(sources)
            branches = any(conditional for _, _, conditional in sources)
            aligned = vaddr % _ALIGNED == 0
            looks = self.looks(vaddr) if aligned or vaddr in pointed else 0
            if vaddr in self.lows:
                # The linker puts cold parts first.
                (parts if branches or (sources and looks < 2) else functions).add(vaddr)
            elif near and (branches or looks < 2) and not (looks and shared):
                continue  # a label
            elif looks > branches or (looks and (vaddr in pointed or shared)):
                functions.add(vaddr)
            elif sources:
                parts.add(vaddr)
        return functions, parts

    def taken_at(self, vaddr: int) -> Iterable[int]:
        """What some code takes the addresses of: where the program is entered, it is main's.

        C start-up files have CFI or symbols when nothing else has, and so are not looked through.
        """
        code = bytes(self.image.at(vaddr, _ENTRY))
        flow = Flow()
        assert self.model.survey is not None
        self.model.survey(self.disassemble(code, vaddr), flow)
        return flow.taken

    def looks(self, vaddr: int) -> int:
        """How much like the beginning of a function code looks: 0, 1 or 2."""
        code = bytes(self.image.at(vaddr, _LOOKED_AT))
        return self.model.enters(self.disassemble(code, vaddr))

    def tables(self) -> list[tuple[int, int, bool]]:
        """The jumps by tables, as (target, source, False)."""
        found: list[tuple[int, int, bool]] = []
        taken = [(vaddr, at) for vaddr, at in self.flow.taken.items() if not self.begins(vaddr)]
        limits = sorted({vaddr for vaddr, _ in taken} | {vaddr for vaddr, _ in self.flow.tables})
        order = "<" if self.image.elf.header.byteorder == "little" else ">"
        absolute = list(dict(self.flow.tables).items())  # one jump for each: there may be hundreds
        for relative, tables in ((True, taken), (False, absolute)):
            for vaddr, source in tables:
                at = bisect_right(limits, vaddr)
                size = min([_MOST_ENTRIES, *(limit - vaddr for limit in limits[at : at + 1])])
                data = self.image.at(vaddr, size)
                width = 4 if relative else 8
                data = data[: len(data) // width * width]
                for (entry,) in iter_unpack(order + ("i" if relative else "Q"), data):
                    target = vaddr + entry if relative else entry
                    if not self.begins(target):
                        break
                    found.append((target, source, False))
        return found
