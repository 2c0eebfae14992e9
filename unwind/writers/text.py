"""The text that a gdb or eu-stack user reads at once: a header, then each thread's frames."""

from __future__ import annotations

from unwind.frames import End, Trust
from unwind.modules import State
from unwind.signals import CODES
from unwind.writers.escape import escape

__all__ = ["TextWriter", "place_in_source"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unwind.architecture import Architecture
    from unwind.frames import Frame, Stack
    from unwind.modules import Module
    from unwind.snapshot import Snapshot, Source
    from unwind.space import AddressSpace
    from unwind.symbols.names import Inlined, Name

# Of a longer stack the text shows the first and the last frames: who overflows, and who began it.
SHOWN_FIRST, SHOWN_LAST = 1024, 16

# SGR codes (ECMA-48 §8.3.117).
_BOLD, _FUNCTION, _DIM, _WARNING = "1", "36", "2", "33"


class TextWriter:
    """Lines for a source and its threads.

    `name(module, pc, lookup_pc)` names a place. With `shorten`, only the two ends of a very long
    stack are shown. `notes(snapshot, frame)` gives further lines for below a frame.
    `source_line(file, number)` gives a line of code to print, None where it is not there.
    """

    def __init__(
        self,
        arch: Architecture,
        name: Callable[[Module | None, int, int], Name],
        colour: bool = False,
        shorten: bool = True,
        registers: bool = False,
        source_line: Callable[[str, int], str | None] | None = None,
    ):
        self.arch = arch
        self.name = name
        self.colour = colour
        self.shorten = shorten
        self.registers = registers
        self.source_line = source_line
        self._digits = 2 * arch.word
        self._heads: list[str] = []  # of lines: the frames' numbers
        self._places: dict[AddressSpace, tuple[_Places, _Places]] = {}

    def header(self, source: Source, modules: Sequence[Module] = ()) -> Iterator[str]:
        """The program, its pid and its signal, and the files that were not the right ones."""
        command = escape(source.command) if source.command is not None else "unknown"
        pid = f" (pid {source.pid})" if source.pid is not None else ""
        yield self._paint(_BOLD, "program: ") + command + pid
        signal = source.signal
        if signal is not None:
            name = self.arch.signals.get(signal.number, "signal")
            address = f", address {signal.address:#x}" if signal.address is not None else ""
            meaning = CODES.get((name, signal.code or 0))
            meaning = f" ({meaning})" if meaning else ""
            yield self._paint(_BOLD, "signal:  ") + f"{name} ({signal.number}){address}{meaning}"
        for module in modules:
            if module.state == State.MISMATCH:
                unfit = [tried for tried in module.tried if "its build-id is" in tried]
                yield self._paint(_WARNING, "another file: ") + escape("; ".join(unfit))
        if source.time is not None:
            yield self._paint(_BOLD, "time:    ") + f"{source.time}"

    def thread(self, snapshot: Snapshot) -> str:
        """The line above a thread's frames."""
        name = f' "{escape(snapshot.name)}"' if snapshot.name else ""
        crashed = " (crashed)" if snapshot.crashed else ""
        return self._paint(_BOLD, f"thread {snapshot.tid}{name}{crashed}:")

    def trace(
        self, space: AddressSpace, pcs: Sequence[int], trusts: Sequence[str] | None = None
    ) -> str:
        """The frames of a walk that got all the way out, each on a line of its own.

        `trusts` are those of the frames, None where all were found by CFI. Tens of thousands of
        frames pass here, most of them at a place that was met before: no line of Python runs for
        one of those.
        """
        innermost, callers = self._places_of(space)
        heads, count = self._heads, len(pcs)
        heads += [f"\n#{n:<2} " for n in range(len(heads), count)]
        places = [innermost[pcs[0]], *map(callers.__getitem__, pcs[1:])]
        if trusts is not None:
            tags = {trust: self._paint(_WARNING, _tag(trust)) for trust in set(trusts)}
            places = [place + tags[trust] for place, trust in zip(places, trusts, strict=True)]
        lines = [""] * (2 * count)
        lines[::2], lines[1::2] = heads[:count], places
        gap = count - SHOWN_FIRST - SHOWN_LAST
        if self.shorten and gap > 0:
            lines[2 * SHOWN_FIRST : -2 * SHOWN_LAST] = "\n", self._left_out(gap)
        return "".join(lines)[1:]

    def stack(
        self, stack: Stack, notes: Callable[[Frame], Iterable[str]] | None = None
    ) -> Iterator[str]:
        """The frames of a stack, each with its trust, and why there are no more."""
        for n in self._shown(len(stack.frames)):
            if n < 0:
                yield self._left_out(-n)
                continue
            frame = stack.frames[n]
            lookup_pc = frame.pc if frame.signal else frame.lookup_pc
            line = f"#{n:<2} {self.place(frame.module, frame.pc, lookup_pc)}"
            yield line + self._paint(_WARNING, _tags(frame))
            if self.registers:
                yield from self._registers(frame)
            if notes is not None:
                yield from notes(frame)
        if stack.end != End.OUTERMOST:
            said = f"stack ends here: {stack.end}"
            yield "    " + self._paint(_WARNING, said) + f": {escape(stack.detail)}"

    def modules(self, modules: Sequence[Module]) -> Iterator[str]:
        """The module table: where each lies, its build-id, and what was found of it."""
        yield self._paint(_BOLD, "modules:")
        for module in sorted(modules, key=lambda module: module.start):
            build_id = module.build_id.hex() if module.build_id else "no build-id"
            kinds = "+".join(module.image.unwind_kinds) if module.image is not None else ""
            yield (
                f"{module.start:#0{self._digits + 2}x}-{module.end:#0{self._digits + 2}x} "
                f"{module.state:<11} {kinds or 'no CFI':<20} {build_id:<40} {escape(module.name)}"
            )
            if module.file is not None and module.file != module.name:
                yield f"    read from {escape(module.file)}"
            for tried in module.tried if module.state != State.OK else ():
                yield f"    {escape(tried)}"

    def _shown(self, count: int) -> Iterable[int]:
        """The numbers of the frames to show; a negative one stands for so many left out."""
        if not self.shorten or count <= SHOWN_FIRST + SHOWN_LAST:
            return range(count)
        gap = count - SHOWN_FIRST - SHOWN_LAST
        return (*range(SHOWN_FIRST), -gap, *range(count - SHOWN_LAST, count))

    def _left_out(self, count: int) -> str:
        return self._paint(_WARNING, f"    ... {count} frames left out ...")

    def _places_of(self, space: AddressSpace) -> tuple[_Places, _Places]:
        """The texts for the innermost pcs of a space, and those for return addresses."""
        found = self._places.get(space)
        if found is None or found[0].generation != space.generation:
            found = _Places(self, space, 0), _Places(self, space, self.arch.call_size)
            self._places[space] = found
        return found

    def place(self, module: Module | None, pc: int, lookup_pc: int) -> str:
        """A pc with its function, the offset in it and the module's file, as far as known.

        Before it, on lines of their own, the functions that were inlined there, innermost first.
        """
        address = self._paint(_DIM, f"{pc:#0{self._digits + 2}x}")
        name = self.name(module, pc, lookup_pc)
        if module is None and name.function is None:
            return f"{address} ??"
        lines = [
            f"{address} {self._function(inlined.function)} [inlined]{self._where(inlined)}"
            for inlined in name.inlined
        ]
        file = escape(module.name.rpartition("/")[2]) if module is not None else "JIT"
        if name.function is None and module is not None:
            said = f"?? ({file}+{module.to_vaddr(pc):#x})"
        else:
            offset = f"+{name.offset:#x}" if name.offset is not None else ""
            said = f"{self._function(name.function)}{offset} ({file})"
        lines.append(f"{address} {said}{self._where(name)}")
        return "\n    ".join(lines)

    def _function(self, name: str | None) -> str:
        return self._paint(_FUNCTION, escape(name)) if name is not None else "??"

    def _where(self, place: Name | Inlined) -> str:
        """The place in source, and the line of code itself where that is wanted and there."""
        said = place_in_source(place)
        if self.source_line is None or place.file is None or place.line is None:
            return said
        code = self.source_line(place.file, place.line)
        return f"{said}\n    {place.line:>6}  {escape(code)}" if code is not None else said

    def _registers(self, frame: Frame) -> Iterator[str]:
        known = [
            f"{self.arch.register_name(number):>8} {value:#0{self._digits + 2}x}"
            for number, value in sorted(frame.registers.items())
        ]
        for n in range(0, len(known), 3):
            yield "    " + " ".join(known[n : n + 3])

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


def place_in_source(place: Name | Inlined) -> str:
    """` at file:line:column`, as far as it is known; "" where no file is."""
    if place.file is None:
        return ""
    parts = (place.file, place.line, place.column)
    known = parts[: parts.index(None)] if None in parts else parts
    return " at " + escape(":".join(map(str, known)))


class _Places(dict[int, str]):
    """The text for each pc of a space, looked up `step` bytes before, made when first asked for."""

    def __init__(self, writer: TextWriter, space: AddressSpace, step: int):
        self.writer = writer
        self.space = space
        self.generation = space.generation
        self.step = step

    def __missing__(self, pc: int) -> str:
        lookup_pc = pc - self.step
        text = self[pc] = self.writer.place(self.space.find(lookup_pc), pc, lookup_pc)
        return text


def _tags(frame: Frame) -> str:
    """What is not plain about a frame: a signal's, and how it was found, where not by CFI."""
    return _tag(frame.trust, "signal" if frame.signal else "")


def _tag(trust: str, *more: str) -> str:
    tags = [tag for tag in more if tag]
    if trust not in (Trust.CONTEXT, Trust.CFI):
        tags.append(trust)
    return f" [{', '.join(tags)}]" if tags else ""
