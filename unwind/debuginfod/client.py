"""The client: a build-id and what is wanted of its file in, a path in the cache out, or None.

Nothing that came is believed: a file must be a whole ELF file with the build-id that was asked
for. What could not be had, and why, is in `warnings`; nothing is raised.
"""

from __future__ import annotations

import os

from unwind.debuginfod.cache import Cache, cache_directory
from unwind.elf import PT, SHT, Elf
from unwind.errors import FormatError
from unwind.values import Value

__all__ = ["Client", "client_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Protocol

    class Bar(Protocol):
        """Shows how far a download is."""

        def __call__(self, done: int, total: int | None) -> None: ...
        def close(self) -> None: ...


_LONGEST_ID = 64  # bytes: elfutils' limit
_SHORTEST_ID = 8


class Client:
    """Asks `servers` in their order. It belongs to one thread.

    `seconds` is what all downloads of this client may take together, `largest` the bytes of one.
    `http`: servers may be asked without encryption. `watch` makes a bar for a file of this name,
    `warn` is called with each warning.
    """

    def __init__(
        self,
        servers: Iterable[str],
        cache: Cache,
        *,
        seconds: float = 30.0,
        largest: int = 512 << 20,
        http: bool = False,
        watch: Callable[[str], Bar] | None = None,
        warn: Callable[[str], None] | None = None,
    ):
        self.cache = cache
        self.left, self.largest, self.http = seconds, largest, http
        self.warnings: list[str] = []
        self._watch, self._tell = watch, warn
        self._seconds = seconds
        self._known: dict[str, str | None] = {}
        self._servers = self._usable(servers)

    def file(self, build_id: bytes, kind: str, name: str = "") -> str | None:
        """The whole file: `kind` is `debuginfo` or `executable`. `name` is for the bar."""
        return self._found(build_id, kind, "", name)

    def section(self, build_id: bytes, section: str, name: str = "") -> str | None:
        """A file with the contents of one section, of the program or of its debug file.

        No build-id is in it: what it says must be compared with what is known of the program.
        """
        return self._found(build_id, "section", section, name)

    def _usable(self, servers: Iterable[str]) -> list[str]:
        """The servers that may be asked, each once."""
        found = []
        for server in dict.fromkeys(each.rstrip("/") for each in servers):
            scheme = server.partition("://")[0].lower()
            if scheme.startswith("ima:"):
                continue  # how strictly elfutils looks at signatures of the servers after it
            if scheme == "https" or (scheme == "http" and self.http):
                found.append(server)
            elif scheme == "http":
                self._warn(server, "not asked, as it is not encrypted (--debuginfod-http)")
            else:
                self._warn(server, "neither https nor http")
        return found

    def _found(self, build_id: bytes, kind: str, section: str, name: str) -> str | None:
        if not _SHORTEST_ID <= len(build_id) <= _LONGEST_ID:
            return None
        path = self.cache.path(build_id, kind, section)
        if path not in self._known:
            wanted = _Wanted(build_id, kind, section, name or build_id.hex(), path)
            try:
                self._known[path] = self._search(wanted)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self._warn(self.cache.directory, f"no cache: {reason}")
                self._known[path] = None
        return self._known[path]

    def _search(self, wanted: _Wanted) -> str | None:
        """What is in the cache, or else on a server."""
        path = wanted.path
        if self.cache.has(path) and not wanted.wrong(path):
            return path
        if self.cache.is_refused(path):
            return None
        if self._servers and self.left <= 0:
            what = f"its {self._seconds:g} s are over, and not all was asked for"
            self.warn(f"{what} (--debuginfod-time)")
            return None
        absent = bool(self._servers)
        for server in list(self._servers):
            reason = self._fetch(server, wanted) if self.left > 0 else "no time"
            if not reason:
                return path
            absent = absent and reason == _ABSENT
        if absent:
            self.cache.refuse(path)
        return None

    def _fetch(self, server: str, wanted: _Wanted) -> str:
        """Bring it into the cache; why not, or ""."""
        from unwind.debuginfod.transfer import TransferError

        part = self.cache.begin(wanted.path)
        try:
            self._download(server + wanted.words, part, wanted.name)
            wrong = wanted.wrong(part)
            if wrong:
                self._warn(server, f"sent {wrong} for {wanted.name}; it was not used")
                return wrong
            self.cache.store(part, wanted.path)
            return ""
        except TransferError as error:
            if error.dead:
                self._servers.remove(server)
            if error.absent:
                return _ABSENT
            if error.dead or not wanted.section:  # where there are no sections, the whole is asked
                self._warn(server, f"{wanted.name}: {error.reason}")
            return error.reason
        finally:
            self.cache.drop(part)

    def _download(self, url: str, path: str, name: str) -> None:
        """Fetch what `url` gives, in the time that is left, while a bar shows how far it is."""
        from time import monotonic

        from unwind.debuginfod.transfer import download

        begun = monotonic()
        bar = self._watch(name) if self._watch is not None else None
        try:
            download(
                url,
                path,
                seconds=self.left,
                largest=self.largest,
                http=self.http,
                progress=bar,
            )
        finally:
            self.left -= monotonic() - begun
            if bar is not None:
                bar.close()

    def _warn(self, where: str, what: str) -> None:
        self.warn(f"{where}: {what}")

    def warn(self, what: str) -> None:
        """Tell it, once."""
        text = f"debuginfod: {what}"
        if text not in self.warnings:
            self.warnings.append(text)
            if self._tell is not None:
                self._tell(text)


_ABSENT = "absent"


class _Wanted(Value):
    """What is asked for: by what name the user knows it, and where it lies in the cache."""

    build_id: bytes
    kind: str
    section: str
    name: str
    path: str

    @property
    def words(self) -> str:
        """The path in a server's URL."""
        path = f"/buildid/{self.build_id.hex()}/{self.kind}"
        if not self.section:
            return path
        from urllib.parse import quote

        return f"{path}/{quote(self.section, safe='')}"

    def wrong(self, path: str) -> str:
        """What the file at `path` is, where it is not the whole one with the build-id; else ""."""
        return "" if self.section else _wrong(path, self.build_id, self.kind)


def client_of(
    environment: Mapping[str, str],
    *,
    seconds: float = 30.0,
    largest: int = 512 << 20,
    http: bool = False,
    watch: Callable[[str], Bar] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Client:
    """The client for the servers in $DEBUGINFOD_URLS and for elfutils' cache."""
    servers = environment.get("DEBUGINFOD_URLS", "").split()
    made = Client(
        servers,
        Cache(cache_directory(environment)),
        seconds=seconds,
        largest=largest,
        http=http,
        watch=watch,
        warn=warn,
    )
    if not servers:
        made.warn("$DEBUGINFOD_URLS names no server: only the cache serves")
    return made


def _wrong(path: str, build_id: bytes, kind: str) -> str:
    """What a file is, where it is not the whole ELF file with that build-id; "" where it is."""
    from mmap import PROT_READ, mmap

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        if not size:
            return "nothing"
        data = memoryview(mmap(handle, size, prot=PROT_READ))
    finally:
        os.close(handle)
    try:
        elf = Elf(data)
        its = elf.build_id
        if its != build_id:
            return f"a file of build-id {its.hex()}" if its else "a file without a build-id"
        header = elf.header
        whole = header.shoff + header.shnum * header.shentsize <= size
        for section in elf.sections:
            there = section.type == SHT.NOBITS or section.offset + section.size <= size
            whole = whole and (there or not section.size)
        if kind == "executable":  # the headers of a debug file tell of what it left out
            for row in elf.program_rows:
                whole = whole and (row[0] != PT.LOAD or row[2] + row[4] <= size)
        return "" if whole else "a file that is cut short"
    except FormatError:
        return "what is no ELF file"
