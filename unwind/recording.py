"""Recording: a source in, the same Snapshots out with what their walks read and no more.

Every thread is walked once more, over memory and images that note what they are asked for. The
notes become a RecordedMemory and RecordedImages, which give the same answers.
"""

from __future__ import annotations

from unwind.dwarf.cfi import FrameSection, Terminator
from unwind.elf import PT
from unwind.errors import MemoryFault, UnwindError
from unwind.explain import cross_check
from unwind.image import Image
from unwind.lines.location import Location
from unwind.memory import Recording
from unwind.pdr import Procedures
from unwind.recorded import (
    Conclusions,
    RecordedImage,
    RecordedMemory,
    RecordedSection,
    RecordedSymbols,
    joined,
    skeleton,
)
from unwind.registers import Registers
from unwind.snapshot import RecordedSource
from unwind.space import AddressSpace
from unwind.symbol_search import SymbolTable
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.unwinder import Unwinder
from unwind.version import VERSION

__all__ = ["record"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unwind.architecture import Architecture
    from unwind.dwarf.cfi import Fde
    from unwind.elf import Elf
    from unwind.frames import Frame, Stack
    from unwind.pdr import Procedure
    from unwind.protocols import Memory, Symbolizer
    from unwind.recorded import Piece
    from unwind.rules import NoRow, Row
    from unwind.snapshot import Snapshot, Source
    from unwind.symtab import Symbol

# A stack is kept from its stack pointer to the last word that the walk read of it, unless that is
# more than this, in bytes; then it is what was read, with the gaps that are not larger than _GAP.
_MOST_STACK = 1 << 16
_GAP = 256
_MOST_CODE = 1 << 16  # bytes of a function that was analysed
_LOOKED_AT = 64  # bytes that are kept of a read up to the end of a segment
_LARGEST = 1 << 28  # bytes of a section that is kept whole


def record(
    source: Source,
    snapshots: Iterable[Snapshot] | None = None,
    *,
    unwinder: Unwinder | None = None,
    judge: Unwinder | None = None,
    symbolizer: Symbolizer | None = None,
    with_modules: bool = False,
) -> RecordedSource:
    """What `unwinder` needs of the source to walk its `snapshots` (None: all) to the same stacks.

    With `judge`, an unwinder that cross-checks, what that takes is kept too. `with_modules` keeps
    all CFI of the modules, not just what was used. Names are kept for every place of the stacks,
    and the places in source that `symbolizer` knows.
    """
    unwinder = unwinder if unwinder is not None else Unwinder(source.arch)
    world = _World(source.arch, symbolizer)
    chosen = list(source.snapshots() if snapshots is None else snapshots)
    for snapshot in chosen:
        world.walk(snapshot, unwinder, judge)
    kept = RecordedSource(
        source.arch,
        world.threads(chosen, with_modules),
        source.path,
        source.origin if isinstance(source, RecordedSource) else source.kind,
        f"unwind {VERSION}",
        [rows.trust for rows in unwinder.lookup.sources],
        judge is not None,
    )
    kept.pid, kept.command, kept.signal = source.pid, source.command, source.signal
    kept.time, kept.warnings = source.time, list(source.warnings)
    return kept


class _Symbolizer(TableSymbolizer):
    """Notes what another symbolizer says of the places in an image."""

    def __init__(self, real: Symbolizer | None):
        super().__init__()
        self._real = real

    def locations(self, image: Image, vaddr: int) -> tuple[Location, ...]:
        if self._real is None or not isinstance(image, _Image):
            return ()
        found = tuple(
            Location(place.function, place.file, place.line, place.column)
            for place in self._real.locations(image.real, vaddr)
        )
        if found:
            image.told.lines[vaddr] = found
        return found


class _World:
    """Memories, images and spaces that note what they are asked, by those that they stand for."""

    def __init__(self, arch: Architecture, symbolizer: Symbolizer | None):
        self.arch = arch
        self.names = Names(_Symbolizer(symbolizer), source=True)
        self.memories: dict[int, _Memory] = {}
        self.images: dict[Image, _Image] = {}
        self.spaces: dict[AddressSpace, AddressSpace] = {}

    def walk(self, snapshot: Snapshot, unwinder: Unwinder, judge: Unwinder | None) -> Stack:
        """Walk a thread, name its frames, and note what that took."""
        memory = self.memories.get(id(snapshot.memory))
        if memory is None:
            memory = self.memories[id(snapshot.memory)] = _Memory(snapshot.memory)
        reading = Recording(snapshot.memory)
        noted = snapshot.replace(memory=reading, space=self._space(snapshot.space))
        stack = unwinder.unwind(noted)
        for frame in stack.frames:
            self._name(frame, noted.space)
            if judge is not None:
                cross_check(judge, judge.place(noted, frame))
        memory.keep(reading, snapshot, self.arch)
        return stack

    def _name(self, frame: Frame, space: AddressSpace) -> None:
        """Look the name of a frame up as the writers do, the one of bare pcs among them."""
        name = self.names.name
        name(frame.module, frame.pc, frame.pc if frame.signal else frame.lookup_pc)
        before = frame.pc - self.arch.call_size
        if frame.called and before != frame.lookup_pc:
            name(space.find(before), frame.pc, before)

    def _space(self, space: AddressSpace) -> AddressSpace:
        found = self.spaces.get(space)
        if found is None:
            modules = []
            for module in space.modules:
                image = module.image
                if image is not None and image not in self.images:
                    self.images[image] = _Image(image, self.arch)
                modules.append(module.replace(image=image and self.images[image]))
            found = AddressSpace(space.arch, modules, space.regions, space.complete)
            self.spaces[space] = found
        return found

    def threads(self, snapshots: Iterable[Snapshot], whole: bool) -> Iterator[Snapshot]:
        """The snapshots, upon what was kept for them."""
        memories = {key: memory.kept() for key, memory in self.memories.items()}
        images = {image: noting.kept(whole) for image, noting in self.images.items()}
        spaces = {}
        for space in self.spaces:
            modules = [m.replace(image=m.image and images[m.image]) for m in space.modules]
            spaces[space] = AddressSpace(space.arch, modules, space.regions, space.complete)
        for snapshot in snapshots:
            yield snapshot.replace(
                registers=Registers(snapshot.registers),
                memory=memories[id(snapshot.memory)],
                space=spaces[snapshot.space],
            )


class _Memory:
    """What was read of one memory, by all threads that share it."""

    def __init__(self, memory: Memory):
        self.memory = memory
        self.pieces: dict[int, bytes] = {}
        self.faults: dict[tuple[int, int], MemoryFault] = {}

    def keep(self, reading: Recording, snapshot: Snapshot, arch: Architecture) -> None:
        """Take over what a walk has read, and the stack that it walked."""
        for address, data in reading.reads:
            if data is not None and len(data) > len(self.pieces.get(address, b"")):
                self.pieces[address] = data
        for address, size, fault in reading.faults:
            self.faults[address, size] = fault
        pointer = snapshot.registers.get(arch.sp)
        region = snapshot.space.region(arch.data_address(pointer)) if pointer is not None else None
        if pointer is None or region is None:
            return
        start = max(arch.data_address(pointer) - arch.red_zone, region.start)
        ends = (a + len(data) for a, data in reading.reads if data and start <= a < region.end)
        end = max(ends, default=0)
        if start < end <= start + _MOST_STACK:
            self._read(start, end - start, reading)

    def _read(self, address: int, size: int, reading: Recording | None = None) -> None:
        """Keep what nobody read; where the walk has read, memory may have changed since."""
        try:
            found = bytearray(self.memory.read(address, size))
        except MemoryFault:
            return
        for at, data in reading.reads if reading is not None else ():
            if data is not None and address <= at and at + len(data) <= address + size:
                found[at - address : at - address + len(data)] = data
        self.pieces[address] = bytes(found)

    def kept(self) -> RecordedMemory:
        """The memory that has what was read."""
        before: int | None = None
        for start, data in joined(self.pieces.items()):
            if before is not None and start - before <= _GAP:
                self._read(before, start - before)
            before = start + len(data)
        return RecordedMemory(joined(self.pieces.items()), self.faults)


class _Image(Image):
    """An image that notes what it is asked."""

    told: _Conclusions

    def __init__(self, real: Image, arch: Architecture):
        super().__init__(real.elf, real.path)
        self.real = real
        self.told = _Conclusions(real, arch)
        self.noted: dict[tuple[int, int], bytes] = {}
        self.sections: dict[str, tuple[_Section, ...]] = {}
        self.names = _Symbols(real)
        self.table = _Procedures(real.procedures) if real.procedures is not None else None

    @property
    def build_id(self) -> bytes | None:
        return self.real.build_id

    @property
    def debug(self) -> Image | None:
        return self.real.debug

    @property
    def symbols(self) -> SymbolTable:
        return self.names

    @property
    def procedures(self) -> Procedures | None:
        return self.table

    @property
    def unwind_kinds(self) -> tuple[str, ...]:
        return self.real.unwind_kinds

    def at(self, vaddr: int, size: int | None = None) -> memoryview:
        found = self.real.at(vaddr, size)
        self._note(vaddr, found if size is not None else found[:_LOOKED_AT])
        return found

    def read(self, vaddr: int, size: int) -> bytes:
        found = self.real.read(vaddr, size)
        self._note(vaddr, found)
        return found

    def reach(self, vaddr: int) -> int:
        return self.real.reach(vaddr)

    def executable(self, vaddr: int) -> bool:
        return self.real.executable(vaddr)

    def _note(self, vaddr: int, data: bytes | memoryview) -> None:
        if len(data) and (vaddr, len(data)) not in self.noted:
            self.noted[vaddr, len(data)] = bytes(data)

    def _frames_of(self, place: str) -> tuple[FrameSection, ...]:
        found = self.sections.get(place)
        if found is None:
            real = self.real._frames_of(place)
            found = self.sections[place] = tuple([_Section(section) for section in real])
        return found

    def kept(self, whole: bool) -> RecordedImage:
        """The image that has what was asked for; `whole`: and all of its CFI."""
        real = self.real
        for place in ("eh_frame", "debug_frame", "debug file") if whole else ():
            self._frames_of(place)
        for start, end in filter(None, self.told.extents.values()):
            self._note(start, real.at(start, min(end - start, _MOST_CODE)))
        debug = real.debug
        sections = {
            place: [section.kept(real.elf, whole) for section in found]
            for place, found in self.sections.items()
        }
        return RecordedImage(
            skeleton(real.elf.header, _loads(real.elf), real.elf.path),
            real.path,
            real.build_id,
            kinds=real.unwind_kinds,
            debug_path=debug.path if debug is not None else None,
            pieces=joined([(vaddr, data) for (vaddr, _), data in self.noted.items()]),
            sections=sections,
            symbols=RecordedSymbols(self.names.found),
            procedure_data=self.table.kept() if self.table is not None else None,
            told=self.told.kept(),
        )


def _loads(elf: Elf) -> Iterator[tuple[int, int, int, int]]:
    """Flags, vaddr, file size and memory size of each PT_LOAD."""
    for row in elf.program_rows:
        if row[0] == PT.LOAD:
            yield row[1], row[3], row[4], row[5]


class _Section(FrameSection):
    """A section that notes which of its entries answer."""

    def __init__(self, real: FrameSection):
        self.real = real
        self.kind, self.name, self.encoding = real.kind, real.name, real.encoding
        self.noted: dict[int, bytes] = {}
        self.errors: dict[int, str] = {}

    def find(self, vaddr: int) -> Fde | None:
        try:
            fde = self.real.find(vaddr)
        except UnwindError as error:
            self.errors[vaddr] = str(error)
            raise
        if fde is not None and fde.offset not in self.noted:
            for entry in (fde, fde.cie):
                end = entry.offset + entry.length + (12 if entry.wide else 4)
                self.noted[entry.offset] = bytes(self.real.data[entry.offset : end])
        return fde

    def kept(self, elf: Elf, whole: bool) -> RecordedSection:
        real = self.real
        pieces: list[Piece] = list(self.noted.items())
        entries: list[int] | None = sorted(self.noted)
        size = len(real.data)
        if whole and 0 < size <= _LARGEST:
            if not elf.sections:  # from memory: what follows the terminator is something else
                ends = (e.offset for e in real.entries() if isinstance(e, Terminator))
                size = min([size, *ends])
            pieces.append((0, bytes(real.data[:size])))
            entries = None
        return RecordedSection(
            real.kind,
            real.encoding.vaddr,
            size,
            elf.header,
            joined(pieces),
            entries=entries,
            text_base=real.encoding.text_base,
            data_base=real.encoding.data_base,
            errors=self.errors,
        )


class _Symbols(SymbolTable):
    """Symbols that note what they are asked."""

    def __init__(self, real: Image):
        super().__init__(())
        self.real = real
        self.found: dict[int, Symbol | None] = {}

    def find(self, vaddr: int) -> Symbol | None:
        if vaddr not in self.found:
            self.found[vaddr] = self.real.symbols.find(vaddr)
        return self.found[vaddr]


class _Procedures(Procedures):
    """Entries of .pdr that note which of them were wanted."""

    def __init__(self, real: Procedures):
        self.real = real
        self.starts = real.starts
        self.noted: dict[bytes, None] = {}

    def find(self, vaddr: int) -> Procedure | None:
        self.noted[self.real.record(vaddr)] = None
        return self.real.find(vaddr)

    def end(self, procedure: Procedure) -> int | None:
        return self.real.end(procedure)

    def kept(self) -> bytes:
        """The wanted entries, each once."""
        entries = {data[at : at + 32] for data in self.noted for at in range(0, len(data), 32)}
        return b"".join(sorted(entries))


class _Conclusions(Conclusions):
    """What is concluded from all of an image, kept as it is asked for."""

    def __init__(self, real: Image, arch: Architecture):
        super().__init__()
        from unwind.sources.emulation import EmulationSource

        self.real = real
        self.analysis = EmulationSource(arch)

    def kept(self) -> Conclusions:
        """What was asked for, and no way to ask for more."""
        return Conclusions(self.rows, self.extents, self.rows_from, self.stubs, self.lines)

    def row(self, vaddr: int, called: bool) -> Row | NoRow:
        key = vaddr, called
        if key not in self.rows:
            self.rows[key] = self.analysis.row_at(self.real, vaddr, called)
            self.extent(vaddr)  # its code is kept for who wants to look at it
        return self.rows[key]

    def extent(self, vaddr: int) -> tuple[int, int] | None:
        if vaddr not in self.extents:
            self.extents[vaddr] = self.analysis.extent(self.real, vaddr)
        return self.extents[vaddr]

    def row_from(self, start: int, vaddr: int, called: bool) -> Row | None:
        key = start, vaddr, called
        if key not in self.rows_from:
            self.rows_from[key] = None  # also where it is an error, which nobody tells apart
            self.rows_from[key] = self.analysis.row_from(self.real, start, vaddr, called)
        return self.rows_from[key]

    def stub(self, vaddr: int) -> Symbol | None:
        if vaddr not in self.stubs:
            self.stubs[vaddr] = TableSymbolizer().symbol(self.real, vaddr)
        return self.stubs[vaddr]
