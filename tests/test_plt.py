"""Stubs of procedure linkage tables: named as objdump names them, or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.elves import build, elf_files, mapped
from tests.support import need, run
from unwind.elf import Elf
from unwind.image import Image
from unwind.symbols.plt import plt_symbol
from unwind.symbols.table import TableSymbolizer


def check(path: Path) -> int:
    """How many stubs of `path` have objdump's name; none may have another."""
    need("objdump")
    elf, named = mapped(path), 0
    for table in (".plt", ".plt.sec"):
        if elf.section(table) is None:
            continue
        printed = run("objdump", "-d", "-j", table, path).stdout
        for start, name in re.findall(r"^([0-9a-f]+) <(.*)@plt>:$", printed, re.MULTILINE):
            found = plt_symbol(elf, int(start, 16) + 1)
            if found is not None:
                expected = (name.partition("@")[0] + "@plt", int(start, 16))
                assert (found.name, found.vaddr) == expected
                named += 1
    return named


@pytest.mark.parametrize(
    "options",
    [
        ("-fcf-protection=none",),
        ("-fcf-protection=full",),
        ("-fcf-protection=full", "-Wl,-z,now"),
        ("-shared", "-fPIC", "-Wl,-z,lazy"),
        ("-no-pie", "-Wl,-z,ibtplt"),
    ],
)
def test_stubs_have_the_names_that_objdump_prints(options: tuple[str, ...], tmp_path: Path) -> None:
    assert check(build(tmp_path, *options)) >= 1


def test_no_stub_of_this_machine_is_misnamed() -> None:
    assert sum(check(path) for path in elf_files(25)) > 100


def test_a_stub_is_named_where_no_symbol_is(tmp_path: Path) -> None:
    image = Image(mapped(build(tmp_path)))
    section = image.elf.section(".plt")
    assert section is not None
    names = TableSymbolizer()
    found = names.symbol(image, section.vaddr + section.entry_size)
    assert found is not None
    assert found.name.endswith("@plt")
    assert names.symbol(image, section.vaddr) is None  # the stub that the others jump to
    main = image.symbols.named("main")
    assert main is not None
    assert names.symbol(image, main.vaddr + 1) == main


def test_stubs_without_their_relocations_have_no_name(tmp_path: Path) -> None:
    need("objcopy")
    path = build(tmp_path)
    data = path.read_bytes()
    section = mapped(path).section(".plt")
    assert section is not None
    vaddr = section.vaddr + section.entry_size
    assert plt_symbol(Elf(data), vaddr) is not None
    assert plt_symbol(Elf(data.replace(b".rela.plt\0", b".rela.pl_\0")), vaddr) is None
    shoff = int.from_bytes(data[40:48], "little")
    for field, value in ((32, 1 << 40), (32, 0), (40, 999), (56, 0)):
        for name in (".plt", ".rela.plt"):
            changed = mapped(path).section(name)
            assert changed is not None
            flawed = bytearray(data)
            at = shoff + 64 * changed.index + field
            flawed[at : at + (8 if field != 40 else 4)] = value.to_bytes(
                8 if field != 40 else 4, "little"
            )
            found = plt_symbol(Elf(flawed), vaddr)
            assert found is None or found.name.endswith("@plt")
