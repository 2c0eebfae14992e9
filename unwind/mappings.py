"""Mappings of files in, modules out: which of them are loaded images, where, and of what file."""

from __future__ import annotations

from unwind.elf import DT, PT, Elf
from unwind.errors import FormatError, MemoryFault
from unwind.image import Image
from unwind.memory import view_of
from unwind.modules import Module, State
from unwind.values import Value

__all__ = ["MOST_MODULES", "Lend", "Maker", "Mapping", "modules_of", "same_as"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unwind.files import Files, Found
    from unwind.protocols import Memory

    # Takes an address, the bytes of the file that is mapped there, and whether they are code.
    Lend = Callable[[int, memoryview, bool], None]

MOST_MODULES = 4096  # in one process: only a lying source has more
_PAGE = 4096
_SAMPLE = 256  # bytes of a piece of a file that are compared with the file
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_PF_X = 1
_MOST_PIECES = 256  # that one segment lies in
# DT_MIPS_RLD_MAP and DT_MIPS_RLD_MAP_REL, which a dynamic linker may set as it does DT_DEBUG.
_ANY_VALUE = (0x7000_0016, 0x7000_0035)


class Mapping(Value):
    """[start, end) maps the file `name` from byte `offset` on."""

    start: int
    end: int
    offset: int
    name: str


def modules_of(
    mappings: Iterable[Mapping],
    memory: Memory,
    files: Files,
    *,
    executable: Callable[[int], bool | None],
    inside_main: int = 0,
    base: str = "",
    lend: Lend | None = None,
    lacking: str = "memory does not hold it",
) -> list[Module]:
    """The loaded images among `mappings`, with their files, by address.

    `memory` must hold only what the process itself had there, or build-ids would be compared
    with themselves. `executable` tells whether code may run at an address, None where that is
    unknown. `inside_main` is an address in the main program (AT_PHDR), `base` the directory that
    relative names start from. `lend` gets the bytes of each file that was found, `lacking` says
    why memory may not hold an image. A file that is mapped as data only is no module.
    """
    by_name: dict[str, list[Mapping]] = {}
    for mapping in mappings:
        by_name.setdefault(mapping.name, []).append(mapping)
    maker = Maker(memory, files, lacking)
    found: list[Module] = []
    for name, group in by_name.items():
        whole: Found | None = None  # the file, where one of its copies has shown that it is the one
        for copy in _copies(name, group, memory, executable):
            if len(found) >= MOST_MODULES:
                break
            elf, parts = copy.elf, copy.parts
            result, bias = whole, None
            if elf is None and whole is not None:
                bias = _bias_of_piece(whole, copy, memory)
            if result is None or bias is None:
                main = any(part.start <= inside_main < part.end for part in parts)
                check = same_as(elf) if elf is not None else _fits(copy, memory)
                build_id = elf.build_id if elf is not None else None
                result = files.image(name, build_id, main=main, check=check, base=base)
                if elf is None and result.foreign and result.image is None:
                    continue
                bias = parts[0].start - parts[0].offset & _MASK
                if elf is None and result.image is not None:
                    bias = _bias(result.image.elf, copy) or 0
                if elf is not None and result.image is not None:
                    whole = result
            found.append(maker.make(name, bias, _joined(parts), elf, result))
            if lend is not None and result.data is not None:
                for part in parts:
                    data = result.data[part.offset : part.offset + part.end - part.start]
                    lend(part.start, data, part in copy.code)
    return sorted(found, key=lambda module: module.start)


class _Copy(Value):
    """One loaded copy of a file: its mappings, those with code, its headers if memory has them."""

    parts: Sequence[Mapping]
    code: Sequence[Mapping]
    elf: Elf | None


def _copies(
    name: str,
    group: Sequence[Mapping],
    memory: Memory,
    executable: Callable[[int], bool | None],
) -> Iterator[_Copy]:
    """The loaded copies among the mappings of one file.

    Without readable headers, mappings are a copy when code may run in one of them.
    """
    group = sorted(group, key=lambda mapping: mapping.start)
    at = 0
    while at < len(group):
        head, begin = group[at], at
        elf, is_none = _headers(memory, head.start, name) if head.offset == 0 else (None, False)
        at += 1
        if is_none:
            continue  # data, or code that somebody wrote into a file that is no ELF
        if elf is not None:
            high = _end(elf)
            while at < len(group) and group[at].start < high:
                at += 1
        else:  # a copy goes on for as long as offsets go up with the addresses
            while at < len(group) and group[at].offset > head.offset:
                at += 1
        parts = group[begin:at]
        copy = _Copy(parts, [part for part in parts if executable(part.start) is not False], elf)
        if copy.code if elf is None else _loaded(elf, copy):
            yield copy


def _headers(memory: Memory, start: int, name: str) -> tuple[Elf | None, bool]:
    """The image that begins at `start`; without one, whether memory shows that there is none."""
    try:
        magic = memory.read(start, 4)
    except MemoryFault:
        return None, False
    if magic != b"\x7fELF":
        return None, True
    try:
        return Elf.from_memory(memory, start, name), False
    except FormatError:
        return None, False


def _end(elf: Elf) -> int:
    """The address after the last segment of a loaded image."""
    return max(segment.vaddr + segment.memory_size for segment in elf.segments) + elf.bias & _MASK


def _loaded(elf: Elf, copy: _Copy) -> bool:
    """Whether every segment with code (of an image without any: every segment) is mapped."""
    rows = [row for row in elf.program_rows if row[0] == PT.LOAD and row[4]]
    code = [row for row in rows if row[1] & _PF_X]
    parts = copy.code if code else copy.parts
    return all(any(_holds(part, elf.bias, row) for part in parts) for row in code or rows)


def _holds(part: Mapping, bias: int, row: tuple[int, ...]) -> bool:
    """Whether `part` maps the first byte of the segment `row` when the image lies at `bias`."""
    address = row[3] + bias & _MASK
    return part.start <= address < part.end and part.offset + address - part.start == row[2]


def _bias(elf: Elf, copy: _Copy) -> int | None:
    """Where a file lies so that its segments with code are exactly the mappings with code."""
    rows = [row for row in elf.program_rows if row[0] == PT.LOAD and row[4]]
    for row in rows:
        if not row[1] & _PF_X:
            continue
        for part in copy.code:
            bias = part.start + row[2] - part.offset - row[3] & _MASK
            end = row[3] + row[4] + bias + _PAGE - 1 & _MASK & -_PAGE
            if bias % _PAGE == 0 and part.end == end and _holds(part, bias, row):
                return bias if _all_hold(copy, bias, rows) else None
    return None


def _bias_of_piece(whole: Found, copy: _Copy, memory: Memory) -> int | None:
    """Where a file lies of which `copy` maps but a piece, None where it is no piece of `whole`.

    V8 maps its built-in functions once more, near the code that it compiles.
    """
    if whole.image is None or whole.data is None:
        return None
    for part in copy.code:
        for row in whole.image.elf.program_rows:
            if row[0] != PT.LOAD or not row[2] <= part.offset < row[2] + row[4]:
                continue
            try:
                same = memory.read(part.start, _SAMPLE) == whole.data[part.offset :][:_SAMPLE]
            except MemoryFault:
                same = True
            return part.start - (row[3] + part.offset - row[2]) & _MASK if same else None
    return None


def _all_hold(copy: _Copy, bias: int, rows: Sequence[tuple[int, ...]]) -> bool:
    return all(any(_holds(part, bias, row) for part in copy.parts) for row in rows)


def _fits(copy: _Copy, memory: Memory) -> Callable[[Elf], str]:
    """The check of a file where memory holds no headers of it: by mappings and PT_DYNAMIC."""

    def check(elf: Elf) -> str:
        bias = _bias(elf, copy)
        if bias is None:
            return "its segments are not those in memory"
        return "" if _same_dynamic(elf, bias, memory) else "its dynamic section is another one"

    return check


def _same_dynamic(elf: Elf, bias: int, memory: Memory) -> bool:
    """Whether PT_DYNAMIC says in memory what it says in the file, as far as memory holds it.

    The dynamic linker adds the bias to pointers, and sets DT_DEBUG.
    """
    word, order = elf.header.elf_class // 8, elf.header.byteorder
    mask = (1 << 8 * word) - 1
    start = next((row[3] for row in elf.program_rows if row[0] == PT.DYNAMIC), None)
    if start is None:
        return True
    for n, (tag, value) in enumerate(elf.dynamic):
        try:
            data = memory.read(start + bias + 2 * n * word & _MASK, 2 * word)
        except MemoryFault:
            return True
        its_tag, its_value = (int.from_bytes(part, order) for part in (data[:word], data[word:]))
        same = its_value in (value, value + bias & mask) or tag == DT.DEBUG
        if its_tag != tag or not (same or tag in _ANY_VALUE):
            return False
    return True


def same_as(loaded: Elf) -> Callable[[Elf], str]:
    """The check of a file against the headers in memory."""

    def check(elf: Elf) -> str:
        one, other = elf.header, loaded.header
        if (one.machine, one.elf_class, one.byteorder) != (
            other.machine,
            other.elf_class,
            other.byteorder,
        ):
            return f"it is of {elf.describe()}"
        if elf.program_rows != loaded.program_rows:
            return "its program headers differ from those in memory"
        if loaded.build_id is None and not _same_start(elf, loaded):
            return "its first page differs from the one in memory"
        return ""

    return check


def _same_start(elf: Elf, loaded: Elf) -> bool:
    """Whether the first page is the same from the end of the ELF header on.

    All that files without a build-id offer; `strip` changes the section fields of the header.
    """
    for segment, mapped in zip(elf.segments, loaded.segments, strict=False):
        if not mapped.writable:
            skip = 64 if segment.vaddr == loaded.segments[0].vaddr else 0
            one, other = segment.data[skip:_PAGE], mapped.data[skip:_PAGE]
            return bytes(one[: len(other)]) == bytes(other[: len(one)])
    return True


class Maker:
    """Makes the modules of one process: `lacking` says why its `memory` may not hold an image."""

    def __init__(self, memory: Memory, files: Files, lacking: str):
        self.memory, self.files, self.lacking = memory, files, lacking

    def make(
        self,
        name: str,
        bias: int,
        ranges: tuple[tuple[int, int], ...],
        elf: Elf | None,
        result: Found,
    ) -> Module:
        """A module with the image of its file, else with that of memory, as far as that goes.

        `elf` is the image as memory has it; its bias counts where there is one.
        """
        image, state, tried = result.image, result.state, result.tried
        build_id = elf.build_id if elf is not None else None
        if image is not None:
            build_id = build_id or image.build_id
        else:
            image, whole = self._image(elf) if elf is not None else (None, False)
            state = State.MEMORY_ONLY if whole and state == State.MISSING else state
            tried = tried if whole else (*tried, self.lacking)
        if elf is not None:
            bias = elf.bias
        return Module(name, bias, ranges, image, state, result.file, build_id, tried)

    def _image(self, elf: Elf) -> tuple[Image | None, bool]:
        """The image of what memory holds, None without all of its CFI; is its code whole too?"""
        tables = [row[3] for row in elf.program_rows if row[0] == PT.GNU_EH_FRAME]
        code, cfi = [], []
        for segment in elf.segments:
            has_cfi = any(0 <= table - segment.vaddr < segment.file_size for table in tables)
            if segment.executable or has_cfi:
                start = segment.vaddr + elf.bias & _MASK
                whole = _whole(self.memory, start, segment.file_size)
                code.append(whole)
                cfi += [whole] if has_cfi else []
        known = bool(code) and all(code)
        usable = known or (bool(cfi) and all(cfi))
        return (Image(elf, debug=self.files.debug_file) if usable else None), known


def _whole(memory: Memory, address: int, size: int) -> bool:
    """Whether memory holds all of a segment; nothing is copied, as it may claim any size."""
    end = address + size
    for _ in range(_MOST_PIECES):
        if address >= end:
            return True
        found = view_of(memory, address)
        if found is None:
            break
        address = found[0] + len(found[1])
    try:  # a memory without views: the ends stand for what lies between
        return bool(memory.read(address, 1) and memory.read(end - 1, 1))
    except MemoryFault:
        return False


def _joined(parts: Sequence[Mapping]) -> tuple[tuple[int, int], ...]:
    """The (start, end) of the mappings, touching ones as one."""
    found: list[tuple[int, int]] = []
    for part in parts:
        if found and found[-1][1] >= part.start:
            found[-1] = found[-1][0], max(found[-1][1], part.end)
        else:
            found.append((part.start, part.end))
    return tuple(found)
