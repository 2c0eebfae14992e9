"""The plain evaluator and the engine agree on every row of real libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.elves import mapped
from tests.support import cannot
from unwind.dwarf.cfi import Fde
from unwind.dwarf.rows import rows
from unwind.image import Image
from unwind.registry import architecture
from unwind.testing import model

LIBRARIES = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/aarch64-linux-gnu/lib/libc.so.6",
    "/usr/mipsel-linux-gnu/lib/libc.so.6",
    "/usr/mips-linux-gnu/lib/libc.so.6",
]


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_row_of_a_library_is_that_of_the_plain_evaluator(name: str) -> None:
    if not Path(name).exists():
        cannot(f"there is no {name}")
    image = Image(mapped(Path(name)))
    arch = architecture(image.elf)
    compared = 0
    for section in image.frame_sections:
        encoding = section.encoding
        entries = model.read(
            *(bytes(section.data), section.vaddr, section.kind),
            *(encoding.byteorder, encoding.address_size),
            text_base=encoding.text_base or 0,
            data_base=encoding.data_base or 0,
            word_at=encoding.dereference,
        )
        plain = {entry.offset: entry for entry in entries if isinstance(entry, model.Fde)}
        ours = {entry.offset: entry for entry in section.entries() if isinstance(entry, Fde)}
        assert ours.keys() == plain.keys()
        for offset, fde in ours.items():
            expected = model.rows(plain[offset], aarch64=arch.name == "arm64")
            assert list(rows(fde, arch.vendor_opcodes)) == expected
            compared += len(expected)
    assert compared > 1000
