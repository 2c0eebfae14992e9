"""Bytes of any kind, given to the library's ways in: values or UnwindErrors come out.

tests/test_damage.py goes the whole way with files that are almost right; here one stage at a time
gets what may be far from it, also of classes and byte orders for which there is no core.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given
from hypothesis import strategies as st

from tests.cores import NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS, NT_SIGINFO, Core, Load
from tests.elves import SHAPES, Seg, make_elf
from tests.test_elf import everything
from tests.test_instructions import instructions
from tests.worlds import BIAS, STACK, World
from unwind.dwarf.cfi import Fde, FrameSection
from unwind.dwarf.instructions import Instruction
from unwind.dwarf.rows import row_at, rows
from unwind.elf import PT
from unwind.errors import UnwindError
from unwind.explain import explain
from unwind.files import Files
from unwind.frames import End
from unwind.memory import Span
from unwind.protocols import ByteOrder
from unwind.testing.assembler import FDE
from unwind.transports.core import TRANSPORT
from unwind.unpack import load
from unwind.unwinder import Unwinder

# Numbers at which something may happen in 32 or in 64 bits.
EDGES = [0, 1, 2, 16, 0x7F, 0x80, 0xFF, 0x1000, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 63]
EDGES += [(1 << 63) - 1, (1 << 64) - 1]
edges = st.one_of(st.sampled_from(EDGES), st.integers(0, 300), st.integers(0, (1 << 64) - 1))


@given(st.sampled_from(SHAPES), st.lists(edges, min_size=13, max_size=13), st.binary(max_size=600))
def test_elf_headers(shape: tuple[int, ByteOrder], fields: list[int], rest: bytes) -> None:
    elf_class, byteorder = shape
    word = 8 if elf_class == 64 else 4
    ident = b"\x7fELF" + bytes((elf_class // 32, 1 if byteorder == "little" else 2, 1)) + bytes(9)
    sizes = (2, 2, 4, word, word, word, 4, 2, 2, 2, 2, 2, 2)
    numbers = [
        (field % (1 << 8 * size)).to_bytes(size, byteorder)
        for field, size in zip(fields, sizes, strict=True)
    ]
    try:
        everything(ident + b"".join(numbers) + rest)
    except UnwindError:
        pass


@given(
    st.sampled_from(SHAPES),
    st.lists(
        st.builds(
            Seg,
            type=st.sampled_from([PT.LOAD, PT.NOTE, PT.DYNAMIC, PT.GNU_EH_FRAME]),
            data=st.binary(max_size=200),
            vaddr=st.integers(0, (1 << 32) - 1),
            file_size=st.none() | st.integers(0, (1 << 32) - 1),
            memory_size=st.none() | st.integers(0, (1 << 32) - 1),
        ),
        max_size=5,
    ),
)
def test_segments_of_arbitrary_bytes(shape: tuple[int, ByteOrder], segments: list[Seg]) -> None:
    everything(make_elf(segments, shape=shape))


def entries(data: bytes, order: str) -> bytes:
    """`data` as a section whose first entry is a CIE with an augmentation, and the next its FDE."""
    middle = min(len(data), 24)
    cie = struct.pack(order + "I4s", 0, b"\1zR\0") + data[:middle]
    fde = struct.pack(order + "I", 8 + len(cie)) + data[middle:]
    return b"".join(struct.pack(order + "I", len(entry)) + entry for entry in (cie, fde))


@given(
    st.binary(max_size=120),
    st.sampled_from(["eh_frame", "debug_frame"]),
    st.sampled_from(["little", "big"]),
    st.sampled_from([4, 8]),
    st.booleans(),
)
def test_frame_sections(
    data: bytes, kind: str, byteorder: ByteOrder, size: int, shaped: bool
) -> None:
    if shaped:
        data = entries(data, "<" if byteorder == "little" else ">")
    section = FrameSection(
        data,
        0x1000,
        kind,  # type: ignore[arg-type]
        byteorder,
        size,
        text_base=0x2000,
        dereference=lambda vaddr: vaddr,
    )
    for entry in section.entries():
        if isinstance(entry, Fde):
            _use(entry)
    for vaddr in (0, 0x1000, (1 << 64) - 1):
        try:
            section.find(vaddr)
        except UnwindError:
            pass


def _use(fde: Fde) -> None:
    for question in (
        lambda: list(islice(rows(fde), 1000)),
        lambda: row_at(fde, fde.start),
        lambda: row_at(fde, fde.end - 1),
        lambda: fde.lsda,
    ):
        try:
            question()
        except UnwindError:
            pass


# Words that lead somewhere: into the code, onto the stack, nowhere.
words = st.one_of(
    st.integers(BIAS + 0x1000, BIAS + 0x1200),
    st.integers(STACK, STACK + 400),
    st.sampled_from(EDGES),
)


@given(
    st.lists(instructions(), max_size=12),
    st.lists(instructions(), max_size=12),
    st.lists(words, max_size=40),
    st.dictionaries(st.integers(0, 17), words),
)
def test_walks_by_arbitrary_cfi_end_and_can_be_explained(
    program: list[Instruction],
    other: list[Instruction],
    stack: list[int],
    registers: dict[int, int],
) -> None:
    world = World(
        [FDE(0x1000, 0x100, program), FDE(0x1100, 0x100, other)], stack=stack, registers=registers
    )
    snapshot = world.snapshot()
    unwinder = Unwinder(snapshot.space.arch, limit=200)
    walked = unwinder.unwind(snapshot)
    assert walked.end == End.OUTERMOST or walked.detail
    for frame in walked.frames[:20]:
        explain(unwinder, unwinder.place(snapshot, frame))


@st.composite
def cores(draw: st.DrawFn) -> bytes:
    core = Core()
    kinds = [NT_PRSTATUS, NT_PRPSINFO, NT_SIGINFO, NT_AUXV, NT_FILE]
    if draw(st.booleans()):
        core.thread(1, {16: draw(words), 19: draw(words), 4: draw(words)}, 11)
    if draw(st.booleans()):
        core.auxv(phdr=draw(edges), phnum=draw(edges), base=draw(edges), vdso=draw(edges))
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        core.note(kind, draw(st.binary(max_size=400)))
    for start in draw(st.lists(st.sampled_from([STACK, BIAS, 0, *EDGES]), max_size=4)):
        core.loads.append(Load(start, draw(st.binary(max_size=100)), draw(st.none() | edges)))
    data = bytearray(core.build())
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, min(len(data), 500) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(16, len(data)))])


@given(cores())
def test_cores(data: bytes) -> None:
    with contents(data) as path, Files() as files:
        try:
            source = TRANSPORT.open(str(path), files)
        except UnwindError:
            return
        with source:
            unwinder = Unwinder(source.arch, limit=100)
            for snapshot in source.snapshots():
                stack = unwinder.unwind(snapshot)
                assert stack.end == End.OUTERMOST or stack.detail


@given(st.sampled_from([b"\x1f\x8b\x08\0", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b""]), st.binary())
@example(b"\x1f\x8b", b"")
def test_compressed_files(magic: bytes, data: bytes) -> None:
    with contents(magic + data) as path:
        try:
            load(str(path)).close()
        except UnwindError:
            pass


@given(st.binary(max_size=64), edges, edges)
def test_memory(data: bytes, address: int, size: int) -> None:
    try:
        found = Span(0x1000, data).read(address, size)
    except UnwindError:
        return
    assert len(found) == size


@contextmanager
def contents(data: bytes) -> Iterator[Path]:
    """A file with these bytes; Hypothesis wants a new one for each example."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        path.write_bytes(data)
        yield path
