"""What tests of kernel events share: a built object, and whether this kernel takes it."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ROOT, cannot, need, need_root
from unwind.architecture import Architecture
from unwind.bpf.btf import Btf
from unwind.bpf.libbpf import load_library
from unwind.bpf.objects import built_in
from unwind.cli import live as unwind_live
from unwind.cli.stacks import files_of
from unwind.elf import Elf
from unwind.errors import SourceError
from unwind.events.event import Event, EventLayout, read_layout
from unwind.transports.ring_buffer import TRANSPORT, RingBufferSource, RingOptions

EXIT = "do_exit"  # where a kernel has no kprobes: the tracepoint
PATIENCE = 10.0  # seconds


@functools.cache
def objects_built() -> None:
    """`make bpf`: builds what is older than its sources. Skips the test without clang."""
    need("clang", "make")
    subprocess.run(["make", "-s", "-C", ROOT / "bpf"], check=True, stdout=subprocess.DEVNULL)


def need_bpf() -> None:
    """Skips the test where no BPF program can be loaded."""
    need_root()
    objects_built()
    try:
        load_library()
    except SourceError as error:
        cannot(f"{error} ({error.hint})")


def types_of(arch: Architecture) -> tuple[EventLayout, Btf]:
    """What the object for an architecture says of its events."""
    objects_built()
    path = built_in(arch.name)
    return read_layout(Elf(Path(path).read_bytes(), path), arch)


def record(
    arch: Architecture,
    registers: Mapping[int, int],
    stack: bytes = b"",
    behind: bytes = b"",
    /,
    **fields: int,
) -> bytes:
    """A record as a program of that architecture sends it, laid out by its object's .BTF.

    `fields` are members of struct event that are not as a plain event has them.
    """
    _, btf = types_of(arch)
    event, known = btf.struct("event"), btf.struct("registers")
    start = registers.get(arch.sp, 0) & -4096
    values = {"version": 1, "arch": arch.machine, "pid": 7, "tid": 8, "time": 9, "cookie": 10}
    values |= {"stack_length": len(stack), "stack_start": start}
    made = bytearray(event.size)
    for name, value in {**values, **fields}.items():
        member = event.members[name]
        made[member.offset : member.offset + member.size] = value.to_bytes(
            member.size, arch.byteorder
        )
    comm = event.members["comm"].offset
    made[comm : comm + 16] = b"program".ljust(16, b"\0")
    at = event.members["registers"].offset
    for name, member in known.members.items():
        number = arch.register_number(name)
        assert number is not None
        word = registers.get(number, 0).to_bytes(8, arch.byteorder)
        made[at + member.offset : at + member.offset + 8] = word
    return bytes(made) + stack + behind


@contextmanager
def caught(place: str = EXIT, *options: str, **more: Any) -> Iterator[RingBufferSource]:
    """The events at a place; `options` are those of a command that looks for files."""
    files = files_of(unwind_live.parser().parse_args(["1", *options]))  # type: ignore[arg-type]
    with files, TRANSPORT.open(place, files, RingOptions(**more)) as source:
        yield source


def collect(source: RingBufferSource, wanted: set[int]) -> dict[int, Event]:
    """The events of these threads, each looked at when it is its turn."""
    found: dict[int, Event] = {}
    for event in source.events(PATIENCE):
        if event.tid in wanted:
            found[event.tid] = event
            if found.keys() == wanted:
                break
    return found
