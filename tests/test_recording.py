"""Snapshots that were kept: the same stacks by themselves, and nothing that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import event, given, settings

from tests.worlds import BIAS, CALL, STACK, World, elf_image
from unwind.arch.x86_64 import ARCH, RSP
from unwind.errors import MemoryFault
from unwind.explain import cross_check, explain
from unwind.fast import FastUnwinder
from unwind.frames import End, Stack
from unwind.image import Image
from unwind.memory import Span
from unwind.methods import METHODS
from unwind.modules import Module
from unwind.recorded import RecordedImage, RecordedMemory, joined
from unwind.recording import record
from unwind.registry import architectures
from unwind.rules import NoRow
from unwind.snapshot import RecordedSource, Snapshot, Source
from unwind.space import AddressSpace
from unwind.testing.assembler import CIE, FDE, def_cfa_offset
from unwind.testing.snapshots import SnapshotMade, damaged_snapshots, snapshots
from unwind.unwinder import Unwinder

PLAIN = [CIE(), FDE(0x1000, 0x100, [def_cfa_offset(16)]), FDE(0x2000, 0x100, [def_cfa_offset(24)])]
RETURN = BIAS + 0x2010
CODE = {0x1000: b"\x90" * 16, 0x2010 - len(CALL): CALL}


def world(**changes: object) -> World:
    """`f` at 0x1000 was called by `g` at 0x2000, which begins the stack."""
    given: dict[str, object] = {"entries": PLAIN, "code": CODE, "stack": (1, RETURN, 2, 3, 0)}
    return World(**{**given, **changes})  # type: ignore[arg-type]


def kept(*snapshots: Snapshot, **options: object) -> RecordedSource:
    """What is recorded of some snapshots."""
    source = Source(snapshots[0].space.arch)
    return record(source, snapshots, **options)  # type: ignore[arg-type]


def told(stack: Stack) -> list[object]:
    """All that a stack says, without the objects that it says it of."""
    frames = [
        (
            f.pc,
            f.lookup_pc,
            dict(f.registers),
            f.trust,
            f.called,
            f.cfa,
            f.signal,
            f.module and f.module.name,
        )
        for f in stack.frames
    ]
    return [frames, stack.end, stack.detail]


def assert_same(snapshot: Snapshot, unwinder: Unwinder) -> Stack:
    """Fails unless what is kept gives the stack, and each explanation of it."""
    stack = unwinder.unwind(snapshot)
    [alone] = kept(snapshot, unwinder=unwinder).snapshots()
    again = Unwinder(alone.space.arch, limit=unwinder.limit)
    found = again.unwind(alone)
    assert told(found) == told(stack)
    for one, other in zip(stack.frames, found.frames, strict=True):
        assert explain(unwinder, unwinder.place(snapshot, one)) == explain(
            again, again.place(alone, other)
        )
    assert FastUnwinder(again).trace(alone) == stack.trace
    return stack


# ------------------------------------------------------------------------------ the same stacks


@settings(max_examples=60)
@given(snapshots())
def test_what_is_kept_gives_the_same_stack(made: SnapshotMade) -> None:
    stack = assert_same(made.snapshot, Unwinder(made.chain.dialect.arch))
    assert [frame.pc for frame in stack.frames] == [frame.pc for frame in made.frames]


@settings(max_examples=60)
@given(damaged_snapshots())
def test_what_is_kept_of_a_damaged_one_ends_with_the_same_sentence(made: SnapshotMade) -> None:
    stack = assert_same(made.snapshot, Unwinder(made.chain.dialect.arch, limit=100))
    event(stack.end)


def test_the_reason_of_a_fault_is_kept() -> None:
    class Cut:
        def read(self, address: int, size: int) -> bytes:
            raise MemoryFault(address, size, "the cable was pulled")

    snapshot = world().snapshot().replace(memory=Cut())
    stack = assert_same(snapshot, Unwinder(ARCH))
    assert stack.end == End.MEMORY_FAULT
    assert "the cable was pulled" in stack.detail


def test_a_module_without_a_file_is_missed_by_the_same_sentence() -> None:
    stack = assert_same(world(with_file=False).snapshot(), Unwinder(ARCH))
    assert "/lib/test.so: no such file" in stack.detail


def test_a_space_that_knows_modules_only_stays_one() -> None:
    snapshot = world(complete=False).snapshot()
    assert_same(snapshot, Unwinder(ARCH))
    [alone] = kept(snapshot).snapshots()
    assert not alone.space.complete


def test_what_was_kept_can_be_kept_again() -> None:
    first = kept(world().snapshot())
    second = record(first)
    assert second.origin == first.origin
    [one], [other] = first.snapshots(), second.snapshots()
    assert told(Unwinder(ARCH).unwind(one)) == told(Unwinder(ARCH).unwind(other))
    assert one.memory.spans == other.memory.spans


def test_several_processes_keep_to_themselves() -> None:
    one = world().snapshot()
    other = world(stack=(1, RETURN, 7, 8, 0)).snapshot().replace(tid=2, pid=2)
    recorded = kept(one, other)
    first, second = recorded.snapshots()
    assert first.space is not second.space
    assert first.memory is not second.memory
    assert first.memory.read(STACK + 16, 8) != second.memory.read(STACK + 16, 8)


def test_threads_of_one_process_share_memory_and_space() -> None:
    one = world().snapshot()
    first, second = kept(one, one.replace(tid=2)).snapshots()
    assert first.space is second.space
    assert first.memory is second.memory


# ------------------------------------------------------------------------------- and no more


def only_image(source: RecordedSource) -> RecordedImage:
    [module] = next(source.snapshots()).space.modules
    assert isinstance(module.image, RecordedImage)
    return module.image


def test_of_cfi_only_the_entries_that_were_used_are_kept() -> None:
    many = [CIE(), *(FDE(0x1000 + 16 * n, 16, [def_cfa_offset(16)]) for n in range(100))]
    snapshot = world(entries=many, stack=(1, 0)).snapshot()
    [section] = only_image(kept(snapshot)).sections["eh_frame"]
    sizes = [len(data) for _, data in section.pieces]
    assert sum(sizes) < 80
    assert section.find(0x1000) is not None
    assert section.find(0x1010) is None
    [whole] = only_image(kept(snapshot, with_modules=True)).sections["eh_frame"]
    assert whole.find(0x1010) is not None


def test_bytes_that_nobody_looked_at_are_absent_and_not_zero() -> None:
    snapshot = world().snapshot()
    [alone] = kept(snapshot).snapshots()
    image = only_image(kept(snapshot))
    assert bytes(image.at(0x3000, 8)) == b""
    with pytest.raises(MemoryFault):
        image.read(0x3000, 8)
    with pytest.raises(MemoryFault, match="nobody asked for it"):
        alone.memory.read(BIAS + 0x3000, 8)


def test_code_that_was_not_analysed_gives_no_row() -> None:
    found = only_image(kept(world().snapshot())).told.row(0x1008, False)
    assert isinstance(found, NoRow)
    assert "the snapshot holds no code" in found.reason


def test_a_stack_is_kept_from_its_pointer_to_the_last_word_read() -> None:
    [alone] = kept(world(stack=(1, RETURN, 2, 3, 0, 5, 6, 7)).snapshot()).snapshots()
    assert alone.memory.read(STACK, 40) == b"".join(
        n.to_bytes(8, "little") for n in (1, RETURN, 2, 3, 0)
    )


def test_memory_that_moves_is_kept_as_the_walk_saw_it() -> None:
    still = world().snapshot()

    class Moving:
        def read(self, address: int, size: int) -> bytes:
            """A word as it was; what is read together is read later, and gone."""
            data = still.memory.read(address, size)
            return data if size == 8 or not STACK <= address < STACK + 40 else bytes(size)

    stack = Unwinder(ARCH).unwind(still)
    [alone] = kept(still.replace(memory=Moving())).snapshots()
    assert told(Unwinder(ARCH).unwind(alone)) == told(stack)
    assert alone.memory.read(STACK, 8) == bytes(8), "which nobody read before"


def test_of_a_large_frame_only_what_was_read_is_kept() -> None:
    large = 1 << 20
    entries = [CIE(), FDE(0x1000, 0x100, [def_cfa_offset(large)])]
    words = bytearray(large + 16)
    words[large - 8 : large] = (0).to_bytes(8, "little")
    snapshot = world(entries=entries, stack=()).snapshot().replace(memory=Span(STACK, words))
    [alone] = kept(snapshot).snapshots()
    assert isinstance(alone.memory, RecordedMemory)
    assert sum(len(data) for _, data in alone.memory.spans) < 4096


def test_only_the_chosen_threads_are_kept() -> None:
    class Two(Source):
        def snapshots(self) -> Iterator[Snapshot]:
            one = world().snapshot()
            yield from (one, one.replace(tid=2))

    two = Two(ARCH)
    assert [s.tid for s in record(two).snapshots()] == [1, 2]
    assert [s.tid for s in record(two, list(two.snapshots())[1:]).snapshots()] == [2]


# ------------------------------------------------------------------------- methods, cross-check


def test_the_methods_are_kept_and_cross_checks_if_one_was_made() -> None:
    snapshot = world().snapshot()
    everybody = [make(ARCH) for make in METHODS.values()]
    judge = Unwinder(ARCH, everybody)
    recorded = kept(snapshot, unwinder=Unwinder(ARCH, everybody[:1]), judge=judge)
    assert recorded.methods == ("cfi",)
    assert recorded.cross_checked
    [alone] = recorded.snapshots()
    again = Unwinder(ARCH, [make(ARCH) for make in METHODS.values()])
    for one, other in zip(judge.unwind(snapshot).frames, again.unwind(alone).frames, strict=True):
        assert cross_check(judge, judge.place(snapshot, one)) == cross_check(
            again, again.place(alone, other)
        )


def test_a_row_from_code_is_kept_and_needs_no_code() -> None:
    code = bytes.fromhex("4883ec18") + b"\x90" * 12  # sub rsp, 24
    around = [FDE(start, 0x100, [def_cfa_offset(24)]) for start in (0xF00, 0x1100, 0x2000)]
    snapshot = world(
        entries=[CIE(), *around],
        code={0x1000: code, 0x2010 - len(CALL): CALL},
        pc=0x1008,
        stack=(1, 2, 3, RETURN, 2, 3, 0),
    ).snapshot()
    stack = assert_same(snapshot, Unwinder(ARCH))
    assert [frame.trust for frame in stack.frames] == ["context", "emulation"]
    image = only_image(kept(snapshot))
    row = image.told.row(0x1008, False)
    assert not isinstance(row, NoRow)
    assert bytes(image.at(0x1000, 4)) == code[:4], "for who wants to look at it"


# --------------------------------------------------------------------------------- small parts


def test_pieces_that_touch_or_overlap_become_one() -> None:
    assert joined([(10, b"cd"), (8, b"ab"), (20, b""), (30, b"xyz"), (31, b"y")]) == [
        (8, b"abcd"),
        (30, b"xyz"),
    ]


def test_a_read_across_two_spans_is_a_fault_of_its_own() -> None:
    memory = RecordedMemory([(0, b"ab"), (4, b"cd")], {(0, 6): MemoryFault(2, 1, "said so")})
    assert memory.read(4, 2) == b"cd"
    with pytest.raises(MemoryFault, match="said so"):
        memory.read(0, 6)
    with pytest.raises(MemoryFault, match="nobody asked"):
        memory.read(0, 5)


@pytest.mark.parametrize("arch", list(architectures()), ids=lambda arch: arch.name)
def test_registers_have_names_of_their_own(arch: object) -> None:
    """A snapshot file has them by name."""
    names = list(arch.names.values())  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)


def test_an_unnamed_symbol_is_not_made_up() -> None:
    snapshot = world().snapshot()
    image: Image = only_image(kept(snapshot))
    assert image.symbols.find(0x1234) is None
    assert elf_image().symbols.find(0x1234) is None
    module = Module("m", 0, ((0, 1),), image)
    assert AddressSpace(ARCH, [module]).find(0) is module
    assert RSP in snapshot.registers
