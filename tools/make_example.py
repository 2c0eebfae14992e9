"""A small real core for examples/: crashes a program, packs its core with what unwinding it needs.

`python -m tools.make_example examples/crash.c` writes examples/ARCH-crash.tar.xz, which holds

    core          as the kernel wrote it
    usr/..., ...  a sysroot: the program, and of each library the unwind tables, symbols and headers

Of the libraries hardly anything else is kept: their code and constants are zeroed, which makes the
archive small. Only where the tables do not tell all, as for mips, the functions of the stacks are.

`--arch arm64` and `--arch mips32el` crash the program under a kernel in qemu-system: see
tests/kernel.py.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from unwind.elf import Elf
from unwind.pdr import procedures

CFLAGS = "-O2 -fomit-frame-pointer -pthread".split()
BUILT = Path("/tmp/unwind-demo")  # the core tells where its program was: a name without a story
KEPT_TYPES = {"SHT_DYNAMIC", "SHT_DYNSYM", "SHT_GNU_HASH", "SHT_NOTE", "SHT_STRTAB", "SHT_SYMTAB"}
KEPT_NAMES = {".eh_frame", ".eh_frame_hdr", ".gnu_debugdata", ".gnu_debuglink", ".interp", ".pdr"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="FILE.c")
    parser.add_argument("--cc", default="cc", metavar="COMMAND")
    parser.add_argument("--arch", default="x86_64", metavar="NAME")
    options = parser.parse_args()
    if options.arch == "x86_64":
        content = here(options.source, options.cc)
    else:
        content = elsewhere(options.source, options.arch)
    packed = options.source.parent / f"{options.arch}-{options.source.stem}.tar.xz"
    packed.write_bytes(content)
    print(f"{packed}: {packed.stat().st_size} bytes")


def here(source: Path, compiler: str) -> bytes:
    """The example of this machine."""
    BUILT.mkdir(exist_ok=True)
    program = BUILT / source.stem
    subprocess.run([compiler, *CFLAGS, "-o", program, source], check=True)
    return pack(crash(program), program)


def elsewhere(source: Path, arch: str) -> bytes:
    """The example of another architecture, by Debian's cross compiler and kernel."""
    from tests import kernel

    [machine] = [machine for machine in kernel.MACHINES if machine.name == arch]
    flags = [*CFLAGS, *(["-mbranch-protection=standard"] if arch == "arm64" else [])]
    with tempfile.TemporaryDirectory() as where:
        program, sysroot, core = (Path(where) / name for name in (source.stem, "sysroot", "core"))
        compiler = machine.target.tool("gcc")
        subprocess.run([compiler, *flags, "-o", program, source], check=True)
        left = kernel.run(machine, {source.stem: program}, {source.stem: ()}, sysroot)
        core.write_bytes(left[source.stem].core)
        command = [sys.executable, "-m", "unwind.cli.core", "--json"]
        document = json.loads(subprocess.check_output([*command, "--sysroot", sysroot, core]))
        members = {"core": core.read_bytes()}
        for module in document["modules"]:
            if module["file"]:
                content = Path(module["file"]).read_bytes()
                if content != program.read_bytes():
                    content = tables_of(content, sorted(vaddrs_in(document, module["name"])))
                members[module["name"][1:]] = content
        return archived(members)


def crash(program: Path) -> bytes:
    """The core that `program` leaves, where core_pattern names a file in its directory."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    with tempfile.TemporaryDirectory() as where:
        subprocess.run(
            [program],
            cwd=where,
            env={},  # the environment lies on the stack, and so in the core
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
        )
        [core] = Path(where).glob("core*")
        return core.read_bytes()


def mapped_files(core: bytes) -> list[Path]:
    """The ELF files that NT_FILE names, each once."""
    names = {
        os.fsdecode(name)
        for segment in ELFFile(io.BytesIO(core)).iter_segments("PT_NOTE")
        for note in segment.iter_notes()
        if note["n_type"] == "NT_FILE"
        for name in note["n_desc"]["filename"]
    }
    return [path for path in map(Path, sorted(names)) if path.read_bytes()[:4] == b"\x7fELF"]


def tables_of(file: bytes, vaddrs: Iterable[int] = ()) -> bytes:
    """`file` with all but headers, unwind tables, symbols and notes zeroed.

    `vaddrs` are where its frames stand. They keep the call before them; where .pdr is all that
    tells of a function, which leaves the place within it to the code, they keep the function.
    """
    elf = ELFFile(io.BytesIO(file))
    header = elf.header
    kept = [
        (0, header["e_ehsize"]),
        (header["e_phoff"], header["e_phnum"] * header["e_phentsize"]),
        (header["e_shoff"], header["e_shnum"] * header["e_shentsize"]),
    ]
    kept += [
        (section["sh_offset"], section["sh_size"])
        for section in elf.iter_sections()
        if section["sh_type"] in KEPT_TYPES or section.name in KEPT_NAMES
    ]
    table = procedures(Elf(file))
    for vaddr in vaddrs:
        start, end = vaddr - 8, vaddr
        procedure = table.find(vaddr - 8) if table is not None else None
        if table is not None and procedure is not None:
            start, end = procedure.start, table.end(procedure) or end
        [offset] = elf.address_offsets(start, end - start)
        kept.append((offset, end - start))
    bare = bytearray(len(file))
    for offset, size in kept:
        bare[offset : offset + size] = file[offset : offset + size]
    return bytes(bare)


def vaddrs_in(document: dict[str, Any], name: str) -> set[int]:
    """Where frames of `unwind-core --json` stand in the module of a name."""
    modules = [module["name"] for module in document["modules"]]
    return {
        int(frame["vaddr"], 16)
        for thread in document["threads"]
        for frame in thread["frames"]
        if frame.get("module") is not None and modules[frame["module"]] == name
    }


def pack(core: bytes, program: Path) -> bytes:
    members = {"core": core}
    for path in mapped_files(core):
        content = path.read_bytes()
        members[str(path)[1:]] = content if path == program else tables_of(content)
    return archived(members)


def archived(members: Mapping[str, bytes]) -> bytes:
    """A .tar.xz of some files, which is the same each time it is made."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(packed.getvalue(), preset=9)


if __name__ == "__main__":
    main()
