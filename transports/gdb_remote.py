"""GDB stubs (gdbserver, qemu, probes): HOST:PORT in; threads, memory and modules of a target out.

The target stands still from `open` to `close`. What is asked of the stub is in unwind/remote/.
"""

from __future__ import annotations

from unwind.core_notes import read_auxv, read_siginfo
from unwind.discover import AT, Discovery, Link, ranges_of, vdso
from unwind.errors import FormatError, MemoryFault, SourceError, UnsupportedArchitecture
from unwind.mappings import Maker
from unwind.modules import Module
from unwind.registers import Registers
from unwind.registry import architecture, architectures
from unwind.remote import documents
from unwind.remote.client import Client
from unwind.remote.memory import RemoteMemory
from unwind.remote.packets import connect
from unwind.snapshot import Signal, Snapshot, Source
from unwind.space import AddressSpace, Region, regions_of

__all__ = ["TRANSPORT", "RegisterReader", "RemoteSource"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from unwind.architecture import Architecture
    from unwind.elf import Elf
    from unwind.files import Files
    from unwind.remote.client import StopReply, ThreadId
    from unwind.remote.documents import Description
    from unwind.remote.packets import Connection

_PAGE = 4096
_DEFAULT_TIMEOUT = 10.0
_LAST_WORD = 2.0  # seconds that a stub has to confirm that it lets the target go
_LACKING = "the stub does not read all of it"

# gdb 13 include/gdb/signals.def: the signals that end a process because of what it did. A target
# that stopped with another one was stopped by its debugger, or may go on.
_FATAL = {
    4: "SIGILL", 6: "SIGABRT", 7: "SIGEMT", 8: "SIGFPE", 10: "SIGBUS", 11: "SIGSEGV", 12: "SIGSYS",
}  # fmt: skip
_TRAP = 5
_DEBUGGERS = (0, _TRAP)  # with these nobody but a debugger stops a target


class RemoteSource(Source):
    """A target that stands still. `threads` begins with the one that stopped first.

    Closed, it lets the target go on; with `stays` it only hangs up, and what the stub does then
    is the stub's affair: gdbserver and qemu-system wait for the next debugger.
    """

    kind = "gdb-remote"

    def __init__(self, client: Client, stop: StopReply, arch: str | None, files: Files):
        self.client = client
        self.stays = False
        self.memory = RemoteMemory(client)
        described = documents.description(self._document, client.where)
        auxv = client.object("auxv") or b""
        found = _architecture(arch, described, auxv, self.memory, files, client.where)
        super().__init__(found, client.where)
        self.reader = RegisterReader(self.arch, described, client)
        self.stop = stop
        ids = self._ids(client.threads())
        self.pid = self._pid(ids) if auxv else None
        self.signal = self._signal()
        self._auxv = read_auxv(auxv, self.arch)
        self.command = self._command(ids[0].pid, self._auxv)
        self.space = AddressSpace(self.arch, [])
        self.update(files)
        self.warnings += files.warnings
        if files.executable and not files.main_wanted:
            self.warnings.append(
                f"{files.executable}: where the main program lies is unknown; it was not used"
            )
        self.threads = tuple(self._threads(ids))

    def update(self, files: Files) -> None:
        """Read anew which modules there are: at first, and when the target has run."""
        modules = self._modules(self._auxv, files)
        # What else is mapped nobody tells: code may lie there, made at run time or of the kernel.
        regions = [region for module in modules for region in _regions(module)]
        self.space.replace(modules, regions, complete=False)

    def snapshots(self) -> Iterator[Snapshot]:
        """The threads of the target, the one that stopped first before the others."""
        return iter(self.threads)

    def detach(self) -> bool:
        """Let the target go on; False where the stub does not do so."""
        self.stays = True  # it is not done twice
        return _let_go(self.client, self._processes)

    def close(self) -> None:
        """Let the target go on, or leave it standing where `stays` is set, and hang up."""
        try:
            if not self.stays:
                self.detach()
        finally:
            self.client.connection.close()

    def _ids(self, threads: list[ThreadId]) -> list[ThreadId]:
        """The threads of one process, the one that stopped first before the others."""
        first = self.stop.thread or threads[0]
        self._processes = list(dict.fromkeys(thread.pid for thread in threads))
        found = [thread for thread in threads if thread.pid == first.pid] or [first]
        if len(found) < len(threads):
            others = len(threads) - len(found)
            self.warnings.append(f"{others} threads of other processes are left out")
        return sorted(found, key=lambda thread: thread.text != first.text)

    def _pid(self, threads: list[ThreadId]) -> int | None:
        """The process' id: its first thread has it too, while qemu's processes are numbered."""
        return next((thread.pid for thread in threads if thread.tid == thread.pid), None)

    def _document(self, name: str) -> bytes | None:
        return self.client.object("features", name)

    def _signal(self) -> Signal | None:
        """The signal that stopped the target, where it would end it."""
        name = _FATAL.get(self.stop.signal)
        number = next((n for n, known in self.arch.signals.items() if known == name), None)
        if number is None:
            return None
        found = read_siginfo(self.client.object("siginfo") or b"", self.arch)
        if found is not None and found[0] == number:
            return Signal(*found)
        return Signal(number)

    def _command(self, process: int | None, auxv: Mapping[int, int]) -> str | None:
        """The main program's name as the stub knows it, None where nobody tells."""
        annex = f"{process:x}" if process is not None else ""
        name = self.client.object("exec-file", annex) or b""
        if not name and AT.EXECFN in auxv:
            name = _string(self.memory, auxv[AT.EXECFN])
        return name.decode(errors="surrogateescape") or None

    def _modules(self, auxv: dict[int, int], files: Files) -> list[Module]:
        arch, memory = self.arch, self.memory
        if not auxv:
            return self._main_alone(files)
        known = vdso(memory, auxv.get(AT.SYSINFO_EHDR, 0), files, _LACKING)
        # The headers of an image lie at the start of its first page, as the linkers have it.
        starts = [address & -_PAGE for key in (AT.PHDR, AT.BASE) if (address := auxv.get(key, 0))]
        names = {**auxv, AT.EXECFN: 0}  # what the stub calls it is no relative path
        return Discovery(
            arch,
            memory,
            auxv if self.command is None else names,
            files,
            starts=dict.fromkeys(starts),
            executable=lambda _address: None,
            lend=lambda _start, _data, _code: None,
            known=[known] if known is not None else [],
            program=self.command or "",
            lacking=_LACKING,
            links=self._links(),
        ).run()

    def _links(self) -> list[Link]:
        text = self.client.object("libraries-svr4")
        found = documents.libraries(text, self.path) if text else []
        return [Link(bias, name, dynamic) for bias, name, dynamic in found]

    def _main_alone(self, files: Files) -> list[Module]:
        """The program of -e where it was linked to be: a kernel, or what runs without one."""
        result = files.image("", None, main=True)
        if result.image is None:
            return []
        bias = self.client.offsets() or 0
        ranges = ranges_of(result.image.elf, bias)
        name = files.executable or ""
        maker = Maker(self.memory, files, _LACKING)
        return [maker.make(name, bias, ranges, None, result)] if ranges else []

    def _threads(self, ids: list[ThreadId]) -> Iterator[Snapshot]:
        text = self.client.object("threads")
        entries = documents.threads(text, self.path) if text else []
        names = {entry.id: entry.name for entry in entries}
        crashed = self.signal is not None
        for thread in ids:
            registers = self.reader.read(thread)
            name = names.get(thread.text) or (not text and self.client.thread_info(thread))
            pid = self.pid or 0
            yield Snapshot(
                registers, self.memory, self.space, thread.tid, pid, name or None, crashed
            )
            crashed = False


class RegisterReader:
    """Reads the registers of a target's threads: by the description of its stub, else as gdb does.

    Without a description, what `g` has is the same for all targets of an architecture.
    """

    def __init__(self, arch: Architecture, described: Description | None, client: Client):
        self.arch, self.client = arch, client
        self.numbers: dict[int, int] = {}  # DWARF number to that of the description
        self.places: dict[int, tuple[int, int]] = {}  # DWARF number to offset and end in `g`
        if described is None or not described.fields:
            if "gdb" not in arch.layouts:
                raise UnsupportedArchitecture(f"{arch.name} without a target description")
            layout = arch.layouts["gdb"]
            for number, offset in layout.offsets.items():
                self.numbers[number] = offset // layout.width
                self.places[number] = offset, offset + layout.width
            return
        for field in described.fields:
            known = arch.gdb_names.get(field.name, arch.register_number(field.name))
            if known is not None and field.size <= arch.word:
                self.numbers[known] = field.number
                self.places[known] = field.offset, field.offset + field.size
        for number in (arch.pc, arch.sp):
            if number not in self.places:
                name = arch.register_name(number)
                raise UnsupportedArchitecture(f"a target of {arch.name} without a register {name}")

    def read(self, thread: ThreadId) -> Registers:
        """The registers of a thread; those that the stub does not know are absent."""
        found = self.client.known_registers(thread)
        return self._one_by_one(thread) if found is None else self.decoded(*found)

    def decoded(self, data: bytes, known: bytes) -> Registers:
        """The registers in a reply to `g`; `known` has a 1 for each byte that is known."""
        registers, order = Registers(), self.arch.byteorder
        for number, (start, end) in self.places.items():
            if end <= len(data) and all(known[start:end]):
                registers[number] = int.from_bytes(data[start:end], order)
        return registers

    def _one_by_one(self, thread: ThreadId) -> Registers:
        registers = Registers()
        for number, named in self.numbers.items():
            data = self.client.register(thread, named)
            if data and len(data) <= self.arch.word:
                registers[number] = int.from_bytes(data, self.arch.byteorder)
        return registers


def _architecture(
    name: str | None,
    described: Description | None,
    auxv: bytes,
    memory: RemoteMemory,
    files: Files,
    where: str,
) -> Architecture:
    """The target's architecture: as `name` says, else the one that everything else agrees with.

    Descriptions tell no byte order, and some stubs have none: then the ELF header at AT_PHDR
    tells, else the file of -e.
    """
    candidates = list(architectures())
    if name is not None:
        chosen = [arch for arch in candidates if arch.name == name]
        if not chosen:
            known = ", ".join(arch.name for arch in candidates)
            raise SourceError(f"no architecture {name!r}", hint=f"there are {known}")
        return chosen[0]
    said = described.architecture if described is not None else ""
    if said:
        candidates = [arch for arch in candidates if _is_called(arch, said)]
        if not candidates:
            raise UnsupportedArchitecture(said)
    if len(candidates) == 1:
        return candidates[0]
    elf = _main_header(candidates, auxv, memory)
    if elf is None:
        result = files.image("", None, main=True)
        elf = result.image.elf if result.image is not None else None
    if elf is None:
        raise SourceError(
            "the stub does not tell the target's architecture", where, "-e FILE or --arch tells it"
        )
    return architecture(elf)


def _is_called(arch: Architecture, said: str) -> bool:
    return any(said == name or said.startswith(f"{name}:") for name in arch.gdb_architectures)


def _main_header(candidates: list[Architecture], auxv: bytes, memory: RemoteMemory) -> Elf | None:
    """The ELF header of the main program, where one of the candidates finds it by AT_PHDR."""
    from unwind.elf import Elf

    for arch in candidates:
        phdr = read_auxv(auxv, arch).get(AT.PHDR, 0)
        try:
            if phdr and memory.read(phdr & -_PAGE, 4) == b"\x7fELF":
                return Elf.from_memory(memory, phdr & -_PAGE)
        except (MemoryFault, FormatError):
            continue
    return None


def _regions(module: Module) -> list[Region]:
    """The mappings of a module; without an image its ranges, where code may lie."""
    if module.image is not None:
        return list(regions_of(module))
    return [Region(start, end, True, module.name) for start, end in module.ranges]


def _string(memory: RemoteMemory, address: int) -> bytes:
    """The C string at `address`, b"" where none can be read."""
    found = b""
    try:
        while len(found) < _PAGE and b"\0" not in found:
            found += memory.read(address + len(found), 1)
    except MemoryFault:
        return b""
    return found.partition(b"\0")[0]


class _RemoteTransport:
    kind = "gdb-remote"

    def detect(self, head: bytes) -> bool:
        """No file is of this kind."""
        return False

    def open(
        self,
        path: str,
        files: Files,
        *,
        arch: str | None = None,
        timeout: float = _DEFAULT_TIMEOUT,
        wait: bool = False,
    ) -> RemoteSource:
        """The target behind the stub at `path`: HOST:PORT, or a socket's path.

        `arch` is its architecture where the stub does not tell. `timeout` is what one reply may
        take, in seconds. With `wait` the target runs on until it stops by itself, by a fault or a
        breakpoint, or until KeyboardInterrupt.

        Raises SourceError where nobody answers there or no target is left, FormatError for answers
        that make no sense, UnsupportedArchitecture for one that no file in arch/ describes.
        """
        return self.attach(connect(path, timeout), files, arch=arch, wait=wait)

    def attach(
        self, connection: Connection, files: Files, *, arch: str | None = None, wait: bool = False
    ) -> RemoteSource:
        """The target behind a connection that somebody has made; otherwise as `open`."""
        client = Client(connection)
        stop = None
        try:
            client.begin()
            stop = client.status()
            if wait and not stop.ended:
                stop = _run_on(client)
            if stop.ended:
                raise SourceError(_ended(stop), connection.where)
            return RemoteSource(client, stop, arch, files)
        except BaseException:
            if stop is not None and not stop.ended:
                _let_go(client, [stop.thread.pid if stop.thread is not None else None])
            connection.close()
            raise


def _run_on(client: Client) -> StopReply:
    """Let the target run until it is stopped by what would end it, or by a debugger's doing."""
    signal = 0
    while True:
        client.resume(signal)
        try:
            stop = client.wait()
        except KeyboardInterrupt:
            return client.interrupt()
        if stop.ended or stop.signal in _FATAL or stop.signal in _DEBUGGERS:
            return stop
        signal = stop.signal


def _let_go(client: Client, processes: list[int | None]) -> bool:
    """Detach from the processes; False where the stub does not say that it does so."""
    client.connection.timeout = min(client.connection.timeout, _LAST_WORD)
    try:
        refused = [pid for pid in processes if not client.detach(pid)]
    except (SourceError, FormatError):
        return False
    return not refused


def _ended(stop: StopReply) -> str:
    if stop.kind == "W":
        return f"the program has ended with exit code {stop.signal}"
    return f"the program has ended by signal {stop.signal}" if stop.kind == "X" else "no program"


TRANSPORT = _RemoteTransport()
