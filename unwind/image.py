"""Image: one ELF file or loaded image in; its code, CFI, symbols and build-id out, by vaddr."""

from __future__ import annotations

from unwind.dwarf.cfi import Broken, FrameSection
from unwind.dwarf.eh_frame_hdr import SearchTable
from unwind.elf import DT, ET, PT, SHT
from unwind.errors import FormatError, MemoryFault, UnwindError
from unwind.symbol_sections import symbols_of

__all__ = ["FrameSections", "Image", "UnreadableSection"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.dwarf.cfi import Cie, Fde, Kind
    from unwind.elf import Elf, Section, Segment
    from unwind.pdr import Procedures
    from unwind.protocols import Told
    from unwind.symbol_search import SymbolTable


class Image:
    """What a file, or a stretch of memory, holds; all processes that map it share it.

    Addresses are vaddrs. `debug` finds the separate debug file of an image: it is called at most
    once, and only when something is wanted that the image itself lacks. What is found is kept,
    and published by one assignment, so threads share an image without locks.

    `told` is set where somebody knows what can be concluded from all of an image that is here
    only in part.
    """

    told: Told | None = None

    def __init__(
        self,
        elf: Elf,
        path: str | None = None,
        debug: Callable[[Image], Image | None] | None = None,
    ):
        self.elf = elf
        self.path = path
        self._find_debug = debug
        self._debug: tuple[Image | None] | None = None
        self._frames: dict[str, tuple[FrameSection, ...]] = {}
        self._symbols: SymbolTable | None = None
        self._procedures: tuple[Procedures | None] | None = None

    def __repr__(self) -> str:
        return f"Image({self.path or self.elf.path!r})"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The PT_LOADs."""
        return self.elf.segments

    @property
    def build_id(self) -> bytes | None:
        """The build-id, or None where the image has none."""
        return self.elf.build_id

    def at(self, vaddr: int, size: int | None = None) -> memoryview:
        """The bytes from `vaddr` to the end of its segment, or the first `size` of them.

        An empty view where the image holds nothing.
        """
        return self.elf.at(vaddr, size)

    def read(self, vaddr: int, size: int) -> bytes:
        """The `size` bytes at `vaddr`; MemoryFault when the image does not hold them all."""
        found = bytes(self.elf.at(vaddr, size))
        while len(found) < size:  # they may run on into the next segment
            more = self.elf.at(vaddr + len(found), size - len(found))
            if not more:
                raise MemoryFault(vaddr, size, f"not in {self.path or self.elf.path or 'image'}")
            found += more
        return found

    def reach(self, vaddr: int) -> int:
        """How many bytes the image has from `vaddr` to the end of its segment."""
        return len(self.elf.at(vaddr))

    def executable(self, vaddr: int) -> bool:
        """Whether code may lie at `vaddr`."""
        return any(
            segment.executable and segment.vaddr <= vaddr < segment.vaddr + segment.memory_size
            for segment in self.elf.segments
        )

    @property
    def debug(self) -> Image | None:
        """The image of the separate debug file, or None."""
        found = self._debug
        if found is None:
            found = (self._find_debug(self) if self._find_debug is not None else None,)
            self._debug = found
        return found[0]

    @property
    def symbols(self) -> SymbolTable:
        """The symbols of the image and of its separate debug file."""
        found = self._symbols
        if found is None:
            found = self._symbols = symbols_of(self.elf, self._debug_elf)
        return found

    @property
    def procedures(self) -> Procedures | None:
        """The .pdr section, which only mips has, or None."""
        found = self._procedures
        if found is None:
            from unwind.pdr import procedures

            found = self._procedures = (procedures(self.elf),)
        return found[0]

    def _debug_elf(self) -> Elf | None:
        return self.debug.elf if self.debug is not None else None

    @property
    def frame_sections(self) -> FrameSections:
        """Where to look for CFI, in this order: .eh_frame, .debug_frame, the debug file's."""
        return FrameSections(self)

    @property
    def unwind_kinds(self) -> tuple[str, ...]:
        """Which descriptions of frames there are: `eh_frame`, `debug_frame` and `pdr`.

        The separate debug file counts where the image itself has no CFI.
        """
        own = self._frames_of("eh_frame") + self._frames_of("debug_frame")
        kinds = [section.kind for section in own or self._frames_of("debug file")]
        pdr = ("pdr",) if self.procedures is not None else ()
        return (*dict.fromkeys(kinds), *pdr)

    def _frames_of(self, place: str) -> tuple[FrameSection, ...]:
        """The sections of one of the `_PLACES`."""
        found = self._frames.get(place)
        if found is None:
            if place == "debug file":
                found = self.debug._frames_of("debug_frame") if self.debug is not None else ()
            elif place == "debug_frame":
                found = tuple(_sections(self.elf, "debug_frame"))
            else:
                found = tuple(_sections(self.elf, "eh_frame")) or _loaded_eh_frame(self.elf)
            self._frames[place] = found
        return found


# Of one kind: linkers leave one. Thousands may lie over one another, and each would be searched.
_MOST_SECTIONS = 16

_PLACES = ("eh_frame", "debug_frame", "debug file")


class FrameSections:
    """FrameSections to iterate over; the later ones are got ready when somebody comes that far.

    Most lookups end in .eh_frame: no debug file is opened for them and nothing is decompressed.
    """

    __slots__ = ("_image",)

    def __init__(self, image: Image):
        self._image = image

    def __iter__(self) -> Iterator[FrameSection]:
        for place in _PLACES:
            yield from self._image._frames_of(place)

    def __bool__(self) -> bool:
        return any(True for _ in self)


class UnreadableSection(FrameSection):
    """A section whose contents cannot be had: each question is answered with the `error`."""

    def __init__(self, kind: Kind, name: str, error: UnwindError):
        super().__init__(b"", 0, kind, "little", 8, name=name)
        self.error = error

    def find(self, vaddr: int) -> Fde | None:
        """Raises the error."""
        raise self.error

    def entries(self) -> Iterator[Cie | Fde | Broken]:
        """The error, as the only entry."""
        error = self.error
        if not isinstance(error, FormatError):
            error = FormatError(str(error), self.name)
        yield Broken(self.kind, 0, error)

    def fde_at(self, offset: int) -> Fde:
        """Raises the error."""
        raise self.error


def _sections(elf: Elf, kind: Kind) -> Iterator[FrameSection]:
    """The sections of `kind` by their headers; those of a debug file without contents are none."""
    names = (".eh_frame",) if kind == "eh_frame" else (".debug_frame", ".zdebug_frame")
    count = 0
    for section in elf.sections:
        if section.name in names and section.type != SHT.NOBITS and section.size:
            count += 1
            if count > _MOST_SECTIONS:
                return
            try:
                data = _contents(elf, section)
            except UnwindError as error:
                yield UnreadableSection(kind, section.name, error)
            else:
                yield _frame_section(elf, kind, section.vaddr, data, section)


def _contents(elf: Elf, section: Section) -> memoryview:
    if elf.header.type != ET.REL:
        return elf.data(section)
    from unwind.relocations import relocated

    return relocated(elf, section)


def _frame_section(
    elf: Elf, kind: Kind, vaddr: int, data: memoryview, section: Section | None
) -> FrameSection:
    search = text = pltgot = None
    if kind == "eh_frame":
        search = _search_table(elf)
        text, pltgot = elf.section(".text"), _global_offset_table(elf)
    return FrameSection(
        data,
        vaddr,
        kind,
        elf.header.byteorder,
        elf.header.elf_class // 8,
        name=f".{kind}",
        text_base=text.vaddr if text is not None else None,
        data_base=pltgot,
        search=search,
        dereference=_dereference(elf),
        sized=section is not None,
        code_at_zero=elf.header.type == ET.REL,
    )


def _loaded_eh_frame(elf: Elf) -> tuple[FrameSection, ...]:
    """The .eh_frame that PT_GNU_EH_FRAME leads to, where no section header tells of one.

    How long it is nobody says: it ends with its terminator, or with its segment.
    """
    search = _search_table(elf)
    if search is None or search.eh_frame is None:
        return ()
    data = elf.at(search.eh_frame)
    if not data:
        return ()
    return (_frame_section(elf, "eh_frame", search.eh_frame, data, None),)


def _search_table(elf: Elf) -> SearchTable | None:
    """The table of .eh_frame_hdr, or None where there is none that can be read."""
    section = elf.section(".eh_frame_hdr")
    try:
        if section is not None and section.type != SHT.NOBITS:
            vaddr, data = section.vaddr, elf.data(section)
        else:
            rows = [row for row in elf.program_headers if row.type == PT.GNU_EH_FRAME]
            if not rows:
                return None
            vaddr, data = rows[0].vaddr, elf.at(rows[0].vaddr, rows[0].file_size)
        return SearchTable(data, vaddr, elf.header.byteorder, elf.header.elf_class // 8)
    except UnwindError:  # FrameSection makes an index of its own
        return None


def _global_offset_table(elf: Elf) -> int | None:
    """What datarel pointers in .eh_frame are relative to (libgcc, unwind-dw2-fde-dip.c)."""
    for tag, value in elf.dynamic:
        if tag == DT.PLTGOT:
            return elf.to_vaddr(value)
    found = elf.section(".got.plt") or elf.section(".got")
    return found.vaddr if found is not None else None


def _dereference(elf: Elf) -> Callable[[int], int]:
    """Reads the address stored at a vaddr, for pointers marked as indirect.

    It holds the Elf and no Image: an image that is in no circle is gone once nobody uses it.
    """
    size = elf.header.elf_class // 8

    def dereference(vaddr: int) -> int:
        word = elf.at(vaddr, size)
        if len(word) < size:
            raise MemoryFault(vaddr, size, "an indirect pointer in CFI")
        return int.from_bytes(word, elf.header.byteorder)

    return dereference
