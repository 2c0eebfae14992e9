"""Analysis of the code as a source of rows: follow the function from its start to the place."""

from __future__ import annotations

from unwind.errors import UnwindError
from unwind.frames import Trust
from unwind.rules import NoRow, Undefined

__all__ = ["EmulationSource"]

# A function that a call in the stack points to is followed no further than this, in bytes.
_LONGEST = 65536

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture
    from unwind.functions import Functions
    from unwind.image import Image
    from unwind.machine import CodeModel
    from unwind.rules import Row
    from unwind.snapshot import Place


class EmulationSource:
    """Rows from what the instructions do, for code that nobody described.

    Nothing is loaded before the first place without a better row asks: capstone alone takes
    longer to import than most cores to unwind.
    """

    trust = Trust.EMULATION
    shared = True

    def __init__(self, arch: Architecture):
        self.arch = arch
        self._functions: dict[Image, Functions] = {}
        self._lacking = ""  # what keeps this source from working at all

    def row(self, place: Place) -> Row | NoRow:
        """The row that the code before the place comes to."""
        if place.image is None:
            return NoRow("there is no code to look at")
        if not place.image.executable(place.vaddr):
            return NoRow(f"{place.vaddr:#x} is not executable")
        if not place.called and place.vaddr % self.arch.code_alignment:
            return NoRow("no instruction can run here: a branch led here and nowhere else")
        if self._is_compressed(place):
            return NoRow("the code is microMIPS or MIPS16, which is not followed")
        return self.row_at(place.image, place.vaddr, place.called)

    def row_at(self, image: Image, vaddr: int, called: bool) -> Row | NoRow:
        """As `row`, for code that can be followed."""
        if image.told is not None:
            return image.told.row(vaddr, called)
        functions = self._functions_of(image)
        if functions is None:
            return NoRow(self._lacking)
        try:
            table = functions.table(vaddr)
        except UnwindError as error:
            return NoRow(str(error))
        if table is None:
            return NoRow(f"where the function around {vaddr:#x} starts is not known")
        row = table.row(vaddr, called)
        if row is None:
            return NoRow(f"the code from {table.start:#x} on does not tell where the CFA is")
        if table.start == image.elf.header.entry != 0:  # what jumps there is not to be returned to
            rules = {**row.rules, row.return_address: Undefined()}
            return row.replace(rules=rules)  # type: ignore[no-any-return]
        return row

    def _is_compressed(self, place: Place) -> bool:
        """Whether bit 0 of the return address, of the pc or of a .pdr entry marks the code."""
        arch, image = self.arch, place.image
        if not arch.compressed_call_size:
            return False
        if place.called:
            return place.pc - place.lookup_pc == arch.compressed_call_size
        known = (
            image.procedures.find(place.vaddr) if image is not None and image.procedures else None
        )
        marked = bool(place.registers.get(arch.pc, 0) & 1)
        return marked or (known is not None and known.compressed)

    def start_of(self, image: Image, vaddr: int) -> int | None:
        """Where the function around `vaddr` starts, None where nobody knows."""
        found = self.extent(image, vaddr)
        return found[0] if found is not None else None

    def extent(self, image: Image, vaddr: int) -> tuple[int, int] | None:
        """Where the function around `vaddr` starts and ends, None where nobody knows."""
        if image.told is not None:
            return image.told.extent(vaddr)
        functions = self._functions_of(image)
        return functions.bounds(vaddr) if functions is not None else None

    def row_from(self, image: Image, start: int, vaddr: int, called: bool) -> Row | None:
        """The row at `vaddr` of a function that is taken to begin at `start`."""
        if image.told is not None:
            return image.told.row_from(start, vaddr, called)
        functions = self._functions_of(image)
        if functions is None or not start <= vaddr < start + _LONGEST:
            return None
        return functions.row_from(start, vaddr, called)

    def _functions_of(self, image: Image) -> Functions | None:
        found = self._functions.get(image)
        if found is None and not self._lacking:
            model = self._model()
            if model is None:
                return None
            from unwind.disassembly import disassembler
            from unwind.functions import Functions
            from unwind.starts import FoundStarts

            try:
                disassemble = disassembler(model)
                starts = FoundStarts(image, model, disassemble)
                found = self._functions[image] = Functions(image, model, disassemble, starts)
            except UnwindError as error:
                self._lacking = str(error)
        return found

    def _model(self) -> CodeModel | None:
        if self.arch.code_model is None:
            self._lacking = f"no code model for {self.arch.name}"
            return None
        return self.arch.code_model()
