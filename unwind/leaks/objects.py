"""Where a process has its allocator: its id, or its command line, in; files with functions out."""

from __future__ import annotations

import os
from stat import S_ISREG

from unwind.elf import PT, Elf
from unwind.errors import FormatError, SourceError
from unwind.leaks.functions import functions_of
from unwind.live.proc import Proc
from unwind.values import Value

__all__ = [
    "Object",
    "identity_of",
    "objects_mapped_since",
    "objects_of_command",
    "objects_of_process",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from unwind.leaks.functions import Function

_MOST_SCRIPTS = 4  # of which each names the next: Linux v6.13 fs/exec.c, exec_binprm
_LONGEST_LINE = 256  # of a script's first one: BINPRM_BUF_SIZE
_LARGEST = 1 << 32  # bytes of a file


class Object(Value):
    """A file with functions of an allocator.

    `path` is where it can be opened, `name` what the process knows it by.
    """

    name: str
    path: str
    functions: tuple[Function, ...]


def objects_of_process(pid: int, only: str | None = None) -> list[Object]:
    """The files that a process has mapped, those with an allocator; `only` names one of them.

    SourceError where there is none, or no such process.
    """
    try:
        with Proc(pid) as proc:
            if proc.is_kernel_thread():
                raise SourceError(f"process {pid} is a thread of the kernel")
        found = _with_functions(_mapped_files(pid), only)
    except (FileNotFoundError, ProcessLookupError):
        raise SourceError(f"there is no process {pid}") from None
    return _checked(found, f"process {pid}", only)


def objects_mapped_since(pid: int, known: set[tuple[int, int]]) -> list[Object]:
    """Those of the files that a process has mapped now which are not `known`; they are then.

    Files are known by their devices and inodes.
    """
    fresh = []
    try:
        for name, path in _mapped_files(pid):
            identity = identity_of(path)
            if identity is not None and identity not in known:
                known.add(identity)
                fresh.append((name, path))
    except OSError:
        return []  # it has ended
    return _with_functions(fresh, None)


def identity_of(path: str) -> tuple[int, int] | None:
    """What tells a file from all others, None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def objects_of_command(
    words: Sequence[str], environment: Mapping[str, str], only: str | None = None
) -> list[Object]:
    """The same of a command that is yet to be run: the program, and what is linked to it."""
    program = _program(words[0], environment)
    paths = dict.fromkeys([program, *_linked(program, environment)])
    found = _with_functions(((path, path) for path in paths), only)
    return _checked(found, program, only)


def _mapped_files(pid: int) -> list[tuple[str, str]]:
    """The files of which a process may run code: by name, and where they can be opened."""
    paths: dict[str, str] = {}
    with Proc(pid) as proc:
        for entry in proc.mappings():
            if entry.executable and entry.name[:1] == "/":
                where = f"/proc/{pid}/map_files/{entry.start:x}-{entry.end:x}"
                paths.setdefault(entry.name, where)
    return list(paths.items())


def _with_functions(paths: Iterable[tuple[str, str]], only: str | None) -> list[Object]:
    found = []
    paths = list(paths)
    if only is not None and "/" in only:
        paths = [(only, only)]
    for name, path in paths:
        if only is not None and "/" not in only and not _is_called(name, only):
            continue
        try:
            functions = functions_of(_elf(path))
        except (OSError, FormatError) as error:
            if only is not None:
                raise SourceError(str(error), name) from None
            continue
        if functions:
            found.append(Object(name, path, tuple(functions)))
    return found


def _checked(found: list[Object], whose: str, only: str | None) -> list[Object]:
    if not any(function.kind == "FREE" for object in found for function in object.functions):
        raise SourceError(
            f"{whose}: no functions of an allocator (malloc, free) in {only or 'any of its files'}",
            hint="-O FILE names the program or library that has them, and their symbols",
        )
    return found


def _is_called(name: str, wanted: str) -> bool:
    """Whether a file's name is `wanted`, or libWANTED.so with any version."""
    base = name.rpartition("/")[2]
    return base == wanted or base.startswith((f"lib{wanted}.", f"{wanted}.so"))


def _elf(path: str) -> Elf:
    """A file read whole: it is not kept, and may change. FormatError for what is no plain file."""
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if not S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise FormatError("no file of a program", path)
        return Elf(file.read(), path)


def _program(name: str, environment: Mapping[str, str]) -> str:
    """The program that is run: found in PATH, and of a script the one that reads it."""
    path = name
    if "/" not in name:
        for directory in os.get_exec_path(dict(environment)):
            path = os.path.join(directory, name)
            if os.access(path, os.X_OK) and os.path.isfile(path):
                break
        else:
            raise SourceError("there is no such command", name)
    for _ in range(_MOST_SCRIPTS + 1):
        try:
            with open(path, "rb") as file:
                head = file.read(_LONGEST_LINE)
        except OSError as error:
            raise SourceError(error.strerror or str(error), path) from None
        if head[:2] != b"#!":
            return os.path.realpath(path)
        path = os.fsdecode(head[2:].partition(b"\n")[0].split()[0])
    raise SourceError("a script that is read by a script, and so on", name)


def _linked(program: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The libraries that the dynamic linker will map, as it says; none of a static program."""
    import subprocess

    try:
        elf = _elf(program)
    except (OSError, FormatError) as error:
        raise SourceError(str(error), program) from None
    headers = [header for header in elf.program_headers if header.type == PT.INTERP]
    if not headers:
        return
    with open(program, "rb") as file:
        file.seek(headers[0].offset)
        linker = os.fsdecode(file.read(min(headers[0].file_size, _LONGEST_LINE)).rstrip(b"\0"))
    done = subprocess.run(
        [linker, "--list", program],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    for line in os.fsdecode(done.stdout).split("\n"):
        name = line.strip().rpartition(" (0x")[0].rpartition("=> ")[2]
        if name[:1] == "/":
            yield name
