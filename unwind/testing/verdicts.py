"""Verdicts: a program's shadow stack and an unwinder in; at how many instructions it is right, out.

At each instruction the unwinder's step out of frame 0 is taken and compared: return address, CFA,
stack pointer and every register that a function must keep. The frames below have not changed since
their callee was entered, so each of them is compared once, when it becomes one of these, and again
in a whole walk now and then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unwind.architecture import Architecture
from unwind.fast import FastUnwinder
from unwind.frames import End, Trust
from unwind.snapshot import Place, Snapshot
from unwind.testing.shadow import Activation, ShadowStack
from unwind.unwinder import Step, Stop, Unwinder

__all__ = ["Fault", "Oracle", "Tally"]

_WHOLE_WALK = 200  # steps between two whole walks
_HINDSIGHT = 5000  # steps after which a fault stands, whatever becomes of the activation
_DEEPEST = 4  # activations above the one that is left, while it writes
_MOST_FAULTS = 10_000  # places that are kept


@dataclass(frozen=True, slots=True)
class Fault:
    """A place at which a step is wrong: where, and what of it; `text` has what both say."""

    module: str
    vaddr: int
    what: str
    trust: str
    text: str = field(compare=False)


@dataclass
class Tally:
    """What came of one way of unwinding."""

    steps: int = 0
    right: int = 0
    whole: int = 0  # of the steps: those at which the whole stack was walked
    faults: Counter[Fault] = field(default_factory=Counter)

    @property
    def share(self) -> float:
        """The share of steps at which the stack was right."""
        return self.right / max(1, self.steps)

    def count(self, fault: Fault | None) -> None:
        """One more step."""
        self.steps += 1
        self.right += fault is None
        if fault is not None and (fault in self.faults or len(self.faults) < _MOST_FAULTS):
            self.faults[fault] += 1


class Oracle:
    """Compares ways of unwinding with shadow stacks, step by step.

    `ways` are unwinders by their names. Beyond the outermost frame no way may go on; where CFI
    describes that frame, it has to be known for what it is.
    """

    def __init__(
        self,
        arch: Architecture,
        saved: Sequence[int],
        ways: Mapping[str, Unwinder],
    ):
        self.arch = arch
        self.saved = [number for number in saved if number not in (arch.sp, arch.pc)]
        self.ways = dict(ways)
        self.tallies = {name: Tally() for name in ways}
        self.unsettled = 0  # steps of which there is no truth
        self.fast = Tally()
        self.left = 0  # steps that the fast walk leaves to the exact one
        self._fast: FastUnwinder | None = None
        self._fast_of = ""
        self._fast_every = 1
        self._seen = 0
        # Faults that the truth may yet turn out not to be: the step, whose tally, within what.
        self._recent: deque[tuple[int, Tally, Fault, list[Activation]]] = deque()

    def compare_fast(self, name: str, every: int = 1) -> None:
        """Compare the fast walk with the way `name` too, at one step of `every`."""
        self._fast, self._fast_of, self._fast_every = FastUnwinder(self.ways[name]), name, every

    def look(self, snapshot: Snapshot, shadow: ShadowStack) -> None:
        """Compare every way at one instruction."""
        if shadow.left is not None:
            self._take_back(shadow.left)
        if not shadow.settled:
            self.unsettled += 1
            return
        self._seen += 1
        for name, unwinder in self.ways.items():
            tally = self.tallies[name]
            fault = self._steps(name, unwinder, unwinder.innermost(snapshot), shadow)
            if fault is None and tally.steps % _WHOLE_WALK == 0:
                fault = self._walk(name, unwinder, snapshot, shadow)
                tally.whole += 1
            self._count(tally, fault, shadow)
            if name == self._fast_of and self._seen % self._fast_every == 0:
                self._look_fast(snapshot, shadow, fault)

    def _look_fast(self, snapshot: Snapshot, shadow: ShadowStack, fault: Fault | None) -> None:
        """Compare the pcs of the fast walk with the exact one's, which are the true ones."""
        fast = self._fast
        pcs = fast.pcs(snapshot) if fast is not None else None
        if fast is None or pcs is None:
            self.left += 1
            return
        if fault is None and shadow.rooted:
            exact = [pcs[0], *(call.return_address for call in reversed(shadow.calls))]
        else:
            exact = [frame.pc for frame in fast.exact.unwind(snapshot).frames]
        made = None
        if pcs != exact:
            place = fast.exact.innermost(snapshot)
            made = _made(place, "fast", f"{len(pcs)} frames, exactly {len(exact)}", "")
        self._count(self.fast, made, shadow)

    def _count(self, tally: Tally, fault: Fault | None, shadow: ShadowStack) -> None:
        tally.count(fault)
        if fault is not None:
            self._recent.append((self._seen, tally, fault, shadow.calls[-_DEEPEST:]))
        while self._recent and self._recent[0][0] < self._seen - _HINDSIGHT:
            self._recent.popleft()

    def _take_back(self, left: Activation) -> None:
        """What was left without a return had written over what its caller would have got back."""
        wrong = [entry for entry in self._recent if left in entry[3]]
        for _, tally, fault, _ in wrong:
            tally.steps -= 1
            tally.faults[fault] -= 1
            if not tally.faults[fault]:
                del tally.faults[fault]
        self.unsettled += len({seen for seen, *_ in wrong})
        self._recent.clear()

    def _steps(
        self, name: str, unwinder: Unwinder, place: Place, shadow: ShadowStack
    ) -> Fault | None:
        """What is wrong with the steps from `place` out, the first thing of it.

        An activation's note tells it of the steps from the activation's caller on.
        """
        passed: list[Activation] = []
        fault: Fault | None = None
        for call in [*reversed(shadow.calls), None]:
            result = unwinder.step(place)
            fault = self._fault(place, result, call, shadow.rooted)
            if fault is not None or call is None or isinstance(result, Stop):
                break
            passed.append(call)
            if name in call.notes:
                known = call.notes[name]
                fault = known if isinstance(known, Fault) else None
                break
            place = unwinder.caller(place, result)
        for call in passed:
            call.notes[name] = fault
        return fault

    def _walk(
        self, name: str, unwinder: Unwinder, snapshot: Snapshot, shadow: ShadowStack
    ) -> Fault | None:
        """What is wrong with a whole walk, whose steps are right each by itself."""
        stack = unwinder.unwind(snapshot)
        wanted = [call.return_address for call in reversed(shadow.calls)]
        found = [frame.pc for frame in stack.frames[1:]]
        if found[: len(wanted)] == wanted and (not shadow.rooted or len(found) == len(wanted)):
            return None
        at = next(
            (n for n, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
            min(len(found), len(wanted)),
        )
        place = unwinder.place(snapshot, stack.frames[min(at, len(stack.frames) - 1)])
        return _made(place, "walk", f"frame {at + 1}: {stack.end} {stack.detail}", "")

    def _fault(
        self, place: Place, result: Step | Stop, call: Activation | None, rooted: bool
    ) -> Fault | None:
        """What is wrong with one step; `call` is the activation that it leads out of."""
        if call is None:
            if not rooted:
                return None
            if isinstance(result, Step):
                text = f"goes on to {result.caller.pc or 0:#x}, but there is no caller"
                return _made(place, "end", text, result.trust)
            if result.trust == Trust.CFI and result.end != End.OUTERMOST:
                return _made(place, "end", f"{result.end}: {result.detail}", result.trust)
            return None
        if isinstance(result, Stop):
            return _made(place, "stop", f"{result.end}: {result.detail}", result.trust)
        caller = result.caller
        found, wanted = caller.registers, call.registers
        if caller.pc != call.return_address:
            what, its, true = "return address", caller.pc, call.return_address
        elif caller.cfa != call.cfa and not call.signal:
            what, its, true = "CFA", caller.cfa, call.cfa
        elif found.get(self.arch.sp) != call.cfa:
            what, its, true = "sp", found.get(self.arch.sp), call.cfa
        else:
            for number in self.saved:
                if found.get(number) != wanted.get(number):
                    what = self.arch.register_name(number)
                    its, true = found.get(number), wanted[number]
                    break
            else:
                return None
        known = "unknown" if its is None else f"{its:#x}"
        return _made(place, what, f"{known}, truly {true:#x}", result.trust)


def _made(place: Place, what: str, text: str, trust: str) -> Fault:
    module = place.module.name.rpartition("/")[2] if place.module is not None else "?"
    return Fault(module, place.vaddr, what, trust, text)
