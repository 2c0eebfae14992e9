"""Programs that crash on purpose: a case goes in, a core and the true stacks come out.

Each case is a program of tests/programs, built in a certain way, crashed in a certain manner. The
program itself keeps the record of its calls (tests/programs/truth.h says how), so nothing here
asks an unwinder. `python -m tests.crashes` shows the truth beside gdb's opinion.

    case ──build──> executable ──crash──> core + record ──truth.expected──> {tid: Stack}
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.core_bytes import notes, registers, segments
from tests.support import cannot, need
from tests.truth import Ends, Found, Stack, columns, describe, differences, expected

PROGRAMS = Path(__file__).parent / "programs"


# ---------------------------------------------------------------------------------- the words


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
    perhaps: tuple[str, ...] = ()
    """How some frames may be found."""
    gdb: str = ""
    """Why gdb does not agree with the truth."""

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


def zero_the_stack(size: int | None = None) -> Callable[[bytearray, list[Stack]], list[Stack]]:
    """Zeros in the crashed thread's stack from some return address upwards: `size` bytes, or all.

    `outermost` would claim too much: more zeroes follow, or return addresses further up.
    """
    kept = 12
    reasons = ("no-module", "no-row", "memory-fault", "no-progress", "bad-cfi")

    def damage(core: bytearray, stacks: list[Stack]) -> list[Stack]:
        altered = []
        for stack in stacks:
            if stack.crashed:
                slot = _return_address_slot(core, stack, kept)
                home = next(s for s in segments(core) if s.start <= slot < s.start + s.size)
                offset = home.offset + slot - home.start
                end = home.offset + home.size if size is None else offset + size
                core[offset:end] = bytes(end - offset)
                ends = Ends(short=reasons, words=("zero",), at_least=kept + 1)
                stack = replace(stack, ends=ends)
            altered.append(stack)
        return altered

    return damage


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


# ---------------------------------------------------------------------------------- the table

OMIT = ("-O2", "-fomit-frame-pointer")
NO_CFI = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-exceptions")
DEBUG_FRAME = ("-O2", "-g", *NO_CFI)
FRAME_POINTERS = ("-O2", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", *NO_CFI)
NEITHER = ("-O2", "-fomit-frame-pointer", *NO_CFI)
NO_PIE = ("-fno-pie", "-no-pie")
MUSL = ("-O2", "-fomit-frame-pointer", "-static")

# musl has no CFI at all: from main's caller on, code is all there is to go by.
MUSL_GDB = "it guesses at libc_start_main_stage2, and wrongly"

GUESSES = "it guesses, and wrongly"

CHAIN = ("chain.c",)
PLUGIN = Library("plugin.so", "plugin.c")

# What the kernel's default filter, 0x33, leaves of a library whose file is gone: its data and the
# page with its ELF header. The first frame inside it is known from its callee, and no more.
LIBRARY_LOST = Ends(short=("no-module", "no-row"), words=("coredump_filter",), at_least=3)

# on_terminate, libstdc++'s frames, and __clang_call_terminate, which has no CFI.
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
    Case(
        "made-at-run-time",
        ("made.c", "made_x86_64.S"),
        ("5",),
        nameless=("made",),
        trust=("frame_pointer",),
        gdb=GUESSES,
    ),
    Case("vdso", ("vdso.c",), ("direct",)),
    Case("vdso-through-libc", ("vdso.c",), ("libc",)),
    Case("vsyscall", ("vsyscall.c",), trust=("link_register",)),
    # -- other stacks, other processes
    Case(
        "makecontext",
        ("context.c",),
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
        perhaps=("emulation",),  # of __clang_call_terminate, to which clang 14 gives no CFI
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
    Case("frame-pointers", CHAIN, ("20",), flags=FRAME_POINTERS, trust=("emulation",)),
    Case(
        "frame-pointers-in-library",
        ("dlopen.c",),
        ("{directory}/plugin.so", "callback"),
        flags=(*OMIT, "-rdynamic"),
        libraries=(Library("plugin.so", "plugin.c", FRAME_POINTERS),),
        trust=("emulation",),
    ),
    # -- neither CFI nor frame pointers
    *(
        Case(
            f"neither{level}{name}",
            CHAIN,
            ("5",),
            flags=(level, *NEITHER[1:]),
            finish=finish,
            nameless=nameless,
            trust=("emulation",),
            gdb=GUESSES,
        )
        for name, finish, nameless in (("", (), ()), ("-stripped", (strip,), ("*",)))
        for level in ("-O0", "-O1", "-O2", "-O3", "-Os")
    ),
    Case("neither-shapes", ("shapes.c",), flags=NEITHER, trust=("emulation",), gdb=GUESSES),
    Case(
        "neither-threads", ("threads.c",), ("8",), flags=NEITHER, trust=("emulation",), gdb=GUESSES
    ),
    Case("neither-noreturn", ("noreturn.c",), flags=NEITHER, trust=("emulation",), gdb=GUESSES),
    Case("neither-abort", ("abort.c",), flags=NEITHER, trust=("emulation",), gdb=GUESSES),
    Case("neither-cold", ("cold.c",), ("fault",), flags=NEITHER, trust=("emulation",), gdb=GUESSES),
    Case(
        "neither-signals",
        ("signals.c",),
        ("altstack",),
        flags=NEITHER,
        trust=("emulation",),
        gdb=GUESSES,
    ),
    *(
        Case(
            f"neither-in-{place}-handler",
            ("places.c", "places_x86_64.S"),
            (place, "handler"),
            flags=NEITHER,
            trust=("emulation",),
            stops=2,
            gdb=GUESSES,
        )
        for place in ("entry", "prologue", "epilogue", "leaf", "tail")
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
    Case("musl", CHAIN, compiler="musl-gcc", flags=MUSL, libc="musl", gdb=MUSL_GDB),
    Case(
        "musl-handler",
        ("signals.c",),
        ("altstack",),
        compiler="musl-gcc",
        flags=MUSL,
        stops=2,
        libc="musl",
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
    # gdb writes the notes last, so half of its core tells of no thread.
    Case(
        "cut-in-half",
        ("threads.c",),
        ("40",),
        damage=cut_in_half,
        by="kernel",
        gdb="it is confused",
    ),
    Case("no-nt-file-static-pie", CHAIN, flags=(*OMIT, "-static-pie"), damage=forget_nt_file),
    Case("zeroed-stack", CHAIN, ("40",), damage=zero_the_stack(), gdb="it shows a frame at 0"),
    Case("zeroed-hole", CHAIN, ("40",), damage=zero_the_stack(48), gdb="it shows a frame at 0"),
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
        compile_c("gcc", flags, (library.source,), directory / library.name)
    executable = directory / "program"
    compile_c(case.compiler, (*case.flags, "-pthread"), case.sources, executable)
    for step in case.finish:
        step(executable)
    return executable


def crash(case: Case, directory: Path) -> Crash:
    """Builds the case in `directory` and lets it crash."""
    return crash_built(case, build(case, directory), directory)


def crash_built(case: Case, executable: Path, directory: Path) -> Crash:
    """Lets the case's program crash; what it leaves behind lies in `directory`."""
    record = directory / "truth"
    command = [str(executable), *(word.format(directory=directory) for word in case.arguments)]
    environment = {**os.environ, "UNWIND_TRUTH": str(record), "MALLOC_ARENA_MAX": "1"}
    core = directory / "core"
    if case.by == "kernel" and not kernel_writes_cores():
        cannot("the kernel hands its cores to another program here")
    if case.by != "gdb" and kernel_writes_cores():
        crash_by_kernel(command, environment, core)
    else:
        _crash_by_gdb(case, command, environment, core)
    stacks = list(expected(record, executable, case.libc, case.nameless, case.ends))
    if case.damage:
        image = bytearray(core.read_bytes())
        stacks = case.damage(image, stacks)
        core.write_bytes(image)
    return Crash(case, directory, executable, core, {stack.tid: stack for stack in stacks})


def crash_all(
    cases: Sequence[Case],
    directory: Path,
    how: Callable[[Case, Path], Crash] = crash,
) -> dict[str, Crash | BaseException]:
    """Crashes all cases, as many at once as there are processors; failures are values here."""

    def attempt(case: Case) -> Crash | BaseException:
        try:
            return how(case, directory / case.name)
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


def compile_c(compiler: str, flags: Sequence[str], sources: Sequence[str], output: Path) -> None:
    """Compiles programs of tests/programs, in C, C++ or assembler, into `output`."""
    warnings = ("-Wall", "-Wextra", "-Wno-unused-but-set-variable")
    paths = [str(PROGRAMS / source) for source in sources]
    _run(compiler, "-pipe", *warnings, *flags, "-Wl,--build-id", "-o", output, *paths)


def crash_by_kernel(command: Sequence[str], environment: dict[str, str], core: Path) -> None:
    """Runs a program that crashes; the kernel's core of it is moved to `core`."""
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


# The gdb that has been looked at where it disagrees.
KNOWN_GDB = "GNU gdb (Debian 13.1"


def gdb_is_known() -> bool:
    """Whether a disagreement is the truth's fault, as far as is known."""
    printed = subprocess.run(["gdb", "--version"], capture_output=True, text=True).stdout
    return printed.startswith(KNOWN_GDB)


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


if __name__ == "__main__":
    main(sys.argv[1:])
