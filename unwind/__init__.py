"""Stack unwinding from CFI: registers, memory and modules in, frames out.

The names below are the library's public interface, together with the `__all__` of the modules
they come from. They load when they are first used: importing `unwind` alone costs nothing.
(A name that a module has too, as `unwind.explain`, cannot stand here: it is imported from there.)
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.elf import Elf
    from unwind.errors import (
        FormatError,
        MemoryFault,
        MissingPackage,
        SourceError,
        UnknownRegister,
        UnsupportedArchitecture,
        UnwindError,
    )
    from unwind.fast import FastUnwinder
    from unwind.files import Files
    from unwind.frames import End, Frame, Stack, Trace, Trust
    from unwind.image import Image
    from unwind.memory import Layers, Span
    from unwind.modules import Module, State
    from unwind.recording import record
    from unwind.registers import Registers
    from unwind.snapshot import Place, RecordedSource, Signal, Snapshot, Source
    from unwind.space import AddressSpace, Region
    from unwind.unwinder import Step, Stop, Unwinder, unwind
    from unwind.version import VERSION as __version__

__all__ = [
    "AddressSpace",
    "Architecture",
    "Elf",
    "End",
    "FastUnwinder",
    "Files",
    "FormatError",
    "Frame",
    "Image",
    "Layers",
    "MemoryFault",
    "MissingPackage",
    "Module",
    "Place",
    "RecordedSource",
    "Region",
    "Registers",
    "Signal",
    "Snapshot",
    "Source",
    "SourceError",
    "Span",
    "Stack",
    "State",
    "Step",
    "Stop",
    "Trace",
    "Trust",
    "UnknownRegister",
    "UnsupportedArchitecture",
    "UnwindError",
    "Unwinder",
    "__version__",
    "record",
    "unwind",
]

_HOMES = {
    "architecture": "Architecture",
    "elf": "Elf",
    "errors": "FormatError MemoryFault MissingPackage SourceError UnknownRegister "
    "UnsupportedArchitecture UnwindError",
    "fast": "FastUnwinder",
    "files": "Files",
    "frames": "End Frame Stack Trace Trust",
    "image": "Image",
    "memory": "Layers Span",
    "modules": "Module State",
    "recording": "record",
    "registers": "Registers",
    "snapshot": "Place RecordedSource Signal Snapshot Source",
    "space": "AddressSpace Region",
    "unwinder": "Step Stop Unwinder unwind",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    from importlib import import_module

    if name == "__version__":
        return import_module("unwind.version").VERSION
    for home, names in _HOMES.items():
        if name in names.split():
            found = globals()[name] = getattr(import_module(f"unwind.{home}"), name)
            return found
    raise AttributeError(f"module 'unwind' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
