"""Making a corpus: a seed in; programs by a real assembler and linker, cores, and the truth out.

What a seed makes follows from the seed, this version of the library, and the assembler and the
linker alone: the same bytes each time, on each machine that has those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from unwind.elf import PT, Elf
from unwind.errors import SourceError
from unwind.symbol_sections import symbols_of
from unwind.testing.chains import Chain, chain
from unwind.testing.choices import Choices, Rolled
from unwind.testing.core_files import PAGE, Core, Load, R, W, X, stack_pages
from unwind.testing.corpus_assembly import assembly, origin
from unwind.testing.corpus_format import CASE, INDEX, index_text, truth
from unwind.testing.dialects import DIALECTS

__all__ = ["TOOLS", "make_corpus"]


@dataclass(frozen=True)
class _Tools:
    """The assembler and the linker of an architecture, with the package that has them in Debian."""

    prefix: str
    package: str
    assembler: tuple[str, ...] = ()
    bias: int = 0  # of position-independent programs; 0: the assembly cannot be linked to one


_STATIC = ("-32", "-mno-shared", "-call_nonpic")  # a jal stays a jal
TOOLS = {
    "x86_64": _Tools("x86_64-linux-gnu-", "binutils", ("--64",), 0x5555_5555_4000),
    "arm64": _Tools("aarch64-linux-gnu-", "binutils-aarch64-linux-gnu", bias=0xAAAA_AAAA_0000),
    "mips32el": _Tools(
        "mipsel-linux-gnu-",
        "binutils-mipsel-linux-gnu",
        ("-EL", "-32", "-mno-shared", "-call_nonpic"),
    ),
    "mips32": _Tools(
        "mips-linux-gnu-", "binutils-mips-linux-gnu", ("-EB", "-32", "-mno-shared", "-call_nonpic")
    ),
}
_TEXT = 0x41_0000  # where .text begins; the chain lies around it, so it moves down a little
_SIGSEGV = 11
_NT_ARM_PAC_MASK = 0x406
_HWCAP_PACA = 1 << 30  # Linux v6.13 arch/arm64/include/uapi/asm/hwcap.h


def make_corpus(
    directory: Path,
    seed: int,
    count: int,
    archs: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `count` cases of each architecture into a new `directory`; how many there are.

    SourceError where the directory has something in it already, or an assembler is missing or
    does not do what it is told.
    """
    for arch in archs:
        _need(arch)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise SourceError("not empty", str(directory), "a corpus wants a directory of its own")
    names: list[str] = []
    for arch in archs:
        for number in range(count):
            progress(len(names), count * len(archs))
            names.append(f"{arch}-{number:04}")
            _make_case(directory / names[-1], seed, arch, number)
    versions = {arch: _version(arch) for arch in archs}
    (directory / INDEX).write_text(index_text(seed, count, versions, names))
    return len(names)


def _make_case(directory: Path, seed: int, arch: str, number: int) -> None:
    choices = Rolled(f"unwind-corpus/1 {seed} {arch} {number}")
    dialect = DIALECTS[arch]
    style = _Style(choices, TOOLS[arch].bias)
    # The first cases are short, so that what goes wrong everywhere goes wrong in a small one.
    most = min(2 + number // 2, 24)
    made = chain(choices, dialect, bias=style.bias, text=_TEXT, least=1, most=most)
    directory.mkdir()
    source = assembly(made, ", ".join(style.sections))
    (directory / "source.s").write_text(source)
    program = _built(source, arch, origin(made), style)
    _check(program, made)
    _write(directory / "exe", program, 0o755)
    _write(directory / "core", _core(made, program, style).build(), 0o644)
    facts = {
        "seed": seed,
        "number": number,
        "exe": "exe",
        "core": "core",
        "source": "source.s",
        "cfi": list(style.sections),
        "bias": f"{style.bias:#x}",
    }
    (directory / CASE).write_text(truth(made, facts))


class _Style:
    """How a case's files are made: which sections hold CFI, what the core holds of the program."""

    def __init__(self, choices: Choices, bias: int):
        self.bias = bias * choices.chance(3)
        eh, debug = ".eh_frame", ".debug_frame"
        self.sections: tuple[str, ...] = choices.pick(((eh,), (eh,), (eh,), (debug,), (eh, debug)))
        self.header = not choices.chance(4)
        # The kernel leaves out unchanged pages of files, but for the one with the ELF header.
        self.whole = choices.chance(2)
        self.notes = choices.pick(("files", "files", "none"))


def _built(source: str, arch: str, start: int, style: _Style) -> bytes:
    """The program, statically linked, with its code at `start`."""
    tools = TOOLS[arch]
    with TemporaryDirectory(prefix="unwind-corpus-") as scratch:
        where = Path(scratch)
        (where / "case.s").write_text(source)
        _run([tools.prefix + "as", *tools.assembler, "-o", "case.o", "case.s"], where)
        link = [tools.prefix + "ld", "--build-id=sha1"]
        link += ["--eh-frame-hdr"] if style.header else ["--no-eh-frame-hdr"]
        link += ["-pie", "--no-dynamic-linker"] if style.bias else ["-static"]
        link += ["-z", "noexecstack", f"-Ttext={start:#x}", "-e", "_start", "-o", "case", "case.o"]
        _run(link, where)
        return (where / "case").read_bytes()


def _run(command: Sequence[str], where: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, errors="replace", env=environment
    )
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        raise SourceError(f"{command[0]} failed: {said}")


def _need(arch: str) -> None:
    tools = TOOLS[arch]
    for name in ("as", "ld"):
        if shutil.which(tools.prefix + name) is None:
            raise SourceError(
                f"{tools.prefix}{name} is not installed", hint=f"Debian has it in {tools.package}"
            )


def _version(arch: str) -> str:
    """What the assembler calls itself."""
    command = [TOOLS[arch].prefix + "as", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    return said.partition("\n")[0]


def _check(program: bytes, made: Chain) -> None:
    """SourceError unless each function lies where the chain has it."""
    places = {s.name: (s.vaddr, s.size) for s in symbols_of(Elf(program, "exe"), lambda: None)}
    for function in made.functions:
        found = places.get(function.name)
        if found != (function.start, function.body.size):
            raise SourceError(f"{function.name} is not where it was to be: {found}", "exe")


def _core(made: Chain, program: bytes, style: _Style) -> Core:
    """A core as Linux writes it: registers, auxiliary vector, mapped files, memory."""
    arch = made.dialect.arch
    order = "<" if arch.byteorder == "little" else ">"
    elf = Elf(program, "exe")
    core = Core(arch.elf_class, order, arch.machine, flags=elf.header.flags)
    core.thread_of(arch, 1000, made.registers, _SIGSEGV)
    core.process(1000, b"exe", b"exe")
    loads = sorted(_loads(elf, program, made.bias), key=lambda load: load[0])
    first = loads[0][0]
    phdr = first + elf.header.phoff
    entry = elf.header.entry + made.bias
    hwcap = {"hwcap": _HWCAP_PACA} if made.dialect.pac else {}  # else gdb takes no codes off
    sizes = {"phent": elf.header.phentsize, "phnum": elf.header.phnum}
    core.auxv(phdr=phdr, entry=entry, **sizes, **hwcap)
    if made.dialect.pac:
        mask = 0x7F << 48
        core.note(_NT_ARM_PAC_MASK, core.pack("QQ", mask, mask), b"LINUX\0")
    if style.notes == "files":
        core.files(*[(start, end, offset, "exe") for start, end, offset, _, _ in loads])
    for start, end, _, flags, data in loads:
        kept = data if style.whole or flags & W else data[:PAGE] if start == first else b""
        core.loads.append(Load(start, kept, end - start, flags))
    core.loads += [Load(at, data, flags=R | W) for at, data in stack_pages(made.stacks)]
    core.loads.sort(key=lambda load: load.start)
    return core


def _loads(elf: Elf, program: bytes, bias: int) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Start, end, file offset, flags and contents of each PT_LOAD, in whole pages."""
    for kind, flags, offset, vaddr, _, memory, *_ in elf.program_rows:
        if kind == PT.LOAD:
            start, end = vaddr & -PAGE, vaddr + memory + PAGE - 1 & -PAGE
            at = offset - (vaddr - start)
            data = program[at : at + end - start].ljust(end - start, b"\0")
            yield start + bias, end + bias, at, flags & (R | W | X), data


def _write(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)
