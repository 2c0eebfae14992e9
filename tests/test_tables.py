"""The other readers of `make oracle-tables`: what they print becomes words that can be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cfi_tables import object_with
from tools import tables
from unwind.elf import EM, Elf
from unwind.image import Image
from unwind.rules import CfaRegister, Offset, Row
from unwind.testing.assembler import (
    FDE,
    RBP,
    RBX,
    Section,
    advance_loc,
    breg,
    code,
    def_cfa_expression,
    def_cfa_offset,
    expression,
    in_register,
    offset,
    same_value,
    undefined,
    val_offset,
)

PROGRAM = [
    def_cfa_offset(16),
    offset(RBX, 2),
    undefined(12),
    advance_loc(4),
    same_value(12),
    in_register(13, RBX),
    val_offset(14, 3),
    advance_loc(4),
    def_cfa_expression(code(breg(RBP, 8))),
    expression(15, code(breg(RBP, -8))),
]
# As llvm-dwarfdump 19.1.7 prints it.
PRINTED = {
    0x5000: "CFA=RSP+16: RBX=[CFA-16], R12=undefined, RIP=[CFA-8]",
    0x5004: "CFA=RSP+16: RBX=[CFA-16], R12=same, R13=RBX, R14=CFA-24, RIP=[CFA-8]",
    0x5008: "CFA=DW_OP_breg6 RBP+8: RBX=[CFA-16], R12=same, R13=RBX, R14=CFA-24, "
    "R15=[DW_OP_breg6 RBP-8], RIP=[CFA-8]",
}


def test_rows_and_what_llvm_prints_come_to_the_same_words(tmp_path: Path) -> None:
    path = object_with(tmp_path, Section(FDE(0x5000, 16, PROGRAM), vaddr=0))
    elf = Elf(path.read_bytes(), str(path))
    [section] = Image(elf).frame_sections
    [(_, rows)] = tables._ours(elf, section).values()
    ours = [tables._words(row, 8, "little") for row in rows]
    theirs = [(at, *tables._parsed(said, tables.NAMES[EM.X86_64])) for at, said in PRINTED.items()]
    assert ours == theirs


@pytest.mark.parametrize("machine", tables.NAMES)
def test_each_machine_has_names_for_what_its_rows_name(machine: int) -> None:
    numbers = set(tables.NAMES[machine].values())
    assert set(range(17)) <= numbers


def test_the_model_sees_a_difference(tmp_path: Path) -> None:
    path = object_with(tmp_path, Section(FDE(0x5000, 16, PROGRAM), vaddr=0))
    elf = Elf(path.read_bytes(), str(path))
    image = Image(elf)
    [section] = image.frame_sections
    ours = tables._ours(elf, section)
    found = tables.Comparison()
    tables._against_model(str(path), elf, image, ours, found)
    assert (found.rows["model"], found.differing["model"]) == (3, 0)
    [(key, (fde, rows))] = ours.items()
    row = rows[1]
    wrong = Row(row.start, row.end, CfaRegister(7, 24), row.rules, row.return_address, row.origin)
    assert row.rules[RBX] == Offset(-16)
    for bad in ([rows[0], wrong, rows[2]], rows[:2]):
        found = tables.Comparison()
        tables._against_model(str(path), elf, image, {key: (fde, bad)}, found)
        assert found.differing["model"] == 1
    found = tables.Comparison()
    tables._against_model(str(path), elf, image, {**ours, ("eh_frame", 0x999): (fde, [])}, found)
    assert found.shown == [f"{path}: .eh_frame 0x999: the model has no such FDE"]
