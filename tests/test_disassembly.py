"""Disassembly: the library alone gives what capstone's package does, at a fraction of its price."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tests.support import ROOT
from unwind import disassembly
from unwind.registry import architectures

CODE = "x86_64 arm64 mips32".split()


@pytest.mark.parametrize("name", CODE)
def test_the_library_alone_disassembles_as_the_package_does(name: str) -> None:
    arch = next(arch for arch in architectures() if arch.name.startswith(name))
    assert arch.code_model is not None
    model = arch.code_model()
    ours, package = disassembly._of_library(model), disassembly._of_package(model)
    assert ours is not None
    chance = random.Random(name)
    for size in (0, 1, 4, 63, 4096):
        code = chance.randbytes(size)
        assert ours(code, 0x1000) == package(code, 0x1000)
        assert bool(size >= 4) <= bool(ours(code, 0x1000))


def test_capstones_package_is_not_imported() -> None:
    code = (
        "import sys; from unwind.arch.x86_64 import ARCH; "
        "from unwind.disassembly import disassembler; "
        "print(disassembler(ARCH.code_model())(bytes([0x55, 0xC3]), 16), 'capstone' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[(16, 1, 'push', 'rbp'), (17, 1, 'ret', '')] False"
