"""Frames, stacks, and the words for how a frame was found and why a walk ended."""

from __future__ import annotations

from unwind.values import Value

__all__ = ["End", "Frame", "Stack", "Trace", "Trust"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.errors import UnwindError
    from unwind.modules import Module
    from unwind.registers import Registers


class Trust:
    """How a frame's pc and registers were found, as in the JSON; best first."""

    CONTEXT = "context"  # given by the source: the innermost frame
    CFI = "cfi"
    PDR = "pdr"
    TRAMPOLINE = "trampoline"
    EMULATION = "emulation"
    LINK_REGISTER = "link_register"  # the row right after a call
    FRAME_POINTER = "frame_pointer"
    SCAN = "scan"
    RECORDED = "recorded"  # given by the source: a perf callchain


class End:
    """Why a walk ended, as in the JSON."""

    OUTERMOST = "outermost"
    NO_MODULE = "no-module"
    NO_ROW = "no-row"
    MEMORY_FAULT = "memory-fault"
    UNKNOWN_REGISTER = "unknown-register"
    NO_PROGRESS = "no-progress"
    BAD_CFI = "bad-cfi"
    LIMIT = "limit"


class Frame(Value):
    """One activation of a function: a pc with the registers that hold there.

    `pc` is as found: for a caller the return address. `registers` has what could be restored;
    what could not is absent. `called`: this frame made a call, so its place is looked up at
    `lookup_pc`, which lies within the call. `signal`: the frame is a signal trampoline.
    `cfa` is None where the walk ended before it was computed.
    """

    pc: int
    lookup_pc: int
    registers: Registers
    module: Module | None
    trust: str
    called: bool
    cfa: int | None = None
    signal: bool = False


class Stack(Value):
    """The frames of a thread, innermost first, and why there are no more of them.

    `detail` is one sentence: what was missing, and what would mend it. `error` is the fault
    behind it where there was one.
    """

    frames: tuple[Frame, ...]
    end: str
    detail: str = ""
    error: UnwindError | None = None

    @property
    def trace(self) -> Trace:
        """The pcs alone, as the fast walk gives them."""
        return Trace(tuple([frame.pc for frame in self.frames]), self.end)


class Trace(Value):
    """The pcs of a stack, innermost first, and why there are no more of them."""

    pcs: tuple[int, ...]
    end: str
