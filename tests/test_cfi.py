"""CIEs and FDEs: every form they may have, and that each pc finds its own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.elves import library
from tests.test_reader import FORMATS
from unwind.dwarf.cfi import Broken, Cie, Fde, FrameSection, Terminator
from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.errors import FormatError, MemoryFault
from unwind.image import Image
from unwind.protocols import ByteOrder
from unwind.rules import CfaRegister
from unwind.testing.assembler import (
    CIE,
    FDE,
    RIP,
    RSP,
    TERMINATOR,
    Section,
    Target,
    advance_loc,
    def_cfa,
    def_cfa_offset,
    nop,
    offset,
)

TARGETS = [Target("little", 4), Target("little", 8), Target("big", 4), Target("big", 8)]
TARGET_IDS = [f"{target.byteorder}{8 * target.address_size}" for target in TARGETS]
PROGRAM = [advance_loc(4), def_cfa_offset(32)]
ABSOLUTE = DW_EH_PE.absptr


def one(cie: CIE, **options: Any) -> Fde:
    """The FDE for [0x5000, 0x5020) with this CIE, read back, and seen to be whole."""
    section = Section(FDE(0x5000, 0x20, PROGRAM, cie), **options)
    found = section.frames().find(0x5008)
    assert found is not None
    assert (found.start, found.end) == (0x5000, 0x5020)
    assert [row.cfa for row in rows(found)] == [CfaRegister(RSP, 8), CfaRegister(RSP, 32)]
    return found


# CIEs: DWARF 5 §6.4.1, LSB Core 5.0 §10.6.1.1.


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("wide", [False, True], ids=["32-bit", "64-bit"])
@pytest.mark.parametrize("kind", ["eh_frame", "debug_frame"])
@pytest.mark.parametrize("version", [1, 3, 4])
def test_cie_of_version(version: int, kind: str, wide: bool, target: Target) -> None:
    cie = CIE(version=version, wide=wide, augmentation="", pointers=ABSOLUTE)
    found = one(cie, kind=kind, target=target).cie
    assert (found.section, found.version, found.wide) == (kind, version, wide)
    assert (found.code_align, found.data_align, found.return_address) == (1, -8, RIP)
    assert (found.offset, found.augmentation, found.signal) == (0, "", False)


@pytest.mark.parametrize("version", [0, 2, 5, 255])
def test_other_versions_are_refused(version: int) -> None:
    section = Section(FDE(0x5000, 0x20, cie=CIE(version=version, augmentation="")))
    with pytest.raises(FormatError, match=f"version {version} of a CIE"):
        section.frames().cie_at(0)


def test_the_return_address_column_is_one_byte_in_version_1_and_a_leb128_later() -> None:
    for version in (1, 3, 4):
        assert one(CIE(version=version, return_address=0x7F)).cie.return_address == 0x7F
    assert one(CIE(version=1, return_address=0xC8)).cie.return_address == 0xC8
    assert one(CIE(version=3, return_address=300)).cie.return_address == 300


@pytest.mark.parametrize("address_size", [2, 4, 8])
def test_version_4_says_how_wide_addresses_are(address_size: int) -> None:
    cie = CIE(version=4, augmentation="", address_size=address_size, pointers=ABSOLUTE)
    assert one(cie, kind="debug_frame").cie.encoding.address_size == address_size


@pytest.mark.parametrize("segment_size", [1, 2, 4, 8])
def test_version_4_has_segment_selectors(segment_size: int) -> None:
    cie = CIE(version=4, augmentation="", segment_size=segment_size, pointers=ABSOLUTE)
    section = Section(FDE(0x5000, 0x20, PROGRAM, cie, segment=0x7F), kind="debug_frame")
    found = section.frames().find(0x501F)
    assert found is not None
    assert found.cie.segment_size == segment_size


@pytest.mark.parametrize(("address_size", "segment_size"), [(3, 0), (16, 0), (8, 9)])
def test_sizes_that_no_machine_has_are_refused(address_size: int, segment_size: int) -> None:
    cie = CIE(version=4, augmentation="", address_size=address_size, segment_size=segment_size)
    with pytest.raises(FormatError, match="an address of"):
        Section(cie).frames().cie_at(0)


@pytest.mark.parametrize("id_size", [4, 8])
def test_a_64_bit_eh_frame_may_have_cie_pointers_of_either_size(id_size: int) -> None:
    for target in TARGETS:
        assert one(CIE(wide=True), id_size=id_size, target=target).cie.wide


def test_augmentation_eh_has_a_pointer_to_nobody_knows_what() -> None:
    assert one(CIE(augmentation="eh", pointers=ABSOLUTE)).cie.augmentation == "eh"


@pytest.mark.parametrize("augmentation", ["zRPLS", "zSPLR", "zPLRSB", "zLRG", "zRSBG", "zPR", "z"])
def test_letters_come_in_any_order(augmentation: str) -> None:
    cie = CIE(
        augmentation=augmentation,
        pointers=DW_EH_PE.pcrel | DW_EH_PE.sdata4 if "R" in augmentation else ABSOLUTE,
        personality_encoding=DW_EH_PE.indirect | DW_EH_PE.pcrel | DW_EH_PE.sdata4,
        personality=0x9000,
        lsda_encoding=DW_EH_PE.pcrel | DW_EH_PE.sdata4,
    )
    found = one(cie).cie
    assert found.personality == (0x9000 if "P" in augmentation else None)
    assert (found.personality_encoding != DW_EH_PE.omit) == ("P" in augmentation)
    assert (found.lsda_encoding != DW_EH_PE.omit) == ("L" in augmentation)
    assert found.signal == ("S" in augmentation)
    assert found.b_key == ("B" in augmentation)
    assert found.tagged == ("G" in augmentation)


def test_an_omitted_personality_is_none() -> None:
    assert one(CIE(augmentation="zPR")).cie.personality is None


@pytest.mark.parametrize("unknown", [b"", b"\xff" * 3, bytes(200)])
def test_an_unknown_letter_is_skipped_by_the_length(unknown: bytes) -> None:
    assert one(CIE(augmentation="zR!", unknown=unknown)).cie.augmentation == "zR!"


@pytest.mark.parametrize("letters", ["S", "B", "SB", "G"])
def test_letters_without_data_need_no_length(letters: str) -> None:
    """gas writes "S" into .debug_frame, where it has no z, for .cfi_signal_frame."""
    found = one(CIE(augmentation=letters, pointers=ABSOLUTE), kind="debug_frame").cie
    assert (found.signal, found.b_key, found.tagged) == tuple(c in letters for c in "SBG")


def test_an_unknown_augmentation_without_length_is_refused() -> None:
    section = Section(FDE(0x5000, 0x20, cie=CIE(augmentation="hp", pointers=ABSOLUTE)))
    frames = section.frames()
    with pytest.raises(FormatError, match="augmentation 'hp' is not known"):
        frames.fde_at(section.offsets[-1])
    assert frames.find(0x5000) is None
    assert [type(entry) for entry in frames.entries()] == [Broken, Broken]


def test_arms_compiler_adds_a_name_and_no_data() -> None:
    assert one(CIE(augmentation="armcc+", pointers=ABSOLUTE), kind="debug_frame")


def test_augmentation_data_that_run_out_of_the_cie_are_refused() -> None:
    data = bytearray(Section(CIE()).data)
    data[16] = 0x7F  # the length of the data: after 4 + 4 + 1 + 3 + 1 + 1 + 1 bytes comes "zR"
    at = data.index(b"zR\0") + 6
    data[at] = 0x70
    frames = FrameSection(bytes(data), 0, "eh_frame", "little", 8)
    with pytest.raises(FormatError, match="112 bytes are wanted"):
        frames.cie_at(0)


# FDEs: LSB Core 5.0 §10.6.1.1.2.


@pytest.mark.parametrize("target", TARGETS, ids=TARGET_IDS)
@pytest.mark.parametrize("application", ["absptr", "pcrel", "textrel", "datarel", "aligned"])
@pytest.mark.parametrize("format", FORMATS)
def test_extent_of_an_fde(format: str, application: str, target: Target) -> None:
    encoding = FORMATS[format] | getattr(DW_EH_PE, application)
    if target.address_size == 4 and format in ("udata8", "sdata8") and application == "pcrel":
        pass  # wider than an address: the sum wraps all the same
    one(
        CIE(pointers=encoding),
        target=Target(target.byteorder, target.address_size, 0x4000, 0x4800),
        vaddr=0x4F00,
    )


def test_an_indirect_extent_is_read_from_memory() -> None:
    cie = CIE(pointers=DW_EH_PE.indirect | DW_EH_PE.absptr)
    section = Section(FDE(0x9000, 0x20, PROGRAM, cie))
    frames = section.frames(dereference={0x9000: 0x5000}.__getitem__)
    found = frames.find(0x5000)
    assert found is not None
    assert (found.start, found.end) == (0x5000, 0x5020)


def test_an_indirect_extent_without_its_memory_is_broken_and_no_fault() -> None:
    def unreadable(vaddr: int) -> int:
        raise MemoryFault(vaddr, 8)

    cie = CIE(pointers=DW_EH_PE.indirect | DW_EH_PE.absptr)
    section = Section(FDE(0x9000, 0x20, PROGRAM, cie), FDE(0x5000, 0x20))
    frames = section.frames(dereference=unreadable)
    assert frames.find(0x5000) is not None
    assert frames.find(0x9000) is None


@pytest.mark.parametrize("application", ["absptr", "pcrel", "datarel", "funcrel", "aligned"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_lsda_pointer(format: str, application: str) -> None:
    encoding = FORMATS[format] | getattr(DW_EH_PE, application)
    cie = CIE(augmentation="zPLR", lsda_encoding=encoding)
    section = Section(
        FDE(0x5000, 0x20, PROGRAM, cie, lsda=0x5123), vaddr=0x4F00, target=Target(data_base=0x4800)
    )
    found = section.frames().find(0x5000)
    assert found is not None
    assert found.lsda == 0x5123


@pytest.mark.parametrize("application", ["absptr", "pcrel"])
def test_an_lsda_pointer_of_zero_is_none(application: str) -> None:
    encoding = DW_EH_PE.sdata4 | getattr(DW_EH_PE, application)
    assert one(CIE(augmentation="zLR", lsda_encoding=encoding)).lsda is None
    assert one(CIE()).lsda is None


def test_an_fde_may_stand_before_its_cie_in_debug_frame() -> None:
    cie = CIE(augmentation="", pointers=ABSOLUTE)
    size = len(Section(cie, kind="debug_frame").data)
    both = Section(cie, FDE(0x5000, 0x20, PROGRAM, cie), kind="debug_frame")
    data = bytearray(both.data[size:] + both.data[:size])
    data[4:8] = (len(data) - size).to_bytes(4, "little")
    frames = FrameSection(bytes(data), 0, "debug_frame", "little", 8)
    assert frames.find(0x5000) is not None


def test_augmentation_data_of_an_fde_are_skipped_by_their_length() -> None:
    section = Section(FDE(0x5000, 0x20, PROGRAM))
    data = bytearray(section.data)
    at = section.offsets[-1]
    data[at + 16 : at + 17] = b"\x83\x00abc"  # a length of 3 in two bytes, and the data
    data[at] += 4
    frames = FrameSection(bytes(data), section.vaddr, "eh_frame", "little", 8)
    found = frames.fde_at(at)
    assert found.augmentation_data == b"abc"
    assert found.augmentation_offset == at + 18
    assert [row.start for row in rows(found)] == [0x5000, 0x5004]
    data[at + 16] = 0xFF
    with pytest.raises(FormatError, match="bytes of augmentation data are too many"):
        FrameSection(bytes(data), section.vaddr, "eh_frame", "little", 8).fde_at(at)


# The section as a whole.


def test_entries_come_in_order_with_their_offsets() -> None:
    section = Section(FDE(0x5000, 16), FDE(0x4000, 16), TERMINATOR, FDE(0x6000, 16))
    entries = list(section.frames().entries())
    assert [type(entry) for entry in entries] == [Cie, Fde, Cie, Fde, Terminator, Cie, Fde]
    assert [entry.start for entry in entries if isinstance(entry, Fde)] == [0x5000, 0x4000, 0x6000]


def test_fdes_share_their_cie() -> None:
    cie = CIE()
    frames = Section(FDE(0x5000, 16, cie=cie), FDE(0x6000, 16, cie=cie)).frames()
    first, second = (entry for entry in frames.entries() if isinstance(entry, Fde))
    assert first.cie is second.cie


def test_the_fde_before_another_is_found_backwards() -> None:
    cie = CIE()
    section = Section(FDE(0x6000, 16, PROGRAM, cie), FDE(0x5000, 16, cie=cie), TERMINATOR)
    section.add(FDE(0x7000, 16))
    frames = section.frames()
    first, second, third = (entry for entry in frames.entries() if isinstance(entry, Fde))
    assert [frames.before(each) for each in (first, second, third)] == [None, first, None]


def test_each_fde_of_the_c_library_is_found_from_the_next_one() -> None:
    path = library("libc.so.6")
    (frames,) = Image(Elf(path.read_bytes(), str(path))).frame_sections
    pairs = [pair for pair in pairwise(frames.entries()) if isinstance(pair[1], Fde)]
    assert len(pairs) > 2000
    for entry, fde in pairs:
        assert frames.before(fde) == (entry if isinstance(entry, Fde) else None)


def test_a_terminator_ends_what_has_no_size_of_its_own() -> None:
    section = Section(FDE(0x5000, 16), TERMINATOR, FDE(0x6000, 16))
    assert section.frames().find(0x6000) is not None
    assert section.frames(sized=False).find(0x6000) is None
    garbage = Section(FDE(0x5000, 16), TERMINATOR, b"\xff" * 20).frames(sized=False)
    assert [type(entry) for entry in garbage.entries()] == [Cie, Fde, Terminator]


def test_a_broken_entry_leaves_the_others() -> None:
    section = Section(FDE(0x5000, 16))
    broken = [section.add(b"\x02\0\0\0ab")]
    section.add(FDE(0x6000, 16))
    broken += [section.add(CIE(version=9)), section.add(b"\x08\0\0\0\xff\xff\0\0abcd")]
    section.add(FDE(0x7000, 16))
    frames = section.frames()
    assert [one.offset for one in frames.entries() if isinstance(one, Broken)] == broken
    for start in (0x5000, 0x6000, 0x7000):
        assert frames.find(start) is not None


def test_a_length_that_leads_out_of_the_section_ends_it() -> None:
    section = Section(FDE(0x5000, 16))
    at = section.add(b"\xf0\0\0\0abcd")
    section.add(FDE(0x6000, 16))
    frames = section.frames()
    *good, broken = frames.entries()
    assert [type(entry) for entry in good] == [Cie, Fde]
    assert isinstance(broken, Broken)
    assert broken.error.offset == at
    assert frames.find(0x5000) is not None
    assert frames.find(0x6000) is None


@pytest.mark.parametrize("length", [0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF])
def test_reserved_lengths_are_refused(length: int) -> None:
    frames = Section(length.to_bytes(4, "little") + b"abcd").frames()
    (broken,) = frames.entries()
    assert isinstance(broken, Broken)
    assert "reserved" in broken.error.reason


def test_an_entry_is_no_entry_of_the_other_kind() -> None:
    section = Section(FDE(0x5000, 16))
    frames = section.frames()
    with pytest.raises(FormatError, match="no CIE where one should be"):
        frames.cie_at(section.offsets[-1])
    with pytest.raises(FormatError, match="a CIE where an FDE should be"):
        frames.fde_at(0)
    for beyond in (-4, len(section.data)):
        with pytest.raises(FormatError, match="no entry begins here"):
            frames.fde_at(beyond)


def test_a_broken_cie_is_read_once_and_told_each_time() -> None:
    cie = CIE(version=9)
    section = Section(FDE(0x5000, 16, cie=cie), FDE(0x6000, 16, cie=cie))
    broken = [entry for entry in section.frames().entries() if isinstance(entry, Broken)]
    assert [entry.error.offset for entry in broken] == [0, 0, 0]
    assert len({id(entry.error) for entry in broken}) == 3


def test_a_broken_cie_is_told_by_the_same_place_each_time() -> None:
    section = Section(FDE(0x5000, 16, cie=CIE(augmentation="odd")), FDE(0x6000, 16))
    frames = section.frames()
    said = []
    for _ in range(2):
        with pytest.raises(FormatError, match="augmentation 'odd' is not known") as caught:
            frames.fde_at(
                next(e.offset for e in frames.entries() if isinstance(e, Broken) and e.offset)
            )
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "at offset 0x0" not in said[0], "the place within the CIE"


def test_an_error_names_section_and_offset() -> None:
    frames = Section(b"\x08\0\0\0\xff\xff\0\0abcd").frames(name="libx.so .eh_frame")
    with pytest.raises(FormatError) as caught:
        frames.fde_at(0)
    assert str(caught.value) == (
        "libx.so .eh_frame at offset 0x0: the pointer to its CIE leads out of the section"
    )


def test_a_cie_that_is_long_beyond_reason_is_refused() -> None:
    section = Section(FDE(0x5000, 16, cie=CIE(program=[nop()] * 20_000)))
    with pytest.raises(FormatError, match="a CIE of 20"):
        section.frames().cie_at(0)


def test_more_cies_than_are_kept_are_read_all_the_same() -> None:
    section = Section(*(FDE(0x5000 + 16 * n, 16) for n in range(5000)))
    frames = section.frames()
    assert sum(isinstance(entry, Fde) for entry in frames.entries()) == 5000
    assert frames.find(0x5000) is not None


# Lookup.


def test_a_gap_between_functions_has_no_fde() -> None:
    section = Section(FDE(0x5000, 16), FDE(0x6000, 16))
    for frames in (section.frames(), section.frames(search=section.search_table())):
        assert frames.find(0x4FFF) is None
        assert frames.find(0x500F) is not None
        assert frames.find(0x5010) is None
        assert frames.find(0x6010) is None


Table = list[tuple[int, int]]
LIES: dict[str, Callable[[Table], Table]] = {
    "empty": lambda fdes: [],
    "backwards": lambda fdes: fdes[::-1],
    "short": lambda fdes: fdes[:1],
    "wrong starts": lambda fdes: [(start + 8, offset) for start, offset in fdes],
    "wrong places": lambda fdes: [(start, offset + 4) for start, offset in fdes],
    "places of others": lambda fdes: [(start, fdes[0][1]) for start, _ in fdes],
    "places outside": lambda fdes: [(start, -0x10000) for start, _ in fdes],
    "CIEs": lambda fdes: [(start, 0) for start, _ in fdes],
}


@pytest.mark.parametrize("lie", LIES)
def test_a_search_table_that_lies_is_not_believed(lie: str) -> None:
    section = Section(*(FDE(0x5000 + 0x100 * n, 0x80) for n in range(5)))
    frames = section.frames(search=section.search_table(LIES[lie](section.fdes)))
    for start, at in section.fdes:
        for vaddr in (start, start + 0x7F):
            found = frames.find(vaddr)
            assert found is not None
            assert (found.start, found.offset) == (start, at)
        assert frames.find(start + 0x80) is None


def test_a_broken_fde_that_only_the_table_knows_of_is_told() -> None:
    section = Section(FDE(0x5000, 16), FDE(0x6000, 16, cie=CIE(version=9)))
    frames = section.frames(search=section.search_table())
    with pytest.raises(FormatError, match="version 9"):
        frames.find(0x6000)


def test_of_overlapping_fdes_the_one_that_starts_last_is_found() -> None:
    section = Section(FDE(0x5000, 0x100), FDE(0x5040, 0x10), FDE(0x5080, 0x20))
    for frames in (section.frames(), section.frames(search=section.search_table())):
        for vaddr, start in [
            (0x5000, 0x5000),
            (0x5045, 0x5040),
            (0x5050, 0x5000),
            (0x50FF, 0x5000),
        ]:
            found = frames.find(vaddr)
            assert found is not None
            assert found.start == start


def test_an_fde_of_no_size_covers_nothing_and_hides_nothing() -> None:
    section = Section(FDE(0x5000, 0x100), FDE(0x5000, 0), FDE(0x5040, 0))
    for frames in (section.frames(), section.frames(search=section.search_table())):
        found = frames.find(0x5000)
        assert found is not None
        assert found.end == 0x5100
        assert frames.find(0x5040) == found


@pytest.mark.parametrize("tombstone", [0, 2**64 - 1, 2**64 - 2])
def test_a_tombstone_covers_nothing(tombstone: int) -> None:
    cie = CIE(augmentation="", pointers=ABSOLUTE)
    section = Section(
        FDE(tombstone, 0x8000, PROGRAM, cie), FDE(0x5000, 16, PROGRAM, cie), kind="debug_frame"
    )
    frames = section.frames()
    assert frames.find(0x1000) is None
    assert frames.find(2**64 - 1) is None
    assert frames.find(0x5000) is not None


def test_code_at_zero_is_found_where_there_may_be_some() -> None:
    section = Section(
        FDE(0, 16, PROGRAM, CIE(augmentation="", pointers=ABSOLUTE)), kind="debug_frame"
    )
    assert section.frames().find(8) is None
    assert section.frames(code_at_zero=True).find(8) is not None


EXTENTS = st.lists(st.tuples(st.integers(0, 0x4000), st.integers(0, 0x200)), max_size=40)


@given(EXTENTS, st.sampled_from(TARGETS), st.sampled_from(["eh_frame", "debug_frame"]))
def test_each_pc_finds_its_fde_with_and_without_the_table(
    extents: list[tuple[int, int]], target: Target, kind: str
) -> None:
    cies = [CIE(), CIE(pointers=ABSOLUTE), CIE(pointers=DW_EH_PE.pcrel | DW_EH_PE.sleb128)]
    functions = [
        FDE(0x1000 + start, size, [], cies[n % 3]) for n, (start, size) in enumerate(extents)
    ]
    section = Section(*functions, kind=kind, target=target)  # type: ignore[arg-type]
    plain = section.frames()
    searched = section.frames(search=section.search_table())
    edges = {edge for fde in functions for edge in (fde.start, fde.start + fde.size)}
    for vaddr in edges | {edge - 1 for edge in edges}:
        covering = [fde for fde in functions if fde.start <= vaddr < fde.start + fde.size]
        expected = max((fde.start for fde in covering), default=None)
        for frames in (plain, searched):
            found = frames.find(vaddr)
            assert (found.start if found else None) == expected
            assert found is None or found.start <= vaddr < found.end


@given(st.data())
def test_damaged_sections_give_entries_or_format_errors(data: st.DataObject) -> None:
    byteorder: ByteOrder = data.draw(st.sampled_from(["little", "big"]))
    section = Section(
        FDE(0x5000, 16, PROGRAM, CIE(augmentation="zPLR", lsda_encoding=0x1B)),
        FDE(0x6000, 16, PROGRAM, CIE(version=4, wide=True)),
        FDE(0x7000, 16, [def_cfa(RSP, 8), offset(RIP, 1)]),
        target=Target(byteorder),
    )
    damaged = bytearray(section.data)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    frames = FrameSection(
        bytes(damaged), section.vaddr, "eh_frame", byteorder, 8, search=section.search_table()
    )
    for entry in frames.entries():
        if isinstance(entry, Fde):
            try:
                list(rows(entry))
                assert entry.lsda is None or entry.lsda >= 0
            except FormatError:
                pass
    for vaddr in (0x5000, 0x6008, 0x700F, 0x8000):
        try:
            found = frames.find(vaddr)
        except FormatError:
            continue
        assert found is None or found.start <= vaddr < found.end
