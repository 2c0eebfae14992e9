"""Memory and the auxiliary vector in, modules out: where no table of mapped files tells.

The main program comes from AT_PHDR, libraries from the dynamic linker's list (r_debug), and what
neither names from the ELF headers that lie at the starts of mappings.
"""

from __future__ import annotations

import os
from bisect import bisect_right

from unwind.elf import DT, ET, PT, Elf
from unwind.errors import FormatError, MemoryFault
from unwind.files import Found
from unwind.mappings import MOST_MODULES, Maker, same_as
from unwind.modules import VDSO, Module, State
from unwind.values import Value

__all__ = ["AT", "Discovery", "Link", "ranges_of", "vdso"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.image import Image
    from unwind.mappings import Lend
    from unwind.protocols import Memory

    Check = Callable[[Elf], str]

_PAGE = 4096
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_LONGEST_PATH = 4096  # Linux's PATH_MAX
_DT_SONAME = 14


class AT:
    """Keys of the auxiliary vector (Linux v6.13 include/uapi/linux/auxvec.h)."""

    PHDR, PHENT, PHNUM, BASE, ENTRY, EXECFN, SYSINFO_EHDR = 3, 4, 5, 7, 9, 31, 33


class Link(Value):
    """One entry of the dynamic linker's list (struct link_map of <link.h>)."""

    bias: int
    name: str
    dynamic: int


class Discovery:
    """The search for the modules of one process.

    `starts` are the addresses at which mappings begin. `executable` tells whether code may run
    at an address, None where that is unknown. The other parameters are those of `modules_of`;
    `program` names the main program where AT_EXECFN does not. `links` is the dynamic linker's
    list where the source tells it; else it is looked for in memory.
    """

    def __init__(
        self,
        arch: Architecture,
        memory: Memory,
        auxv: Mapping[int, int],
        files: Files,
        *,
        starts: Iterable[int],
        executable: Callable[[int], bool | None],
        lend: Lend,
        known: Iterable[Module] = (),
        program: str = "",
        base: str = "",
        lacking: str = "memory does not hold it",
        links: Sequence[Link] = (),
    ):
        self.arch, self.memory, self.auxv, self.files = arch, memory, auxv, files
        self.executable, self.lend, self.base = executable, lend, base
        self.program = program
        self.links = links
        self.maker = Maker(memory, files, lacking)
        self.modules: list[Module] = []
        self._starts: list[int] = []  # of the modules' ranges, ascending
        self._ends: list[int] = []
        for module in known:
            self._keep(module)
        self.loaded: list[Elf] = []
        for start in starts:
            if len(self.loaded) < MOST_MODULES and (elf := self._header(start)) is not None:
                self.loaded.append(elf)

    def run(self) -> list[Module]:
        """All modules that can be found, the known ones among them, by address."""
        main = self._main()
        for link in self.links or self._links(main):
            self._add_link(link)
        for elf in self.loaded:
            ranges = ranges_of(elf, elf.bias)
            if ranges and not self._covered(ranges[0][0]):
                self._add(_soname(elf) or f"[ELF image at {ranges[0][0]:#x}]", elf)
        return sorted(self.modules, key=lambda module: module.start)

    def _header(self, start: int) -> Elf | None:
        """The image loaded at `start`, or None: one page is looked at where none begins."""
        try:
            if self.memory.read(start, 4) != b"\x7fELF":
                return None
            elf = Elf.from_memory(self.memory, start)
        except (FormatError, MemoryFault):
            return None
        header, arch = elf.header, self.arch
        ours = (header.machine, header.elf_class, header.byteorder) == (
            arch.machine,
            arch.elf_class,
            arch.byteorder,
        )
        code = [segment.vaddr for segment in elf.segments if segment.executable]
        mapped = all(self.executable(vaddr + elf.bias & _MASK) is not False for vaddr in code)
        program = header.type in (ET.EXEC, ET.DYN) and ranges_of(elf, elf.bias) != ()
        return elf if ours and mapped and program else None

    def _main(self) -> Module | None:
        """The main program: its program headers lie at AT_PHDR."""
        phdr = self.auxv.get(AT.PHDR, 0)
        name = self._string(self.auxv.get(AT.EXECFN, 0)) or self.program
        if not phdr:
            elf = next((elf for elf in self.loaded if self._is_main(elf)), None)
            return None if elf is None else self._add(name, elf, main=True)
        found = next((m for m in self.modules if _holds(m, phdr)), None)
        if found is not None:
            return found
        for elf in self.loaded:
            if any(low <= phdr < high for low, high in ranges_of(elf, elf.bias)):
                return self._add(name, elf, main=True)
        return self._main_file(name, phdr)

    def _main_file(self, name: str, phdr: int) -> Module | None:
        """The main program where memory lacks its headers: -e, or AT_EXECFN, tells its file."""

        def check(elf: Elf) -> str:
            bias = _bias_by_headers(elf, phdr)
            if bias is None or self.auxv.get(AT.PHNUM, elf.header.phnum) != elf.header.phnum:
                return "its program headers are not those that the process was started with"
            entry = elf.header.entry + bias & _MASK
            if self.auxv.get(AT.ENTRY, entry) != entry:
                return "its entry point is not where the process was started"
            return ""

        result = self.files.image(name, None, main=True, check=check, base=self.base)
        if result.image is None:
            # Where it reaches to is not known; its program headers at least are its own.
            page = phdr & -_PAGE
            ranges = ((page, page + _PAGE),)
            return self._keep(self.maker.make(name, page, ranges, None, result))
        return self._add_file(name, _bias_by_headers(result.image.elf, phdr) or 0, result)

    def _is_main(self, elf: Elf) -> bool:
        """Whether an image looks like the main program, where no AT_PHDR tells.

        The dynamic linker writes DT_DEBUG into the main program alone.
        """
        return elf.header.type == ET.EXEC or self._debug_in(elf, elf.bias) != 0

    def _add(self, name: str, elf: Elf, main: bool = False) -> Module:
        """The module of an image whose headers are in memory."""
        result = self.files.image(name, elf.build_id, main=main, check=same_as(elf), base=self.base)
        ranges = ranges_of(elf, elf.bias)
        return self._keep(self.maker.make(name, elf.bias, ranges, elf, result), result.image)

    def _add_file(self, name: str, bias: int, result: Found) -> Module | None:
        """The module of an image of which only the file is to be had."""
        if result.image is None:
            return None
        ranges = ranges_of(result.image.elf, bias)
        if not ranges:
            return None
        return self._keep(self.maker.make(name, bias, ranges, None, result), result.image)

    def _keep(self, module: Module, file: Image | None = None) -> Module:
        """Add a module, and lend memory the bytes of its file."""
        self.modules.append(module)
        for start, end in module.ranges:
            at = bisect_right(self._starts, start)
            self._starts.insert(at, start)
            self._ends.insert(at, end)
        for segment in file.segments if file is not None else ():
            self.lend(module.to_pc(segment.vaddr), segment.data, segment.executable)
        return module

    def _add_link(self, link: Link) -> None:
        if self._covered(link.dynamic):
            return
        # Where a source has no list of mappings: a library's header lies at its bias as a rule.
        known = (elf for elf in self.loaded if elf.bias == link.bias)
        elf = next(known, None) or self._header(link.bias)
        if elf is not None and elf.bias == link.bias:
            if any(low <= link.dynamic < high for low, high in ranges_of(elf, elf.bias)):
                self._add(link.name, elf)
                return

        def check(elf: Elf) -> str:
            for row in elf.program_rows:
                if row[0] == PT.DYNAMIC and row[3] + link.bias & _MASK == link.dynamic:
                    return ""
            return "its dynamic section is not where the dynamic linker found it"

        result = self.files.image(link.name, None, check=check, base=self.base)
        if self._add_file(link.name, link.bias, result) is None and link.name:
            page = link.dynamic & -_PAGE
            ranges = ((page, page + _PAGE),)
            self._keep(self.maker.make(link.name, link.bias, ranges, None, result))

    def _covered(self, address: int) -> bool:
        at = bisect_right(self._starts, address) - 1
        return at >= 0 and address < self._ends[at]

    def _links(self, main: Module | None) -> Iterator[Link]:
        """The dynamic linker's lists, one for each of its namespaces."""
        word = self.arch.word
        seen: set[int] = set()
        debug = self._r_debug(main)
        while debug and debug not in seen and len(seen) < MOST_MODULES:
            seen.add(debug)
            at = self._word(debug + word)
            while at and at not in seen and len(seen) < MOST_MODULES:
                seen.add(at)
                bias, name, dynamic, following = [self._word(at + n * word) for n in range(4)]
                if dynamic:
                    yield Link(bias, self._string(name), dynamic)
                at = following
            # glibc 2.35 <link.h>: r_debug_extended, from version 2 on
            version = self._word(debug, 4)
            debug = self._word(debug + 5 * word) if 2 <= version < 100 else 0

    def _r_debug(self, main: Module | None) -> int:
        """The address of the dynamic linker's r_debug, 0 where nothing leads to it."""
        images = [] if main is None or main.image is None else [(main.bias, main.image.elf)]
        images += [(elf.bias, elf) for elf in self.loaded]
        return next((at for bias, elf in images if (at := self._debug_in(elf, bias))), 0)

    def _debug_in(self, elf: Elf, bias: int) -> int:
        """The address of r_debug that the dynamic section of an image tells, 0: none."""
        for row in elf.program_rows:
            if row[0] == PT.DYNAMIC:
                return self._debug_pointer(row[3] + bias & _MASK, row[5])
        return 0

    def _debug_pointer(self, start: int, size: int) -> int:
        """What DT_DEBUG, or a tag that stands in its place, of the section at `start` says."""
        word = self.arch.word
        for at in range(start, start + min(size, 65536), 2 * word):
            tag, value = self._word(at), self._word(at + word)
            if tag == DT.NULL:
                break
            if tag == DT.DEBUG and value:
                return value
            if tag in self.arch.rld_map_tags:
                # The first tag of the two holds an address, the second a distance from itself:
                # binutils 2.26, DT_MIPS_RLD_MAP and DT_MIPS_RLD_MAP_REL.
                relative = self.arch.rld_map_tags.index(tag) == 1
                mask = (1 << 8 * word) - 1
                found = self._word(value + at & mask if relative else value)
                if found:
                    return found
        return 0

    def _word(self, address: int, size: int = 0) -> int:
        """The word at `address`, 0 where none can be read."""
        try:
            data = self.memory.read(address, size or self.arch.word)
        except MemoryFault:
            return 0
        return int.from_bytes(data, self.arch.byteorder)

    def _string(self, address: int) -> str:
        """The C string at `address`, "" where none can be read."""
        text, end = b"", address + _LONGEST_PATH
        while 0 < address < end:
            size = min((address | 63) + 1, end) - address
            try:
                piece = self.memory.read(address, size)
            except MemoryFault:
                return ""
            text += piece
            if b"\0" in piece:
                return os.fsdecode(text.partition(b"\0")[0])
            address += size
        return ""


def vdso(memory: Memory, address: int, files: Files, lacking: str) -> Module | None:
    """The kernel's shared object, whose header lies at `address` (AT_SYSINFO_EHDR; 0: none)."""
    if not address:
        return None
    try:
        elf = Elf.from_memory(memory, address, VDSO)
    except FormatError:
        elf = None
    ranges = ranges_of(elf, elf.bias) if elf is not None else ()
    nothing = Found(None, None, State.MISSING)
    ranges = ranges or ((address, address + _PAGE),)
    return Maker(memory, files, lacking).make(VDSO, address, ranges, elf, nothing)


def _holds(module: Module, address: int) -> bool:
    return any(start <= address < end for start, end in module.ranges)


def ranges_of(elf: Elf, bias: int) -> tuple[tuple[int, int], ...]:
    """The (start, end) of the pages that an image's segments take, touching ones as one."""
    found: list[tuple[int, int]] = []
    pages = sorted(
        (segment.vaddr + bias & _MASK & -_PAGE, segment.memory_size + segment.vaddr % _PAGE)
        for segment in elf.segments
        if segment.memory_size
    )
    for start, size in pages:
        end = min(start + (size + _PAGE - 1 & -_PAGE), _MASK)
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif start < end:
            found.append((start, end))
    return tuple(found)


def _bias_by_headers(elf: Elf, phdr: int) -> int | None:
    """Where an image lies whose program headers are at `phdr`."""
    phoff = elf.header.phoff
    for row in elf.program_rows:
        if row[0] == PT.LOAD and row[2] <= phoff < row[2] + row[4]:
            return phdr - (row[3] + phoff - row[2]) & _MASK
    return None


def _soname(elf: Elf) -> str:
    """DT_SONAME of a loaded image, "" where it has none or memory lacks it."""
    tags = dict(reversed(elf.dynamic))
    strings = elf.to_vaddr(tags.get(DT.STRTAB, 0))
    if _DT_SONAME not in tags or strings is None:
        return ""
    name = bytes(elf.at(strings + tags[_DT_SONAME], _LONGEST_PATH))
    return os.fsdecode(name.partition(b"\0")[0]) if b"\0" in name else ""
