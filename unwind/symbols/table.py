"""Names from symbol tables: an image and a vaddr in, the symbol that covers it out."""

from __future__ import annotations

from unwind.errors import UnwindError

__all__ = ["TableSymbolizer"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.image import Image
    from unwind.symtab import Symbol


class TableSymbolizer:
    """Names places by the symbol tables of their image and of its separate debug file."""

    def symbol(self, image: Image, vaddr: int) -> Symbol | None:
        """The best symbol that covers `vaddr`, or None.

        A table that cannot be read gives no names; `image.symbols.problems` says why.
        """
        found = image.symbols.find(vaddr)
        if found is None and image.told is not None:
            return image.told.stub(vaddr)
        if found is None and image.elf.section(".plt") is not None:
            from unwind.symbols.plt import plt_symbol

            try:
                return plt_symbol(image.elf, vaddr)
            except UnwindError:
                return None
        return found
