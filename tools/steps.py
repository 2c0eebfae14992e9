"""The stepping oracle: programs in; at how many of their instructions the unwinder is right, out.

    program ──step──> registers, memory ──ShadowStack──> the true stack ──┐
                              └───────────Unwinder, three ways──────────> ┴──> right, or a Fault

A program is run one instruction at a time, natively by ptrace or in qemu-user through its stub. The
shadow stack (unwind/testing/shadow.py) tells the truth at each instruction; it is compared with the
unwinder as it is (`cfi`), with CFI ignored (`code`), and with the fast walk (`fast`).

    python -m tools.steps                       all of it: the table of BENCHMARKS.md
    python -m tools.steps --only arm64 chain    some of it, with what is wrong
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.crashes import PROGRAMS
from tests.foreign import ARM64, MIPS, MIPSEL, Target
from unwind.arch.mips32 import MIPS32, MIPS32EL
from unwind.elf import EM, Elf
from unwind.errors import UnwindError
from unwind.files import Files
from unwind.frames import Trust
from unwind.image import Image
from unwind.methods import METHODS
from unwind.testing.stepping import NativeStepper, RemoteStepper, Stepper, walk_through
from unwind.testing.verdicts import Fault, Oracle, Tally
from unwind.transports.gdb_remote import TRANSPORT
from unwind.unwinder import Unwinder

LISTED = Path(__file__).with_name("cfi_errors.json")
_CODE = (Trust.TRAMPOLINE, Trust.EMULATION, Trust.LINK_REGISTER)
LEAST = {"x86_64": 0.99, "arm64": 0.99, "mipsel": 0.98, "mips": 0.98}  # by the code alone
_LAZY = "-Wl,-z,lazy"
_FAST_EVERY = 16  # behind a stub, where each look at the whole stack takes some round trips


@dataclass(frozen=True)
class Program:
    """A program and how it is run. `start`: compared from its entry point on, else from the first
    instruction of the dynamic linker."""

    name: str
    sources: tuple[str, ...] = ()
    """Of tests/programs; a program of this machine has none."""
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ("-O2",)
    target: Target | None = None
    start: bool = True
    steps: int = 40_000

    @property
    def arch(self) -> str:
        return self.target.name if self.target is not None else "x86_64"


def programs() -> Iterator[Program]:
    """What is stepped through."""
    yield Program("true", (), ("/bin/true",), start=False, steps=60_000)
    for command, steps in (
        ("/bin/ls -l /usr", 60_000),
        ("/usr/bin/sort /etc/passwd", 40_000),
        ("/usr/bin/xz -0 -k -c /etc/passwd", 60_000),
        ("/usr/bin/sqlite3 :memory: select(1);", 60_000),
    ):
        yield Program(Path(command.split()[0]).name, (), tuple(command.split()), steps=steps)
    for target in (None, ARM64, MIPSEL, MIPS):
        suffix = target.suffix if target is not None else "x86_64"
        lazy = ("-O2", _LAZY)

        def made(
            name: str, *sources: str, target: Target | None = target, **rest: object
        ) -> Program:
            return Program(name, sources, target=target, **rest)  # type: ignore[arg-type]

        yield made("chain", "chain.c", flags=lazy, arguments=("20",), start=False, steps=100_000)
        yield made("chain-lazy", "chain.c", flags=lazy, arguments=("20",))
        for level in ("-O0", "-Os", "-O3"):
            yield made(f"shapes{level}", "shapes.c", flags=(level,))
        yield made("chain-static", "chain.c", flags=("-O1", "-static"), start=False)
        yield made("threads", "threads.c", arguments=("3", "3"))
        yield made("destructor", "destructor.cc", arguments=("catch",), steps=60_000)
        yield made("noexcept", "noexcept.cc", arguments=("resumed",), steps=60_000)
        yield made("lambda", "lambda.cc")
        yield made("vfork", "vfork.c", arguments=("child",))
        yield made("cold", "cold.c", arguments=("call",))
        if target is None:
            for mode in ("altstack", "samestack", "nested"):
                sources = ("signals.c", f"signals_{suffix}.S")
                yield made(f"signals-{mode}", *sources, arguments=(mode,), steps=20_000)
            yield made("plt", "plt.c", flags=lazy)
            # A stub shows no mappings, which tell stacks apart.
            yield made("context", "context.c")


def build(program: Program, directory: Path) -> list[str]:
    """The command line of a program, which is compiled where it is one of ours."""
    if not program.sources:
        return list(program.arguments)
    path = directory / f"{program.arch}-{program.name}"
    language = "g++" if program.sources[0].endswith(".cc") else "gcc"
    compiler = language if program.target is None else program.target.tool(language)
    sources = [str(PROGRAMS / source) for source in program.sources]
    flags = [*program.flags, "-pthread", "-DTRUTH_THREADS=32", "-DTRUTH_SETTLE=100000"]
    subprocess.run([compiler, *flags, *sources, "-o", str(path)], check=True)
    return [str(path), *program.arguments]


@contextmanager
def stepper_of(program: Program, directory: Path) -> Iterator[Stepper]:
    """The program, at the instruction from which on it is compared."""
    command = build(program, directory)
    environment = {**os.environ, "UNWIND_TRUTH": str(directory / "truth"), "LC_ALL": "C"}
    target = program.target
    if target is None:
        with Files() as files, NativeStepper(command, files, environment) as native:
            _to_start(program, native, command[0])
            yield native
        return
    if _LAZY not in program.flags:
        # Else most of their steps would be the dynamic linker's looking for symbols.
        environment["LD_BIND_NOW"] = "1"
    path = directory / "stub"
    path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [target.qemu, "-L", target.sysroot, "-g", str(path), *command],
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        with (
            Files(sysroot=target.sysroot, executable=command[0]) as files,
            TRANSPORT.open(str(path), files) as source,
        ):
            source.stays = True
            stepper = RemoteStepper(source, files)
            _to_start(program, stepper, command[0])
            yield stepper
    finally:
        process.kill()
        process.wait()


def _to_start(program: Program, stepper: Stepper, path: str) -> None:
    if program.start:
        elf = Elf(Path(path).read_bytes(), path)
        pc = stepper.registers[stepper.arch.pc]
        modules = stepper.space.modules
        bias = next(
            (m.bias for m in modules if m.image is not None and m.image.build_id == elf.build_id), 0
        )
        if pc != elf.header.entry + bias:
            stepper.run_to(elf.header.entry + bias)


@dataclass
class Result:
    """What came of the programs of one architecture."""

    ways: dict[str, Tally] = field(default_factory=dict)
    listed: Counter[str] = field(default_factory=Counter)  # by way: steps at errors of the list
    unsettled: int = 0
    left: int = 0

    def is_met(self, arch: str) -> bool:
        """Whether every step is right by CFI, but for the list, and enough of them by code."""
        cfi, code, fast = (self.ways[name] for name in ("cfi", "code", "fast"))
        right = cfi.right + self.listed["cfi"] == cfi.steps > 0
        return right and code.share >= LEAST[arch] and fast.right == fast.steps

    def add(self, oracle: Oracle) -> None:
        """Add what came of one program."""
        self.unsettled += oracle.unsettled
        self.left += oracle.left
        for name, tally in {**oracle.tallies, "fast": oracle.fast}.items():
            total = self.ways.setdefault(name, Tally())
            total.steps += tally.steps
            total.right += tally.right
            total.whole += tally.whole
            total.faults += tally.faults


def run(program: Program, directory: Path, limit: int | None = None) -> tuple[Oracle, Names]:
    """Step through a program and compare."""
    with stepper_of(program, directory) as stepper:
        arch = stepper.arch
        code = Unwinder(arch, [METHODS[trust](arch) for trust in _CODE])
        oracle = Oracle(arch, stepper.decoder.model.saved, {"cfi": Unwinder(arch), "code": code})
        oracle.compare_fast("cfi", 1 if program.target is None else _FAST_EVERY)
        names = Names()
        for n, shadow in enumerate(walk_through(stepper), 1):
            oracle.look(stepper.snapshot, shadow)
            if n >= (limit or program.steps):
                break
        names.learn(stepper)
        return oracle, names


class Names:
    """Names the places of faults, for people and for the list of errors."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}

    def learn(self, stepper: Stepper) -> None:
        """Keep the symbols of the modules."""
        for module in stepper.space.modules:
            if module.image is not None:
                self._images[module.name.rpartition("/")[2]] = module.image

    def image(self, fault: Fault) -> Image | None:
        """The image in which a fault lies."""
        return self._images.get(fault.module)

    def function(self, fault: Fault) -> str:
        """The symbol at a fault, "" where none is."""
        image = self.image(fault)
        symbol = image.symbols.find(fault.vaddr) if image is not None else None
        return symbol.name if symbol is not None else ""


def saved_in_slot(fault: Fault, image: Image | None) -> bool:
    """Whether a fault is about a register that is saved in the delay slot of a call of mips.

    Its CFI has it saved from the call on, but at the call and in the slot it is not yet.
    """
    if image is None or image.elf.header.machine != EM.MIPS:
        return False
    register = next((n for n, name in MIPS32.names.items() if name == fault.what), 32)
    store = 0x2B << 10 | MIPS32.sp << 5 | register  # sw register, n(sp)
    order = image.elf.header.byteorder
    for call in (fault.vaddr, fault.vaddr - 4):
        code = bytes(image.at(call, 8))
        slot = int.from_bytes(code[4:], order)
        its = MIPS32 if order == "big" else MIPS32EL
        if slot >> 16 == store and its.follows_call(code):
            return True
    return False


def is_listed(fault: Fault, function: str, arch: str) -> bool:
    """Whether a fault is a proven error of a library's CFI: the same function, the same register.

    In another build than the one in which it was proven, its symbol tells which function it is.
    """
    return any(
        entry["what"] == fault.what
        and arch in entry["processors"]
        and (
            entry["function"] == function.lstrip("_")
            or (
                entry["library"] == fault.module
                and int(entry["start"], 16) <= fault.vaddr < int(entry["end"], 16)
            )
        )
        for entry in listed()
    )


@functools.cache
def listed() -> list[dict[str, Any]]:
    """The errors that are known, with their evidence."""
    found: list[dict[str, Any]] = json.loads(LISTED.read_text())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole of it; 1 where a figure is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="programs; all")
    parser.add_argument("--only", action="append", help="an architecture; all")
    parser.add_argument("--steps", type=int, help="of each program")
    parser.add_argument("--show", type=int, default=6, help="so many faults of each way")
    options = parser.parse_args(arguments)
    results: dict[str, Result] = {}
    begun = time.monotonic()
    with TemporaryDirectory() as scratch:
        for program in programs():
            if options.names and program.name not in options.names:
                continue
            if options.only and program.arch not in options.only:
                continue
            start = time.monotonic()
            try:
                oracle, names = run(program, Path(scratch), options.steps)
            except (UnwindError, OSError, EOFError, subprocess.CalledProcessError) as error:
                print(f"{program.arch} {program.name}: cannot be stepped: {error!r}", flush=True)
                continue
            result = results.setdefault(program.arch, Result())
            result.add(oracle)
            _report(program, oracle, names, result, options.show, time.monotonic() - start)
    print(_table(results))
    print(f"{time.monotonic() - begun:.0f} s")
    missed = [arch for arch, result in results.items() if not result.is_met(arch)]
    for arch in missed:
        print(f"{arch}: the figures are missed", file=sys.stderr)
    return 1 if missed or not results else 0


def _report(
    program: Program, oracle: Oracle, names: Names, result: Result, most: int, seconds: float
) -> None:
    shares = " ".join(
        f"{name} {tally.right}/{tally.steps}"
        for name, tally in {**oracle.tallies, "fast": oracle.fast}.items()
    )
    print(f"{program.arch} {program.name}: {shares}, unsettled {oracle.unsettled}, {seconds:.0f} s")
    for name, tally in {**oracle.tallies, "fast": oracle.fast}.items():
        shown = 0
        for fault, count in tally.faults.most_common():
            function = names.function(fault)
            known = is_listed(fault, function, program.arch)
            if name == "cfi" and (known or saved_in_slot(fault, names.image(fault))):
                result.listed[name] += count
                continue
            if shown < most:
                shown += 1
                where = f"{fault.module}+{fault.vaddr:#x} {function}"
                text = f"{fault.what} ({fault.trust}): {fault.text[-200:]}"
                print(f"    {name} {count}: {where}: {text}")
    sys.stdout.flush()


def _table(results: dict[str, Result]) -> str:
    heads = (
        "processor",
        "steps",
        "with CFI",
        "of these at listed CFI errors",
        "code alone",
        "fast",
        "left to the exact walk",
        "no truth",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for arch, result in results.items():
        cfi, code, fast = (result.ways[name] for name in ("cfi", "code", "fast"))
        known = result.listed["cfi"]
        lines.append(
            f"| {arch} | {cfi.steps:,} | {(cfi.right + known) / max(1, cfi.steps):.4%} | {known} "
            f"| {code.share:.2%} | {fast.share:.4%} of {fast.steps:,} | {result.left:,} "
            f"| {result.unsettled} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
