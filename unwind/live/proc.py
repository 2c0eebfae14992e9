"""/proc/PID: a process' id in; what the kernel says of it, its threads and its mappings out.

The directory is held open: what is read comes from that process, or fails, even if its id is
given to another one.
"""

from __future__ import annotations

import os

from unwind.values import Value

__all__ = ["Mapped", "Proc", "Status", "mapped"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_LARGEST = 1 << 26  # bytes of one file: 65,530 mappings, each with a long name, fit
_KTHREAD = 0x0020_0000  # PF_KTHREAD: Linux v6.13 include/linux/sched.h


class Mapped(Value):
    """A line of /proc/PID/maps: [start, end) maps `name` from byte `offset` on.

    `rights` are four letters: r or -, w or -, x or -, p or s. `inode` is 0 where no file is mapped.
    """

    start: int
    end: int
    rights: str
    offset: int
    inode: int
    name: str

    @property
    def readable(self) -> bool:
        """Whether the process itself may read there."""
        return self.rights[:1] == "r"

    @property
    def writable(self) -> bool:
        """Whether the process may change what lies there."""
        return self.rights[1:2] == "w"

    @property
    def executable(self) -> bool:
        """Whether code may run there."""
        return self.rights[2:3] == "x"


class Status(Value):
    """Some of /proc/PID/task/TID/status and stat. `tracer` is 0 where nobody traces the thread.

    `switches` counts how often it gave up its processor, or lost it.
    """

    name: str
    pid: int
    parent: int
    state: str  # R, S, D, T, t, Z, X, ...
    tracer: int
    uid: int
    permitted: int  # capabilities, a bit for each
    seccomp: int
    switches: int

    @property
    def dead(self) -> bool:
        """Whether it has ended, and only waits to be forgotten."""
        return self.state in ("Z", "X")


class Proc:
    """One process. Every method raises OSError where /proc has no answer (any more).

    `through` is a thread that lives, where the leader has ended: the memory and the files of the
    process are to be seen from such a thread only.
    """

    def __init__(self, pid: int, through: int | None = None):
        self.pid = pid
        self.through = through or pid
        self.directory = f"/proc/{self.through}"
        self._open: list[int] = []
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._directory = os.open(self.directory, flags)
        self._open.append(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        while self._open:
            os.close(self._open.pop())

    def read(self, name: str) -> bytes:
        """A file of the directory, up to a bound."""
        handle = self.open(name)
        try:
            pieces: list[bytes] = []
            while sum(map(len, pieces)) < _LARGEST and (piece := os.read(handle, 1 << 16)):
                pieces.append(piece)
        finally:
            os.close(handle)
        return b"".join(pieces)

    def open(self, name: str) -> int:
        """A descriptor of a file of the directory, for the caller to close."""
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)

    def memory(self) -> int:
        """A descriptor of the memory, for as long as this is open; -1 where it may not be had.

        It belongs to the program that runs now, and reads as empty once that is gone. To open it
        takes more than to trace: a process with CAP_SYS_PTRACE alone is no owner of the file.
        """
        try:
            handle = self.open("mem")
        except PermissionError:
            return -1
        self._open.append(handle)
        return handle

    def auxv(self) -> bytes:
        """The auxiliary vector; b"" where it may not be had, as of `memory`."""
        try:
            return self.read("auxv")
        except PermissionError:
            return b""

    def stat(self, name: str) -> os.stat_result:
        """What a file of the directory is; links are followed."""
        return os.stat(name, dir_fd=self._directory)

    def threads(self) -> list[int]:
        """The ids of the threads that there are now, the leader's first."""
        handle = os.open("task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
        try:
            found = [int(name) for name in os.listdir(handle)]
        finally:
            os.close(handle)
        return sorted(found, key=lambda tid: (tid != self.pid, tid))

    def status(self, tid: int | None = None) -> Status:
        """What /proc tells of a thread; None: of the leader."""
        fields: dict[str, str] = {}
        for line in (
            self.read(f"task/{tid or self.pid}/status").decode(errors="replace").split("\n")
        ):
            key, _, value = line.partition(":")
            fields.setdefault(key, value.strip())

        def number(key: str, base: int = 10) -> int:
            words = fields.get(key, "").split()
            return int(words[0], base) if words else 0

        return Status(
            fields.get("Name", ""),
            number("Tgid"),
            number("PPid"),
            fields.get("State", "")[:1],
            number("TracerPid"),
            number("Uid"),
            number("CapPrm", 16),
            number("Seccomp"),
            number("voluntary_ctxt_switches") + number("nonvoluntary_ctxt_switches"),
        )

    def is_dead(self, tid: int) -> bool:
        """Whether a thread has ended, be there a trace of it or not."""
        try:
            return self.status(tid).dead
        except OSError:
            return True

    def name(self, tid: int) -> str:
        """What a thread calls itself: at most 15 bytes."""
        return os.fsdecode(self.read(f"task/{tid}/comm").removesuffix(b"\n"))

    def command(self) -> str:
        """The command line, its words divided by blanks; "" where there is none."""
        return os.fsdecode(self.read("cmdline").rstrip(b"\0").replace(b"\0", b" "))

    def is_kernel_thread(self) -> bool:
        """Whether it is a thread of the kernel, which has no memory of its own."""
        words = self.read("stat").rpartition(b")")[2].split()
        return bool(int(words[6]) & _KTHREAD)  # field 9 of proc(5); the third is words[0]

    def mappings(self) -> list[Mapped]:
        """What is mapped now, ascending."""
        return list(mapped(self.read("maps")))


def mapped(text: bytes) -> Iterator[Mapped]:
    """The lines of /proc/PID/maps."""
    for line in os.fsdecode(text).split("\n"):
        words = line.split(None, 5)
        if len(words) < 5:
            continue
        start, _, end = words[0].partition("-")
        name = words[5].replace("\\012", "\n") if len(words) > 5 else ""  # proc(5)
        yield Mapped(int(start, 16), int(end, 16), words[1], int(words[2], 16), int(words[4]), name)
