"""Module: an Image at a bias in one address space; the only place that turns pc into vaddr."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["VDSO", "Module", "State"]

VDSO = "[vdso]"  # the name of its module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.image import Image


class State:
    """What became of a module's file, as in the JSON."""

    OK = "ok"  # the file was found; its build-id, where the source has one, is the same
    MEMORY_ONLY = "memory-only"  # no file: what the source's memory holds serves
    MISSING = "missing"  # no file, and no memory that would serve
    MISMATCH = "mismatch"  # a file with another build-id was found and not used


class Module(Value):
    """An image mapped into a process: `image` at `bias`, in `ranges` of addresses.

    `image` is None when neither the file nor memory gave one. `name` is the path as the source
    recorded it, `file` the file that was really read. `ranges` are the (start, end) mappings,
    sorted; between them lie holes that belong to nobody or to others. `tried` tells for each
    place looked at what was found there, for the end sentence.
    """

    name: str
    bias: int
    ranges: tuple[tuple[int, int], ...]
    image: Image | None
    state: str = State.OK
    file: str | None = None
    build_id: bytes | None = None
    tried: tuple[str, ...] = ()

    @property
    def start(self) -> int:
        """The lowest address of the module."""
        return self.ranges[0][0]

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.ranges[-1][1]

    @property
    def is_unseen_vdso(self) -> bool:
        """Whether it is a vdso whose code nobody has, as in cores of qemu-user from version 8.2 on.

        Nothing in a vdso calls anything: what returns there is the handler of a signal.
        """
        return self.image is None and self.name == VDSO

    def to_vaddr(self, pc: int) -> int:
        """The link-time address of a run-time one."""
        return (pc - self.bias) & 0xFFFF_FFFF_FFFF_FFFF

    def to_pc(self, vaddr: int) -> int:
        """The run-time address of a link-time one."""
        return (vaddr + self.bias) & 0xFFFF_FFFF_FFFF_FFFF
