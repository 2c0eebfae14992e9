"""A path or standard input in, the bytes of the file out: mapped, and unpacked where need be.

gzip, xz and zstd are known by their first bytes. What has to be unpacked, and what comes through
a pipe, goes to a temporary file without a name, so it is gone at exit whatever happens; pages of
zeroes become holes in it, so a sparse core stays as small as it was. The size of that file is
bounded by the room on the disk alone, which holes do not take, and by LARGEST.
"""

from __future__ import annotations

import os
from mmap import PROT_READ, mmap
from stat import S_ISDIR, S_ISREG

from unwind.errors import MissingPackage, SourceError

__all__ = ["LARGEST", "Input", "load", "write_sparse"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[int, int | None], None]
    Check = Callable[[bytes], None]

LARGEST = 1 << 44  # bytes unpacked, holes included: 16 TiB
_CHUNK = 1 << 18  # bytes taken in, and put out, at a time
_PAGE = 4096
_HEAD = 64  # bytes that `check` gets
_ZEROES = bytes(_CHUNK)
_MAGIC = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_XZ_MEMORY = 1 << 30  # a dictionary of `xz -9` takes 64 MB


class Input:
    """The bytes of a source, as `data`; `close` gives them back.

    `warnings` tell what of a compressed file could not be unpacked.
    """

    def __init__(
        self, data: mmap | bytes, warnings: list[str] | None = None, handle: int | None = None
    ):
        self.data = data
        self.warnings = warnings or []
        self._handle = os.dup(handle) if handle is not None else None

    def read(self, offset: int, size: int) -> bytes:
        """The bytes at `offset`, fewer at the end.

        A page of `data` that nobody touched before takes up to 5 us to be there and 2 to go again,
        in a virtual machine: the ends of a thousand stacks are sooner read than looked at.
        """
        if self._handle is None:
            return self.data[offset : offset + size]
        return os.pread(self._handle, size, offset)

    def close(self) -> None:
        """Give the bytes back, or, where views of them are still in use, leave that to those."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if isinstance(self.data, mmap):
            try:
                self.data.close()
            except BufferError:
                pass


def load(path: str, progress: Progress | None = None, check: Check | None = None) -> Input:
    """The contents of `path` (`-`: standard input), unpacked; SourceError when there are none.

    `progress` is called now and then with the bytes taken in and, where known, those in all.
    `check` is called with the first bytes of the contents, and raises what it has against them
    before gigabytes are unpacked for nothing.
    """
    try:
        handle = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise SourceError(_reason(error), path) from None
    try:
        status = os.fstat(handle)
        if S_ISDIR(status.st_mode):
            raise SourceError("it is a directory", path)
        if S_ISREG(status.st_mode) and os.lseek(handle, 0, os.SEEK_CUR) == 0:
            return _of_file(path, handle, status.st_size, progress, check)
        return _Copy(path, handle, None, progress).run(check)
    except OSError as error:
        raise SourceError(_reason(error), path) from None
    finally:
        os.close(handle)


def _of_file(
    path: str, handle: int, size: int, progress: Progress | None, check: Check | None
) -> Input:
    if size == 0:
        raise SourceError("the file is empty", path)
    head = os.pread(handle, _HEAD, 0)
    if _method(head):
        return _Copy(path, handle, size, progress).run(check)
    if check is not None:
        check(head)
    return Input(mmap(handle, size, prot=PROT_READ), handle=handle)


def _method(head: bytes) -> str | None:
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


class _Copy:
    """One run from a descriptor to a temporary file."""

    def __init__(self, path: str, handle: int, size: int | None, progress: Progress | None):
        self.path, self.handle, self.size, self.progress = path, handle, size, progress
        self.taken = 0
        self.warnings: list[str] = []

    def run(self, check: Check | None) -> Input:
        """The unpacked copy, mapped."""
        copy = _temporary(self.path)
        try:
            written = 0
            for chunk in self._chunks():
                if written == 0 and check is not None:
                    check(chunk[:_HEAD])
                if written + len(chunk) > LARGEST:
                    raise SourceError(f"it unpacks to more than {LARGEST} bytes", self.path)
                write_sparse(copy, written, chunk)
                written += len(chunk)
            if written == 0:
                reason = self.warnings[0] if self.warnings else "there are no bytes in it"
                raise SourceError(reason, self.path)
            os.truncate(copy, written)
            return Input(mmap(copy, written, prot=PROT_READ), self.warnings, copy)
        except OSError as error:
            raise SourceError(
                f"cannot be unpacked to a temporary file: {_reason(error)}",
                self.path,
                "set TMPDIR to a directory with room for it",
            ) from None
        finally:
            os.close(copy)

    def _take(self, count: int = _CHUNK) -> bytes:
        """The next bytes of the source, b"" at its end."""
        data = os.read(self.handle, count)
        self.taken += len(data)
        if self.progress is not None:
            self.progress(self.taken, self.size)
        return data

    def _chunks(self) -> Iterator[bytes]:
        """The unpacked bytes, in pieces of _CHUNK bytes but for the last."""
        head = self._take()
        while 0 < len(head) < 6 and (more := self._take()):
            head += more  # a pipe may give as little as one byte
        method = _method(head)
        rest = b""
        for piece in self._raw(head) if method is None else self._unpacked(method, head):
            at = 0
            if rest:
                at = _CHUNK - len(rest)
                rest += piece[:at]
                if len(rest) < _CHUNK:
                    continue
                yield rest
            while at + _CHUNK <= len(piece):
                yield piece[at : at + _CHUNK]
                at += _CHUNK
            rest = piece[at:]
        if rest:
            yield rest

    def _raw(self, head: bytes) -> Iterator[bytes]:
        while head:
            yield head
            head = self._take()

    def _unpacked(self, method: str, head: bytes) -> Iterator[bytes]:
        """What the stream holds up to its end or its first damage, of which a warning tells."""
        unpack = {"gzip": self._gzip, "xz": self._xz, "zstd": self._zstd}[method]
        count = 0
        try:
            for piece in unpack(head):
                count += len(piece)
                yield piece
        except _Damaged as error:
            self.warnings.append(
                f"the {method} data {error}: only the first {count} bytes were unpacked"
            )

    def _gzip(self, data: bytes) -> Iterator[bytes]:
        import zlib

        try:
            while data:
                stream = zlib.decompressobj(wbits=31)
                while not stream.eof:
                    if not data:
                        data = self._take()
                    if not data:
                        raise _Damaged("ends early")
                    yield stream.decompress(data, _CHUNK)
                    data = stream.unconsumed_tail
                data = self._next(stream.unused_data, b"\x1f\x8b")
        except zlib.error as error:
            raise _Damaged(f"is damaged ({error})") from None

    def _xz(self, data: bytes) -> Iterator[bytes]:
        import lzma

        try:
            while data:
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
                while not stream.eof:
                    if stream.needs_input and not data:
                        data = self._take()
                        if not data:
                            raise _Damaged("ends early")
                    yield stream.decompress(data, _CHUNK)
                    data = b""
                data = self._next(stream.unused_data, b"\xfd7zXZ\0")
        except lzma.LZMAError as error:
            raise _Damaged(f"is damaged ({error})") from None

    def _zstd(self, data: bytes) -> Iterator[bytes]:
        try:
            import zstandard
        except ImportError:
            raise MissingPackage("zstandard", f"reading {self.path}", "zstd") from None
        try:
            while data:
                stream = zstandard.ZstdDecompressor().decompressobj()
                while not stream.eof:
                    if not data:
                        data = self._take()
                    if not data:
                        raise _Damaged("ends early")
                    # There is no bound on what comes out, so little goes in: a kilobyte of a
                    # bomb makes 32 MB.
                    yield stream.decompress(data[:1024])
                    data = data[1024:]
                data = self._next(stream.unused_data + data, b"\x28\xb5\x2f\xfd")
        except zstandard.ZstdError as error:
            raise _Damaged(f"is damaged ({error})") from None

    def _next(self, data: bytes, magic: bytes) -> bytes:
        """The bytes from the next member on; b"" at the end or before what is no member."""
        data = data.lstrip(b"\0")
        while len(data) < len(magic) and (more := self._take()):
            data = (data + more).lstrip(b"\0")
        if data and not data.startswith(magic):
            self.warnings.append("what follows the compressed data was ignored")
            return b""
        return data


class _Damaged(Exception):
    """What is wrong with compressed data."""


def write_sparse(handle: int, at: int, chunk: bytes) -> None:
    """Write `chunk` at offset `at`, its pages of zeroes left out."""
    size = len(chunk)
    if chunk == _ZEROES[:size]:
        return
    begin = None  # of a run of pages that are not all zeroes
    for page in range(0, size, _PAGE):
        block = chunk[page : page + _PAGE]
        if block == _ZEROES[: len(block)]:
            if begin is not None:
                _write(handle, at + begin, chunk[begin:page])
                begin = None
        elif begin is None:
            begin = page
    if begin is not None:
        _write(handle, at + begin, chunk[begin:])


def _write(handle: int, at: int, data: bytes) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def _temporary(path: str) -> int:
    """A descriptor of a new file without a name, where temporary files go."""
    from errno import EISDIR, EOPNOTSUPP

    directories = [os.environ.get("TMPDIR", ""), "/var/tmp", "/tmp", "."]
    reason = "no directory"
    for directory in filter(None, directories):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (EISDIR, EOPNOTSUPP):
                return _unlinked(directory)
            reason = f"{directory}: {_reason(error)}"
    raise SourceError(f"no temporary file can be made: {reason}", path)


def _unlinked(directory: str) -> int:
    """As O_TMPFILE, for file systems that lack it (NFS, overlayfs of old kernels)."""
    name = f"{directory}/.unwind-{os.getpid()}-{os.urandom(8).hex()}"
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.unlink(name)
    return handle


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]
