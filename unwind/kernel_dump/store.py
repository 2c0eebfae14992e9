"""A directory of reports: new files in it, and the oldest out of it where there are too many.

    20261123T061226.1234.sleep.txt

A report has its name once it is whole; until then the name begins with a dot.
"""

from __future__ import annotations

import os
from errno import EEXIST, EISDIR, EOPNOTSUPP
from stat import S_ISREG

from unwind.errors import SourceError

__all__ = ["Store", "report_name"]

_MOST_FILES = 1000
_MOST_TRIES = 100
_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_LONGEST = 15  # TASK_COMM_LEN without its NUL
_ENDINGS = (".txt", ".json")
_OLD = 3600.0  # seconds after which what is not finished never will be


def report_name(pid: int, name: bytes, time: float) -> str:
    """How a report is called without its ending; a process may call itself what it likes."""
    from time import gmtime

    now = gmtime(time)
    safe = bytes(byte if byte in _SAFE else ord("_") for byte in name[:_LONGEST]).decode()
    date = f"{now.tm_year:04}{now.tm_mon:02}{now.tm_mday:02}"
    return f"{date}T{now.tm_hour:02}{now.tm_min:02}{now.tm_sec:02}.{pid}.{safe or 'unknown'}"


class Store:
    """The directory at `path`, which nobody but us may write to. SourceError for any other."""

    def __init__(self, path: str):
        self.path = path.rstrip("/") or "/"
        hint = f"mkdir -m 700 {path}"
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self._handle = os.open(path, flags)
        except OSError as error:
            raise SourceError(f"--store: {error.strerror}", path, hint) from None
        status = os.fstat(self._handle)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            os.close(self._handle)
            raise SourceError("--store: others may write to it, too", path, hint)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._handle)

    def create(self, name: str, ending: str) -> tuple[str, int]:
        """A new report's name and a descriptor, for its owner alone."""
        for n in range(_MOST_TRIES):
            whole = f"{name}{f'.{n}' if n else ''}{ending}"
            if self._exists(whole):
                continue
            try:
                handle = os.open(
                    f".{whole}", _FLAGS | os.O_RDWR | os.O_APPEND, 0o600, dir_fd=self._handle
                )
            except OSError as error:
                if error.errno != EEXIST:
                    raise
                continue
            return whole, handle
        raise SourceError("--store: there are reports of that name", self.path)

    def finish(self, name: str) -> None:
        """Give a report its name: it is whole."""
        os.rename(f".{name}", name, src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def scratch(self) -> int:
        """A descriptor of a file without a name."""
        try:
            return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._handle)
        except OSError as error:
            if error.errno not in (EISDIR, EOPNOTSUPP):
                raise
        name = f".scratch.{os.getpid()}"
        handle = os.open(name, _FLAGS | os.O_RDWR, 0o600, dir_fd=self._handle)
        os.unlink(name, dir_fd=self._handle)
        return handle

    def prune(self, most: int, now: float) -> None:
        """Remove the oldest reports until all of them take `most` bytes at the utmost."""
        found: list[tuple[str, int]] = []
        for name in os.listdir(self._handle):
            if not name.endswith(_ENDINGS):
                continue
            try:
                status = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not S_ISREG(status.st_mode):
                continue
            if name[:1] != ".":
                found.append((name, status.st_blocks * 512))
            elif status.st_mtime + _OLD < now:
                self._remove(name)
        total, left = sum(size for _, size in found), len(found)
        for name, size in sorted(found)[:-1]:  # the newest stays, however large
            if total <= most and left <= _MOST_FILES:
                break
            self._remove(name)
            total, left = total - size, left - 1

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._handle)
        except FileNotFoundError:  # another one of us was quicker
            return
