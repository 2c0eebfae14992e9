"""Stepping: a program's command line in; its registers, memory and modules at each instruction out.

`NativeStepper` steps a program of this machine by ptrace(2), `RemoteStepper` one behind a GDB stub.
Both step the first thread alone: others run as they like, and so do children.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from unwind.architecture import Architecture
from unwind.disassembly import disassembler
from unwind.discover import vdso
from unwind.elf import EM
from unwind.errors import MemoryFault, UnwindError
from unwind.files import Files
from unwind.live.proc import mapped
from unwind.live.ptrace import libc
from unwind.machine import CodeModel
from unwind.mappings import Mapping, modules_of
from unwind.modules import Module
from unwind.registers import Registers
from unwind.registry import architectures
from unwind.remote.memory import RemoteMemory
from unwind.snapshot import Snapshot
from unwind.space import AddressSpace, Region
from unwind.testing.shadow import CALL, OTHER, RETURN, SYSCALL, Instruction, ShadowStack
from unwind.transports.gdb_remote import RemoteSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.protocols import Memory

__all__ = ["Decoder", "NativeStepper", "RemoteStepper", "Stepper", "walk_through"]

_PAGE = 4096
_LONGEST_INSTRUCTION = 16
_MOST_STACK = 1 << 18  # bytes that one look at the stack copies

# Linux v6.13 include/uapi/linux/ptrace.h
_TRACEME, _POKETEXT, _CONT, _SINGLESTEP, _GETREGS, _SETREGS = 0, 4, 7, 9, 12, 13
_SETOPTIONS = 0x4200
_INT3 = 0xCC
_O_TRACEEXEC, _O_EXITKILL = 0x10, 0x100000
_EVENT_EXEC = 4
_ADDR_NO_RANDOMIZE = 0x0040000
_WALL = 0x40000000


class Decoder:
    """Tells of each instruction what it may do to the calls."""

    def __init__(self, arch: Architecture):
        assert arch.code_model is not None
        self.arch = arch
        self.model: CodeModel = arch.code_model()
        self._disassemble = disassembler(self.model)
        self._known: dict[int, Instruction] = {}

    def at(self, pc: int, memory: Memory) -> Instruction:
        """The instruction at `pc`; what is no instruction does nothing."""
        found = self._known.get(pc)
        if found is None:
            found = self._known[pc] = self._decode(pc, memory)
        return found

    def forget(self) -> None:
        """Other code may lie where some was."""
        self._known.clear()

    def _decode(self, pc: int, memory: Memory) -> Instruction:
        code = b""
        for size in (_LONGEST_INSTRUCTION, _PAGE - pc % _PAGE):
            try:
                code = memory.read(pc, min(size, _LONGEST_INSTRUCTION))
                break
            except MemoryFault:
                continue
        decoded = list(self._disassemble(code, pc))[:1]
        if not decoded:
            return Instruction(pc, OTHER, pc + 1)
        _, size, mnemonic, _ = decoded[0]
        kind = _KINDS.get(mnemonic.split()[-1], OTHER)  # "bnd call", "repz ret"
        if kind == CALL and self._is_stub(pc, memory):
            kind = OTHER
        if kind == CALL and size < self.arch.call_size:
            return Instruction(pc, kind, pc + self.arch.call_size, pc + size)
        return Instruction(pc, kind, pc + size)

    def _is_stub(self, pc: int, memory: Memory) -> bool:
        """Whether a call is the jump of a lazy binding stub of mips to the dynamic linker.

        System V ABI, MIPS supplement, "Function Addresses": `move t7, ra; jalr t9`. The function
        that is found returns to t7; nobody comes back to the stub.
        """
        if self.arch.machine != EM.MIPS:
            return False
        try:
            return int.from_bytes(memory.read(pc - 4, 4), self.arch.byteorder) in _MOVES_T7_RA
        except MemoryFault:
            return False


_MOVES_T7_RA = (0x03E0_7825, 0x03E0_7821)  # or t7, ra, zero; addu t7, ra, zero
_CALLS = frozenset(
    "call bl blr blraa blraaz blrab blrabz "
    "jal jalr jalr.hb bal bgezal bltzal bgezall bltzall".split()
)
_KINDS = {
    **dict.fromkeys(_CALLS, CALL),
    **dict.fromkeys(("ret", "retaa", "retab"), RETURN),
    **dict.fromkeys(("syscall", "svc", "int", "sysenter"), SYSCALL),
}


class Stepper:
    """A program that stands at one of its instructions.

    `registers` are those of its thread, `memory` and `space` what the process has now.
    """

    arch: Architecture
    registers: Registers
    memory: Memory
    space: AddressSpace
    decoder: Decoder

    restarted = False  # the last step was an exec
    delivered = 0  # the signal that the last step began with
    halted = 0  # the signal that kept the last step from being taken: the next one delivers it

    def step(self) -> bool:
        """Execute one instruction, or enter a signal's handler; False once all is over."""
        raise NotImplementedError

    def run_to(self, address: int) -> None:
        """Let the program run until it comes to `address`; EOFError where it ends before."""
        raise NotImplementedError

    def close(self) -> None:
        """End the program."""

    @property
    def snapshot(self) -> Snapshot:
        """The thread as it stands."""
        return Snapshot(self.registers, self.memory, self.space)

    def stack_of(self, address: int) -> object:
        """The mapping that an address belongs to, or that grows down to it."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def walk_through(stepper: Stepper, rooted: bool = True) -> Iterator[ShadowStack]:
    """The shadow stack at each instruction of a program, before it is executed.

    `rooted`: it stands where nobody has called, as at its entry point.
    """
    arch, decoder = stepper.arch, stepper.decoder
    shadow = ShadowStack(arch, decoder.model.saved, stepper.stack_of, rooted)
    while True:
        yield shadow
        before = stepper.registers
        done = decoder.at(before[arch.pc], stepper.memory)
        returning = done.kind == SYSCALL and _is_trampoline(stepper, done.pc)
        if not stepper.step():
            return
        after = stepper.registers
        if stepper.restarted:
            shadow.restart()
        elif stepper.halted and after[arch.pc] == before[arch.pc]:
            pass
        elif stepper.delivered and (restorer := _entered(stepper, done, after)) is not None:
            shadow.interrupt(before, after, restorer)
        elif returning:
            shadow.resume()
        else:
            shadow.advance(done, before, after)


def _entered(stepper: Stepper, done: Instruction, after: Registers) -> int | None:
    """The trampoline that the handler returns to which was entered just now, None if none was."""
    arch = stepper.arch
    if after[arch.pc] == done.following:
        return None
    if arch.return_address == arch.pc:
        try:
            word = stepper.memory.read(after[arch.sp], arch.word)
        except MemoryFault:
            return None
        found = int.from_bytes(word, arch.byteorder)
    else:
        found = after[arch.return_address]
    return found if _is_trampoline(stepper, found, at_entry=True) else None


def _is_trampoline(stepper: Stepper, pc: int, at_entry: bool = False) -> bool:
    """Whether a signal trampoline begins at `pc`, else whether its system call lies there."""
    for known in stepper.arch.trampolines:
        for entry in known.entries[:1] if at_entry else known.entries[1:]:
            try:
                if stepper.memory.read(pc - entry, len(known.pattern)) == known.pattern:
                    return True
            except MemoryFault:
                continue
    return False


# -------------------------------------------------------------------------------------- ptrace


class _ProcessMemory:
    """The memory of a process, by its /proc/PID/mem."""

    def __init__(self, pid: int, stack_end: Callable[[int], int]):
        self._file = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        self._stack_end = stack_end

    def read(self, address: int, size: int) -> bytes:
        try:
            data = os.pread(self._file, size, address)
        except (OSError, OverflowError, ValueError):
            raise MemoryFault(address, size, "not mapped") from None
        if len(data) != size:
            raise MemoryFault(address, size, "not mapped")
        return data

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stack from `address` up."""
        start = address & -8
        size = min(self._stack_end(address) - start, _MOST_STACK)
        try:
            return start, memoryview(os.pread(self._file, size, start))
        except (OSError, OverflowError, ValueError):
            return None

    def close(self) -> None:
        os.close(self._file)


class NativeStepper(Stepper):
    """A program of this machine, stepped by ptrace from its first instruction on.

    Raises OSError where it cannot be started or traced.
    """

    def __init__(
        self, command: Sequence[str], files: Files, environment: dict[str, str] | None = None
    ):
        machine = os.uname().machine
        self.arch = next(arch for arch in architectures() if arch.name == machine)
        self.decoder = Decoder(self.arch)
        self._libc = libc()
        layout = self.arch.layouts["linux.prstatus"]
        first = min(layout.offsets.values())
        # user_regs_struct is what NT_PRSTATUS has as pr_reg.
        self._numbers = sorted(layout.offsets, key=layout.offsets.__getitem__)
        assert [layout.offsets[n] for n in self._numbers] == [
            first + 8 * n for n in range(len(self._numbers))
        ]
        self._record = struct.Struct(f"<{len(self._numbers)}Q")
        self._buffer = ctypes.create_string_buffer(self._record.size)
        self._files = files
        self._ended = False
        self._maps = b""
        self._kernel: Module | None = None
        self.pid = self._start(command, environment or dict(os.environ))
        self._mem = self.memory = _ProcessMemory(self.pid, self._stack_end)
        self.space = AddressSpace(self.arch, [])
        self._read_maps()
        self._read_registers()

    def step(self) -> bool:
        """Execute one instruction, or enter a signal's handler; False once all is over."""
        before = self.registers
        done = self.decoder.at(before[self.arch.pc], self.memory)
        number = before[_RAX] if done.kind == SYSCALL else -1
        self.restarted, self.delivered = False, self.halted
        status = self._go(self.halted)
        while status >> 16 == _EVENT_EXEC:
            self.restarted = True
            status = self._go(0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            self._ended = True
            return False
        stopped = os.WSTOPSIG(status)
        self.halted = 0 if stopped == signal.SIGTRAP else stopped
        if self.restarted or number in _MAPPING:
            self._read_maps()
        self._read_registers()
        return True

    def run_to(self, address: int) -> None:
        """By a breakpoint, which is taken away again."""
        word = self._peek(address)
        self._poke(address, word & ~0xFF | _INT3)
        self._ptrace(_CONT, None, 0)
        while True:
            _, status = os.waitpid(self.pid, _WALL)
            if not os.WIFSTOPPED(status):
                self._ended = True
                raise EOFError(f"the program ends before {address:#x}")
            stopped = os.WSTOPSIG(status)
            if stopped == signal.SIGTRAP:
                break
            self._ptrace(_CONT, None, stopped)
        self._poke(address, word)
        self._ptrace(_GETREGS, None, ctypes.addressof(self._buffer))
        values = list(self._record.unpack(self._buffer))
        values[self._numbers.index(self.arch.pc)] = address
        self._record.pack_into(self._buffer, 0, *values)
        self._ptrace(_SETREGS, None, ctypes.addressof(self._buffer))
        self._read_maps()
        self._read_registers()

    def _peek(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")

    def _poke(self, address: int, word: int) -> None:
        self._ptrace(_POKETEXT, address, word)

    def _ptrace(self, request: int, address: int | None, data: int) -> None:
        self._libc.trace(request, self.pid, address, data)

    def close(self) -> None:
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, _WALL)
            self._ended = True
        self._mem.close()

    def stack_of(self, address: int) -> object:
        return self._stack_end(address)

    def _start(self, command: Sequence[str], environment: dict[str, str]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)
                quiet = os.open(os.devnull, os.O_RDWR)
                for number in (0, 1, 2):
                    os.dup2(quiet, number)
                self._libc.ptrace(_TRACEME, 0, None, None)
                os.execve(command[0], list(command), environment)
            finally:
                os._exit(127)
        _, status = os.waitpid(pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise OSError(f"{command[0]} does not start")
        self._libc.ptrace(_SETOPTIONS, pid, None, _O_TRACEEXEC | _O_EXITKILL)
        return pid

    def _go(self, number: int) -> int:
        self._ptrace(_SINGLESTEP, None, number)
        return os.waitpid(self.pid, _WALL)[1]

    def _read_registers(self) -> None:
        self._ptrace(_GETREGS, None, ctypes.addressof(self._buffer))
        values = self._record.unpack(self._buffer)
        self.registers = Registers(zip(self._numbers, values, strict=True))

    def _stack_end(self, address: int) -> int:
        """The end of the mapping that holds `address` or lies next above: a stack grows down."""
        at = bisect_right(self._ends, address)
        return self._ends[at] if at < len(self._ends) else 1 << 64

    def _read_maps(self) -> None:
        """The process' mappings have changed, or may have."""
        with open(f"/proc/{self.pid}/maps", "rb") as file:
            text = file.read()
        if text == self._maps:
            return
        self._maps = text
        self.decoder.forget()
        regions, mappings = [], []
        for line in mapped(text):
            regions.append(Region(line.start, line.end, line.executable, line.name))
            if line.inode:
                mappings.append(Mapping(line.start, line.end, line.offset, line.name))
        self._ends = [region.end for region in regions]
        runnable = {region.start: region.executable for region in regions}
        found = modules_of(mappings, self.memory, self._files, executable=runnable.get)
        if self._kernel is None:
            kernel = next((region.start for region in regions if region.name == "[vdso]"), 0)
            self._kernel = vdso(self.memory, kernel, self._files, "")
        if self._kernel is not None:
            found.append(self._kernel)
        self.space.replace(found, regions)


# -------------------------------------------------------------------------------------- a stub


class _StubMemory:
    """A target's memory: code from the modules' files, all else from the stub."""

    def __init__(self, memory: RemoteMemory, space: AddressSpace):
        self.memory = memory
        self.space = space
        self._code: dict[int, tuple[int, memoryview] | None] = {}

    def read(self, address: int, size: int) -> bytes:
        page = address & -_PAGE
        if page not in self._code:
            self._code[page] = self._code_at(page)
        known = self._code[page]
        if known is not None and address + size <= known[0] + len(known[1]):
            return bytes(known[1][address - known[0] :][:size])
        return self.memory.read(address, size)

    def view(self, address: int) -> tuple[int, memoryview] | None:
        """The stack from `address` up, as far as it goes."""
        start, pieces = address & -8, []
        for at in range(start, start + _MOST_REMOTE_STACK, _PIECE):
            try:
                pieces.append(self.memory.read(at, _PIECE))
            except MemoryFault:
                break
        return (start, memoryview(b"".join(pieces))) if pieces else None

    def forget_code(self) -> None:
        """The modules have changed."""
        self._code.clear()

    def _code_at(self, page: int) -> tuple[int, memoryview] | None:
        module = self.space.find(page)
        if module is None or module.image is None:
            return None
        vaddr = module.to_vaddr(page)
        for segment in module.image.segments:
            if segment.executable and segment.vaddr <= vaddr < segment.vaddr + segment.file_size:
                return module.to_pc(segment.vaddr), segment.data
        return None


class RemoteStepper(Stepper):
    """A program behind a GDB stub. `source` stands at its first instruction.

    Which modules there are is looked up again when the program comes where none was.
    """

    def __init__(self, source: RemoteSource, files: Files):
        assert source.stop.thread is not None, "a stub that names the thread that stopped"
        self.arch = source.arch
        self.source = source
        self.decoder = Decoder(self.arch)
        self.space = source.space
        self._files = files
        self._thread = source.stop.thread
        self._nowhere: set[int] = set()  # pages where the program was and no module is
        self._stub = self.memory = _StubMemory(source.memory, source.space)
        self.registers = source.reader.read(self._thread)

    def step(self) -> bool:
        """Execute one instruction, or enter a signal's handler; False once all is over."""
        self.delivered = self.halted
        stop = self.source.client.step(self._thread, self.halted)
        if stop.ended:
            return False
        self.halted = stop.signal if stop.signal not in (0, _GDB_TRAP) else 0
        self.source.memory.forget()
        self.registers = self.source.reader.read(self._thread)
        pc = self.registers[self.arch.pc]
        if self.space.find(pc) is None and pc & -_PAGE not in self._nowhere:
            self.source.update(self._files)
            self._stub.forget_code()
            self._nowhere.add(pc & -_PAGE)
        return True

    def run_to(self, address: int) -> None:
        """By a breakpoint of the stub."""
        client = self.source.client
        size = min(self.arch.call_size, 4)
        if client.connection.ask(b"Z0,%x,%x" % (address, size)) != b"OK":
            raise UnwindError("the stub has no breakpoints")
        client.resume()
        if client.wait(client.connection.timeout).ended:
            raise EOFError(f"the program ends before {address:#x}")
        client.connection.ask(b"z0,%x,%x" % (address, size))
        self.source.memory.forget()
        self.registers = self.source.reader.read(self._thread)
        self.source.update(self._files)
        self._stub.forget_code()


_PIECE = 512
_MOST_REMOTE_STACK = 1 << 14
_GDB_TRAP = 5
_RAX = 0
_MAPPING = frozenset((9, 10, 11, 25))  # mmap mprotect munmap mremap of x86_64
