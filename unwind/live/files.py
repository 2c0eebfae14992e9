"""Files of a live process: a name of its mappings in, the file that is really mapped out.

The path in the process' own root, where the mapped file still lies; else what the kernel has
mapped, by /proc/PID/map_files: files without a name, replaced ones, memfds. For those it wants
CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
"""

from __future__ import annotations

import os
from errno import EFBIG

from unwind.files import Candidate, Files, resolve

__all__ = ["OthersFiles", "ProcessFiles"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unwind.live.proc import Mapped, Proc


_LARGEST_COPY = 1 << 29
_CHUNK = 1 << 22


class OthersFiles(Files):
    """`files`, of processes that may do with theirs what they like; Images are those of `files`."""

    def __init__(self, files: Files):
        super().__init__(
            executable=files.executable,
            module_map=files.module_map,
            sysroot=files.sysroot,
            debug_dirs=files.debug_dirs,
            progress=files.progress,
            servers=files.servers,
            sparing=files.sparing,
        )
        self._images = files._images
        self.cut = files.cut

    def _contents(self, handle: int, status: os.stat_result) -> memoryview:
        """As of any file, but a copy of what its owner may cut short while we look at it.

        A mapped page that is no longer in its file ends us, by SIGBUS.
        """
        if status.st_nlink and status.st_uid in (0, os.geteuid()):
            return super()._contents(handle, status)
        if status.st_size > _LARGEST_COPY:
            raise OSError(EFBIG, "too large to be copied")
        pieces, at = [], 0
        while at < status.st_size and (piece := os.pread(handle, _CHUNK, at)):
            pieces.append(piece)
            at += len(piece)
        return memoryview(b"".join(pieces))


class ProcessFiles(OthersFiles):
    """`files` for one process with these mappings.

    With a sysroot of the user's nothing is looked for in the process' root.
    """

    def __init__(self, files: Files, proc: Proc, mappings: Iterable[Mapped]):
        super().__init__(files)
        self._directory = proc.directory
        if not self.sysroot and not _shares_our_root(proc):
            self.root = f"{proc.directory}/root"
        self._mappings: dict[str, Mapped] = {}
        for mapping in mappings:
            self._mappings.setdefault(mapping.name, mapping)

    def _homes(self, name: str) -> Iterator[Candidate]:
        mapping = self._mappings.get(name)
        if mapping is None or self.sysroot:
            return
        for root in dict.fromkeys((self.root, "")):  # of a chroot, the kernel tells us our paths
            if _is_at(root, name, mapping.inode):
                yield Candidate(name, root)
                return
        yield Candidate(f"{self._directory}/map_files/{mapping.start:x}-{mapping.end:x}")


def _is_at(root: str, path: str, inode: int) -> bool:
    """Whether the file of that number lies at `path`."""
    try:
        return os.stat(resolve(root, path) if root else path).st_ino == inode
    except (OSError, ValueError):
        return False


def _shares_our_root(proc: Proc) -> bool:
    """Whether paths mean the same for that process and for us."""
    try:
        its, ours = proc.stat("root"), os.stat("/")
        one, other = proc.stat("ns/mnt"), os.stat("/proc/self/ns/mnt")
    except OSError:
        return True
    return (its.st_dev, its.st_ino, one.st_ino) == (ours.st_dev, ours.st_ino, other.st_ino)
