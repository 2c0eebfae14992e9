"""Who may import whom: ARCHITECTURE.md's table, held to what the source files say."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import pytest

from tests.support import ROOT, git_files


def layers() -> list[list[str]]:
    """The table of ARCHITECTURE.md: each line imports only from lines above it."""
    chapter = (ROOT / "ARCHITECTURE.md").read_text().partition("## Who may import whom")[2]
    table = [line.split() for line in chapter.splitlines() if line.startswith("    ")]
    assert len(table) > 10, "ARCHITECTURE.md has no table of layers"
    return table


# A module that is in no line fails the tests.
LAYERS = layers()

# Nobody imports a neighbour of the same line, but these packages have an order of their own.
ORDERED = {
    "arch",
    "bpf",
    "debuginfod",
    "dwarf",
    "events",
    "leaks",
    "lines",
    "live",
    "perf",
    "remote",
    "sources",
    "symbols",
    "writers",
    "cli",
    "testing",
}

# Found by listing their package (registry.py): a name written down elsewhere would be one more
# place to edit for a new architecture.
PLUGINS = {"arch", "transports"}
MAY_NAME_PLUGINS = {"cli", "testing"}

# What is for tests stays out of the library; one command makes and checks a corpus.
MAY_IMPORT_TESTING = {"cli.corpus"}

# The plain evaluator shares no code with the engine that it judges.
MODEL_IMPORTS = {"rules", "registers", "dwarf.constants"}


class Import(NamedTuple):
    """One imported module, by its full name, and where."""

    module: str
    line: int
    checked_only: bool  # under `if TYPE_CHECKING`
    relative: bool = False


@functools.cache
def modules() -> dict[str, str]:
    """The path of each module of ours by its name below `unwind`; packages by `name.__init__`."""
    paths = git_files("unwind/*.py", *(f"{top}/*.py" for top in ("arch", "bpf", "transports")))
    return {
        path.removeprefix("unwind/").removesuffix(".py").replace("/", "."): path for path in paths
    }


def imports(source: str) -> Iterator[Import]:
    """Every import of `source` in any function or branch; `from a import b` gives a.b."""
    tree = ast.parse(source)
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node in guarded)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module or ''}.{alias.name}"
                yield Import(name, node.lineno, node in guarded, relative=node.level > 0)


def layer(module: str) -> int | None:
    """The line of the table that `module` stands in, counted from 0."""
    found = [n for n, line in enumerate(LAYERS) if any(fnmatchcase(module, name) for name in line)]
    return found[0] if found else None


def ours(name: str) -> str | None:
    """The module that the import of `name` loads, as the table has it, or None of other people's.

    What is no module is a name in one: `unwind.elf.Elf` loads `elf`, `unwind.Frame` the root.
    """
    top, _, rest = name.partition(".")
    if top != "unwind":
        return None
    while rest and rest not in modules() and f"{rest}.__init__" not in modules():
        rest = rest.rpartition(".")[0]
    return rest if rest in modules() else f"{rest}.__init__".lstrip(".")


def objection(importer: str, wanted: Import) -> str | None:
    """Why `importer` may not import what is `wanted`, or None when it may."""
    top = wanted.module.partition(".")[0]
    if wanted.relative:
        return "imports are absolute"
    if top in {"arch", "bpf", "transports"}:
        return f"a second copy of unwind.{top}: its classes are unequal to the first one's"
    target = ours(wanted.module)
    if target is None:
        return None
    if target == "protocols":
        return None if wanted.checked_only else "protocols are for type checkers: TYPE_CHECKING"
    if target == "__init__" and wanted.module.count(".") > 1:
        return "no such module"
    if target == "__init__":
        return "names come from the module that defines them, not from the root"
    if importer == "testing.model":
        return None if target in MODEL_IMPORTS else "the plain evaluator shares no code"
    package, target_package = importer.partition(".")[0], target.partition(".")[0]
    if target_package == "testing" and package != "testing" and importer not in MAY_IMPORT_TESTING:
        return "for tests only"
    if target_package in PLUGINS - {package} and package not in MAY_NAME_PLUGINS:
        return "plug-ins are found by the registry"
    mine, its = layer(importer), layer(target)
    if mine is None or its is None:
        return "in no layer"
    if its < mine or (its == mine and package == target_package and package in ORDERED):
        return None
    return "a neighbour" if its == mine else "in a layer below"


def checked() -> list[str]:
    """The modules with a place in the table: all but the root, packages' heads and protocols."""
    return [name for name in modules() if name != "protocols" and not name.endswith("__init__")]


@pytest.mark.parametrize("name", checked())
def test_every_module_stands_in_one_layer(name: str) -> None:
    lines = [line for line in LAYERS if any(fnmatchcase(name, pattern) for pattern in line)]
    assert len(lines) == 1, "add the new module to the table here and in ARCHITECTURE.md"


@pytest.mark.parametrize("name", checked())
def test_imports_only_from_layers_above(name: str) -> None:
    source = (ROOT / modules()[name]).read_text()
    wrong = [(wanted, objection(name, wanted)) for wanted in imports(source)]
    assert [f"{w.module}, line {w.line}: {why}" for w, why in wrong if why] == []


@pytest.mark.parametrize("name", [name for name in modules() if name.endswith(".__init__")])
def test_a_packages_head_loads_nothing_of_ours(name: str) -> None:
    found = imports((ROOT / modules()[name]).read_text())
    loaded = [wanted.module for wanted in found if ours(wanted.module) and not wanted.checked_only]
    assert loaded == [] or name == "testing.__init__", "it would load with each of its modules"


def test_packages_with_an_order_of_their_own_have_one() -> None:
    graph = {
        name: {ours(wanted.module) or "" for wanted in imports((ROOT / path).read_text())}
        for name, path in modules().items()
        if name.partition(".")[0] in ORDERED
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("importer", "source", "why"),
    [
        ("elf", "from unwind.errors import FormatError", None),
        ("elf", "import struct, mmap", None),
        ("elf", "from unwind.rules import Offset\nimport unwind.step", "in a layer below"),
        ("elf", "if TYPE_CHECKING:\n    from unwind.step import apply", "in a layer below"),
        ("elf", "def f():\n    from unwind import unwinder", "in a layer below"),
        ("elf", "from unwind.architecture import Architecture", "a neighbour"),
        ("elf", "from unwind import Frame", "names come from the module"),
        ("elf", "from unwind.elves import Elf", "no such module"),
        ("elf", "from .errors import FormatError", "absolute"),
        ("elf", "from arch import x86_64", "second copy"),
        ("elf", "from transports.core import TRANSPORT", "second copy"),
        ("elf", "from unwind.protocols import Memory", "TYPE_CHECKING"),
        ("elf", "if TYPE_CHECKING:\n    from unwind.protocols import Memory", None),
        ("unwinder", "from unwind.arch import x86_64", "by the registry"),
        ("dwarf.instructions", "from unwind.dwarf.cfi import CIE", None),
        ("testing.model", "from unwind.dwarf.constants import DW_CFA", None),
        ("testing.model", "from unwind.dwarf.reader import Reader", "shares no code"),
        ("writers.text", "from unwind.testing import model", "for tests only"),
        ("cli.core", "from unwind.testing import model", "for tests only"),
        ("cli.corpus", "from unwind.testing import model", None),
    ],
)
def test_the_table_is_enforced(
    importer: str, source: str, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "errors rules step elf architecture unwinder protocols arch.__init__ arch.x86_64"
    names += " dwarf.cfi dwarf.constants dwarf.reader testing.__init__ testing.model __init__"
    monkeypatch.setitem(globals(), "modules", lambda: dict.fromkeys(names.split(), ""))
    said = [reason for wanted in imports(source) if (reason := objection(importer, wanted))]
    assert len(said) == (why is not None)
    assert why is None or why in said[0]
