"""Strategies of whole sections: .eh_frame, .debug_frame and .eh_frame_hdr, sound and damaged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from unwind.dwarf.constants import DW_EH_PE
from unwind.testing.assembler import CIE, FDE, TERMINATOR, Section, Target
from unwind.testing.damage import Area, Field
from unwind.testing.damaged import wounded
from unwind.testing.entries import SECTION, Kind, base_of, cies, extents, fdes, targets

__all__ = [
    "Header",
    "SectionMade",
    "damaged_entries",
    "damaged_headers",
    "damaged_sections",
    "entry_areas",
    "headers",
    "sections",
]


@dataclass(frozen=True)
class SectionMade:
    """A section, the entries that are in it, and perhaps a table of its FDEs."""

    section: Section
    cies: tuple[CIE, ...]
    fdes: tuple[FDE, ...]


@dataclass(frozen=True)
class Header:
    """An .eh_frame_hdr of `made`: its bytes, which lie at `vaddr`."""

    made: SectionMade
    data: bytes
    vaddr: int
    encoding: int  # of the table


@st.composite
def sections(
    draw: st.DrawFn,
    kind: Kind | None = None,
    target: st.SearchStrategy[Target] | None = None,
    most: int = 6,
) -> SectionMade:
    """A section of up to `most` FDEs that do not overlap, each of one of a few CIEs.

    None for `kind`: either. FDEs come in any order, terminators may stand anywhere.
    """
    kinds: tuple[Kind, ...] = ("eh_frame", "debug_frame") if kind is None else (kind,)
    chosen = draw(st.sampled_from(kinds))
    where = draw(target or targets())
    common = draw(st.lists(cies(where, chosen), min_size=1, max_size=3))
    # A pointer of 4 bytes in a 64-bit .eh_frame is told from one of 8 by what comes after it;
    # a segment of zeroes would look like its other half.
    sizes = [8] if any(cie.segment_size for cie in common) else [8, 4]
    made = Section(
        kind=chosen,
        vaddr=base_of(where) + SECTION,
        target=where,
        id_size=draw(st.sampled_from(sizes)),
    )
    entries: list[FDE] = []
    for start in draw(extents(where, most)):
        entries.append(draw(fdes(where, draw(st.sampled_from(common)), start)))
        made.add(entries[-1])
        if chosen == "eh_frame" and draw(st.integers(0, 9)) == 9:
            made.add(TERMINATOR)
    return SectionMade(made, tuple(common), tuple(entries))


@st.composite
def headers(draw: st.DrawFn, sound: st.SearchStrategy[SectionMade] | None = None) -> Header:
    """An .eh_frame_hdr (LSB Core 5.0 §10.6.2) and the .eh_frame that it is a table of."""
    made = draw(sound or sections("eh_frame"))
    vaddr = base_of(made.section.target) + 0x800
    encoding = draw(st.sampled_from(_TABLES))
    data = made.section.header(
        vaddr=vaddr,
        encoding=encoding,
        frame_encoding=draw(st.sampled_from(_TABLES)),
        count_encoding=draw(st.sampled_from([DW_EH_PE.udata4, DW_EH_PE.udata2, DW_EH_PE.uleb128])),
    )
    return Header(made, data, vaddr, encoding)


# Every linker writes the first; the table's numbers are of one size.
_TABLES = (
    DW_EH_PE.datarel | DW_EH_PE.sdata4,
    DW_EH_PE.pcrel | DW_EH_PE.sdata4,
    DW_EH_PE.datarel | DW_EH_PE.udata4,
    DW_EH_PE.datarel | DW_EH_PE.sdata2,
    DW_EH_PE.datarel | DW_EH_PE.sdata8,
    DW_EH_PE.absptr,
)


def entry_areas(section: Section) -> list[Area]:
    """Where the entries of a section that was made keep their lengths and pointers."""
    order, data = section.target.byteorder, section.data
    found = []
    for at, after in pairwise([*section.offsets, len(data)]):
        wide = int.from_bytes(data[at : at + 4], order) == 0xFFFFFFFF
        fields = [Field("length", at, 4), Field("CIE_pointer", at + 4, 4)]
        if wide:
            fields = [Field("length", at + 4, 8), Field("CIE_pointer", at + 12, 4)]
        body = fields[-1].offset + 4
        fields += [Field("word", here, 4) for here in range(body, min(body + 16, after - 3), 4)]
        found.append(
            Area("entry", at, after, tuple(f for f in fields if f.offset + f.size <= after))
        )
    return found


@st.composite
def damaged_sections(
    draw: st.DrawFn, kind: Kind | None = None, target: st.SearchStrategy[Target] | None = None
) -> SectionMade:
    """A section with something wrong in it: lengths, loops of pointers, overlaps, cut programs."""
    made = draw(sections(kind, target))
    section = made.section
    broken = draw(wounded(bytes(section.data), entry_areas(section), section.target.byteorder))
    section.data[:] = broken
    return made


@st.composite
def damaged_entries(
    draw: st.DrawFn, kind: Kind | None = None, target: st.SearchStrategy[Target] | None = None
) -> tuple[SectionMade, FDE]:
    """A section, and the one FDE of it whose contents are damaged behind its pointer to the CIE.

    It stays as long as it was, so all other entries can still be read.
    """
    made = draw(sections(kind, target).filter(lambda made: bool(made.fdes)))
    section = made.section
    victim = draw(st.sampled_from(made.fdes))
    at = dict(section.fdes)[victim.start]
    [area] = [area for area in entry_areas(section) if area.start == at]
    start = area.fields[1].offset + (8 if victim.cie.wide else 4)
    body = bytes(section.data[start : area.end])
    broken = draw(wounded(body, (), section.target.byteorder))
    section.data[start : area.end] = broken[: len(body)].ljust(len(body), b"\0")
    return made, victim


@st.composite
def damaged_headers(draw: st.DrawFn) -> Header:
    """An .eh_frame_hdr with something wrong in it, over a sound .eh_frame."""
    header = draw(headers())
    fields = tuple(Field("word", at, 4) for at in range(4, len(header.data) - 3, 4))
    area = Area(".eh_frame_hdr", 0, len(header.data), fields)
    data = draw(wounded(header.data, [area], header.made.section.target.byteorder))
    return Header(header.made, data, header.vaddr, header.encoding)
