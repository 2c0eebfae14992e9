"""Stopping: SIGINT and SIGTERM in, the end of a source's events out, and no more than that."""

from __future__ import annotations

__all__ = ["Stopping"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class Stopping:
    """While this is entered, the two signals call `stop` of what was given to `end`.

    `came` says whether one has come.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self.came = False

    def end(self, stop: Callable[[], None]) -> None:
        """It is this that is to stop, or to have stopped."""
        self._stop = stop
        if self.came:
            stop()

    def __enter__(self) -> Self:
        import signal

        self._numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = [signal.signal(number, self._take) for number in self._numbers]
        return self

    def __exit__(self, *_error: object) -> None:
        import signal

        for number, before in zip(self._numbers, self._before, strict=True):
            signal.signal(number, before)

    def _take(self, _number: int, _frame: object) -> None:
        self.came = True
        if self._stop is not None:
            self._stop()
