"""An event and its stack in, the lines that `unwind-memleak --symbol` prints of it out."""

from __future__ import annotations

from unwind.frames import End
from unwind.writers.escape import escape
from unwind.writers.text import place_in_source

__all__ = ["event_line", "frame_lines", "inlined_at", "place_of"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unwind.architecture import Architecture
    from unwind.frames import Frame, Stack
    from unwind.modules import Module
    from unwind.symbols.names import Name


def event_line(pid: int, comm: str, pc: int | None, cookie: int, kind: str = "") -> str:
    """The head of an event: who it was, and where in the kernel, or in the user's code.

    `kind` says what of its stack there is none.
    """
    where = f" pc={pc:#x}" if pc is not None else ""
    given = f" cookie={cookie:#x}" if cookie else ""
    return f"[event] pid={pid} comm={escape(comm)}{where}{given}{f' flags={kind}' if kind else ''}"


def frame_lines(
    arch: Architecture, stack: Stack, name: Callable[[Module | None, int, int], Name]
) -> Iterator[str]:
    """A line for each frame: its pc, its stack pointer, and where it returns to.

    What is not known is `-`. The flags tell how the frame was found and, of the last one, whether
    the stack is `partial`, with the reason behind its name.
    """
    frames = stack.frames
    for n, frame in enumerate(frames):
        last = n + 1 == len(frames)
        sp, ra = frame.registers.get(arch.sp), None if last else frames[n + 1].pc
        partial = last and stack.end != End.OUTERMOST
        flags = [frame.trust, *["signal"] * frame.signal, *["partial"] * partial]
        why = f": {stack.end}: {escape(stack.detail)}" if partial else ""
        for inlined in inlined_at(frame, name):
            yield f"  #{n} pc={frame.pc:#x} flags=inlined {inlined}"
        yield (
            f"  #{n} pc={frame.pc:#x} sp={_number(sp)} ra={_number(ra)} "
            f"flags={','.join(flags)} {place_of(frame, name)}{why}"
        )
    if not frames:
        yield f"  flags=partial: {stack.end}: {escape(stack.detail)}"


def inlined_at(frame: Frame, name: Callable[[Module | None, int, int], Name]) -> Iterator[str]:
    """The functions that are inlined at a frame, innermost first, and where they are in source."""
    for inlined in _named(frame, name).inlined:
        function = escape(inlined.function) if inlined.function is not None else "??"
        yield f"{function}{place_in_source(inlined)}"


def place_of(frame: Frame, name: Callable[[Module | None, int, int], Name]) -> str:
    """The function with the offset in it, its module's file, and the place in source if known."""
    if frame.module is None:
        return "??"
    found = _named(frame, name)
    file = escape(frame.module.name.rpartition("/")[2])
    source = place_in_source(found)
    if found.function is None:
        return f"?? ({file}+{frame.module.to_vaddr(frame.pc):#x}){source}"
    offset = f"+{found.offset:#x}" if found.offset is not None else ""
    return f"{escape(found.function)}{offset} ({file}){source}"


def _named(frame: Frame, name: Callable[[Module | None, int, int], Name]) -> Name:
    return name(frame.module, frame.pc, frame.pc if frame.signal else frame.lookup_pc)


def _number(value: int | None) -> str:
    return f"{value:#x}" if value is not None else "-"
