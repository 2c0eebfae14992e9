"""Steps for the kernel: the pcs of a stack that was walked in, the plain rows at them out."""

from __future__ import annotations

from unwind.dwarf.outlines import ODD, UNDEFINED, UNSAVED
from unwind.values import Value

__all__ = ["Step", "steps_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.dwarf.outlines import Outline
    from unwind.image import Image
    from unwind.leaks.known import KnownStack

_FARTHEST = 1 << 31  # bytes from a CFA


class Step(Value):
    """The step out of `pc`, a return address if `called`: struct step of bpf/leaks.h."""

    pc: int
    called: bool
    cfa: int
    saved_pc: int
    saved_fp: int
    flags: tuple[str, ...]


def steps_of(
    known: KnownStack, outline: Callable[[Image, int, bool], Outline | None]
) -> Iterator[Step]:
    """The steps out of a complete stack's pcs, of those whose row in the CFI is a plain one.

    `outline` is Lookup's.
    What is found by another row, or by no row, is left out: the kernel does not walk such a stack.
    """
    space, arch = known.space, known.space.arch
    if not known.complete or known.how is not None:
        return
    for n, pc in enumerate(known.pcs):
        lookup_pc = arch.call_before(pc) if n else pc
        module = space.find(lookup_pc)
        if module is None or module.image is None:
            return
        found = outline(module.image, module.to_vaddr(lookup_pc), n > 0)
        step = _step(pc, n > 0, found, arch.sp, arch.fp) if found is not None else None
        if step is None:
            return
        yield step


def _step(pc: int, called: bool, row: Outline, sp: int, fp: int) -> Step | None:
    """A row as a step, None where it is no plain one."""
    register, offset, saved_pc, saved_fp, saved_sp = row
    flags = []
    if saved_pc == UNDEFINED:
        return Step(pc, called, 0, 0, 0, ("OUTERMOST",))
    if register not in (sp, fp) or saved_sp != UNSAVED or ODD in (offset, saved_pc, saved_fp):
        return None
    if register == fp:
        flags.append("ON_FP")
    if saved_pc == UNSAVED:
        if called:
            return None
        flags.append("IN_LINK")
        saved_pc = 0
    if saved_fp == UNDEFINED:
        return None
    if saved_fp == UNSAVED:
        saved_fp = 0
    else:
        flags.append("SAVES_FP")
    if max(abs(offset), abs(saved_pc), abs(saved_fp)) >= _FARTHEST:
        return None
    return Step(pc, called, offset, saved_pc, saved_fp, tuple(flags))
