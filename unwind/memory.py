"""Memory: address and size in, bytes out, or MemoryFault. Unreadable is unreadable, never zero."""

from __future__ import annotations

from unwind.errors import MemoryFault

__all__ = ["Layers", "Patch", "Recording", "Span", "view_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from unwind.protocols import Memory


class Span:
    """One stretch of memory: `data` (any buffer) lies at `start`."""

    __slots__ = ("data", "end", "start")

    def __init__(self, start: int, data: bytes | bytearray | memoryview):
        self.start = start
        self.data = memoryview(data).cast("B")
        self.end = start + len(self.data)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`, all of them or MemoryFault."""
        if not (self.start <= address and address + size <= self.end) or size < 0:
            raise MemoryFault(address, size)
        at = address - self.start
        return bytes(self.data[at : at + size])

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The start and the bytes of the contiguous stretch around `address`, without a copy."""
        return (self.start, self.data) if self.start <= address < self.end else None


class Layers:
    """Several memories, asked in order: the first that holds all the bytes answers.

    A read that no single layer holds whole is tried in pieces, so that it may run from what a
    core dumped into what only the file holds.
    """

    __slots__ = ("layers",)

    def __init__(self, layers: Iterable[Memory]):
        self.layers = tuple(layers)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`, or the MemoryFault of the last layer."""
        facts = address, size, ""  # an error that is kept would hold this very frame, in a circle
        for layer in self.layers:
            try:
                return layer.read(address, size)
            except MemoryFault as fault:
                if fault.reason or not facts[2]:
                    facts = fault.address, fault.size, fault.reason
        if 1 < size <= 65536:
            half = size // 2
            return self.read(address, half) + self.read(address + half, size - half)
        raise MemoryFault(*facts)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stretch around `address` in the first layer that has it as one buffer."""
        for layer in self.layers:
            found = view_of(layer, address)
            if found is not None:
                return found
        return None


class Patch:
    """A memory with some bytes replaced: `words` maps an address to the bytes that lie there."""

    __slots__ = ("memory", "words")

    def __init__(self, memory: Memory, words: Mapping[int, bytes]):
        self.memory = memory
        self.words = dict(words)

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address` after the replacements."""
        data = bytearray(self.memory.read(address, size))
        for at, word in self.words.items():
            low, high = max(at, address), min(at + len(word), address + size)
            if low < high:
                data[low - address : high - address] = word[low - at : high - at]
        return bytes(data)


class Recording:
    """A memory that keeps what was read, in order: `reads` holds (address, bytes or None).

    `faults` holds the reads behind the Nones, (address, size), with their errors.
    """

    __slots__ = ("faults", "memory", "reads")

    def __init__(self, memory: Memory):
        self.memory = memory
        self.reads: list[tuple[int, bytes | None]] = []
        self.faults: list[tuple[int, int, MemoryFault]] = []

    def read(self, address: int, size: int) -> bytes:
        """The `size` bytes at `address`; a fault is recorded as None and raised again."""
        try:
            data = self.memory.read(address, size)
        except MemoryFault as fault:
            self.reads.append((address, None))
            self.faults.append((address, size, fault))
            raise
        self.reads.append((address, data))
        return data


def view_of(memory: Memory, address: int) -> tuple[int, memoryview] | None:
    """The contiguous stretch of `memory` around `address`, or None where it offers none.

    `view` is an optional second method of a Memory: the fast walk needs it, nothing else does.
    """
    view = getattr(memory, "view", None)
    return view(address) if view is not None else None
