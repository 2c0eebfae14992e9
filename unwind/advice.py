"""Advice: a module whose frames have no names in, what to install or to fetch out, in a sentence.

What package a file is of, the file itself may tell (systemd's note of packages), else the lists
of dpkg on this machine. Whether the package exists nobody is asked: that would take a network.
"""

from __future__ import annotations

import os

from unwind.elf import SHT
from unwind.errors import FormatError
from unwind.modules import State

__all__ = ["advice", "package_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.image import Image
    from unwind.modules import Module

_NOTE_OWNER, _NOTE_TYPE = b"FDO", 0xCAFE1A7E  # systemd's "Package Metadata for Executable Files"
_LISTS = "/var/lib/dpkg/info"
_MOST_LISTS, _LARGEST_LIST = 20_000, 1 << 22
_NO_FILES = ("[", "//", "/memfd:", "/dev/", "/SYSV", "/anon_hugepage")  # what mappings are called
_INSTALLED = ("/usr/", "/lib", "/bin/", "/sbin/", "/opt/")
_ARCHES = (":amd64", "", ":arm64", ":i386", ":armhf", ":mipsel", ":mips64el", ":ppc64el", ":s390x")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")
_APART = {"libc6": "libc6-dbg"}  # whose debug info is in a package of another name


def advice(
    module: Module, places: int, *, root: str | None = "", servers: bool = False
) -> str | None:
    """What brings names to `places` places in the module; None where nothing would.

    `root` is where its distribution lies, None where that is not here; `servers`: they were asked.
    """
    image = module.image
    if module.name.startswith(_NO_FILES) or not module.name:
        return None
    if image is not None and (_has_symbols(image) or image.debug is not None):
        return None  # all is there, and has no name for the place
    what = "debug info" if image is not None else "file"
    ways = []
    if module.build_id is not None:
        ways = [*_ways(module, module.build_id.hex(), root), *([] if servers else ["--debuginfod"])]
        what += f" of build-id {module.build_id.hex()}"
    count = f"no names for {places} place{'s' if places != 1 else ''} in {module.name}"
    return f"{count}: {', or '.join(ways)} ({what})" if ways else f"{count}: its {what} is needed"


def package_of(module: Module, root: str | None = "") -> tuple[str, str] | None:
    """The kind (`deb`, `rpm`, ...) and the name of the package that the module's file is of."""
    found = _noted(module.image) if module.image is not None else None
    if found is not None:
        return found
    if module.state == State.MISMATCH or root is None:
        return None  # there is a package, but what it has now is another file
    name = _in_lists(module.name, root)
    return ("deb", name) if name is not None else None


def _ways(module: Module, build_id: str, root: str | None) -> Iterator[str]:
    """The commands that install it."""
    kind, name = package_of(module, root) or ("", "")
    if kind == "deb":
        yield f"apt install {_APART.get(name) or f'{name}-dbgsym'}"
    elif kind == "rpm" or (
        not kind and root is not None and os.path.isfile(f"{root}/etc/fedora-release")
    ):
        # dnf finds the package by the file; one is there for each build-id.
        place = f"/usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
        yield f"dnf --enablerepo='*debug*' install {place}"


def _has_symbols(image: Image) -> bool:
    return any(section.type == SHT.SYMTAB for section in image.elf.sections)


def _noted(image: Image) -> tuple[str, str] | None:
    """What the file's own note says of its package."""
    try:
        for note in image.elf.notes({_NOTE_TYPE}):
            if note.name == _NOTE_OWNER:
                from json import loads

                said = loads(bytes(note.data[:65536]).rstrip(b"\0").decode("utf-8", "replace"))
                kind, name = said.get("type"), said.get("name")
                if isinstance(kind, str) and isinstance(name, str) and _is_plain(name):
                    return kind, name
    except (FormatError, ValueError, AttributeError, RecursionError):
        pass
    return None


def _is_plain(name: str) -> bool:
    """Whether a package may be called so: the name goes into a command that people copy."""
    return 0 < len(name) <= 200 and name[0] not in "-." and _PLAIN.issuperset(name)


def _in_lists(path: str, root: str) -> str | None:
    """The Debian package whose list of files names `path`."""
    if not path.startswith(_INSTALLED):
        return None
    wanted = [f"\n{path}\n".encode(errors="surrogateescape")]
    if path.startswith("/usr/"):  # since /lib is a link, packages may have it by either name
        wanted.append(b"\n" + wanted[0][len("\n/usr") :])
    for name in _likely(path, root):
        listed = _list(f"{root}{_LISTS}/{name}")
        if any(line in listed for line in wanted):
            return _package(name)
    try:  # to look into all of them takes 20 ms
        names = [name for name in os.listdir(root + _LISTS) if name.endswith(".list")]
    except OSError:
        return None
    for name in names[:_MOST_LISTS]:
        listed = _list(f"{root}{_LISTS}/{name}")
        if any(line in listed for line in wanted):
            return _package(name)
    return None


def _likely(path: str, root: str) -> Iterator[str]:
    """The lists to look into first: libNAME.so.N is in libNAMEN (Debian Policy 8.1)."""
    name, _, version = os.path.basename(path).partition(".so.")
    number = version.partition(".")[0]
    if name and number:
        package = f"{name}-{number}" if name[-1:].isdigit() else name + number
        yield from (f"{package.lower()}{arch}.list" for arch in _ARCHES)


def _list(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return b"\n" + file.read(_LARGEST_LIST) + b"\n"
    except OSError:
        return b""


def _package(name: str) -> str | None:
    package = name.removesuffix(".list").partition(":")[0]
    return package if _is_plain(package) else None
