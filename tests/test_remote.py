"""The GDB remote protocol: packets, documents and commands, against stubs that follow a script."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stubs import Answer, Scripted, packet
from unwind.arch import arm64, mips32, x86_64
from unwind.errors import (
    FormatError,
    MemoryFault,
    SourceError,
    UnsupportedArchitecture,
    UnwindError,
)
from unwind.files import Files
from unwind.registers import Registers
from unwind.remote import documents
from unwind.remote.client import Client, StopReply, ThreadId
from unwind.remote.memory import RemoteMemory
from unwind.remote.packets import Connection, connect, decoded, encoded
from unwind.transports.gdb_remote import TRANSPORT, RegisterReader
from unwind.unwinder import unwind

TIMEOUT = 0.3
MAIN = ThreadId("p1.2", 2, 1)


@contextmanager
def stub(answers: Mapping[bytes, Answer], **options: object) -> Iterator[tuple[Client, Scripted]]:
    """A client of a stub that follows a script."""
    scripted = Scripted(answers, **options)  # type: ignore[arg-type]
    try:
        yield Client(Connection(scripted.line, "script", TIMEOUT)), scripted
    finally:
        scripted.close()


def compressed(payload: bytes) -> bytes:
    """A payload with its runs written as a stub may write them (appendix E.1)."""
    found, at = b"", 0
    while at < len(payload):
        run = 1
        while run < 97 and payload[at : at + 1] == payload[at + run : at + run + 1]:
            run += 1
        count = run - 1 + 29
        while run > 3 and chr(count) in "#$+-":
            run, count = run - 1, count - 1
        found += payload[at : at + 1] + (b"*%c" % count if run > 3 else b"")
        at += run if run > 3 else 1
    return found


# ------------------------------------------------------------------------------------ packets


@given(st.binary(max_size=300))
def test_what_is_encoded_is_decoded(payload: bytes) -> None:
    sent = encoded(payload)
    assert sent[:1] == b"$"
    assert sent[-3:-2] == b"#"
    assert int(sent[-2:], 16) == sum(sent[1:-3]) % 256
    assert b"#" not in sent[1:-3]
    assert b"$" not in sent[1:-3]
    assert decoded(sent[1:-3]) == payload


@given(st.lists(st.tuples(st.sampled_from(b"0fxE"), st.integers(1, 300)), max_size=20))
def test_runs_are_written_out(runs: list[tuple[int, int]]) -> None:
    payload = b"".join(bytes((byte,)) * count for byte, count in runs)
    assert decoded(compressed(payload)) == payload


@pytest.mark.parametrize("raw", [b"*4", b"a*", b"a*\x1d", b"a*\x7f"])
def test_a_run_of_nothing_is_an_error(raw: bytes) -> None:
    with pytest.raises(FormatError, match="repeats nothing"):
        decoded(raw)


def test_runs_upon_runs_are_bounded() -> None:
    with pytest.raises(FormatError, match="more than"):
        decoded(b"a*~" * 200_000)


def test_each_reply_is_acknowledged_until_both_agree_to_do_without() -> None:
    answers = {b"qSupported": b"QStartNoAckMode+;PacketSize=400", b"QStartNoAckMode": b"OK"}
    with stub(answers) as (client, scripted):
        assert client.connection.acknowledges
        client.begin()
        assert not client.connection.acknowledges
        assert client.packet_size == 0x400
        assert scripted.asked[1] == b"QStartNoAckMode"


def test_a_damaged_reply_is_asked_for_again() -> None:
    sent = iter([b"+$OK#00", b"$OK#9a"])
    with stub({b"qOne": b""}, wrap=lambda _: next(sent)) as (client, _):
        client.connection._put(b"")
        client.connection.send(b"qOne")
        # The script knows commands alone, no refusals: the second copy comes with the next one.
        client.connection.send(b"qOne")
        assert client.connection.receive(TIMEOUT) == b"OK"


def test_a_reply_that_stays_damaged_is_an_error() -> None:
    with (
        stub({b"qOne": b""}, wrap=lambda _: b"+$OK#00$OK#00$OK#00") as (client, _),
        pytest.raises(FormatError, match="checksum"),
    ):
        client.connection.ask(b"qOne")


def test_a_refused_command_is_sent_again() -> None:
    sent = iter([b"-", b"+$OK#9a"])
    with stub({b"qOne": b""}, wrap=lambda _: next(sent)) as (client, scripted):
        assert client.connection.ask(b"qOne") == b"OK"
        assert scripted.asked == [b"qOne", b"qOne"]


def test_a_command_is_not_sent_for_ever() -> None:
    with (
        stub({b"qOne": b""}, wrap=lambda _: b"-") as (client, scripted),
        pytest.raises(FormatError, match="refused"),
    ):
        client.connection.ask(b"qOne")
    assert len(scripted.asked) == 3


def test_notifications_and_noise_are_passed_over() -> None:
    noise = b"boot: ok\r\n%Stop:T05#aa++"
    with stub({b"qOne": b"OK"}, wrap=lambda answer: noise + packet(answer)) as (client, _):
        assert client.connection.ask(b"qOne") == b"OK"


def test_a_stub_that_says_nothing_is_not_waited_for() -> None:
    with stub({b"q": lambda _: None}) as (client, _):
        begun = time.monotonic()
        with pytest.raises(SourceError, match=r"no answer to 'qOne' within 0\.3 s"):
            client.connection.ask(b"qOne")
        assert TIMEOUT <= time.monotonic() - begun < 10 * TIMEOUT


def test_a_stub_that_hangs_up_is_an_error() -> None:
    with stub({}) as (client, scripted):
        scripted._far.shutdown(2)
        with pytest.raises(SourceError, match=r"hung up|broke"):
            client.connection.ask(b"qOne")


@pytest.mark.parametrize("flood", [b"$" + b"a" * (1 << 23), b"?" * (1 << 22), b"%a#00" * (1 << 19)])
def test_a_flood_is_no_packet(flood: bytes) -> None:
    with (
        stub({b"q": b""}, wrap=lambda _: flood) as (client, _),
        pytest.raises((FormatError, SourceError)),
    ):
        client.connection.ask(b"qOne")


@pytest.mark.parametrize("address", ["", "host", "host:", "host:0", "host:65536", "host:x", ":-1"])
def test_an_address_without_a_port_is_an_error(address: str) -> None:
    with pytest.raises(SourceError, match="not HOST:PORT"):
        connect(address, TIMEOUT)


@pytest.mark.parametrize("address", ["/nowhere/stub", "unix:/nowhere/stub", "localhost:1"])
def test_nobody_who_listens_is_an_error(address: str) -> None:
    with pytest.raises(SourceError, match="cannot connect"):
        connect(address, TIMEOUT)


# ---------------------------------------------------------------------------------- documents


def target(*body: str) -> bytes:
    head = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    return (head + "".join(body) + "</target>").encode()


def described(**parts: bytes) -> documents.Description:
    """The description that the documents make; `target` is target.xml."""
    named = {f"{name}.xml": text for name, text in parts.items()}
    found = documents.description(named.get, "script")
    assert found is not None
    return found


def test_registers_lie_in_the_order_of_their_numbers() -> None:
    found = described(
        target=target(
            "<architecture>mips</architecture>",
            '<xi:include href="later.xml"/><xi:include href="first.xml"/>',
        ),
        later=b'<feature><reg name="pc" bitsize="32" regnum="37"/><reg name="f0" bitsize="64"/>'
        b"</feature>",
        first=b'<feature><reg name="r0" bitsize="32" regnum="0"/><reg name="r1" bitsize="32"/>'
        b"</feature>",
    )
    assert found.architecture == "mips"
    assert [(f.name, f.number, f.offset, f.size) for f in found.fields] == [
        ("r0", 0, 0, 4),
        ("r1", 1, 4, 4),
        ("pc", 37, 8, 4),
        ("f0", 38, 12, 8),
    ]


def test_a_stub_without_a_description_has_none() -> None:
    assert documents.description(lambda _: None, "script") is None


BILLION = (
    b'<!DOCTYPE target [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b"<target><architecture>&b;</architecture></target>"
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (target('<xi:include href="target.xml"/>'), "without end"),
        (target('<xi:include href="loop.xml"/>'), "without end"),
        (target('<xi:include href="missing.xml"/>'), "lacks its part"),
        (target(*['<xi:include href="small.xml"/>'] * 100), "without end"),
        (target('<reg name="a"/>'), "without its size"),
        (target('<reg name="a" bitsize="x"/>'), "without its size"),
        (target('<reg name="a" bitsize="-8"/>'), "bits"),
        (target('<reg name="a" bitsize="8" regnum="999999999999"/>'), "bits"),
        (target(*['<reg name="a" bitsize="8"/>'] * 9000), "more than 8192 registers"),
        (BILLION, "entities"),
        (b"<target>", "no XML"),
        (b"\xff\xfe\0", "no XML"),
    ],
)
def test_a_hostile_description_is_an_error(text: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        described(target=text, loop=target('<xi:include href="loop.xml"/>'), small=target())


def test_libraries_and_threads_are_read_from_their_documents() -> None:
    text = (
        b'<library-list-svr4 version="1.0" main-lm="0x1">'
        b'<library name="/lib/libc.so.6" lm="0x1" l_addr="0x7f00" l_ld="0x7f10" lmid="0x0"/>'
        b"</library-list-svr4>"
    )
    assert documents.libraries(text, "script") == [(0x7F00, "/lib/libc.so.6", 0x7F10)]
    with pytest.raises(FormatError):
        documents.libraries(b'<l><library name="x" l_addr="y"/></l>', "script")
    text = b'<threads><thread id="p1.2" core="0" name="worker"/><thread id="3"/></threads>'
    found = documents.threads(text, "script")
    assert [(thread.id, thread.name) for thread in found] == [("p1.2", "worker"), ("3", "")]


# ----------------------------------------------------------------------------------- commands


def test_threads_are_listed_to_the_end() -> None:
    rest = iter([b"mp1.b,p1.c", b"l"])
    answers: dict[bytes, Answer] = {b"qfThread": b"mp1.a", b"qsThread": lambda _: next(rest)}
    with stub(answers) as (client, _):
        assert [(t.text, t.pid, t.tid) for t in client.threads()] == [
            ("p1.a", 1, 10),
            ("p1.b", 1, 11),
            ("p1.c", 1, 12),
        ]


def test_a_list_of_threads_that_goes_round_ends() -> None:
    with stub({b"qfThread": b"m1,2", b"qsThread": b"m1,2"}) as (client, _):
        assert [thread.tid for thread in client.threads()] == [1, 2]


@pytest.mark.parametrize(("reply", "text"), [(b"QC1f", "1f"), (b"", "0")])
def test_a_stub_without_a_list_has_its_current_thread(reply: bytes, text: str) -> None:
    with stub({b"qC": reply}) as (client, _):
        assert [thread.text for thread in client.threads()] == [text]


@pytest.mark.parametrize("text", [b"mxyz", b"mp1.z", b"mpz.1", b"m1,q"])
def test_a_thread_without_a_number_is_an_error(text: bytes) -> None:
    with (
        stub({b"qfThread": text, b"qsThread": b"l"}) as (client, _),
        pytest.raises(FormatError, match="no thread id"),
    ):
        client.threads()


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (b"S05", StopReply("S", 5)),
        (b"T0b06:0*,;thread:p1.2;core:0;", StopReply("T", 11, MAIN)),
        (b"W00", StopReply("W", 0)),
        (b"W01;process:1", StopReply("W", 1)),
        (b"X0b", StopReply("X", 11)),
        (b"N", StopReply("N")),
    ],
)
def test_a_stop_reply_tells_why(reply: bytes, wanted: StopReply) -> None:
    with stub({b"?": reply}) as (client, _):
        assert client.status() == wanted
        assert wanted.ended is (wanted.kind in "WXN")


@pytest.mark.parametrize("reply", [b"", b"T", b"Txx", b"T05thread:zz;", b"OK", b"W"])
def test_what_is_no_stop_reply_is_an_error(reply: bytes) -> None:
    with stub({b"?": reply}) as (client, _), pytest.raises(FormatError):
        client.status()


def test_a_running_target_is_stopped() -> None:
    with stub({b"?": lambda _: None, b"\x03": b"T02thread:p1.2;"}) as (client, scripted):
        assert client.status() == StopReply("T", 2, MAIN)
        assert scripted.asked == [b"?", b"\x03"]


def test_what_the_target_prints_is_passed_over() -> None:
    wrap = lambda answer: packet(b"O48690a") + packet(answer)  # noqa: E731
    with stub({b"c": b"S0b"}, wrap=wrap) as (client, _):
        client.resume()
        assert client.wait(TIMEOUT) == StopReply("S", 11)


def test_a_stop_that_nobody_asked_for_is_passed_over() -> None:
    """qemu-system stops its machine when a debugger comes, and says so at any time."""
    greeting = packet(b"T02thread:p01.01;")
    with stub({b"qSupported": b"PacketSize=400"}, greeting=greeting) as (client, _):
        client.begin()
        assert client.packet_size == 0x400


def test_a_step_names_its_thread() -> None:
    with stub({b"vCont?": b"vCont;c;C;s;S", b"vCont;": b"T05thread:p1.2;"}) as (client, scripted):
        assert client.step(MAIN) == StopReply("T", 5, MAIN)
        assert client.step(MAIN, 11) == StopReply("T", 5, MAIN)
        assert scripted.asked == [b"vCont?", b"vCont;s:p1.2", b"vCont;S0b:p1.2"]


def test_a_stub_without_vcont_steps_the_selected_thread() -> None:
    with stub({b"H": b"OK", b"s": b"S05"}) as (client, scripted):
        assert client.step(MAIN) == StopReply("S", 5)
        assert scripted.asked == [b"vCont?", b"Hcp1.2", b"s"]


@pytest.mark.parametrize(("reply", "wanted"), [(b"OK", True), (b"E01", False), (b"", False)])
def test_detaching_is_confirmed(reply: bytes, wanted: bool) -> None:
    with stub({b"qSupported": b"multiprocess+", b"D": reply}) as (client, scripted):
        client.begin()
        assert client.detach(0x2A) is wanted
        assert client.detach(None) is wanted
        assert scripted.asked[1:] == [b"D;2a", b"D"]


def test_nothing_kills_or_changes_the_target() -> None:
    answers = {**X86_STUB, b"D": b"OK"}
    scripted = Scripted(answers)
    with (
        Files() as files,
        TRANSPORT.attach(Connection(scripted.line, "script", TIMEOUT), files) as source,
    ):
        list(source.snapshots())
    scripted.close()
    assert scripted.asked[-1] == b"D"
    changing = (b"k", b"vKill", b"G", b"P", b"M", b"X", b"Z", b"z", b"R", b"!")
    assert not [command for command in scripted.asked if command.startswith(changing)]


# ------------------------------------------------------------------------------------ objects


def test_an_object_comes_in_pieces() -> None:
    whole = bytes(range(256)) * 3

    def piece(command: bytes) -> bytes:
        offset, size = (int(word, 16) for word in command.rpartition(b":")[2].split(b","))
        part = whole[offset : offset + min(size, 100)]
        return encoded((b"m" if offset + 100 < len(whole) else b"l") + part)[1:-3]

    answers = {b"qSupported": b"qXfer:auxv:read+", b"qXfer:auxv:read::": piece}
    with stub(answers) as (client, _):
        client.begin()
        assert client.object("auxv") == whole
        assert client.object("threads") is None


def test_an_object_without_end_is_an_error() -> None:
    answers = {b"qSupported": b"qXfer:auxv:read+;PacketSize=20000", b"qXfer": b"m" + b"a" * 100_000}
    with stub(answers) as (client, _):
        client.begin()
        with pytest.raises(FormatError, match="more than"):
            client.object("auxv")


def test_an_object_that_stands_still_ends() -> None:
    with stub({b"qSupported": b"qXfer:auxv:read+", b"qXfer": b"m"}) as (client, _):
        client.begin()
        assert client.object("auxv") == b""


# ------------------------------------------------------------------------------------- memory


def reader(memory: Mapping[int, bytes]) -> Answer:
    """Answers `m`: as many bytes as lie there, none is an error."""

    def answer(command: bytes) -> bytes:
        address, size = (int(word, 16) for word in command[1:].split(b","))
        for start, data in memory.items():
            if start <= address < start + len(data):
                return data[address - start :][:size].hex().encode()
        return b"E01"

    return answer


def test_memory_is_read_over_the_edges_of_packets() -> None:
    data = random.Random(4).randbytes(3000)
    answers: dict[bytes, Answer] = {b"qSupported": b"PacketSize=200", b"m": reader({0x1000: data})}
    with stub(answers) as (client, scripted):
        client.begin()
        memory = RemoteMemory(client)
        assert memory.read(0x1000, 3000) == data
        assert memory.read(0x1801, 9) == data[0x801:][:9]
        asked = len(scripted.asked)
        assert memory.read(0x1000, 3000) == data
        assert len(scripted.asked) == asked
        for address, size in ((0x1000, 3001), (0xFFF, 2), (0x5000, 1), (0x1000, -1), (0, 1 << 40)):
            with pytest.raises(MemoryFault):
                memory.read(address, size)


def test_a_forgotten_block_is_read_anew() -> None:
    contents = {0x1000: b"old"}
    with stub({b"m": reader(contents)}) as (client, _):
        memory = RemoteMemory(client)
        assert memory.read(0x1000, 3) == b"old"
        contents[0x1000] = b"new"
        assert memory.read(0x1000, 3) == b"old"
        memory.forget()
        assert memory.read(0x1000, 3) == b"new"


def test_binary_reads_are_used_where_the_stub_has_them() -> None:
    data = bytes(range(256))

    def answer(command: bytes) -> bytes:
        address, size = (int(word, 16) for word in command[1:].split(b","))
        return encoded(b"b" + data[address:][:size])[1:-3]

    with stub({b"qSupported": b"binary-upload+", b"x": answer}) as (client, _):
        client.begin()
        assert RemoteMemory(client).read(3, 250) == data[3:253]


@pytest.mark.parametrize("reply", [b"zz", b"0", b"\xff\xff"])
def test_memory_that_is_no_hexadecimal_is_an_error(reply: bytes) -> None:
    with stub({b"m": reply}) as (client, _), pytest.raises(FormatError):
        RemoteMemory(client).read(0, 4)


# ---------------------------------------------------------------------------------- registers


def words(*values: int, size: int = 8, order: str = "little") -> bytes:
    return b"".join(
        value.to_bytes(size, "little" if order == "little" else "big").hex().encode()
        for value in values
    )


def read_registers(
    answers: Mapping[bytes, Answer], arch: object = x86_64.ARCH, text: bytes = b""
) -> Registers:
    with stub({b"H": b"OK", **answers}) as (client, _):
        found = documents.description(lambda _: text or None, "script")
        return RegisterReader(arch, found, client).read(MAIN)  # type: ignore[arg-type]


def test_registers_are_known_by_their_names() -> None:
    text = target(
        "<architecture>i386:x86-64</architecture>",
        '<reg name="rip" bitsize="64"/><reg name="rsp" bitsize="64"/>',
        '<reg name="eflags" bitsize="32"/><reg name="st0" bitsize="80"/>',
        '<reg name="fs_base" bitsize="64"/>',
    )
    reply = words(0x1234, 0x7FFC) + words(0x246, size=4) + b"00" * 10 + words(0x7F00)
    found = read_registers({b"g": reply}, text=text)
    assert found == {
        x86_64.RIP: 0x1234,
        x86_64.RSP: 0x7FFC,
        x86_64.RFLAGS: 0x246,
        x86_64.FS_BASE: 0x7F00,
    }


def test_registers_without_a_description_lie_as_gdb_has_them() -> None:
    found = read_registers({b"g": words(*range(17)) + b"00" * 4})
    assert [found[n] for n in (x86_64.RAX, x86_64.RSP, x86_64.RIP)] == [0, 7, 16]
    found = read_registers({b"g": words(*range(33)) + b"00" * 4}, arm64.ARCH)
    assert [found[n] for n in (0, 30, arm64.SP, arm64.PC)] == [0, 30, 31, 32]
    found = read_registers({b"g": words(*range(38), size=4, order="big")}, mips32.MIPS32)
    assert [found[n] for n in (mips32.SP, mips32.RA, mips32.PC, mips32.CAUSE)] == [29, 31, 37, 36]


def test_what_the_stub_does_not_know_is_absent() -> None:
    reply = words(1, 2) + b"x" * 16 + words(4)
    found = read_registers({b"g": reply})
    assert found == {x86_64.RAX: 1, x86_64.RBX: 2, x86_64.RDX: 4}


def test_registers_come_one_by_one_where_there_is_no_g() -> None:
    found = read_registers({b"p": lambda command: words(int(command[1:], 16)), b"pf": b"E01"})
    assert found[x86_64.RIP] == 16
    assert x86_64.R15 not in found


def test_a_thread_that_is_gone_is_an_error() -> None:
    with pytest.raises(SourceError, match="not there"):
        read_registers({b"H": b"E01"})


# ---------------------------------------------------------------------------- a whole target

X86_STUB: dict[bytes, Answer] = {
    b"qSupported": b"PacketSize=400;qXfer:features:read+",
    b"qXfer:features:read:target.xml": b"l"
    + target(
        "<architecture>i386:x86-64</architecture>",
        '<reg name="rip" bitsize="64"/><reg name="rsp" bitsize="64"/>',
    ),
    b"?": b"T05thread:7;",
    b"qfThreadInfo": b"m6,7",
    b"qsThreadInfo": b"l",
    b"qThreadExtraInfo,7": b"main".hex().encode(),
    b"H": b"OK",
    b"g": words(0x401000, 0x7000),
    b"m": reader({0x7000: bytes(64)}),
    b"D": b"OK",
}


def attached(answers: Mapping[bytes, Answer], arch: str | None = None) -> list[tuple[int, str]]:
    """The threads of a stub with the names that it gives them; each stack is walked."""
    scripted = Scripted(answers)
    try:
        with (
            Files() as files,
            TRANSPORT.attach(
                Connection(scripted.line, "script", TIMEOUT), files, arch=arch
            ) as source,
        ):
            snapshots = list(source.snapshots())
            for snapshot in snapshots:
                unwind(snapshot, limit=100)
            return [(snapshot.tid, snapshot.name or "") for snapshot in snapshots]
    finally:
        scripted.close()


def test_the_thread_that_stopped_comes_first() -> None:
    assert attached(X86_STUB) == [(7, "main"), (6, "")]


def test_a_target_that_has_ended_is_an_error() -> None:
    with pytest.raises(SourceError, match="exit code 3"):
        attached({**X86_STUB, b"?": b"W03"})


def test_an_unknown_architecture_is_an_error_and_the_target_is_let_go() -> None:
    text = b"l" + target("<architecture>riscv:rv64</architecture>")
    scripted = Scripted({**X86_STUB, b"qXfer:features:read:target.xml": text})
    connection = Connection(scripted.line, "script", TIMEOUT)
    with Files() as files, pytest.raises(UnsupportedArchitecture, match="riscv"):
        TRANSPORT.attach(connection, files)
    scripted.close()
    assert scripted.asked[-1] == b"D"


def test_an_architecture_that_nobody_tells_must_be_given() -> None:
    silent = {**X86_STUB, b"qSupported": b"PacketSize=400", b"g": words(*range(17))}
    with pytest.raises(SourceError, match="does not tell"):
        attached(silent)
    assert attached(silent, "x86_64") == [(7, "main"), (6, "")]
    with pytest.raises(SourceError, match="no architecture 'x86'"):
        attached(silent, "x86")


@given(st.integers(0, 1 << 32))
def test_random_answers_end_in_a_typed_error_or_an_answer(seed: int) -> None:
    """A stub that answers some commands wrongly, each time otherwise."""
    chance = random.Random(seed)
    pieces = [
        b"", b"OK", b"E01", b"l", b"m", b"l<target>", b"T05", b"W00", b"p1.2", b"m1,2,3", b"-1",
        b"0" * 400, b"x" * 32, b"QC1", b"F", b"}", b"a*~", b"*", b"\xff" * 9, b"PacketSize=0",
        b"PacketSize=ffffffffffffffffff;qXfer:auxv:read+;qXfer:features:read+;QStartNoAckMode+",
        b"m" + b"\x03" * 16, b"l" + bytes(8),
    ]  # fmt: skip

    def lie(answer: Answer) -> Answer:
        def answers(command: bytes) -> bytes | None:
            if chance.random() < 0.6:
                return answer(command) if callable(answer) else answer
            return chance.choice(pieces) + chance.choice(pieces)

        return answers

    known = {**X86_STUB, b"qXfer": b"", b"q": b"", b"p": b"", b"Q": b"OK", b"v": b""}
    try:
        attached({key: lie(answer) for key, answer in known.items()}, "x86_64")
    except UnwindError:
        pass
