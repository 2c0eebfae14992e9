"""Loading of all that an unwinding may come to need, while our own files are in reach.

Modules that are rarely wanted are loaded by the functions that want them. Who gives up privileges
may find then that Python itself lies in a home that is closed.
"""

from __future__ import annotations

import os
import sys
from codecs import lookup
from opcode import opmap

from unwind import registry

__all__ = ["load_all"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

# Not what a report of stacks is made of.
_OTHERS = {"bpf", "cli", "debuginfod", "events", "leaks", "perf", "remote", "testing"}
_COMMANDS = ("unwind.cli.names", "unwind.cli.stacks")
_LIBRARIES = ("capstone", "elftools.elf.elffile", "zstandard")
_ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16-le")
_IMPORT, _EXTENDED = opmap["IMPORT_NAME"], opmap["EXTENDED_ARG"]


def load_all() -> None:
    """Load our modules, and what any function in them imports; what is not installed is not."""
    list(registry.architectures())
    list(registry.transports())
    wanted: set[str] = set(_LIBRARIES)
    for name in (*_modules(), *_COMMANDS):
        __import__(name)
        wanted.update(_imported(name))
    for name in sorted(wanted):
        if name.startswith("unwind.") and name.split(".")[1] in _OTHERS:
            continue
        try:
            __import__(name)
        except (ImportError, OSError):
            continue
    for encoding in _ENCODINGS:
        lookup(encoding)


def _modules() -> Iterator[str]:
    home = os.path.dirname(registry.__file__)
    packages = [name for name in os.listdir(home) if name not in _OTHERS and "." not in name]
    for package in ["", *sorted(packages)]:
        directory = os.path.join(home, package)
        if package and not os.path.exists(os.path.join(directory, "__init__.py")):
            continue
        for name in sorted(os.listdir(directory)):
            module, _, ending = name.partition(".")
            if ending == "py" and module != "__init__":
                yield ".".join(filter(None, ("unwind", package, module)))


def _imported(name: str) -> Iterator[str]:
    """The modules that are imported anywhere in the code of a module."""
    spec = sys.modules[name].__spec__
    get_code = getattr(spec.loader if spec is not None else None, "get_code", None)
    code: CodeType | None = get_code(name) if get_code is not None else None
    waiting = [code] if code is not None else []
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if hasattr(constant, "co_code")]
        words, high = code.co_code, 0
        for at in range(0, len(words), 2):
            high = high << 8 | words[at + 1]
            if words[at] == _IMPORT:
                yield code.co_names[high]
            high = high if words[at] == _EXTENDED else 0
