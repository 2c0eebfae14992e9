"""Cores that a real kernel of another processor wrote: Debian's, booted under qemu-system.

`make test-kernel` boots a kernel for each target, crashes the cases below under it, and compares
what unwind-core says with what the programs recorded. `--keep` also packs the cores, the records
and what unwinding needs into tests/data, where tests/test_kernel.py finds them each time.

    cases ──build──> initramfs ──qemu-system──> console ──cores──> Crash
"""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests import foreign
from tests.crashes import CHAIN, FRAME_POINTERS, NEITHER, OMIT, Crash
from tests.foreign import ARM64, MIPSEL, PAC, PAC_B, ForeignCase, Target
from tests.support import ROOT, cannot, need
from tests.truth import Stack, expected
from tools.make_example import archived, tables_of, vaddrs_in

DATA = ROOT / "tests/data"
DOWNLOADS = ROOT / ".kernels"


@dataclass(frozen=True)
class Machine:
    """A machine that qemu emulates, and the Debian kernel for it."""

    name: str
    """As unwind names the processor."""
    target: Target
    architecture: str
    """As dpkg does."""
    image: str
    """A package that depends on the newest kernel's."""
    qemu: tuple[str, ...]
    console: str


MACHINES = (
    Machine(
        "arm64",
        ARM64,
        "arm64",
        "linux-image-arm64",
        # Pointer authentication by a code that is quick to compute.
        tuple("qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -m 512".split()),
        "ttyAMA0",
    ),
    Machine(
        "mips32el",
        MIPSEL,
        "mipsel",
        "linux-image-4kc-malta",
        tuple("qemu-system-mipsel -M malta -cpu 24Kf -vga none -net none -m 256".split()),
        "ttyS0",
    ),
)


# ---------------------------------------------------------------------------------- the table


def _cases(target: Target) -> Iterator[ForeignCase]:
    def case(name: str, *sources: str, arguments: str = "", **rest: object) -> ForeignCase:
        made = ForeignCase(f"{target}-{name}", sources, tuple(arguments.split()), target=target)
        made = replace(made, **rest)  # type: ignore[arg-type]
        if not target.cfi:
            trust = tuple(set(made.trust) - {"emulation"})
            made = replace(made, trust=trust, perhaps=("pdr", "emulation"))
        return replace(made, perhaps=(*made.perhaps, "trampoline"))

    places = ("places.c", f"places_{target.suffix}.S")
    yield case("chain", *CHAIN, arguments="20")
    yield case("neither", *CHAIN, flags=NEITHER, trust=("emulation",))
    yield case("threads", "threads.c", arguments="6 7")
    for mode in ("altstack", "samestack", "nested", "thread"):
        yield case(f"signals-{mode}", "signals.c", arguments=mode)
    yield case(
        "signals-neither", "signals.c", arguments="altstack", flags=NEITHER, trust=("emulation",)
    )
    yield case(
        "signals-entry",
        "signals.c",
        f"signals_{target.suffix}.S",
        arguments="entry",
        flags=(*OMIT, "-DFAULT_ON_ENTRY"),
    )
    for mode in ("prologue", "epilogue", "leaf"):
        yield case(f"places-{mode}", *places, arguments=mode)
        yield case(f"places-{mode}-handler", *places, arguments=f"{mode} handler")
    for mode in ("null", "unmapped"):
        yield case(f"pointer-{mode}", "pointers.c", arguments=mode, trust=("link_register",))
    # Linux v6.1 arch/arm64/kernel/vdso/vdso.lds.S throws .eh_frame away.
    for name, mode in (("vdso", "direct"), ("vdso-through-libc", "libc")):
        yield case(name, "vdso.c", arguments=mode, trust=("emulation",))
    yield case("abort", "abort.c")
    yield case("leader-gone", "leader.c")
    for mode in ("rules", "outermost"):
        handwritten = ("handwritten.c", f"handwritten_{target.suffix}.S")
        yield case(f"handwritten-{mode}", *handwritten, arguments=mode)
    if target is ARM64:
        yield case("pac", *CHAIN, flags=(*OMIT, PAC))
        yield case("pac-b-key", *CHAIN, flags=(*OMIT, PAC_B))
        yield case("pac-frame-pointers", *CHAIN, flags=(*FRAME_POINTERS, PAC), trust=("emulation",))
        yield case("pac-neither", *CHAIN, flags=(*NEITHER, PAC), trust=("emulation",))
        yield case("pac-signals", "signals.c", arguments="altstack", flags=(*OMIT, PAC))
    else:
        for mode in ("delay", "call-delay"):
            yield case(f"places-{mode}", *places, arguments=mode)
            yield case(f"places-{mode}-handler", *places, arguments=f"{mode} handler")


CASES: tuple[ForeignCase, ...] = tuple(
    case for machine in MACHINES for case in _cases(machine.target)
)


# ---------------------------------------------------------------------------------- the stages


@dataclass(frozen=True)
class Left:
    """What a case left in the guest."""

    core: bytes
    record: bytes


def crash_all(machine: Machine, cases: Sequence[ForeignCase], directory: Path) -> list[Crash]:
    """Builds the cases into a sysroot in `directory`, and lets all of them crash in one guest."""
    programs = {case.name: foreign.build(case, directory / "build" / case.name) for case in cases}
    arguments = {case.name: case.arguments for case in cases}
    left = run(machine, programs, arguments, directory / "sysroot")
    return [unpack(case, directory, left.get(case.name)) for case in cases]


def run(
    machine: Machine,
    programs: Mapping[str, Path],
    arguments: Mapping[str, Sequence[str]],
    sysroot: Path,
) -> dict[str, Left]:
    """What the programs leave that are run in a guest whose root is like `sysroot`, made here."""
    (sysroot / "programs").mkdir(parents=True)
    (sysroot / "lib").mkdir()
    for name, program in programs.items():
        shutil.copy(program, sysroot / "programs" / name)
    libraries = Path(machine.target.sysroot) / "lib"
    # pthread_exit() loads the last.
    for pattern in ("ld*.so.1", "libc.so.6", "libgcc_s.so.1"):
        for library in libraries.glob(pattern):
            shutil.copy(library, sysroot / "lib")
    kernel, busybox = download(machine, DOWNLOADS)
    with TemporaryDirectory() as scratch:
        guest = Path(scratch) / "initrd"
        guest.write_bytes(initramfs(arguments, busybox, sysroot))
        return dict(read_console(boot(machine, kernel, guest)))


def unpack(case: ForeignCase, directory: Path, left: Left | None) -> Crash:
    """The crash of a case, whose sysroot is in `directory`; core and record are written there."""
    assert left is not None, f"{case.name} left no core"
    core, record = directory / f"{case.name}.core", directory / f"{case.name}.truth"
    core.write_bytes(left.core)
    record.write_bytes(left.record)
    executable = directory / "sysroot/programs" / case.name
    stacks = foreign.without_isa_bits(
        case.target, expected(record, executable, case.libc, case.nameless, case.ends)
    )
    if case.target is ARM64:
        stacks = map(_about_to_park, stacks)
    case = replace(case, options=("--sysroot", str(directory / "sysroot")))
    return Crash(case, directory, executable, core, {stack.tid: stack for stack in stacks})


def _about_to_park(stack: Stack) -> Stack:
    """The stack as the kernel shows it, which has the system call of a sleeper started anew.

    Linux v6.13 arch/arm64/kernel/signal.c do_signal(): the pc goes back before a fatal signal is
    looked for.
    """
    first = stack.frames[0]
    if first.names != ("park",) or first.pc is None:
        return stack
    return replace(stack, frames=(replace(first, pc=first.pc - 4), *stack.frames[1:]))


def download(machine: Machine, directory: Path) -> tuple[Path, Path]:
    """Debian's newest kernel for the machine, and a static busybox; what is there is not renewed.

    apt gets a state of its own: the host's list of architectures stays as it is.
    """
    need("apt-get", "dpkg-deb")
    home = directory / machine.architecture
    if not list(home.glob("boot/vmlinuz-*")):
        (home / "lists/partial").mkdir(parents=True, exist_ok=True)
        (home / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        options = [
            *("-o", f"APT::Architecture={machine.architecture}"),
            *("-o", f"APT::Architectures::={machine.architecture}"),
            *("-o", f"Dir::State::lists={home}/lists"),
            *("-o", f"Dir::State::status={home}/status"),
            *("-o", f"Dir::Cache={home}/cache"),
        ]
        _run("apt-get", *options, "-qq", "update")
        depends = _run("apt-cache", *options, "depends", machine.image)
        newest = re.search(r"Depends: (linux-image-\S+)", depends)
        if newest is None:
            cannot(f"the package sources of this machine have no {machine.image}")
        _run("apt-get", *options, "-qq", "download", newest[1], "busybox-static", cwd=home)
        for package in home.glob("*.deb"):
            with TemporaryDirectory(dir=home) as scratch:
                _run("dpkg-deb", "-x", str(package), scratch)
                for wanted in ("boot", "bin", "lib"):
                    if (Path(scratch) / wanted).exists():
                        shutil.move(Path(scratch) / wanted, home / wanted)
            package.unlink()
    [kernel] = home.glob("boot/vmlinuz-*")
    return kernel, home / "bin/busybox"


def initramfs(programs: Mapping[str, Sequence[str]], busybox: Path, sysroot: Path) -> bytes:
    """A root that runs programs with their arguments in turn, and prints what they leave."""
    lines = [
        "#!/bin/busybox sh",
        "export PATH=/bin MALLOC_ARENA_MAX=1 UNWIND_TRUTH=/tmp/truth",
        "/bin/busybox --install /bin",
        "mount -t proc proc /proc",
        "mount -t tmpfs tmpfs /tmp",
        "echo 1 >/proc/sys/kernel/printk",
        "echo /tmp/core >/proc/sys/kernel/core_pattern",
        "echo 0 >/proc/sys/kernel/core_uses_pid",
        "ulimit -c unlimited",
        "cd /tmp",
    ]
    for name, arguments in programs.items():
        lines += [
            "touch truth",
            f"/programs/{name} {' '.join(arguments)} >/dev/null 2>&1",
            f"echo '<<< {name}'",
            "gzip -c core | base64",
            "echo ===",
            "gzip -c truth | base64",
            "echo '>>>'",
            "rm -f core truth",
        ]
    lines.append("poweroff -f")
    members: dict[str, bytes] = {
        "init": "\n".join(lines).encode() + b"\n",
        "bin/busybox": busybox.read_bytes(),
    }
    for file in sysroot.rglob("*"):
        if file.is_file():
            members[str(file.relative_to(sysroot))] = file.read_bytes()
    return gzip.compress(newc(members), 1)


def newc(members: Mapping[str, bytes]) -> bytes:
    """A cpio archive of files, and of the directories and the console that an init wants.

    Linux v6.13 Documentation/driver-api/early-userspace/buffer-format.rst
    """
    directory, device, regular = 0o040755, 0o020600, 0o100755
    entries = [(name, directory, b"", 0, 0) for name in ("bin", "dev", "lib", "proc", "programs")]
    entries += [("tmp", directory, b"", 0, 0), ("dev/console", device, b"", 5, 1)]
    entries += [(name, regular, data, 0, 0) for name, data in members.items()]
    entries.append(("TRAILER!!!", 0, b"", 0, 0))
    archive = bytearray()
    for number, (name, mode, data, major, minor) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields)
        archive += name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def boot(machine: Machine, kernel: Path, initrd: Path) -> str:
    """What the guest printed on its console until it was powered off."""
    need(machine.qemu[0])
    command = [*machine.qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd)]
    command += ["-append", f"console={machine.console} quiet panic=-1 rdinit=/init"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    return ran.stdout.decode("latin-1").replace("\r", "") + ran.stderr.decode("latin-1")


def read_console(printed: str) -> Iterator[tuple[str, Left]]:
    """The names of cases, and what they left."""
    for name, core, record in re.findall(r"<<< (\S+)\n(.*?)===\n(.*?)>>>", printed, re.DOTALL):
        yield name, Left(*(gzip.decompress(base64.b64decode(part)) for part in (core, record)))


def _run(*command: str, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ran.returncode:
        cannot(f"{' '.join(command)}: {ran.stderr}")
    return ran.stdout


# ------------------------------------------------------------------------------- what is kept


def pack(crashes: Sequence[Crash], documents: Sequence[dict[str, Any]]) -> bytes:
    """An archive of some crashes of one target: cores, records, programs, the libraries' tables.

    `documents` tell where in the libraries their frames stand.
    """
    directory = crashes[0].directory
    members: dict[str, bytes] = {}
    for library in sorted((directory / "sysroot/lib").iterdir()):
        vaddrs = {at for found in documents for at in vaddrs_in(found, f"/lib/{library.name}")}
        members[f"sysroot/lib/{library.name}"] = tables_of(library.read_bytes(), sorted(vaddrs))
    for crash in crashes:
        name = crash.case.name
        members[f"sysroot/programs/{name}"] = crash.executable.read_bytes()
        for suffix in ("core", "truth"):
            members[f"{name}.{suffix}"] = (directory / f"{name}.{suffix}").read_bytes()
    return archived(members)


def kept(target: Target, directory: Path) -> list[Crash]:
    """The crashes that tests/data has of a target, unpacked into `directory`."""
    with tarfile.open(DATA / f"{target}-kernel.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None, member.name
            (directory / member.name).parent.mkdir(parents=True, exist_ok=True)
            (directory / member.name).write_bytes(content.read())
    return [
        unpack(
            case,
            directory,
            Left(*((directory / f"{case.name}.{what}").read_bytes() for what in ("core", "truth"))),
        )
        for case in CASES
        if case.target is target and (directory / f"{case.name}.core").exists()
    ]


def main(arguments: Sequence[str]) -> None:
    """Boots, compares, and keeps if told so; the exit code tells whether all is well."""
    from tests.test_crashes import assert_truth, unwound

    need(*(machine.qemu[0] for machine in MACHINES))
    wrong = 0
    for machine in MACHINES:
        cases = [case for case in CASES if case.target is machine.target]
        with TemporaryDirectory() as scratch:
            crashes = crash_all(machine, cases, Path(scratch))
            documents = [unwound(crash) for crash in crashes]
            for crash, document in zip(crashes, documents, strict=True):
                try:
                    assert_truth(document, crash)
                except AssertionError as error:
                    wrong += 1
                    print(f"=== {crash.case.name}\n{error}\n")
            if "--keep" in arguments:
                DATA.mkdir(exist_ok=True)
                archive = DATA / f"{machine.target}-kernel.tar.xz"
                archive.write_bytes(pack(crashes, documents))
                print(f"{archive.name}: {archive.stat().st_size} bytes")
    print(f"{len(CASES) - wrong} of {len(CASES)} cores of real kernels are unwound right")
    sys.exit(wrong != 0)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
