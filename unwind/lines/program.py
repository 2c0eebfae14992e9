"""Line programs: a unit's part of .debug_line in, file, line and column by vaddr out.

A program is run once, over all of the unit, and only what it says of each address last is kept.
"""

from __future__ import annotations

from bisect import bisect_right

from unwind.dwarf.reader import uleb_at
from unwind.errors import FormatError
from unwind.lines.constants import DW_FORM, DW_LNCT, DW_LNE, DW_LNS
from unwind.lines.sections import text_at

__all__ = ["LineTable", "line_table"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array

    from unwind.lines.sections import Sections
    from unwind.protocols import ByteOrder

_LARGEST_PROGRAM = 1 << 24  # bytes; of a whole linked browser's unit one tenth
_MOST_FILES = 1 << 16
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class LineTable:
    """The rows of a unit, and its files.

    Rows are in sequences: each is a stretch of code without a hole, and ends before its `high`.
    """

    def __init__(self, header: _Header):
        self._header = header
        self.problem = ""  # why rows may be missing
        self._sequences: list[tuple[int, int, array[int], array[int]]] = []
        self._lows: list[int] = []

    def add(self, high: int, addresses: list[int], rows: list[int]) -> None:
        """One sequence: ascending addresses with their rows, each packed into a number."""
        if addresses and addresses[0] < high:
            from array import array

            # Ten thousand rows are usual: 16 bytes each, not 120.
            columns = array("Q", addresses), array("Q", rows)
            self._sequences.append((addresses[0], high, *columns))

    def settle(self) -> None:
        """Sort the sequences: there are no more."""
        self._sequences.sort(key=lambda sequence: sequence[:2])
        self._lows = [sequence[0] for sequence in self._sequences]

    def row(self, vaddr: int) -> tuple[int, int, int] | None:
        """The (file, line, column) of the code at `vaddr`; 0 is unknown. None between sequences."""
        at = bisect_right(self._lows, vaddr) - 1
        # A function that the linker left out may lie over others, at address 0.
        for n in range(at, max(at - 16, -1), -1):
            _, high, addresses, rows = self._sequences[n]
            if vaddr < high:
                row = rows[bisect_right(addresses, vaddr) - 1]
                return row >> 48, row >> 16 & 0xFFFF_FFFF, row & 0xFFFF
        return None

    def file(self, number: int, directory: str | None) -> str | None:
        """The path of a file by its number; relative ones start from the unit's `directory`."""
        header = self._header
        index = number if header.version >= 5 else number - 1
        if not 0 <= index < len(header.files):
            return None
        name, folder = header.files[index]
        if not name:
            return None
        if name.startswith("/"):
            return name
        path = ""
        if header.version >= 5:
            path = header.folders[folder] if folder < len(header.folders) else ""
        elif 0 < folder <= len(header.folders):
            path = header.folders[folder - 1]
        # From DWARF 5 on folder 0 is the unit's directory itself (§6.2.4).
        if not path.startswith("/") and (header.version < 5 or folder) and directory:
            path = _joined(directory, path)
        return _joined(path, name)


def _joined(folder: str, name: str) -> str:
    if not folder or not name:
        return folder or name
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def line_table(sections: Sections, offset: int, address_size: int) -> LineTable:
    """The line table at `offset` of .debug_line; FormatError for a damaged header.

    Of a program that is damaged further on, the rows before the damage are there, and `problem`
    says what is wrong.
    """
    data = sections.get("line")
    size, word, head = int.from_bytes(data[offset : offset + 4], sections.byteorder), 4, 4
    if size == 0xFFFF_FFFF:
        size = int.from_bytes(data[offset + 4 : offset + 12], sections.byteorder)
        word, head = 8, 12
    end = offset + head + size
    if offset + head >= len(data) or end > len(data):
        raise sections.error(f"a line program of {size} bytes", "line", offset)
    if size > _LARGEST_PROGRAM:
        raise sections.error(f"a line program of {size} bytes is too large", "line", offset)
    program = bytes(data[offset:end])
    try:
        header = _Header(sections, program, head, word, address_size)
    except FormatError as error:
        raise sections.error(error.reason, "line", offset) from None
    except (IndexError, ValueError):
        raise sections.error("a line program ends within its header", "line", offset) from None
    table = LineTable(header)
    try:
        _run(header, program, table)
    except (IndexError, ValueError, OverflowError):
        cut = sections.error("a line program ends within an instruction", "line", offset)
        table.problem = str(cut)
    except FormatError as error:
        table.problem = str(sections.error(error.reason, "line", offset))
    table.settle()
    return table


class _Header:
    """The header of a line program (DWARF 5 §6.2.4): what opcodes mean, folders and files.

    IndexError and ValueError where it is cut short, FormatError where it cannot be.
    """

    def __init__(self, sections: Sections, data: bytes, at: int, word: int, address_size: int):
        order = sections.byteorder
        self.version = int.from_bytes(data[at : at + 2], order)
        at += 2
        if not 2 <= self.version <= 5:
            raise FormatError(f"a line program of version {self.version}")
        self.address_size = address_size
        if self.version >= 5:
            self.address_size = data[at]
            at += 2
        self.order: ByteOrder = order
        self.program = at + word + int.from_bytes(data[at : at + word], order)
        at += word
        self.step = data[at]  # minimum_instruction_length
        at += 1
        if self.version >= 4:
            if data[at] > 1:
                raise FormatError("a line program for VLIW code")
            at += 1
        self.line_base = data[at + 1] - 256 if data[at + 1] > 127 else data[at + 1]
        self.line_range, self.opcode_base = data[at + 2], data[at + 3]
        if not self.line_range:
            raise FormatError("a line program with a line_range of 0")
        at += 4
        self.lengths = data[at : at + max(self.opcode_base - 1, 0)]
        at += len(self.lengths)
        self.folders: list[str] = []
        self.files: list[tuple[str, int]] = []
        if self.version >= 5:
            folders, at = _entries(sections, data, at, word)
            self.folders = [name for name, _ in folders]
            self.files, at = _entries(sections, data, at, word)
        else:
            self._old_tables(data, at)
        if self.program > len(data):
            raise ValueError(self.program)

    def _old_tables(self, data: bytes, at: int) -> None:
        """Folders and files as before DWARF 5 (DWARF 4 §6.2.4)."""
        while data[at]:
            name, at = _string(data, at)
            self.folders.append(name)
        at += 1
        while data[at]:
            name, at = _string(data, at)
            folder, at = uleb_at(data, at)
            _, at = uleb_at(data, at)
            _, at = uleb_at(data, at)
            self.files.append((name, folder))


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8", "surrogateescape"), end + 1


def _entries(
    sections: Sections, data: bytes, at: int, word: int
) -> tuple[list[tuple[str, int]], int]:
    """A table of folders or of files (DWARF 5 §6.2.4.1): path and folder of each."""
    formats = []
    count = data[at]
    at += 1
    for _ in range(count):
        content, at = uleb_at(data, at)
        form, at = uleb_at(data, at)
        formats.append((content, form))
    count, at = uleb_at(data, at)
    if count > min(_MOST_FILES, len(data)) or (count and not formats):
        raise FormatError(f"a table of {count} files")  # each takes a byte or more
    found = []
    for _ in range(count):
        path, folder = "", 0
        for content, form in formats:
            value, at = _field(sections, data, at, form, word)
            if content == DW_LNCT.path and isinstance(value, str):
                path = value
            elif content == DW_LNCT.directory_index and isinstance(value, int):
                folder = value
        found.append((path, folder))
    return found, at


_FIXED = {DW_FORM.data1: 1, DW_FORM.data2: 2, DW_FORM.data4: 4, DW_FORM.data8: 8}
_SKIPPED = {DW_FORM.data16: 16, DW_FORM.strx1: 1, DW_FORM.strx2: 2, DW_FORM.strx3: 3}


def _field(
    sections: Sections, data: bytes, at: int, form: int, word: int
) -> tuple[int | str | None, int]:
    """One field of a file's entry, and where it ends."""
    if form == DW_FORM.string:
        return _string(data, at)
    if form in (DW_FORM.line_strp, DW_FORM.strp):
        offset = int.from_bytes(data[at : at + word], sections.byteorder)
        section = sections.get("line_str" if form == DW_FORM.line_strp else "str")
        return text_at(section, offset), at + word
    if form in _FIXED:
        size = _FIXED[form]
        return int.from_bytes(data[at : at + size], sections.byteorder), at + size
    if form == DW_FORM.udata:
        return uleb_at(data, at)
    if form in _SKIPPED:
        return None, at + _SKIPPED[form]
    if form == DW_FORM.block:
        size, at = uleb_at(data, at)
        return None, at + size
    if form in (DW_FORM.strx4, DW_FORM.strp_sup, DW_FORM.GNU_strp_alt):
        return None, at + (4 if form == DW_FORM.strx4 else word)
    raise FormatError(f"form {form:#x} in a table of files")


def _run(header: _Header, data: bytes, table: LineTable) -> None:
    """Run the program (DWARF 5 §6.2.5)."""
    base, step, order = header.opcode_base, header.step, header.order
    # What each special opcode adds to the address and to the line (§6.2.5.1).
    specials = range(256 - base)
    advances = [0] * base + [n // header.line_range * step for n in specials]
    lines = [0] * base + [header.line_base + n % header.line_range for n in specials]
    constant = (255 - base) // header.line_range * step
    at, end = header.program, len(data)
    while at < end:
        address, file, line, column = 0, 1, 1, 0
        addresses: list[int] = []
        rows: list[int] = []  # the line with file << 48 and the column
        rest = file << 48
        while at < end:
            opcode = data[at]
            at += 1
            if opcode >= base:
                address += advances[opcode]
                line += lines[opcode]
            elif opcode == DW_LNS.copy:
                pass
            elif opcode == DW_LNS.advance_line:
                value, start = data[at], at
                at += 1
                if value > 0x7F:
                    value, at = uleb_at(data, start)
                bits = 7 * (at - start)
                line += value - ((value >> (bits - 1)) << bits)
                continue
            elif opcode == DW_LNS.set_column:
                column = data[at]
                at += 1
                if column > 0x7F:
                    column, at = uleb_at(data, at - 1)
                rest = (file & 0xFFFF) << 48 | min(column, 0xFFFF)
                continue
            elif opcode in (DW_LNS.negate_stmt, DW_LNS.set_basic_block):
                continue
            elif opcode == DW_LNS.advance_pc:
                value, at = uleb_at(data, at)
                address = (address + value * step) & _MASK
                continue
            elif opcode == DW_LNS.set_file:
                file, at = uleb_at(data, at)
                rest = (file & 0xFFFF) << 48 | min(column, 0xFFFF)
                continue
            elif opcode == DW_LNS.const_add_pc:
                address += constant
                continue
            elif opcode == DW_LNS.fixed_advance_pc:
                address += int.from_bytes(data[at : at + 2], order)
                at += 2
                continue
            elif opcode == 0:
                size, at = uleb_at(data, at)
                kind, after = data[at], at + size
                if kind == DW_LNE.end_sequence:
                    at = after
                    break
                if kind == DW_LNE.set_address:
                    address = int.from_bytes(data[at + 1 : after], order)
                elif kind == DW_LNE.define_file:
                    name, place = _string(data, at + 1)
                    folder, _ = uleb_at(data, place)
                    header.files.append((name, folder))
                at = after
                continue
            else:
                for _ in range(header.lengths[opcode - 1]):
                    _, at = uleb_at(data, at)
                continue
            # A row: of several at one address the last one counts, as binutils and LLVM have it.
            if addresses and addresses[-1] == address:
                rows[-1] = rest | (line & 0xFFFF_FFFF) << 16
            else:
                addresses.append(address)
                rows.append(rest | (line & 0xFFFF_FFFF) << 16)
        _add(table, address, addresses, rows)


def _add(table: LineTable, high: int, addresses: list[int], rows: list[int]) -> None:
    """Put in a sequence; compilers write ascending addresses, others are sorted."""
    if addresses != sorted(addresses):
        order = sorted(range(len(addresses)), key=addresses.__getitem__)
        addresses = [addresses[n] for n in order]
        rows = [rows[n] for n in order]
    table.add(high, addresses, rows)
