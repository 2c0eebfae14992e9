"""The layouts of CFI tables: readelf's to the blank, and the lines of JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import need, run
from tests.test_expression import CASES
from unwind.arch.x86_64 import ARCH
from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.constants import DW_CFA, DW_EH_PE
from unwind.dwarf.rows import rows
from unwind.elf import EM
from unwind.errors import FormatError
from unwind.testing.assembler import (
    CIE,
    FDE,
    R12,
    RBP,
    RBX,
    RIP,
    RSP,
    TERMINATOR,
    Section,
    Target,
    advance_loc,
    advance_loc1,
    advance_loc2,
    advance_loc4,
    advance_loc8,
    args_size,
    breg,
    code,
    def_cfa,
    def_cfa_expression,
    def_cfa_offset,
    def_cfa_offset_sf,
    def_cfa_register,
    def_cfa_sf,
    expression,
    in_register,
    negate_ra_state,
    negative_offset_extended,
    nop,
    offset,
    offset_extended,
    offset_extended_sf,
    remember_state,
    restore,
    restore_extended,
    restore_state,
    rows_of,
    same_value,
    set_loc,
    undefined,
    val_expression,
    val_offset,
    val_offset_sf,
)
from unwind.writers.cfi_tables import Tables, json_row

CODE = code(breg(RSP, 16))

# Every instruction that readelf 2.40 can interpret on x86_64.
PROGRAM = [
    *(offset(RBX, 3), offset_extended(R12, 4), advance_loc(1), val_offset(RBP, 2)),
    *(def_cfa(RBP, 24), advance_loc1(2), def_cfa_register(RSP), def_cfa_offset(32)),
    *(remember_state(), advance_loc2(3), def_cfa_sf(RBP, -2), def_cfa_offset_sf(-3)),
    *(undefined(RIP), same_value(RBX), in_register(R12, RBP), advance_loc4(4)),
    *(restore_state(), offset_extended_sf(RBX, -5), val_offset_sf(R12, -6), advance_loc8(5)),
    *(expression(RBX, CODE), val_expression(R12, CODE), def_cfa_expression(CODE)),
    *(set_loc(0x5020), restore(RBX), restore_extended(R12), restore(RIP), args_size(16)),
    *(def_cfa(RSP, 8), negative_offset_extended(RBP, 2), nop(), advance_loc(0)),
    *(offset(60, 1), offset_extended(100, 1), advance_loc(63), nop()),
]


def tables(**options: Any) -> Tables:
    return Tables(ARCH.names, ARCH.vendor_opcodes, **options)


def object_with(tmp_path: Path, section: Section, machine: int = EM.X86_64) -> Path:
    """A relocatable file that holds nothing but this section, at vaddr 0."""
    target = section.target
    order = "<" if target.byteorder == "little" else ">"
    wide = target.address_size == 8
    word = "Q" if wide else "I"
    name = f".{section.kind}".encode()
    names = b"\0.shstrtab\0" + name + b"\0"
    header = struct.Struct(f"{order}4sBBB9xHHI{word}{word}{word}IHHHHHH")
    entry = struct.Struct(f"{order}II{word}{word}{word}{word}II{word}{word}")
    contents = header.size
    strings = contents + len(section.data)
    table = strings + len(names)
    ident = (b"\x7fELF", 2 if wide else 1, 1 if order == "<" else 2, 1)
    made = header.pack(*ident, 1, machine, 1, 0, 0, table, 0, header.size, 0, 0, entry.size, 3, 2)
    made += bytes(section.data) + names + bytes(entry.size)
    made += entry.pack(11, 1, 2, 0, contents, len(section.data), 0, 0, 8, 0)
    made += entry.pack(1, 3, 0, 0, strings, len(names), 0, 0, 1, 0)
    path = tmp_path / "object.o"
    path.write_bytes(made)
    return path


def readelf(path: Path, layout: str) -> str:
    need("readelf")
    done = run("readelf", "--debug-dump=no-follow-links", f"--debug-dump={layout}", path)
    assert done.stderr == ""
    return done.stdout


def written(section: Section, *, raw: bool, names: bool = True) -> str:
    complaints: list[FormatError] = []
    writer = Tables(ARCH.names if names else {}, complain=complaints.append)
    text = "".join(writer.section(section.frames(), raw=raw))
    assert complaints == []
    return text


LAYOUTS = [("frames-interp", False), ("frames", True)]


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
@pytest.mark.parametrize("kind", ["eh_frame", "debug_frame"])
def test_every_instruction_reads_as_readelf_has_it(
    layout: str, raw: bool, kind: Any, tmp_path: Path
) -> None:
    named = {number for number in vars(DW_CFA).values() if isinstance(number, int)}
    elsewhere = {DW_CFA.AARCH64_negate_ra_state_with_pc, DW_CFA.GNU_window_save}
    assert {instruction.opcode for instruction in PROGRAM} == named - elsewhere
    cie = CIE(augmentation="", pointers=DW_EH_PE.absptr)
    # readelf takes a program of nops alone for one without rows.
    section = Section(
        *(FDE(0x5000, 0x100, PROGRAM, cie), FDE(0x6000, 0x100, [nop()], cie), FDE(0, 0, [], cie)),
        kind=kind,
        vaddr=0,
    )
    assert written(section, raw=raw) == readelf(object_with(tmp_path, section), layout)


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
def test_every_operation_reads_as_readelf_has_it(layout: str, raw: bool, tmp_path: Path) -> None:
    programs = [[def_cfa_expression(code(*operations))] for _, operations, _ in CASES]
    section = Section(*(FDE(0x5000, 1, program) for program in programs), vaddr=0)
    assert written(section, raw=raw) == readelf(object_with(tmp_path, section), layout)


CIES: dict[str, Callable[[], CIE]] = {
    "zPLR": lambda: CIE(augmentation="zPLR", lsda_encoding=0x1B, personality_encoding=0x9B),
    "zRS": lambda: CIE(augmentation="zRS"),
    "version 3": lambda: CIE(version=3, return_address=40),
    "version 4": lambda: CIE(version=4),
    "factors": lambda: CIE(code_align=4, data_align=-4),
    "nothing": lambda: CIE(augmentation="", program=[], pointers=DW_EH_PE.absptr),
    "as in MIPS": lambda: CIE(program=[def_cfa_register(29)]),
}


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
@pytest.mark.parametrize("name", CIES)
def test_cies_read_as_readelf_has_them(name: str, layout: str, raw: bool, tmp_path: Path) -> None:
    program = [advance_loc(1), offset(RBX, 2)]
    if name != "nothing":
        program.append(def_cfa(RSP, 16))
    section = Section(FDE(0x5000, 0x100, program, CIES[name](), lsda=0x7000), vaddr=0)
    path = object_with(tmp_path, section)
    if name == "nothing" and not raw:
        # readelf makes it rax+0: a CFA that no instruction ever defined.
        expected = readelf(path, layout).replace("rax+0    ", "u        ")
    else:
        expected = readelf(path, layout)
    assert written(section, raw=raw) == expected


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
@pytest.mark.parametrize("target", [Target("big", 4), Target("little", 4), Target("big", 8)])
def test_other_machines_read_as_readelf_has_them(
    target: Target, layout: str, raw: bool, tmp_path: Path
) -> None:
    section = Section(FDE(0x5000, 0x100, PROGRAM[:8]), target=target, vaddr=0)
    path = object_with(tmp_path, section, EM.MIPS)
    assert written(section, raw=raw, names=False) == readelf(path, layout)


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
def test_64_bit_dwarf_reads_as_readelf_has_it(layout: str, raw: bool, tmp_path: Path) -> None:
    cie = CIE(augmentation="", pointers=DW_EH_PE.absptr, wide=True)
    section = Section(FDE(0x5000, 0x100, PROGRAM, cie), kind="debug_frame", vaddr=0)
    assert written(section, raw=raw) == readelf(object_with(tmp_path, section), layout)


@pytest.mark.parametrize(("layout", "raw"), LAYOUTS)
@pytest.mark.parametrize("terminators", [TERMINATOR, TERMINATOR * 3])
def test_a_terminator_reads_as_readelf_has_it(
    terminators: bytes, layout: str, raw: bool, tmp_path: Path
) -> None:
    section = Section(FDE(0x5000, 16), terminators, FDE(0x6000, 16), terminators, vaddr=0)
    assert written(section, raw=raw) == readelf(object_with(tmp_path, section), layout)


def test_what_is_broken_is_left_out_and_complained_of() -> None:
    section = Section(FDE(0x5000, 16, [advance_loc(4), restore_state()]))
    section.add(CIE(version=9))
    section.add(FDE(0x6000, 16, [def_cfa_offset(16)]))
    for raw in (False, True):
        complaints: list[FormatError] = []
        writer = tables(complain=complaints.append)
        text = "".join(writer.section(section.frames(), raw=raw))
        assert [error.offset for error in complaints] == section.offsets[1 + raw : 3]
        assert "pc=0000000000006000" in text
    # The row before the bad instruction is there.
    assert "0000000000005000 rsp+8    c-8" in "".join(tables().section(section.frames()))


def test_an_unknown_instruction_ends_the_lines_of_its_entry() -> None:
    section = Section(FDE(0x5000, 16, [offset(RBX, 2), advance_loc(4)]))
    data = section.data.replace(b"\x83\x02\x44\x00", b"\x83\x02\x3f\x00")
    frames = FrameSection(bytes(data), section.vaddr, "eh_frame", "little", 8)
    complaints: list[FormatError] = []
    text = "".join(tables(complain=complaints.append).section(frames, raw=True))
    assert text.rstrip().endswith("\n  DW_CFA_offset: r3 (rbx) at cfa-16")
    assert "DW_CFA_0x3f" in str(complaints[0])


# JSON.


def rules_of(*program: Any, **options: Any) -> dict[str, Any]:
    (row,) = rows_of(*program, **options)
    found: dict[str, Any] = json.loads(json_row(row, tables().name))
    return found


def test_a_row_of_json() -> None:
    section = Section(FDE(0x5000, 0x20, [def_cfa_offset(16), offset(RBX, 2)]))
    fde = section.frames().fde_at(section.offsets[-1])
    assert "".join(tables().json(fde)) == (
        '{"section":"eh_frame","fde":24,"cie":0,"start":"0x5000","end":"0x5020","signal":false,'
        '"cfa":"rsp+16","rules":{"rip":"c-8","rbx":"c-16"}}\n'
    )


@pytest.mark.parametrize(
    ("instruction", "text"),
    [
        (undefined(RBX), "u"),
        (same_value(RBX), "s"),
        (offset(RBX, 2), "c-16"),
        (offset_extended_sf(RBX, 0), "c+0"),
        (val_offset_sf(RBX, -1), "v+8"),
        (in_register(RBX, R12), "r:r12"),
        (in_register(RBX, 200), "r:r200"),
        (expression(RBX, CODE), "exp:7710"),
        (val_expression(RBX, CODE), "vexp:7710"),
    ],
)
def test_rules_of_json(instruction: Any, text: str) -> None:
    assert rules_of(instruction)["rules"] == {"rip": "c-8", "rbx": text}


def test_cfas_of_json() -> None:
    assert rules_of()["cfa"] == "rsp+8"
    assert rules_of(def_cfa_sf(RBP, 1))["cfa"] == "rbp-8"
    assert rules_of(def_cfa_expression(CODE))["cfa"] == "exp:7710"
    assert rules_of(program=[])["cfa"] is None


def test_flags_of_json() -> None:
    assert rules_of(augmentation="zRS")["signal"] is True
    assert "ra_signed" not in rules_of()
    signed = {DW_CFA.GNU_window_save: "AARCH64_negate_ra_state"}
    assert rules_of(negate_ra_state(), vendor_opcodes=signed)["ra_signed"] is True


def test_json_has_no_rows_that_cover_nothing() -> None:
    program = [advance_loc(0), advance_loc(50), advance_loc(60)]
    section = Section(FDE(0x5000, 0x40, program))
    (fde,) = (entry for entry in section.frames().entries() if isinstance(entry, Fde))
    lines = [json.loads(line) for line in tables().json(fde)]
    assert [(line["start"], line["end"]) for line in lines] == [
        ("0x5000", "0x5032"),
        ("0x5032", "0x5040"),
    ]
    assert len(list(rows(fde))) == 2
