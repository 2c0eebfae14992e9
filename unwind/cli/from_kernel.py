"""unwind-core --from-kernel: the kernel's pipe of a crash in, a report in a directory out.

    root:   opens /proc/PID/mem and the report ── fork ── waits, ends who takes too long, logs
    nobody:                                        gives privileges up, reads the notes, walks

The half that keeps its privileges reads nothing that the crashed process could have written, and
the other half has but the descriptors that were opened for it.
"""

from __future__ import annotations

import os
import sys

from unwind.cli.plumbing import warn
from unwind.cli.stacks import files_of, print_stacks
from unwind.errors import SourceError, UnwindError
from unwind.kernel_dump.crashed import Crashed
from unwind.kernel_dump.store import Store, report_name
from unwind.signals import LINUX

__all__ = ["handle"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

    from unwind.cli.options import Options
    from unwind.files import Files
    from unwind.transports.core import CoreSource

_PROG = "unwind-core"
_MEMORY = 1 << 30  # bytes of ours
_LARGEST_CORE = 1 << 32  # bytes that are kept of a pipe that has to be read
_LARGEST_REPORT = 1 << 24
_MOST_SAID = 1 << 14  # bytes of warnings
_LONGEST_LINE = 400  # in the log
_LAST_WORDS = 0.9  # of the time: then a report is brought to its end
_COULD_NOT = 2
_LIMIT = "/proc/sys/kernel/core_pipe_limit"


class _OutOfTime(Exception):
    """The time is nearly over."""


def handle(options: Options) -> int:
    """Write the report, and one line to the system log. 0 where there is a report of stacks."""
    _open_standard_descriptors()
    try:
        ids = [_number(word) for word in options.from_kernel]
        if options.core is not None or options.record is not None or options.store is None:
            raise SourceError("--from-kernel takes --store DIR, no CORE and no --record")
        code, line = _Handler(options, *ids).run()
    except (UnwindError, OSError) as error:
        code, line = _COULD_NOT, f"no report: {error}"
    _log(line)
    return code


class _Handler:
    """One crash."""

    def __init__(self, options: Options, pid: int, tid: int, signal: int):
        from time import time

        self.options, self.pid, self.tid, self.signal = options, pid, tid, signal
        self.now = time()

    def run(self) -> tuple[int, str]:
        """The exit code, and the line for the log."""
        options = self.options
        store = Store(options.store)
        try:
            crashed = Crashed(self.pid)
            name = report_name(self.pid, crashed.name, self.now)
            name, report = store.create(name, ".json" if options.json else ".txt")
            said, spool = store.scratch(), store.scratch()
            child = os.fork()
            if child == 0:
                self._be_the_child(crashed, report, said, spool)
            crashed.close()
            problem, code = self._wait_for(child)
            words = os.pread(said, _MOST_SAID, 0)
            if not options.json:
                _append(report, words, problem)
            store.finish(name)
            # We are the last to have the pipe open: the kernel lets the process go.
            os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
            store.prune(options.store_limit << 20, self.now)
        finally:
            store.close()
        last = words.decode(errors="replace").strip().rpartition("\n")[2] if code == 2 else ""
        told = "; ".join(filter(None, (problem, last, f"{store.path}/{name}")))
        return code, f"{name.split('.')[2]}[{self.pid}] was ended by {self._signal_name()}: {told}"

    def _signal_name(self) -> str:
        number = self.signal
        return f"{LINUX.get(number, 'signal')} ({number})"

    def _be_the_child(self, crashed: Crashed, report: int, said: int, spool: int) -> NoReturn:
        """All that the crashed process has a say in."""
        from signal import ITIMER_REAL, SIGALRM, setitimer, signal

        code = _COULD_NOT
        try:
            sys.stdout, sys.stderr = _stream(report, 1), _stream(said, 2)
            signal(SIGALRM, _out_of_time)
            setitimer(ITIMER_REAL, _LAST_WORDS * self.options.max_time)
            code = self._work(crashed, spool)
            setitimer(ITIMER_REAL, 0)
        except _OutOfTime:
            self._say(f"not done within {self.options.max_time} s: --max-time gives time")
        except MemoryError:
            self._say(f"it would take more than {_MEMORY >> 20} MB of memory")
        except (UnwindError, OSError) as error:
            self._say(str(error))
        except Exception as error:
            self._say(f"a fault of this program: {error!r}")
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def _work(self, crashed: Crashed, spool: int) -> int:
        from unwind.kernel_dump.loading import load_all
        from unwind.kernel_dump.pipe import read_head
        from unwind.kernel_dump.privileges import confine, drop_privileges, most_written
        from unwind.live.files import OthersFiles

        load_all()
        drop_privileges(crashed.user, crashed.group)
        confine(_MEMORY, 2 * self.options.max_time)
        if not self.options.json and not self.options.quiet:
            print(self._headline())
        head = read_head(0)
        with OthersFiles(files_of(self.options)) as files:
            if crashed.root >= 0 and files.sysroot is None:
                files.sysroot = files.root = f"/proc/self/fd/{crashed.root}"
            with _opened(head, crashed, spool, files) as source:
                most_written(_LARGEST_REPORT)
                return print_stacks(_PROG, self.options, source, files)

    def _headline(self) -> str:
        from time import gmtime, strftime

        date = strftime("%Y-%m-%d %H:%M:%S UTC", gmtime(self.now))
        return f"crash:   process {self.pid}, thread {self.tid}, {self._signal_name()}, {date}"

    def _say(self, text: str) -> None:
        from unwind.writers.escape import escape

        warn(_PROG, escape(text))

    def _wait_for(self, child: int) -> tuple[str, int]:
        """What went wrong with the child ("": nothing), and its exit code."""
        from time import monotonic, sleep

        end, pause = monotonic() + self.options.max_time, 1e-3
        problem = ""
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if not problem and monotonic() > end:
                os.kill(child, 9)
                problem = f"it took more than {self.options.max_time} s"
            sleep(pause)
            pause = min(2 * pause, 0.05)
        if os.WIFSIGNALED(status):
            return problem or f"it was ended by signal {os.WTERMSIG(status)}", _COULD_NOT
        return problem, os.WEXITSTATUS(status)


def _opened(head: bytes, crashed: Crashed, spool: int, files: Files) -> CoreSource:
    """The core whose head was read, with the memory of the process or the rest of the pipe."""
    from unwind.elf import Elf
    from unwind.kernel_dump.memory import DumpMemory
    from unwind.kernel_dump.pipe import read_on
    from unwind.transports.core import TRANSPORT, loads_of
    from unwind.unpack import Input

    reason = crashed.reason
    if not reason:
        memory = DumpMemory(loads_of(Elf(head, "-")), crashed.memory)
        if not memory.is_there():
            reason = "it has ended"
        elif not _is_waited_for(memory.expected - len(head)):
            reason = "the kernel does not wait (kernel.core_pipe_limit is 0)"
        else:
            return TRANSPORT.read(Input(head), "-", files, memory)
    source = TRANSPORT.read(read_on(head, 0, spool, _LARGEST_CORE), "-", files)
    why = f"as /proc/{crashed.pid}/mem could not be had: {reason}"
    source.warnings.append(f"memory comes from the core, {why}")
    return source


def _is_waited_for(rest: int) -> bool:
    """Whether the process stays until the pipe is closed, of which `rest` bytes are to come.

    Without core_pipe_limit the kernel goes on when it has written all: not while the pipe is full.
    """
    from fcntl import F_GETPIPE_SZ, fcntl

    try:
        with open(_LIMIT, encoding="ascii") as file:
            if int(file.read()):
                return True
        return rest > fcntl(0, F_GETPIPE_SZ)
    except (OSError, ValueError):
        return False


def _open_standard_descriptors() -> None:
    """The kernel opens none but the first, and what we open must not take their places."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    sys.stdout = sys.stdout or _stream(1, 1)
    sys.stderr = sys.stderr or _stream(2, 2)


def _stream(handle: int, number: int) -> TextIO:
    os.dup2(handle, number)
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _append(report: int, words: bytes, problem: str) -> None:
    """What was said of the stacks, below them."""
    if words or problem:
        text = b"\n" + words + (f"{_PROG}: {problem}\n".encode() if problem else b"")
        os.write(report, text)


def _log(line: str) -> None:
    """One line, of printable characters, to the system log, and to whoever has started us."""
    from syslog import LOG_DAEMON, LOG_ERR, openlog, syslog

    text = "".join(c if " " <= c <= "~" else "?" for c in line)[:_LONGEST_LINE]
    openlog(_PROG, 0, LOG_DAEMON)
    syslog(LOG_ERR, text)
    os.write(2, f"{_PROG}: {text}\n".encode())


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise SourceError("--from-kernel takes what the kernel puts in for %P %I %s", word)
    return int(word)


def _out_of_time(_number: int, _frame: object) -> None:
    raise _OutOfTime
