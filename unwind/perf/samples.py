"""A record of a sample in; its registers, and where in it the piece of the stack lies, out."""

from __future__ import annotations

from struct import Struct

from unwind.perf.event import SampleLayout

__all__ = [
    "ABI",
    "ABI_32",
    "COUNT",
    "CPU",
    "IP",
    "PERIOD",
    "PID",
    "SIZE",
    "TID",
    "TIME",
    "SampleReader",
    "stack_bounds",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from unwind.architecture import Architecture
    from unwind.perf.event import Event
    from unwind.perf.processes import Task
    from unwind.space import AddressSpace

    # What a layout's head has, the ABI of the registers, those with which a walk begins, the size
    # of the piece of the stack; b"" for what such samples lack.
    Fields: TypeAlias = tuple[int, ...]

    # A sample is a tuple: an object would take as long to make as a short stack to walk.
    Sample: TypeAlias = tuple[
        Task,
        int,  # its time, ns
        Event,
        int | None,  # the processor
        int,  # the weight
        tuple[int, ...],  # the callchain as it was recorded, with its marks
        AddressSpace,
        int,  # pc, and so on: 0 where they are not among the registers
        int,  # sp
        int,  # fp
        int,  # link register
        memoryview | None,  # the words of the stack, from sp on; None without registers of the user
        tuple[memoryview, int, int, int],  # the record: buffer, begin, end, its registers
    ]

ABI_32 = 1  # PERF_SAMPLE_REGS_ABI_32
# What Fields have at which index; between the last two the registers.
IP, PID, TID, TIME, CPU, PERIOD, COUNT, ABI, SIZE = 0, 1, 2, 3, 4, 5, 6, 7, -1


class SampleReader:
    """Reads the registers of one event's samples, on one architecture.

    `registers` reads, at the place that the layout tells, what Fields have from the ABI on (0:
    there are no registers). Of the registers, pc, sp, fp and lr stand at those indices of the
    Fields; where the mask lacks one, at that of the ABI. `whole` reads all Fields of a sample
    without callchain at one go, those of the first `whole_size` bytes of its record; it is None
    where they lie elsewhere in each sample.
    """

    def __init__(self, event: Event, arch: Architecture, order: str):
        self.event = event
        self.layout = SampleLayout(event, order)
        offsets: Mapping[int, int] = arch.layouts["perf"].offsets
        bits = [bit for bit in range(event.regs.bit_length()) if event.regs >> bit & 1]
        of_bit = {offset // 8: number for number, offset in offsets.items()}
        self.numbers = [of_bit.get(bit, -1 - bit) for bit in bits]  # DWARF's; below 0: unknown ones
        wanted = [arch.pc, arch.sp, arch.fp, arch.return_address]
        kept = sorted({self.numbers.index(n) for n in wanted if n in self.numbers})
        gaps = [b - a - 1 for a, b in zip([-1, *kept], [*kept, len(bits)], strict=True)]
        fields = "Q".join("" if not gap else f"{8 * gap}x" for gap in gaps)
        has_stack = self.layout.has_stack
        format = f"Q{fields}{'Q' if has_stack else '0s'}"
        struct = Struct(order + format)
        self.registers, self.size = struct.unpack_from, struct.size
        places = {self.numbers[index]: ABI + n for n, index in enumerate(kept, 1)}
        self.pc, self.sp, self.fp, self.lr = (places.get(number, ABI) for number in wanted)
        self.usable = bool(self.layout.has_regs and arch.pc in places and arch.sp in places)
        self.whole_size = self.layout.head_size + self.size
        self.whole: Callable[[memoryview, int], Fields] | None = None
        if self.usable and self.layout.is_plain and self.layout.time is not None:
            self.whole = Struct(self.layout.format + format).unpack_from
        self._all = Struct(f"{order}{len(bits)}Q").unpack_from

    def all_registers(self, data: memoryview, here: int) -> dict[int, int]:
        """The registers whose ABI lies at `here`, by their DWARF numbers."""
        values = self._all(data, here + 8)
        return {n: value for n, value in zip(self.numbers, values, strict=True) if n >= 0}


def stack_bounds(data: memoryview, start: int, size: int, end: int, u64: Struct) -> tuple[int, int]:
    """Where the piece of the stack begins and ends that lies at `start`, in a record up to `end`.

    Behind the `size` bytes that were asked for, the kernel says how many it could copy.
    """
    stop = start + size
    if not size or stop + 8 > end:
        return start, start
    return start, start + min(size, u64.unpack_from(data, stop)[0])
