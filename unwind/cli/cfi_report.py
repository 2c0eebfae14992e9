"""What unwind-cfi prints: its options in, text on standard output out."""

from __future__ import annotations

import mmap
import os
import sys
from itertools import chain
from stat import S_ISREG

from unwind.cli.plumbing import warn
from unwind.dwarf.cfi import Broken, Fde
from unwind.dwarf.constants import DW_CFA, VENDOR_OPCODES
from unwind.dwarf.rows import row_at
from unwind.elf import EM, ET, SHF, SHT, Elf
from unwind.errors import FormatError, SourceError, UnsupportedArchitecture, UnwindError
from unwind.image import Image, UnreadableSection
from unwind.registry import architecture
from unwind.rules import SameValue
from unwind.writers.escape import escape

__all__ = ["report"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from unwind.cli.options import Options
    from unwind.disagreements import Disagreement
    from unwind.dwarf.cfi import FrameSection
    from unwind.rules import Row
    from unwind.symtab import Symbol
    from unwind.writers.cfi_tables import Tables


def report(options: Options) -> None:
    """Print what the options ask for; SourceError or FormatError where that cannot be had."""
    image = _open(options.file)
    found = (each for each in image.frame_sections if options.section in (None, each.kind))
    first = next(found, None)
    if first is None:
        raise _no_cfi(image.elf, options.file, options.section)
    sections = chain([first], found)  # the later ones may have to be decompressed: not for nothing
    made = _Report(options, image)
    if options.lint:
        made.lint(sections)
    elif options.address is None:
        made.all(sections)
    else:
        made.place(sections, options.address)


def _open(path: str) -> Image:
    """The ELF file at `path`, mapped; its separate debug file is not looked for."""
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not S_ISREG(status.st_mode):
            raise SourceError("it is no regular file", path)
        if status.st_size == 0:
            raise FormatError("an empty file", path)
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return Image(Elf(memoryview(data), path), path)


def _without_waiting(path: str, flags: int) -> int:
    """`open`, but a FIFO that nobody writes to is opened all the same, to be refused."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _no_cfi(elf: Elf, path: str, kind: str | None) -> SourceError:
    if elf.header.type == ET.CORE:
        return SourceError("a core holds no CFI of its own", path, "unwind-core reads cores")
    if kind is not None:
        return SourceError(f"it has no .{kind}", path, "without --section any CFI will do")
    return SourceError(
        "it has no CFI, neither .eh_frame nor .debug_frame",
        path,
        "a .debug_frame may be in its separate debug file",
    )


class _Report:
    """One run of the command over one file."""

    def __init__(self, options: Options, image: Image):
        self.options = options
        self.image = image
        self.names, self.vendor_opcodes = _machine(image.elf)

    def all(self, sections: Iterable[FrameSection]) -> None:
        """Print whole sections; what cannot be read of them is told when the rest is out."""
        unreadable, tables = None, self._tables()
        for section in sections:
            if isinstance(section, UnreadableSection):
                unreadable = section.error
            elif self.options.json:
                for entry in section.entries():
                    if isinstance(entry, Fde):
                        self._put(tables.json(entry))
                    elif isinstance(entry, Broken):
                        self._complain(entry.error)
            else:
                self._put(tables.section(section, raw=self.options.raw))
        if unreadable is not None:
            raise unreadable

    def place(self, sections: Iterable[FrameSection], vaddr: int) -> None:
        """Print what is in effect at one address."""
        for section in sections:
            fde = section.find(vaddr)
            if fde is None:
                continue
            if self.options.raw:
                tables = self._tables()
                self._put(tables.entry(entry, raw=True) for entry in (fde.cie, fde))
                return
            row = row_at(fde, vaddr, self.vendor_opcodes)
            if row is not None:
                self._put(self._row(row, fde, vaddr))
                return
        raise SourceError(
            f"no FDE covers {vaddr:#x}", self.options.file, "without --address it prints them all"
        )

    def lint(self, sections: Iterable[FrameSection]) -> None:
        """Print where the code refutes the CFI, of one FDE if an address is given."""
        from unwind.disagreements import disagreements
        from unwind.disassembly import disassembler

        options, image = self.options, self.image
        arch = architecture(image.elf)
        if options.raw:
            raise SourceError("--lint compares rows, and --raw prints none", options.file)
        if arch.code_model is None:
            raise SourceError(f"what code of {arch.name} does is not known", options.file)
        if not _holds_code(image.elf):
            raise SourceError(
                "it holds no code that could run",
                options.file,
                "lint the program that it is linked into, or that it describes",
            )
        disassemble = disassembler(arch.code_model())
        complain = self._complain
        for found in disagreements(image, arch, disassemble, sections, complain, options.address):
            self._put(self._finding(found))

    def _finding(self, found: Disagreement) -> Iterator[str]:
        from unwind.formulas import cfa_formula, rule_formula

        name, register = self._name, found.register
        what = "CFA" if register is None else name(register)
        said, done = (
            cfa_formula(row.cfa, name)
            if register is None
            else rule_formula(row.rules.get(register, SameValue()), name)
            for row in (found.cfi, found.code)
        )
        if self.options.json:
            import json

            symbol = self._symbol(found.start)

            yield json.dumps(
                {
                    "section": found.fde.section,
                    "fde": found.fde.offset,
                    "function": symbol.name if symbol is not None else None,
                    "start": f"{found.start:#x}",
                    "end": f"{found.end:#x}",
                    "what": what,
                    "cfi": said,
                    "code": done,
                }
            )
            yield "\n"
            return
        function = self._function(found.start) or f"the function at {found.fde.start:#x}"
        yield f"{found.start:#x}..{found.end:#x} in {function}\n"
        yield f"  CFI:  {what} = {said}\n"
        yield f"  code: {what} = {done}\n"

    def _row(self, row: Row, fde: Fde, vaddr: int) -> Iterator[str]:
        if self.options.json:
            from unwind.writers.cfi_tables import json_row

            yield f"{json_row(row, self._name)}\n"
            return
        from unwind.formulas import cfa_formula, rule_formula

        name, function = self._name, self._function(vaddr)
        yield f"{vaddr:#x}{f' in {function}' if function else ''}\n"
        yield f".{fde.section}: FDE at {fde.offset:#x} for {fde.start:#x}..{fde.end:#x}, "
        yield f"CIE at {fde.cie.offset:#x}{', signal frame' if row.signal else ''}\n"
        signed = ", return address signed" if row.ra_signed else ""
        yield f"row for {row.start:#x}..{row.end:#x}{signed}:\n"
        yield f"  CFA = {cfa_formula(row.cfa, name)}\n"
        for number, rule in sorted(row.rules.items()):
            yield f"  {name(number)} = {rule_formula(rule, name)}\n"

    def _tables(self) -> Tables:
        """Writes whole entries; one row, the commonest question, needs none of it."""
        from unwind.writers.cfi_tables import Tables

        return Tables(self.names, self.vendor_opcodes, self._complain)

    def _name(self, number: int) -> str:
        return self.names.get(number) or f"r{number}"

    def _function(self, vaddr: int) -> str:
        """The symbol around `vaddr` with the offset into it, "" where none is known."""
        symbol = self._symbol(vaddr)
        if symbol is None:
            return ""
        beyond = f"+{vaddr - symbol.vaddr:#x}" if vaddr != symbol.vaddr else ""
        return escape(symbol.name) + beyond

    def _symbol(self, vaddr: int) -> Symbol | None:
        if self.image.elf.header.type == ET.REL:  # each of its sections begins at 0
            return None
        try:
            return self.image.symbols.find(vaddr)
        except UnwindError:
            return None

    def _complain(self, error: UnwindError) -> None:
        warn("unwind-cfi", escape(f"{self.options.file}: {error}"))

    def _put(self, texts: Iterable[str]) -> None:
        write = sys.stdout.write
        for text in texts:
            write(text)


def _holds_code(elf: Elf) -> bool:
    """Whether there are instructions at addresses: in no object, and in no debug file."""
    code = [section for section in elf.sections if section.flags & SHF.EXECINSTR]
    if elf.header.type == ET.REL:
        return False
    return not code or any(section.type != SHT.NOBITS for section in code)


def _machine(elf: Elf) -> tuple[Mapping[int, str], Mapping[int, str]]:
    """The names of registers and vendors' opcodes; none of the former on an unknown machine."""
    try:
        arch = architecture(elf)
    except UnsupportedArchitecture:
        # 0x2d is SPARC's everywhere but on this machine, whose tables are of use without names.
        own = {DW_CFA.GNU_window_save: "AARCH64_negate_ra_state"}
        return {}, own if elf.header.machine == EM.AARCH64 else VENDOR_OPCODES
    return arch.cfi_names if arch.cfi_names is not None else arch.names, arch.vendor_opcodes
