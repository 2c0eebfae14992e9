"""Strategies of core files, whose backtrace is known, as the kernel and qemu would write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from unwind.testing.chains import Chain, Known
from unwind.testing.core_files import PAGE, Core, Load, R, W, X, stack_pages
from unwind.testing.damaged import wounded
from unwind.testing.elves import elf_areas
from unwind.testing.images import FIRST, image
from unwind.testing.snapshots import NAMES, chains

__all__ = ["CoreMade", "core_files", "core_of", "damaged_core_files"]

_SIGSEGV = 11


@dataclass(frozen=True)
class CoreMade:
    """The bytes of a core, and `frames`, all that is to be found, innermost first."""

    data: bytes = field(repr=False)
    frames: tuple[Known, ...]
    chain: Chain = field(repr=False)


@st.composite
def core_files(
    draw: st.DrawFn, archs: Sequence[str] = NAMES, most: int = 6, signals: bool = True
) -> CoreMade:
    """A core that holds the whole module, so that no file is needed beside it.

    The module is found by NT_FILE, or by the auxiliary vector alone as in qemu's cores.
    """
    made = draw(chains(archs, most, signals))
    core = core_of(made, image(made, headers=False), files=draw(st.booleans()))
    return CoreMade(core.build(), made.frames, made)


def core_of(made: Chain, file: bytes, files: bool = True, name: str = "/chain.so") -> Core:
    """A core of one thread with all memory: the module's, mapped as one piece, and the stacks."""
    arch = made.dialect.arch
    order = "<" if arch.byteorder == "little" else ">"
    core = Core(arch.elf_class, order, arch.machine, flags=arch.flags_value)
    core.thread_of(arch, 100, made.registers, _SIGSEGV)
    core.process(100, b"chain", b"chain")
    start = FIRST + made.bias
    head = 64 if arch.elf_class == 64 else 52
    entry = 56 if arch.elf_class == 64 else 32
    count = int.from_bytes(file[head - 8 : head - 6], arch.byteorder)
    core.auxv(phdr=start + head, phent=entry, phnum=count, entry=made.frames[-1].pc)
    pages = -(-len(file) // PAGE) * PAGE
    if files:
        core.files((start, start + pages, 0, name))
    core.loads.append(Load(start, file.ljust(pages, b"\0"), flags=R | X))
    core.loads += [Load(at, data, flags=R | W) for at, data in stack_pages(made.stacks)]
    core.loads.sort(key=lambda load: load.start)
    return core


@st.composite
def damaged_core_files(draw: st.DrawFn, archs: Sequence[str] = NAMES) -> CoreMade:
    """A core with something wrong in it; `frames` are those of before."""
    made = draw(core_files(archs, most=3))
    order = made.chain.dialect.arch.byteorder
    data = draw(wounded(made.data, elf_areas(made.data), order))
    return CoreMade(data, made.frames, made.chain)
