"""Reader: bytes in, numbers and pointers out; what lies beyond the end is a FormatError."""

from __future__ import annotations

from unwind.dwarf.constants import DW_EH_PE
from unwind.errors import FormatError, MemoryFault
from unwind.values import Value

__all__ = ["Encoding", "Reader", "sleb_at", "uleb_at"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.protocols import ByteOrder

# Linkers pad LEB128 numbers to reserve room, but never beyond the ten bytes of a 64-bit one. The
# limit keeps hostile ones from becoming integers of a million digits.
_LONGEST_LEB = 16


class Encoding(Value):
    """How a section writes numbers and pointers, and what its pointers are relative to.

    `vaddr` is where the section's offset 0 lies. Bases that are None make a pointer that needs
    them a FormatError. `dereference` reads the address at a vaddr, for indirect pointers.
    """

    byteorder: ByteOrder
    address_size: int
    vaddr: int = 0
    text_base: int | None = None
    data_base: int | None = None
    dereference: Callable[[int], int] | None = None
    where: str = "CFI"


def uleb_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The unsigned LEB128 at `at` and the place after it (DWARF 5 §7.6).

    IndexError where the data end within it, ValueError where it is too long to be meant.
    """
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift >= 7 * _LONGEST_LEB:
            raise ValueError("a LEB128 number of more than 16 bytes")


def sleb_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """The signed LEB128 at `at` and the place after it; errors as of `uleb_at`."""
    value, end = uleb_at(data, at)
    bits = 7 * (end - at)
    return value - ((value >> (bits - 1)) << bits), end


class Reader:
    """A place `at` in `data`, which begins at `offset` of its section; reading moves it on."""

    __slots__ = ("at", "data", "encoding", "offset")

    def __init__(self, data: bytes | memoryview, encoding: Encoding, offset: int = 0, at: int = 0):
        self.data = data
        self.encoding = encoding
        self.offset = offset
        self.at = at

    def error(self, reason: str) -> FormatError:
        """A FormatError that names this place."""
        return FormatError(reason, self.encoding.where, self.offset + self.at)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, all of them."""
        left = len(self.data) - self.at
        if not 0 <= size <= left:
            raise self.error(f"{size} bytes are wanted where {left} are left")
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self.data) - self.at)

    def unsigned(self, size: int) -> int:
        """An unsigned number of `size` bytes."""
        return int.from_bytes(self.take(size), self.encoding.byteorder)

    def signed(self, size: int) -> int:
        """A two's complement number of `size` bytes."""
        return int.from_bytes(self.take(size), self.encoding.byteorder, signed=True)

    def u8(self) -> int:
        """One byte."""
        return self.unsigned(1)

    def u16(self) -> int:
        """Two bytes."""
        return self.unsigned(2)

    def u32(self) -> int:
        """Four bytes."""
        return self.unsigned(4)

    def u64(self) -> int:
        """Eight bytes."""
        return self.unsigned(8)

    def uleb(self) -> int:
        """An unsigned LEB128 number."""
        return self._leb(uleb_at)

    def sleb(self) -> int:
        """A signed LEB128 number."""
        return self._leb(sleb_at)

    def _leb(self, read: Callable[[bytes | memoryview, int], tuple[int, int]]) -> int:
        try:
            value, self.at = read(self.data, self.at)
        except IndexError:
            raise self.error("the data end within a LEB128 number") from None
        except ValueError as error:
            raise self.error(str(error)) from None
        return value

    def cstring(self) -> bytes:
        """The bytes up to a zero byte, which is skipped."""
        rest = bytes(self.data[self.at :])
        end = rest.find(0)
        if end < 0:
            raise self.error("a string without an end")
        self.at += end + 1
        return rest[:end]

    def pointer(
        self, encoding: int, *, function: int | None = None, optional: bool = False
    ) -> int | None:
        """A pointer as `DW_EH_PE` describes it (LSB Core 5.0 §10.5.1); None for `omit`.

        `function` is the base of funcrel. `optional`: a stored 0 is no pointer whatever it is
        relative to, as libgcc's read_encoded_value_with_base has it; not for where code begins,
        since in a relocatable file the code may well lie at the offset of the field itself.
        """
        if encoding == DW_EH_PE.omit:
            return None
        size = self.encoding.address_size
        application = encoding & 0x70
        if application == DW_EH_PE.aligned:
            self.take(-(self.encoding.vaddr + self.offset + self.at) % size)
        start = self.at
        value = self._formatted(encoding & 0x0F, encoding)
        if optional and value == 0:
            return None
        value = (value + self._base(application, start, function)) & ((1 << 8 * size) - 1)
        return self._dereferenced(value) if encoding & DW_EH_PE.indirect else value

    def stored_size(self, encoding: int) -> int | None:
        """The bytes that a pointer of this format takes, None for the variable ones."""
        sizes = {2: 2, 3: 4, 4: 8, 10: 2, 11: 4, 12: 8, 0: self.encoding.address_size}
        sizes[8] = self.encoding.address_size
        return sizes.get(encoding & 0x0F)

    def _formatted(self, format: int, encoding: int) -> int:
        match format:
            case DW_EH_PE.absptr:
                return self.unsigned(self.encoding.address_size)
            case DW_EH_PE.uleb128:
                return self.uleb()
            case DW_EH_PE.udata2:
                return self.u16()
            case DW_EH_PE.udata4:
                return self.u32()
            case DW_EH_PE.udata8:
                return self.u64()
            case DW_EH_PE.signed:
                return self.signed(self.encoding.address_size)
            case DW_EH_PE.sleb128:
                return self.sleb()
            case DW_EH_PE.sdata2:
                return self.signed(2)
            case DW_EH_PE.sdata4:
                return self.signed(4)
            case DW_EH_PE.sdata8:
                return self.signed(8)
        raise self.error(f"pointer encoding {encoding:#x} is not defined")

    def _base(self, application: int, start: int, function: int | None) -> int:
        """What a pointer whose bytes lie at `start` is relative to."""
        match application:
            case DW_EH_PE.absptr | DW_EH_PE.aligned:
                return 0
            case DW_EH_PE.pcrel:
                return self.encoding.vaddr + self.offset + start
            case DW_EH_PE.textrel:
                base, name = self.encoding.text_base, "text"
            case DW_EH_PE.datarel:
                base, name = self.encoding.data_base, "data"
            case DW_EH_PE.funcrel:
                base, name = function, "function"
            case _:
                raise self.error(f"pointer application {application:#x} is not defined")
        if base is None:
            raise self.error(f"a pointer relative to the {name} base, which is not known here")
        return base

    def _dereferenced(self, vaddr: int) -> int:
        if self.encoding.dereference is None:
            raise self.error("an indirect pointer, and no memory to follow it in")
        try:
            return self.encoding.dereference(vaddr)
        except MemoryFault as fault:
            raise self.error(f"an indirect pointer leads nowhere: {fault}") from None
