"""A process' id in; the user's registers of its threads, as the kernel keeps them, out.

By a BPF iterator: nobody is stopped, and nothing is attached to what runs.
"""

from __future__ import annotations

from unwind.bpf.libbpf import BpfObject
from unwind.bpf.objects import built_in
from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.events.event import read_layout
from unwind.events.settings import settings
from unwind.registers import Registers

__all__ = ["task_registers"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.architecture import Architecture


def task_registers(arch: Architecture, pid: int) -> dict[int, Registers]:
    """The registers by the ids of threads: those of a thread that runs are old ones.

    SourceError where what that takes is not installed or not permitted.
    """
    path = built_in(arch.name, "tasks")
    with open(path, "rb") as file:
        data = file.read()
    layout, btf = read_layout(Elf(data, path), arch)
    with BpfObject(data, path) as object:
        object.preset(".rodata", settings(btf, pid=pid))
        object.resize("events", 1 << 12)  # no program of ours sends anything there
        object.load(["on_task"])
        link = object.programs["on_task"].attach_iterator()
        try:
            found = link.read()
        finally:
            link.close()
    if len(found) % layout.size:
        raise FormatError("a record is shorter than an event", "the iterator")
    pieces = [found[at : at + layout.size] for at in range(0, len(found), layout.size)]
    events = [layout.decode(piece) for piece in pieces]
    return {event.tid: Registers(event.registers) for event in events if not event.is_compat}
