"""One download: a URL in, a file with what it gave out, or why there is none; bounded in all.

A thread of its own does it, since no timeout of urllib covers a resolver that hangs or a server
that sends a byte a second. Who has waited long enough leaves it behind: it ends by itself at its
next byte, or when none has come for STALL seconds, and at the latest with the process.
"""

from __future__ import annotations

import threading

from unwind.errors import UnwindError
from unwind.version import VERSION

__all__ = ["STALL", "TransferError", "download"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPResponse
    from typing import IO, Any
    from urllib.request import OpenerDirector

STALL = 10.0  # seconds without a byte: nothing more is expected of that server
_CHUNK = 1 << 16
_OFTEN = 0.05  # seconds between two looks at how far it is
_MOST_REDIRECTIONS = 5
_SCHEMES = ("https",)


class TransferError(UnwindError):
    """Why a download failed: `reason`.

    `absent`: the server said that it does not have it. `dead`: it is not worth asking again.
    """

    def __init__(self, reason: str, *, absent: bool = False, dead: bool = False):
        super().__init__(reason, absent, dead)
        self.reason, self.absent, self.dead = reason, absent, dead

    def __str__(self) -> str:
        return self.reason


def download(
    url: str,
    path: str,
    *,
    seconds: float,
    largest: int,
    http: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Write what `url` gives to the file at `path`, in `seconds`; TransferError where not whole.

    At most `largest` bytes. `http`: servers may be asked without encryption. `progress` is called
    with the bytes that came and those in all, None where the server does not tell them.
    """
    from time import monotonic

    end = monotonic() + seconds
    worker = _Worker(
        url, path, min(STALL, seconds), largest, ("https", "http") if http else _SCHEMES
    )
    worker.start()
    try:
        while worker.is_alive() and (left := end - monotonic()) > 0:
            worker.join(min(left, _OFTEN))
            if progress is not None:
                progress(worker.done, worker.total)
    finally:
        worker.abandoned = True
    if worker.is_alive():
        raise TransferError(f"it took longer than the {seconds:.0f} s that were left", dead=True)
    if worker.error is not None:
        raise worker.error


class _Worker(threading.Thread):
    """The thread: `done` of `total` bytes have come; `error` is set where it did not work."""

    def __init__(self, url: str, path: str, stall: float, largest: int, schemes: tuple[str, ...]):
        super().__init__(name="debuginfod", daemon=True)
        self.url, self.path, self.stall = url, path, stall
        self.largest, self.schemes = largest, schemes
        self.done = 0
        self.total: int | None = None
        self.error: TransferError | None = None
        self.abandoned = False

    def run(self) -> None:
        """Fetch; whatever goes wrong is in `error`."""
        try:
            self._fetch()
        except TransferError as error:
            self.error = error
        except Exception as error:  # urllib, http.client and ssl raise what they like
            self.error = _as_ours(error)

    def _fetch(self) -> None:
        from urllib.request import Request

        headers = {
            "User-Agent": f"unwind/{VERSION}",
            "X-DEBUGINFOD-MAXSIZE": str(self.largest),
        }
        request = Request(self.url, headers=headers)
        with _opener(self.schemes).open(request, timeout=self.stall) as response:
            self.total = _announced(response)
            if self.total is not None and self.total > self.largest:
                raise TransferError(f"{self.total} bytes are more than the limit of {self.largest}")
            with open(self.path, "r+b") as file:
                while not self.abandoned and (piece := response.read1(_CHUNK)):
                    self.done += len(piece)
                    if self.done > self.largest:
                        raise TransferError(f"it is larger than the limit of {self.largest} bytes")
                    file.write(piece)
        if self.total is not None and self.done != self.total:
            raise TransferError(f"it ended after {self.done} of {self.total} bytes")


def _announced(response: HTTPResponse) -> int | None:
    """How many bytes are to come, None where the server does not say."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise TransferError("it came compressed, which was not asked for")
    for name in ("Content-Length", "X-DEBUGINFOD-SIZE"):
        text = response.headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 20:
            return int(text)
    return None


def _opener(schemes: tuple[str, ...]) -> OpenerDirector:
    """What opens URLs of these schemes and no others, wherever a server sends us on to."""
    from urllib import request

    class Redirections(request.HTTPRedirectHandler):
        max_redirections = _MOST_REDIRECTIONS

        def redirect_request(
            self, req: request.Request, fp: IO[bytes], *said: Any
        ) -> request.Request | None:
            url = str(said[-1])
            if url.partition(":")[0].lower() not in schemes:
                fp.close()
                raise TransferError(f"it sends us on to {url[:200]}")
            return super().redirect_request(req, fp, *said)

    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        Redirections(),
    ):
        opener.add_handler(handler)
    return opener


def _as_ours(error: Exception) -> TransferError:
    """The error in words, and what it says of the server."""
    from urllib.error import HTTPError, URLError

    if isinstance(error, HTTPError):
        error.close()
        if error.code == 406:  # debuginfod's word for more than X-DEBUGINFOD-MAXSIZE
            return TransferError("it is larger than the limit")
        absent = error.code == 404
        return TransferError(f"HTTP {error.code}", absent=absent, dead=error.code >= 500)
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return TransferError("no answer came in time", dead=True)
    if isinstance(error, OSError):
        return TransferError(error.strerror or str(error) or type(error).__name__, dead=True)
    return TransferError(f"{type(error).__name__}: {error}", dead=True)
