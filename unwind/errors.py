"""The errors of the library: every one is an UnwindError and carries its facts as attributes."""

from __future__ import annotations

__all__ = [
    "FormatError",
    "MemoryFault",
    "MissingPackage",
    "SourceError",
    "UnknownRegister",
    "UnsupportedArchitecture",
    "UnwindError",
    "never",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class UnwindError(Exception):
    """Base of all errors that this library raises on purpose."""


class FormatError(UnwindError):
    """Bytes that break their format: `reason`, `where` (file or section), `offset` therein."""

    def __init__(self, reason: str, where: str = "", offset: int | None = None):
        super().__init__(reason, where, offset)
        self.reason, self.where, self.offset = reason, where, offset

    def __str__(self) -> str:
        place = self.where or "input"
        if self.offset is not None:
            place += f" at offset {self.offset:#x}"
        return f"{place}: {self.reason}"


class MemoryFault(UnwindError):
    """`size` bytes at `address` are not in this memory; `reason` says why when it is known."""

    def __init__(self, address: int, size: int, reason: str = ""):
        super().__init__(address, size, reason)
        self.address, self.size, self.reason = address, size, reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"cannot read {self.size} bytes at {self.address:#x}{why}"


class UnknownRegister(UnwindError):
    """A rule needs DWARF register `number`, whose value is not known in this frame."""

    def __init__(self, number: int, name: str = ""):
        super().__init__(number, name)
        self.number, self.name = number, name

    def __str__(self) -> str:
        return f"register {self.name or self.number} is not known here"


class UnsupportedArchitecture(UnwindError):
    """No file in arch/ describes this machine; `description` names it by machine, class, flags."""

    def __init__(self, description: str):
        super().__init__(description)
        self.description = description

    def __str__(self) -> str:
        return f"unsupported architecture: {self.description}"


class SourceError(UnwindError):
    """A source (file, process, stream) that cannot be opened or read; `hint` says what to try."""

    def __init__(self, reason: str, path: str = "", hint: str = ""):
        super().__init__(reason, path, hint)
        self.reason, self.path, self.hint = reason, path, hint

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


class MissingPackage(UnwindError):
    """A package is needed for this input: `package`; `extra` brings it where it is optional."""

    def __init__(self, package: str, purpose: str, extra: str = ""):
        super().__init__(package, purpose, extra)
        self.package, self.purpose, self.extra = package, purpose, extra

    def __str__(self) -> str:
        install = f"'unwind-core[{self.extra}]'" if self.extra else self.package
        return f"{self.purpose} needs the Python package {self.package!r} (pip install {install})"


def never(value: NoReturn) -> NoReturn:
    """The last case of a complete `match`: mypy proves that no value gets here."""
    raise AssertionError(f"unhandled case: {value!r}")
