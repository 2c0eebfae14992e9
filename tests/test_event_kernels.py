"""Events of arm64 and mips: threads of cores that real kernels wrote, as BPF would send them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests import kernel
from tests.crashes import Crash
from tests.events import record, types_of
from tests.foreign import Target
from unwind.architecture import Architecture
from unwind.errors import MemoryFault
from unwind.events.event import Event
from unwind.events.memory import EventMemory
from unwind.files import Files
from unwind.frames import Stack
from unwind.snapshot import Snapshot
from unwind.transports.core import TRANSPORT
from unwind.unwinder import unwind

TARGETS = {machine.name: machine.target for machine in kernel.MACHINES}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def crashes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Crash]:
    target: Target = TARGETS[request.param]
    return kernel.kept(target, tmp_path_factory.mktemp(request.param))


def threads(crash: Crash) -> Iterator[Snapshot]:
    sysroot = crash.options[crash.options.index("--sysroot") + 1]
    with Files(sysroot=sysroot) as files, TRANSPORT.open(str(crash.core), files) as core:
        yield from core.threads


def event_of(thread: Snapshot, arch: Architecture, pages: int, **fields: int) -> Event:
    """What a program in the kernel would have sent of a thread of a core."""
    layout, _ = types_of(arch)
    copied: list[bytes] = []
    at = thread.registers[arch.sp] & -4096
    try:
        while len(copied) < pages:
            copied.append(thread.memory.read(at + 4096 * len(copied), 4096))
    except MemoryFault:
        fields["flags"] = fields.get("flags", 0) | layout.cut
    return layout.decode(record(arch, thread.registers, b"".join(copied), **fields))


def walked(thread: Snapshot, event: Event) -> Stack:
    memory = EventMemory(event, thread.space)
    return unwind(Snapshot(event.registers, memory, thread.space, thread.tid, thread.pid))


def test_each_stack_of_an_event_is_that_of_the_core(crashes: list[Crash]) -> None:
    """What ends earlier says that a page is needed which lies on no stack, or on another one."""
    ends: Counter[str] = Counter()
    for crash in crashes:
        for thread in threads(crash):
            arch = thread.space.arch
            truth, found = unwind(thread), walked(thread, event_of(thread, arch, 64))
            pcs = [frame.pc for frame in found.frames]
            assert pcs == [frame.pc for frame in truth.frames][: len(pcs)], crash.case.name
            whole = len(pcs) == len(truth.frames) and found.end == truth.end
            ends["whole" if whole else found.end] += 1
            # A register that was saved on another stack is unknown, too.
            lacks_memory = "cannot read" in found.detail or found.end == "unknown-register"
            assert whole or lacks_memory, found.detail
    assert ends["whole"] > 0.8 * sum(ends.values()) > 20, ends


def test_a_copy_that_is_cut_says_so(crashes: list[Crash]) -> None:
    """Of one page each: no frame is wrong, and who has a deeper stack is told to copy more."""
    cut = 0
    for crash in crashes:
        for thread in threads(crash):
            found = walked(thread, event_of(thread, thread.space.arch, 1))
            pcs = [frame.pc for frame in found.frames]
            assert pcs == [frame.pc for frame in unwind(thread).frames][: len(pcs)]
            cut += "--stack-size" in found.detail
    assert cut > 0


def test_without_what_a_system_call_does_not_save_no_frame_is_wrong(crashes: list[Crash]) -> None:
    """mips: s0 to s8 are unknown. A walk goes on by sp, or ends and says which is needed."""
    told: Counter[str] = Counter()
    for crash in crashes:
        for thread in threads(crash):
            arch = thread.space.arch
            _, btf = types_of(arch)
            if not arch.name.startswith("mips"):
                continue
            flag = btf.enum("event_flag")["EVENT_SYSCALL_REGISTERS"]
            event = event_of(thread, arch, 64, flags=flag)
            assert not {arch.register_number(f"s{n}") for n in range(9)} & set(event.registers)
            found, truth = walked(thread, event), unwind(thread)
            pcs = [frame.pc for frame in found.frames]
            assert pcs == [frame.pc for frame in truth.frames][: len(pcs)], crash.case.name
            told[found.end] += 1
    if told:
        assert told["outermost"] > 10, told
        assert set(told) <= {"outermost", "unknown-register", "memory-fault"}, told


def test_each_stack_of_an_event_is_as_the_program_recorded_it(crashes: list[Crash]) -> None:
    """Of those that are complete: by the record that the programs kept of their own calls."""
    compared = 0
    for crash in crashes:
        for thread in threads(crash):
            stack = walked(thread, event_of(thread, thread.space.arch, 64))
            truth = crash.stacks[thread.tid]
            if stack.end != "outermost" or any(frame.span for frame in truth.frames):
                continue
            pcs = [frame.pc for frame in stack.frames]
            known = [frame.pc for frame in truth.frames]
            assert len(pcs) == len(known), crash.case.name
            for found, recorded in zip(pcs, known, strict=True):
                assert recorded in (None, found), crash.case.name
            compared += 1
    assert compared > 10
