"""Files of all processes: a name and a build-id in, the file as one that lives still has it, out.

In a container the same name is another file, or none here; a deleted one has no name, and a memfd
never had. What tells that it is the right one is its build-id: without, nothing is looked for.
"""

from __future__ import annotations

import os

from unwind.files import Candidate
from unwind.live.files import OthersFiles

__all__ = ["EventFiles"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias, TypeVar

    from unwind.files import Files

    # Of a mount namespace, and of the root in it.
    World: TypeAlias = tuple[int, int, int]
    Key = TypeVar("Key")
    Kept = TypeVar("Kept")

_DELETED = " (deleted)"
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

    def met(self, pid: int, name: str, start: int, end: int) -> None:
        """A process maps code of the file that it calls so."""
        if name[:1] != "/" or self.sysroot:
            return
        if name.endswith(_DELETED):
            _keep(self._nameless, name, (pid, start, end))
        if pid not in self._of:
            if len(self._of) >= _MOST:
                self._of.clear()
            world = self._of[pid] = _world(pid)
            if world is not None and world != self._own:
                _keep(self._worlds, world, pid)

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
                    yield Candidate(name.removesuffix(_DELETED), f"/proc/{pid}/root")
                    break
        for pid, start, end in list(self._nameless.get(name, ()))[: -_MOST_TRIED - 1 : -1]:
            yield Candidate(f"/proc/{pid}/map_files/{start:x}-{end:x}")


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
