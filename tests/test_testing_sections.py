"""Sections, CIEs and FDEs: what was written is read, as the plain evaluator reads it."""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from unwind.dwarf.cfi import Cie, Fde, FrameSection
from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.dwarf.rows import rows
from unwind.errors import FormatError, UnwindError
from unwind.rules import Row
from unwind.testing import model
from unwind.testing.assembler import CIE, FDE, Section
from unwind.testing.sections import (
    Header,
    SectionMade,
    damaged_entries,
    damaged_headers,
    damaged_sections,
    headers,
    sections,
)


def plain_entries(section: Section) -> list[model.Cie | model.Fde]:
    """The section as the plain evaluator reads it."""
    target = section.target
    bases = {"text_base": target.text_base, "data_base": target.data_base}
    shape = (section.kind, target.byteorder, target.address_size)
    return list(model.read(bytes(section.data), section.vaddr, *shape, **bases))


@settings(max_examples=100)
@given(sections())
def test_what_was_written_is_read(made: SectionMade) -> None:
    found = list(made.section.frames().entries())
    read = [entry for entry in found if isinstance(entry, Fde)]
    assert [(fde.start, fde.end) for fde in read] == [
        (fde.start, fde.start + fde.size) for fde in made.fdes
    ]
    for fde, written in zip(read, made.fdes, strict=True):
        compare(fde.cie, written.cie)
        says = written.cie.augmentation[:1] == "z" and "L" in written.cie.augmentation
        says = says and written.cie.lsda_encoding != DW_EH_PE.omit
        assert fde.lsda == (written.lsda or None if says else None)
    event(f"{len(read)} FDEs")


def compare(cie: Cie, written: CIE) -> None:
    """Everything that a CIE says of its FDEs."""
    assert cie.version == written.version
    assert cie.augmentation == written.augmentation
    numbers = (cie.code_align, cie.data_align, cie.return_address, cie.wide, cie.segment_size)
    assert numbers == (
        *(written.code_align, written.data_align, written.return_address),
        *(written.wide, written.segment_size),
    )
    letters = written.augmentation.removeprefix("z")
    assert (cie.signal, cie.b_key, cie.tagged) == tuple(letter in letters for letter in "SBG")
    if "P" in letters and written.personality_encoding != DW_EH_PE.omit:
        assert cie.personality == written.personality


@settings(max_examples=100)
@given(sections())
def test_the_rows_of_a_section_are_those_of_the_plain_evaluator(made: SectionMade) -> None:
    ours = [rows_of(entry) for entry in made.section.frames().entries() if isinstance(entry, Fde)]
    plain = plain_entries(made.section)
    assert ours == [model.rows(entry) for entry in plain if isinstance(entry, model.Fde)]


def rows_of(fde: Fde) -> list[Row]:
    return list(rows(fde))


@settings(max_examples=100)
@given(sections(), st.integers(0, 0x200))
def test_every_place_finds_its_own_fde(made: SectionMade, step: int) -> None:
    frames = made.section.frames()
    for written in made.fdes:
        for vaddr in (written.start, written.start + min(step, written.size - 1)):
            found = frames.find(vaddr)
            assert found is not None
            assert found.start == written.start
    for written in made.fdes:
        behind = written.start + written.size
        if all(behind != other.start for other in made.fdes):
            assert frames.find(behind) is None


@settings(max_examples=120)
@given(headers())
def test_the_search_table_leads_to_every_fde(header: Header) -> None:
    section = header.made.section
    table = search_table(header)
    assert table.eh_frame == section.vaddr
    assert list(table.entries()) == sorted(
        (start, section.vaddr + at) for start, at in section.fdes
    )
    frames = section.frames(search=table)
    for written in header.made.fdes:
        found = frames.find(written.start + written.size - 1)
        assert found is not None
        assert found.start == written.start


def search_table(header: Header) -> SearchTable:
    target = header.made.section.target
    return SearchTable(header.data, header.vaddr, target.byteorder, target.address_size)


@settings(max_examples=120)
@given(damaged_sections())
def test_a_damaged_section_gives_entries_or_typed_errors(made: SectionMade) -> None:
    frames = made.section.frames()
    sound = 0
    for entry in frames.entries():
        if isinstance(entry, Fde):
            sound += try_rows(entry)
    for written in made.fdes:
        try_find(frames, written)
    event(f"{'all' if sound == len(made.fdes) else 'not all'} FDEs can be read")
    try:
        plain = plain_entries(made.section)
        expected = [model.rows(entry) for entry in plain if isinstance(entry, model.Fde)]
    except model.Invalid:
        return
    ours = []
    for entry in frames.entries():
        if isinstance(entry, Fde):
            try:
                ours.append(rows_of(entry))
            except FormatError:
                return  # limits, which the plain evaluator has none of
    assert ours == expected, "what the plain evaluator can read, the engine reads alike"


def try_rows(fde: Fde) -> bool:
    try:
        last = fde.start
        for row in rows(fde):
            assert last == row.start < row.end <= fde.end
            last = row.end
    except UnwindError:
        return False
    return True


def try_find(frames: FrameSection, written: FDE) -> None:
    try:
        found = frames.find(written.start)
        assert found is None or found.start <= written.start < found.end
    except UnwindError:
        pass


@settings(max_examples=100)
@given(damaged_entries())
def test_a_damaged_fde_hides_no_other(damaged: tuple[SectionMade, FDE]) -> None:
    made, victim = damaged
    frames = made.section.frames()
    found = {entry.offset: entry for entry in frames.entries() if isinstance(entry, Fde)}
    places = dict(made.section.fdes)
    for written in made.fdes:
        if written is victim:
            continue
        read = found[places[written.start]]
        assert (read.start, read.end) == (written.start, written.start + written.size)
        assert try_rows(read)


@settings(max_examples=100)
@given(damaged_headers())
def test_a_damaged_search_table_hides_no_function(header: Header) -> None:
    try:
        frames = header.made.section.frames(search=search_table(header))
    except FormatError:
        return
    for written in header.made.fdes:
        found = frames.find(written.start + written.size // 2)
        assert found is not None
        assert found.start == written.start
