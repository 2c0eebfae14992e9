"""Return addresses that the kernel hides: those of functions with uretprobes, of whomever."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.crashes import compile_c
from tests.events import PATIENCE, caught, need_bpf
from tests.support import cannot, need
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.unwinder import Unwinder

CALLED = ["inner", "middle", "middle", "outer", "main"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    need_bpf()
    need("gcc")
    made = tmp_path / "program"
    flags = ("-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-inline")
    compile_c("gcc", flags, ("returns.c",), made)
    return made


@pytest.mark.parametrize("hooked", [("outer",), ("middle",), ("inner", "middle", "outer")], ids=str)
def test_the_true_return_address_is_put_back(program: Path, hooked: tuple[str, ...]) -> None:
    """Of functions that are entered by recursion, too, and of the innermost one."""
    if os.uname().machine != "x86_64":
        cannot("only there it is known where a return address lies")
    names, stacks = Names(TableSymbolizer()), []
    with subprocess.Popen([program]) as process:
        try:
            with caught(f"{program}:inner", pid=process.pid) as source:
                maps = Path(f"/proc/{process.pid}/maps")
                unwinder = Unwinder(source.arch)
                probe = source._object.programs["on_uprobe"]
                links = [
                    probe.attach_uprobe(str(program), name, 0, process.pid, 7, returning=True)
                    for name in hooked
                ]
                for event in source.events(PATIENCE):
                    if "[uprobes]" not in maps.read_text() or event.cookie == 7:
                        continue
                    stack = unwinder.unwind(source.snapshot(event))
                    stacks.append(
                        (
                            [names.name(f.module, f.pc, f.lookup_pc) for f in stack.frames],
                            stack.end,
                            stack.detail,
                        )
                    )
                    if len(stacks) == 30:
                        break
                for link in links:
                    link.close()
        finally:
            process.kill()
    assert len(stacks) == 30
    for found, end, detail in stacks[5:]:  # calls of before the uretprobes are over
        functions = [name.function for name in found]
        assert functions[:5] == CALLED, (functions, detail)
        assert end == "outermost"


def test_where_a_function_returns_its_caller_is_innermost(program: Path) -> None:
    names, stacks = Names(TableSymbolizer()), []
    with subprocess.Popen([program]) as process:
        try:
            with caught(f"ret:{program}:middle", pid=process.pid, cookie=5) as source:
                unwinder = Unwinder(source.arch)
                for event in source.events(PATIENCE):
                    assert event.cookie == 5
                    stack = unwinder.unwind(source.snapshot(event))
                    assert stack.end == "outermost", stack.detail
                    found = [names.name(f.module, f.pc, f.lookup_pc) for f in stack.frames]
                    stacks.append([name.function for name in found])
                    if len(stacks) == 20:
                        break
        finally:
            process.kill()
    inner, outer = stacks[10:12] if stacks[10][0] == "middle" else stacks[11:13]
    assert inner[:3] == ["middle", "outer", "main"]
    assert outer[:2] == ["outer", "main"]
