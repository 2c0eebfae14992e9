"""The transport: recordings of other machines and byte orders, with any fields, in any order."""

from __future__ import annotations

import gc
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.recordings import shipped
from unwind.arch.x86_64 import ARCH, RIP, RSP
from unwind.cli.perf import main
from unwind.elf import PT, Elf
from unwind.errors import SourceError
from unwind.files import Files
from unwind.frames import End
from unwind.perf.constants import CONTEXT, FEATURE, SAMPLE
from unwind.perf.header import Header
from unwind.perf.kallsyms import read_kallsyms, recorded_kallsyms
from unwind.sampling import Sampler, split_callchain
from unwind.testing.chains import Chain
from unwind.testing.images import FIRST, image
from unwind.testing.recording_files import FIELDS, Recording, Sampled
from unwind.testing.snapshots import chains
from unwind.transports.perf_data import TRANSPORT, PerfSource
from unwind.unpack import Input
from unwind.unwinder import Unwinder

if TYPE_CHECKING:
    from unwind.perf.samples import Sample
    from unwind.sampling import Walked

KERNEL_CHAIN = (CONTEXT.kernel, 0xFFFF_FFFF_8100_0010, 0xFFFF_FFFF_8100_0020)


def walked(data: bytes) -> tuple[PerfSource, list[tuple[Sample, Walked]]]:
    """The samples of a recording, and their stacks."""
    with Files() as files, TRANSPORT.read(Input(data), "perf.data", files) as source:
        sampler = Sampler(source.snapshot, Unwinder(source.arch))
        found = [(sample, sampler.walk(sample)) for sample in source.samples()]
    return source, found


@given(
    chains(signals=False),
    st.lists(st.sampled_from(FIELDS), unique=True),
    st.integers(0, 31),
    st.booleans(),
)
def test_a_built_stack_is_found_on_every_machine(
    tmp_path_factory: pytest.TempPathFactory,
    made: Chain,
    fields: Sequence[int],
    read_format: int,
    is_stream: bool,
) -> None:
    arch = made.dialect.arch
    known = arch.layouts["perf"].offsets
    registers = tuple(number for number in made.registers if number in known)
    if len(made.stacks) != 1 or arch.sp not in registers or arch.pc not in registers:
        return  # a sample has one piece of a stack
    [(start, stack)] = made.stacks
    sp = arch.data_address(made.registers[arch.sp])
    library = tmp_path_factory.getbasetemp() / "chain.so"
    file = image(made)
    library.write_bytes(file)
    stack = stack[sp - start :]
    built = Recording(arch, sum(fields), -(-len(stack) // 8) * 8, read_format=read_format)
    built.registers = registers
    built.comm(7, 7, 1, "chain", exec=True)
    built.mapping(7, 2, FIRST + made.bias, -(-len(file) // 4096) * 4096, str(library))
    built.sample(Sampled(7, 7, 3, made.registers, stack, callchain=KERNEL_CHAIN))
    source, [(sample, (pcs, end, _, _))] = walked(built.build(is_stream))
    assert source.warnings == []
    assert (source.arch.name, sample[0].comm, sample[1]) == (arch.name, "chain", 3)
    kernel = split_callchain(sample[5])[0]
    assert kernel == (KERNEL_CHAIN[1:] if SAMPLE.callchain in fields else ())
    needed = set(arch.names) & set(registers) >= {arch.fp} | {arch.sp}
    if end == End.OUTERMOST and needed:
        assert pcs == [frame.pc for frame in made.frames]
    assert pcs == [frame.pc for frame in made.frames][: len(pcs)]


def plain() -> Recording:
    """A recording of x86_64 whose samples have no more registers than two."""
    return Recording(ARCH, 0, 64, registers=(RSP, RIP))


def at(built: Recording, pid: int, time: int, pc: int) -> None:
    built.sample(Sampled(pid, pid, time, {RSP: 0x7FFE_0000, RIP: pc}, bytes(64)))


def where(data: bytes) -> list[tuple[int, str | None, str | None]]:
    """Of each sample its time, the name of its thread, and what lies at its pc."""
    found = []
    with Files() as files, TRANSPORT.read(Input(data), "perf.data", files) as source:
        for sample in source.samples():
            region = sample[6].region(sample[7])
            found.append((sample[1], sample[0].comm, region.name if region else None))
    return found


def test_samples_come_in_the_order_of_time_round_by_round() -> None:
    built = plain()
    built.comm(7, 7, 1, "a")
    for times in ((50, 90), (40, 120), (100, 130), (125,)):
        for time in times:
            at(built, 7, time, 0x1000)
        built.round()
    assert [time for time, _, _ in where(built.build())] == [40, 50, 90, 100, 120, 125, 130]


def test_a_mapping_takes_the_place_of_what_was_there() -> None:
    built = plain()
    built.mapping(7, 1, 0x1000, 0x4000, "//one")
    at(built, 7, 2, 0x2000)
    built.mapping(7, 3, 0x2000, 0x1000, "//two")
    for time, pc in ((4, 0x1FFF), (5, 0x2000), (6, 0x2FFF), (7, 0x3000), (8, 0x5000)):
        at(built, 7, time, pc)
    names = [name for _, _, name in where(built.build())]
    assert names == ["//one", "//one", "//two", "//two", "//one", None]


def test_a_child_inherits_and_an_exec_drops() -> None:
    built = plain()
    built.comm(7, 7, 1, "parent")
    built.mapping(7, 2, 0x1000, 0x1000, "//parents")
    built.fork(8, 8, 7, 3)
    at(built, 8, 4, 0x1000)
    built.mapping(8, 5, 0x1000, 0x1000, "//childs")
    at(built, 7, 6, 0x1000)
    at(built, 8, 7, 0x1000)
    built.fork(9, 9, 8, 8)
    built.comm(8, 8, 9, "other", exec=True)
    at(built, 8, 10, 0x1000)
    at(built, 9, 11, 0x1000)
    assert where(built.build()) == [
        (4, "parent", "//parents"),
        (6, "parent", "//parents"),
        (7, "parent", "//childs"),
        (10, "other", None),
        (11, "parent", "//childs"),
    ]


def test_a_space_is_extended_and_shared_but_never_changed() -> None:
    built = plain()
    built.mapping(7, 1, 0x1000, 0x1000, "//one")
    at(built, 7, 2, 0x1000)
    built.mapping(7, 3, 0x3000, 0x1000, "//two")
    at(built, 7, 4, 0x3000)
    built.fork(8, 8, 7, 5)
    at(built, 8, 6, 0x3000)
    built.mapping(8, 7, 0x3000, 0x1000, "//three")
    at(built, 8, 8, 0x3000)
    at(built, 7, 9, 0x3000)
    with Files() as files, TRANSPORT.read(Input(built.build()), "x", files) as source:
        spaces = [sample[6] for sample in source.samples()]
    assert spaces[0] is spaces[1] is spaces[2] is spaces[4]
    assert spaces[3] is not spaces[0]
    assert {space.generation for space in spaces} == {0}


def test_tasks_of_32_bits_are_named_and_counted() -> None:
    built = plain()
    at(built, 7, 1, 0x1000)
    data = bytearray(built.build())
    registers = data.rindex((2).to_bytes(8, "little") + (0x7FFE_0000).to_bytes(8, "little"))
    data[registers] = 1
    source, [(sample, (pcs, end, _, _))] = walked(bytes(data))
    assert source.skipped == {"a 32-bit task": 1}
    assert (pcs, sample[11]) == ([0x1000], None)
    assert end == End.UNKNOWN_REGISTER


def test_what_is_known_of_a_space_goes_with_it() -> None:
    built = plain()
    for n in range(20):
        built.comm(7, 7, 10 * n, "again", exec=True)
        built.mapping(7, 10 * n + 1, 0x1000, 0x1000, "//code")
        at(built, 7, 10 * n + 2, 0x1000)
    with Files() as files, TRANSPORT.read(Input(built.build()), "x", files) as source:
        sampler = Sampler(source.snapshot, Unwinder(source.arch))
        most = 0
        for sample in source.samples():
            sampler.walk(sample)
            most = max(most, len(sampler.fast._spaces))
    assert 0 < most <= 3


def short_processes(path: Path, program: Path, count: int) -> Path:
    """A recording of a shell that runs `program` so many times, each time somewhere else."""
    elf = Elf(program.read_bytes(), str(program))
    code = next(row for row in elf.program_rows if row[0] == PT.LOAD and row[1] & 1)
    offset, vaddr, size = code[2], code[3], code[4]
    built = Recording(ARCH, 0, 64, registers=(RSP, RIP))
    built.comm(7, 7, 1, "shell", exec=True)
    for n in range(count):
        pid, time, start = 1000 + n, 100 * n + 10, 0x5500_0000_0000 + 0x10_0000 * n
        built.fork(pid, pid, 7, time)
        built.comm(pid, pid, time + 1, "short", exec=True)
        built.mapping(pid, time + 2, start, -(-size // 4096) * 4096, str(program), offset)
        for pc in (start, start + 16):
            at(built, pid, time + 3, pc)
        built.exit(pid, pid, 7, time + 4)
        if not n % 10:
            built.round()
    assert vaddr % 4096 == 0
    path.write_bytes(built.build())
    return path


@pytest.mark.parametrize(
    ("format", "most"),  # bytes for each of them, with what waits for the garbage collector
    [("--script", 1000), ("--json", 1000), ("--folded", 1000), ("--speedscope", 2600)],
)
def test_processes_that_have_ended_take_no_memory(tmp_path: Path, format: str, most: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(shipped()["program"])
    peaks = []
    for count in (260, 260, 510):  # the first one loads modules
        recording = short_processes(tmp_path / "perf.data", program, count)
        gc.collect()
        tracemalloc.start()
        try:
            assert main([str(recording), format, "-o", str(tmp_path / "out")]) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (tmp_path / "out").stat().st_size > 20
    assert (peaks[2] - peaks[1]) / 250 < most


def kernel_note(build_id: bytes) -> bytes:
    other = (6).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(4) + b"Linux\0\0\0xy\0\0"
    sizes = (4).to_bytes(4, "little") + len(build_id).to_bytes(4, "little")
    return other + sizes + (3).to_bytes(4, "little") + b"GNU\0" + build_id


def test_symbols_of_a_kernel_are_what_perf_kept_or_the_running_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/notes").write_bytes(kernel_note(b"running"))
    kept = tmp_path / ".debug/[kernel.kallsyms]" / b"kept".hex() / "kallsyms"
    kept.parent.mkdir(parents=True)
    kept.write_text("ffffffff81000000 T start\nffffffff81000040 t more\t[module]\n")
    assert recorded_kallsyms(b"kept", str(tmp_path)) == str(kept)
    assert read_kallsyms(str(kept)).find(0xFFFFFFFF81000050) == ("more", "module", 16)
    assert recorded_kallsyms(b"running", str(tmp_path)) == str(tmp_path / "proc/kallsyms")
    for build_id in (b"another", None):
        with pytest.raises(SourceError, match="kernel"):
            recorded_kallsyms(build_id, str(tmp_path))


def test_what_the_kernel_made_at_run_time_is_named(tmp_path: Path) -> None:
    built = Recording(ARCH, SAMPLE.callchain, 64, registers=(RSP, RIP))
    built.comm(7, 7, 1, "a")
    built.kernel_symbol(2, 0xFFFF_FFFF_C000_0000, 0x80, "bpf_prog_1234_count")
    chain = (CONTEXT.kernel, 0xFFFF_FFFF_C000_0010, 0xFFFF_FFFF_C000_0080, 0xFFFF_FFFF_C000_0081)
    registers = {RSP: 0x7FFE_0000, RIP: 0x1000}
    built.sample(Sampled(7, 7, 3, registers, bytes(64), callchain=chain))
    (tmp_path / "data").write_bytes(built.build())
    output = tmp_path / "out"
    options = ["--script", "-F", "sym,symoff,dso", "-o", str(output)]
    assert main([str(tmp_path / "data"), *options]) == 0
    assert output.read_text().splitlines()[:3] == [
        "\tbpf_prog_1234_count+0x10 ([kernel.kallsyms])",
        "\tbpf_prog_1234_count+0x80 ([kernel.kallsyms])",  # a call was its last instruction
        "\t[unknown] ([kernel.kallsyms])",
    ]


@pytest.mark.parametrize(("method", "warns"), [(0, False), (1, False), (2, True)])
def test_records_packed_by_another_method_are_said_to_be(method: int, warns: bool) -> None:
    """HEADER_COMPRESSED: version, PERF_COMP_ method, level, ratio, bytes of a buffer."""
    header = Header("<", memoryview(b""), 0, False)
    header.feature(FEATURE.compressed, memoryview(struct.pack("<5I", 1, method, 1, 4, 524288)))
    assert [("method 2" in told) for told in header.warnings] == [True] * warns
    header.feature(FEATURE.compressed, memoryview(b"\1\0\0"))
    assert "feature section 27" in header.warnings[-1]


def test_code_of_a_memfd_is_in_no_file_but_has_its_name() -> None:
    built = Recording(ARCH, 0, 64, registers=(RSP, RIP))
    built.comm(7, 7, 1, "maker", exec=True)
    built.mapping(7, 2, 0x1000_0000, 0x1000, "/memfd:code (deleted)")
    at(built, 7, 3, 0x1000_0010)
    with Files() as files, TRANSPORT.read(Input(built.build()), "perf.data", files) as source:
        (sample,) = source.samples()
        module = sample[6].find(sample[7])
        assert module is not None
        assert module.name == "/memfd:code (deleted)"
        assert module.image is None
