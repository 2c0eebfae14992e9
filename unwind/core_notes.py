"""A core's notes in; threads with their registers, signal, command, auxv and mapped files out."""

from __future__ import annotations

import os
from struct import Struct

from unwind.errors import UnsupportedArchitecture
from unwind.mappings import Mapping
from unwind.registers import Recorded
from unwind.values import Value

__all__ = ["CoreNotes", "ThreadNote", "read_auxv", "read_notes", "read_siginfo"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unwind.architecture import Architecture, Layout
    from unwind.elf import Elf
    from unwind.registers import Registers


class _NT:
    """Note types of owner CORE (Linux v6.13 include/uapi/linux/elf.h)."""

    PRSTATUS, PRPSINFO, AUXV = 1, 3, 6
    SIGINFO, FILE = 0x5349_4749, 0x4649_4C45


_WANTED = frozenset((_NT.PRSTATUS, _NT.PRPSINFO, _NT.AUXV, _NT.SIGINFO, _NT.FILE))

# Signals that carry an address: ILL, TRAP, FPE, SEGV; BUS is 7, on MIPS 10.
_FAULTS = frozenset((4, 5, 7, 8, 10, 11))
_SI_KERNEL = 0x80


class ThreadNote(Value):
    """One NT_PRSTATUS: a thread, and the signal that it was stopped with (0: none)."""

    tid: int
    signal: int
    registers: Recorded | Registers


class CoreNotes:
    """What the notes of a core tell; what they lack is None or empty.

    `signal` is (number, code, address), where code is None without NT_SIGINFO and address None
    unless it was a fault. `files` is None where there is no NT_FILE.
    """

    def __init__(self) -> None:
        self.threads: list[ThreadNote] = []
        self.pid: int | None = None
        self.name = ""
        self.command = ""
        self.signal: tuple[int, int | None, int | None] | None = None
        self.auxv: dict[int, int] = {}
        self.pac_mask = 0  # the bits of a return address that hold its authentication code
        self.files: list[Mapping] | None = None
        self.files_cut = False  # some of them are missing
        self.warnings: list[str] = []


def read_notes(elf: Elf, arch: Architecture) -> CoreNotes:
    """Everything that the notes of the core `elf` tell, as far as they are there."""
    notes = CoreNotes()
    readers: dict[int, Callable[[memoryview], ThreadNote]] = {}
    siginfo = None
    for note in elf.notes(_WANTED | {arch.pac_mask_note}):
        kind, data = note.type, note.data
        if note.name != b"CORE":
            if note.name == b"LINUX" and kind == arch.pac_mask_note and len(data) >= 16:
                # Linux v6.13 struct user_pac_mask: data_mask, insn_mask
                notes.pac_mask = notes.pac_mask or int.from_bytes(data[8:16], arch.byteorder)
            continue
        if kind == _NT.PRSTATUS:
            reader = readers.get(len(data))
            if reader is None:
                reader = readers[len(data)] = _thread_reader(arch, len(data))
            notes.threads.append(reader(data))
        elif kind == _NT.PRPSINFO:
            _read_process(notes, data, arch)
        elif kind == _NT.SIGINFO:
            siginfo = siginfo or bytes(data)  # gdb writes one for each thread
        elif kind == _NT.AUXV:
            notes.auxv = read_auxv(data, arch)
        elif kind == _NT.FILE:
            notes.files = _files(notes, data, arch)
    _check_records(notes, readers, arch)
    notes.signal = _signal(notes.threads, siginfo, arch)
    return notes


def _check_records(
    notes: CoreNotes, readers: dict[int, Callable[[memoryview], ThreadNote]], arch: Architecture
) -> None:
    for size in readers:
        if size < _prstatus(arch, size).size:
            notes.warnings.append(f"the registers of some threads are cut short: {size} bytes")


def _prstatus(arch: Architecture, size: int) -> Layout:
    """The layout of an NT_PRSTATUS of `size` bytes: other writers than Linux have their own."""
    for name, layout in arch.layouts.items():
        if name.endswith(".prstatus") and layout.size == size:
            return layout
    if "linux.prstatus" not in arch.layouts:
        raise UnsupportedArchitecture(f"{arch.name}, of which no layout of NT_PRSTATUS is known")
    return arch.layouts["linux.prstatus"]


def _thread_reader(arch: Architecture, size: int) -> Callable[[memoryview], ThreadNote]:
    """What turns an NT_PRSTATUS of `size` bytes into a ThreadNote, made once for 1,000 threads."""
    layout, order = _prstatus(arch, size), "<" if arch.byteorder == "little" else ">"
    signal_at, pid_at = layout.signal or 0, layout.pid or 0
    signal_in, tid_in = Struct(order + "H").unpack_from, Struct(order + "I").unpack_from
    registers_of = _register_reader(arch, layout, size)
    missing = bytes(max(signal_at + 2 - size, pid_at + 4 - size, 0))  # of a record that is cut

    def read(data: memoryview) -> ThreadNote:
        whole = bytes(data) + missing if missing else data
        (signal,), (tid,) = signal_in(whole, signal_at), tid_in(whole, pid_at)
        return ThreadNote(tid, signal, registers_of(data))

    return read


def _register_reader(
    arch: Architecture, layout: Layout, size: int
) -> Callable[[memoryview], Recorded | Registers]:
    """As `arch.registers`, but each register is read when it is wanted, if the record is whole."""
    code = {4: "I", 8: "Q"}.get(layout.width)
    if code is None or max(layout.offsets.values()) + layout.width > size:
        return lambda data: arch.registers(layout, data)
    read = Struct(("<" if arch.byteorder == "little" else ">") + code).unpack_from
    return lambda data: Recorded(bytes(data), layout.offsets, read)


def _read_process(notes: CoreNotes, data: memoryview, arch: Architecture) -> None:
    """NT_PRPSINFO ends in pid, ppid, pgrp, sid, fname[16], psargs[80] whatever comes before."""
    at = len(data) - 112
    if at < 0:
        notes.warnings.append("the note on the process (NT_PRPSINFO) is cut short")
        return
    notes.pid = int.from_bytes(data[at : at + 4], arch.byteorder)
    notes.name = _text(data[at + 16 : at + 32])
    notes.command = _text(data[at + 32 :]).strip()


def _signal(
    threads: list[ThreadNote], siginfo: bytes | None, arch: Architecture
) -> tuple[int, int | None, int | None] | None:
    """The signal of the first thread: that one ended the process.

    gdb's gcore of a running process writes its own SIGSTOP into NT_SIGINFO, but no signal into
    NT_PRSTATUS: such a process was not ended by one.
    """
    number = threads[0].signal if threads else 0
    found = read_siginfo(siginfo, arch) if siginfo is not None else None
    if found is None or (threads and found[0] != number):
        return (number, None, None) if number else None
    return found


def read_siginfo(data: bytes, arch: Architecture) -> tuple[int, int, int | None] | None:
    """Number, code and, of a fault, address of a siginfo_t; None where it is cut short."""
    if len(data) < 12:
        return None
    order = arch.byteorder
    number = int.from_bytes(data[:4], order, signed=True)
    at = 4 if arch.swapped_siginfo else 8
    code = int.from_bytes(data[at : at + 4], order, signed=True)
    address = None
    # Linux v6.13 kernel/signal.c siginfo_layout(): only codes between SI_USER and SI_KERNEL
    # come with the fields of their signal.
    if number in _FAULTS and 0 < code < _SI_KERNEL:
        at = 16 if arch.word == 8 else 12
        word = data[at : at + arch.word]
        address = int.from_bytes(word, order) if len(word) == arch.word else None
    return number, code, address


def _words(data: bytes | memoryview, arch: Architecture) -> tuple[int, ...]:
    """The words of `data`, a rest at its end left out."""
    size = arch.word
    count = len(data) // size
    order = "<" if arch.byteorder == "little" else ">"
    return Struct(f"{order}{count}{'Q' if size == 8 else 'I'}").unpack_from(data)


def read_auxv(data: bytes | memoryview, arch: Architecture) -> dict[int, int]:
    """The auxiliary vector, up to its AT_NULL."""
    words = _words(data, arch)
    found: dict[int, int] = {}
    for key, value in zip(words[::2], words[1::2], strict=False):
        if key == 0:  # AT_NULL
            break
        found.setdefault(key, value)
    return found


def _files(notes: CoreNotes, data: memoryview, arch: Architecture) -> list[Mapping]:
    """NT_FILE: count, page size, three words for each mapping, then the names.

    Linux v6.13 fs/binfmt_elf.c fill_files_note().
    """
    word = arch.word
    head = _words(data[: 2 * word], arch)
    if len(head) < 2:
        notes.warnings.append("the note on the mapped files (NT_FILE) is cut short")
        notes.files_cut = True
        return []
    count, unit = head
    rows = min(count, len(data) // (3 * word))
    table = _words(data[2 * word : (2 + 3 * rows) * word], arch)
    names = bytes(data[(2 + 3 * count) * word :]).split(b"\0", len(data))
    known: dict[bytes, str] = {}
    found: list[Mapping] = []
    for start, end, offset, name in zip(table[::3], table[1::3], table[2::3], names, strict=False):
        if name and start < end:
            text = known.get(name) or known.setdefault(name, os.fsdecode(name))
            found.append(Mapping(start, end, offset * unit, text))
    notes.files_cut = len(found) < count
    if notes.files_cut:
        missing = count - len(found)
        notes.warnings.append(f"{missing} of {count} mapped files (NT_FILE) are cut off or broken")
    return sorted(found, key=lambda file: file.start)


def _text(data: memoryview) -> str:
    return os.fsdecode(bytes(data).partition(b"\0")[0])
