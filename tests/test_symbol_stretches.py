"""A symbol's stretch: for which places around one the answer is the same, so that it is kept."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.elves import Sym
from tests.test_symtab import symbols, table_of
from unwind.symbols.table import TableSymbolizer


@given(st.lists(symbols, max_size=12), st.lists(st.integers(0xFFF, 0x1060), min_size=1))
def test_what_is_said_of_a_place_holds_around_it(chosen: list[Sym], vaddrs: list[int]) -> None:
    table, plain = table_of(*chosen), table_of(*chosen)
    for vaddr in range(0x1000, 0x1010, 3):
        table.find(vaddr)  # by now there is an index
    for vaddr in vaddrs:
        found, low, high = table.around(vaddr)
        assert low <= vaddr < high
        for other in range(max(low, 0xFF0), min(high, 0x1070)):
            assert plain.find(other) == found


def test_functions_and_gaps_are_asked_for_once() -> None:
    chosen = [Sym(f"f{n}", 0x1000 + 64 * n, 32) for n in range(100)]
    table = table_of(*chosen)
    for vaddr in (0x1000, 0x1040):
        table.find(vaddr)
    assert table.around(0x1047)[1:] == (0x1040, 0x1060)
    assert table.around(0x1067) == (None, 0x1067, 0x1080)


class Counting:
    """An image whose table counts the questions that it gets."""

    told = None

    def __init__(self, *chosen: Sym):
        self.symbols, self.elf, self.asked = table_of(*chosen), self, 0
        self._around = self.symbols.around
        self.symbols.around = self._counted  # type: ignore[method-assign]

    def _counted(self, vaddr: int) -> object:
        self.asked += 1
        return self._around(vaddr)

    def section(self, name: str) -> None:
        return None


def test_a_symbolizer_remembers() -> None:
    image = Counting(*[Sym(f"f{n}", 0x1000 + 64 * n, 48) for n in range(50)])
    symbolizer, chance = TableSymbolizer(), random.Random(1)
    plain = table_of(*[Sym(f"f{n}", 0x1000 + 64 * n, 48) for n in range(50)])
    for vaddr in [chance.randrange(0xFF0, 0x1D00) for _ in range(3000)]:
        assert symbolizer.symbol(image, vaddr) == plain.find(vaddr)  # type: ignore[arg-type]
    assert image.asked < 400
