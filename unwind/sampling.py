"""Samples of a recording in, their stacks out: walked fast where that will do, else exactly."""

from __future__ import annotations

from unwind.dwarf.outlines import UNDEFINED
from unwind.fast import FastUnwinder
from unwind.frames import End, Trust
from unwind.perf.constants import CONTEXT

__all__ = ["Sampler", "Walked", "split_callchain"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from unwind.dwarf.outlines import Outline
    from unwind.frames import Stack
    from unwind.perf.samples import Sample
    from unwind.profile import How
    from unwind.snapshot import Snapshot
    from unwind.space import AddressSpace
    from unwind.unwinder import Unwinder

    # The user's pcs, innermost first; the End; how the frames were found, None: by CFI, all of
    # them but the innermost; the Stack, where the exact walk was taken.
    Walked: TypeAlias = tuple[list[int], str, How | None, Stack | None]
    Extent: TypeAlias = tuple[int | None, int | None]  # CFA, stack pointer

_NOTHING: Walked = [], End.OUTERMOST, None, None


class Sampler:
    """Walks samples, at full speed those that need no more than CFI.

    `snapshot` makes of a sample what the exact walk wants. Of each stack only the `most`
    innermost frames are kept.
    """

    def __init__(
        self,
        snapshot: Callable[[Sample], Snapshot],
        unwinder: Unwinder,
        most: int | None = None,
    ):
        self.snapshot = snapshot
        self.most = most
        if most is None:  # one call less for each sample
            self.walk = self._walk  # type: ignore[method-assign]
        self.unwinder = unwinder
        self.fast = FastUnwinder(unwinder)

    def walk(self, sample: Sample) -> Walked:
        """The user's part of a sample's stack, no longer than asked for."""
        walked = self._walk(sample)
        if self.most is None or len(walked[0]) <= self.most:
            return walked
        pcs, _, how, _ = walked
        return pcs[: self.most], End.LIMIT, how[: self.most] if how is not None else None, None

    def _walk(self, sample: Sample) -> Walked:
        """The user's part of a sample's stack.

        A sample without the user's registers has what the kernel found by frame pointers or in
        the processor's record of branches, if anything: then the end is `unknown-register`.
        """
        _, _, _, _, _, _, space, pc, sp, fp, lr, stack, _ = sample
        if stack is None:
            return self._recorded(sample)
        found = self.fast.sampled(space, pc, sp, fp, lr, stack)
        if found is not None:
            pcs, end, guessed = found
            if not guessed:
                return pcs, end, None, None
            trusts = self.fast.trusts(space, pcs) or ()
            return pcs, end, tuple([(trust, n > 0) for n, trust in enumerate(trusts)]), None
        whole = self.unwinder.unwind(self.snapshot(sample))
        frames = whole.frames
        how = tuple([(frame.trust, frame.called and not frame.signal) for frame in frames])
        return [frame.pc for frame in frames], whole.end, how, whole

    def extents(self, sample: Sample, walked: Walked) -> list[Extent]:
        """The CFA and the stack pointer of each frame that was found; None where one is not known.

        The fast walk keeps none of them. Here the CFA's rules alone are followed once more.
        """
        pcs, _, how, stack = walked
        found: list[Extent] | None = []
        if stack is None and sample[11] is not None:
            # Guesses, and rows that are no plain ones, take the exact walk.
            found = self._extents(sample, pcs) if how is None else None
            if found is None:
                stack = self.unwinder.unwind(self.snapshot(sample))
        if stack is not None:
            sp, frames = self.unwinder.arch.sp, stack.frames[: len(pcs)]
            found = [(frame.cfa, frame.registers.get(sp)) for frame in frames]
        found = found or []
        return found + [(None, None)] * (len(pcs) - len(found))

    def _extents(self, sample: Sample, pcs: list[int]) -> list[Extent] | None:
        """Those of a stack that was walked by CFI; None where a row is no plain one."""
        space, sp, fp, words = sample[6], sample[8], sample[9], sample[11]
        if words is None:
            return None
        arch, word = self.unwinder.arch, self.unwinder.arch.word
        start = sp = arch.data_address(sp)
        found: list[Extent] = []
        for n, pc in enumerate(pcs):
            known = self._outline(space, pc, n > 0)
            if known is None or known[0] not in (arch.sp, arch.fp):
                return None
            cfa = arch.data_address((sp if known[0] == arch.sp else fp) + known[1])
            is_last = n == len(pcs) - 1
            if is_last and known[2] != UNDEFINED and cfa - start > len(words) * word:
                found.append((None, sp))  # the copy of the stack ends within the frame
                break
            found.append((cfa, sp))
            at = cfa + known[3] - start  # what is not saved lies nowhere
            if 0 <= at < len(words) * word:
                fp = words[at // word]
            sp = cfa
        return found

    def _outline(self, space: AddressSpace, pc: int, called: bool) -> Outline | None:
        """The row's outline at a place, None where only the row itself can tell."""
        lookup_pc = self.unwinder.arch.call_before(pc) if called else pc
        module = space.find(lookup_pc)
        if module is None or module.image is None:
            return None
        return self.unwinder.lookup.outline(module.image, module.to_vaddr(lookup_pc), called)

    def detail(self, sample: Sample, walked: Walked) -> str:
        """One sentence on why a stack ends before its outermost frame."""
        _, end, _, stack = walked
        if stack is not None or end == End.OUTERMOST:
            return stack.detail if stack is not None else ""
        if end == End.LIMIT:
            return f"only {len(walked[0])} frames were asked for"
        if sample[11] is None:
            return _without_registers(sample)
        return self.unwinder.unwind(self.snapshot(sample)).detail

    def _recorded(self, sample: Sample) -> Walked:
        """What the callchain has of the user's frames."""
        _, user = split_callchain(sample[5])
        if not user and sample[7]:  # a 32-bit task
            return [sample[7]], End.UNKNOWN_REGISTER, ((Trust.CONTEXT, False),), None
        if not user:
            return _NOTHING
        how = tuple([(Trust.RECORDED, n > 0) for n in range(len(user))])
        return list(user), End.UNKNOWN_REGISTER, how, None


def _without_registers(sample: Sample) -> str:
    """Why a sample has no registers to begin a walk with, and what it has instead."""
    if sample[2].regs:
        return "a 32-bit task: stacks of 64-bit ones are unwound, of this one its pc is known"
    if sample[5]:
        return "the kernel followed frame pointers, or the processor's record of branches"
    return "perf recorded where the sample stood, and nothing of its stack"


def split_callchain(chain: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The kernel's addresses and the user's in a callchain, innermost first, without marks."""
    if not chain:
        return (), ()
    kernel: list[int] = []
    user: list[int] = []
    into = user
    for address in chain:
        if address >= CONTEXT.first:
            into = user if address == CONTEXT.user else kernel
        else:
            into.append(address)
    return tuple(kernel), tuple(user)
