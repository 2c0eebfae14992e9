"""Strategies of CIEs and FDEs: every version, pointer encoding, byte order and address size."""

from __future__ import annotations

from functools import cache
from typing import Literal

from hypothesis import strategies as st

from unwind.dwarf.constants import DW_EH_PE
from unwind.testing.assembler import CIE, FDE, Target
from unwind.testing.programs import beginnings, programs, reach

__all__ = ["FORMATS", "Kind", "base_of", "cies", "encodings", "extents", "fdes", "targets"]

Kind = Literal["eh_frame", "debug_frame"]

# How numbers may be written; the first is what Linux's compilers write.
FORMATS = (
    *(DW_EH_PE.sdata4, DW_EH_PE.absptr, DW_EH_PE.udata4, DW_EH_PE.udata8, DW_EH_PE.sdata8),
    *(DW_EH_PE.udata2, DW_EH_PE.sdata2, DW_EH_PE.uleb128, DW_EH_PE.sleb128, DW_EH_PE.signed),
)
# What they may be relative to. Linkers write nothing but pcrel; gcc's own unwinder knows all.
_RELATIVE = (DW_EH_PE.pcrel, DW_EH_PE.textrel, DW_EH_PE.datarel)
_ABSOLUTE = (DW_EH_PE.absptr, DW_EH_PE.aligned)
# A section lies at `base` + 0x1000 and its code from `base` + CODE on, so that every number of two
# bytes that is relative to anything near reaches it, and every one at all where `base` is 0.
SECTION, CODE, TOP = 0x1000, 0x4000, 0x7F00
_BASES = {2: (0,), 4: (0, 0x40_0000, 0x7FFF_0000), 8: (0, 0x40_0000, 0x5555_5555_0000)}
_VERSIONS = (1, 3, 4)


@st.composite
def targets(draw: st.DrawFn, sizes: tuple[int, ...] = (8, 4)) -> Target:
    """A byte order, an address size, and where text and data of the module begin."""
    size = draw(st.sampled_from(sizes))
    base = draw(st.sampled_from(_BASES[size]))
    text, data = draw(st.integers(0, CODE)), draw(st.integers(0, CODE))
    return Target(draw(st.sampled_from(["little", "big"])), size, base + text, base + data)


def base_of(target: Target) -> int:
    """The address that all of the target's module lies behind, within 64 KB."""
    return target.text_base & ~0x7FFF


def encodings(target: Target) -> st.SearchStrategy[int]:
    """Encodings in which a pointer to the code can be written, that of compilers first."""
    return st.sampled_from(_encodings(base_of(target) == 0))


@cache
def _encodings(low: bool) -> tuple[int, ...]:
    """Absolute ones of a few bytes reach low addresses only."""
    full = (DW_EH_PE.absptr, DW_EH_PE.signed, DW_EH_PE.uleb128, DW_EH_PE.sleb128)
    return (
        *(base | form for base in _RELATIVE for form in FORMATS),
        *(base | form for base in _ABSOLUTE for form in (FORMATS if low else full)),
    )


@st.composite
def cies(draw: st.DrawFn, target: Target, kind: Kind = "eh_frame") -> CIE:
    """A CIE: versions 1, 3 and 4; z with R, L, P, S, B, G and unknown letters; "eh"; 64-bit."""
    version = draw(st.sampled_from(_VERSIONS))
    augmentation = draw(_augmentations())
    if kind == "debug_frame" and draw(st.booleans()):
        augmentation = ""
    segment_size = draw(st.sampled_from([0, 0, 0, 1, 2, 4, 8])) if version == 4 else 0
    # An address size of its own, as far as that reaches everything.
    sizes = [None, None, 2, 4, 8] if version == 4 and not base_of(target) else [None]
    return CIE(
        draw(beginnings(target)),
        version=version,
        augmentation=augmentation,
        code_align=draw(st.sampled_from([1, 4, 2])),
        data_align=draw(st.sampled_from([-target.address_size, -4, -1, 8])),
        return_address=draw(st.integers(0, 40) | st.just(200 if version == 1 else 300)),
        pointers=draw(encodings(target)) if "R" in augmentation else DW_EH_PE.absptr,
        lsda_encoding=draw(_optional(target)) if "L" in augmentation else DW_EH_PE.omit,
        personality_encoding=draw(_optional(target)) if "P" in augmentation else DW_EH_PE.omit,
        personality=base_of(target) + draw(st.integers(CODE + 1, TOP)),
        unknown=draw(st.binary(max_size=4)) if "x" in augmentation else b"",
        address_size=draw(st.sampled_from(sizes)),
        segment_size=segment_size,
        wide=draw(st.sampled_from([False, False, True])),
    )


@st.composite
def _augmentations(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 5)) == 5:
        return draw(st.sampled_from(["", "eh", "armcc+", "S", "SB"]))
    letters = draw(st.lists(st.sampled_from("RLPSBG"), unique=True, max_size=6))
    # What nobody knows ends what can be read, so it stands last.
    return "z" + "".join(letters) + draw(st.sampled_from(["", "", "x"]))


def _optional(target: Target) -> st.SearchStrategy[int]:
    return encodings(target) | st.just(DW_EH_PE.omit)


@st.composite
def fdes(draw: st.DrawFn, target: Target, cie: CIE, start: int, longest: int = 0x200) -> FDE:
    """An FDE of `cie` for code at `start`, of at most `longest` bytes."""
    program = draw(programs(target, code_align=cie.code_align, start=start, most_rows=4))
    size = reach(program, cie.code_align, start) + draw(st.integers(1, 40))
    while size > longest:  # shorter programs reach less far
        program = program[: len(program) // 2]
        size = reach(program, cie.code_align, start) + 1
    return FDE(
        start,
        size,
        program,
        cie,
        lsda=base_of(target) + draw(st.integers(CODE + 1, TOP)) if draw(st.booleans()) else 0,
        segment=draw(st.integers(1, 100)) if cie.segment_size else 0,
    )


@st.composite
def extents(draw: st.DrawFn, target: Target, most: int = 8, longest: int = 0x200) -> list[int]:
    """Where up to `most` functions begin, in any order, `longest` bytes or more apart."""
    room = (TOP - CODE) // longest
    slots = draw(st.lists(st.integers(0, room - 1), unique=True, max_size=min(most, room)))
    return [base_of(target) + CODE + slot * longest for slot in slots]
