"""Live processes: a PID in; its threads, memory and modules, as they were at one instant, out.

The process is stopped for as long as it takes to copy registers and stacks (unwind/live/halt.py),
or not at all (unwind/live/look.py). By the time a Snapshot is walked it runs on.
"""

from __future__ import annotations

import os
from errno import EACCES, EPERM
from time import sleep

from unwind.core_notes import read_auxv
from unwind.discover import AT, vdso
from unwind.elf import Elf
from unwind.errors import FormatError, SourceError
from unwind.live.copies import Copier
from unwind.live.files import ProcessFiles
from unwind.live.halt import Refused, halt
from unwind.live.look import look
from unwind.live.memory import LiveMemory
from unwind.live.proc import Proc
from unwind.live.refusals import refusal
from unwind.live.seen import identity
from unwind.live.shortcomings import shortcomings
from unwind.live.stacks import StackPlan
from unwind.mappings import Mapping, modules_of
from unwind.modules import VDSO
from unwind.registry import architecture
from unwind.snapshot import Snapshot, Source
from unwind.space import AddressSpace, Region

__all__ = ["LONGEST_STOP", "TRANSPORT", "ProcessSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unwind.architecture import Architecture
    from unwind.files import Files
    from unwind.live.proc import Mapped
    from unwind.live.seen import Seen
    from unwind.modules import Module
    from unwind.registers import Registers

LONGEST_STOP = 0.5  # seconds, unless somebody asks for more or less
_TRIES = 5  # to see a process that runs one program after another
_PAUSE = 1e-3  # seconds between two of them
_LACKING = "the process' memory does not hold all of it"


class ProcessSource(Source):
    """A process as it was. `threads` begins with the leader.

    `stopped` is for how long it stood still, None where it did not.
    """

    kind = "process"

    def __init__(self, proc: Proc, looks: Sequence[Seen], plan: StackPlan, files: Files):
        super().__init__(plan.arch, str(proc.pid))
        self._proc = proc
        self._plan = plan
        self.pid = proc.pid
        self.command = _said(proc)
        self.memories: list[LiveMemory] = []
        self._spaces: dict[bytes, AddressSpace] = {}
        found = [snapshot for seen in looks for snapshot in self._snapshots(seen, files)]
        self.threads = tuple(sorted(found, key=lambda s: (s.tid != proc.pid, s.tid)))
        self.warnings += shortcomings(looks, plan)

    def snapshots(self) -> Iterator[Snapshot]:
        """The threads, the leader first."""
        return iter(self.threads)

    def close(self) -> None:
        """Let go of /proc; the Snapshots' memory is gone then."""
        for memory in self.memories:
            memory.close()
        self._proc.close()

    def _snapshots(self, seen: Seen, files: Files) -> Iterator[Snapshot]:
        """The threads that one look has found, on a memory of its own."""
        mappings = self._plan.mappings(seen.maps)
        memory = LiveMemory(seen.stretches, mappings, Copier(self._proc.through, seen.memory).later)
        self.memories.append(memory)
        space = self._spaces.get(seen.maps)
        if space is None:
            own = ProcessFiles(files, self._proc, mappings)
            modules = _modules(memory, mappings, read_auxv(seen.auxv, self.arch), own)
            regions = [Region(m.start, m.end, m.executable, m.name) for m in mappings]
            space = self._spaces[seen.maps] = AddressSpace(self.arch, modules, regions)
            self.warnings += own.warnings
            if own.executable and not own.main_wanted:
                unused = "where the main program lies is unknown; it was not used"
                self.warnings.append(f"{own.executable}: {unused}")
        for tid, registers in self._plan.threads(seen):
            name = _name(self._proc, tid)
            yield Snapshot(registers, memory, space, tid, self._proc.pid, name)


def _said(proc: Proc) -> str | None:
    """What the process is called, None where it has ended by now."""
    try:
        return proc.command() or proc.name(proc.through)
    except OSError:
        return None


def _name(proc: Proc, tid: int) -> str | None:
    try:
        return proc.name(tid) or None
    except OSError:
        return None


def _modules(
    memory: LiveMemory, mappings: Sequence[Mapped], auxv: dict[int, int], files: Files
) -> list[Module]:
    """The modules: what is mapped of files with code, and the kernel's own."""
    named = [m for m in mappings if m.name[:1] == "/" and (m.readable or m.executable)]
    code = {m.start: m.executable for m in mappings}
    writable = {m.start for m in mappings if m.writable}

    def lend(start: int, data: memoryview, is_code: bool) -> None:
        if is_code and start not in writable:  # other pages may have been changed before
            memory.back(start, data)

    found = modules_of(
        [Mapping(m.start, m.end, m.offset, m.name) for m in named],
        memory,
        files,
        executable=code.get,
        inside_main=auxv.get(AT.PHDR, 0),
        lend=lend,
        lacking=_LACKING,
    )
    start = next((m.start for m in mappings if m.name == VDSO), 0)
    known = vdso(memory, start, files, _LACKING)
    return sorted([*found, known] if known is not None else found, key=lambda m: m.start)


class _ProcessTransport:
    kind = "process"

    def detect(self, head: bytes) -> bool:
        """No file is of this kind."""
        return False

    def open(
        self, path: str, files: Files, *, stop: bool = True, longest_stop: float = LONGEST_STOP
    ) -> ProcessSource:
        """The process whose id is `path`, stopped for `longest_stop` seconds at most.

        It runs on by the time this returns or raises. With `stop` False it is not stopped at all,
        and only threads that are blocked in the kernel can be seen: with all their registers where
        a BPF program may be run, else by pc and sp alone.

        Raises SourceError where there is no such process or it may not be looked at,
        UnsupportedArchitecture for code that no file in arch/ describes.
        """
        proc = _process(path)
        try:
            for attempt in range(_TRIES):
                try:
                    source = _look(proc, files, longest_stop if stop else None)
                except (Refused, PermissionError):
                    # In the middle of an execve(2), or of their end, threads refuse everybody.
                    if attempt == _TRIES - 1:
                        raise
                    source = None
                if source is not None:
                    return source
                sleep(_PAUSE)
            raise SourceError("it runs one program after another, or has ended", f"process {path}")
        except (Refused, OSError) as error:
            found = _error(error, proc)
            proc.close()
            raise found from None
        except BaseException:
            proc.close()
            raise


def _look(proc: Proc, files: Files, longest_stop: float | None) -> ProcessSource | None:
    """One look at the process; None where it has become another program meanwhile.

    Without `longest_stop` it is not stopped.
    """
    program, plan = identity(proc), StackPlan(_architecture(proc))
    plan.mappings(proc.read("maps"))
    if longest_stop is None:
        looks = look(proc, plan, lambda: _registers(plan.arch, proc.pid))
    else:
        looks = [halt(proc, plan, longest_stop)]
    late = _late(looks)
    if late and longest_stop is not None and looks[-1].seconds > longest_stop / 2:
        reason = f"none of its {late} threads stopped in time"
        raise SourceError(reason, f"process {proc.pid}", "--max-stop gives time")
    if late or not looks or any(seen.program != program for seen in looks):
        return None
    source = ProcessSource(proc, looks, plan, files)
    source.stopped = None if longest_stop is None else looks[0].seconds
    return source


def _registers(arch: Architecture, pid: int) -> dict[int, Registers]:
    """All registers of the threads, none where no BPF program may be run."""
    from unwind.events.tasks import task_registers

    try:
        return task_registers(arch, pid)
    except (SourceError, OSError, FormatError):
        return {}


def _process(path: str) -> Proc:
    """The process of that id, seen through a thread of it that lives."""
    where = f"process {path}"
    if not (path.isascii() and path.isdigit()):
        raise SourceError("not the id of a process", path)
    try:
        proc = Proc(int(path))
    except (FileNotFoundError, ProcessLookupError, OverflowError):
        raise SourceError("there is none", where) from None
    try:
        status = proc.status()
        if status.pid != proc.pid:
            raise SourceError(
                f"it is a thread of process {status.pid}",
                where,
                f"unwind-live --thread {path} {status.pid}",
            )
        if proc.pid == os.getpid():
            raise SourceError("it is this very process, which cannot stop itself", where)
        if proc.is_kernel_thread():
            raise SourceError(f"it is a kernel thread ({status.name}) and has no user stack", where)
        if not status.dead:
            return proc
        for tid in proc.threads():  # the leader has ended, others may go on
            if not proc.is_dead(tid):
                return _through(proc, tid)
        raise SourceError(f"it has ended; its parent, {status.parent}, did not wait for it", where)
    except OSError as error:
        found = _error(error, proc)
        proc.close()
        raise found from None
    except BaseException:
        proc.close()
        raise


def _through(proc: Proc, tid: int) -> Proc:
    """The same process, seen through another thread."""
    found = Proc(proc.pid, tid)
    proc.close()
    return found


def _architecture(proc: Proc) -> Architecture:
    """The architecture of the program that runs."""
    elf = Elf(_head(proc).ljust(64, b"\0"), f"the program of process {proc.pid}")
    if elf.header.elf_class == 32 and "64" in os.uname().machine:
        raise SourceError(
            f"it is a 32-bit process ({elf.describe()}), which is not unwound here",
            f"process {proc.pid}",
        )
    return architecture(elf)


def _head(proc: Proc) -> bytes:
    """The ELF header of the program that runs."""
    handle = proc.open("exe")
    try:
        return os.read(handle, 64)
    finally:
        os.close(handle)


def _late(looks: Sequence[Seen]) -> int:
    """How many threads did not stop, where none did: in the middle of an execve(2), say."""
    if any(seen.registers or seen.places for seen in looks):
        return 0
    return sum(len(seen.late) for seen in looks)


def _error(error: Exception, proc: Proc) -> SourceError:
    """What an error of the system means."""
    refused = error.errors if isinstance(error, Refused) else {}
    if refused or (isinstance(error, OSError) and error.errno in (EPERM, EACCES)):
        return refusal(proc)
    return SourceError("it has ended", f"process {proc.pid}")


TRANSPORT = _ProcessTransport()
