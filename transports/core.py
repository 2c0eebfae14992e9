"""Cores, of the kernel, gdb's gcore and qemu: the path of one in, threads, memory, modules out."""

from __future__ import annotations

import os

from unwind.core_memory import CoreMemory
from unwind.core_notes import CoreNotes, read_notes
from unwind.discover import AT, Discovery, vdso
from unwind.elf import ET, PT, Elf
from unwind.errors import SourceError
from unwind.mappings import modules_of
from unwind.registry import architecture
from unwind.snapshot import Signal, Snapshot, Source
from unwind.space import AddressSpace, Region, regions_of
from unwind.unpack import Input, load

__all__ = ["TRANSPORT", "CoreSource", "check_head", "loads_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.modules import Module

_FILTER = (
    "the core does not hold it: the kernel's default coredump_filter, 0x33, leaves unchanged "
    "pages of files out, 0x3f keeps them"
)


class CoreSource(Source):
    """An open core. `threads` begins with the one that crashed.

    `memory` may stand for what the core holds of it.
    """

    kind = "core"

    def __init__(
        self,
        arch: Architecture,
        path: str,
        data: Input,
        elf: Elf,
        files: Files,
        memory: CoreMemory | None = None,
    ):
        super().__init__(arch, path)
        self._input = data
        self.warnings += data.warnings
        self.memory = memory or CoreMemory(data.data, loads_of(elf), data.read)
        notes = read_notes(elf, arch)
        self.arch = arch = _with_address_bits(arch, notes.pac_mask, self.memory)
        self.warnings += notes.warnings
        self._check_size(elf)
        self.pid = notes.pid
        self.command = notes.command or notes.name or None
        self.signal = Signal(*notes.signal) if notes.signal is not None else None
        modules = self._modules(notes, files)
        self.warnings += files.warnings
        if files.executable and not files.main_wanted:
            self.warnings.append(
                f"{files.executable}: where the main program lies is unknown; it was not used"
            )
        memory = self.memory
        self.space = AddressSpace(
            arch, modules, lambda: _regions(arch, memory, modules), code=memory.code
        )
        self.threads = tuple(self._threads(notes))
        if not self.threads:
            self.warnings.append("the core holds the registers of no thread (NT_PRSTATUS)")

    def snapshots(self) -> Iterator[Snapshot]:
        """The threads as the core has them: the kernel and gdb write the crashed one first."""
        return iter(self.threads)

    def close(self) -> None:
        """Give back the core and its unpacked copy; the Snapshots' memory is gone then."""
        self.memory.close()
        self._input.close()

    def _threads(self, notes: CoreNotes) -> Iterator[Snapshot]:
        memory, space, pid = self.memory, self.space, notes.pid or 0
        crashed = self.signal is not None
        for note in notes.threads:
            name = notes.name if note.tid == pid and notes.name else None
            yield Snapshot(note.registers, memory, space, note.tid, pid, name, crashed)
            crashed = False

    def _check_size(self, elf: Elf) -> None:
        """Warns of what the core's end cut off."""
        memory, header = self.memory, elf.header
        expected = max(
            [memory.expected, *[r[2] + r[4] for r in elf.program_rows if r[0] == PT.NOTE]]
        )
        memory.expected = expected
        if expected > memory.size:
            self.warnings.append(
                f"the core is truncated: {expected - memory.size} of {expected} bytes are missing"
            )
        missing = header.phnum - len(elf.program_rows)
        if missing > 0:
            self.warnings.append(
                f"the core is truncated: {missing} of {header.phnum} program headers are missing"
            )

    def _modules(self, notes: CoreNotes, files: Files) -> list[Module]:
        memory = self.memory
        base = _directory(self.path)
        holds_data = memory.holds_data
        mapped = notes.files or []
        memory.names = {file.start: file.name for file in mapped}

        def lend(start: int, data: memoryview, code: bool) -> None:
            if holds_data or code:
                memory.back(start, data)

        lacking = _FILTER
        if memory.expected > memory.size:
            lacking = f"the core is truncated ({memory.size} of {memory.expected} bytes present)"
        known = vdso(memory, notes.auxv.get(AT.SYSINFO_EHDR, 0), files, lacking)
        modules = [known] if known is not None else []
        inside = notes.auxv.get(AT.PHDR) or _main_of(notes)
        modules += modules_of(
            mapped,
            memory,
            files,
            executable=memory.executable,
            inside_main=inside,
            base=base,
            lend=lend,
            lacking=lacking,
        )
        found_main = not inside or any(a <= inside < b for m in modules for a, b in m.ranges)
        if mapped and found_main and not notes.files_cut:
            return sorted(modules, key=lambda module: module.start)
        return Discovery(
            self.arch,
            memory,
            notes.auxv,
            files,
            starts=[start for start, _, _ in memory.mappings()],
            executable=memory.executable,
            lend=lend,
            known=modules,
            program=notes.name,
            base=base,
            lacking=lacking,
        ).run()


def _main_of(notes: CoreNotes) -> int:
    """An address in the main program where no AT_PHDR tells: the file called as the process is.

    The kernel keeps 15 bytes of that name.
    """
    if AT.ENTRY in notes.auxv:
        return notes.auxv[AT.ENTRY]
    for file in notes.files or ():
        if os.path.basename(file.name)[:15] == notes.name:
            return file.start
    return 0


def _with_address_bits(arch: Architecture, pac_mask: int, memory: CoreMemory) -> Architecture:
    """The architecture with the size of this process's address space, where that varies.

    Authentication codes lie in all bits above it (Linux v6.13 ptrauth_user_pac_mask). Without a
    note on them (qemu-user) it is the usual one, unless something is mapped beyond.
    """
    if not arch.pac_mask_note:
        return arch
    usual = arch.code_mask.bit_length()
    if pac_mask and not pac_mask & 0xFFFF_FFFF:
        bits = (pac_mask & -pac_mask).bit_length() - 1
    else:
        last = (end - 1 for _, end, _ in memory.mappings() if not end - 1 & arch.upper_half)
        bits = max(usual, max(last, default=0).bit_length())
    return arch.with_address_bits(bits) if bits != usual else arch


def _directory(path: str) -> str:
    """Where the kernel wrote the core: the directory that the process was in, as a rule."""
    try:
        return os.getcwd() if path == "-" else os.path.dirname(os.path.abspath(path))
    except OSError:  # the current directory is gone
        return ""


def _regions(arch: Architecture, memory: CoreMemory, modules: list[Module]) -> list[Region]:
    """The mappings of the process, those of the kernel, and those that gcore leaves out."""
    names = memory.names
    fixed = {start: name for start, _, name in arch.fixed_regions}
    found = [
        Region(start, end, executable or start in fixed, names.get(start) or fixed.get(start, ""))
        for start, end, executable in memory.mappings()
    ]
    known = {region.start for region in found}
    for start, end, name in arch.fixed_regions:
        if start not in known and memory.executable(start) is None:
            found.append(Region(start, end, True, name))
    for module in modules:
        wanted = regions_of(module)
        found += [region for region in wanted if memory.executable(region.start) is None]
    return found


class _CoreTransport:
    kind = "core"

    def detect(self, head: bytes) -> bool:
        """Whether a file begins as an ELF core does."""
        if head[:4] != b"\x7fELF" or len(head) < 18 or head[5] not in (1, 2):
            return False
        return int.from_bytes(head[16:18], "little" if head[5] == 1 else "big") == ET.CORE

    def open(self, path: str, files: Files) -> CoreSource:
        """The core at `path` (`-`: standard input), which may be compressed.

        Raises SourceError where no core can be had from it, FormatError where it begins with no
        ELF header, UnsupportedArchitecture for a machine or ABI that no file in arch/ describes.
        """
        return self.read(
            load(path, files.progress, lambda head: check_head(head, path)), path, files
        )

    def read(
        self,
        data: Input,
        path: str,
        files: Files,
        memory: CoreMemory | None = None,
    ) -> CoreSource:
        """The core in `data`, which is closed with it; errors as of `open`.

        `memory` may stand for what the core holds of it.
        """
        try:
            elf = Elf(memoryview(data.data), path)
            return CoreSource(architecture(elf), path, data, elf, files, memory)
        except BaseException:
            data.close()
            raise


def loads_of(elf: Elf) -> list[tuple[int, ...]]:
    """The mappings of a core, as `Elf.program_rows` has them."""
    return [row for row in elf.program_rows if row[0] == PT.LOAD]


def check_head(head: bytes, path: str) -> None:
    """Raises SourceError when `head` is not how a core begins."""
    if head[:4] != b"\x7fELF":
        raise SourceError("not a core: it does not begin with an ELF header", path)
    kind = Elf(head.ljust(64, b"\0"), path).header.type
    if kind != ET.CORE:
        names = {ET.REL: "an object file", ET.EXEC: "a program", ET.DYN: "a program or library"}
        raise SourceError(
            f"not a core but {names.get(kind, 'an ELF file of another type')}",
            path,
            "give the core; -e names the program that it came from",
        )


TRANSPORT = _CoreTransport()
