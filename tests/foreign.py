"""The same crashes on other processors: cross-compiled programs, run and dumped by qemu-user.

`python -m tests.foreign [NAME ...]` shows the truth beside what unwind-core says.

    case ──build──> executable ──qemu-user──> core + record ──truth.expected──> {tid: Stack}
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import crashes
from tests.crashes import (
    CHAIN,
    DEBUG_FRAME,
    FRAME_POINTERS,
    NEITHER,
    NO_PIE,
    OMIT,
    Case,
    Crash,
    Library,
    Show,
    compile_c,
)
from tests.support import need
from tests.truth import Ends, Stack, expected

# ---------------------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Target:
    """A processor with its ABI."""

    name: str
    triple: str
    """Debian's name of it."""
    qemu: str
    suffix: str
    """What tells the assembler files of tests/programs apart."""
    cfi: bool
    """Whether Debian's compiler describes all code by CFI, and has so described the C library."""

    def __str__(self) -> str:
        return self.name

    @property
    def sysroot(self) -> str:
        return f"/usr/{self.triple}"

    def tool(self, name: str) -> str:
        """A program of binutils or gcc for this target."""
        return f"{self.triple}-{name}"

    def compiler(self, name: str) -> tuple[str, ...]:
        """A compiler for this target, with the options that make it one."""
        if name != "clang":
            return (self.tool(name),)
        # Its own assembler cannot subtract labels in a mips instruction.
        return (name, f"--target={self.triple}", *["-fno-integrated-as"] * (not self.cfi))


ARM64 = Target("arm64", "aarch64-linux-gnu", "qemu-aarch64-static", "aarch64", True)
MIPSEL = Target("mipsel", "mipsel-linux-gnu", "qemu-mipsel-static", "mips", False)
MIPS = Target("mips", "mips-linux-gnu", "qemu-mips-static", "mips", False)


@dataclass(frozen=True)
class ForeignCase(Case):
    """A case whose program runs on another processor."""

    target: Target = ARM64
    bare: tuple[str, ...] = ()
    """What objcopy takes away from the linked program."""


# ---------------------------------------------------------------------------------- the table

PAC = "-mbranch-protection=pac-ret"
PAC_B = "-mbranch-protection=pac-ret+b-key"
PAC_LEAF = "-mbranch-protection=pac-ret+leaf"
# For MIPS gcc leaves CFI out by itself.
CFI = ("-O2", "-fomit-frame-pointer", "-fasynchronous-unwind-tables")
# As little as can be left of a program that still runs.
BARE = ("--strip-all", "--remove-section=.eh_frame", "--remove-section=.eh_frame_hdr")

SIGNALS = ("altstack", "samestack", "nested", "thread")
PLACES = ("entry", "prologue", "epilogue", "leaf", "tail")


def _cases(target: Target) -> Iterator[ForeignCase]:
    """What is tried on a target."""
    pac: tuple[tuple[str, tuple[str, ...]], ...] = ()
    if target is ARM64:
        pac = (("-pac", (PAC,)), ("-pac-b-key", (PAC_B,)), ("-pac-leaf", (PAC_LEAF,)))

    def case(name: str, *sources: str, arguments: str = "", **rest: object) -> ForeignCase:
        made = ForeignCase(f"{target}-{name}", sources, tuple(arguments.split()), target=target)
        made = replace(made, **rest)  # type: ignore[arg-type]
        if not target.cfi:
            trust = tuple(set(made.trust) - {"emulation"})
            made = replace(made, trust=trust, perhaps=(*made.perhaps, "pdr", "emulation"))
        return made

    # -- how it is compiled
    for level in ("-O0", "-O1", "-O2", "-O3", "-Os"):
        yield case(f"chain{level}", *CHAIN, flags=(level,))
        yield case(f"neither{level}", *CHAIN, flags=(level, *NEITHER[1:]), trust=("emulation",))
        yield case(
            f"neither{level}-stripped",
            *CHAIN,
            flags=(level, *NEITHER[1:]),
            bare=("--strip-all",),
            nameless=("*",),
            trust=("emulation",),
        )
        yield case(f"shapes{level}", "shapes.c", flags=(level,))
        yield case(
            f"shapes-neither{level}",
            "shapes.c",
            flags=(level, *NEITHER[1:]),
            trust=("emulation",),
        )
    for name, flags in (("", ()), *pac):
        yield case(f"recursion{name}", *CHAIN, arguments="100", flags=(*OMIT, *flags))
        yield case(
            f"frame-pointers{name}",
            *CHAIN,
            arguments="20",
            flags=(*FRAME_POINTERS, *flags),
            trust=("emulation",),
        )
        yield case(f"neither{name}", *CHAIN, flags=(*NEITHER, *flags), trust=("emulation",))
        yield case(
            f"neither-stripped{name}",
            *CHAIN,
            flags=(*NEITHER, *flags),
            bare=("--strip-all",),
            nameless=("*",),
            trust=("emulation",),
        )
        yield case(
            f"neither-stripped-static{name}",
            *CHAIN,
            flags=(*NEITHER, *flags, "-static"),
            bare=BARE,
            nameless=("*",),
            trust=("emulation",),
        )
        yield case(f"static{name}", *CHAIN, flags=(*OMIT, *flags, "-static"))
    for name, flags in pac:
        yield case(f"threads{name}", "threads.c", arguments="6 5", flags=(*OMIT, *flags))
        yield case(
            f"signals{name}",
            "signals.c",
            arguments="altstack",
            flags=(*OMIT, *flags),
            trust=("trampoline",),
        )
    yield case("debug-frame", *CHAIN, flags=DEBUG_FRAME)
    yield case("asynchronous", *CHAIN, flags=CFI)
    yield case("no-pie", *CHAIN, flags=(*OMIT, *NO_PIE))
    if target is ARM64:  # Debian's other cross toolchains have no rcrt1.o
        yield case("static-pie", *CHAIN, flags=(*OMIT, "-static-pie"))
    yield case("static-threads", "threads.c", arguments="9 4", flags=(*OMIT, "-static"))
    # -- threads, signals, places
    yield case("threads", "threads.c", arguments="20 7")
    yield case("threads-neither", "threads.c", arguments="8 7", flags=NEITHER, trust=("emulation",))
    for mode in SIGNALS:
        # Of the stacks that crash, those of `thread` have no handler.
        trust = ("trampoline",) * (mode != "thread")
        yield case(
            f"signals-{mode}", "signals.c", arguments=mode, trust=trust, perhaps=("trampoline",)
        )
        yield case(
            f"signals-{mode}-neither",
            "signals.c",
            arguments=mode,
            flags=NEITHER,
            trust=(*trust, "emulation"),
            perhaps=("trampoline",),
        )
    yield case(
        "signals-entry",
        "signals.c",
        f"signals_{target.suffix}.S",
        arguments="entry",
        flags=(*OMIT, "-DFAULT_ON_ENTRY"),
        trust=("trampoline",),
    )
    for mode in (*PLACES, *(() if target.cfi else ("delay", "call-delay"))):
        places = ("places.c", f"places_{target.suffix}.S")
        yield case(f"places-{mode}", *places, arguments=mode)
        yield case(
            f"places-{mode}-handler",
            *places,
            arguments=f"{mode} handler",
            trust=("trampoline",),
        )
        yield case(
            f"places-{mode}-handler-bare",
            *places,
            arguments=f"{mode} handler",
            flags=(*OMIT, "-static"),
            bare=BARE,
            nameless=("*",),
            trust=("trampoline", "emulation"),
        )
    for mode in ("rules", "outermost"):
        handwritten = ("handwritten.c", f"handwritten_{target.suffix}.S")
        yield case(f"handwritten-{mode}", *handwritten, arguments=mode)
    yield case("stack-overflow", "overflow.c", flags=(*OMIT, *NO_PIE, "-DTRUTH_DEPTH=20000"))
    for flags, name in ((OMIT, ""), (NEITHER, "-neither")):
        trust = ("emulation",) * bool(name)
        yield case(f"noreturn{name}", "noreturn.c", flags=flags, trust=trust)
        yield case(f"abort{name}", "abort.c", flags=flags, trust=trust)
        yield case(f"cold-call{name}", "cold.c", arguments="call", flags=flags, trust=trust)
        yield case(f"cold-fault{name}", "cold.c", arguments="fault", flags=flags, trust=trust)
        # glibc's __start_context is a function of its own, but for MIPS.
        ends = Ends() if target.cfi else Ends(complete=("outermost", "no-progress"))
        yield case(f"makecontext{name}", "context.c", flags=flags, trust=trust, ends=ends)
    for mode in ("null", "unmapped", "data", "heap"):
        yield case(f"pointer-{mode}", "pointers.c", arguments=mode, trust=("link_register",))
    if target is ARM64:
        for name, flags in (("", OMIT), ("-frame-pointers", FRAME_POINTERS), ("-neither", NEITHER)):
            yield case(
                f"tagged-stack{name}",
                "context.c",
                flags=(*flags, "-DTAGGED", "-march=armv8.5-a+memtag"),
                trust=("emulation",) * bool(name),
            )
        # The list of libraries begins in the page that the program has taken away: the C library
        # has no name, and only the chain of frame pointers leads through it.
        yield case(
            "procedure-linkage-table",
            "plt.c",
            flags=(*OMIT, *NO_PIE, "-Wl,-z,lazy"),
            trust=("emulation",),
            perhaps=("frame_pointer",),
            nameless=("__libc_start_main",),
            ends=Ends(short=("no-module",), words=("anonymous",), at_least=4),
        )
    # -- C++
    for mode in ("unwinding", "catch", "exit"):
        yield case(f"destructor-{mode}", "destructor.cc", arguments=mode, compiler="g++")
    for mode in ("thrown", "resumed", "abort"):
        yield case(f"noexcept-{mode}", "noexcept.cc", arguments=mode, compiler="g++")
    yield case("lambdas", "lambda.cc", compiler="g++")
    for name, flags in (("", OMIT), ("-neither", NEITHER), ("-frame-pointers", FRAME_POINTERS)):
        trust = ("emulation",) * bool(name)
        for program in ("chain", "shapes", "noreturn", "abort"):
            yield case(
                f"{program}{name}-clang",
                f"{program}.c",
                compiler="clang",
                flags=flags,
                trust=trust,
            )
    # -- libraries
    yield case(
        "dlopen",
        "dlopen.c",
        arguments="{directory}/plugin.so crash",
        flags=(*OMIT, "-rdynamic"),
        libraries=(Library("plugin.so", "plugin.c"),),
        options=("--module", "{directory}/plugin.so={directory}/plugin.so"),
    )
    if target is ARM64:
        return
    # -- MIPS alone
    yield case(
        "pdr-after-strip",
        *CHAIN,
        flags=NEITHER,
        bare=("--strip-all",),
        nameless=("*",),
        shows=(Show("readelf -SW {program}", r"\.pdr"),),
    )
    # libc has entries in .pdr, and the program lies between them: found by generated programs.
    for compiler in ("gcc", "clang"):
        for program in ("chain", "shapes", "noreturn"):
            yield case(
                f"no-pdr-{program}-{compiler}",
                f"{program}.c",
                compiler=compiler,
                flags=(*NEITHER, "-static", "-Wa,-mno-pdr"),
                bare=("--strip-all",),
                nameless=("*",),
                trust=("emulation",),
            )
    for name, flags, bare in (
        ("", OMIT, ()),
        ("-stripped", OMIT, ("--strip-all",)),
        ("-asynchronous", CFI, ()),
        ("-debug-frame", DEBUG_FRAME, ()),
        ("-static", (*OMIT, "-static"), ()),
    ):
        yield case(
            f"mips16{name}",
            *CHAIN,
            flags=(*flags, "-mips16"),
            bare=bare,
            nameless=("*",) if bare else (),
        )
    yield case("no-abicalls", *CHAIN, flags=(*OMIT, "-static", "-mno-abicalls", "-fno-pic"))
    yield case("xgot", *CHAIN, flags=(*OMIT, "-mxgot"))


CASES: tuple[ForeignCase, ...] = tuple(
    case for target in (ARM64, MIPSEL, MIPS) for case in _cases(target)
)


# ---------------------------------------------------------------------------------- the stages

# qemu-user dumps shared memory and what nobody wants dumped: the record must be small.
SMALL = ("-DTRUTH_THREADS=32", "-DTRUTH_SETTLE=100000")


def build(case: ForeignCase, directory: Path) -> Path:
    """Cross-compiles the case's program, and its libraries, into `directory`."""
    target = case.target
    compiler, *options = target.compiler(case.compiler)
    need(compiler, target.tool("gcc"), target.qemu)
    directory.mkdir(parents=True, exist_ok=True)
    for library in case.libraries:
        flags = (*OMIT, *SMALL, "-fPIC", "-shared", *library.flags)
        compile_c(target.tool("gcc"), flags, (library.source,), directory / library.name)
    executable = directory / "program"
    flags = (*options, *SMALL, *case.flags, "-pthread")
    compile_c(compiler, flags, case.sources, executable)
    if case.bare:
        shutil.copy(executable, directory / "program.whole")
        subprocess.run([target.tool("objcopy"), *case.bare, executable], check=True)
    return executable


def crash(case: Case, directory: Path) -> Crash:
    """Builds the case in `directory` and lets it crash under qemu-user."""
    assert isinstance(case, ForeignCase)
    return crash_built(case, build(case, directory), directory)


def crash_built(case: ForeignCase, executable: Path, directory: Path) -> Crash:
    """Lets the case's program crash; what it leaves behind lies in `directory`."""
    record, core = directory / "truth", directory / "core"
    words = [word.format(directory=directory) for word in case.arguments]
    # The size of the guest's stack lies in the core, used or not.
    command = [case.target.qemu, "-L", case.target.sysroot, "-s", "524288"]
    _dump([*command, str(executable), *words], record, core)
    whole = executable.with_name("program.whole")
    named = whole if whole.exists() else executable
    stacks = expected(record, named, case.libc, case.nameless, case.ends)
    stacks = without_isa_bits(case.target, stacks)
    options = (*case.options, "--sysroot", case.target.sysroot, "-e", str(executable))
    if "-static" in case.flags:
        options = case.options  # AT_EXECFN names it
    found = {stack.tid: stack for stack in stacks}
    return Crash(replace(case, options=options), directory, executable, core, found)


def without_isa_bits(target: Target, stacks: Iterable[Stack]) -> Iterator[Stack]:
    """The stacks with pcs as addresses of instructions: bit 0 of one tells of another encoding."""
    for stack in stacks:
        if target.cfi:
            yield stack
            continue
        frames = (
            frame if frame.pc is None else replace(frame, pc=frame.pc & ~1)
            for frame in stack.frames
        )
        yield replace(stack, frames=tuple(frames))


def _dump(command: Sequence[str], record: Path, core: Path) -> None:
    """Runs `command`, of qemu-user, until it has dumped its guest into `core`."""
    environment = {**os.environ, "UNWIND_TRUTH": str(record), "MALLOC_ARENA_MAX": "1"}
    # qemu ends by the same signal: its own core, should the kernel write one, has no memory.
    script = 'ulimit -c unlimited; echo 0 >/proc/self/coredump_filter; exec "$@"'
    with TemporaryDirectory(dir=core.parent) as scratch:
        process = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *command],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        written = list(Path(scratch).glob("qemu_*.core"))
        assert len(written) == 1, f"{command} ended with {process.returncode}: {process.stderr}"
        shutil.move(written[0], core)


def named(*names: str) -> list[ForeignCase]:
    """The cases whose names contain one of these."""
    return [case for case in CASES if any(name in case.name for name in names)]


def main(names: Sequence[str]) -> None:
    """Prints, for the cases named or all, the truth beside what unwind-core says."""
    from tests.test_crashes import assert_truth, unwound

    right = 0
    cases = named(*names) or list(CASES)
    with TemporaryDirectory() as scratch:
        made = crashes.crash_all(cases, Path(os.environ.get("KEEP") or scratch), crash)
        for name, crashed in made.items():
            try:
                if isinstance(crashed, BaseException):
                    raise crashed
                assert_truth(unwound(crashed), crashed)
                right += 1
            except BaseException as error:
                print(f"=== {name}\n{error}\n")
        print(f"{right} of {len(cases)} right")


if __name__ == "__main__":
    main(sys.argv[1:])
