"""Work that is dealt out to several processes in; their pieces, in order, out."""

from __future__ import annotations

import os
import sys

from unwind.errors import SourceError

__all__ = ["dealt"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

_HEAD = 8  # bytes of a piece's size
_END = (1 << 64) - 1  # in place of a size: what follows is the result
_FAILED = (1 << 64) - 2  # what follows is a sentence


def dealt(
    jobs: int,
    work: Callable[[int], Iterator[str]],
    result: Callable[[], Any],
    take: Callable[[Any], None],
) -> Iterator[str]:
    """What `work(n)` yields in each of `jobs` processes: one piece of the first, one of the next, …

    So the pieces come in the order of cards that were dealt out. When a process is done, `take` is
    called here with what `result()` gives there. SourceError where one of them could not go on.
    """
    readers: list[BinaryIO] = []
    children: list[int] = []
    sys.stdout.flush()
    try:
        for n in range(jobs):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(read)
                for reader in readers:  # or its writer would not notice that nobody listens
                    reader.close()
                _run(write, work(n), result)
            children.append(child)
            os.close(write)
            readers.append(os.fdopen(read, "rb", 1 << 16))
        going = list(readers)
        while going:
            for reader in tuple(going):
                size = int.from_bytes(reader.read(_HEAD), "little")
                if size < _FAILED:
                    yield reader.read(size).decode("utf-8", "surrogatepass")
                    continue
                going.remove(reader)
                _finish(size, reader.read(), take)
    finally:
        for reader in readers:
            reader.close()
        for child in children:
            os.waitpid(child, 0)


def _finish(kind: int, data: bytes, take: Callable[[Any], None]) -> None:
    if kind == _FAILED or not data:
        raise SourceError(data.decode() or "one of the processes ended early", "--jobs")
    import pickle

    take(pickle.loads(data))


def _run(write: int, pieces: Iterator[str], result: Callable[[], Any]) -> None:
    """A child's life: it ends here."""
    import pickle

    code = 1
    try:
        with open(write, "wb", buffering=1 << 16) as pipe:
            try:
                for piece in pieces:
                    data = piece.encode("utf-8", "surrogatepass")
                    pipe.write(len(data).to_bytes(_HEAD, "little") + data)
                pipe.write(_END.to_bytes(_HEAD, "little") + pickle.dumps(result()))
                code = 0
            except Exception as error:  # whatever it is, the parent says it
                said = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
                pipe.write(_FAILED.to_bytes(_HEAD, "little") + said)
    except BrokenPipeError:  # the parent wants no more
        pass
    finally:
        os._exit(code)
