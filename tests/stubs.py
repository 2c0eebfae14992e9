"""Stubs of the GDB protocol: real ones, started for a program, and one that follows a script."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.foreign import Target
from tests.support import need

Answer = bytes | Callable[[bytes], bytes | None]


@contextmanager
def gdbserver(*arguments: str, **environment: str) -> Iterator[tuple[str, int]]:
    """A gdbserver with these arguments: HOST:PORT, and the pid of the program under it."""
    need("gdbserver")
    process = subprocess.Popen(
        ["gdbserver", "--no-startup-with-shell", "localhost:0", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        while (port := re.search(r"^Listening on port (\d+)$", said, re.M)) is None:
            line = process.stderr.readline()
            assert line, f"gdbserver ended: {said}"
            said += line
        pid = re.search(r"pid = (\d+)$", said, re.M)
        # It stops when nobody reads what it says.
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        reader.start()
        try:
            yield f"localhost:{port[1]}", int(pid[1]) if pid else 0
        finally:
            process.kill()
            reader.join(10)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def qemu_user(
    target: Target, program: Path, *arguments: str, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """qemu-user with a program that waits for a debugger: the path of its socket."""
    need(target.qemu)
    path = program.parent / "stub"
    path.unlink(missing_ok=True)
    command = [target.qemu, "-L", target.sysroot, "-g", str(path), str(program), *arguments]
    with _background(command, path, environment) as process:
        yield str(path), process


@contextmanager
def qemu_system(program: str, *arguments: str | Path, path: Path) -> Iterator[str]:
    """A machine of qemu-system, running: the path of its stub's socket."""
    need(program)
    quiet = ["-display", "none", "-serial", "null", "-monitor", "none", "-nodefaults"]
    stub = ["-gdb", f"unix:{path},server=on,wait=off"]
    with _background([program, *quiet, *stub, *map(str, arguments)], path, {}):
        yield str(path)


@contextmanager
def _background(
    command: Sequence[str], path: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile, once it listens at the socket `path`."""
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=path.parent,
    )
    try:
        deadline = time.monotonic() + 20
        while not _listens(path):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"{command[0]} does not listen at {path}"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def _listens(path: Path) -> bool:
    """Whether somebody waits for connections to the socket at `path`, which is there before that.

    To try would be to take the one connection that qemu-user accepts. In proc(5)'s net/unix the
    flags are SO_ACCEPTCON, the path stands last.
    """
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == "00010000" for line in lines)


class Scripted:
    """A stub that answers each command by a table; what it was asked is in `asked`.

    The longest key that a command begins with counts; without one the answer is empty, as the
    protocol has it for what a stub does not know. An answer of None is no answer at all. `wrap`
    makes what goes over the line of an answer; `greeting` is sent before the first command.
    """

    def __init__(
        self,
        answers: Mapping[bytes, Answer],
        wrap: Callable[[bytes], bytes] | None = None,
        greeting: bytes = b"",
    ):
        self.answers = dict(answers)
        self.wrap = wrap or packet
        self.asked: list[bytes] = []
        self.line, self._far = socket.socketpair()
        self._far.sendall(greeting)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up, from the debugger's side."""
        self.line.close()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        buffer = b""
        with self._far:
            try:
                while data := self._far.recv(65536):
                    buffer += data
                    while (found := re.search(rb"\$([^#]*)#..|\x03", buffer, re.S)) is not None:
                        buffer = buffer[found.end() :]
                        command = found[1] if found[1] is not None else b"\x03"
                        self.asked.append(command)
                        answer = self._answer(command)
                        if answer is not None:
                            self._far.sendall(answer)
            except OSError:
                pass  # it has hung up

    def _answer(self, command: bytes) -> bytes | None:
        known = [key for key in self.answers if command.startswith(key)]
        found: Answer | None = self.answers[max(known, key=len)] if known else b""
        if callable(found):
            found = found(command)
        return None if found is None else self.wrap(found)


def packet(payload: bytes) -> bytes:
    """What carries `payload`, which needs no escapes, with the acknowledgement of a command."""
    return b"+$%b#%02x" % (payload, sum(payload) % 256)
