"""readelf as an oracle: every ELF file of the machine in, the entries that we read otherwise out.

    file ──> readelf --debug-dump=frames-interp ──> entries ──┐
         └─> FrameSection, rows, Tables ──────────> entries ──┴──> equal, or a Difference

Both texts are streamed and compared entry by entry, to the blank: the rows in one pass (CFA and
every register column), the instructions with their expressions in another, since frames-interp
prints `exp` for any expression. `make oracle` runs it over all of /usr/bin and /usr/lib.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from unwind.arch import x86_64
from unwind.dwarf.constants import VENDOR_OPCODES
from unwind.elf import EM, Elf
from unwind.errors import UnsupportedArchitecture, UnwindError
from unwind.image import Image
from unwind.registry import architecture
from unwind.writers.cfi_tables import Tables

PLACES = ("/usr/bin", "/usr/lib")

# How readelf names the registers of ABIs that no file in arch/ describes.
_ARM64 = {n: f"x{n}" for n in range(31)} | {31: "sp"} | {64 + n: f"v{n}" for n in range(32)}
_I386 = dict(enumerate("eax ecx edx ebx esp ebp esi edi eip eflags".split()))
_X32 = x86_64.ARCH.names
NAMES = {EM.AARCH64: _ARM64, EM.I386: _I386, EM.X86_64: _X32}

# Where readelf is wrong: by file name, section and entry, with the argument.
EXCEPTIONS: dict[tuple[str, str, int], str] = {}

_MOST_SHOWN = 5  # differences of one file


@dataclass(frozen=True)
class Key:
    """An entry's place: sections of one name are counted, for relocatable files have several."""

    section: int
    kind: str
    offset: int


@dataclass(frozen=True)
class Difference:
    """An entry of which the two have different texts; None where one of them has it not."""

    path: str
    place: Key
    layout: str
    ours: str | None
    theirs: str | None

    def __str__(self) -> str:
        head = f"{self.path}: .{self.place.kind} {self.place.offset:#x} ({self.layout})"
        ours, theirs = (self.ours or "").split("\n"), (self.theirs or "").split("\n")
        lines = max(len(ours), len(theirs))
        for n in range(lines):
            one, other = (text[n] if n < len(text) else "(none)" for text in (ours, theirs))
            if one != other:
                return f"{head}\n  unwind   {one}\n  readelf  {other}"
        return head


@dataclass
class Counts:
    """What one side has seen."""

    files: int = 0
    fdes: int = 0
    rows: int = 0
    instructions: int = 0
    expressions: int = 0

    def add(self, text: str, layout: str) -> None:
        """Count one entry by its text."""
        if layout == "frames":
            self.instructions += text.count("\n  DW_CFA_")
            self.expressions += text.count("expression")
        elif " FDE cie=" in text[:80]:
            self.fdes += 1
            self.rows += max(text.count("\n") - 2, 0)  # without the two lines of heads

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Counts(*[one + two for one, two in pairs])


@dataclass
class Comparison:
    """What came of one file, or of many."""

    ours: Counts = field(default_factory=Counts)
    theirs: Counts = field(default_factory=Counts)
    differences: list[Difference] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.ours + other.ours,
            self.theirs + other.theirs,
            self.differences + other.differences,
            self.excused + other.excused,
        )


def compare(path: str) -> Comparison:
    """What both make of one ELF file."""
    found = Comparison()
    for layout in ("frames-interp", "frames"):
        ours, theirs = _ours(path, layout), _theirs(path, layout)
        for key, one, other in _joined(ours, theirs):
            if one is not None:
                found.ours.add(one, layout)
            if other is not None:
                found.theirs.add(other, layout)
            if one == other:
                continue
            argument = EXCEPTIONS.get((os.path.basename(path), key.kind, key.offset))
            if argument is not None:
                found.excused.append(f"{path}: .{key.kind} {key.offset:#x}: {argument}")
            elif len(found.differences) < _MOST_SHOWN:
                found.differences.append(Difference(path, key, layout, one, other))
    found.ours.files = int(found.ours.instructions > 0)
    found.theirs.files = int(found.theirs.instructions > 0)
    return found


def elf_files(places: Iterable[str]) -> list[str]:
    """The ELF files below `places`, each content once by its inode, the largest first."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for place in places:
        for directory, _, names in os.walk(os.path.realpath(place)):
            for name in names:
                path = os.path.join(directory, name)
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode) and _is_elf(path):
                    found.setdefault((status.st_dev, status.st_ino), (status.st_size, path))
        if os.path.isfile(place):
            found[0, len(found)] = (os.path.getsize(place), place)
    return [path for _, path in sorted(found.values(), reverse=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all files; 0 where nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m tools.oracle", description=__doc__)
    parser.add_argument("places", nargs="*", default=PLACES, help="files and directories")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once")
    options = parser.parse_args(argv)
    start = time.monotonic()
    files = elf_files(options.places)
    print(f"{len(files)} ELF files below {' '.join(options.places)}", flush=True)
    total = Comparison()
    with multiprocessing.Pool(options.jobs) as pool:
        for found in pool.imap_unordered(compare, files):
            for difference in found.differences:
                print(difference, flush=True)
            total += found
    for excuse in total.excused:
        print(f"readelf's error: {excuse}")
    print(f"{'':<14}{'unwind':>12}{'readelf':>12}")
    for name, count in vars(total.ours).items():
        label = "files with CFI" if name == "files" else name
        print(f"{label:<14}{count:>12,}{vars(total.theirs)[name]:>12,}")
    print(f"{len(total.differences)} differences, {time.monotonic() - start:.0f} s")
    return int(bool(total.differences) or (total.ours != total.theirs and not total.excused))


Entries = Iterator[tuple[Key, str]]


def _ours(path: str, layout: str) -> Entries:
    with open(path, "rb") as file:
        elf = Elf(memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)), path)
    complaints: list[UnwindError] = []
    tables = _tables(elf, complaints)
    for number, section in enumerate(Image(elf).frame_sections, 1):
        for text in tables.section(section, raw=layout == "frames"):
            if text[:1] == "\n" and len(text) > 1:
                said = "".join(f"  {complaint}\n" for complaint in complaints)
                yield Key(number, section.kind, int(text[1:9], 16)), text.strip("\n") + "\n" + said
                complaints.clear()


def _tables(elf: Elf, complaints: list[UnwindError]) -> Tables:
    try:
        arch = architecture(elf)
    except UnsupportedArchitecture:
        return Tables(NAMES.get(elf.header.machine, {}), VENDOR_OPCODES, complaints.append)
    names = arch.cfi_names if arch.cfi_names is not None else arch.names
    return Tables(names, arch.vendor_opcodes, complaints.append)


def _theirs(path: str, layout: str) -> Entries:
    """readelf's entries; nothing is taken from the separate debug files it would follow."""
    command = ["readelf", "--debug-dump=no-follow-links", f"--debug-dump={layout}", path]
    number, kind, lines = 0, "", list[str]()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"LC_ALL": "C"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if lines and lines[-1] == "\n" and line[:1] in _NEXT:
                yield Key(number, kind, int(lines[0][:8], 16)), "".join(lines).rstrip("\n") + "\n"
                lines = []
            if head := re.match(r"Contents of the \.z?(debug_frame|eh_frame) section", line):
                number, kind = number + 1, head[1]
            elif lines or _HEAD.match(line):  # else it says that a section has no contents
                lines.append(line)
        if lines:
            yield Key(number, kind, int(lines[0][:8], 16)), "".join(lines).rstrip("\n") + "\n"


_NEXT = frozenset("0123456789abcdefC\n")  # what begins an entry, a section, or another blank line
_HEAD = re.compile("[0-9a-f]{8} ")


def _joined(ours: Entries, theirs: Entries) -> Iterator[tuple[Key, str | None, str | None]]:
    """Both streams side by side; None on the side that has no such entry."""
    end = (None, None)
    one, other = next(ours, end), next(theirs, end)
    while one != end or other != end:
        left, right = _order(one[0]), _order(other[0])
        key = one[0] if left <= right else other[0]
        assert key is not None
        yield key, one[1] if left <= right else None, other[1] if right <= left else None
        if left <= right:
            one = next(ours, end)
        if right <= left:
            other = next(theirs, end)


def _order(key: Key | None) -> tuple[float, float]:
    return (float("inf"), 0) if key is None else (key.section, key.offset)


def _is_elf(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
