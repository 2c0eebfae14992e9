"""The jumps into a stretch of code, found by a part of their distances: the same as among all."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unwind.arch.arm64 import ARCH as ARM64
from unwind.arch.mips32 import MIPS32, MIPS32EL
from unwind.arch.x86_64 import ARCH as X86_64
from unwind.architecture import Architecture
from unwind.machine import CodeModel

ARCHITECTURES = {"x86_64": X86_64, "arm64": ARM64, "mipsel": MIPS32EL, "mips": MIPS32}
VADDR = 0x40_0000


def model_of(arch: Architecture) -> CodeModel:
    assert arch.code_model is not None
    return arch.code_model()


def jumps_of(name: str, at: int, to: int) -> Iterator[bytes]:
    """The direct jumps of a processor from one vaddr to another, those that reach so far."""
    words: list[int] = []
    if name == "x86_64":
        for opcode in (b"\xe9", b"\x0f\x80", b"\x0f\x8f"):
            yield opcode + (to - at - len(opcode) - 4).to_bytes(4, "little", signed=True)
        return
    if name == "arm64":
        far = (to - at) // 4
        words.append(0x1400_0000 | far & 0x3FF_FFFF)
        if -(1 << 18) <= far < 1 << 18:
            kinds = (0x34, 0x35, 0x54, 0xB4, 0xB5)
            words += [kind << 24 | (far & 0x7FFFF) << 5 | 3 for kind in kinds]
        if -(1 << 13) <= far < 1 << 13:
            words += [kind << 24 | (far & 0x3FFF) << 5 | 3 for kind in (0x36, 0x37, 0xB6, 0xB7)]
    else:
        words.append(2 << 26 | to >> 2 & 0x3FF_FFFF)
        far = (to - at - 4) // 4
        if -(1 << 15) <= far < 1 << 15:
            words += [
                kind << 26 | 3 << 16 | far & 0xFFFF for kind in (1, 4, 5, 6, 7, 20, 21, 22, 23)
            ]
    for word in words:
        yield word.to_bytes(4, "big" if name == "mips" else "little")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [1 << 12, 1 << 18, 3 << 20])
def test_each_kind_of_jump_is_found_from_anywhere(name: str, size: int) -> None:
    """Jumps of all kinds, as far as each reaches, among bytes that are anything."""
    chance = random.Random(size)
    code = bytearray(chance.randbytes(size))
    start = VADDR + chance.randrange(0, size, 4)
    end = start + 64
    made = 0
    for at in range(16, size - 16, max(64, size // 4096) & -4):
        kinds = list(jumps_of(name, VADDR + at, start + 4 * chance.randrange(16)))
        jump = chance.choice(kinds)
        code[at : at + len(jump)] = jump
        made += 1
    model, view = model_of(ARCHITECTURES[name]), memoryview(code)
    found = list(model.jumps_into(view, VADDR, start, end))
    assert len(found) == len(set(found))
    assert len(found) >= made
    assert sorted(found) == [at for to, at in model.jumps(view, VADDR) if start <= to < end]


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(data=st.data())
def test_any_code_and_any_stretch(name: str, data: st.DataObject) -> None:
    few = st.sampled_from([*b"\xe9\x0f\x84\x14\x17\x54\x34\x36\x08\x10\x04\xff\x00\x01\x02\x80"])
    code = bytes(data.draw(st.lists(few, max_size=200)))
    vaddr = 4 * data.draw(st.integers(0, 1 << 20))
    start = vaddr + 4 * data.draw(st.integers(-100, 150))
    end = start + 4 * data.draw(st.integers(0, 60))
    model, view = model_of(ARCHITECTURES[name]), memoryview(code)
    found = list(model.jumps_into(view, vaddr, start, end))
    assert sorted(found) == [at for to, at in model.jumps(view, vaddr) if start <= to < end]
