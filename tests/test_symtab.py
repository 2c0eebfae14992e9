"""Which symbol names a place: libdwfl's rules one by one, and its verdicts on this machine."""

from __future__ import annotations

import lzma
import os
import random
import tracemalloc
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from tests.elves import (
    SHAPES,
    Sect,
    Sym,
    build,
    elf_files,
    library,
    loaded,
    make_elf,
    mapped,
    symbol_bytes,
    with_symbols,
    without_sections,
)
from tests.support import need, run
from unwind import symbol_search
from unwind.elf import SHT, Elf
from unwind.memory import Span
from unwind.protocols import ByteOrder
from unwind.symbol_search import SymbolTable
from unwind.symbol_sections import symbols_of
from unwind.symtab import STB, STT, Table

LOCAL, GLOBAL, WEAK, UNIQUE = STB.LOCAL, STB.GLOBAL, STB.WEAK, STB.GNU_UNIQUE
DEBUG_DIR = Path("/usr/lib/debug/.build-id")


def no_debug() -> Elf | None:
    return None


def table_of(*symbols: Sym, **options: object) -> SymbolTable:
    return symbols_of(Elf(with_symbols(symbols, **options)), no_debug)


def name_at(vaddr: int, *symbols: Sym) -> str | None:
    """What names `vaddr`, which must not depend on whether a table was asked before."""
    table = table_of(*symbols)
    first, second, third = (table.find(vaddr) for _ in range(3))
    assert first == second == third
    return first.name if first else None


# ------------------------------------------------------------------ the rules


def test_a_symbol_names_each_address_from_its_start_to_its_size() -> None:
    symbols = [Sym("f", 0x1000, 16), Sym("g", 0x1020, 16)]
    places = {0xFFF: None, 0x1000: "f", 0x100F: "f", 0x1010: None, 0x1020: "g", 0x1030: None}
    assert {vaddr: name_at(vaddr, *symbols) for vaddr in places} == places


def test_of_nested_symbols_the_closest_start_wins() -> None:
    outer, inner = Sym("outer", 0x1000, 0x100), Sym("inner", 0x1040, 16)
    assert name_at(0x1044, outer, inner) == "inner"
    assert name_at(0x1044, inner, outer) == "inner"
    assert name_at(0x1060, outer, inner) == "outer"


def test_a_global_symbol_wins_over_a_local_one_even_if_that_is_closer() -> None:
    outer, inner = Sym("outer", 0x1000, 0x100), Sym("inner", 0x1040, 16, binding=LOCAL)
    assert name_at(0x1044, inner, outer) == "outer"


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        ((LOCAL, GLOBAL), "second"),
        ((LOCAL, WEAK), "second"),
        ((WEAK, GLOBAL), "second"),
        ((GLOBAL, WEAK), "first"),
        ((UNIQUE, WEAK), "second"),
        ((GLOBAL, GLOBAL), "first"),
        ((WEAK, WEAK), "first"),
    ],
)
def test_of_aliases_the_stronger_binding_wins_and_of_equals_the_first(
    bindings: tuple[int, int], expected: str
) -> None:
    aliases = [Sym("first", 0x1000, 16), Sym("second", 0x1000, 16)]
    made = [Sym(s.name, s.value, s.size, 2, b) for s, b in zip(aliases, bindings, strict=True)]
    assert name_at(0x1008, *made) == expected


def test_of_symbols_at_one_start_the_smaller_wins_unless_its_binding_is_weaker() -> None:
    large = Sym("large", 0x1000, 32)
    assert name_at(0x1008, large, Sym("small", 0x1000, 16)) == "small"
    assert name_at(0x1008, Sym("small", 0x1000, 16), large) == "small"
    assert name_at(0x1008, large, Sym("small", 0x1000, 16, binding=WEAK)) == "large"


def test_a_sized_symbol_wins_over_a_closer_label() -> None:
    assert name_at(0x1044, Sym("f", 0x1000, 0x100), Sym("label", 0x1040)) == "f"


def test_a_label_names_what_follows_it_in_its_section_if_nothing_else_begins_there() -> None:
    label, next_one = Sym("label", 0x1040), Sym("next", 0x1080, 16)
    assert name_at(0x1044, label, next_one) == "label"
    assert name_at(0x1088, label, next_one) == "next"
    assert name_at(0x1094, label, next_one) is None
    assert name_at(0x103F, label) is None
    assert name_at(0x9000, label) is None  # the section has ended
    assert name_at(0x1044, Sym("label", 0x1040, section=2)) is None  # it is of another section


def test_a_label_within_the_bounds_of_a_symbol_that_ended_names_nothing() -> None:
    assert name_at(0x1060, Sym("f", 0x1000, 0x50), Sym("label", 0x1040)) is None


def test_of_labels_at_one_place_the_last_wins_and_local_ones_come_last() -> None:
    assert name_at(0x1008, Sym("first", 0x1000), Sym("second", 0x1000)) == "second"
    assert name_at(0x1008, Sym("global", 0x1000), Sym("own", 0x1000, binding=LOCAL)) == "own"


def test_an_absolute_label_names_its_own_address_only() -> None:
    label = Sym("absolute", 0x1040, section=0xFFF1)
    assert name_at(0x1040, label) == "absolute"
    assert name_at(0x1041, label) is None


@pytest.mark.parametrize("kind", [STT.SECTION, STT.FILE, STT.TLS])
def test_sections_files_and_thread_local_data_name_no_place(kind: int) -> None:
    assert name_at(0x1000, Sym("f", 0x1000, 64), Sym("no", 0x1000, 16, kind)) == "f"
    assert name_at(0x1008, Sym("label", 0x1000), Sym("no", 0x1004, 0, kind)) == "label"


@pytest.mark.parametrize("kind", [STT.NOTYPE, STT.OBJECT, STT.FUNC, STT.GNU_IFUNC])
def test_functions_data_untyped_symbols_and_resolvers_name_places(kind: int) -> None:
    assert name_at(0x1008, Sym("f", 0x1000, 16, kind)) == "f"


def test_undefined_and_nameless_symbols_name_no_place() -> None:
    assert name_at(0x1008, Sym("undefined", 0x1000, 16, section=0), Sym("", 0x1000, 16)) is None
    undefined, nameless = Sym("undefined", 0x1004, section=0), Sym("", 0x1004)
    assert name_at(0x1008, Sym("label", 0x1000), undefined, nameless) == "label"


@pytest.mark.parametrize("name", ["$x", "$d", "$a", "$t", "$d.12", "$xrv64i2p1"])
def test_mapping_symbols_do_not_exist(name: str) -> None:
    mapping = Sym(name, 0x1004, 0, STT.NOTYPE, LOCAL)
    assert name_at(0x1008, Sym("label", 0x1000), mapping) == "label"
    assert name_at(0x1008, mapping) is None
    assert name_at(0x1008, Sym("$start", 0x1000, 16)) == "$start"


def test_a_cold_part_has_its_own_name() -> None:
    parts = [Sym("f", 0x2000, 64), Sym("f.cold", 0x1000, 16, binding=LOCAL)]
    assert name_at(0x1004, *parts) == "f.cold"


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("memcpy@@GLIBC_2.14", "memcpy"),
        ("old@GLIBC_2.2.5", "old"),
        ("plain", "plain"),
        ("@odd", "@odd"),
    ],
)
def test_versions_are_no_part_of_a_name(stored: str, shown: str) -> None:
    assert name_at(0x1000, Sym(stored, 0x1000, 16)) == shown


def test_names_that_are_no_utf8_keep_their_bytes() -> None:
    stored = b"caf\xe9".decode("utf-8", "surrogateescape")
    found = name_at(0x1000, Sym(stored, 0x1000, 16))
    assert found is not None
    assert found.encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_long_names_are_whole_and_endless_ones_are_cut() -> None:
    assert name_at(0x1000, Sym("x" * 5000, 0x1000, 16)) == "x" * 5000
    assert len(name_at(0x1000, Sym("x" * 200_000, 0x1000, 16)) or "") < 1 << 17


def test_a_symbol_at_the_top_of_the_address_space_has_an_end() -> None:
    top = (1 << 64) - 16
    assert name_at(top + 8, Sym("top", top, (1 << 64) - 1)) == "top"


def test_a_symbol_is_found_by_its_name_defined_before_undefined_and_strong_before_weak() -> None:
    table = table_of(
        Sym("f", 0x1000, 16, binding=WEAK),
        Sym("f", 0x2000, 16),
        Sym("xf", 0x3000, 16),
        Sym("u", 0, 0, section=0),
        Sym("v@@V1", 0x4000, 4),
    )
    found = [table.named(name) for name in ("f", "v", "u", "", "none")]
    assert [s.vaddr if s else None for s in found] == [0x2000, 0x4000, None, None, None]


def test_a_symbol_tells_its_size_kind_binding_and_section() -> None:
    found = table_of(Sym("f", 0x1000, 16, STT.GNU_IFUNC, WEAK)).find(0x1001)
    assert found is not None
    assert (found.vaddr, found.size, found.kind, found.binding, found.section) == (
        *(0x1000, 16),
        *(STT.GNU_IFUNC, WEAK, 1),
    )


# ------------------------------------------------------------------ the tables


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"elf{s[0]}-{s[1]}")
def test_every_class_and_byte_order_is_read(shape: tuple[int, ByteOrder]) -> None:
    symbols = [Sym(f"f{n}", 0x1000 + 16 * n, 16, binding=n % 3) for n in range(100)]
    table = table_of(*symbols, shape=shape)
    for symbol in symbols:
        found = table.find(symbol.value + 5)
        assert found is not None
        assert (found.name, found.vaddr, found.size) == (symbol.name, symbol.value, 16)
    assert sorted(s.name for s in table) == sorted(s.name for s in symbols)


kinds = st.sampled_from([STT.FUNC, STT.FUNC, STT.FUNC, STT.OBJECT, STT.NOTYPE, STT.SECTION])
symbols = st.builds(
    Sym,
    st.sampled_from(["a", "b", "c", "", "$d"]),
    st.integers(0x1000, 0x1040),
    st.sampled_from([0, 0, 1, 4, 16, 64]),
    kinds,
    st.sampled_from([LOCAL, GLOBAL, WEAK]),
    st.sampled_from([0, 1, 1, 1]),
)


@given(st.lists(symbols, max_size=12))
def test_the_scan_of_a_large_table_and_the_index_agree(chosen: list[Sym]) -> None:
    data = with_symbols(chosen)
    indexed = symbols_of(Elf(data), no_debug)
    for vaddr in range(0x1000, 0x1050, 5):
        found = indexed.find(vaddr)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("unwind.symbol_search._FEW", 0)
            assert symbols_of(Elf(data), no_debug).find(vaddr) == found


@given(st.lists(symbols, max_size=12), st.integers(0xFFF, 0x1050))
def test_what_lies_around_some_code_is_the_same_with_and_without_an_index(
    chosen: list[Sym], vaddr: int
) -> None:
    data = with_symbols(chosen)
    scanned = symbols_of(Elf(data), no_debug)
    around, starting = scanned.code_around(vaddr), list(scanned.starting(vaddr))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("unwind.symbol_search._SCANS", 0)
        indexed = symbols_of(Elf(data), no_debug)
        assert indexed.code_around(vaddr) == around
        assert list(indexed.starting(vaddr)) == starting
    mapping = ("$d", LOCAL, 0)
    functions = [
        s
        for s in chosen
        if s.section and (s.kind == STT.FUNC or (s.kind == STT.NOTYPE and s.name))
        if s.kind == STT.FUNC or (s.name, s.binding, s.size) != mapping
    ]
    assert around[0] == max([s.value for s in functions if s.value <= vaddr], default=-1)
    assert around[2] == min([s.value for s in functions if s.value > vaddr], default=1 << 65)


def plainly(chosen: list[Sym], vaddr: int) -> Sym | None:
    """The rules as libdwfl applies them, in one pass over all global and then all local symbols."""
    best: Sym | None = None
    label: Sym | None = None
    limit = 0  # no label below this one counts
    rank = {LOCAL: 1, WEAK: 2, GLOBAL: 3}
    for group in ([s for s in chosen if s.binding], [s for s in chosen if not s.binding]):
        for s in group:
            if s.value > vaddr or not s.section or s.kind == STT.SECTION or not s.name:
                continue
            if s.name == "$d" and (s.kind, s.binding, s.size) == (STT.NOTYPE, LOCAL, 0):
                continue
            limit = max(limit, s.value + s.size)
            if s.size == 0:
                label = s if s.value >= limit else label
            elif vaddr < s.value + s.size:
                stronger = rank[s.binding] - rank[best.binding] if best else 0
                if (
                    best is None
                    or best.value < s.value
                    or (best.value == s.value and best.size > s.size and stronger >= 0)
                    or (best.value == s.value and best.size == s.size and stronger > 0)
                ):
                    best = s
        if best is not None:
            return best
    return label if label is not None and label.value >= limit else None


@given(st.lists(symbols, max_size=12), st.integers(0x1000, 0x1050))
def test_the_table_answers_as_one_pass_over_it_would(chosen: list[Sym], vaddr: int) -> None:
    check_against_the_plain_rules(chosen, [vaddr])


@pytest.mark.parametrize("seed", range(8))
def test_large_tables_answer_as_one_pass_over_them_would(seed: int) -> None:
    chance = random.Random(seed)
    chosen = [
        Sym(
            chance.choice(["a", "b", "c", "d", "", "$d"]),
            chance.randrange(0x1000, 0x5000),
            chance.choice([0, 0, 1, 4, 16, 64, 0x800 if chance.random() < 0.05 else 8]),
            chance.choice([STT.FUNC, STT.FUNC, STT.NOTYPE, STT.SECTION]),
            chance.choice([LOCAL, GLOBAL, WEAK]),
            chance.choice([0, 1, 1, 1]),
        )
        for _ in range(1500)
    ]
    check_against_the_plain_rules(chosen, [chance.randrange(0xFFF, 0x5800) for _ in range(200)])


def check_against_the_plain_rules(chosen: list[Sym], vaddrs: list[int]) -> None:
    table = table_of(*chosen)
    for vaddr in vaddrs:
        found, expected = table.find(vaddr), plainly(chosen, vaddr)
        mine = (found.name, found.vaddr, found.size, found.binding) if found else None
        assert mine == (
            (expected.name, expected.value, expected.size, expected.binding) if expected else None
        )


def test_the_first_question_sorts_no_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Index(symbol_search._Index):
        def __init__(self, table: Table, low: int, high: int):
            made.append(high - low)
            super().__init__(table, low, high)

    monkeypatch.setattr(symbol_search, "_Index", Index)
    monkeypatch.setattr(symbol_search, "_FEW", 0)
    entries, strings = symbol_bytes([Sym("f", 0x1000, 16), Sym("g", 0x2000, 16)])
    table = SymbolTable.of(Table(entries, strings, 64, "little"))
    assert table.find(0x1001)
    assert made == []
    assert table.find(0x2001)
    assert table.find(0x2002)
    assert made == [2]


def test_a_table_made_to_be_slow_is_not() -> None:
    """One symbol spans all of 100,000 short ones; the question lies behind them."""
    many = [Sym("s", 0x1000 + n, 1) for n in range(100_000)]
    table = table_of(Sym("all", 0x1000, 0x100_0000), *many)
    for vaddr in range(0x80_0000, 0x80_0000 + 300):
        found = table.find(vaddr)
        assert found is not None
        assert found.name == "all"


def test_strings_and_links_that_lie_give_no_names() -> None:
    entries, _ = symbol_bytes([Sym("f", 0x1000, 16)])
    for link in (0, 1, 2, 77):
        data = make_elf((), [Sect(".symtab", SHT.SYMTAB, entries, link=link, info=1)])
        symbols_of(Elf(data), no_debug).find(0x1008)
    for first in (0, 1 << 31):
        data = make_elf((), [Sect(".symtab", SHT.SYMTAB, entries + b"cut", info=first)])
        assert symbols_of(Elf(data), no_debug).find(0x1008) is None


# ------------------------------------------------------------------ where tables come from


def names_of(table: SymbolTable) -> list[tuple[str, int]]:
    return [(symbol.name, symbol.vaddr) for symbol in table]


@pytest.mark.parametrize("path", list(elf_files(40)), ids=lambda path: path.name)
def test_symbols_are_those_that_pyelftools_reads(path: Path) -> None:
    with path.open("rb") as file:
        other = ELFFile(file)
        section = other.get_section_by_name(".symtab") or other.get_section_by_name(".dynsym")
        expected = [
            (symbol.name.partition("@")[0], symbol["st_value"])
            for symbol in (section.iter_symbols() if section else ())
            if symbol["st_shndx"] != "SHN_UNDEF"
            and symbol["st_info"]["type"] not in ("STT_SECTION", "STT_FILE", "STT_TLS")
            and symbol.name
        ]
    assert names_of(symbols_of(mapped(path), no_debug))[: len(expected)] == expected


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_dynsym_is_found_without_section_headers(style: str, tmp_path: Path) -> None:
    path = build(tmp_path, "-shared", "-fPIC", f"-Wl,--hash-style={style}", "-s", name="lib.so")
    whole = symbols_of(mapped(path), no_debug)
    bare = Elf(without_sections(path.read_bytes()))
    base = 0x7F00_0000_0000
    in_memory = Elf.from_memory(Span(base, loaded(mapped(path))), base)
    assert "outer" in [name for name, _ in names_of(whole)]
    for elf in (bare, in_memory):
        assert names_of(symbols_of(elf, no_debug)) == names_of(whole)
        found = symbols_of(elf, no_debug).named("outer")
        assert found == whole.named("outer")


def test_gnu_debugdata_completes_dynsym(tmp_path: Path) -> None:
    need("objcopy", "strip", "xz")
    path = build(tmp_path, "-rdynamic")
    full = symbols_of(mapped(path), no_debug)
    mini, stripped = tmp_path / "mini", tmp_path / "stripped"
    run("objcopy", "-S", "--remove-section=.comment", "--keep-symbol=inner", path, mini)
    run("strip", "-o", stripped, path)
    assert run("xz", "-f", mini).returncode == 0
    add = f"--add-section=.gnu_debugdata={mini}.xz"
    assert run("objcopy", add, stripped).returncode == 0
    table = symbols_of(mapped(stripped), no_debug)
    for name in ("inner", "outer", "main"):
        vaddr = getattr(full.named(name), "vaddr", 0)
        assert getattr(table.find(vaddr + 2), "name", None) == name
    assert table.problems == ()


def test_damaged_debugdata_leave_dynsym_and_say_so() -> None:
    entries, strings = symbol_bytes([Sym("exported", 0x1000, 16)])
    sections = [
        Sect(".dynsym", SHT.DYNSYM, entries, link=2, info=1),
        Sect(".dynstr", SHT.STRTAB, strings),
        Sect(".gnu_debugdata", data=b"\xfd7zXZ\0 and no more"),
    ]
    table = symbols_of(Elf(make_elf((), sections)), no_debug)
    assert getattr(table.find(0x1008), "name", None) == "exported"
    assert len(table.problems) == 1
    assert ".gnu_debugdata" in table.problems[0]


def test_debugdata_that_unpack_to_a_thousandfold_are_cut() -> None:
    inner = make_elf((), [Sect(".symtab", SHT.SYMTAB, bytes(1 << 24))])
    packed = lzma.compress(inner)
    assert len(packed) < 1 << 14
    tracemalloc.start()
    try:
        table = symbols_of(Elf(make_elf((), [Sect(".gnu_debugdata", data=packed)])), lambda: None)
        assert table.find(0x1008) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 24  # the dictionary takes half of it
    finally:
        tracemalloc.stop()


def test_the_debug_file_is_looked_for_only_when_symtab_was_stripped() -> None:
    asked = []

    def debug() -> Elf | None:
        asked.append(1)
        return Elf(with_symbols([Sym("inner", 0x1000, 16, binding=LOCAL)]))

    whole = Elf(with_symbols([Sym("f", 0x1000, 16)]))
    assert getattr(symbols_of(whole, debug).find(0x1008), "name", None) == "f"
    assert asked == []
    assert getattr(symbols_of(Elf(make_elf()), debug).find(0x1008), "name", None) == "inner"
    assert asked == [1]


def test_what_symtab_lacks_dynsym_may_have() -> None:
    entries, strings = symbol_bytes([Sym("exported", 0x2000, 16)])
    dynsym = Sect(".dynsym", SHT.DYNSYM, entries, link=5, info=1)
    data = with_symbols([Sym("own", 0x1000, 16)], dynsym, Sect(".dynstr", SHT.STRTAB, strings))
    table = symbols_of(Elf(data), no_debug)
    assert [getattr(table.find(v), "name", None) for v in (0x1001, 0x2001)] == ["own", "exported"]


# ------------------------------------------------------------------ libdwfl's verdicts


def debug_file(elf: Elf) -> Elf | None:
    """As libdwfl finds it: by build-id below /usr/lib/debug."""
    build_id = (elf.build_id or b"").hex()
    path = DEBUG_DIR / build_id[:2] / f"{build_id[2:]}.debug"
    return mapped(path) if build_id and path.exists() else None


def places(elf: Elf, table: SymbolTable, count: int) -> list[int]:
    """Random addresses in the code of `elf`, and the edges of some of its symbols."""
    chance = random.Random(count)
    code = [segment for segment in elf.segments if segment.executable]
    found = [chance.randrange(s.vaddr, s.vaddr + s.memory_size) for s in code for _ in range(count)]
    inside = [
        symbol
        for symbol in table
        if any(s.vaddr <= symbol.vaddr < s.vaddr + s.memory_size for s in code) and symbol.size
    ]
    for symbol in chance.sample(inside, min(len(inside), count)):
        found += [symbol.vaddr, symbol.vaddr + symbol.size - 1, symbol.vaddr + symbol.size // 2]
    return found


@pytest.mark.parametrize(
    "name", ["libc.so.6", "libstdc++.so.6", "ld-linux", "libcrypto.so", "libsqlite3.so", "python3"]
)
def test_names_and_offsets_are_those_that_eu_addr2line_prints(name: str) -> None:
    need("eu-addr2line")
    path = Path(os.path.realpath("/usr/bin/python3")) if name == "python3" else library(name)
    elf = mapped(path)
    table = symbols_of(elf, lambda: debug_file(elf))
    vaddrs = places(elf, table, 300)
    asked = "\n".join(f"{vaddr:#x}" for vaddr in vaddrs)
    printed = run("eu-addr2line", "-S", "-e", path, input=asked).stdout.splitlines()[::2]
    for vaddr, line in zip(vaddrs, printed, strict=True):
        theirs, _, offset = line.partition("+")
        expected = (theirs.partition("@")[0], int(offset or "0", 16))
        found = table.find(vaddr)
        mine = (found.name, vaddr - found.vaddr) if found else ("", vaddr)
        if found or not line.startswith(("(", "??")):
            assert mine == expected, f"{vaddr:#x}"
