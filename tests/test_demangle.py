"""C++ names: as c++filt has them, without a runtime, and made to expand without end."""

from __future__ import annotations

import ctypes
import re
import sys

import pytest

from tests.elves import library, mapped
from tests.support import cannot, need, python, run
from unwind.symbol_sections import symbols_of
from unwind.symbols import demangle as module
from unwind.symbols.demangle import demangle


@pytest.fixture(autouse=True)
def a_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins as a process does; without libstdc++ here, it does not begin."""
    monkeypatch.setattr(module, "_runtime", None)
    monkeypatch.setattr(module, "_package", None)
    try:
        ctypes.CDLL("libstdc++.so.6")
    except OSError:
        cannot("libstdc++.so.6 is not installed")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_Z3foov", "foo()"),
        ("_ZN3foo3barEi", "foo::bar(int)"),
        ("_ZNSt6vectorIiSaIiEE9push_backERKi",
         "std::vector<int, std::allocator<int> >::push_back(int const&)"),
        ("_ZTV3foo", "vtable for foo"),
        ("_ZN3fooD1Ev", "foo::~foo()"),
        ("_ZZ4mainENKUlvE_clEv", "main::{lambda()#1}::operator()() const"),
        ("_Z3foov.cold", "foo() [clone .cold]"),
        ("_Z3foov.part.0", "foo() [clone .part.0]"),
        ("_Z3foov.isra.0", "foo() [clone .isra.0]"),
        ("_Z3foov.isra.0.cold", "foo() [clone .isra.0] [clone .cold]"),
        ("_Z3foov.constprop.0.isra.1", "foo() [clone .constprop.0] [clone .isra.1]"),
        ("_Z3foov.lto_priv.0", "foo() [clone .lto_priv.0]"),
        ("_Z3foov.llvm.1234567890", "foo() [clone .llvm.1234567890]"),
        ("_Z3foov@plt", "foo()@plt"),
    ],
)  # fmt: skip
def test_cxx_names_are_written_as_their_author_did(name: str, shown: str) -> None:
    assert demangle(name) == shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", "core::fmt::Formatter::write_str"),
        ("_ZN4core3fmt5write17h0123456789abcdefE.cold", "core::fmt::write [clone .cold]"),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        ("_RINvNtC3std3mem8align_ofNtNtC3foo3bar3BazE", "std::mem::align_of::<foo::bar::Baz>"),
        ("$s4main3fooyyF", "main.foo() -> ()"),
        ("_D3std5stdio7writelnFZv", "std.stdio.writeln()"),
        ("_Dmain", "_Dmain"),
        ("_Rb_tree", "_Rb_tree"),
        ("$x", "$x"),
    ],
)
def test_names_of_other_languages_are_the_packages(name: str, shown: str) -> None:
    pytest.importorskip("demangle")
    assert demangle(name) == shown


def test_rust_names_are_as_cxxfilt_has_them() -> None:
    need("c++filt")
    pytest.importorskip("demangle")
    names = [
        "_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE",
        "_ZN71_$LT$Test$u20$$u2b$$u20$$u27$static$u20$as$u20$foo..Bar$LT$Test$GT$$GT$3bar"
        "17h930b740aa94f1d3aE",
        "_RNvCs1234_7mycrate3foo",
    ]
    shown = run("c++filt", "-s", "rust", *names).stdout.splitlines()
    # It keeps the hashes, which are for linkers.
    plain = [re.sub(r"::h[0-9a-f]{16}$|\[[0-9a-f]+\]", "", text) for text in shown]
    assert [demangle(name) for name in names] == plain


def test_without_the_package_older_rust_names_are_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "demangle", None)
    assert demangle("_RNvCs1234_7mycrate3foo") == "_RNvCs1234_7mycrate3foo"
    older = "_ZN4core3fmt5write17h0123456789abcdefE"
    assert demangle(older) == "core::fmt::write::h0123456789abcdef"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "main",
        "_start",
        "__libc_start_main",
        "_Z",
        "_Zonk",
        "_ZN",
        "Z3foov",
        "f.cold",
        "_Z3f\udcff",
    ],
)
def test_other_names_and_broken_ones_stay_as_they_are(name: str) -> None:
    assert demangle(name) == name


def test_every_name_of_libstdcxx_is_what_cxxfilt_prints() -> None:
    need("c++filt")
    names = [s.name for s in symbols_of(mapped(library("libstdc++.so.6")), lambda: None)]
    names = sorted({name for name in names if name.startswith("_Z")})
    assert len(names) > 3000
    printed = run("c++filt", "--no-verbose", input="\n".join(names)).stdout.splitlines()
    assert [demangle(name) for name in names] == printed


def test_names_stay_mangled_where_there_is_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RUNTIMES", ("libnone.so.1", "libc.so.6"))
    assert demangle("_Z3foov.cold") == "_Z3foov.cold"


def test_names_stay_mangled_where_there_is_no_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ctypes", None)
    assert demangle("_Z3foov") == "_Z3foov"


def test_ctypes_is_loaded_for_cxx_names_only() -> None:
    done = python(
        "-c",
        "import sys; from unwind.symbols.demangle import demangle as d;"
        "d('main'); print('ctypes' in sys.modules); d('_Z1fv'); print('ctypes' in sys.modules)",
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


def doubling(levels: int) -> str:
    """A function of a type that holds the previous type twice, and so on."""
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    name, last = "_Z1f1aIiiE", "S0_"
    for level in range(levels):
        name += f"S_I{last}{last}E"
        last = f"S{digits[level + 1]}_"
    return name


def test_a_name_that_expands_a_little_is_demangled() -> None:
    assert len(demangle(doubling(6))) > 2000


@pytest.mark.parametrize("levels", [16, 24, 34])
def test_a_name_made_to_expand_without_end_stays_as_it_is(levels: int) -> None:
    assert demangle(doubling(levels)) == doubling(levels)


def test_endless_names_stay_as_they_are() -> None:
    for name in ("_Z1f" + "P" * 100_000 + "i", "_Z1f" + "S_" * 4000, "_ZN" + "1a" * 4000 + "E"):
        assert demangle(name).startswith(("_Z", "a::"))


def test_results_are_given_back_to_the_runtime() -> None:
    """60,000 results of 1 KB each would be 60 MB."""
    done = python(
        "-c",
        "from unwind.symbols.demangle import demangle\n"
        "def pages(): return int(open('/proc/self/statm').read().split()[1])\n"
        f"name = {doubling(5)!r}; demangle(name); before = pages()\n"
        "for _ in range(60000): demangle(name)\n"
        "print(pages() - before)",
    )
    assert int(done.stdout) < 5000, done.stderr
