"""The exact walk: how it steps, what it believes, and each way in which a stack can end."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

from tests.worlds import BIAS, CALL, STACK, World
from unwind.arch.x86_64 import ARCH, RBP, RBX, RIP, RSP
from unwind.dwarf.constants import DW_OP
from unwind.errors import MemoryFault
from unwind.frames import End, Stack, Trust
from unwind.memory import Layers, Span
from unwind.methods import METHODS, default_sources
from unwind.space import Region
from unwind.testing.assembler import (
    CIE,
    FDE,
    breg,
    code,
    def_cfa,
    def_cfa_offset,
    offset,
    restore_state,
    same_value,
    undefined,
    val_expression,
)
from unwind.unwinder import Unwinder, unwind

LEAF = FDE(0x1000, 0x100)  # CFA = rsp + 8
MIDDLE = FDE(0x1100, 0x100, [def_cfa_offset(32), offset(RBX, 2)])
OUTER = FDE(0x1200, 0x100, [undefined(RIP)])
PROGRAM = (LEAF, MIDDLE, OUTER)
IN_MIDDLE, IN_OUTER = BIAS + 0x1150, BIAS + 0x1250

# The leaf's return address; the middle's 32 bytes, with rbx at CFA - 16.
STACK_OF_PROGRAM = (IN_MIDDLE, 0x11, 0x22, 0xB0B, IN_OUTER, 0x33)


def pcs(stack: Stack) -> list[int]:
    return [frame.pc - BIAS for frame in stack.frames]


def trusts(stack: Stack) -> list[str]:
    return [frame.trust for frame in stack.frames]


def test_a_walk_goes_by_cfi_to_the_outermost_frame() -> None:
    stack = unwind(World(PROGRAM, stack=STACK_OF_PROGRAM).snapshot())
    assert pcs(stack) == [0x1000, 0x1150, 0x1250]
    assert trusts(stack) == [Trust.CONTEXT, Trust.CFI, Trust.CFI]
    assert stack.end == End.OUTERMOST


def test_registers_are_restored_on_the_way() -> None:
    world = World(PROGRAM, stack=STACK_OF_PROGRAM, registers={RBX: 1, RBP: 2})
    stack = unwind(world.snapshot())
    assert [frame.registers[RBX] for frame in stack.frames] == [1, 1, 0xB0B]
    assert [frame.registers[RBP] for frame in stack.frames] == [2, 2, 2]
    assert [frame.registers[RSP] - STACK for frame in stack.frames] == [0, 8, 40]
    assert [frame.cfa for frame in stack.frames[:2]] == [STACK + 8, STACK + 40]


def test_what_an_epilogue_has_popped_is_not_looked_for_below_the_stack() -> None:
    """gcc's CFI says until the return that rbp is saved, in what nobody has copied any more."""
    entries = [FDE(0x1000, 0x100, [offset(RBP, 2), offset(12, 3), offset(RBX, 4)]), OUTER]
    for text, popped in (
        ("c3", True),
        ("f3c3", True),
        ("c20800", True),
        ("5b5d415cc3", True),
        ("90c3", False),
        ("5b90c3", False),
        ("415090", False),
        ("", False),
    ):
        code = {0x1000: bytes.fromhex(text)}
        world = World(entries, code, stack=(IN_OUTER,), registers={RBP: 0xB, 12: 0xC})
        registers = unwind(world.snapshot()).frames[1].registers
        assert (registers.get(RBP) == 0xB) == (registers.get(12) == 0xC) == popped, text
        assert RBX not in registers


def test_a_return_address_behind_its_function_belongs_to_the_call() -> None:
    """A noreturn call is the last instruction: what follows it is another function."""
    other = FDE(0x1200, 0x100, [def_cfa_offset(8000)])
    caller = FDE(0x1100, 0x100, [def_cfa_offset(16)])
    world = World(
        (LEAF, caller, other, FDE(0x1300, 0x100, [undefined(RIP)])),
        stack=(BIAS + 0x1200, 0, BIAS + 0x1350),
    )
    stack = unwind(world.snapshot())
    assert pcs(stack) == [0x1000, 0x1200, 0x1350]
    assert stack.frames[1].lookup_pc == BIAS + 0x11FF


def test_the_innermost_pc_is_looked_up_as_it_is() -> None:
    """The first instruction of a function: the byte before it belongs to another one."""
    before = FDE(0x1000, 0x100, [def_cfa_offset(8000)])
    here = FDE(0x1100, 0x100)
    world = World((before, here, OUTER), stack=(IN_OUTER,), pc=0x1100)
    assert pcs(unwind(world.snapshot())) == [0x1100, 0x1250]


def signal_world() -> World:
    """A handler in LEAF, called by a trampoline, on what was interrupted at 0x1200 exactly."""
    restorer = FDE(
        0x1100,
        0xC0,
        [
            val_expression(RSP, code(breg(RSP, 16), DW_OP.deref)),
            val_expression(RIP, code(breg(RSP, 8), DW_OP.deref)),
        ],
        cie=CIE(augmentation="zRS", program=[def_cfa(RSP, 0)]),
    )
    before = FDE(0x11C0, 0x40, [def_cfa_offset(8000)])
    return World(
        (LEAF, restorer, before, FDE(0x1200, 0x100), FDE(0x1300, 0x10, [undefined(RIP)])),
        stack=(BIAS + 0x1150, 0, BIAS + 0x1200, STACK + 40, 0, BIAS + 0x1308),
    )


def test_what_a_signal_interrupted_is_looked_up_where_it_stood() -> None:
    stack = unwind(signal_world().snapshot())
    assert pcs(stack) == [0x1000, 0x1150, 0x1200, 0x1308]
    assert [frame.signal for frame in stack.frames] == [False, True, False, False]
    assert [frame.called for frame in stack.frames] == [False, True, False, True]
    assert stack.end == End.OUTERMOST


def test_a_call_through_a_null_pointer_leads_back_to_its_caller() -> None:
    world = World(PROGRAM, code={0x1150 - 5: CALL}, stack=STACK_OF_PROGRAM, registers={RIP: 0})
    stack = unwind(world.snapshot())
    assert [frame.pc for frame in stack.frames] == [0, IN_MIDDLE, IN_OUTER]
    assert trusts(stack) == [Trust.CONTEXT, Trust.LINK_REGISTER, Trust.CFI]


def test_a_wild_jump_is_no_call() -> None:
    world = World(PROGRAM, stack=STACK_OF_PROGRAM, registers={RIP: 0x666})
    stack = unwind(world.snapshot())
    assert len(stack.frames) == 1
    assert stack.end == End.NO_MODULE
    assert "follows no call" in stack.detail


def test_a_wild_call_that_was_interrupted_leads_back_too() -> None:
    world = signal_world()
    stack = list(world.stack)
    stack[2], stack[3] = 0, STACK + 40  # the interrupted pc is null
    world.stack, world.code = stack, {0x1308 - 5: CALL}
    walked = unwind(world.snapshot())
    assert [frame.pc for frame in walked.frames][2:] == [0, BIAS + 0x1308]
    assert walked.frames[3].trust == Trust.LINK_REGISTER


def by_frame_pointer(world: World) -> Stack:
    """The walk of one who cannot look at code."""
    sources = [METHODS[trust](ARCH) for trust in (Trust.CFI, Trust.FRAME_POINTER)]
    return Unwinder(ARCH, sources).unwind(world.snapshot())


FP_CODE = {0x1150 - 5: CALL, 0x1250 - 5: CALL}


def test_a_chain_of_frame_pointers_serves_where_there_is_no_cfi() -> None:
    world = World(
        (FDE(0x2000, 0x10),),
        FP_CODE,
        stack=(0, STACK + 24, IN_MIDDLE, 0, IN_OUTER),
        registers={RBP: STACK + 8},
    )
    stack = by_frame_pointer(world)
    assert pcs(stack) == [0x1000, 0x1150, 0x1250]
    assert trusts(stack) == [Trust.CONTEXT, Trust.FRAME_POINTER, Trust.FRAME_POINTER]
    assert stack.end == End.OUTERMOST  # its frame pointer is zero


def test_a_frame_pointer_that_leads_behind_no_call_is_not_believed() -> None:
    world = World((), {}, stack=(0, STACK + 24, IN_MIDDLE, 0), registers={RBP: STACK + 8})
    stack = by_frame_pointer(world)
    assert pcs(stack) == [0x1000]
    assert stack.end == End.NO_ROW
    assert "follows no call" in stack.detail


def test_without_fallback_nothing_is_guessed() -> None:
    world = World((), FP_CODE, stack=(0, 0, IN_MIDDLE), registers={RBP: STACK + 8})
    exact = Unwinder(ARCH, default_sources(ARCH, fallback=False))
    assert exact.unwind(world.snapshot()).end == End.NO_ROW
    assert unwind(world.snapshot()).end == End.OUTERMOST


# Each End.


def test_end_outermost_where_the_return_address_is_undefined() -> None:
    stack = unwind(World(PROGRAM, pc=0x1200).snapshot())
    assert (len(stack.frames), stack.end, stack.error) == (1, End.OUTERMOST, None)


def test_end_outermost_where_the_return_address_is_zero() -> None:
    assert unwind(World(PROGRAM, stack=(0, 1)).snapshot()).end == End.OUTERMOST


def test_end_no_module_where_the_stack_was_wiped() -> None:
    stack = unwind(World(PROGRAM, stack=[0] * 64).snapshot())
    assert (len(stack.frames), stack.end) == (1, End.NO_MODULE)
    assert "overwritten" in stack.detail


def test_end_no_module_where_a_hole_was_overwritten_and_the_stack_goes_on() -> None:
    world = World(PROGRAM, {0x1150 - 5: CALL}, stack=[0, 0, 7, *[9] * 20, IN_MIDDLE, *[9] * 20])
    stack = unwind(world.snapshot())
    assert (len(stack.frames), stack.end) == (1, End.NO_MODULE)
    assert "the stack goes on" in stack.detail


def test_end_outermost_at_a_functions_first_byte_behind_no_call() -> None:
    """A return address that makecontext planted: the byte before it belongs to no function."""
    world = World((LEAF, FDE(0x1200, 0x100)), stack=(BIAS + 0x1200, IN_MIDDLE))
    stack = unwind(world.snapshot())
    assert (pcs(stack), stack.end) == ([0x1000, 0x1200], End.OUTERMOST)
    assert "put there" in stack.detail


def test_end_no_module_where_the_return_address_leads_nowhere() -> None:
    stack = unwind(World(PROGRAM, stack=(0x4141414141414141,)).snapshot())
    assert (pcs(stack), stack.end) == ([0x1000], End.NO_MODULE)
    assert "0x4141414141414141" in stack.detail


def test_end_no_module_shows_the_pc_where_the_modules_may_not_be_all() -> None:
    world = World(PROGRAM, stack=(0x414140, 0, 0), complete=False)
    stack = unwind(world.snapshot())
    assert [frame.pc for frame in stack.frames][1:] == [0x414140]
    assert stack.end == End.NO_MODULE


def test_end_no_module_names_the_file_that_is_missing() -> None:
    stack = unwind(World(PROGRAM, stack=STACK_OF_PROGRAM, with_file=False).snapshot())
    assert stack.end == End.NO_MODULE
    for fact in ("/lib/test.so", "abcd", "no such file"):
        assert fact in stack.detail


def test_end_no_row_names_the_module_without_cfi() -> None:
    stack = unwind(World((), registers={RBP: 1}).snapshot())
    assert stack.end == End.NO_ROW
    assert "/lib/test.so" in stack.detail


def test_end_memory_fault_names_the_address() -> None:
    stack = unwind(World(PROGRAM, stack=()).snapshot())
    assert stack.end == End.MEMORY_FAULT
    assert isinstance(stack.error, MemoryFault)
    assert stack.error.address == STACK
    assert f"{STACK:#x}" in stack.detail


def test_end_memory_fault_where_cfi_cannot_read_although_a_frame_pointer_could() -> None:
    other = 0x7EEE_0000_0000
    world = World(
        PROGRAM,
        FP_CODE,
        registers={RBP: other},
        regions=[Region(other, other + 4096, False)],
    )
    snapshot = world.snapshot()
    words = Span(other, b"".join(w.to_bytes(8, "little") for w in (0, IN_MIDDLE)))
    snapshot = snapshot.replace(memory=Layers([words, snapshot.memory]))
    assert unwind(snapshot).end == End.MEMORY_FAULT


def test_end_unknown_register_names_the_register() -> None:
    by_rbx = FDE(0x1000, 0x100, [def_cfa(RBX, 16)])
    stack = unwind(World([by_rbx]).snapshot())
    assert stack.end == End.UNKNOWN_REGISTER
    assert "rbx" in stack.detail


def test_end_unknown_register_without_a_pc_has_no_frames() -> None:
    snapshot = World(PROGRAM).snapshot()
    stack = unwind(snapshot.replace(registers=type(snapshot.registers)({RSP: STACK})))
    assert (stack.frames, stack.end) == ((), End.UNKNOWN_REGISTER)


def test_end_no_progress_where_a_place_comes_back() -> None:
    """Its caller is itself, with the same CFA: no frame of its own."""
    itself = FDE(0x1000, 0x100, [def_cfa(RBX, 8), val_expression(RIP, code(breg(RIP)))])
    stack = unwind(World([itself], stack=[0], pc=0x1080, registers={RBX: STACK}).snapshot())
    assert (pcs(stack), stack.end) == ([0x1080], End.NO_PROGRESS)
    assert "came again" in stack.detail


def test_end_no_progress_where_the_cfa_goes_down_in_one_mapping() -> None:
    down = FDE(0x1100, 0x100, [def_cfa(RBX, 8)])
    world = World(
        (FDE(0x1000, 0x100, [def_cfa_offset(32)]), down, OUTER),
        stack=(IN_OUTER, 0, 0, IN_MIDDLE, IN_OUTER),
        registers={RBX: STACK},
    )
    stack = unwind(world.snapshot())
    assert (pcs(stack), stack.end) == ([0x1000, 0x1150], End.NO_PROGRESS)
    assert "goes down" in stack.detail


def test_end_no_progress_where_the_return_address_is_never_saved() -> None:
    """The CFA goes up for ever, and no memory is read that could end it."""
    stays = FDE(0x1100, 0x100, [same_value(RIP)])
    stack = unwind(World([LEAF, stays], stack=[IN_MIDDLE]).snapshot())
    assert (pcs(stack), stack.end) == ([0x1000, 0x1150], End.NO_PROGRESS)
    assert "left where its callee left it" in stack.detail


def test_a_cfa_may_go_down_into_another_mapping() -> None:
    other = 0x7EEE_0000_0000
    switch = FDE(0x1100, 0x100, [def_cfa(RBX, 8)])
    world = World(
        (FDE(0x1000, 0x100, [def_cfa_offset(32)]), switch, OUTER),
        stack=(0, 0, 0, IN_MIDDLE),
        registers={RBX: other},
        regions=[Region(other, other + 4096, False, "a coroutine's stack")],
    )
    snapshot = world.snapshot()
    there = Span(other, IN_OUTER.to_bytes(8, "little"))
    stack = unwind(snapshot.replace(memory=Layers([there, snapshot.memory])))
    assert (pcs(stack), stack.end) == ([0x1000, 0x1150, 0x1250], End.OUTERMOST)


def test_end_bad_cfi_names_what_is_wrong_and_where() -> None:
    stack = unwind(World([FDE(0x1000, 0x100, [restore_state()])], registers={RBP: 3}).snapshot())
    assert stack.end == End.BAD_CFI
    for fact in ("/lib/test.so", ".eh_frame at offset 0x18", "DW_CFA_restore_state"):
        assert fact in stack.detail


def test_end_limit_where_no_more_frames_were_asked_for() -> None:
    recursion = FDE(0x1000, 0x100)
    stack = unwind(World([recursion], stack=[BIAS + 0x1050] * 100).snapshot(), limit=10)
    assert (len(stack.frames), stack.end) == (10, End.LIMIT)


def test_threads_share_modules_and_need_a_walker_each() -> None:
    """The lazy parts of a fresh image are wanted by eight threads at once."""
    snapshot = World(PROGRAM, stack=STACK_OF_PROGRAM).snapshot()
    start = threading.Barrier(8)

    def walk(_: int) -> Stack:
        start.wait()
        return Unwinder(ARCH).unwind(snapshot)

    with ThreadPoolExecutor(8) as pool:
        stacks = list(pool.map(walk, range(8)))
    assert [pcs(stack) for stack in stacks] == [[0x1000, 0x1150, 0x1250]] * 8


def test_a_walk_may_begin_while_another_is_under_way() -> None:
    """A memory that unwinds another stack when it is read: nothing is kept outside the walk."""
    inner = World(PROGRAM, stack=STACK_OF_PROGRAM).snapshot()
    walker = Unwinder(ARCH)

    class Nesting:
        def read(self, address: int, size: int) -> bytes:
            assert pcs(walker.unwind(inner)) == [0x1000, 0x1150, 0x1250]
            return inner.memory.read(address, size)

    assert walker.unwind(inner.replace(memory=Nesting())) == walker.unwind(inner)


def test_a_stack_that_was_cut_holds_nothing_of_the_walk() -> None:
    snapshot = World(PROGRAM, stack=STACK_OF_PROGRAM[:4]).snapshot()
    gone = weakref.ref(snapshot.space)
    gc.disable()  # what lies in a circle would go by chance
    try:
        stack = unwind(snapshot).replace(frames=())
        assert isinstance(stack.error, MemoryFault)
        del snapshot
        assert gone() is None
    finally:
        gc.enable()
