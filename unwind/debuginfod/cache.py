"""The cache of debuginfod: a build-id in, the path of what a server once sent for it out.

Laid out as elfutils' own client lays it out, so each finds what the other fetched (elfutils 0.188,
debuginfod-find(1)): BUILDID/debuginfo, BUILDID/executable and BUILDID/section-NAME. An empty file
says that no server had it when it was made.
"""

from __future__ import annotations

import os
from stat import S_ISREG

__all__ = ["Cache", "cache_directory"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MISS, _INTERVAL, _AGE = "cache_miss_s", "cache_clean_interval_s", "max_unused_age_s"
_SECONDS = {_MISS: 600, _INTERVAL: 86400, _AGE: 604800}  # elfutils' own
_MOST = 100_000  # build-ids that one cleaning looks at
_HEX = frozenset("0123456789abcdef")


def cache_directory(environment: Mapping[str, str]) -> str:
    """Where elfutils has its cache: $DEBUGINFOD_CACHE_PATH, else below $XDG_CACHE_HOME or ~."""
    given = environment.get("DEBUGINFOD_CACHE_PATH")
    if given:
        return given
    home = environment.get("HOME") or "/"
    old = f"{home}/.debuginfod_client_cache"
    if os.path.isdir(old):
        return old
    return (environment.get("XDG_CACHE_HOME") or f"{home}/.cache") + "/debuginfod_client"


class Cache:
    """The cache in `directory`, which is made when something is first stored. OSError may come."""

    def __init__(self, directory: str):
        self.directory = directory
        self._cleaned = False

    def path(self, build_id: bytes, kind: str, section: str = "") -> str:
        """Where it lies or would lie: `kind` is debuginfo, executable or section."""
        suffix = "-" + section.replace("#", "#_").replace("/", "##") if section else ""
        return f"{self.directory}/{build_id.hex()}/{kind}{suffix}"

    def has(self, path: str) -> bool:
        """Whether something was stored there."""
        status = _status(path)
        return status is not None and S_ISREG(status.st_mode) and status.st_size > 0

    def is_refused(self, path: str) -> bool:
        """Whether the servers did not have it, not long ago."""
        from time import time

        status = _status(path)
        if status is None or not S_ISREG(status.st_mode) or status.st_size:
            return False
        return time() - status.st_mtime <= self._seconds(_MISS)

    def begin(self, path: str) -> str:
        """A new empty file beside `path`, to be filled and then stored or dropped."""
        if not self._cleaned:
            self._cleaned = True
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            self._clean()
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        part = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return part

    def store(self, part: str, path: str) -> None:
        """What is whole and verified in `part` lies at `path` from now on."""
        os.chmod(part, 0o400)
        os.replace(part, path)

    def drop(self, part: str) -> None:
        """Nothing came of `part`."""
        try:
            os.unlink(part)
            os.rmdir(os.path.dirname(part))
        except OSError:  # others are in there
            pass

    def refuse(self, path: str) -> None:
        """No server has it."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            if _status(path) is not None:
                os.unlink(path)
            os.close(os.open(path, flags, 0o644))
        except OSError:  # it is asked for again, then
            pass

    def _clean(self) -> None:
        """Remove what nobody has used for long, once a day; as elfutils' client does, and tells."""
        from time import time

        mark, now = f"{self.directory}/{_INTERVAL}", time()
        status = _status(mark)
        if status is None:
            self._seconds(_INTERVAL)  # the file's first day begins
            return
        if now - status.st_mtime < self._seconds(_INTERVAL):
            return
        try:
            os.utime(mark)
            oldest = now - self._seconds(_AGE)
            for entry in os.listdir(self.directory)[:_MOST]:
                if _HEX.issuperset(entry):
                    self._clean_directory(f"{self.directory}/{entry}", oldest)
        except OSError:  # another user's, or just removed by another client
            pass

    def _clean_directory(self, directory: str, oldest: float) -> None:
        try:
            for name in os.listdir(directory):
                path = f"{directory}/{name}"
                ours = name.startswith(("debuginfo", "executable", "source", "section"))
                status = _status(path)
                if ours and status is not None and S_ISREG(status.st_mode):
                    if max(status.st_atime, status.st_mtime) < oldest:
                        os.unlink(path)
            os.rmdir(directory)
        except OSError:  # not empty
            pass

    def _seconds(self, name: str) -> float:
        """A setting of the cache, from its file, which is made where there is none."""
        path = f"{self.directory}/{name}"
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                return int(file.read(32))
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            return _SECONDS[name]
        try:
            with open(path, "x", encoding="ascii") as file:
                file.write(str(_SECONDS[name]))
        except OSError:
            pass
        return _SECONDS[name]


def _status(path: str) -> os.stat_result | None:
    """What lies there itself, no link's target; None: nothing."""
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None
