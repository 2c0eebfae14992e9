"""Programs that crash on purpose: a case goes in, a core and the true stacks come out.

Each case is a program of tests/programs, built in a certain way, crashed in a certain manner. The
program itself keeps the record of its calls (tests/programs/truth.h says how), so nothing here
asks an unwinder. `python -m tests.crashes` shows the truth beside gdb's opinion.

    case ──build──> executable ──crash──> core + record ──expected──> {tid: Stack}
"""

from __future__ import annotations

import functools
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support import cannot, need

PROGRAMS = Path(__file__).parent / "programs"


# ---------------------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Frame:
    """A frame that has to be there."""

    names: tuple[str, ...]
    """Base names of its function, see `base_name`; empty where no function is."""
    pc: int | None
    """None where the program has no way to know."""
    named: bool = True
    """False: the symbol table may hold no name for it; a wrong name is wrong all the same."""
    signal: bool = False
    """A signal trampoline."""
    span: bool = False
    """Stands for one or more frames of libraries, the outermost of which is this one."""


@dataclass(frozen=True)
class Ends:
    """What an unwinder may say of a stack's end, and whether it may end early."""

    complete: tuple[str, ...] = ("outermost",)
    """Reasons, when all frames were found."""
    short: tuple[str, ...] = ()
    """Reasons, when some were not."""
    words: tuple[str, ...] = ()
    """What the sentence about a short stack must speak of."""
    at_least: int | None = None
    """How many frames there must be; None: all."""


@dataclass(frozen=True)
class Stack:
    """The truth about one thread."""

    tid: int
    crashed: bool
    frames: tuple[Frame, ...]
    ends: Ends


@dataclass(frozen=True)
class Library:
    """A shared object that the case's program loads, as `name` in its directory."""

    name: str
    source: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Show:
    """What a tool must say of the program, or the case is not about what it claims to be."""

    command: str
    pattern: str
    absent: bool = False

    def found_in(self, printed: str) -> bool:
        return bool(re.search(self.pattern, printed)) is not self.absent


@dataclass(frozen=True)
class Case:
    """A program, a way to build it, a way to crash it, and what can be known of the end."""

    name: str
    sources: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    """`{directory}` stands for the directory of the build."""
    compiler: str = "gcc"
    flags: tuple[str, ...] = ("-O2", "-fomit-frame-pointer")
    libraries: tuple[Library, ...] = ()
    finish: tuple[Callable[[Path], None], ...] = ()
    """What happens to the executable after it is linked."""
    shows: tuple[Show, ...] = ()
    damage: Callable[[bytearray, list[Stack]], list[Stack]] | None = None
    """Alters the core, and says what is left of the truth."""
    by: str = ""
    """Who writes the core: "kernel", "gdb", or whoever can."""
    stops: int = 1
    """At how many signals gdb stops, the deadly one included."""
    child: bool = False
    """It is the program's child that crashes."""
    options: tuple[str, ...] = ()
    """For unwind-core, as `arguments`."""
    libc: str = "glibc"
    nameless: tuple[str, ...] = ()
    """Functions whose symbols may be lost; `*`: all of the program's."""
    ends: Ends = field(default_factory=Ends)
    trust: tuple[str, ...] = ()
    """How some frames have to be found; all others by CFI."""
    gdb: str = ""
    """Why gdb 13 does not agree with the truth."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Crash:
    """What a case leaves behind."""

    case: Case
    directory: Path
    executable: Path
    core: Path
    stacks: dict[int, Stack]
    """By tid: exactly the threads that the core has to hold."""

    @property
    def options(self) -> list[str]:
        return [option.format(directory=self.directory) for option in self.case.options]


# --------------------------------------------------------- steps after linking, and on the core


def strip(executable: Path) -> None:
    """Leaves .dynsym, in which -rdynamic has put the program's functions, and .eh_frame."""
    _run("strip", "--strip-all", executable)


def drop_section_headers(executable: Path) -> None:
    """Leaves the program headers as the only table: all that the kernel and ld.so need."""
    with executable.open("r+b") as file:
        image = bytearray(file.read(64))
        struct.pack_into("<Q", image, 0x28, 0)  # e_shoff
        struct.pack_into("<HHH", image, 0x3A, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
        file.seek(0)
        file.write(image)


def compress_debug(kind: str) -> Callable[[Path], None]:
    """By objcopy: gcc 12 does not know -gz=zstd, binutils 2.40 does."""

    def finish(executable: Path) -> None:
        _run("objcopy", f"--compress-debug-sections={kind}", executable)

    return finish


def debug_file_by_link(executable: Path) -> None:
    """Moves .debug_frame and .symtab into a file that .gnu_debuglink names."""
    folder = executable.parent / ".debug"
    folder.mkdir(exist_ok=True)
    debug = folder / "program.debug"
    # By its build-id it might be found without the link.
    _run("objcopy", "--remove-section=.note.gnu.build-id", executable)
    _run("objcopy", "--only-keep-debug", executable, debug)
    _run("objcopy", "--strip-all", f"--add-gnu-debuglink={debug}", executable)


def debug_file_by_build_id(executable: Path) -> None:
    """Moves the same into debug/.build-id/xx/yyyy.debug, for --debug-dir."""
    notes = subprocess.check_output(["readelf", "-n", executable], text=True)
    found = re.search(r"Build ID: (\w\w)(\w+)", notes)
    assert found, notes
    folder = executable.parent / "debug/.build-id" / found[1]
    folder.mkdir(parents=True, exist_ok=True)
    _run("objcopy", "--only-keep-debug", executable, folder / f"{found[2]}.debug")
    _run("strip", "--strip-all", executable)


def forget_nt_file(core: bytearray, stacks: list[Stack]) -> list[Stack]:
    """Turns NT_FILE into a note that nobody knows."""
    for note in notes(core):
        if note.type == 0x46494C45:
            struct.pack_into("<I", core, note.type_at, 0x7FFF0000)
            return stacks
    raise AssertionError("the core has no NT_FILE")


def cut_in_half(core: bytearray, stacks: list[Stack]) -> list[Stack]:
    """Keeps the first half of the file: the notes, and the memory at low addresses."""
    del core[len(core) // 2 :]
    ends = Ends(short=("memory-fault",), words=("truncated",), at_least=1)
    return [replace(stack, ends=ends) for stack in stacks]


def zero_the_stack(core: bytearray, stacks: list[Stack]) -> list[Stack]:
    """Writes zeros over the crashed thread's stack, from some frame's return address upwards."""
    kept = 12
    altered = []
    for stack in stacks:
        if stack.crashed:
            slot = _return_address_slot(core, stack, kept)
            for segment in segments(core):
                if segment.start <= slot < segment.start + segment.size:
                    offset = segment.offset + slot - segment.start
                    end = segment.offset + segment.size
                    core[offset:end] = bytes(end - offset)
            # `outermost` would claim that nothing is missing.
            reasons = ("no-module", "no-row", "memory-fault", "no-progress", "bad-cfi")
            stack = replace(stack, ends=Ends(short=reasons, at_least=kept + 1))
        altered.append(stack)
    return altered


# ---------------------------------------------------------------------------------- the table

OMIT = ("-O2", "-fomit-frame-pointer")
NO_CFI = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-exceptions")
DEBUG_FRAME = ("-O2", "-g", *NO_CFI)
FRAME_POINTERS = ("-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", *NO_CFI)
NO_PIE = ("-fno-pie", "-no-pie")
MUSL = ("-O2", "-fomit-frame-pointer", "-static")

# musl has no CFI at all. main's frame is found by the program's own; the step after that is a
# matter of luck, and a thread's first function carries the zero frame pointer that clone left.
MUSL_ENDS = Ends(("outermost", "no-row"), ("outermost", "no-row"))
MUSL_GDB = "it guesses at libc_start_main_stage2, and wrongly"

CHAIN = ("chain.c",)
PLUGIN = Library("plugin.so", "plugin.c")

# What the kernel's default filter, 0x33, leaves of a library whose file is gone: its data and the
# page with its ELF header. The first frame inside it is known from its callee, and no more.
LIBRARY_LOST = Ends(short=("no-module", "no-row"), words=("coredump_filter",), at_least=3)

# on_terminate, libstdc++'s frames, and __clang_call_terminate, which has no CFI.
CLANG_TERMINATE = Ends(short=("no-row",), at_least=4)

CASES: tuple[Case, ...] = (
    # -- plain code, many frames, many threads
    Case("recursion", CHAIN, ("200",)),
    Case("recursion-clang", CHAIN, ("200",), compiler="clang"),
    Case("unoptimised", CHAIN, ("20",), flags=("-O0",)),
    Case("threads", ("threads.c",), ("64",)),
    Case("threads-clang", ("threads.c",), ("20",), compiler="clang"),
    # gdb asks /proc of the thread that is gone, and learns nothing of memory.
    Case("leader-gone", ("leader.c",), by="kernel"),
    Case("stack-overflow", ("overflow.c",), flags=(*OMIT, *NO_PIE), stops=2),
    # -- signals
    Case("handler-on-altstack", ("signals.c",), ("altstack",), stops=2),
    Case("handler-on-same-stack", ("signals.c",), ("samestack",), stops=2),
    Case("handler-in-handler", ("signals.c",), ("nested",), stops=2),
    Case("handler-in-thread", ("signals.c",), ("thread",)),
    Case(
        "interrupted-at-function-entry",
        ("signals.c", "signals_x86_64.S"),
        ("entry",),
        flags=(*OMIT, "-DFAULT_ON_ENTRY"),
        stops=2,
    ),
    # -- places within a function
    Case("at-function-entry", ("places.c", "places_x86_64.S"), ("entry",)),
    Case("in-prologue", ("places.c", "places_x86_64.S"), ("prologue",)),
    Case("in-epilogue", ("places.c", "places_x86_64.S"), ("epilogue",)),
    Case("in-leaf-with-red-zone", ("places.c", "places_x86_64.S"), ("leaf",)),
    Case("after-tail-call", ("places.c", "places_x86_64.S"), ("tail",)),
    Case("noreturn-call-is-last", ("noreturn.c",)),
    Case("noreturn-call-is-last-clang", ("noreturn.c",), compiler="clang"),
    Case("abort", ("abort.c",)),
    Case(
        "cold-part-has-called",
        ("cold.c",),
        ("call",),
        shows=(Show("nm {program}", r" t work\.cold"),),
    ),
    Case(
        "cold-part-has-crashed",
        ("cold.c",),
        ("fault",),
        shows=(Show("nm {program}", r" t hurt\.cold"),),
    ),
    # -- shapes of frames
    Case(
        "vla-alloca-realigned",
        ("shapes.c",),
        shows=(
            # DRAP: DW_CFA_def_cfa_expression (DW_OP_breg6 (rbp): n; DW_OP_deref)
            Show("readelf --debug-dump=frames {program}", r"def_cfa_expression \(DW_OP_breg6"),
        ),
    ),
    Case("vla-alloca-realigned-clang", ("shapes.c",), compiler="clang"),
    Case("hand-written-rules", ("handwritten.c", "handwritten_x86_64.S"), ("rules",)),
    Case("undefined-return-address", ("handwritten.c", "handwritten_x86_64.S"), ("outermost",)),
    Case(
        "procedure-linkage-table",
        ("plt.c",),
        flags=(*OMIT, *NO_PIE, "-fcf-protection=none", "-Wl,-z,lazy"),
        shows=(Show("readelf --debug-dump=frames {program}", "DW_OP_breg16"),),
    ),
    # -- no code at all, or the kernel's
    Case("null-pointer", ("pointers.c",), ("null",), trust=("link_register",)),
    Case("unmapped-pointer", ("pointers.c",), ("unmapped",), trust=("link_register",)),
    Case("pointer-to-data", ("pointers.c",), ("data",), trust=("link_register",)),
    Case("pointer-to-heap", ("pointers.c",), ("heap",), trust=("link_register",)),
    Case("vdso", ("vdso.c",), ("direct",)),
    Case("vdso-through-libc", ("vdso.c",), ("libc",)),
    Case("vsyscall", ("vsyscall.c",), trust=("link_register",)),
    # -- other stacks, other processes
    Case(
        "makecontext",
        ("context.c",),
        ends=Ends(("outermost", "no-row")),
        gdb="it goes on into the words that lie above the coroutine's first frame",
    ),
    Case("vfork-child", ("vfork.c",), ("child",), child=True),
    Case("vfork-parent", ("vfork.c",), ("parent",), by="kernel"),
    # -- C++
    Case("destructor-unwinding", ("destructor.cc",), ("unwinding",), compiler="g++"),
    Case("destructor-in-catch", ("destructor.cc",), ("catch",), compiler="g++"),
    Case("destructor-at-exit", ("destructor.cc",), ("exit",), compiler="g++"),
    Case("noexcept", ("noexcept.cc",), ("thrown",), compiler="g++"),
    Case("noexcept-after-cleanup", ("noexcept.cc",), ("resumed",), compiler="g++"),
    Case("noexcept-abort", ("noexcept.cc",), ("abort",), compiler="g++"),
    Case(
        "noexcept-clang",
        ("noexcept.cc",),
        ("thrown",),
        compiler="clang++",
        ends=CLANG_TERMINATE,
        gdb="it guesses at __clang_call_terminate, and wrongly",
    ),
    Case("lambdas-and-templates", ("lambda.cc",), compiler="g++"),
    Case("lambdas-and-templates-clang", ("lambda.cc",), compiler="clang++"),
    # -- where the CFI is
    Case(
        "stripped",
        CHAIN,
        flags=(*OMIT, "-rdynamic"),
        finish=(strip,),
        shows=(
            Show("readelf -SW {program}", r"\.symtab", absent=True),
            Show("readelf -lW {program}", "GNU_EH_FRAME"),
        ),
    ),
    Case(
        "stripped-without-eh-frame-hdr",
        CHAIN,
        flags=(*OMIT, "-rdynamic", "-Wl,--no-eh-frame-hdr"),
        finish=(strip,),
        shows=(Show("readelf -lW {program}", "GNU_EH_FRAME", absent=True),),
    ),
    Case(
        "stripped-of-section-headers",
        CHAIN,
        finish=(strip, drop_section_headers),
        nameless=("*",),
        shows=(Show("readelf -SW {program}", "There are no sections"),),
        gdb="it reads no file without section headers",
    ),
    Case(
        "debug-frame",
        CHAIN,
        flags=DEBUG_FRAME,
        shows=(Show("readelf -SW {program}", r"\.debug_frame"),),
    ),
    Case(
        "debug-frame-zlib",
        CHAIN,
        flags=DEBUG_FRAME,
        finish=(compress_debug("zlib"),),
        shows=(Show("readelf -tW {program}", r"\.debug_frame\n.*\n.*COMPRESSED\n +ZLIB"),),
    ),
    Case(
        "debug-frame-zlib-gnu",
        CHAIN,
        flags=DEBUG_FRAME,
        finish=(compress_debug("zlib-gnu"),),
        shows=(Show("readelf -SW {program}", r"\.zdebug_frame"),),
    ),
    Case(
        "debug-frame-zstd",
        CHAIN,
        flags=DEBUG_FRAME,
        finish=(compress_debug("zstd"),),
        shows=(Show("readelf -tW {program}", r"\.debug_frame\n.*\n.*COMPRESSED\n +ZSTD"),),
    ),
    Case(
        "debug-frame-by-debuglink",
        CHAIN,
        flags=DEBUG_FRAME,
        finish=(debug_file_by_link,),
        shows=(Show("readelf -SW {program}", r"\.debug_frame", absent=True),),
    ),
    Case(
        "debug-frame-by-build-id",
        CHAIN,
        flags=DEBUG_FRAME,
        finish=(debug_file_by_build_id,),
        options=("--debug-dir", "{directory}/debug"),
        shows=(Show("readelf -SW {program}", r"\.debug_frame", absent=True),),
    ),
    Case("frame-pointers", CHAIN, ("20",), flags=FRAME_POINTERS, trust=("frame_pointer",)),
    Case(
        "frame-pointers-in-library",
        ("dlopen.c",),
        ("{directory}/plugin.so", "callback"),
        flags=(*OMIT, "-rdynamic"),
        libraries=(Library("plugin.so", "plugin.c", FRAME_POINTERS),),
        trust=("frame_pointer",),
    ),
    # -- how it is linked
    Case("static", CHAIN, flags=(*OMIT, "-static")),
    Case("static-pie", CHAIN, flags=(*OMIT, "-static-pie")),
    Case("static-threads", ("threads.c",), ("9",), flags=(*OMIT, "-static")),
    Case("no-pie", CHAIN, flags=(*OMIT, *NO_PIE)),
    Case("lld", CHAIN, flags=(*OMIT, "-fuse-ld=lld")),
    Case("lld-clang", CHAIN, compiler="clang", flags=(*OMIT, "-fuse-ld=lld")),
    Case("lld-one-segment", CHAIN, flags=(*OMIT, "-fuse-ld=lld", "-Wl,--no-rosegment")),
    Case(
        "two-executable-segments",
        CHAIN,
        flags=(
            *(*OMIT, "-DFAR_TEXT", *NO_PIE),
            "-Wl,--section-start=far_text=0x10000000",
        ),
        shows=(Show("readelf -lW {program}", r"(?s)LOAD[^\n]* R E .*LOAD[^\n]* R E "),),
    ),
    Case(
        "two-executable-segments-lld",
        CHAIN,
        flags=(*OMIT, "-DFAR_TEXT", "-fuse-ld=lld", "-Wl,--section-start=far_text=0x1000000"),
        shows=(Show("readelf -lW {program}", r"(?s)LOAD[^\n]* R E .*LOAD[^\n]* R E "),),
    ),
    # -- musl
    Case("musl", CHAIN, compiler="musl-gcc", flags=MUSL, libc="musl", ends=MUSL_ENDS, gdb=MUSL_GDB),
    Case(
        "musl-handler",
        ("signals.c",),
        ("altstack",),
        compiler="musl-gcc",
        flags=MUSL,
        stops=2,
        libc="musl",
        ends=MUSL_ENDS,
        trust=("trampoline",),
        gdb=MUSL_GDB,
    ),
    Case(
        "musl-threads",
        ("threads.c",),
        ("9", "5", "raw"),
        compiler="musl-gcc",
        flags=MUSL,
        libc="musl",
        ends=MUSL_ENDS,
        gdb=MUSL_GDB,
    ),
    # -- libraries, and what becomes of them
    Case(
        "dlopen",
        ("dlopen.c",),
        ("{directory}/plugin.so", "crash"),
        flags=(*OMIT, "-rdynamic"),
        libraries=(PLUGIN,),
    ),
    *(
        Case(
            f"library-{fate}-{how}",
            ("dlopen.c",),
            ("{directory}/plugin.so", "callback", mask, *others),
            flags=(*OMIT, "-rdynamic"),
            libraries=(PLUGIN, Library("other.so", "plugin.c", ("-DOTHER", "-Os"))),
            by=by,
            nameless=("plugin_entry", "plugin_call"),
            ends=ends,
            gdb="it takes the file of that path, if there is one",
        )
        for fate, others in (("unlinked", ()), ("replaced", ("{directory}/other.so",)))
        for how, by, mask, ends in (
            ("filter-33", "kernel", "0x33", LIBRARY_LOST),
            ("filter-3f", "", "0x3f", Ends()),
            ("gcore", "gdb", "-", Ends()),
        )
    ),
    # -- what the core holds
    Case("gcore", ("threads.c",), ("12",), by="gdb"),
    Case("no-nt-file", ("threads.c",), ("5",), damage=forget_nt_file),
    Case("cut-in-half", ("threads.c",), ("40",), damage=cut_in_half, gdb="it is confused"),
    Case("zeroed-stack", CHAIN, ("40",), damage=zero_the_stack, gdb="it shows a frame at 0"),
)


def named(*names: str) -> list[Case]:
    """The cases of these names."""
    return [case for case in CASES if case.name in names]


# ---------------------------------------------------------------------------------- the stages


def build(case: Case, directory: Path) -> Path:
    """Compiles the case's program, and its libraries, into `directory`."""
    if case.compiler != "gcc":
        need(case.compiler)
    if "-fuse-ld=lld" in case.flags:
        need("ld.lld")
    need("gcc", "objcopy")
    directory.mkdir(parents=True, exist_ok=True)
    for library in case.libraries:
        flags = (*OMIT, "-fPIC", "-shared", *library.flags)
        _compile("gcc", flags, (library.source,), directory / library.name)
    executable = directory / "program"
    _compile(case.compiler, (*case.flags, "-pthread"), case.sources, executable)
    for step in case.finish:
        step(executable)
    return executable


def crash(case: Case, directory: Path) -> Crash:
    """Builds the case in `directory` and lets it crash."""
    executable = build(case, directory)
    record = directory / "truth"
    command = [str(executable), *(word.format(directory=directory) for word in case.arguments)]
    environment = {**os.environ, "UNWIND_TRUTH": str(record), "MALLOC_ARENA_MAX": "1"}
    core = directory / "core"
    if case.by == "kernel" and not kernel_writes_cores():
        cannot("the kernel hands its cores to another program here")
    if case.by != "gdb" and kernel_writes_cores():
        _crash_by_kernel(command, environment, core)
    else:
        _crash_by_gdb(case, command, environment, core)
    stacks = list(expected(case, executable, record))
    if case.damage:
        image = bytearray(core.read_bytes())
        stacks = case.damage(image, stacks)
        core.write_bytes(image)
    return Crash(case, directory, executable, core, {stack.tid: stack for stack in stacks})


def crash_all(cases: Sequence[Case], directory: Path) -> dict[str, Crash | BaseException]:
    """Crashes all cases, as many at once as there are processors; failures are values here."""

    def attempt(case: Case) -> Crash | BaseException:
        try:
            return crash(case, directory / case.name)
        except BaseException as error:  # pytest.skip raises one
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((case.name for case in cases), pool.map(attempt, cases), strict=True))


class Crashes:
    """The crashes of a test session, by case."""

    def __init__(self, cases: Sequence[Case], directory: Path) -> None:
        self._made = crash_all(cases, directory)

    def __getitem__(self, case: Case) -> Crash:
        made = self._made[case.name]
        if isinstance(made, BaseException):
            raise made
        return made


def crashes_of(request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> Crashes:
    """What a session fixture returns: the crashes that the chosen tests ask for, made once."""
    parameters = (getattr(item, "callspec", None) for item in request.session.items)
    chosen = [spec.params.get("case") for spec in parameters if spec]
    names = {case.name for case in chosen if isinstance(case, Case)}
    return _crashes(tuple(named(*names)), factory.getbasetemp() / "crashes")


@functools.cache
def _crashes(cases: tuple[Case, ...], directory: Path) -> Crashes:
    return Crashes(cases, directory)


@functools.cache
def kernel_writes_cores() -> bool:
    """Whether a crash leaves a file in the current directory; no setting is changed for it."""
    if os.environ.get("UNWIND_CRASH_BY") == "gdb":
        return False
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    plain = pattern != "" and not pattern.startswith("|") and "/" not in pattern
    return plain and resource.getrlimit(resource.RLIMIT_CORE)[1] == resource.RLIM_INFINITY


def _compile(compiler: str, flags: Sequence[str], sources: Sequence[str], output: Path) -> None:
    warnings = ("-Wall", "-Wextra", "-Wno-unused-but-set-variable")
    paths = [str(PROGRAMS / source) for source in sources]
    _run(compiler, "-pipe", *warnings, *flags, "-Wl,--build-id", "-o", output, *paths)


def _crash_by_kernel(command: Sequence[str], environment: dict[str, str], core: Path) -> None:
    # core_pattern may add the pid and more: the only file of an empty directory is the core.
    with TemporaryDirectory(dir=core.parent) as scratch:
        # The shell sets the limit: preexec_fn and threads do not go together.
        limited = ["/bin/sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *command]
        process = subprocess.Popen(
            limited,
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        written = list(Path(scratch).iterdir())
        assert len(written) == 1, f"{command} ended with {process.returncode} and left {written}"
        shutil.move(written[0], core)


def _crash_by_gdb(
    case: Case, command: Sequence[str], environment: dict[str, str], core: Path
) -> None:
    need("gdb")
    script = [
        "set confirm off",
        "set startup-with-shell off",
        "handle SIGUSR1 SIGUSR2 nostop noprint pass",
        f"set follow-fork-mode {'child' if case.child else 'parent'}",
        "run",
        *["continue"] * (case.stops - 1),
        f"generate-core-file {core}",
        "kill",
    ]
    ran = _gdb(script, ["--args", *command], environment)
    assert core.exists(), f"gdb made no core of {command}:\n{ran}"


def _gdb(script: Sequence[str], arguments: Sequence[str], environment: dict[str, str]) -> str:
    """What gdb prints when it runs `script`, without anybody's configuration."""
    words = [word for line in ("set pagination off", *script) for word in ("-ex", line)]
    early = ["-iex", "set debuginfod enabled off", "-iex", "set auto-load no"]
    ran = subprocess.run(
        ["gdb", "-nx", "-batch", *early, *words, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    return ran.stdout + ran.stderr


def _run(*command: str | Path) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}")


# --------------------------------------------------------------------- the record, made stacks


class Kind(IntEnum):
    """enum truth_kind of tests/programs/truth.h, where each is explained."""

    CALLED = 0
    SIGNAL = 1
    FOREIGN = 2
    WILD = 3
    OUTERMOST = 4
    CONTEXT = 5


class State(IntEnum):
    """enum truth_state."""

    RUNNING = 0
    PARKED = 1
    SPINNING = 2
    CRASHED = 3
    GONE = 4
    OVERFLOWED = 5


# The tail that a program cannot record, innermost first. The libraries' local symbols are in
# their debug files only, so these names may be absent; names that are there must be right.
GLIBC_MAIN = (
    Frame(("__libc_start_call_main",), None, named=False),
    Frame(("__libc_start_main", "__libc_start_main_impl"), None),
    Frame(("_start",), None),
)
GLIBC_THREAD = (
    Frame(("start_thread",), None, named=False),
    Frame(("__clone3", "clone3", "__clone", "clone"), None, named=False),
)
GLIBC_CONTEXT = (Frame(("__start_context",), None, named=False),)
MUSL_MAIN = (
    Frame(("libc_start_main_stage2",), None),
    Frame(("_start",), None),
)
MUSL_THREAD = (Frame(("start",), None), Frame(("__clone", "clone"), None))
TAILS = {
    ("glibc", "main"): GLIBC_MAIN,
    ("glibc", "thread"): GLIBC_THREAD,
    ("glibc", "context"): GLIBC_CONTEXT,
    ("musl", "main"): MUSL_MAIN,
    ("musl", "thread"): MUSL_THREAD,
}


@dataclass(frozen=True)
class Entry:
    """One struct truth_frame."""

    kind: int
    ra: int
    name: str


@dataclass(frozen=True)
class Record:
    """One struct truth_thread; entries innermost first."""

    tid: int
    state: int
    pc: int
    entries: tuple[Entry, ...]


def read_record(path: Path) -> Iterator[Record]:
    """The threads of a struct truth_file, in the byte order and word size it was written in."""
    image = path.read_bytes()
    assert image.startswith(b"truth/1\0"), f"{path} is no record"
    order = "<" if image[8:12] == b"\x04\x03\x02\x01" else ">"
    word, depth, threads = struct.unpack_from(f"{order}3I", image, 12)
    code = {4: "I", 8: "Q"}[word]
    head = struct.Struct(f"{order}4{code}")
    frame = struct.Struct(f"{order}2{code}48s")
    for index in range(threads):
        start = 24 + index * (head.size + depth * frame.size)
        tid, state, pc, used = head.unpack_from(image, start)
        frames = image[start + head.size : start + head.size + used * frame.size]
        entries = [
            Entry(kind, ra, name[: name.index(0)].decode())
            for kind, ra, name in frame.iter_unpack(frames)
        ]
        yield Record(tid, state, pc, tuple(reversed(entries)))


def expected(case: Case, executable: Path, record: Path) -> Iterator[Stack]:
    """The stacks that the core of this crash has to show."""
    for thread in read_record(record):
        if thread.state != State.GONE:
            thread = _with_unrecorded_entry(thread, executable)
            frames = tuple(_frames(case, thread))
            ends = case.ends
            if case.libc == "musl":
                # As far as CFI leads, and into libc's first frame.
                tail = len(TAILS["musl", _beginning(thread)])
                ends = replace(ends, at_least=len(frames) - tail + 1)
            crashed = thread.state in (State.CRASHED, State.OVERFLOWED)
            yield Stack(thread.tid, crashed, frames, ends)


def _frames(case: Case, thread: Record) -> Iterator[Frame]:
    """Innermost first; a frame's pc is what the entry before it returns to."""
    pc: int | None = thread.pc or None
    for entry in thread.entries:
        match entry.kind:
            case Kind.CALLED:
                yield Frame((entry.name,), pc, named=_named(case, entry.name))
            case Kind.SIGNAL:
                yield Frame(("__restore_rt",), pc, named=False, signal=True)
            case Kind.FOREIGN:
                yield Frame(tuple(entry.name.split("|")), pc, span=True)
            case Kind.WILD:
                yield Frame((), pc)
            case Kind.OUTERMOST:
                yield Frame((entry.name,), pc, named=_named(case, entry.name))
                return
            case Kind.CONTEXT:
                break
        pc = entry.ra or None
    first, *rest = TAILS[case.libc, _beginning(thread)]
    yield replace(first, pc=pc)
    for frame in rest:
        yield replace(frame, named=frame.named and _named(case, frame.names[0]))


def _named(case: Case, function: str) -> bool:
    return not {"*", function} & set(case.nameless)


def _beginning(thread: Record) -> str:
    if any(entry.kind == Kind.CONTEXT for entry in thread.entries):
        return "context"
    return "main" if thread.entries[-1].name == "main" else "thread"


def _with_unrecorded_entry(thread: Record, executable: Path) -> Record:
    """Adds the function that overflowed the stack before it could record itself.

    Its caller is at the place where it has called that function each time before.
    """
    top = thread.entries[0]
    if thread.state != State.OVERFLOWED:
        return thread
    name = _function_at(executable, thread.pc)
    if name == top.name:
        return thread
    before = next(entry for entry in thread.entries if entry.name == name)
    return replace(thread, entries=(before, *thread.entries))


def _function_at(executable: Path, vaddr: int) -> str:
    listing = subprocess.check_output(["nm", "-S", executable], text=True)
    for start, size, _, name in (
        words for words in map(str.split, listing.splitlines()) if words[3:]
    ):
        if int(start, 16) <= vaddr < int(start, 16) + int(size, 16):
            return name
    raise AssertionError(f"no function at {vaddr:#x}")


# ---------------------------------------------------------------------------------- the names


def base_name(name: str) -> str:
    """What remains of a demangled name without scope, return type, arguments, and clone suffix.

    Demanglers differ in all of these; compilers differ in how they name a lambda's scope.
    """
    name = re.sub(r" ?\[(clone .*|cold)\]", "", name).partition("@")[0]
    name = re.sub(r"\.(cold|part|constprop|isra|llvm)\b.*", "", name)
    name = re.sub(r"( (const|volatile|noexcept|&&?))+$", "", name)
    if name.endswith(")") and not name.endswith("operator()"):
        name = name[: _opening(name)]
    if name.endswith(">") and not re.search(r"operator(>|>>|->)$", name):
        name = name[: _opening(name)]
    if operator := re.search(r"(?:^|::)(operator[^:]*)$", name):
        return operator[1]
    return name.rpartition("::")[2].rpartition(" ")[2]


def library_name(name: str) -> str:
    """One of a library function's aliases: libc's `__libc_pause`, `__pause`, `pause` are one."""
    return re.sub(r"^(__GI_|__libc_(?!start)|__vdso_|_+)+", "", base_name(name))


def _opening(name: str) -> int:
    """Where the bracket that the last character closes was opened."""
    depth = 0
    for index in range(len(name) - 1, -1, -1):
        if name[index] in ")>":
            depth += 1
        elif name[index] in "(<":
            depth -= 1
            if depth == 0:
                return index
    return len(name)


# ---------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Found:
    """A frame as some unwinder found it."""

    pc: int
    name: str | None
    """Demangled, or as in the symbol table."""
    signal: bool = False

    def __str__(self) -> str:
        return f"{self.pc:#018x} {'<signal>' if self.signal else self.name or '?'}"


def differences(stack: Stack, found: Sequence[Found]) -> list[str]:
    """What is wrong with the frames that an unwinder found, in words; nothing, if nothing is."""
    at = 0
    for number, frame in enumerate(stack.frames):
        if at >= len(found):
            least = stack.ends.at_least
            if least is not None and at >= least:
                return []
            return [f"ends after {at} frames: {describe(frame)} is missing"]
        if frame.span:
            after = stack.frames[number + 1]
            stop = next(
                (
                    index
                    for index in range(at + 1, len(found))
                    if _is(after, found[index]) and _is(replace(frame, pc=None), found[index - 1])
                ),
                None,
            )
            if stop is None and stack.ends.at_least is not None:
                return []  # cut short within the library: nothing known is contradicted
            if stop is None:
                return [
                    f"frame {at}: {describe(frame)}, and after that {describe(after)}: not found"
                ]
            if frame.pc is not None and frame.pc != found[at].pc:
                return [f"frame {at} should be at {frame.pc:#x}, not {found[at]}"]
            at = stop
        elif _is(frame, found[at]):
            at += 1
        else:
            return [f"frame {at} should be {describe(frame)}, not {found[at]}"]
    return [f"a frame too many: {extra}" for extra in found[at:]]


def _is(frame: Frame, found: Found) -> bool:
    if frame.pc is not None and frame.pc != found.pc:
        return False
    if frame.signal or found.signal:
        return frame.signal and found.signal
    if not frame.names:
        return True
    if not found.name:
        return not frame.named
    if frame.span:
        return library_name(found.name) in map(library_name, frame.names)
    return base_name(found.name) in frame.names


def describe(frame: Frame) -> str:
    """A frame for a person to read."""
    where = f"{frame.pc:#018x}" if frame.pc is not None else "0x".ljust(18, ".")
    name = " or ".join(frame.names) or "(no function)"
    marks = "<signal> " * frame.signal + "... " * frame.span
    return f"{where} {marks}{name if frame.named else f'({name})'}"


# ---------------------------------------------------------------------------------- the core


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD."""

    offset: int
    start: int
    size: int


@dataclass(frozen=True)
class Note:
    """An ELF note and where its type stands in the file."""

    type: int
    type_at: int
    name: bytes
    description: bytes


def segments(core: bytes | bytearray) -> Iterator[Segment]:
    """What the core has of memory."""
    for kind, offset, vaddr, filesz in _program_headers(core):
        if kind == 1:  # PT_LOAD
            yield Segment(offset, vaddr, filesz)


def notes(core: bytes | bytearray) -> Iterator[Note]:
    """The notes of an x86_64 core."""
    for kind, at, _, filesz in _program_headers(core):
        if kind != 4:  # PT_NOTE
            continue
        end = at + filesz
        while at < end:
            namesz, descsz, type_ = struct.unpack_from("<3I", core, at)
            name_at = at + 12
            desc_at = name_at + (namesz + 3 & -4)
            name = bytes(core[name_at : name_at + namesz]).rstrip(b"\0")
            yield Note(type_, at + 8, name, bytes(core[desc_at : desc_at + descsz]))
            at = desc_at + (descsz + 3 & -4)


def registers(core: bytes | bytearray) -> dict[int, tuple[int, int]]:
    """tid -> (pc, sp), in the order of the core's NT_PRSTATUS notes."""
    return {
        # Linux include/linux/elfcore.h: pr_pid at 32, user_regs_struct at 112
        struct.unpack_from("<i", note.description, 32)[0]: (
            struct.unpack_from("<Q", note.description, 112 + 16 * 8)[0],
            struct.unpack_from("<Q", note.description, 112 + 19 * 8)[0],
        )
        for note in notes(core)
        if note.type == 1 and note.name == b"CORE"
    }


def _program_headers(core: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    (phoff,) = struct.unpack_from("<Q", core, 0x20)
    (phnum,) = struct.unpack_from("<H", core, 0x38)
    for index in range(phnum):
        kind, _, offset, vaddr, _, filesz = struct.unpack_from("<2I4Q", core, phoff + index * 56)
        yield kind, offset, vaddr, filesz


def _return_address_slot(core: bytes | bytearray, stack: Stack, frame: int) -> int:
    """Where the return address of frame number `frame` is saved.

    Found by looking for each return address in turn, upwards from sp: no CFI is asked.
    """
    _, at = registers(core)[stack.tid]
    home = next(s for s in segments(core) if s.start <= at < s.start + s.size)
    for caller in stack.frames[1 : frame + 2]:
        assert caller.pc is not None
        word = struct.pack("<Q", caller.pc)
        found = core.index(word, home.offset + at - home.start, home.offset + home.size)
        at = found - home.offset + home.start + 8
    return at - 8


# ---------------------------------------------------------------------------------- gdb's opinion

_GDB_FRAMES = r"""
import json
found = {}
for thread in gdb.selected_inferior().threads():
    thread.switch()
    frames = found[thread.ptid[1] or thread.ptid[0]] = []
    frame = gdb.newest_frame()
    try:
        while frame:
            if frame.type() != gdb.INLINE_FRAME:
                frames.append([frame.pc(), frame.name(), frame.type() == gdb.SIGTRAMP_FRAME])
            frame = frame.older()
    except gdb.error as error:
        pass
print("FRAMES" + json.dumps(found))
"""


def by_gdb(crash: Crash) -> dict[int, list[Found]]:
    """The stacks as gdb sees them: tid -> frames, those of inlined calls left out."""
    need("gdb")
    script = crash.directory / "frames.py"
    script.write_text(_GDB_FRAMES)
    options = [f"-iex=set debug-file-directory {crash.directory}/debug:/usr/lib/debug"]
    lines = ["set backtrace past-main on", "set backtrace limit unlimited", f"source {script}"]
    printed = _gdb(lines, [*options, str(crash.executable), str(crash.core)], {**os.environ})
    for line in printed.splitlines():
        if line.startswith("FRAMES"):
            found = json.loads(line.removeprefix("FRAMES"))
            return {int(tid): [Found(*frame) for frame in found[tid]] for tid in found}
    raise AssertionError(f"gdb on {crash.core}:\n{printed}")


def main(names: Sequence[str]) -> None:
    """Prints, for the cases named or all, the truth beside what gdb says."""
    cases = named(*names) or CASES
    with TemporaryDirectory() as scratch:
        for name, crash in crash_all(cases, Path(scratch)).items():
            print(f"\n=== {name}")
            if isinstance(crash, BaseException):
                print(f"    no crash: {crash}")
                continue
            opinion = by_gdb(crash)
            print(f"    threads: {sorted(crash.stacks)}, gdb's {sorted(opinion)}")
            for tid, stack in crash.stacks.items():
                found = opinion.get(tid, [])
                wrong = differences(stack, found)
                print(f"--- thread {tid}{', crashed' * stack.crashed}: {wrong or 'gdb agrees'}")
                if wrong or names:
                    print("\n".join(columns([describe(frame) for frame in stack.frames], found)))


def columns(left: Sequence[object], right: Sequence[object]) -> Iterator[str]:
    """Two stacks side by side, the middle of deep ones left out."""
    for index, pair in enumerate(zip_longest(left, right, fillvalue="")):
        if 20 < index < max(len(left), len(right)) - 6:
            continue
        yield f"    {pair[0]!s:70} | {pair[1]}"


if __name__ == "__main__":
    main(sys.argv[1:])
