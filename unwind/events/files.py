"""Files of all processes: a name and a build-id in, the file as one that lives still has it, out.

In a container the same name is another file, or none here; a deleted one has no name, and a memfd
never had. What tells that it is the right one is its build-id: without, nothing is looked for.
"""

from __future__ import annotations

import os
from stat import S_ISREG

from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.files import Candidate, resolve
from unwind.live.files import OthersFiles

__all__ = ["DELETED", "EventFiles"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias, TypeVar

    from unwind.files import Files

    # Of a mount namespace, and of the root in it.
    World: TypeAlias = tuple[int, int, int]
    Key = TypeVar("Key")
    Kept = TypeVar("Kept")

DELETED = " (deleted)"  # what Linux adds to the path of a file that has no name any more
_HEAD = 1 << 16  # bytes of a file, where its build-id lies
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MOST = 1 << 12  # processes of a world, worlds, and names of deleted files that are kept
_MOST_TRIED = 4  # processes that are asked for one file


class EventFiles(OthersFiles):
    """`files`, and what the processes have that `met` told of."""

    def __init__(self, files: Files):
        super().__init__(files)
        self._own = _world("self")
        self._worlds: dict[World, dict[int, None]] = {}
        self._of: dict[int, World | None] = {}
        self._nameless: dict[str, dict[tuple[int, int, int], None]] = {}
        self._known: dict[tuple[World | None, str, int, int], tuple[bool, bytes | None]] = {}

    def met(self, pid: int, name: str, start: int, end: int) -> None:
        """A process maps code of the file that it calls so."""
        if name[:1] != "/" or self.sysroot:
            return
        if name.endswith(DELETED):
            _keep(self._nameless, name, (pid, start, end))
        if pid not in self._of:
            if len(self._of) >= _MOST:
                self._of.clear()
            world = self._of[pid] = _world(pid)
            if world is not None and world != self._own:
                _keep(self._worlds, world, pid)

    def identity(
        self, pid: int, name: str, start: int, end: int, device: int, inode: int
    ) -> tuple[bool, bytes | None]:
        """Whether the file that a process has just mapped can be had, and its build-id.

        `met` has been told. What lies at that path, of the process or of ours, may be another one.
        """
        world = self._of.get(pid)
        key = world, name, device, inode
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            found = self._look(pid, name, start, end, device, inode)
            if found[0] or world is not None:  # else another process may still live
                self._known[key] = found
        return found

    def _look(
        self, pid: int, name: str, start: int, end: int, device: int, inode: int
    ) -> tuple[bool, bytes | None]:
        world, plain = self._of.get(pid), name.removesuffix(DELETED)
        places = [f"/proc/{pid}/map_files/{start:x}-{end:x}"]
        if world in (None, self._own):
            places.insert(0, plain)
        elif plain == name:
            places.insert(0, _within(f"/proc/{pid}/root", plain))
        for place in places:
            try:
                status = os.stat(place)
                # Numbers of files on overlays and in subvolumes are of an unnamed device.
                same = device in (0, status.st_dev) or not os.major(device)
                if not S_ISREG(status.st_mode) or status.st_ino != inode or not same:
                    continue
                return True, _build_id(place)
            except (OSError, ValueError):
                continue
        return False, None

    def changed(self, pid: int) -> None:
        """A process has ended, or runs another program, perhaps elsewhere."""
        world = self._of.pop(pid, None)
        if world is not None:
            self._worlds.get(world, {}).pop(pid, None)

    def _places(
        self, name: str, build_id: bytes | None, main: bool, base: str
    ) -> Iterator[Candidate]:
        yield from super()._places(name, build_id, main, base)
        if build_id is None or name[:1] != "/":
            return
        for pids in list(self._worlds.values()):
            for pid in list(pids)[: -_MOST_TRIED - 1 : -1]:  # the newest ones
                if os.path.exists(f"/proc/{pid}/root"):
                    yield Candidate(name.removesuffix(DELETED), f"/proc/{pid}/root")
                    break
        for pid, start, end in list(self._nameless.get(name, ()))[: -_MOST_TRIED - 1 : -1]:
            yield Candidate(f"/proc/{pid}/map_files/{start:x}-{end:x}")


def _within(root: str, path: str) -> str:
    """A path of a process as one of ours; "" for one that leads in circles."""
    try:
        return resolve(root, path)
    except OSError:
        return ""


def _build_id(path: str) -> bytes | None:
    handle = os.open(path, _FLAGS)
    try:
        return Elf(os.pread(handle, _HEAD, 0), path).build_id
    except FormatError:
        return None
    finally:
        os.close(handle)


def _keep(where: dict[Key, dict[Kept, None]], key: Key, value: Kept) -> None:
    """Keep a value, and forget the oldest of too many."""
    if key not in where and len(where) >= _MOST:
        del where[next(iter(where))]
    values = where.setdefault(key, {})
    values[value] = None
    if len(values) > _MOST:
        del values[next(iter(values))]


def _world(pid: int | str) -> World | None:
    """Where a process has its files, None where it has ended."""
    try:
        namespace, root = os.stat(f"/proc/{pid}/ns/mnt"), os.stat(f"/proc/{pid}/root")
    except OSError:
        return None
    return namespace.st_ino, root.st_dev, root.st_ino
