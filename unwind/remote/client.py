"""Client: the commands of the GDB remote protocol as methods, on an open connection.

The GDB manual, appendix E: E.2 "Packets", E.3 "Stop Reply Packets", E.4 "General Query Packets",
E.5 "vCont". It asks and lets run, and never changes a register or a byte of memory.
"""

from __future__ import annotations

from unwind.errors import FormatError, MemoryFault, SourceError
from unwind.values import Value

__all__ = ["Client", "StopReply", "ThreadId"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.remote.packets import Connection

_MOST_THREADS = 1 << 16
_LARGEST_OBJECT = 1 << 24  # bytes of one qXfer object
_MOST_UNASKED = 16  # stop replies that nobody asked for
_USUAL_PACKET = 400  # bytes, where the stub does not tell: gdb's own assumption
_LARGEST_PACKET = 1 << 17


class ThreadId(Value):
    """A thread as the protocol names it: `text`, which goes back to the stub, and its numbers."""

    text: str
    tid: int
    pid: int | None = None


class StopReply(Value):
    """Why the target stands still: `kind` is T or S (stopped), W (exited), X (killed), N (none).

    `signal` is gdb's number of the signal; of an exit it is the code. `thread` stopped first.
    """

    kind: str
    signal: int = 0
    thread: ThreadId | None = None

    @property
    def ended(self) -> bool:
        """Whether there is no target any more."""
        return self.kind not in "TS"


class Client:
    """What one can ask a stub. `features` are those of its qSupported reply.

    Every method may raise SourceError (it does not answer) and FormatError (it answers nonsense).
    """

    def __init__(self, connection: Connection):
        self.connection = connection
        self.where = connection.where
        self.features: dict[str, str] = {}
        self._steps = b""  # what lets one thread take a step
        self._thread = ""  # the one that `g` and `p` are about

    def begin(self) -> None:
        """Agree with the stub on what both know."""
        self.connection.greet()
        reply = self._ask("qSupported:multiprocess+;xmlRegisters=i386;swbreak+;hwbreak+")
        for word in reply.split(";"):
            name, equals, value = word.partition("=")
            self.features[name if equals else name.rstrip("+-?")] = value if equals else word[-1:]
        if self.has("QStartNoAckMode") and self._ask("QStartNoAckMode") == "OK":
            self.connection.acknowledges = False

    def has(self, feature: str) -> bool:
        """Whether the stub says that it knows `feature`."""
        return self.features.get(feature) == "+"

    @property
    def packet_size(self) -> int:
        """How long the stub's packets may be."""
        try:
            size = int(self.features.get("PacketSize", ""), 16)
        except ValueError:
            size = _USUAL_PACKET
        return min(max(size, 64), _LARGEST_PACKET)

    # ------------------------------------------------------------------ what the target is doing

    def status(self) -> StopReply:
        """Why the target stands still. One that runs is stopped first."""
        self.connection.send(b"?")
        try:
            return self._stop_reply(self.connection.timeout, b"?")
        except SourceError:
            self.connection.interrupt()
            return self._stop_reply(self.connection.timeout)

    def resume(self, signal: int = 0) -> None:
        """Let all threads run, with gdb's number of a signal for the one that stopped."""
        self.connection.send(b"C%02x" % signal if signal else b"c")
        self._thread = ""

    def wait(self, timeout: float | None = None) -> StopReply:
        """Why a resumed target stops again, once it does; `timeout` in seconds, None: no limit."""
        return self._stop_reply(timeout)

    def interrupt(self) -> StopReply:
        """Stop a target that was resumed."""
        self.connection.interrupt()
        return self._stop_reply(self.connection.timeout)

    def step(self, thread: ThreadId, signal: int = 0) -> StopReply:
        """Let `thread` alone run one instruction; what it stops with is as a rule a SIGTRAP."""
        if not self._steps:
            known = self._ask("vCont?").split(";")
            self._steps = b"vCont;s" if "s" in known and "S" in known else b"s"
        if self._steps == b"s":
            self._select("c", thread)
            command = b"S%02x" % signal if signal else b"s"
        else:
            how = b"S%02x" % signal if signal else b"s"
            command = b"vCont;%b:%b" % (how, thread.text.encode())
        self.connection.send(command)
        return self._stop_reply(self.connection.timeout, command)

    def detach(self, pid: int | None) -> bool:
        """Let the target go on by itself; False where the stub does not say that it does."""
        multiprocess = self.has("multiprocess") and pid is not None
        return self._ask(f"D;{pid:x}" if multiprocess else "D") == "OK"

    # --------------------------------------------------------------------------------- threads

    def threads(self) -> list[ThreadId]:
        """All threads, in the stub's order; of a stub without a list the current one."""
        found: dict[str, ThreadId] = {}
        reply = self._ask("qfThreadInfo")
        while reply[:1] == "m" and len(found) < _MOST_THREADS:
            before = len(found)
            for text in reply[1:].split(","):
                found.setdefault(text, self.thread_id(text))
            if len(found) == before:
                break  # the same ones again
            reply = self._ask("qsThreadInfo")
        if not found:
            reply = self._ask("qC")
            text = reply[2:] if reply[:2] == "QC" else "0"
            found[text] = self.thread_id(text)
        return list(found.values())

    def thread_id(self, text: str) -> ThreadId:
        """The thread that the protocol writes so: TID or pPID.TID, hexadecimal."""
        pid, _, tid = text[1:].partition(".") if text[:1] == "p" else ("", "", text)
        try:
            return ThreadId(text, int(tid or "0", 16), int(pid, 16) if pid else None)
        except ValueError:
            raise FormatError(f"no thread id: {text[:40]!r}", self.where) from None

    def thread_info(self, thread: ThreadId) -> str:
        """What the stub has to say of a thread for people to read, "" if nothing."""
        reply = self._ask(f"qThreadExtraInfo,{thread.text}")
        try:
            return bytes.fromhex(reply).decode(errors="replace").strip("\0 ")
        except ValueError:
            return ""

    # -------------------------------------------------------------------- registers and memory

    def registers(self, thread: ThreadId) -> bytes | None:
        """The bytes of all registers of a thread as `g` has them, None where it has none.

        Where the stub does not know a register there are fewer: see `known_registers`.
        """
        found = self.known_registers(thread)
        return None if found is None else found[0]

    def known_registers(self, thread: ThreadId) -> tuple[bytes, bytes] | None:
        """The bytes of all registers, and for each byte 1 if it is known, else 0."""
        self._select("g", thread)
        reply = self._reply(b"g")
        if not reply or (reply[:1] == b"E" and len(reply) == 3):
            return None
        if b"x" not in reply:
            data = self._unhex(reply)
            return data, b"\1" * len(data)
        known = bytes(digit != 0x78 for digit in reply[::2])
        return self._unhex(reply.replace(b"x", b"0")), known

    def register(self, thread: ThreadId, number: int) -> bytes | None:
        """The bytes of one register by its number in the description, None if it is unknown."""
        self._select("g", thread)
        reply = self._reply(b"p%x" % number)
        if not reply or b"x" in reply or (reply[:1] == b"E" and len(reply) == 3):
            return None
        return self._unhex(reply)

    def read(self, address: int, size: int) -> bytes:
        """The bytes at `address`, at most `size` of them and at least one; MemoryFault if none."""
        binary = self.has("binary-upload")
        most = (self.packet_size - 5) // 2  # two digits for a byte; an escaped one is two as well
        size = min(size, most)
        reply = self._reply(b"%b%x,%x" % (b"x" if binary else b"m", address, size))
        if binary and reply[:1] == b"b":
            data = reply[1:]
        elif not reply or (reply[:1] == b"E" and len(reply) % 2):
            raise MemoryFault(address, size, "the stub does not read it")
        else:
            data = self._unhex(reply)
        if not data:
            raise MemoryFault(address, size, "the stub does not read it")
        return data[:size]

    # --------------------------------------------------------------------------------- objects

    def object(self, kind: str, annex: str = "") -> bytes | None:
        """A whole qXfer object, None where the stub has none of that kind."""
        if not self.has(f"qXfer:{kind}:read"):
            return None
        found = b""
        for piece in self._pieces(kind, annex):
            found += piece
            if len(found) > _LARGEST_OBJECT:
                raise FormatError(f"{kind}: more than {_LARGEST_OBJECT} bytes", self.where)
        return found

    def _pieces(self, kind: str, annex: str) -> Iterator[bytes]:
        offset, size = 0, self.packet_size - 5
        while True:
            command = f"qXfer:{kind}:read:{annex}:{offset:x},{size:x}"
            reply = self._reply(command.encode())
            if reply[:1] not in (b"m", b"l"):
                return
            yield reply[1:]
            offset += len(reply) - 1
            if reply[:1] == b"l" or len(reply) == 1:
                return

    def offsets(self) -> int | None:
        """How far the program's text lies from where its file has it, None if nobody tells."""
        reply = self._ask("qOffsets")
        for part in reply.split(";"):
            name, _, value = part.partition("=")
            if name == "Text":
                try:
                    return int(value, 16)
                except ValueError:
                    break
        return None

    # -------------------------------------------------------------------------------- the rest

    def _reply(self, command: bytes) -> bytes:
        """The reply to a command other than `?` and those that let the target run.

        qemu-system says unasked that it stops when a debugger comes. No reply looks like that.
        """
        reply = self.connection.ask(command)
        for _ in range(_MOST_UNASKED):
            if reply[:1] not in (b"S", b"T") or not _is_hex(reply[1:3]):
                return reply
            reply = self.connection.receive(self.connection.timeout, command)
        raise FormatError("it stops over and over", self.where)

    def _ask(self, command: str) -> str:
        return self._reply(command.encode()).decode("latin-1")

    def _select(self, what: str, thread: ThreadId) -> None:
        """Make `thread` the one that further commands are about."""
        if self._thread == what + thread.text:
            return
        reply = self._ask(f"H{what}{thread.text}")
        if reply not in ("OK", ""):  # "": a stub that knows of one thread only
            raise SourceError(f"thread {thread.text} is not there: {reply[:20]!r}", self.where)
        self._thread = what + thread.text

    def _stop_reply(self, timeout: float | None, command: bytes = b"") -> StopReply:
        """The next stop reply; what the target prints meanwhile (O) is passed over."""
        while True:
            reply = self.connection.receive(timeout, command).decode("latin-1")
            if reply[:1] == "O" and reply != "OK":
                continue
            try:
                return self._parsed_stop(reply)
            except ValueError:
                raise FormatError(f"no stop reply: {reply[:40]!r}", self.where) from None

    def _parsed_stop(self, reply: str) -> StopReply:
        kind = reply[:1]
        if kind in ("S", "T"):
            parts = dict(part.partition(":")[::2] for part in reply[3:].split(";"))
            thread = self.thread_id(parts["thread"]) if parts.get("thread") else None
            return StopReply(kind, int(reply[1:3], 16), thread)
        if kind in ("W", "X"):
            return StopReply(kind, int(reply[1:].partition(";")[0], 16))
        if kind == "N":
            return StopReply(kind)
        if kind == "E":
            raise SourceError(f"the stub refuses: {reply[:20]}", self.where)
        raise ValueError(reply)

    def _unhex(self, digits: bytes) -> bytes:
        try:
            return bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            raise FormatError(f"no hexadecimal digits: {digits[:20]!r}", self.where) from None


def _is_hex(digits: bytes) -> bool:
    """Whether these are two hexadecimal digits."""
    return len(digits) == 2 and all(digit in b"0123456789abcdefABCDEF" for digit in digits)
