"""The id of a process that is being dumped in; what of it takes privileges to open, opened, out.

Nothing is read here that the process could have written.
"""

from __future__ import annotations

import os
from errno import ENOENT, ESRCH

__all__ = ["NOBODY", "Crashed"]

NOBODY = 65534  # the user and the group that own nothing
_GONE = (ENOENT, ESRCH)
_SHARED = ("ns/mnt", "ns/user")
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Crashed:
    """A process that the kernel dumps, by its id in our namespace.

    `memory` and `root` are descriptors, -1 where they may not be had, and for a root that is ours.
    `user` and `group` are those that can do no more than the process could: its own, but for a
    privileged one, and one in a container, whose numbers may be somebody else's here.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self.name = b""
        self.memory = self.root = -1
        self.user = self.group = NOBODY
        self.reason = ""  # why there is no memory
        try:
            directory = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.reason = _reason(error)
            return
        try:
            self._look(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Give the descriptors back."""
        for handle in (self.memory, self.root):
            if handle >= 0:
                os.close(handle)
        self.memory = self.root = -1

    def _look(self, directory: int) -> None:
        try:
            self.memory = os.open("mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            self.reason = _reason(error)
        try:
            self.name = _bytes(directory, "comm")
            owner = os.fstat(directory)  # root where it is not dumpable: it may know secrets
            shared = all(_is_ours(directory, name) for name in _SHARED)
            if not _is_ours(directory, "root") or not shared:
                self.root = os.open("root", _PATH, dir_fd=directory)
        except OSError:
            return
        if shared and owner.st_uid:
            self.user, self.group = owner.st_uid, owner.st_gid


def _is_ours(directory: int, name: str) -> bool:
    its, ours = os.stat(name, dir_fd=directory), os.stat(f"/proc/self/{name}")
    return (its.st_dev, its.st_ino) == (ours.st_dev, ours.st_ino)


def _bytes(directory: int, name: str) -> bytes:
    handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(handle, 64).rstrip(b"\n")
    finally:
        os.close(handle)


def _reason(error: OSError) -> str:
    return "it has ended" if error.errno in _GONE else (error.strerror or str(error)).lower()
