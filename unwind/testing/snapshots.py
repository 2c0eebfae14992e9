"""Strategies of registers, memories, and whole snapshots whose backtrace is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from unwind.elf import Elf
from unwind.image import Image
from unwind.memory import Layers, Span
from unwind.modules import Module
from unwind.registers import Registers
from unwind.snapshot import Snapshot
from unwind.space import AddressSpace, Region
from unwind.testing.chains import Chain, Known, chain
from unwind.testing.choices import Choices
from unwind.testing.damage import Area, Field
from unwind.testing.damaged import wounded
from unwind.testing.dialects import DIALECTS, Dialect
from unwind.testing.images import FIRST, image

__all__ = [
    "SnapshotMade",
    "chains",
    "damaged_memories",
    "damaged_registers",
    "damaged_snapshots",
    "memories",
    "registers",
    "snapshot_of",
    "snapshots",
]

NAMES = tuple(DIALECTS)


class Drawn(Choices):
    """Choices that Hypothesis makes, and shrinks."""

    def __init__(self, draw: st.DrawFn):
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))


@dataclass(frozen=True)
class SnapshotMade:
    """A thread at one instant and `frames`, all that is to be found, innermost first."""

    snapshot: Snapshot = field(repr=False)
    frames: tuple[Known, ...]
    chain: Chain


def registers(arch: str = "x86_64") -> st.SearchStrategy[Registers]:
    """Registers with any values, of which some are unknown."""
    dialect = DIALECTS[arch]
    words = st.integers(0, (1 << 8 * dialect.arch.word) - 1)
    values = st.dictionaries(st.sampled_from((*dialect.watched, dialect.arch.pc)), words)
    return values.map(Registers)


@st.composite
def memories(draw: st.DrawFn, most: int = 4) -> Layers:
    """Memory with holes: up to `most` stretches of up to a few hundred bytes."""
    pieces = draw(st.lists(st.tuples(st.integers(0, 64), st.binary(max_size=300)), max_size=most))
    spans, at = [], 0x7000_0000
    for gap, data in pieces:
        spans.append(Span(at + 16 * gap, data))
        at += 16 * gap + len(data)
    return Layers(spans)


@st.composite
def damaged_registers(draw: st.DrawFn, sound: Mapping[int, int]) -> Registers:
    """`sound` registers, of which some are lost and some have other bits or each other's values."""
    found = Registers(sound)
    for number in draw(st.lists(st.sampled_from(sorted(sound)), min_size=1, max_size=3)):
        match draw(st.sampled_from(["lost", "flipped", "moved"])):
            case "lost":
                found.pop(number, None)
            case "flipped":
                found[number] = sound[number] ^ 1 << draw(st.integers(0, 31))
            case _:
                found[number] = sound[draw(st.sampled_from(sorted(sound)))]
    return found


@st.composite
def damaged_memories(
    draw: st.DrawFn, sound: Sequence[tuple[int, bytes]], word: int = 8
) -> list[tuple[int, bytes]]:
    """`sound` stretches of memory, of which one is cut short, shifted, or has other words.

    What points into it may point to itself, or back: loops.
    """
    pieces = list(sound)
    n = draw(st.integers(0, len(pieces) - 1))
    start, data = pieces[n]
    pieces[n] = start, draw(wounded(data, _words(len(data), word)))
    return pieces


@st.composite
def chains(
    draw: st.DrawFn, archs: Sequence[str] = NAMES, most: int = 8, signals: bool = True
) -> Chain:
    """Functions with random rows, and a stack that they imply."""
    dialect = DIALECTS[draw(st.sampled_from(archs))]
    bias = draw(st.sampled_from(_BIASES[dialect.arch.word]))
    return chain(Drawn(draw), dialect, bias=bias, most=most, signals=signals)


_BIASES = {8: (0, 0x5555_5555_4000, 0x7F12_3456_7000), 4: (0, 0x5555_4000)}


@st.composite
def snapshots(
    draw: st.DrawFn, archs: Sequence[str] = NAMES, most: int = 8, signals: bool = True
) -> SnapshotMade:
    """A snapshot of a chain: one module with CFI of either kind, a stack or two, registers."""
    made = draw(chains(archs, most, signals))
    if draw(st.booleans()):
        data = image(made, "eh_frame", headers=draw(st.booleans()))
    else:
        data = image(made, "debug_frame")
    return SnapshotMade(snapshot_of(made, data), made.frames, made)


def snapshot_of(
    made: Chain, file: bytes, stacks: Sequence[tuple[int, bytes]] | None = None
) -> Snapshot:
    """The snapshot of a chain whose module is `file`; `stacks` in place of its own."""
    dialect: Dialect = made.dialect
    found = Image(Elf(file, "chain.so"))
    start, end = FIRST + made.bias, FIRST + made.bias + len(file)
    end = (end + 0xFFF) & -0x1000
    module = Module("/lib/chain.so", made.bias, ((start, end),), found)
    spans = [Span(at, data) for at, data in (made.stacks if stacks is None else stacks)]
    regions = [Region(start, end, True, "/lib/chain.so")]
    regions += [Region(span.start & -0x1000, (span.end + 0xFFF) & -0x1000, False) for span in spans]
    space = AddressSpace(dialect.arch, [module], regions)
    memory = Layers([*spans, Span(start, file)])
    return Snapshot(Registers(made.registers), memory, space, tid=1, pid=1)


@st.composite
def damaged_snapshots(draw: st.DrawFn, archs: Sequence[str] = NAMES) -> SnapshotMade:
    """A snapshot whose stack, module or registers are damaged; `frames` are those of before."""
    made = draw(chains(archs))
    order, word = made.dialect.arch.byteorder, made.dialect.arch.word
    file, stacks = image(made), list(made.stacks)
    what = draw(st.sampled_from(["stack", "module", "registers"]))
    if what == "module":
        head = 256  # without headers there is no module; damaged ones are for `elves.py`
        body = file[head:]
        file = file[:head] + draw(wounded(body, _words(len(body), 4), order))
    elif what == "stack":
        stacks = draw(damaged_memories(stacks, word))
    snapshot = snapshot_of(made, file, stacks)
    if what == "registers":
        snapshot = snapshot.replace(registers=draw(damaged_registers(made.registers)))
    return SnapshotMade(snapshot, made.frames, made)


def _words(size: int, width: int) -> list[Area]:
    """An area of words, of which some hundred at most are numbers to be changed as such."""
    step = max(size // (200 * width), 1) * width
    fields = tuple([Field("word", at, width) for at in range(0, size - width + 1, step)])
    return [Area("words", 0, size, fields)]
