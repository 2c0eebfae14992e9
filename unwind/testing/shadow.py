"""The shadow stack: what each instruction of a program does to its calls in; its true stack out.

No table and no unwinder is asked. A call leaves a return address, which is written down with the
registers that a function must keep, as they are at its first instruction; the stack pointer tells
when that activation is gone:

  - A return address on the stack (x86_64) is gone once the stack pointer has passed it.
  - One in a register (arm64, mips) is used up when the program arrives there with the stack
    pointer of the call. A stack pointer above that of the call tells the same.
  - A call to the next instruction only asks where it is: no function was called.
  - A signal's handler is called by the kernel, and what it interrupted is an activation too. Its
    trampoline's system call ends both.

Where the stack pointer passes the top activation without a return, the program leaves functions at
once: longjmp, an exception, setcontext. Until the jump that ends this, registers are half the old
frame's and half the new one's. No unwinder can be right there: `settled` is False. What was `left`
so may have written before into what its caller gets back, as libgcc's unwinder does. The same holds
where the stack pointer goes to another mapping, another stack; what lies on each is kept apart,
and of a stack that was not seen from its beginning `rooted` is False.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from unwind.architecture import Architecture

__all__ = ["CALL", "OTHER", "RETURN", "SYSCALL", "Activation", "Instruction", "ShadowStack"]

# What an instruction may do to the calls.
OTHER, CALL, RETURN, SYSCALL = range(4)


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction that was executed: where, what it may do, and where control goes on else.

    `following` of a call is its return address, behind the delay slot where there is one: `slot`.
    """

    pc: int
    kind: int
    following: int
    slot: int = 0


@dataclass(slots=True, eq=False)
class Activation:
    """A call that has not returned: what its caller will have when it does.

    `cfa` is the stack pointer of the caller at the call. `registers` are those that it will have
    again; of what a signal interrupted (`signal`), all of them. `notes` are for who looks at it.
    """

    return_address: int
    cfa: int
    registers: Mapping[int, int]
    signal: bool = False
    notes: dict[object, object] = field(default_factory=dict)


@dataclass(slots=True)
class _Stack:
    """The activations on one stack, and on those that signals were handled on from there."""

    calls: list[Activation]
    rooted: bool


class ShadowStack:
    """The activations of one thread, from its first instruction on, or (not `rooted`) a later one.

    `saved` are the registers that a function must keep. `stack_of` names the stack that an address
    lies in: equal for addresses of the same one.
    """

    def __init__(
        self,
        arch: Architecture,
        saved: tuple[int, ...],
        stack_of: Callable[[int], object],
        rooted: bool = True,
    ):
        self.arch = arch
        self.saved = tuple(number for number in saved if number not in (arch.sp, arch.pc))
        self.settled = True
        self.left: Activation | None = None  # what the last instruction left without a return
        self._stack_of = stack_of
        self._on_stack = arch.return_address == arch.pc  # calls push the return address
        self._now = _Stack([], rooted)
        self._others: list[_Stack] = []
        self._pending = 0  # the return address of a call whose delay slot comes next

    @property
    def calls(self) -> list[Activation]:
        """The activations, outermost first: there is one frame more than these."""
        return self._now.calls

    @property
    def rooted(self) -> bool:
        """Whether nothing lies before the first activation."""
        return self._now.rooted

    def advance(
        self, done: Instruction, before: Mapping[int, int], after: Mapping[int, int]
    ) -> None:
        """Take in one instruction and the registers around it."""
        pc, sp = after[self.arch.pc], after[self.arch.sp]
        following, self._pending = self._pending, 0
        self.left = None
        if done.kind == CALL:
            if done.slot and pc == done.slot:
                self._pending = done.following
                return
            following = done.following
        if following and pc != following:
            self._push(following, sp + self.arch.word if self._on_stack else sp, after)
            return
        if sp != before[self.arch.sp] and not self._same_stack(sp, before[self.arch.sp]):
            self._change_stack(sp)
        elif self._passed(sp, done):
            self.settled = False
            self.left = self.calls[-1]
        self._drop(sp, pc)
        if pc != done.following:
            self.settled = True

    def interrupt(self, before: Mapping[int, int], after: Mapping[int, int], restorer: int) -> None:
        """A signal's handler was entered, which will return to the trampoline `restorer`."""
        sp = after[self.arch.sp]
        interrupted = before[self.arch.pc], before[self.arch.sp]
        self.calls.append(Activation(*interrupted, dict(before), signal=True))
        self._push(restorer, sp + self.arch.word if self._on_stack else sp, after)

    def resume(self) -> None:
        """The system call of a trampoline: what was interrupted goes on."""
        while self.calls and not self.calls.pop().signal:
            pass

    def restart(self) -> None:
        """Another program took the place of this one (exec)."""
        self._now, self._others, self.settled = _Stack([], True), [], True
        self._pending = 0

    def _push(self, return_address: int, cfa: int, registers: Mapping[int, int]) -> None:
        kept = {number: registers[number] for number in self.saved}
        self.calls.append(Activation(return_address, cfa, kept))

    def _passed(self, sp: int, done: Instruction) -> bool:
        """Whether the stack pointer has passed the top activation, and that by no return."""
        if not self.calls or (done.kind == RETURN and self._on_stack):
            return False
        return sp > self.calls[-1].cfa - (self.arch.word if self._on_stack else 0)

    def _drop(self, sp: int, pc: int) -> None:
        """Take away the activations that are gone."""
        calls = self.calls
        while calls and self._same_stack(calls[-1].cfa - 1, sp):
            top = calls[-1]
            if self._on_stack or top.signal:
                gone = sp >= top.cfa
            else:
                gone = sp > top.cfa or (sp == top.cfa and pc == top.return_address)
            if not gone:
                break
            calls.pop()

    def _same_stack(self, one: int, other: int) -> bool:
        return self._stack_of(one) == self._stack_of(other)

    def _change_stack(self, sp: int) -> None:
        """The stack pointer lies in another stack: of an outer activation, or one of its own."""
        self.settled = False
        calls = self.calls
        if any(self._same_stack(call.cfa - 1, sp) for call in calls):
            while not self._same_stack(calls[-1].cfa - 1, sp):
                calls.pop()
            return
        known = [
            stack
            for stack in self._others
            if stack.calls and self._same_stack(stack.calls[-1].cfa - 1, sp)
        ]
        self._others = [stack for stack in [*self._others, self._now] if stack not in known[:1]]
        self._now = known[0] if known else _Stack([], False)
