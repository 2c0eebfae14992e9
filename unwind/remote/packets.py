"""Packets: an address in, a connection to a stub out, which turns payloads into packets and back.

The GDB manual, appendix E.1 "Overview": `$payload#checksum`, bytes escaped by `}`, runs by `*`,
each packet acknowledged by `+` until both sides agree to do without. A stub is not trusted: what
it sends is bounded, and nothing is waited for without a deadline.
"""

from __future__ import annotations

from unwind.errors import FormatError, SourceError

__all__ = ["Connection", "connect", "decoded", "encoded"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket

_LONGEST = 1 << 22  # bytes of one packet as it is sent; PacketSize is rarely above 16 KB
_LARGEST = 1 << 24  # bytes that runs may make of it
_MOST_NOISE = 1 << 20  # bytes between packets: acknowledgements, a console that talks along
_MOST_TRIES = 3  # to get one packet across; only a serial line damages any
_PORTS = 1 << 16
_ESCAPED = b"#$*}"


def encoded(payload: bytes) -> bytes:
    """The packet that carries `payload`."""
    if any(byte in _ESCAPED for byte in payload):
        payload = b"".join(
            bytes((0x7D, byte ^ 0x20)) if byte in _ESCAPED else bytes((byte,)) for byte in payload
        )
    return b"$%b#%02x" % (payload, sum(payload) & 0xFF)


def decoded(raw: bytes, where: str = "") -> bytes:
    """The payload of what stood between `$` and `#`: runs written out, then escapes undone.

    FormatError for a run of nothing, or one that makes more than a stub can mean.
    """
    if b"*" in raw:
        raw = _written_out(raw, where)
    if b"}" not in raw:
        return raw
    head, *rest = raw.split(b"}")
    found = [head]
    waiting = iter(rest)
    for piece in waiting:
        if not piece:  # `}}` is an escaped `]`
            piece = b"}" + next(waiting, b"")
        found.append(bytes((piece[0] ^ 0x20,)) + piece[1:])
    return b"".join(found)


def _written_out(raw: bytes, where: str) -> bytes:
    """`raw` with each `c*n` as c and n - 29 more of it (appendix E.1)."""
    found = bytearray()
    at = 0
    while (star := raw.find(b"*", at)) >= 0:
        found += raw[at:star]
        if star + 1 >= len(raw) or not found or not 0 < (more := raw[star + 1] - 29) <= 126 - 29:
            raise FormatError("a run of bytes that repeats nothing", where, star)
        found += found[-1:] * more
        if len(found) > _LARGEST:
            raise FormatError(f"a packet of more than {_LARGEST} bytes", where)
        at = star + 2
    return bytes(found + raw[at:])


class Connection:
    """A line to a stub. `timeout` is what one reply may take, in seconds.

    Raises SourceError where the stub does not answer or goes away, FormatError where what it
    sends is no packet.
    """

    def __init__(self, line: socket, where: str, timeout: float):
        self.where = where
        self.timeout = timeout
        self.acknowledges = True  # until QStartNoAckMode
        self._line = line
        self._buffer = bytearray()

    def ask(self, command: bytes) -> bytes:
        """What the stub replies to `command`; b"" is its way to say that it does not know it."""
        self.send(command)
        return self.receive(self.timeout, command)

    def send(self, command: bytes) -> None:
        """Send a command whose reply, if there is one, `receive` gets."""
        self._put(encoded(command))

    def receive(self, timeout: float | None, command: bytes = b"") -> bytes:
        """The next reply, for which it waits so many seconds; None: for as long as it takes.

        `command` is sent anew where the stub has not understood it.
        """
        from time import monotonic

        deadline = None if timeout is None else monotonic() + timeout
        tries = 0
        while tries < _MOST_TRIES:
            raw, good = self._packet(command, deadline)
            if not self.acknowledges:
                return decoded(raw, self.where)
            self._put(b"+" if good else b"-")
            if good:
                return decoded(raw, self.where)
            tries += 1
        raise FormatError(f"the checksum is wrong in {tries} packets", self.where)

    def greet(self) -> None:
        """Acknowledge what a stub may have said last, to somebody else."""
        self._put(b"+")

    def interrupt(self) -> None:
        """Ask a running target to stop (appendix E.8)."""
        self._put(b"\x03")

    def close(self) -> None:
        """Hang up."""
        self._line.close()

    def _put(self, data: bytes) -> None:
        self._line.settimeout(self.timeout)
        try:
            self._line.sendall(data)
        except OSError as error:
            raise SourceError(f"the connection broke: {_why(error)}", self.where) from None

    def _packet(self, command: bytes, deadline: float | None) -> tuple[bytes, bool]:
        """What stands between the next `$` and its `#`, and whether the checksum is right.

        Notifications, which begin with `%`, are passed over: nobody here has asked for any.
        """
        buffer, noise, resent = self._buffer, 0, 0
        while True:
            start = _first_of(buffer, b"$%")
            if start and self.acknowledges and b"-" in buffer[:start] and command:
                resent += 1
                if resent >= _MOST_TRIES:
                    raise FormatError(f"it has refused a packet {resent} times", self.where)
                self._put(encoded(command))
            noise += start
            if noise > _MOST_NOISE:
                raise FormatError("it sends no packets", self.where, noise)
            del buffer[:start]
            end = buffer.find(b"#")
            while end < 0 or len(buffer) < end + 3:
                if len(buffer) > _LONGEST:
                    raise FormatError(f"a packet of more than {_LONGEST} bytes", self.where)
                seen = len(buffer)
                self._more(command, deadline)
                if seen == 0:
                    break  # it may be noise
                end = end if end >= 0 else buffer.find(b"#", seen)
            else:
                raw, digits = bytes(buffer[1:end]), bytes(buffer[end + 1 : end + 3])
                wanted = buffer[0] == 0x24
                del buffer[: end + 3]
                if wanted:
                    return raw, digits.lower() == b"%02x" % (sum(raw) & 0xFF)

    def _more(self, command: bytes, deadline: float | None) -> None:
        """Wait for some bytes."""
        from time import monotonic

        remaining = None if deadline is None else deadline - monotonic()
        try:
            if remaining is not None and remaining <= 0:
                raise TimeoutError
            self._line.settimeout(remaining)
            data = self._line.recv(65536)
        except TimeoutError:
            what = f" to {command[:20].decode('ascii', 'replace')!r}" if command else ""
            raise SourceError(
                f"no answer{what} within {self.timeout:g} s",
                self.where,
                "--timeout gives it longer",
            ) from None
        except OSError as error:
            raise SourceError(f"the connection broke: {_why(error)}", self.where) from None
        if not data:
            raise SourceError("the stub has hung up", self.where)
        self._buffer += data


def connect(address: str, timeout: float) -> Connection:
    """A connection to HOST:PORT, [IPV6]:PORT, :PORT of this machine, or a socket's path.

    Raises SourceError where there is no such place or nobody listens.
    """
    import socket

    try:
        if "/" in address:
            line = _connected(address.removeprefix("unix:"), timeout)
        else:
            line = socket.create_connection(_host_and_port(address), timeout)
            # Each command waits for its reply: a delay to send more at once is only a delay.
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        hint = "is the stub there, and does no other debugger hold it?"
        raise SourceError(f"cannot connect: {_why(error)}", address, hint) from None
    return Connection(line, address, timeout)


def _connected(path: str, timeout: float) -> socket:
    """A connection to the socket at `path`."""
    import socket

    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(timeout)
        line.connect(path)
    except OSError:
        line.close()
        raise
    return line


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("tcp:").rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < _PORTS:
        raise SourceError("not HOST:PORT nor the path of a socket", address)
    return host.removeprefix("[").removesuffix("]") or "localhost", int(port)


def _first_of(buffer: bytearray, wanted: bytes) -> int:
    """Where the first of the `wanted` bytes lies, or the buffer's end."""
    return min((at for byte in wanted if (at := buffer.find(byte)) >= 0), default=len(buffer))


def _why(error: OSError) -> str:
    text = error.strerror or str(error) or "no answer"
    return text[:1].lower() + text[1:]
