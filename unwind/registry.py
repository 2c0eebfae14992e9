"""The registry: finds architectures and transports by listing their packages, no other edit."""

from __future__ import annotations

import os
import sys

from unwind.errors import SourceError, UnsupportedArchitecture

__all__ = [
    "architecture",
    "architectures",
    "named_architecture",
    "transport",
    "transport_of",
    "transports",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from unwind.architecture import Architecture
    from unwind.elf import Elf
    from unwind.protocols import FileTransport, Transport


def architecture(elf: Elf) -> Architecture:
    """The architecture of an ELF file, or UnsupportedArchitecture that names the machine.

    Class, byte order and ABI flags count: x32 is no x86_64, mips n32 no mips32.
    """
    header = elf.header
    for arch in architectures(likely=elf.machine_name().lower()):
        if (
            arch.machine == header.machine
            and arch.elf_class == header.elf_class
            and arch.byteorder == header.byteorder
            and header.flags & arch.flags_mask == arch.flags_value
        ):
            return arch
    raise UnsupportedArchitecture(elf.describe())


def named_architecture(name: str) -> Architecture | None:
    """The architecture of that name, as in the JSON, or None."""
    return next((arch for arch in architectures(likely=name) if arch.name == name), None)


def architectures(likely: str = "") -> Iterator[Architecture]:
    """Every known architecture: ours first, then those that other packages add.

    A file whose name begins with `likely` is looked at before the others: each one costs 0.3 ms.
    """
    modules = _modules("arch")
    for module in sorted(modules, key=lambda name: not name.startswith(f"unwind.arch.{likely}")):
        yield from _all(_load(module).ARCH)
    for found in _entry_points("unwind.arch"):
        yield from _all(found)


def transport(kind: str) -> Transport:
    """The transport named `kind`, or SourceError."""
    for found in transports():
        if found.kind == kind:
            return found
    raise SourceError(f"no transport of kind {kind!r}")


def transport_of(head: bytes, likely: str) -> FileTransport | None:
    """The transport of files that begin with `head`, unpacked; None: no file of a known kind.

    That of kind `likely` is asked first: the others need not be loaded where it knows the file.
    """
    first: FileTransport = _load(f"unwind.transports.{likely}").TRANSPORT
    if first.detect(head):
        return first
    of_files: list[Any] = [found for found in transports() if hasattr(found, "read")]
    return next((found for found in of_files if found.detect(head)), None)


def transports() -> Iterator[Transport]:
    """Every known transport: ours first, then those that other packages add."""
    for module in _modules("transports"):
        yield _load(module).TRANSPORT
    yield from _entry_points("unwind.transports")


def _load(name: str) -> Any:
    """The module of that name. (importlib with what it loads would take 0.2 ms.)"""
    __import__(name)
    return sys.modules[name]


_listed: dict[str, list[str]] = {}


def _modules(package: str) -> list[str]:
    """The full names of the modules of `unwind.<package>`, sorted; listed once.

    Who gives up privileges may not be able to list them any more.
    """
    if package not in _listed:
        head = _load(f"unwind.{package}")
        names = {name.partition(".")[0] for path in head.__path__ for name in os.listdir(path)}
        found = [f"unwind.{package}.{name}" for name in sorted(names) if name[:1] not in "_."]
        _listed[package] = found
    return _listed[package]


def _all(arch: Architecture | tuple[Architecture, ...]) -> tuple[Architecture, ...]:
    """The architectures of one module: both byte orders of one ABI may come from one table."""
    return arch if isinstance(arch, tuple) else (arch,)


def _entry_points(group: str) -> Iterator[Any]:
    """What other packages registered; only after a miss, as importlib.metadata costs 15-20 ms."""
    from importlib.metadata import entry_points

    for point in entry_points(group=group):
        yield point.load()
