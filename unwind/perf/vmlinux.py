"""A kernel's vmlinux, and where a recording says that it lay, in; names of its addresses out."""

from __future__ import annotations

from unwind.errors import SourceError

__all__ = ["Vmlinux"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unwind.image import Image
    from unwind.perf.processes import Mapped

_KERNEL = "[kernel.kallsyms]"  # what perf calls the kernel proper; a symbol's name follows
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Vmlinux:
    """Names addresses by the symbols of `image`, moved as far as the kernel was when it booted.

    `mapped` are the mappings of the kernel, to which a recording adds as it is read. perf tells in
    the first one's name of a symbol, and in its offset where that lay (KASLR). SourceError where
    `build_id` is known and another one than the image's.
    """

    def __init__(self, image: Image, mapped: Sequence[Mapped], build_id: bytes | None):
        path = image.path or "vmlinux"
        if build_id is not None and image.build_id != build_id:
            raise SourceError(f"it is not the recorded kernel, of build-id {build_id.hex()}", path)
        if next(iter(image.symbols), None) is None:
            raise SourceError("no symbols", path)
        self._image, self._mapped = image, mapped
        self._known: tuple[int, int, int] | None = None

    def find(self, address: int) -> tuple[str, str | None, int] | None:
        """The name and the offset of `address`, as Kallsyms; None outside of the kernel proper."""
        start, end, shift = self._place()
        if not start <= address < end:
            return None
        symbol = self._image.symbols.find(address - shift & _MASK)
        return (symbol.name, None, address - shift - symbol.vaddr & _MASK) if symbol else None

    def _place(self) -> tuple[int, int, int]:
        """From where to where the kernel lies, and how far that is from where it was linked to."""
        if self._known is None:
            for each in self._mapped:
                if each.name.startswith(_KERNEL):
                    symbol = self._image.symbols.named(each.name.removeprefix(_KERNEL))
                    shift = each.offset - symbol.vaddr & _MASK if symbol is not None else 0
                    self._known = each.start, each.end, shift
                    break
            else:
                return 0, _MASK, 0  # nobody has told yet
        return self._known
