"""Damaged cores and ELF files, all the way to printed frames: the promise about bad input.

Small programs are crashed, and their cores, programs, libraries and debug files are broken one
by one, in 20,000 ways that follow from a seed. Whatever comes, `unwind-core` prints what it can
with the reason where a stack ends, or refuses with one line; nothing else may happen, and nothing
may take long. The same holds for `unwind-cfi` of the ELF files.

`python -m tests.test_damage SEED INDEX` does again what input INDEX of a seed did, and
`python -m tests.test_damage SEED FIRST END` tries a range.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import lzma
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from struct import Struct, pack_into, unpack_from
from tempfile import TemporaryDirectory
from types import FrameType, ModuleType

import pytest

from tests.crashes import kernel_writes_cores
from tests.support import ROOT, need, run, validate
from unwind.cli import cfi as unwind_cfi
from unwind.cli import core as unwind_core
from unwind.cli import plumbing
from unwind.errors import UnwindError
from unwind.symbols.demangle import demangle
from unwind.testing.damage import Area, areas, damage

SEED = 1
COUNT = 20_000
PROCESSES = 2
MOST_FAILURES = 5  # of a process, then it gives up
CPU_SECONDS = 2  # for one input; a sound one takes a hundredth
MEMORY = 1 << 30  # address space of a process; the sound inputs take a tenth

PROGRAMS = ROOT / "tests/programs"
RECORDED = "/damage/"  # what the cores call the directory of the program


# ------------------------------------------------------------------------------- sound inputs


@dataclass(frozen=True)
class Case:
    """A program, how it is built and crashed, and which of its files are to be damaged."""

    name: str
    targets: tuple[str, ...]
    """Of `core`, `tiny`, `libtiny.so`, `tiny.debug`; one as often as it is named."""
    flags: tuple[str, ...] = ()
    finish: Callable[[Path], None] = lambda directory: None
    """What happens to the files after the crash."""
    whole: bool = False
    """The core holds all pages, those of files too."""
    library: bool = False
    arguments: tuple[str, ...] = ()
    """Of unwind-core; `{}` stands for the directory."""


STATIC = ("-DSTATIC", "-static", "-fasynchronous-unwind-tables", "-Wl,--eh-frame-hdr")
DEBUG_FRAME = ("-DSTATIC", "-static", "-fno-asynchronous-unwind-tables", "-g1", "-DDEBUG_FRAME")
DYNAMIC = ("-fPIE", "-pie", "-fasynchronous-unwind-tables", "-Wl,-z,now")
NO_CFI = ("-DSTATIC", "-static", "-fno-asynchronous-unwind-tables", "-fno-omit-frame-pointer")


def compress(kind: str) -> Callable[[Path], None]:
    def finish(directory: Path) -> None:
        drop_debug_info(directory)
        done("objcopy", f"--compress-debug-sections={kind}", directory / "tiny")

    return finish


def drop_debug_info(directory: Path) -> None:
    """Leaves .debug_frame of the debug sections: nobody reads the others yet."""
    others = "info abbrev line line_str str aranges".split()
    done("objcopy", *(f"-R.debug_{name}" for name in others), directory / "tiny")


def pack_symbols(directory: Path) -> None:
    """Moves .symtab into .gnu_debugdata, as Fedora has it."""
    program, small, packed = (directory / name for name in ("tiny", "small", "small.xz"))
    done("objcopy", "--only-keep-debug", program, small)
    packed.write_bytes(lzma.compress(small.read_bytes()))
    done("strip", "--strip-all", program)
    done("objcopy", f"--add-section=.gnu_debugdata={packed}", program)
    small.unlink()
    packed.unlink()


def part_debug_file(directory: Path) -> None:
    """Moves .debug_frame and .symtab into a file that is found by the build-id."""
    drop_debug_info(directory)
    program = directory / "tiny"
    done("objcopy", "--only-keep-debug", program, directory / "tiny.debug")
    done("strip", "--strip-all", program)
    build_id = run("readelf", "-n", program).stdout.split("Build ID: ")[1].split()[0]
    link = directory / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../tiny.debug")


def lose_the_files(directory: Path) -> None:
    for name in ("tiny", "libtiny.so"):
        (directory / name).unlink(missing_ok=True)


def forget_the_files(directory: Path) -> None:
    """As `lose_the_files`, and the core has no NT_FILE: nothing but memory tells of modules."""
    lose_the_files(directory)
    core = directory / "core"
    core.write_bytes(rewritten(core.read_bytes(), without=0x46494C45))


def squeeze(pack: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def finish(directory: Path) -> None:
        core = directory / "core"
        core.write_bytes(pack(core.read_bytes()))

    return finish


CASES = (
    Case("static", ("core", "core", "tiny", "tiny"), STATIC),
    Case("dynamic", ("core", "tiny", "libtiny.so"), DYNAMIC, pack_symbols, library=True),
    Case("memory", ("core",), STATIC, lose_the_files, whole=True),
    Case("link map", ("core",), DYNAMIC, forget_the_files, whole=True, library=True),
    Case("debug_frame", ("tiny",), DEBUG_FRAME, drop_debug_info),
    Case("compressed", ("tiny",), DEBUG_FRAME, compress("zlib")),
    Case("zdebug", ("tiny",), DEBUG_FRAME, compress("zlib-gnu")),
    Case("zstd", ("tiny",), DEBUG_FRAME, compress("zstd")),
    Case(
        "debug file",
        ("tiny.debug",),
        DEBUG_FRAME,
        part_debug_file,
        arguments=("--debug-dir", "{}"),
    ),
    Case("no CFI", ("core", "tiny"), (*NO_CFI, "-DNO_CFI")),
    Case("gzip", ("core",), STATIC, squeeze(functools.partial(gzip.compress, mtime=0))),
    Case("xz", ("core",), STATIC, squeeze(lzma.compress)),
)


def build(case: Case, directory: Path) -> None:
    """Compiles and crashes the case's program in `directory` and leaves its files there."""
    directory.mkdir(parents=True)
    flags = (
        *("-Os", "-ffreestanding", "-nostdlib", "-fno-stack-protector", "-fcf-protection=none"),
        *("-Wl,--build-id", "-Wl,-z,noseparate-code", "-Wl,-z,norelro", *case.flags),
    )
    libraries = []
    if case.library:
        library = directory / "libtiny.so"
        shared = ("-fPIC", "-shared", "-DLIBRARY", "-o", library, PROGRAMS / "tiny.c")
        done("gcc", *(flag for flag in flags if flag not in ("-fPIE", "-pie")), *shared)
        libraries = ["./libtiny.so"]
    sources = (PROGRAMS / "tiny.c", PROGRAMS / "tiny_x86_64.S")
    done("gcc", *flags, "-o", "tiny", *sources, *libraries, cwd=directory)
    crash(directory, "0x3f" if case.whole else "0x33")
    core = directory / "core"
    core.write_bytes(rewritten(core.read_bytes(), old=f"{directory.resolve()}/".encode()))
    case.finish(directory)


def crash(directory: Path, filter: str) -> None:
    """Runs `tiny` so that each run leaves the same core, as far as the kernel goes along."""
    script = f'echo {filter} >/proc/self/coredump_filter; ulimit -c unlimited; exec "$@"'
    bare: tuple[str, ...] = ("env", "-i", "./tiny")
    if not kernel_writes_cores():
        need("gdb")
        commands = ("handle SIGUSR1 nostop noprint", "run", "generate-core-file core")
        bare = ("gdb", "-nx", "-batch", *(w for c in commands for w in ("-ex", c)), "./tiny")
    elif shutil.which("setarch"):
        bare = ("setarch", "-R", *bare)
    before = set(directory.iterdir())
    ran = subprocess.run(
        ("/bin/sh", "-c", script, "sh", *bare),
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    written = set(directory.iterdir()) - before
    assert len(written) == 1, f"it ended with {ran.returncode} and left {written}: {ran.stderr!r}"
    written.pop().rename(directory / "core")


def done(*argv: str | Path, cwd: Path = ROOT) -> None:
    ran = run(*argv, cwd=cwd)
    assert ran.returncode == 0, f"{argv}: {ran.stderr}"


HEADER = Struct("<16sHHIQQQIHHHHHH")
PROGRAM = Struct("<IIQQQQQQ")


def rewritten(core: bytes, old: bytes = b"", without: int = 0) -> bytes:
    """The core without what no unwinder reads, and without what differs between two runs.

    That is: unused parts of the stack, notes on other registers, tids. The directory `old` is
    called RECORDED, and a note of type `without` is left out.
    """
    headers = bytearray(core[: HEADER.size])
    rows = [list(row) for row in PROGRAM.iter_unpack(core[64 : 64 + 56 * core[56]])]
    notes, pointer = _rewritten_notes(core, rows[0][2], rows[0][5], old, without)
    pack_into("<Q", headers, 40, 0)  # e_shoff
    contents = bytearray(notes)
    first = HEADER.size + PROGRAM.size * len(rows)
    rows[0][2], rows[0][5] = first, len(notes)
    for row in rows[1:]:
        _, _, offset, vaddr, _, size, _, _ = row
        data = core[offset : offset + size]
        if vaddr <= pointer < vaddr + size:
            cut = (pointer - vaddr) & ~0xFFF
            data, row[3] = data[cut:], vaddr + cut
            row[6] -= cut
        if vaddr >> 63:  # the vsyscall page, which nobody can read
            data = b""
        row[2], row[5] = first + len(contents), len(data)
        contents += data
    return bytes(headers) + b"".join(PROGRAM.pack(*row) for row in rows) + bytes(contents)


def _rewritten_notes(
    core: bytes, at: int, size: int, old: bytes, without: int
) -> tuple[bytes, int]:
    """The notes that a reader of cores looks at, and the first thread's stack pointer."""
    kept, end, tid, pointer = bytearray(), at + size, 1000, 0
    while at < end:
        name_size, data_size, kind = unpack_from("<III", core, at)
        body = at + 12 + (name_size + 3 & ~3)
        name, data = core[at + 12 : body], bytearray(core[body : body + data_size])
        at = body + (data_size + 3 & ~3)
        if name[:4] != b"CORE" or kind in (2, without):
            continue
        if kind == 1:  # NT_PRSTATUS
            tid += 1
            pack_into("<I", data, 32, tid)
            pointer = pointer or unpack_from("<Q", data, 112 + 19 * 8)[0]
        elif kind == 3:  # NT_PRPSINFO
            pack_into("<I", data, 24, 1001)
        elif kind == 0x46494C45 and old:
            data = bytearray(data.replace(old, RECORDED.encode()))
        padding = bytes(-len(data) % 4)
        kept += Struct("<III").pack(name_size, len(data), kind) + name + data + padding
    return bytes(kept), pointer


# --------------------------------------------------------------------------------- one input


@dataclass(frozen=True, eq=False)  # the same only as itself: it is long to compare
class Base:
    """A sound file of a case, which is to be damaged."""

    case: Case
    directory: Path
    target: str
    sound: bytes = field(repr=False)
    areas: tuple[Area, ...] = field(repr=False)

    @property
    def arguments(self) -> list[str]:
        directory = str(self.directory)
        given = [argument.format(directory) for argument in self.case.arguments]
        return [f"{directory}/core", "--module", f"{RECORDED[:-1]}={directory}", *given]


class Broken(AssertionError):
    """The promise was broken: how."""


class TooLong(BaseException):
    """Time is up; no `except Exception` holds it up."""


@dataclass(frozen=True)
class Answer:
    """What the command made of an input; `refusal` is the line when it exits with 2."""

    text: str
    document: str
    refusal: str = ""


TEXTS = ((), ("-r", "-m"), ("--explain",), ("--no-fallback", "-q"))
DOCUMENTS = ((), ("-r",), ("--explain",))
TABLES = ((), ("--raw",), ("--json",), ("--address", "0x400180"), ("--address", "0x1180", "--raw"))


class Bench:
    """Tries damaged files; `directory` holds what `build` made of all cases."""

    def __init__(self, directory: Path, seed: int):
        self.seed = seed
        self.bases: list[Base] = []
        for case in CASES:
            place = directory / case.name
            for target in case.targets:
                sound = (place / target).read_bytes()
                self.bases.append(Base(case, place, target, sound, areas(sound)))
        self._sound: dict[object, Answer] = {}
        # argparse takes longer than all the rest.
        for command in (unwind_core, unwind_cfi):
            vars(command)["parser"] = functools.cache(command.parser)

    def make(self, index: int) -> tuple[Base, bytes, str, Random]:
        """Input number `index`, what was done to it, and the randomness that goes on."""
        random = Random(f"{self.seed}/{index}")
        base = random.choice(self.bases)
        broken, what = damage(base.sound, base.areas, random)
        return base, broken, f"{base.case.name}, {base.target}: {what}", random

    def judge(self, index: int) -> str:
        """What came of an input: unchanged, changed or refused. Broken says what is wrong."""
        base, broken, _, random = self.make(index)
        text, document = random.choice(TEXTS), random.choice(DOCUMENTS)
        sound = self._sound.get((base, text, document))
        if sound is None:
            sound = self._sound[base, text, document] = ask(base, text, document)
            if sound.refusal:
                raise Broken(f"the sound input is refused: {sound.refusal}")
        put(base, broken)
        try:
            answer = ask(base, text, document)
            if base.target != "core":
                path = f"{base.directory}/{base.target}"
                printed, _ = command_run(unwind_cfi, [path, *random.choice(TABLES)])
                check_text(printed)
        finally:
            put(base, base.sound)
        if answer.refusal or (base.target != "core" and not_used(answer, sound)):
            return "refused"
        return "unchanged" if answer == sound else "changed"


def put(base: Base, data: bytes) -> None:
    """Gives the target new contents, as a new file: old mappings keep what they had."""
    path = base.directory / base.target
    path.unlink()
    path.write_bytes(data)


def not_used(answer: Answer, sound: Answer) -> bool:
    """Whether a module's file, the damaged one, was refused where it served before."""
    states = [
        [module["state"] for module in json.loads(document)["modules"]]
        for document in (answer.document, sound.document)
    ]
    return states[0].count("ok") < states[1].count("ok")


def ask(base: Base, text: Sequence[str], document: Sequence[str]) -> Answer:
    """What the command prints, as text and as JSON; Broken where that breaks the promise."""
    printed, refusal = command_run(unwind_core, [*base.arguments, *text])
    check_text(printed)
    written, other = command_run(unwind_core, [*base.arguments, "--json", *document])
    if refusal != other:
        raise Broken(f"refused as text: {refusal!r}, as JSON: {other!r}")
    if not refusal:
        check_document(written)
    return Answer(printed, written, refusal)


def command_run(command: ModuleType, argv: list[str]) -> tuple[str, str]:
    """What a command prints on standard output, and its line when it exits with 2."""
    prog = f"unwind-{command.__name__.rpartition('.')[2]}"
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            code = command.main([*argv, "--debug"])
    except UnwindError:  # without --debug it is a line
        with redirect_stdout(out), redirect_stderr(errors):
            code = command.main(argv)
        if code != plumbing.COULD_NOT:
            raise Broken(f"exit code {code} where an UnwindError was raised") from None
        *warnings, line = errors.getvalue().splitlines()
        if not line.removeprefix(f"{prog}: ").strip():
            raise Broken(f"no good line: {line!r}") from None
    else:
        warnings, line = errors.getvalue().splitlines(), ""
        if code != 0:
            raise Broken(f"exit code {code}")
    for said in warnings:
        if not said.startswith((f"{prog}: warning: ", f"{prog}: hint: ")):
            raise Broken(f"on standard error: {said!r}")
    for said in (*warnings, line):
        if not said.isprintable():
            raise Broken(f"control characters on standard error: {said!r}")
    return out.getvalue(), line


def check_text(printed: str) -> None:
    for line in printed.split("\n"):
        if not line.isprintable():
            raise Broken(f"control characters: {line!r}")


def check_document(written: str) -> None:
    made = json.loads(written)
    json.dumps(made, ensure_ascii=False).encode()  # valid UTF-8: no lone surrogate
    for thread in made["threads"]:
        end = thread["end"]
        if end["reason"] != "outermost" and not end.get("detail"):
            raise Broken(f"no reason is given for {end['reason']}")


# ------------------------------------------------------------------------------- many inputs


def work(directory: Path, seed: int, first: int, end: int, step: int = 1) -> Iterator[str]:
    """Tries inputs; yields a story of each that breaks the promise, then the counts as JSON."""
    limit_process()
    bench = Bench(directory, seed)
    counts: Counter[str] = Counter()
    failures = 0
    for index in range(first, end, step):
        problem = None
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            counts[bench.judge(index)] += 1
        except (Exception, TooLong) as error:
            problem = error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if problem is not None:
            told = "".join(traceback.format_exception(problem, limit=-4))
            yield f"python -m tests.test_damage {seed} {index}\n{bench.make(index)[2]}\n{told}"
            failures += 1
            if failures == MOST_FAILURES:
                break
    yield json.dumps(counts)


def limit_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    signal.signal(signal.SIGPROF, time_is_up)


def time_is_up(_number: int, _frame: FrameType | None) -> None:
    raise TooLong(f"more than {CPU_SECONDS} s")


def build_all(directory: Path) -> None:
    for case in CASES:
        build(case, directory / case.name)


def main(argv: Sequence[str]) -> int:
    """One input of a seed, or a range; `--in DIRECTORY STEP` is for the test itself."""
    seed, first = int(argv[0]), int(argv[1])
    if argv[3:4] == ["--in"]:
        for line in work(Path(argv[4]), seed, first, int(argv[2]), int(argv[5])):
            print(line, flush=True)
        return 0
    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        build_all(directory)
        if argv[2:]:
            for line in work(directory, seed, first, int(argv[2])):
                print(line, flush=True)
            return 0
        bench = Bench(directory, seed)
        base, broken, what, _ = bench.make(first)
        kept = Path(f"damaged-{seed}-{first}-{base.target}")
        kept.write_bytes(broken)
        print(f"{what}\nkept as {kept}", flush=True)
        limit_process()
        print(bench.judge(first))
    return 0


# ------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of all cases."""
    need("gcc", "objcopy", "strip", "readelf")
    directory = tmp_path_factory.mktemp("damage")
    build_all(directory)
    return directory


_TOO_LONG = 1500  # seconds: it takes 70, and 400 where others want the processors


def test_damaged_input_gives_what_is_left_or_one_line(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = []
    for number in range(PROCESSES):
        mine = tmp_path / str(number)
        shutil.copytree(sound, mine, symlinks=True)
        arguments = (SEED, number, COUNT, "--in", mine, PROCESSES)
        workers.append(
            subprocess.Popen(
                (sys.executable, "-m", "tests.test_damage", *map(str, arguments)),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    counts: Counter[str] = Counter()
    stories = []
    try:
        for worker in workers:
            *failures, last = worker.communicate(timeout=_TOO_LONG)[0].splitlines()
            assert worker.returncode == 0, f"a process died with {worker.returncode}"
            counts.update(json.loads(last))
            stories += failures
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert not stories, "\n".join(stories)
    with capsys.disabled():
        shares = ", ".join(f"{n / COUNT:.0%} {what}" for what, n in sorted(counts.items()))
        print(f"\ndamaged cores and ELF files: {counts.total()}: {shares}")
    assert counts.total() == COUNT
    assert all(counts[what] >= COUNT // 10 for what in ("unchanged", "changed", "refused"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_sound_input_is_walked_to_its_ends(sound: Path, case: Case) -> None:
    """Without this, damage that changes nothing would be no surprise."""
    if case.name == "zstd":
        pytest.importorskip("zstandard")
    base = Base(case, sound / case.name, "core", b"", ())
    answer = ask(base, (), ())
    document = json.loads(answer.document)
    validate(document)
    crashed, waiting = document["threads"]
    if "-DNO_CFI" in case.flags:
        assert {frame["trust"] for frame in waiting["frames"][1:]} == {"emulation"}
        return
    assert crashed["end"] == waiting["end"] == {"reason": "outermost"}
    assert (len(crashed["frames"]), len(waiting["frames"])) == (16, 12)
    if case.finish not in (lose_the_files, forget_the_files):
        assert [frame["function"] for frame in crashed["frames"]] == FUNCTIONS


FUNCTIONS = "crash crash crash handler restorer interrupted hand_written variable".split()
FUNCTIONS += [demangle("_Z13library_innerIiEvPFvT_ES0_")] * 4
FUNCTIONS += "library_calls realigned start _start".split()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
