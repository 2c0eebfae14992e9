"""Demangling: a symbol's name in, what its author wrote out, by others' help.

C++ names are the C++ runtime's, which is called through ctypes; those of Rust, Swift and D are the
package demangle's (the extra `symbols`). Either is loaded for the first name that looks so.
"""

from __future__ import annotations

__all__ = ["demangle"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_RUNTIMES = ("libstdc++.so.6", "libc++abi.so.1", "libc++.so.1", "/usr/lib/libc++.1.dylib")
_LONGEST_NAME = 1 << 13  # of 210,000 names on a Debian machine the longest has 604 bytes,
_LONGEST_RESULT = 1 << 16  # and demangled 8,358
_MOST_WORK = 1 << 26  # two of them look like more than this
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_HASH = frozenset("0123456789abcdef")

_runtime: Callable[[bytes], bytes | None] | None = None
_package: Callable[..., str] | None = None


def demangle(name: str) -> str:
    """The demangled form of a C++, Rust, Swift or D name; any other name as it is.

    What compilers append to the name of a part or a copy of a function stays, written as
    binutils writes it: `f() [clone .cold]`. A name is also returned as it is where there is
    nobody who knows its kind, where he refuses it, and where it was made to expand without end.
    """
    if name[:1] not in ("_", "$"):
        return name
    language = _language(name)
    if not language:
        return name
    mangled, at, version = name.partition("@")  # the table's own names have none, `@plt` has
    end = _end_of_rust(mangled)  # which may have dots in it
    rest = mangled[end:]
    head, _, clone = rest.partition(".")
    mangled = mangled[:end] + head
    if len(mangled) > _LONGEST_NAME:
        return name
    if language != "c++":
        plain = _by_package(mangled, language)
        if plain is not None:
            return plain + _clones(clone) + at + version
        if not mangled.startswith("_Z"):
            return name
    global _runtime
    if _runtime is None:
        _runtime = _load()
    if _work(mangled) > _MOST_WORK:
        return name
    found = _runtime(mangled.encode("utf-8", "surrogateescape"))
    if found is None or len(found) > _LONGEST_RESULT:
        return name
    return found.decode("utf-8", "surrogateescape") + _clones(clone) + at + version


def _language(name: str) -> str:
    """Whose name it looks like, as the package calls the language; "": nobody's.

    Rust's older names are C++ names with a hash of 16 digits; its v0 names begin with _R.
    """
    if name.startswith("_Z"):
        return "rust" if _end_of_rust(name) else "c++"
    if name.startswith("_R") and name[2:3].isalnum():
        return "rust"
    if name.startswith(("$s", "$S", "_$s", "_$S")):
        return "swift"
    return "d" if name.startswith("_D") and name[2:3].isdecimal() else ""


def _end_of_rust(name: str) -> int:
    """Where an older Rust name ends, behind its hash; 0 where it is none."""
    at = name.rfind("17h")
    if not name.startswith("_ZN") or at < 0 or name[at + 19 : at + 20] != "E":
        return 0
    return at + 20 if _HASH.issuperset(name[at + 3 : at + 19]) else 0


def _by_package(mangled: str, language: str) -> str | None:
    """What the package makes of a name; None where it is not there, or refuses the name."""
    global _package
    if _package is None:
        try:
            import demangle as package
        except ImportError:
            _package = _unchanged
        else:
            _package = package.demangle
    found: str = _package(mangled, language=language)
    return found if found != mangled and len(found) <= _LONGEST_RESULT else None


def _unchanged(mangled: str, language: str = "") -> str:
    return mangled


def _clones(suffix: str) -> str:
    """`isra.0.cold` as ` [clone .isra.0] [clone .cold]`: a word and its numbers go together."""
    clones: list[str] = []
    for word in suffix.split(".") if suffix else ():
        if clones and word.isdecimal():
            clones[-1] += f".{word}"
        else:
            clones.append(f".{word}")
    return "".join([f" [clone {clone}]" for clone in clones])


def _work(name: str) -> int:
    """How many characters a mangled name may expand to, estimated from above.

    `S1_` repeats the second component of what stands before it (Itanium C++ ABI §5.1.10
    "Compression"), `T_` a template argument. A name of 150 bytes in which each component holds
    two of the one before expands to megabytes, one of 300 bytes to more than there is memory.
    """
    if name.count("_") < 12 and "Dp" not in name:
        return 0
    total, done, arguments = 0, 0, 0
    sizes: list[int] = []  # of the components, at most: all that stands before their first use
    end = name.find("_")
    while end >= 0:
        kind, start, number = _reference(name, done, end)
        total += 8 * (start - done)  # one letter may stand for `unsigned long long`
        if kind == "S":
            sizes.extend([total] * (number + 1 - len(sizes)))
            total += sizes[number]
        elif kind == "T":
            arguments = arguments or total
            total += arguments
        done, end = end + 1, name.find("_", end + 1)
    total += 8 * (len(name) - done)
    # Expansions of parameter packs within each other multiply.
    packs = name.count("Dp") + name.count("sp")
    nested = min(max(packs - 1, 0), 8)
    return total * int((len(name) // 8 + 1) ** nested)


def _reference(name: str, low: int, end: int) -> tuple[str, int, int]:
    """The reference that the `_` at `end` closes: S, T or "", where it starts, its number.

    Where it could be read in two ways, the one with the higher number is meant.
    """
    start = end
    while start > low and name[start - 1] in _DIGITS:
        start -= 1
    for at in range(start, end):
        if name[at] == "S" and end - at < 5:
            number = int(name[at + 1 : end], 36) + 1 if at + 1 < end else 0
            if number < len(name):
                return "S", at, number
        elif name[at] == "T" and (at + 1 == end or name[at + 1 : end].isdecimal()):
            return "T", at, 0
    return "", end, 0


def _load() -> Callable[[bytes], bytes | None]:
    """`__cxa_demangle` of the first runtime that is there (Itanium C++ ABI §3.4)."""
    try:
        import ctypes

        free = ctypes.CDLL(None).free
    except (ImportError, OSError, AttributeError, TypeError):  # no ctypes, or a static Python
        return _refuse
    free.argtypes, free.restype = [ctypes.c_void_p], None
    for path in _RUNTIMES:
        try:
            function = ctypes.CDLL(path).__cxa_demangle
            break
        except (OSError, AttributeError):
            continue
    else:
        return _refuse
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_void_p

    def call(mangled: bytes) -> bytes | None:
        text = function(mangled, None, None, None)
        if not text:
            return None
        try:
            return ctypes.string_at(text)
        finally:
            free(text)

    return call


def _refuse(mangled: bytes) -> bytes | None:
    return None
