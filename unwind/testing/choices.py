"""Choices: what a generator asks, so that a seed can answer it, or Hypothesis.

A generator is written once, against `Choices`: `Rolled` answers from a seed, the same on every
machine and Python, for a corpus; Hypothesis's draws answer in a strategy (`strategies.py`), which
then shrinks: of each question the lowest answer is to be the simplest.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

__all__ = ["Choices", "Rolled"]

T = TypeVar("T")


class Choices:
    """Someone who chooses; a subclass has `integer`."""

    def integer(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included."""
        raise NotImplementedError

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, of which the first is the simplest."""
        return options[self.integer(0, len(options) - 1)]

    def chance(self, times: int) -> bool:
        """True once in so many `times`."""
        return self.integer(1, times) == times

    def often(self, times: int) -> bool:
        """False once in so many `times`; False is the simplest."""
        return self.integer(0, times - 1) > 0

    def some(self, options: Sequence[T], most: int) -> list[T]:
        """Up to `most` different options, in any order."""
        left, found = list(options), []
        for _ in range(self.integer(0, min(most, len(left)))):
            found.append(left.pop(self.integer(0, len(left) - 1)))
        return found

    def bits(self, count: int) -> int:
        """A number of so many bits."""
        return self.integer(0, (1 << count) - 1)


class Rolled(Choices):
    """Choices that follow from a seed.

    Only `Random.random` is promised to give the same numbers in every version of Python.
    """

    def __init__(self, seed: str):
        self._random = Random(seed).random

    def often(self, times: int) -> bool:
        return not self.chance(times)  # as the corpora of version 1 have it

    def integer(self, low: int, high: int) -> int:
        room, number, size = high - low + 1, 0, 1
        while size < room << 16:  # 32 bits at a time, and 16 more than asked for, for fairness
            number = number << 32 | int(self._random() * (1 << 32))
            size <<= 32
        return low + number * room // size
