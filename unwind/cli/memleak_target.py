"""The process whose allocations are watched: an id, or a command that waits until they are."""

from __future__ import annotations

import os
import sys

from unwind.errors import SourceError
from unwind.leaks.objects import objects_of_command, objects_of_process
from unwind.live.proc import Proc

__all__ = ["Command", "Running", "target_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from unwind.cli.options import Options
    from unwind.leaks.objects import Object


def target_of(options: Options) -> Running | Command:
    """The process that the options name; SourceError where there is none, or no allocator."""
    if options.pid is not None:
        return Running(options.pid, objects_of_process(options.pid, options.obj))
    from shlex import split

    try:
        words = split(options.command)
    except ValueError as error:
        raise SourceError(f"-c: {error}", options.command) from None
    if not words:
        raise SourceError("-c: no command")
    return Command(words, objects_of_command(words, os.environ, options.obj))


class Running:
    """A process that was there before."""

    def __init__(self, pid: int, objects: list[Object]):
        self.pid, self.objects = pid, objects

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def begin(self) -> None:
        """It runs already."""

    def has_ended(self) -> bool:
        """Whether none of its threads lives."""
        try:
            with Proc(self.pid) as proc:
                return all(proc.is_dead(tid) for tid in proc.threads())
        except OSError:
            return True


class Command:
    """A command, which waits until `begin`; when this is left it is ended, if it still runs."""

    def __init__(self, words: list[str], objects: list[Object]):
        self.words, self.objects = words, objects
        sys.stdout.flush()
        sys.stderr.flush()
        waiting, self._go = os.pipe()
        self._failed, failing = os.pipe()
        self._ended = False
        self.pid = os.fork()
        if not self.pid:
            _run(words, waiting, self._go, failing)
        os.close(waiting)
        os.close(failing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        import signal

        self._close()
        if not self.has_ended():
            os.kill(self.pid, signal.SIGTERM)
            self._wait(2.0)
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def begin(self) -> None:
        """Let it run; SourceError where it cannot."""
        os.write(self._go, b"!")
        said = os.read(self._failed, 16)
        self._close()
        if said:
            raise SourceError(os.strerror(int(said)), self.words[0])

    def has_ended(self) -> bool:
        """Whether it has; its exit code is taken then."""
        if not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        return self._ended

    def _wait(self, seconds: float) -> None:
        from time import monotonic, sleep

        end = monotonic() + seconds
        while not self.has_ended() and monotonic() < end:
            sleep(0.01)

    def _close(self) -> None:
        """Who waits at the other end gets nothing, and ends."""
        for name in ("_go", "_failed"):
            handle = getattr(self, name)
            if handle >= 0:
                os.close(handle)
                setattr(self, name, -1)


def _run(words: list[str], waiting: int, go: int, failing: int) -> None:
    """The child: becomes the command when it is told to, and never comes back."""
    import signal

    try:
        os.close(go)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if os.read(waiting, 1):
            try:
                os.execvp(words[0], words)
            except OSError as error:
                os.write(failing, str(error.errno).encode())
    finally:
        os._exit(127)
