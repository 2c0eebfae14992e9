"""Records of the ring buffer in, events out, as the struct of bpf/event.h has them.

Offsets, and the numbers of flags, come from the .BTF of the object whose programs wrote them.
"""

from __future__ import annotations

import os
from struct import Struct

from unwind.bpf.btf import Btf
from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.registers import Registers

__all__ = ["Event", "EventLayout", "read_layout"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from unwind.architecture import Architecture
    from unwind.bpf.btf import Member

VERSION = 1
_PAGE = 4096
_NOTHING = memoryview(b"")
_CODES = {4: "I", 8: "Q", 16: "16s"}
_FIELDS = (
    *("version", "arch", "pid", "tid", "comm", "time", "cookie", "ip", "flags"),
    *("stack_length", "stack_start"),
)


class Event:
    """One event. `registers` are the user's, none where he has none; `stack` lies at `start`.

    `time` is in nanoseconds of CLOCK_MONOTONIC, `ip` the kernel's place, 0 where the event is the
    user's own. `is_kernel_thread`, `is_compat` (a 32-bit task): there is nothing to unwind.
    `cut`: the copy of the stack ends where a page could not be read.
    """

    __slots__ = (
        *("comm", "cookie", "cut", "ip", "is_compat", "is_kernel_thread", "pid", "registers"),
        *("stack", "start", "tid", "time"),
    )

    def __init__(
        self,
        pid: int,
        tid: int,
        comm: str,
        time: int,
        *,
        registers: Mapping[int, int],
        start: int = 0,
        stack: memoryview = _NOTHING,
        ip: int = 0,
        cookie: int = 0,
        cut: bool = False,
        is_kernel_thread: bool = False,
        is_compat: bool = False,
    ):
        self.pid, self.tid, self.comm, self.time = pid, tid, comm, time
        self.registers, self.start, self.stack = registers, start, stack
        self.ip, self.cookie, self.cut = ip, cookie, cut
        self.is_kernel_thread, self.is_compat = is_kernel_thread, is_compat


class EventLayout:
    """Where the fields of a record lie. FormatError for BTF without a struct event like ours."""

    def __init__(self, btf: Btf, arch: Architecture):
        self.arch = arch
        event, registers = btf.struct("event"), btf.struct("registers")
        members = event.members
        missing = {*_FIELDS, "registers", "stack"} - members.keys()
        if missing:
            raise FormatError(f"struct event has no {min(missing)!r}", ".BTF")
        version = btf.enum("event_version").get("EVENT_VERSION")
        if version != VERSION:
            raise FormatError(f"its events are of version {version}, not {VERSION}", ".BTF")
        self.size = members["stack"].offset
        order = "<" if arch.byteorder == "little" else ">"
        self._head, self._places = _fields(members, order)
        self._read = Struct(order + "Q").unpack_from
        self._offsets: dict[int, int] = {}
        for name, member in registers.members.items():
            number = arch.register_number(name)
            if number is None or member.size != 8:
                raise FormatError(f"{arch.name} has no register {name!r} of 8 bytes", ".BTF")
            self._offsets[number] = members["registers"].offset + member.offset
        if arch.pc not in self._offsets or arch.sp not in self._offsets:
            raise FormatError("struct registers has no program counter or stack pointer", ".BTF")
        flags = btf.enum("event_flag")
        self.kernel_thread = flags.get("EVENT_KERNEL_THREAD", 0)
        self.compat = flags.get("EVENT_COMPAT", 0)
        self.cut = flags.get("EVENT_CUT", 0)
        self.syscall = flags.get("EVENT_SYSCALL_REGISTERS", 0)
        # What a system call saves of the registers leaves out those that a call preserves.
        self._lost = [arch.register_number(f"s{n}") for n in range(9)] if self.syscall else []

    def decode(self, data: bytes) -> Event:
        """The event in a record; FormatError for one that no program of ours can have sent."""
        if len(data) < self.size:
            raise FormatError("a record is shorter than an event", "the ring buffer")
        found = self._head.unpack_from(data)
        fields = [found[place] for place in self._places]
        version, machine, pid, tid, comm, time, cookie, ip, flags, length, start = fields
        if version != VERSION:
            raise FormatError("an event of another version", "the ring buffer")
        if machine != self.arch.machine:
            raise FormatError("an event of another architecture", "the ring buffer")
        if length > len(data) - self.size or length % _PAGE or start % _PAGE:
            raise FormatError("an event's stack is not as long as it says", "the ring buffer")
        if not 0 < pid < 1 << 31 or not 0 < tid < 1 << 31:
            raise FormatError("an event of no process", "the ring buffer")
        has_user = not flags & (self.kernel_thread | self.compat)
        return Event(
            pid,
            tid,
            os.fsdecode(comm.partition(b"\0")[0]),
            time,
            registers=self._registers(data, flags) if has_user else Registers(),
            start=start,
            # What lies behind it is left from older events.
            stack=memoryview(data)[self.size : self.size + (length if has_user else 0)],
            ip=ip,
            cookie=cookie,
            cut=bool(flags & self.cut),
            is_kernel_thread=bool(flags & self.kernel_thread),
            is_compat=bool(flags & self.compat),
        )

    def _registers(self, data: bytes, flags: int) -> Registers:
        read = self._read
        found = Registers({n: read(data, offset)[0] for n, offset in self._offsets.items()})
        for number in self._lost if flags & self.syscall else ():
            found.pop(number, 0)  # type: ignore[arg-type]
        return found


def read_layout(elf: Elf, arch: Architecture) -> tuple[EventLayout, Btf]:
    """The layout of the events that the programs of an object send, and all of its types."""
    section = elf.section(".BTF")
    if section is None:
        raise FormatError("it has no section .BTF: no BPF object, or built without -g", elf.path)
    btf = Btf(elf.data(section), elf.header.byteorder)
    return EventLayout(btf, arch), btf


def _fields(members: Mapping[str, Member], order: str) -> tuple[Struct, list[int]]:
    """What unpacks the fields of a record, and where those of _FIELDS are in what comes out."""
    names = sorted(_FIELDS, key=lambda name: members[name].offset)
    form, at = order, 0
    for name in names:
        member = members[name]
        code = _CODES.get(member.size)
        if code is None or member.offset < at:
            raise FormatError(f"struct event has an odd field {name!r}", ".BTF")
        form += f"{member.offset - at}x{code}"
        at = member.offset + member.size
    return Struct(form), [names.index(name) for name in _FIELDS]
