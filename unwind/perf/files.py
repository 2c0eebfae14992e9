"""A mapping of code in a recording in, the module of its file out."""

from __future__ import annotations

import os

from unwind.elf import PT, Elf
from unwind.errors import FormatError
from unwind.files import Found
from unwind.image import Image
from unwind.modules import VDSO, Module, State

__all__ = ["CodeFiles"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.files import Files

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_PAGE = 4096
_PF_X = 1
_MOST = 4096  # files that are kept open


class CodeFiles:
    """The files with code that a recording names, each looked for once.

    `build_ids` are those that the recording has for names; `release` is the kernel's that made
    it: the vdso lies in no file, and that of the running kernel serves if it is the same.
    """

    def __init__(self, files: Files, build_ids: dict[str, bytes], release: str | None):
        self.files, self.build_ids, self.release = files, build_ids, release
        self._known: dict[tuple[str, bytes | None, int], tuple[Found, int, bytes | None]] = {}

    def module(
        self, name: str, start: int, end: int, offset: int, build_id: bytes | None
    ) -> Module:
        """The module of [start, end), which maps the file `name` from `offset` on."""
        key = name, build_id, offset
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[key] = self._find(name, offset, build_id)
        found, vaddr, build_id = known
        return Module(
            name,
            start - vaddr & _MASK,
            ((start, end),),
            found.image,
            found.state,
            found.file,
            build_id,
            found.tried,
        )

    def _find(
        self, name: str, offset: int, build_id: bytes | None
    ) -> tuple[Found, int, bytes | None]:
        """The file, the vaddr of its byte `offset`, and its build-id."""
        build_id = build_id or self.build_ids.get(name)
        if name == VDSO:
            found = self._vdso(build_id)
        else:

            def check(elf: Elf) -> str:
                there = _vaddr(elf, offset) is not None
                return "" if there else f"it has no code at offset {offset:#x}"

            found = self.files.image(name, build_id, check=check)
            if found.image is None and build_id is not None and self.files.may_ask(build_id):
                fetched = self.files.fetched(build_id, "executable", name)
                if fetched is not None and not check(fetched.elf):
                    found = Found(fetched, fetched.path, State.OK, found.tried)
        image = found.image
        if image is None:
            return found, offset, build_id
        vaddr = _vaddr(image.elf, offset)
        return found, vaddr if vaddr is not None else offset, build_id or image.build_id

    def _vdso(self, build_id: bytes | None) -> Found:
        """The vdso of the running kernel, if it is the one that was mapped then."""
        image, tried = own_vdso(), "the recording does not tell which"
        if image is not None:
            if build_id is not None and image.build_id == build_id:
                return Found(image, None, State.MEMORY_ONLY)
            if build_id is None and self.release == os.uname().release:
                return Found(image, None, State.MEMORY_ONLY)
            tried = "that of the running kernel is another one"
        return (
            self.files.image(VDSO, build_id)
            if build_id
            else Found(None, None, State.MISSING, (tried,))
        )


def own_vdso() -> Image | None:
    """The vdso of this very process, None where it cannot be read."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            ranges = [line.split()[0] for line in maps if line.rstrip().endswith(VDSO)]
        start, end = (int(word, 16) for word in ranges[0].split("-"))
        handle = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(handle, end - start, start)
        finally:
            os.close(handle)
        return Image(Elf(data, VDSO))
    except (OSError, IndexError, ValueError, FormatError):
        return None


def _vaddr(elf: Elf, offset: int) -> int | None:
    """The vaddr of the file's byte `offset` if code is loaded from the page around it."""
    for row in elf.program_rows:
        if row[0] == PT.LOAD and row[1] & _PF_X:
            begin = row[2] & -_PAGE
            if begin <= offset < row[2] + row[4]:
                return row[3] - row[2] + offset
    return None
