"""A process in; its threads' registers and stacks, all of one instant, out; it runs on.

    seize ── interrupt ── wait ── registers, mappings, stacks copied ── let go

All of it is done by a thread of its own: whatever that one has seized the kernel lets go when the
thread ends, even what never stopped, and with the whole of us, should we be killed.
"""

from __future__ import annotations

import os
from _signal import (  # type: ignore[import-not-found]  # `signal` loads enum, for 2 ms
    SIG_BLOCK,
    SIG_SETMASK,
    SIGTSTP,
    SIGTTIN,
    SIGTTOU,
    pthread_sigmask,
)
from _thread import allocate_lock, get_native_id, start_new_thread
from errno import EPERM, ESRCH
from time import monotonic, sleep

from unwind.live import ptrace
from unwind.live.copies import Copier
from unwind.live.seen import Seen, identity, watch, watch_again

__all__ = ["Refused", "halt"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterable, Mapping

    from unwind.live.copies import Range
    from unwind.live.proc import Proc

    # Takes what was seen before anything is copied, and says what is to be.
    Plan = Callable[[Seen], Iterable[Range]]

_MOST_PASSES = 1000  # over the threads: a process may make new ones for as long as some run
_MOST_TRIES = 5  # to seize one of them
_HELP = 2e-3  # seconds until somebody helps the thread that does the work
_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds between two looks at threads that are to stop


class Refused(Exception):
    """The kernel lets us seize no thread; `errors` has its errno for each."""

    def __init__(self, errors: Mapping[int, int]):
        super().__init__(errors)
        self.errors = dict(errors)


def halt(proc: Proc, plan: Plan, most: float) -> Seen:
    """Stop the process for at most `most` seconds, copy the ranges that `plan` wants, let it go.

    Raises Refused where no thread can be seized, OSError where the process ends meanwhile.
    """
    ptrace.libc()  # nobody is to stand still while ctypes is loaded
    work = _Halt(proc, plan, most)
    done = allocate_lock()
    done.acquire()

    def run() -> None:
        work.thread = get_native_id()
        try:
            work.run()
        except BaseException as error:
            work.error = error
        finally:
            work.done = True
            done.release()

    # ^Z would have us stand still, and the process with us: it has to wait until that runs on.
    before = pthread_sigmask(SIG_BLOCK, (SIGTSTP, SIGTTIN, SIGTTOU))
    try:
        start_new_thread(run, ())
        _wait_for(work, done)
    finally:
        pthread_sigmask(SIG_SETMASK, before)
    if work.error is not None or work.seen.late:
        _wait_for_end(work.thread)
    if work.error is not None:
        raise work.error
    return work.seen


def _wait_for(work: _Halt, done: LockType) -> None:
    """Until the work is done, be there a ^C meanwhile or not."""
    try:
        while not done.acquire(timeout=_HELP):
            work.help()
    except BaseException:  # ^C: it is at most `most` seconds from its end
        work.abandoned = True
        while not work.done:  # `done` may be ours already: no second time, it would never come
            sleep(_LONGEST)
            work.help()
        _wait_for_end(work.thread)
        raise


def _wait_for_end(thread: int) -> None:
    """Until a thread of ours is no more, and with it its hold on those that it did not let go."""
    pause = _SHORTEST
    while os.path.exists(f"/proc/self/task/{thread}") and pause < 1:
        sleep(pause)
        pause *= 2


class _Halt:
    """The work of that thread."""

    def __init__(self, proc: Proc, plan: Plan, most: float):
        self.proc, self.plan, self.most = proc, plan, most
        self.seen = Seen(proc.pid)
        self.error: BaseException | None = None
        self.abandoned = self.done = self.seizing = False
        self.thread = 0
        self.seized: set[int] = set()
        self.running: set[int] = set()  # seized, and not yet stopped
        self.signals: dict[int, int] = {}  # of the stopped: what they were about to take
        self.began: float | None = None

    def run(self) -> None:
        try:
            self._stop_all()
            self._look()
        finally:
            self._let_go()
            if self.began is not None:
                self.seen.seconds = monotonic() - self.began

    def help(self) -> None:
        """Take note of ends in place of the thread that does the work.

        It may hang in PTRACE_SEIZE: that waits until an execve(2) of the process is done, which
        waits for threads that it has ended, which wait for their tracer to take note of it. (Linux
        v6.13 kernel/ptrace.c: cred_guard_mutex; seen within a second of a program that execs.)
        """
        if self.seizing:
            for tid in list(self.seized):
                self._look_at(tid, at_ends=True)

    def _stop_all(self) -> None:
        """Stop the threads until a pass over all of them finds no new one.

        Who runs may make one; when all that there are stand still, nobody is left to make more.
        """
        for _ in range(_MOST_PASSES):
            new = [tid for tid in self.proc.threads() if self._seize(tid)]
            if not new:
                break
            if self.began is None:
                self.began = monotonic()
            for tid in new:
                self._interrupt(tid)
            self._wait()
            if not self._go_on():
                break
        self.seen.late = sorted(self.running)
        if not self.seized:
            raise Refused(self.seen.refused)

    def _seize(self, tid: int) -> bool:
        if tid in self.seized or tid in self.seen.refused:
            return False
        for _ in range(_MOST_TRIES):
            try:
                self.seizing = True
                ptrace.seize(tid)
            except OSError as error:
                if error.errno not in (ESRCH, EPERM):
                    raise
                if error.errno == ESRCH or self.proc.is_dead(tid):
                    return False
                sleep(_SHORTEST)  # it may be dying, and its place be taken by who calls execve(2)
            else:
                self.seized.add(tid)
                return True
            finally:
                self.seizing = False
        self.seen.refused[tid] = EPERM
        return False

    def _is_stuck(self) -> bool:
        """Whether the kernel lets the rest wake for nobody but the one that each waits for.

        In vfork(2) that is a child, and may last; in execve(2) the end of the other threads, of
        which we have to take note.
        """
        stopped = list(self.signals)
        for tid in stopped:
            self._look_at(tid)
        if len(self.signals) < len(stopped):
            return False
        for tid in self.running:
            try:
                if self.proc.status(tid).state != "D":
                    return False
            except OSError:
                continue
        return True

    def _interrupt(self, tid: int) -> None:
        self.running.add(tid)
        try:
            ptrace.interrupt(tid)
        except OSError as error:  # it may have died; `wait` tells
            if error.errno != ESRCH:
                raise

    def _wait(self) -> None:
        """Until each thread has stopped or died, or time is up."""
        pause = 0.0
        while self.running:
            for tid in list(self.running):
                self._look_at(tid)
            if not self.running or not self._go_on():
                return
            if pause == _LONGEST and self._is_stuck():
                return
            sleep(pause)  # first of all, let them have this processor
            pause = min(max(2 * pause, _SHORTEST), _LONGEST)

    def _look_at(self, tid: int, at_ends: bool = False) -> None:
        """Note what has become of a thread; with `at_ends`, whether it has ended, and no more."""
        try:
            found = ptrace.wait(tid)
            if found is not None and found.ended and tid != self.proc.pid:
                ptrace.bury(tid)
        except ChildProcessError:  # gone, with nobody to wait for
            found = None
            if not at_ends:
                self.running.discard(tid)
                self.signals.pop(tid, None)
        if found is None or at_ends:
            return
        self.running.discard(tid)
        self.signals.pop(tid, None)
        if not found.ended:
            self.signals[tid] = found.signal

    def _go_on(self) -> bool:
        return not self.abandoned and (self.began is None or monotonic() - self.began < self.most)

    def _look(self) -> None:
        """Registers first, of all threads; then what tells where their stacks lie; then those."""
        seen, proc = self.seen, self.proc
        for tid in sorted(self.signals, key=lambda tid: (tid != proc.pid, tid)):
            try:
                seen.registers[tid] = ptrace.regset(tid)
            except OSError as error:
                if error.errno != ESRCH:  # killed meanwhile
                    raise
        watch(proc, seen.late, seen)
        seen.memory = proc.memory()
        seen.maps, seen.auxv = proc.read("maps"), proc.auxv()
        seen.program = identity(proc)
        ranges = self.plan(seen)
        seen.stretches = Copier(proc.through, seen.memory).copy(ranges, self._go_on)
        watch_again(proc, seen)

    def _let_go(self) -> None:
        """Each stopped thread goes on with what it was about to do."""
        for tid, signal in self.signals.items():
            try:
                ptrace.detach(tid, signal)
            except OSError:  # killed meanwhile; any other is let go at this thread's end
                continue
