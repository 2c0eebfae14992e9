"""Walked stacks in; runs of return addresses that lie in them time and again out, to be checked.

Most of a stack is as it was in the sample before: nearly always one function calls another, from
one place, with frames of one size. A run holds what follows a return address: where the next ones
lie, counted in words, and what they are. They are read and compared at one go, which takes a fifth
of what the walk takes for them. A run is a guess at what the walk would find, and never believed:
the size of each frame depends on its return address alone, so where all of them lie where they
should, the walk would have found these and no others.
"""

from __future__ import annotations

from struct import Struct

__all__ = ["Runs"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    # What reads the return addresses from the words behind the one that the run begins with; which
    # they are; how many words they reach over; the step out of the one that it begins with.
    Run: TypeAlias = tuple[Callable[[memoryview, int], tuple[int, ...]], tuple[int, ...], int, int]

_OFTEN, _SELDOM = 4, 512  # of so many stacks one is learned from
_SHORTEST, _LONGEST = 4, 64  # return addresses of a run
_SURE, _UNSURE = 2, -4  # how much a caller is worth that is met again, and another one
_MOST_FAILURES = 8  # after which a run is given up
_MOST = 4096  # runs, and a hundred times as many callers


class Runs:
    """The runs of one address space, by the return address that each begins with.

    `called` has the step out of each return address, positive for a plain one. Where a run is
    known `mark` takes its place. `due` is how many stacks later one is to be learned from: the
    fewer the more often something comes of it.
    """

    def __init__(self, called: dict[int, int], mark: int):
        self.known: dict[int, Run] = {}
        self.due = _OFTEN
        self._wait = _OFTEN
        self._called, self._mark = called, mark
        self._callers: dict[int, tuple[int, int]] = {}  # by return address; how sure that is
        self._failures: dict[int, int] = {}

    def learn(self, pcs: Sequence[int]) -> None:
        """Learn from a stack, innermost pc first; make a run of it, if there is one to be made."""
        self._wait = max(self._wait // 2, _OFTEN) if self._learn(pcs) else self._wait * 2
        self._wait = self.due = min(self._wait, _SELDOM)

    def _learn(self, pcs: Sequence[int]) -> bool:
        callers = self._callers
        if len(callers) > 100 * _MOST:
            callers.clear()
        for n in range(1, len(pcs) - 1):
            pc, caller = pcs[n], pcs[n + 1]
            known, sure = callers.get(pc, (caller, 0))
            if known == caller:
                callers[pc] = caller, min(sure + 1, 100)
            else:
                sure += _UNSURE
                callers[pc] = (known, sure) if sure > 0 else (caller, 0)
        n = 1
        while n + _SHORTEST < len(pcs) and len(self.known) < _MOST:
            pc = pcs[n]
            run = self.known.get(pc)
            if run is not None:
                n += len(run[1])
                continue
            m = n
            while m - n < _LONGEST and self._leads(pcs, m):
                m += 1
            if m - n >= _SHORTEST and self._failures.get(pc, 0) < _MOST_FAILURES:
                self._add(pcs[n : m + 1])
                return True
            n = m + 1
        return False

    def failed(self, pc: int) -> None:
        """The run that begins with `pc` was not there this time."""
        count = self._failures[pc] = self._failures.get(pc, 0) + 1
        if count % _MOST_FAILURES == 0:
            self._called[pc] = self.known.pop(pc)[-1]

    def step(self, pc: int) -> int:
        """The step out of a return address with which a run may begin."""
        run = self.known.get(pc)
        return run[-1] if run is not None else self._called.get(pc, 0)

    def _leads(self, pcs: Sequence[int], n: int) -> bool:
        """Whether the return address at `n` surely, by a plain step, leads to the next one."""
        if n + 1 >= len(pcs):
            return False
        caller, sure = self._callers[pcs[n]]
        return caller == pcs[n + 1] and sure >= _SURE and self.step(pcs[n]) > 0

    def _add(self, pcs: Sequence[int]) -> None:
        """Make a run: it begins with the first, whose step leads to the next one, and so on."""
        steps = [self.step(pc) for pc in pcs]
        form = "".join(f"{8 * (step - 1)}xQ" for step in steps[:-1])
        read, reach = Struct("=" + form).unpack_from, sum(steps[:-1])
        self.known[pcs[0]] = read, tuple(pcs[1:]), reach, steps[0]
        self._called[pcs[0]] = self._mark
