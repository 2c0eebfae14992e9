"""What pyelftools' reader of CFI gets wrong, each class in one small section, and we do not.

This is why `unwind` reads CFI itself; each of these is worth reporting upstream. A pyelftools that
nobody has looked at yet may be right where this one is wrong, and no test fails for that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elftools
import pytest
from elftools.dwarf.callframe import FDE as TheirFde
from elftools.elf.elffile import ELFFile

from tests.elves import Sect, make_elf
from tests.support import need, run
from tests.test_cfi_tables import object_with
from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.constants import DW_EH_PE
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.errors import UnwindError
from unwind.image import Image
from unwind.rules import CfaRegister, Offset
from unwind.testing.assembler import (
    CIE,
    FDE,
    RBX,
    RSP,
    Section,
    Target,
    advance_loc8,
    args_size,
    def_cfa_offset,
    def_cfa_sf,
    negative_offset_extended,
    set_loc,
    window_save,
)

KNOWN = elftools.__version__ == "0.33"


def by_pyelftools(path: Path) -> list[dict[Any, Any]]:
    """The rows of the first FDE of .eh_frame."""
    with path.open("rb") as file:
        info = ELFFile(file).get_dwarf_info()
        entries = [entry for entry in info.EH_CFI_entries() if isinstance(entry, TheirFde)]
        table: list[dict[Any, Any]] = entries[0].get_decoded().table
        return table


def by_us(section: Section, **bases: Any) -> list[tuple[int, object]]:
    """Where each row of the first FDE starts, and its CFA."""
    target = section.target
    whole = FrameSection(
        section.data, section.vaddr, "eh_frame", target.byteorder, target.address_size, **bases
    )
    fde = next(entry for entry in whole.entries() if isinstance(entry, Fde))
    return [(row.start, row.cfa) for row in rows(fde)]


def one(program: Any = (), cie: CIE | None = None, target: Target | None = None) -> Section:
    return Section(FDE(0x5000, 16, program, cie or CIE()), vaddr=0, target=target or Target())


def complaint_of(read: Callable[[], object]) -> str:
    """What kind of exception reading ends with, and what it says; "" for none."""
    try:
        read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_the_offset_of_def_cfa_sf_is_not_factored(tmp_path: Path) -> None:
    section = one([def_cfa_sf(RSP, -3)])  # DWARF 5 §6.4.2.2: times the data alignment, -8
    assert by_us(section) == [(0x5000, CfaRegister(RSP, 24))]
    [row] = by_pyelftools(object_with(tmp_path, section))
    if KNOWN:
        assert (row["cfa"].reg, row["cfa"].offset) == (RSP, -3)


def test_what_sparc_saves_is_not_shown(tmp_path: Path) -> None:
    section = one([window_save()])  # 0x2d
    [row] = by_pyelftools(object_with(tmp_path, section))
    if KNOWN:
        assert {number for number in row if isinstance(number, int)} == {16}


PCREL = DW_EH_PE.pcrel | DW_EH_PE.sdata4
REFUSED = {
    "DW_CFA_GNU_args_size": (one([args_size(16)]), "ValueError"),
    "opcode 0x2c, DW_CFA_AARCH64_negate_ra_state_with_pc": (one(b"\x2c"), "ValueError"),
    "opcode 0x1d, DW_CFA_MIPS_advance_loc8": (
        one([advance_loc8(4), def_cfa_offset(16)]),
        "ValueError",
    ),
    "opcode 0x2f, DW_CFA_GNU_negative_offset_extended": (
        one([negative_offset_extended(RBX, 2)]),
        "ValueError",
    ),
    "DW_CFA_set_loc with an encoding of 4 bytes": (
        one([set_loc(0x5004), def_cfa_offset(16)]),
        "ELFParseError",
    ),
    "datarel pointers": (
        one(cie=CIE(pointers=DW_EH_PE.datarel | DW_EH_PE.sdata4), target=Target(data_base=0x100)),
        "AssertionError",
    ),
    "textrel pointers": (
        one(cie=CIE(pointers=DW_EH_PE.textrel | DW_EH_PE.sdata4), target=Target(text_base=0x100)),
        "AssertionError",
    ),
    "indirect pointers": (one(cie=CIE(pointers=DW_EH_PE.indirect | PCREL)), "AssertionError"),
    "aligned pointers": (one(cie=CIE(pointers=DW_EH_PE.aligned)), "AssertionError"),
    "the augmentation eh": (
        one(cie=CIE(augmentation="eh", pointers=DW_EH_PE.absptr)),
        "AssertionError",
    ),
    # gas writes `S` so into .debug_frame.
    **{
        f"the augmentation {letter} without z": (
            one(cie=CIE(augmentation=letter, pointers=DW_EH_PE.absptr)),
            "AssertionError",
        )
        for letter in "BGS"
    },
    "the 64-bit format in .eh_frame": (one(cie=CIE(wide=True)), "AssertionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_fails_on(name: str, tmp_path: Path) -> None:
    section, error = REFUSED[name]
    where = {"text_base": 0x100, "data_base": 0x100, "dereference": lambda _vaddr: 0x5000}
    assert by_us(section, **where)[0] == (0x5000, CfaRegister(RSP, 8))
    path = object_with(tmp_path, section)
    if KNOWN:
        assert complaint_of(lambda: by_pyelftools(path)).startswith(f"{error}: ")


@pytest.mark.parametrize("letter", "BGS")
def test_letters_of_arm64_and_of_signals_are_read(letter: str, tmp_path: Path) -> None:
    """Behind a `z`, that is."""
    section = one(cie=CIE(augmentation=f"zR{letter}"))
    assert by_us(section) == [(0x5000, CfaRegister(RSP, 8))]
    if KNOWN:
        [row] = by_pyelftools(object_with(tmp_path, section))
        assert (row["cfa"].reg, row["cfa"].offset) == (RSP, 8)


def test_corrupted_files_give_errors_of_any_type(tmp_path: Path) -> None:
    section = Section(FDE(0x5000, 16, [def_cfa_offset(16)]), FDE(0x6000, 16, b"\x0e\x10"), vaddr=0)
    whole = object_with(tmp_path, section).read_bytes()
    found = set()
    chance = random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(3):
            data[chance.randrange(64, 64 + len(section.data))] = chance.randrange(256)
        path = tmp_path / "broken.o"
        path.write_bytes(data)
        found.add(complaint_of(lambda path=path: by_pyelftools(path)).partition(":")[0])  # type: ignore[misc]
        try:
            for frames in Image(Elf(bytes(data))).frame_sections:
                for entry in frames.entries():
                    if isinstance(entry, Fde):
                        list(rows(entry))
        except UnwindError:
            pass
    if KNOWN:
        assert found - {"ELFError", "ELFParseError", "DWARFError"} >= {"AssertionError", "KeyError"}


def test_sections_packed_by_zstd_are_not_read(tmp_path: Path) -> None:
    need("objcopy")
    debug = Section(
        FDE(0x5000, 16, [def_cfa_offset(16)], CIE(pointers=DW_EH_PE.absptr, augmentation="")),
        vaddr=0,
        kind="debug_frame",
    )
    path = tmp_path / "packed"
    sections = [Sect(".debug_frame", data=bytes(debug.data) * 100)]
    path.write_bytes(make_elf(sections=sections))
    done = run("objcopy", "--compress-debug-sections=zstd", path)
    assert done.returncode == 0, done.stderr
    [frames] = Image(Elf(path.read_bytes(), str(path))).frame_sections
    fde = next(entry for entry in frames.entries() if isinstance(entry, Fde))
    assert [row.rules[16] for row in rows(fde)] == [Offset(-8)]
    if KNOWN:
        with path.open("rb") as file:
            assert "ompress" in complaint_of(ELFFile(file).get_dwarf_info)
