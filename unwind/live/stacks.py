"""Registers and mappings in; the ranges of a process' memory that are to be copied out."""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from unwind.errors import UnsupportedArchitecture
from unwind.live.proc import mapped
from unwind.registers import Recorded, Registers

__all__ = ["StackPlan"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unwind.architecture import Architecture
    from unwind.live.copies import Range
    from unwind.live.proc import Mapped
    from unwind.live.seen import Seen

_PAGE = 4096
_MOST = 1 << 24  # bytes above a stack pointer: in a heap, what lies there is no stack
_MOST_MAIN = 1 << 28  # and of the leader's stack, which is nothing else
_MOST_DATA = 1 << 16  # and of the variables of a program or library
_KERNELS = ("[vdso]", "[sigpage]")  # what the kernel maps with code in it
_MAIN = "[stack]"
_THREAD_POINTER = "fs.base"  # glibc and musl have it point into the thread's stack, at its end


class StackPlan:
    """What is copied of a process while it stands still.

    Raises UnsupportedArchitecture for one whose layout of registers nobody knows.
    """

    def __init__(self, arch: Architecture):
        self.arch = arch
        if "linux.prstatus" not in arch.layouts:
            raise UnsupportedArchitecture(f"{arch.name}, of which no layout of registers is known")
        self.layout = arch.layouts["linux.prstatus"]
        order = "<" if arch.byteorder == "little" else ">"
        self._read = Struct(order + {4: "I", 8: "Q"}[self.layout.width]).unpack_from
        self._first = min(self.layout.offsets.values())
        self._end = max(self.layout.offsets.values()) + self.layout.width
        self._known: tuple[bytes, list[Mapped]] = (b"", [])

    def mappings(self, text: bytes) -> list[Mapped]:
        """What /proc/PID/maps says. Who asks before the stop saves the time in it."""
        if text != self._known[0]:
            self._known = text, list(mapped(text))
        return self._known[1]

    def __call__(self, seen: Seen) -> Iterator[Range]:
        """The used part of each stack, the first page of each file, the kernel's code."""
        mappings = self.mappings(seen.maps)
        starts = [mapping.start for mapping in mappings]
        data_end = 0
        for mapping in mappings:
            if mapping.name in _KERNELS:
                yield mapping.start, mapping.end
            elif mapping.writable and (mapping.inode or mapping.start == data_end):
                # .data and .bss, where CFI may have things saved
                yield mapping.start, min(mapping.end, mapping.start + _MOST_DATA)
                data_end = mapping.end if mapping.inode else 0
            elif mapping.readable and mapping.inode and mapping.offset == 0:
                yield mapping.start, mapping.start + _PAGE  # headers, build-id
        main = next((mapping for mapping in mappings if mapping.name == _MAIN), None)
        own = self.arch.register_number(_THREAD_POINTER)
        for tid, registers in self.threads(seen):
            pointer = self.arch.data_address(registers[self.arch.sp])
            stack = _at(mappings, starts, pointer)
            if stack is not None:
                start = max(pointer - self.arch.red_zone, stack.start) & -16
                yield start, min(start + _most(stack), stack.end)
            # Elsewhere than on its own stack, as in a handler with an alternate one: that is what
            # it comes from, and nobody can tell yet how deep it is.
            home = main if tid == seen.leader else None
            if tid != seen.leader and own is not None and own in registers:
                home = _at(mappings, starts, registers[own])
            if home is not None and home is not stack and home.writable and not home.inode:
                yield max(home.start, home.end - _MOST), home.end

    def threads(self, seen: Seen) -> Iterator[tuple[int, Recorded | Registers]]:
        """The registers of each thread, as far as they are known; none of 32-bit code."""
        for tid, record in seen.registers.items():
            registers = self.registers(record)
            if registers is not None:
                yield tid, registers
        pc, sp = self.arch.pc, self.arch.sp
        for tid, place in seen.places.items():
            all = seen.known.get(tid, {})
            is_there = (all.get(pc), all.get(sp)) == (place.pc, place.sp)
            yield tid, Registers(all if is_there else {pc: place.pc, sp: place.sp})

    def registers(self, record: bytes) -> Recorded | None:
        """The registers in what ptrace(2) gave, None where it is of 32-bit code.

        It is the pr_reg of the record that NT_PRSTATUS of cores is. Behind that lies one int alone.
        """
        layout = self.layout
        begin = layout.size - self.arch.word - len(record)
        if begin > self._first or self._end > begin + len(record):
            return None
        return Recorded(bytes(begin) + record, layout.offsets, self._read)


def _most(stack: Mapped) -> int:
    return _MOST_MAIN if stack.name == _MAIN else _MOST


def _at(mappings: Sequence[Mapped], starts: Sequence[int], address: int) -> Mapped | None:
    """The mapping that holds an address and can be read, or None."""
    at = bisect_right(starts, address) - 1
    found = mappings[at] if at >= 0 else None
    return found if found is not None and address < found.end and found.readable else None
