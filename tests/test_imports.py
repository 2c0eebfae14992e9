"""What a command loads at start-up: each module here costs every run of every command time.

Measured with CPython 3.11 on a slow core: typing 5 ms, dataclasses with its classes 22, pathlib 5,
argparse (with re and enum) 5, shutil (with bz2 and lzma) 4, collections (array loads it) 0.5,
importlib.metadata 20, pyelftools 25, capstone 40, numpy 70.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import python
from tests.test_layers import checked
from tools.make_docs import commands

HEAVY = set(
    "argparse asyncio bz2 capstone concurrent ctypes dataclasses decimal difflib elftools enum"
    " fractions hashlib importlib.metadata importlib.resources inspect json logging lzma"
    " multiprocessing numpy pathlib pickle random re shutil socket subprocess tempfile textwrap"
    " tokenize typing unittest urllib xml zipfile zstandard".split()
)
# Less heavy: for modules that not every run of a command loads.
HALF_A_MILLISECOND = {"array", "collections", "functools", "operator"}
HINT = "load it in the function that needs it"

LOADED = """
import sys
before = set(sys.modules)
{code}
print(*set(sys.modules) - before, file=sys.stderr)
"""


def loaded(code: str, *arguments: str, unwanted: set[str] = HEAVY | HALF_A_MILLISECOND) -> set[str]:
    """The heavy modules that are loaded once `code` has run in a bare interpreter."""
    done = python("-S", "-c", LOADED.format(code=code), *arguments)
    assert done.returncode == 0, done.stderr
    names = done.stderr.split("\n")[-2].split()
    return {name for name in names if not {name, name.partition(".")[0]}.isdisjoint(unwanted)}


RUN = """
import io
from {module} import main
sys.stdout = io.StringIO()
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
assert not code
"""


@pytest.mark.parametrize("name", commands())
def test_a_command_starts_with_what_it_runs(name: str) -> None:
    assert loaded(RUN.format(module=commands()[name]), "--version") == set(), HINT


def test_a_core_is_unwound_with_what_that_takes(example: Path) -> None:
    code = RUN.format(module="unwind.cli.core")
    assert loaded(code, "--sysroot", str(example), str(example / "core")) == set(), HINT


def test_a_row_is_looked_up_with_what_that_takes(example: Path) -> None:
    code = RUN.format(module="unwind.cli.cfi")
    program = example / "tmp/unwind-demo/crash"
    assert loaded(code, "--address", "0x126a", str(program)) == set(), HINT


def test_a_process_is_unwound_with_what_that_takes() -> None:
    code = RUN.format(module="unwind.cli.live")
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        try:
            found = loaded(code, str(sleeper.pid))
        finally:
            sleeper.kill()
    assert {name.partition(".")[0] for name in found} == {"ctypes"}, HINT  # ptrace(2) is C


def test_modules_of_the_library_load_nothing_heavy() -> None:
    modules = [name for name in checked() if not name.startswith("testing")]
    code = "import importlib\nfor name in sys.argv[1:]: importlib.import_module('unwind.' + name)"
    assert loaded(code, *modules, unwanted=HEAVY) == set(), HINT


def test_the_root_loads_nothing_until_a_name_is_asked_for() -> None:
    code = "import unwind; print(*[name for name in sys.modules if name.startswith('unwind.')])"
    assert python("-S", "-c", "import sys; " + code).stdout.split() == []
