"""Functions of allocators: a file in, which of them it has and where they begin out."""

from __future__ import annotations

from unwind.elf import PT, Elf
from unwind.symbol_sections import section_table
from unwind.symtab import STT
from unwind.values import Value

__all__ = ["FUNCTIONS", "Function", "functions_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.symtab import Symbol

# What each takes, as bpf/leaks.h calls it.
FUNCTIONS = {
    "malloc": "ALLOCATE",
    "valloc": "ALLOCATE",
    "pvalloc": "ALLOCATE",
    "calloc": "ALLOCATE_ARRAY",
    "aligned_alloc": "ALLOCATE_ALIGNED",
    "memalign": "ALLOCATE_ALIGNED",
    "posix_memalign": "ALLOCATE_INTO",
    "realloc": "RESIZE",
    "reallocarray": "RESIZE_ARRAY",
    "mmap": "MAP",
    "mmap64": "MAP",
    "mremap": "REMAP",
    "free": "FREE",
    "cfree": "FREE",
    "free_sized": "FREE",  # C23, as the next
    "free_aligned_sized": "FREE",
    "munmap": "UNMAP",
}
# C++'s new and delete: of most libraries they call the above, tcmalloc and jemalloc have their own.
_OPERATORS = {
    **dict.fromkeys((f"_Z{name}m{more}" for name in ("nw", "na") for more in
                     ("", "RKSt9nothrow_t", "St11align_val_t", "St11align_val_tRKSt9nothrow_t")),
                    "ALLOCATE"),
    **dict.fromkeys((f"_Z{name}Pv{more}" for name in ("dl", "da") for more in
                     ("", "m", "RKSt9nothrow_t", "St11align_val_t", "mSt11align_val_t",
                      "St11align_val_tRKSt9nothrow_t")), "FREE"),
}  # fmt: skip
_RETURNING = frozenset(FUNCTIONS.values()) - {"FREE", "UNMAP"}
_PF_X = 1


class Function(Value):
    """A function of an allocator: `offset` is where it begins in its file, in bytes.

    `kind` says what it takes, as in bpf/leaks.h.
    """

    name: str
    kind: str
    offset: int

    @property
    def returns(self) -> bool:
        """Whether it matters what it gives back."""
        return self.kind in _RETURNING


def functions_of(elf: Elf) -> list[Function]:
    """Those that a file defines, each place once; new and delete where it has malloc too.

    A file without symbols has none.
    """
    found: dict[int, Function] = {}
    for table in (".dynsym", ".symtab"):
        symbols = {symbol.name: symbol for symbol in _symbols(elf, table)}
        known = FUNCTIONS | _OPERATORS if "malloc" in symbols else FUNCTIONS
        for name, kind in known.items():
            offset = _offset(elf, symbols[name].vaddr) if name in symbols else None
            if offset is not None:
                found.setdefault(offset, Function(name, kind, offset))
        if found:  # what others may call is in the first; a static program has but the second
            break
    return sorted(found.values(), key=lambda function: function.offset)


def _symbols(elf: Elf, name: str) -> Iterator[Symbol]:
    """The functions that are defined, of a table."""
    section = elf.section(name)
    if section is None:
        return
    for symbol in section_table(elf, section):
        if symbol.kind == STT.FUNC and symbol.section:
            yield symbol


def _offset(elf: Elf, vaddr: int) -> int | None:
    """Where the code at `vaddr` lies in the file."""
    for row in elf.program_rows:
        if row[0] == PT.LOAD and row[1] & _PF_X and row[3] <= vaddr < row[3] + row[4]:
            return vaddr - row[3] + row[2]
    return None
