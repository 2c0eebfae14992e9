"""Split units: a skeleton and the file or package with its other part in, that part out.

The skeleton keeps addresses and lines, the other part has the functions (DWARF 5 §7.3). The two
are known to belong together by an id of 64 bits.
"""

from __future__ import annotations

from struct import Struct

from unwind.lines.constants import DW_AT, DW_SECT
from unwind.lines.sections import Contribution, Sections
from unwind.lines.units import unit_at, unit_offsets

__all__ = ["split_name", "unit_in_file", "unit_in_package"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.elf import Elf
    from unwind.lines.units import Unit

_MOST_UNITS = 1 << 12  # of one .dwo file: more than one only where the linker made it (LTO)
_MOST_SLOTS = 1 << 24
_COLUMNS = {
    DW_SECT.INFO: "info",
    DW_SECT.ABBREV: "abbrev",
    DW_SECT.LINE: "line",
    DW_SECT.STR_OFFSETS: "str_offsets",
    DW_SECT.RNGLISTS: "rnglists",
}


def split_name(skeleton: Unit) -> str | None:
    """The name of the file with the unit's other part, None where it has none."""
    return skeleton.text(DW_AT.dwo_name) or skeleton.text(DW_AT.GNU_dwo_name)


def unit_in_file(skeleton: Unit, elf: Elf) -> Unit | None:
    """The other part of `skeleton` in a .dwo file; None where another build's lies there."""
    sections = Sections(elf, ".dwo")
    for count, offset in enumerate(unit_offsets(sections)):
        unit = unit_at(sections, offset)
        if _id(unit) == _id(skeleton) is not None:
            unit.skeleton = skeleton
            return unit
        if count == _MOST_UNITS:
            break
    return None


def unit_in_package(skeleton: Unit, elf: Elf) -> Unit | None:
    """The other part of `skeleton` in a .dwp file, None where it is not in its index."""
    wanted = _id(skeleton)
    whole = Sections(elf, ".dwo")
    parts = _parts(elf, wanted) if wanted is not None else None
    if parts is None or "info" not in parts:
        return None
    unit = unit_at(Contribution(whole, parts), 0)
    if _id(unit) not in (wanted, None):
        return None
    unit.skeleton = skeleton
    return unit


def _id(unit: Unit) -> int | None:
    if unit.dwo_id is not None:
        return unit.dwo_id
    value = unit.root.get(DW_AT.GNU_dwo_id, (0, None))[1]
    return value if isinstance(value, int) else None


def _parts(elf: Elf, wanted: int) -> dict[str, tuple[int, int]] | None:
    """Where the parts of a unit lie, by .debug_cu_index (DWARF 5 §7.3.5.3)."""
    section = elf.section(".debug_cu_index")
    if section is None:
        return None
    data = elf.data(section)
    order = "<" if elf.header.byteorder == "little" else ">"
    if len(data) < 16:
        return None
    version, columns, units, slots = Struct(order + "IIII").unpack_from(data)
    # A version of 16 bits and two of padding; GNU's before had one of 32 bits.
    if version != 2 and Struct(order + "H").unpack_from(data)[0] != 5:
        raise Sections(elf).error(f"version {version}", "cu_index", 0)
    table = 16 + 12 * slots
    cells = table + 4 * columns
    if slots > _MOST_SLOTS or columns > 16 or cells + 8 * columns * units > len(data):
        raise Sections(elf).error("an index that is longer than its section", "cu_index", 0)
    ids = data[16 : 16 + 8 * slots].tobytes()
    raw = Struct(order + "Q").pack(wanted)
    at = ids.find(raw)
    while at > 0 and at % 8:
        at = ids.find(raw, at + 1)
    if at < 0:
        return None
    u32 = Struct(order + "I")
    row = u32.unpack_from(data, 16 + 8 * slots + at // 2)[0]
    if not 0 < row <= units:
        return None
    found = {}
    for column in range(columns):
        name = _COLUMNS.get(u32.unpack_from(data, table + 4 * column)[0])
        place = cells + 4 * ((row - 1) * columns + column)
        if name is not None:
            (offset,), (size,) = (
                u32.unpack_from(data, place + skip) for skip in (0, 4 * columns * units)
            )
            found[name] = offset, size
    return found
