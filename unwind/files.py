"""Files: a recorded name and a build-id in, an Image and what was tried out.

It alone opens files that a core, a recording or an ELF file names. Such names are hostile: only
regular files are opened, with a sysroot none outside it, and a file is used only when its
build-id is the one in memory.
"""

from __future__ import annotations

import os
from _weakref import ref  # what `weakref` wraps, at a tenth of its cost at start-up
from errno import ELOOP, ENOENT
from stat import S_ISREG

from unwind.debug_links import alternate_of, debug_link_of, supplement_of
from unwind.elf import ET, Elf
from unwind.errors import FormatError
from unwind.image import Image
from unwind.modules import State
from unwind.values import Value

__all__ = ["Candidate", "Files", "Found", "resolve"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from unwind.debug_links import Alternate
    from unwind.protocols import Servers

    How = TypeVar("How")
    Check = Callable[[Elf], str]
    Key = tuple[int, int, int, int]

_DEBUG_DIR = "/usr/lib/debug"
_VMLINUX = (  # where distributions and kernel builds leave it
    "/usr/lib/debug/boot/vmlinux-{}",
    "/usr/lib/debug/lib/modules/{}/vmlinux",
    "/lib/modules/{}/build/vmlinux",
    "/boot/vmlinux-{}",
)
_DELETED = " (deleted)"  # what Linux adds to the path of a file that has no name any more
_MOST_LINKS = 40  # as Linux allows in one path
_LOADED = frozenset({ET.EXEC, ET.DYN})
_WITH_DEBUG_INFO = _LOADED | {ET.REL}  # a .dwo and a .dwp are of this type
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Found(Value):
    """What became of the search for a module's file.

    `image` is None when no file served. `data` are the bytes of the whole file. `tried` has a
    sentence for each place that did not serve. `foreign`: a file was there, but no ELF file.
    """

    image: Image | None
    file: str | None
    state: str
    tried: tuple[str, ...] = ()
    data: memoryview | None = None
    foreign: bool = False


class _Unfit(Exception):
    """Why a file cannot serve."""


class _Mismatch(_Unfit):
    """Why a file is another than the one that was mapped."""


class Candidate(Value):
    """A file to try: `path` below `root`, out of which no link leads; no root: the system's.

    `explicit`: the user named this very file.
    """

    path: str
    root: str = ""
    explicit: bool = False
    successor: bool = False  # of a deleted file: at its path lies another one

    @property
    def shown(self) -> str:
        return self.root + self.path

    def real(self) -> str:
        return resolve(self.root, self.path) if self.root else self.path


class Files:
    """The places where files are looked for, as the options name them.

    `executable` is the main program's file. `module_map` maps recorded paths to real ones: a
    whole path, a directory, or a bare file name. Both win over recorded paths and may lie outside
    `sysroot`. `debug_dirs` hold `.build-id/xx/yyyy`, of binaries and of `.debug` files, besides
    /usr/lib/debug. `progress` is called with the bytes done and the bytes in all (None:
    unknown) while a compressed source is unpacked. `servers` are asked for what no place has;
    `sparing`: of all modules only for those in `cut`, in which a stack was, and whose build-ids
    are put there.

    Images are shared by all who ask for the same file, for as long as somebody uses them.
    """

    def __init__(
        self,
        *,
        executable: str | None = None,
        module_map: Mapping[str, str] | None = None,
        sysroot: str | None = None,
        debug_dirs: Sequence[str] = (),
        progress: Callable[[int, int | None], None] | None = None,
        servers: Servers | None = None,
        sparing: bool = False,
    ):
        self.executable = executable
        self.module_map = dict(module_map or {})
        self.sysroot = sysroot
        self.root = sysroot or ""  # what recorded paths start from
        self.debug_dirs = tuple(debug_dirs)
        self.progress = progress
        self.servers = servers
        self.sparing = sparing
        self.cut: set[bytes] = set()
        self.warnings: list[str] = []
        self.main_wanted = False  # somebody has asked for the main program's file
        self._images: dict[Key, tuple[ref[Image], memoryview]] = {}

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the files; Images that are in use keep their own alive."""
        self._images.clear()

    def image(
        self,
        name: str,
        build_id: bytes | None = None,
        *,
        main: bool = False,
        check: Check | None = None,
        base: str = "",
    ) -> Found:
        """The image of the file recorded as `name`, or what kept it from being found.

        `build_id` is the one in memory, None where memory has none. `main`: this is the program
        itself. `check` gives a reason why an ELF file is not the one that was mapped, or "".
        `base` is the directory that a relative `name` starts from.
        """
        tried: list[str] = []
        mismatch = vetoed = foreign = False
        for place in self._places(name, build_id, main, base):
            try:
                real = place.real()
                image, data = self._open(real)
                if place.successor and build_id is None:
                    raise _Unfit("another file than the deleted one, of unknown build-id")
                _compare(image.elf, build_id, check)
            except (_Unfit, OSError, ValueError, FormatError) as error:
                tried.append(f"{place.shown}: {_why(error)}")
                foreign = foreign or isinstance(error, FormatError)
                if isinstance(error, _Mismatch):
                    mismatch, vetoed = True, vetoed or place.explicit
                if place.explicit:
                    self.warnings.append(f"{tried[-1]}; it was not used")
                continue
            state = State.MISMATCH if vetoed else State.OK
            return Found(image, real, state, tuple(tried), data)
        state = State.MISMATCH if mismatch else State.MISSING
        return Found(None, None, state, tuple(tried), None, foreign)

    def debug_file(self, image: Image) -> Image | None:
        """The separate debug file of `image`: by its build-id, else by its .gnu_debuglink."""
        build_id = image.build_id

        def serves(found: Image, data: memoryview, crc: int | None) -> bool:
            if found is image or (build_id and found.build_id not in (build_id, None)):
                return False
            return found.build_id == build_id if crc is None else _crc32(data) == crc

        found = self._first(self._debug_places(image), serves)
        if found is None and build_id is not None and self.may_ask(build_id):
            found = self.fetched(build_id, "debuginfo", image.path or image.elf.path)
        return found

    def kernel(self, build_id: bytes, release: str | None) -> Image | None:
        """The vmlinux with that build-id, perhaps of the name `release`; servers are asked too."""

        def places() -> Iterator[tuple[Candidate, None]]:
            for suffix in (".debug", ""):
                for place in self._by_build_id(build_id, suffix):
                    yield place, None
            if release and "/" not in release:
                for path in _VMLINUX:
                    yield Candidate(path.format(release), self.root), None

        def serves(found: Image, _data: memoryview, _how: None) -> bool:
            return found.build_id == build_id

        found = self._first(places(), serves)
        if found is None and self.may_ask(build_id):
            found = self.fetched(build_id, "debuginfo", f"vmlinux-{release or build_id.hex()}")
        return found

    def alternate(self, elf: Elf) -> Elf | None:
        """The file that `dwz` put into what several debug files share, `elf` among them.

        By .gnu_debugaltlink and its build-id, or by .debug_sup and the checksum in both.
        """
        link = alternate_of(elf)
        if link is None:
            return None

        def serves(found: Image, _data: memoryview, _how: None) -> bool:
            if link.build_id is not None:
                return found.build_id == link.build_id
            said = supplement_of(found.elf)
            return said is not None and said[0] and said[2] == link.checksum

        found = self._first(self._alternate_places(elf, link), serves)
        if found is None and link.build_id is not None and self.may_ask(link.build_id):
            found = self.fetched(link.build_id, "debuginfo", link.path)
        return found.elf if found is not None else None

    def split_package(self, elf: Elf, path: str) -> Elf | None:
        """The .dwp with the split debug info of the program or debug file `elf`, from `path`.

        What it holds is not compared with anything: units in it are known by their ids.
        """
        found = self._first(self._package_places(elf, path), _any)
        return found.elf if found is not None else None

    def split_unit(self, image: Image, name: str, comp_dir: str) -> Elf | None:
        """The .dwo of a unit, by its DW_AT_dwo_name and DW_AT_comp_dir.

        Where it was written, else beside the program. Again, the unit in it is known by its id.
        """
        found = self._first(self._unit_places(image, name, comp_dir), _any)
        return found.elf if found is not None else None

    def may_ask(self, build_id: bytes) -> bool:
        """Whether servers may be asked for a module without further ado."""
        return self.servers is not None and (not self.sparing or build_id in self.cut)

    def fetched(self, build_id: bytes, kind: str, name: str) -> Image | None:
        """What the servers have with that build-id: kind `executable` or `debuginfo`.

        `name` is what the user knows it by. None where there are no servers, or nothing came.
        """
        path = None
        if self.servers is not None:
            path = self.servers.file(build_id, kind, os.path.basename(name))
        if path is None:
            return None
        try:
            found, _ = self._open(path, _WITH_DEBUG_INFO)
        except (_Unfit, OSError, ValueError, FormatError):
            return None
        return found if found.build_id == build_id else None

    def _first(
        self,
        places: Iterator[tuple[Candidate, How]],
        serves: Callable[[Image, memoryview, How], bool],
    ) -> Image | None:
        """The first file that serves; what cannot be read is passed over."""
        for place, how in places:
            try:
                found, data = self._open(place.real(), _WITH_DEBUG_INFO)
                if serves(found, data, how):
                    return found
            except (_Unfit, OSError, ValueError, FormatError):
                continue
        return None

    def _places(
        self, name: str, build_id: bytes | None, main: bool, base: str
    ) -> Iterator[Candidate]:
        """Where the file of a module may be, the most trusted place first."""
        self.main_wanted = self.main_wanted or main
        if main and self.executable:
            yield Candidate(self.executable, explicit=True)
        plain = name.removesuffix(_DELETED)
        mapped = self._mapped(plain) or self._mapped(name)
        if mapped:
            yield Candidate(mapped, explicit=True)
        yield from self._by_build_id(build_id, "")
        if plain[:1] in ("", "[") or plain[:2] == "//" or not (base or "/" in plain):
            return  # [vdso], //anon: no path
        yield from self._homes(name)
        root, base = (self.root, "/") if self.root else ("", base)
        if plain != name:  # a file may be called so
            yield Candidate(os.path.join(base, name), root)
        yield Candidate(os.path.join(base, plain), root, successor=plain != name)

    def _homes(self, name: str) -> Iterator[Candidate]:
        """Where the very file that is mapped as `name` is: of a live process, the kernel tells."""
        return iter(())

    def _mapped(self, name: str) -> str | None:
        """What `module_map` makes of a recorded name: the longest entry that fits."""
        best = ""
        for old in self.module_map:
            whole = old == name or ("/" not in old and old == os.path.basename(name))
            if (whole or name.startswith(old.rstrip("/") + "/")) and len(old) > len(best):
                best = old
        if not best:
            return None
        rest = name[len(best.rstrip("/")) :] if "/" in best and name != best else ""
        return self.module_map[best] + rest

    def _by_build_id(self, build_id: bytes | None, suffix: str) -> Iterator[Candidate]:
        if build_id is None or len(build_id) < 2:
            return
        text = build_id.hex()
        for place in self._debug_roots():
            path = f"{place.path}/.build-id/{text[:2]}/{text[2:]}{suffix}"
            yield Candidate(path, place.root)

    def _debug_roots(self) -> Iterator[Candidate]:
        """The directories of debug files; with a sysroot, links do not lead out of them."""
        for directory in self.debug_dirs:
            yield Candidate("", directory) if self.sysroot else Candidate(directory)
        yield Candidate(_DEBUG_DIR, self.sysroot or "")

    def _debug_places(self, image: Image) -> Iterator[tuple[Candidate, int | None]]:
        """Where the debug file of `image` may be, with its CRC where only that tells."""
        for place in self._by_build_id(image.build_id, ".debug"):
            yield place, None
        link = debug_link_of(image.elf)
        if link is None or not image.path:
            return
        directory, root = self._real_place(image.path)
        yield Candidate(f"{directory}/{link.name}", root), link.crc
        yield Candidate(f"{directory}/.debug/{link.name}", root), link.crc
        for place in self._debug_roots():
            yield Candidate(f"{place.path}{directory}/{link.name}", place.root), link.crc

    def _alternate_places(self, elf: Elf, link: Alternate) -> Iterator[tuple[Candidate, None]]:
        """Where the file may be that `elf` shares with others: its path may be relative."""
        for place in self._by_build_id(link.build_id, ".debug"):
            yield place, None
        directory, root = self._real_place(elf.path)
        yield Candidate(os.path.join(directory, link.path), root), None
        if link.path.startswith("/"):
            yield Candidate(link.path, self.root), None
        for place in self._debug_roots():  # rpm and Debian move all of them here
            yield Candidate(f"{place.path}/.dwz/{os.path.basename(link.path)}", place.root), None

    def _package_places(self, elf: Elf, path: str) -> Iterator[tuple[Candidate, None]]:
        """Where the .dwp of a program may be: beside it, or where its debug file would be."""
        for place in self._by_build_id(elf.build_id, ".dwp"):
            yield place, None
        for name in dict.fromkeys((path, elf.path)):
            if not name:
                continue
            directory, root = self._real_place(name)
            stem = os.path.basename(name)
            for each in dict.fromkeys((stem, stem.removesuffix(".debug"))):
                yield Candidate(f"{directory}/{each}.dwp", root), None
                for place in self._debug_roots():
                    yield Candidate(f"{place.path}{directory}/{each}.dwp", place.root), None

    def _unit_places(
        self, image: Image, name: str, comp_dir: str
    ) -> Iterator[tuple[Candidate, None]]:
        """Where a .dwo may be."""
        recorded = os.path.join(comp_dir, name)
        mapped = self._mapped(recorded)
        if mapped:
            yield Candidate(mapped), None
        if recorded.startswith("/"):
            yield Candidate(recorded, self.root), None
        if image.path:
            directory, root = self._real_place(image.path)
            for each in dict.fromkeys((name.lstrip("/"), os.path.basename(name))):
                yield Candidate(f"{directory}/{each}", root), None

    def _real_place(self, path: str) -> tuple[str, str]:
        """The real directory of a file that was opened, and the root that it counts from."""
        directory, root = os.path.dirname(os.path.realpath(path)), ""
        if self.sysroot and _below(os.path.realpath(self.sysroot), directory):
            root = os.path.realpath(self.sysroot)
            directory = directory[len(root.rstrip("/")) :]
        return directory, root

    def _open(self, path: str, types: frozenset[int] = _LOADED) -> tuple[Image, memoryview]:
        """The image of a regular file and the file's bytes; the same one for the same file."""
        status = os.stat(path)  # before `open`: that alone may wake a device
        if not S_ISREG(status.st_mode):
            raise _Unfit("not a regular file")
        handle = os.open(path, _FLAGS)
        try:
            status = os.fstat(handle)
            if not S_ISREG(status.st_mode):
                raise _Unfit("not a regular file")
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._images.get(key)
            if known is not None and (image := known[0]()) is not None:
                return _of_type(image, types), known[1]
            if status.st_size == 0:
                raise _Unfit("the file is empty")
            data = self._contents(handle, status)
        finally:
            os.close(handle)
        image = _of_type(Image(Elf(data, path), path, debug=self.debug_file), types)
        images = self._images
        images[key] = ref(image, lambda _: images.pop(key, None)), data
        return image, data

    def _contents(self, handle: int, status: os.stat_result) -> memoryview:
        """The bytes of a file that is open: mapped."""
        import mmap

        return memoryview(mmap.mmap(handle, status.st_size, prot=mmap.PROT_READ))


def resolve(root: str, path: str) -> str:
    """The real path of `path` for a process whose / is `root`; OSError for too many links.

    Links are followed one by one, so that neither `..` nor an absolute link leads out of `root`.
    What does not exist is left as it is written.
    """
    root = root.rstrip("/")
    ahead, real, links = path.split("/")[::-1], [root], 0
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            real = real[: max(len(real) - 1, 1)]
            continue
        try:
            target = os.readlink("/".join([*real, part]))
        except OSError:  # no link, or nothing there
            real.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(ELOOP, "too many symbolic links", path)
        if target.startswith("/"):
            real = [root]
        ahead.extend(target.split("/")[::-1])
    return "/".join(real) or "/"


def _below(root: str, directory: str) -> bool:
    return (directory + "/").startswith(root.rstrip("/") + "/")


def _compare(elf: Elf, build_id: bytes | None, check: Check | None) -> None:
    """Raises _Mismatch when `elf` is not what was mapped."""
    if build_id is not None and elf.build_id != build_id:
        its = f"its build-id is {elf.build_id.hex()}" if elf.build_id else "it has no build-id"
        raise _Mismatch(f"{its}, the one in memory is {build_id.hex()}")
    reason = check(elf) if check is not None else ""
    if reason:
        raise _Mismatch(reason)


def _why(error: Exception) -> str:
    """The reason in an error, without the path that stands beside it."""
    if isinstance(error, OSError) and error.strerror:
        if error.errno == ENOENT:
            return "no such file"
        return error.strerror[:1].lower() + error.strerror[1:]
    return error.reason if isinstance(error, FormatError) else str(error)


def _of_type(image: Image, types: frozenset[int]) -> Image:
    if image.elf.header.type not in types:
        raise _Unfit("neither a program nor a library")
    return image


def _any(_found: Image, _data: memoryview, _how: None) -> bool:
    return True


def _crc32(data: memoryview) -> int:
    from zlib import crc32

    return crc32(data)
