"""Architecture: the table that arch/*.py fills in, so that the engine holds no `if arch`."""

from __future__ import annotations

from unwind.registers import Registers
from unwind.rules import Row, Rule
from unwind.signals import LINUX
from unwind.values import Value

__all__ = ["Architecture", "Clone", "Layout", "Trampoline", "pc_register"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from unwind.machine import CodeModel
    from unwind.protocols import ByteOrder


_WORD = 0xFFFF_FFFF_FFFF_FFFF


class Layout(Value):
    """Where a foreign record (`linux.prstatus`, `ptrace`, ...) keeps the registers.

    `offsets` maps a DWARF number to a byte offset, `width` is the bytes of one register, `size`
    the least size of the whole record. `signal` and `pid` are offsets of 2 and 4-byte integers,
    None where the record has none.
    """

    size: int
    width: int
    offsets: Mapping[int, int]
    signal: int | None = None
    pid: int | None = None


class Trampoline(Value):
    """A signal trampoline known by its bytes.

    `pattern` lies at pc minus one of `entries`; `row` finds the interrupted registers, its
    `start` and `end` are ignored.
    """

    name: str
    pattern: bytes
    entries: tuple[int, ...]
    row: Row


def pc_register(arch: Architecture, registers: Mapping[int, int]) -> int:
    """Where the innermost frame is looked up: where its pc says, on most machines."""
    return registers[arch.pc]


def _no_target(before: bytes, pc: int) -> int | None:
    return None


def _no_call(before: bytes) -> bool:
    return True


class Clone(Value):
    """What shows that a thread stands behind the system call that has just made it."""

    instruction: bytes  # of a system call
    number: int  # the register that has its number
    clone: int
    clone3: int  # always with a stack of its own, in the C libraries that there are
    stack: int  # the register with clone's second argument: 0 where the stack is a copy (fork)
    result: int  # the register of the result, which is 0 in what was made


class Architecture(Value):
    """One processor and its ABI, as numbers, rules and byte patterns.

    Registers are DWARF numbers; those that DWARF does not number (`orig_rax`) start at 4096.
    """

    name: str  # as in the JSON: x86_64, arm64, mips32, mips32el
    machine: int  # e_machine
    elf_class: int  # 32 or 64: which ELF class this ABI uses
    byteorder: ByteOrder
    word: int  # bytes of an address
    names: Mapping[int, str]  # DWARF number to name, as readelf names it
    pc: int
    sp: int
    fp: int
    return_address: int  # the column that CIEs name
    call_size: int  # what a lookup steps back from a return address
    defaults: Mapping[int, Rule]  # for registers that a row does not mention; others: same value
    entry_row: Row  # at a function's first instruction
    frame_pointer_row: Row | None  # in the body of a function that keeps a frame pointer
    code_mask: int  # the bits of a code address (arm64: not those of PAC; MIPS: not the ISA bit)
    data_mask: int  # the bits of a data address (not those of its tag)
    trampolines: tuple[Trampoline, ...]
    layouts: Mapping[str, Layout]
    vendor_opcodes: Mapping[int, str] = {}  # DW_CFA 0x1c-0x3f that differ by architecture
    cfi_names: Mapping[int, str] | None = None  # as readelf names registers, if not by `names`
    compressed_call_size: int = 0  # `call_size` where bit 0 of a return address marks its code
    call_window: int = 0  # how many bytes before a return address `follows_call` wants
    follows_call: Callable[[bytes], bool] = _no_call  # do these bytes end in a call?
    follows_compressed_call: Callable[[bytes], bool] = _no_call  # where bit 0 marks the code
    # Where the direct call that ends at a return address leads: `call_window` bytes before it, and
    # the return address, in; None out where the call is indirect.
    call_target: Callable[[bytes, int], int | None] = _no_target
    # Does the delay slot of a call, the bytes before a return address, move the stack pointer?
    slot_moves_stack: Callable[[bytes], bool] | None = None
    # Does some code give back what is saved and return, and nothing else? Of an architecture where
    # compilers leave out of the CFI what that gives back.
    leaves: Callable[[bytes], bool] | None = None
    red_zone: int = 0  # bytes below sp that belong to the frame
    stack_alignment: int = 1  # of the CFA
    code_alignment: int = 1  # of the instructions, where none can run at another pc
    upper_half: int = 0  # the bit that tells addresses whose unused bits are ones, not zeroes
    pac_mask_note: int = 0  # the type of a core's note on authentication codes (owner LINUX)
    fixed_regions: tuple[tuple[int, int, str], ...] = ()  # (start, end, name): vsyscall
    rld_map_tags: tuple[int, ...] = ()  # dynamic tags that lead to r_debug, besides DT_DEBUG
    flags_mask: int = 0  # (e_flags & flags_mask) == flags_value, else another ABI
    flags_value: int = 0
    gdb_architectures: tuple[str, ...] = ()  # as target descriptions name it, with or without :...
    gdb_names: Mapping[str, int] = {}  # registers of gdb that `names` has otherwise
    signals: Mapping[int, str] = LINUX
    clone: Clone | None = None  # on mips the result takes the number's place
    swapped_siginfo: bool = False  # si_code lies before si_errno
    code_model: Callable[[], CodeModel] | None = None  # what instructions do, loaded when needed
    # The pc to look up in the innermost frame.
    innermost: Callable[[Architecture, Mapping[int, int]], int] = pc_register

    def call_before(self, return_address: int) -> int:
        """An address within the call that returns to a return address as it lies in memory."""
        if self.compressed_call_size and return_address & 1:
            return self.code_address(return_address) - self.compressed_call_size
        return self.code_address(return_address) - self.call_size

    def with_address_bits(self, bits: int) -> Architecture:
        """This architecture where addresses have so many bits, and codes may lie above."""
        return self.replace(code_mask=(1 << bits) - 1)  # type: ignore[no-any-return]

    def is_behind_call(self, return_address: int, before: bytes) -> bool:
        """Whether the `call_window` bytes before a return address, as it lies there, are a call."""
        if self.compressed_call_size and return_address & 1:
            return self.follows_compressed_call(before)
        return self.follows_call(before)

    def code_address(self, pointer: int) -> int:
        """Where a return address leads: without the bits that are none of the address."""
        if pointer & self.upper_half:
            return pointer | ~self.code_mask & _WORD
        return pointer & self.code_mask

    def data_address(self, pointer: int) -> int:
        """What a pointer to data points to: without its tag."""
        if pointer & self.upper_half:
            return pointer | ~self.data_mask & _WORD
        return pointer & self.data_mask

    def register_name(self, number: int) -> str:
        """The name of a DWARF register, `r<number>` where the ABI gives none."""
        return self.names.get(number, f"r{number}")

    def register_number(self, name: str) -> int | None:
        """The DWARF number of a name as in `names`, or None."""
        return next((n for n, known in self.names.items() if known == name), None)

    def registers(self, layout: Layout, record: bytes | memoryview) -> Registers:
        """The registers that `record` holds; those beyond its end are absent."""
        found = Registers()
        for number, offset in layout.offsets.items():
            word = record[offset : offset + layout.width]
            if len(word) == layout.width:
                found[number] = int.from_bytes(word, self.byteorder)
        return found
