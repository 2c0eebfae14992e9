"""The .pdr section of mips and its rows, held against the .debug_frame of the same compiler."""

from __future__ import annotations

import struct
import subprocess
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, need
from tests.test_mips32 import BOTH, Target
from unwind.arch._mips32_code import models
from unwind.disassembly import disassembler
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.elf import Elf
from unwind.image import Image
from unwind.pdr import Procedures, extent, procedures
from unwind.registers import Registers
from unwind.rules import CfaRegister, NoRow, Row
from unwind.snapshot import Place
from unwind.sources.pdr import PdrSource
from unwind.space import AddressSpace

PROGRAMS = ROOT / "tests/programs"
RA = 31


class Unreadable:
    def read(self, address: int, size: int) -> bytes:
        raise AssertionError("a shared source reads no memory")


def build(target: Target, directory: Path, name: str, *options: str) -> Image:
    need("sh")
    source = f'#include "{PROGRAMS / name}"\n'
    path = target.compile(directory, source, "-g", f"-I{PROGRAMS}", *options)
    return Image(Elf(path.read_bytes(), str(path)))


def answer(target: Target, image: Image, vaddr: int, called: bool) -> Row | NoRow:
    space = AddressSpace(target.arch, [])
    place = Place(image, None, vaddr, vaddr, space, Registers(), Unreadable(), called)
    return PdrSource(target.arch).row(place)


def instructions(target: Target, image: Image) -> Iterator[tuple[int, str, Row]]:
    """Each instruction that .debug_frame describes: vaddr, mnemonic and row."""
    disassemble = disassembler(models[target.arch.byteorder])
    for section in image.frame_sections:
        for fde in section.entries():
            if section.kind == "debug_frame" and isinstance(fde, Fde):
                described = list(rows(fde, {}))
                starts = [row.start for row in described]
                code = bytes(image.at(fde.start, fde.end - fde.start))
                for vaddr, _, mnemonic, _ in disassemble(code, fde.start):
                    yield vaddr, mnemonic, described[bisect_right(starts, vaddr) - 1]


@pytest.fixture(params=BOTH, ids=[target.arch.name for target in BOTH])
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.mark.parametrize("link", [["-pie", "-fPIC"], ["-no-pie", "-fno-pie"]], ids=["pie", "exec"])
@pytest.mark.parametrize("level", ["-O0", "-O2", "-Os"])
@pytest.mark.parametrize("name", ["chain.c", "shapes.c"])
def test_rows_are_those_of_debug_frame(
    target: Target, name: str, level: str, link: list[str], tmp_path: Path
) -> None:
    image = build(target, tmp_path, name, level, *link)
    calls = others = 0
    for vaddr, mnemonic, cfi in instructions(target, image):
        called = mnemonic in ("jal", "jalr", "bal")
        mine = answer(target, image, vaddr, called)
        if isinstance(mine, NoRow):
            assert not called, f"{vaddr:#x}: {mine.reason}"
            continue
        assert isinstance(cfi.cfa, CfaRegister)
        assert isinstance(mine.cfa, CfaRegister)
        if called and cfi.cfa != mine.cfa:
            # The delay slot of this call completes the frame; the CFI has it only behind.
            assert mine.cfa.offset > cfi.cfa.offset
            continue
        calls += called
        others += not called
        # Next to a prologue or an epilogue both sp and s8 carry the CFA, and what is saved is still
        # in its register: either may be named.
        if mine.cfa.number == cfi.cfa.number:
            assert (vaddr, mine.cfa) == (vaddr, cfi.cfa)
        assert called <= (mine.cfa == cfi.cfa), f"{vaddr:#x}"
        assert called <= (RA in cfi.rules), f"{vaddr:#x}"
        for number, rule in mine.rules.items():
            assert cfi.rules.get(number, rule) == rule, f"{vaddr:#x}"
        assert mine.start <= vaddr < mine.end
    assert calls > 20
    assert others > 100


def test_the_section_survives_strip(target: Target, tmp_path: Path) -> None:
    image = build(target, tmp_path, "chain.c")
    before = image.procedures
    assert before is not None
    path = tmp_path / "p"
    need(f"{target.name}-linux-gnu-strip")
    subprocess.run([f"{target.name}-linux-gnu-strip", str(path)], check=True)
    after = procedures(Elf(path.read_bytes()))
    assert after is not None
    assert after.starts == before.starts
    assert Image(Elf(path.read_bytes())).unwind_kinds[-1] == "pdr"


def test_entries_stand_at_the_vaddrs_of_their_functions(target: Target, tmp_path: Path) -> None:
    for options in (["-pie", "-fPIC"], ["-no-pie", "-fno-pie"], ["-static"]):
        image = build(target, tmp_path, "chain.c", *options)
        symbol = image.symbols.named("burn")
        assert symbol is not None
        assert image.procedures is not None
        assert symbol.vaddr in image.procedures.starts


def test_start_up_code_is_not_the_function_before_it(target: Target, tmp_path: Path) -> None:
    image = build(target, tmp_path, "chain.c", "-O2")
    entry = image.elf.header.entry
    found = answer(target, image, entry + 64, True)
    assert isinstance(found, NoRow)


def test_no_row_where_the_frame_is_not_made_yet(target: Target, tmp_path: Path) -> None:
    image = build(target, tmp_path, "chain.c", "-O0")
    symbol = image.symbols.named("burn")
    assert symbol is not None
    assert isinstance(answer(target, image, symbol.vaddr, False), NoRow)
    assert isinstance(answer(target, image, symbol.vaddr + 4, False), NoRow)
    assert isinstance(answer(target, image, symbol.vaddr + 48, False), Row)


@pytest.mark.parametrize("order", ["little", "big"])
def test_saved_registers_lie_below_one_another(order: str) -> None:
    words = [0x400100, 0xC003_0000, -4, 0, 0, 40, 29, 31]
    data = b"".join(
        (word & 0xFFFF_FFFF).to_bytes(4, "little" if order == "little" else "big") for word in words
    )
    found = Procedures(memoryview(data + data[:20]), order).find(0x400120)
    assert found is not None
    assert found.saved() == {31: -4, 30: -8, 17: -12, 16: -16}
    assert (found.frame_register, found.frame_size) == (29, 40)


def test_other_machines_have_none() -> None:
    import sys

    assert procedures(Elf(Path(sys.executable).read_bytes())) is None


RETURN, NOP, CALL, FRAME, BACK = 0x03E0_0008, 0, 0x0C00_0100, 0x27BD_FFE0, 0x27BD_0020
SKIP, TABLE = 0x1080_0004, 0x0040_0008  # beqz a0, over four words; jr v0


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ([FRAME, CALL, NOP, BACK, RETURN, NOP, FRAME, NOP], 6),
        ([FRAME, SKIP, NOP, RETURN, NOP, NOP, BACK, RETURN, NOP, FRAME], 9),
        ([FRAME, CALL, NOP, FRAME, CALL, NOP], 3),
        ([FRAME, CALL, NOP, 0x3C1C_0001, 0x279C_0008], 3),
        ([FRAME, SKIP, TABLE, NOP, RETURN, NOP, RETURN, NOP, FRAME], 9),
        ([NOP, CALL, NOP, FRAME, RETURN, NOP, NOP], 6),
        ([], 0),
    ],
    ids="return branch-over-a-return no-return no-return-pic table first-frame nothing".split(),
)
def test_a_function_reaches_as_far_as_its_code_leads(words: list[int], size: int) -> None:
    for byteorder, order in (("little", "<"), ("big", ">")):
        code = struct.pack(f"{order}{len(words)}I", *words)
        assert extent(memoryview(code), byteorder) == 4 * size
