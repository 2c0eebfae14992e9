"""debuginfod: files and sections from servers, good ones and bad ones, and elfutils' cache."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.cores import shared_object
from tests.recordings import shipped
from tests.support import need, python, run
from tests.test_debug_files import built, identity, opened, tool
from unwind.debuginfod.cache import Cache, cache_directory
from unwind.debuginfod.client import Client, client_of
from unwind.elf import Elf
from unwind.files import Files
from unwind.frames import End
from unwind.mending import Mender
from unwind.transports.core import TRANSPORT as CORE
from unwind.unwinder import Unwinder

ID, OTHER = bytes(range(20)), bytes(range(100, 120))
GOOD = shared_object(ID)


@pytest.fixture(scope="module", autouse=True)
def without_proxies() -> Iterator[None]:
    """What is asked here is asked of this machine."""
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"
    yield
    os.environ.pop("no_proxy")
    if before is not None:
        os.environ["no_proxy"] = before


# ------------------------------------------------------------------------------- a server of ours


class Handler(BaseHTTPRequestHandler):
    """Answers as the test wants; `asked` are the paths."""

    answer: Callable[[Handler], None]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        with contextlib.suppress(OSError):  # who asked has had enough
            self.answer()

    def give(self, body: bytes, code: int = 200, size: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if size != -1:
            self.send_header("Content-Length", str(len(body) if size is None else size))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        pass


class Server:
    """A server on loopback that answers every question by a function."""

    def __init__(self, answer: Callable[[Handler], None]):
        self.asked: list[str] = []
        handler = type("Answering", (Handler,), {"answer": answer, "asked": self.asked})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def client(tmp_path: Path, *servers: str, seconds: float = 20, largest: int = 1 << 20) -> Client:
    cache = Cache(str(tmp_path / "cache"))
    return Client(servers, cache, seconds=seconds, largest=largest, http=True)


def asked(tmp_path: Path, answer: Callable[[Handler], None], **limits: float) -> tuple[str, str]:
    """What the client has after it asked a server for ID ("" for nothing), and its warnings."""
    with Server(answer) as server:
        made = client(tmp_path, server.url, **limits)  # type: ignore[arg-type]
        path = made.file(ID, "executable", "lib.so")
    assert list((tmp_path / "cache").glob("**/*.*-*")) == [], "a part of a download is left"
    return path or "", "\n".join(made.warnings)


# ----------------------------------------------------------------------------------- what is used


def test_a_file_is_fetched_once_and_then_in_the_cache(tmp_path: Path) -> None:
    with Server(lambda handler: handler.give(GOOD)) as server:
        made = client(tmp_path, server.url + "/")
        path = made.file(ID, "debuginfo")
        assert path == f"{tmp_path}/cache/{ID.hex()}/debuginfo"
        assert Path(path).read_bytes() == GOOD
        assert made.file(ID, "debuginfo") == path
        assert server.asked == [f"/buildid/{ID.hex()}/debuginfo"]
    assert client(tmp_path, server.url).file(ID, "debuginfo") == path
    assert client(tmp_path).file(ID, "debuginfo") == path
    assert made.warnings == []


def test_what_no_server_has_is_not_asked_for_again(tmp_path: Path) -> None:
    with Server(lambda handler: handler.give(b"", 404)) as server:
        assert client(tmp_path, server.url).file(ID, "debuginfo") is None
        assert client(tmp_path, server.url).file(ID, "debuginfo") is None
        assert len(server.asked) == 1
        empty = tmp_path / "cache" / ID.hex() / "debuginfo"
        os.utime(empty, (0, time.time() - 700))
        assert client(tmp_path, server.url).file(ID, "debuginfo") is None
        assert len(server.asked) == 2


def test_a_bar_shows_each_file(tmp_path: Path) -> None:
    shown: list[tuple[str, int, int | None]] = []
    closed: list[str] = []

    class Bar:
        def __init__(self, name: str):
            self.name = name

        def __call__(self, done: int, total: int | None) -> None:
            shown.append((self.name, done, total))

        def close(self) -> None:
            closed.append(self.name)

    with Server(lambda handler: handler.give(GOOD)) as server:
        made = Client([server.url], Cache(str(tmp_path)), http=True, watch=Bar)
        assert made.file(ID, "executable", "lib.so")
        assert made.section(OTHER, ".eh_frame")
    assert shown[-1] == (OTHER.hex(), len(GOOD), len(GOOD))
    assert ("lib.so", len(GOOD), len(GOOD)) in shown
    assert closed == ["lib.so", OTHER.hex()]


def test_the_next_server_is_asked(tmp_path: Path) -> None:
    with (
        Server(lambda handler: handler.give(b"", 404)) as poor,
        Server(lambda handler: handler.give(GOOD)) as rich,
    ):
        made = client(tmp_path, poor.url, rich.url)
        assert made.file(ID, "debuginfo")
        assert (len(poor.asked), len(rich.asked)) == (1, 1)


def test_a_section_is_asked_for_by_its_name(tmp_path: Path) -> None:
    with Server(lambda handler: handler.give(b"some CFI")) as server:
        path = client(tmp_path, server.url).section(ID, ".eh_frame")
        assert path == f"{tmp_path}/cache/{ID.hex()}/section-.eh_frame"
        assert server.asked == [f"/buildid/{ID.hex()}/section/.eh_frame"]


@pytest.mark.parametrize("build_id", [b"", b"\0", bytes(7), bytes(65)], ids=len)
def test_no_server_is_bothered_with_what_is_no_build_id(tmp_path: Path, build_id: bytes) -> None:
    with Server(lambda handler: handler.give(GOOD)) as server:
        assert client(tmp_path, server.url).file(build_id, "debuginfo") is None
        assert server.asked == []


# ---------------------------------------------------------------------------------- bad servers


def _cut_short(handler: Handler) -> None:
    handler.give(GOOD[:-100], size=len(GOOD))


def _cut_without_a_size(handler: Handler) -> None:
    handler.give(GOOD[: len(GOOD) - 20], size=-1)


def _broken_chunks(handler: Handler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.give(b"40\r\n" + GOOD[:64] + b"\r\nffff\r\nabc", size=-1, Transfer_Encoding="chunked")
    handler.close_connection = True


def _garbage(handler: Handler) -> None:
    handler.wfile.write(b"\xff\0 this is no HTTP\r\n" * 10)


def _to_a_file(handler: Handler) -> None:
    handler.give(b"", 302, Location="file:///etc/passwd")


def _to_ftp(handler: Handler) -> None:
    handler.give(b"", 302, Location="ftp://127.0.0.1/x")


def _around(handler: Handler) -> None:
    handler.give(b"", 302, Location=handler.path)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: handler.give(shared_object(OTHER)), f"a file of build-id {OTHER.hex()}"),
        (lambda handler: handler.give(shared_object(None)), "without a build-id"),
        (lambda handler: handler.give(b"<html>Welcome to this hotel's net"), "no ELF file"),
        (lambda handler: handler.give(b""), "sent nothing"),
        (_cut_short, "it ended after"),
        (_cut_without_a_size, "cut short"),
        (_broken_chunks, "IncompleteRead"),
        (_garbage, "BadStatusLine"),
        (_to_a_file, "HTTP 302"),
        (_to_ftp, "sends us on to ftp://127.0.0.1/x"),
        (_around, "HTTP 302"),
        (lambda handler: handler.give(b"", 500), "HTTP 500"),
        (lambda handler: handler.give(b"", 406), "larger than the limit"),
        (lambda handler: handler.give(GOOD, Content_Encoding="gzip"), "compressed"),
        (lambda handler: handler.give(b"", size=1 << 40), "more than the limit"),
        (lambda handler: handler.give(bytes(2 << 20), size=-1), "larger than the limit"),
    ],
)
def test_what_a_bad_server_sends_is_not_used(
    tmp_path: Path, answer: Callable[[Handler], None], reason: str
) -> None:
    path, warnings = asked(tmp_path, answer)
    assert path == ""
    assert reason in warnings
    assert not (tmp_path / "cache" / ID.hex() / "executable").exists()


def test_a_server_behind_a_liar_is_asked(tmp_path: Path) -> None:
    with (
        Server(lambda handler: handler.give(shared_object(OTHER))) as liar,
        Server(lambda handler: handler.give(GOOD)) as honest,
    ):
        made = client(tmp_path, liar.url, honest.url)
        path = made.file(ID, "debuginfo")
        assert path is not None
        assert Path(path).read_bytes() == GOOD
        assert "it was not used" in made.warnings[0]


@pytest.mark.parametrize(
    "sends", [b"", b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n\x7fELF"]
)
def test_a_server_that_never_ends_is_left(tmp_path: Path, sends: bytes) -> None:
    done = threading.Event()

    def drip(handler: Handler) -> None:
        handler.wfile.write(sends)
        while not done.wait(0.05):
            handler.wfile.write(b"x" if sends else b"")
            handler.wfile.flush()

    try:
        path, warnings = asked(tmp_path, drip, seconds=0.4)
    finally:
        done.set()
    assert path == ""
    assert "longer than" in warnings or "in time" in warnings


def test_time_is_for_all_and_what_is_over_is_said_once(tmp_path: Path) -> None:
    done = threading.Event()
    try:
        with Server(lambda handler: done.wait() and None) as server:  # type: ignore[func-returns-value]
            made = client(tmp_path, "http://127.0.0.1:1", server.url, seconds=0.3)
            assert made.file(ID, "debuginfo") is None
            made._servers.append(server.url)
            assert made.file(OTHER, "debuginfo") is None
            assert made.file(bytes(20), "debuginfo") is None
            said = [text for text in made.warnings if "not all was asked for" in text]
            assert len(said) == 1
            assert len(server.asked) == 1
    finally:
        done.set()


def test_a_server_that_is_not_there_is_not_asked_twice(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        made = client(
            tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}", "http://nowhere.invalid"
        )
        for build_id in (ID, OTHER):
            assert made.file(build_id, "debuginfo") is None
    assert len(made.warnings) == 2
    assert not (tmp_path / "cache" / ID.hex() / "debuginfo").exists()


def test_servers_are_asked_by_https_unless_told_otherwise(tmp_path: Path) -> None:
    with Server(lambda handler: handler.give(GOOD)) as server:
        urls = ["ima:enforcing", server.url, "ftp://x", "file:///"]
        made = Client(urls, Cache(str(tmp_path)))
        assert made.file(ID, "debuginfo") is None
        assert server.asked == []
    assert "not encrypted (--debuginfod-http)" in made.warnings[0]
    assert len(made.warnings) == 3


def test_no_answer_leads_from_https_to_http(tmp_path: Path) -> None:
    from unwind.debuginfod.transfer import TransferError, _opener

    opener = _opener(("https",))
    (redirections,) = [each for each in opener.handlers if hasattr(each, "redirect_request")]
    with pytest.raises(TransferError, match="sends us on to http://"):
        redirections.redirect_request(None, io.BytesIO(), 302, "", {}, "http://elsewhere/")


# -------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DEBUGINFOD_CACHE_PATH": "/c", "HOME": "{}"}, "/c"),
        ({"HOME": "{}", "XDG_CACHE_HOME": "/x"}, "/x/debuginfod_client"),
        ({"HOME": "{}"}, "{}/.cache/debuginfod_client"),
        ({"HOME": "{}/old", "XDG_CACHE_HOME": "/x"}, "{}/old/.debuginfod_client_cache"),
        ({}, "//.cache/debuginfod_client"),
    ],
)
def test_the_cache_lies_where_elfutils_has_it(
    tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    (tmp_path / "old/.debuginfod_client_cache").mkdir(parents=True)
    given = {name: value.format(tmp_path) for name, value in environment.items()}
    assert cache_directory(given) == expected.format(tmp_path)


def test_a_file_in_the_cache_that_is_another_one_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "cache" / ID.hex() / "executable"
    for wrong in (shared_object(OTHER), GOOD[:-20], b"no ELF"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(wrong)
        assert client(tmp_path).file(ID, "executable") is None
        with Server(lambda handler: handler.give(GOOD)) as server:
            assert client(tmp_path, server.url).file(ID, "executable") == str(place)
        assert place.read_bytes() == GOOD


@pytest.mark.parametrize("maker", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_in_the_cache_is_not_read(
    tmp_path: Path, maker: Callable[[str], None]
) -> None:
    place = tmp_path / "cache" / ID.hex() / "debuginfo"
    place.parent.mkdir(parents=True)
    maker(str(place))
    assert client(tmp_path).file(ID, "debuginfo") is None


def test_without_a_cache_nothing_is_fetched_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with Server(lambda handler: handler.give(GOOD)) as server:
        made = client(tmp_path, server.url)
        assert made.file(ID, "debuginfo") is None
    assert "no cache" in made.warnings[0]


def test_what_nobody_used_for_long_is_removed(tmp_path: Path) -> None:
    with Server(lambda handler: handler.give(GOOD)) as server:
        path = client(tmp_path, server.url).file(ID, "debuginfo")
        assert path is not None
        long_ago = time.time() - 30 * 86400
        kept = tmp_path / "cache/notes.txt"
        kept.write_text("mine")
        for name in (path, kept, tmp_path / "cache/cache_clean_interval_s"):
            os.utime(name, (long_ago, long_ago))
        assert client(tmp_path, server.url).section(OTHER, ".eh_frame")
    assert not Path(path).parent.exists()
    assert kept.exists()


def test_without_servers_only_the_cache_serves(tmp_path: Path) -> None:
    made = client_of({"DEBUGINFOD_CACHE_PATH": str(tmp_path)})
    assert made.file(ID, "debuginfo") is None
    assert "names no server" in made.warnings[0]


# -------------------------------------------------------------------------- elfutils' own programs


@contextlib.contextmanager
def debuginfod(directory: Path, build_id: bytes) -> Iterator[str]:
    """Debian's server over a directory, once it has found the file with that build-id."""
    need("debuginfod", "bsdtar")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["debuginfod", "-F", "-d", ":memory:", "-c", "1", "-p", str(port), str(directory)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                try:
                    with urlopen(f"{url}/buildid/{build_id.hex()}/executable", timeout=10):
                        break
                except (URLError, OSError):
                    assert server.poll() is None, "debuginfod has ended"
                    time.sleep(0.1)
            else:
                pytest.fail("debuginfod does not find the file")
            yield url
        finally:
            server.kill()


def test_debian_s_server_and_client_share_with_ours(tmp_path: Path) -> None:
    need("debuginfod-find")
    program = built(tmp_path / "program")
    served = tmp_path / "served"
    served.mkdir()
    tool(tmp_path / "program", "objcopy", "--only-keep-debug", "program", str(served / "x.debug"))
    shutil.copy(program, served / "program")
    tool(served, "strip", "program")
    build_id = identity(program)
    cache = str(tmp_path / "cache")
    words = {"DEBUGINFOD_CACHE_PATH": cache}
    with debuginfod(served, build_id) as url:
        made = client(tmp_path, url)
        ours = {kind: made.file(build_id, kind) for kind in ("debuginfo", "executable")}
        ours["section .eh_frame"] = made.section(build_id, ".eh_frame")
        assert made.file(OTHER, "debuginfo") is None
        theirs = tmp_path / "theirs"
        for what in (*ours, "section .debug_info"):
            kind, *section = what.split()
            asking = ("debuginfod-find", kind, build_id.hex(), *section)
            done = run(*asking, DEBUGINFOD_URLS=url, DEBUGINFOD_CACHE_PATH=str(theirs))
            assert done.returncode == 0, done.stderr
    dead = "http://127.0.0.1:1"
    for what, path in ours.items():  # nobody to ask: their client finds what ours has fetched
        kind, *section = what.split()
        asking = ("debuginfod-find", kind, build_id.hex(), *section)
        done = run(*asking, DEBUGINFOD_URLS=dead, **words)
        assert done.stdout.strip() == path, done.stderr
    done = run("debuginfod-find", "debuginfo", OTHER.hex(), DEBUGINFOD_URLS=dead, **words)
    assert "No such file" in done.stderr  # and that no server has it: the dead one was not asked
    other = Client([], Cache(str(theirs)))  # and the other way round
    for kind in ("debuginfo", "executable"):
        assert other.file(build_id, kind) == f"{theirs}/{build_id.hex()}/{kind}"
    for section in (".eh_frame", ".debug_info"):
        found = other.section(build_id, section)
        assert found is not None
        elf = Elf(program.read_bytes())
        named = elf.section(section)
        assert named is not None
        if section == ".eh_frame":
            assert Path(found).read_bytes() == bytes(elf.data(named))


# ------------------------------------------------------------------------------------ the commands


@pytest.fixture(scope="module")
def served(example: Path) -> Iterator[str]:
    """Debian's server with the modules of the example core."""
    files = example / "usr/lib/x86_64-linux-gnu/libc.so.6"
    with debuginfod(example, identity(files)) as url:
        yield url


def core_command(
    example: Path, tmp_path: Path, url: str, *words: str
) -> subprocess.CompletedProcess[str]:
    """`unwind-core` of the example, whose modules lie nowhere."""
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    return python(
        "-m",
        "unwind.cli.core",
        str(example / "core"),
        "--sysroot",
        str(empty),
        *words,
        DEBUGINFOD_URLS=url,
        DEBUGINFOD_CACHE_PATH=str(tmp_path / "cache"),
    )


def pcs(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("#")]


def fetched(tmp_path: Path) -> set[str]:
    """The kinds of what is in the cache, but for what no server has."""
    return {path.name for path in (tmp_path / "cache").glob("*/*") if path.stat().st_size}


def test_stacks_that_were_cut_go_on_by_sections_alone(
    example: Path, tmp_path: Path, served: str
) -> None:
    full = python("-m", "unwind.cli.core", str(example / "core"), "--sysroot", str(example))
    cut = core_command(example, tmp_path, served)
    assert "stack ends here" in cut.stdout
    assert not (tmp_path / "cache").exists()
    mended = core_command(example, tmp_path, served, "--debuginfod=auto", "--debuginfod-http")
    assert pcs(mended.stdout) == pcs(full.stdout) != pcs(cut.stdout)
    assert fetched(tmp_path) == {"section-.eh_frame", "section-.eh_frame_hdr"}


def test_programs_and_names_come_from_a_server(example: Path, tmp_path: Path, served: str) -> None:
    full = python("-m", "unwind.cli.core", str(example / "core"), "--sysroot", str(example))
    mended = core_command(example, tmp_path, served, "--debuginfod", "--debuginfod-http")
    assert [line for line in mended.stdout.splitlines() if line.startswith("#")] == [
        line for line in full.stdout.splitlines() if line.startswith("#")
    ]
    assert "read_list" in mended.stdout
    assert fetched(tmp_path) == {"executable"}


def test_where_a_server_does_no_sections_the_program_is_fetched(
    example: Path, tmp_path: Path
) -> None:
    def answer(handler: Handler) -> None:
        if "/section/" in handler.path:
            return handler.give(b"", 400)
        for path in (p for p in example.glob("**/*") if p.is_file() and p.name != "core"):
            if identity(path).hex() in handler.path and handler.path.endswith("executable"):
                return handler.give(path.read_bytes())
        return handler.give(b"", 404)

    full = python("-m", "unwind.cli.core", str(example / "core"), "--sysroot", str(example))
    with Server(answer) as server:
        mended = core_command(
            example, tmp_path, server.url, "--debuginfod=auto", "--debuginfod-http"
        )
    assert pcs(mended.stdout) == pcs(full.stdout)
    assert fetched(tmp_path) == {"executable"}


@pytest.mark.parametrize("way", ["another program's", "half", "noise", "empty"])
def test_a_section_that_is_not_the_programs_is_not_used(
    example: Path, tmp_path: Path, way: str
) -> None:
    libc = Elf((example / "usr/lib/x86_64-linux-gnu/libc.so.6").read_bytes())
    loader = Elf((example / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").read_bytes())

    def contents(elf: Elf, name: str) -> bytes:
        section = elf.section(name)
        assert section is not None
        return bytes(elf.data(section))

    def answer(handler: Handler) -> None:
        if "/section/" not in handler.path:
            return handler.give(b"", 404)
        name = handler.path.rpartition("/")[2]
        good = contents(libc, name)
        size = len(good)
        bad = {
            "another program's": contents(loader, name),
            "half": good if name == ".eh_frame_hdr" else good[: size // 2],
            "noise": good if name == ".eh_frame_hdr" else os.urandom(size),
            "empty": b"",
        }
        return handler.give(bad[way])

    cut = core_command(example, tmp_path, "")
    with Server(answer) as server:
        mended = core_command(
            example, tmp_path, server.url, "--debuginfod=auto", "--debuginfod-http"
        )
    assert pcs(mended.stdout) == pcs(cut.stdout)
    assert mended.returncode == 0
    if way != "empty":
        assert "it was not used" in mended.stderr


def test_debug_info_for_names_comes_from_a_server(tmp_path: Path) -> None:
    program = built(tmp_path)
    whole = program.read_bytes()
    tool(tmp_path, "strip", "program")
    with Server(lambda handler: handler.give(whole)) as server:
        files = Files(servers=client(tmp_path, server.url))
        assert opened(program, files).symbols.named("answer")
        sparing = Files(servers=client(tmp_path / "other", server.url), sparing=True)
        assert not opened(program, sparing).symbols.named("answer")
        assert len(server.asked) == 1


NO_CFI = """
#include <unistd.h>
int inner(int n) { pause(); return n + 1; }
int outer(int n) { return inner(n) + 1; }
int main(void) { return outer(1); }
"""


@pytest.mark.parametrize("does_sections", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_program_without_cfi_has_that_of_its_debug_file(
    tmp_path: Path, does_sections: bool, packed: bool
) -> None:
    flags = ("-O0", "-fomit-frame-pointer", "-fno-asynchronous-unwind-tables")
    program = built(tmp_path, *flags, "-fno-inline", source=NO_CFI)
    if packed:
        tool(tmp_path, "objcopy", "--compress-debug-sections", "program", "whole")
    else:
        shutil.copy(program, tmp_path / "whole")
    tool(tmp_path, "objcopy", "--only-keep-debug", "whole", "whole.debug")
    tool(tmp_path, "strip", "program")
    debug = (tmp_path / "whole.debug").read_bytes()
    elf = Elf(debug)
    section = elf.section(".debug_frame")
    assert section is not None
    raw = debug[section.offset : section.offset + section.size]

    def answer(handler: Handler) -> None:
        if identity(program).hex() not in handler.path:
            return handler.give(b"", 404)
        if handler.path.endswith("/section/.debug_frame"):
            return handler.give(raw) if does_sections else handler.give(b"", 400)
        return handler.give(debug) if handler.path.endswith("/debuginfo") else None

    with Server(answer) as server, subprocess.Popen([program]) as running:
        try:
            wait_for_pause(running.pid)
            command = ("-m", "unwind.cli.live", str(running.pid), "--no-fallback")
            cut = python(*command)
            words = ("--debuginfod=auto", "--debuginfod-http")
            where = {"DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache")}
            mended = python(*command, *words, DEBUGINFOD_URLS=server.url, **where)
        finally:
            running.kill()
    assert len(pcs(cut.stdout)) == 2
    assert "stack ends here" in cut.stdout
    assert "stack ends here" not in mended.stdout, mended.stdout + mended.stderr
    assert len(pcs(mended.stdout)) >= 6
    assert fetched(tmp_path) == ({"section-.debug_frame"} if does_sections else {"debuginfo"})


def wait_for_pause(pid: int) -> None:
    """Until the process waits in pause(2)."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
            if number in ("34", "73"):  # pause, ppoll
                return
        time.sleep(0.01)
    pytest.fail("the program does not come to its pause")


def shop(*files: bytes) -> Callable[[Handler], None]:
    """Answers with the whole of programs, by their build-ids."""
    known = {(Elf(data).build_id or b"").hex(): data for data in files}

    def answer(handler: Handler) -> None:
        build_id, kind = handler.path.split("/")[2:4]
        data = known.get(build_id) if kind == "executable" else None
        handler.give(data or b"", 200 if data else 404)

    return answer


def test_the_code_of_a_fetched_program_is_in_memory(example: Path, tmp_path: Path) -> None:
    program = example / "tmp/unwind-demo/crash"
    libc = example / "usr/lib/x86_64-linux-gnu/libc.so.6"
    (tmp_path / "empty").mkdir()
    with Server(shop(program.read_bytes(), libc.read_bytes())) as server:
        asking = client(tmp_path, server.url, largest=1 << 24)
        files = Files(sysroot=str(tmp_path / "empty"), servers=asking)
        with files, CORE.open(str(example / "core"), files) as source:
            snapshot = next(iter(source.snapshots()))
            unwinder = Unwinder(source.arch)
            cut = unwinder.unwind(snapshot)
            stack = Mender(files, unwinder).mend(snapshot)
            assert len(cut.frames) == 1
            assert stack.end == End.OUTERMOST
            caller = stack.frames[1]
            assert caller.module is not None
            at = caller.module.to_vaddr(caller.pc) - 5
            image = Files().image(str(program), None).image
            assert image is not None
            assert snapshot.memory.read(caller.pc - 5, 5) == image.read(at, 5)


@pytest.mark.parametrize("option", ["--debuginfod", "--debuginfod=auto"])
def test_a_recording_is_walked_with_files_of_a_server(
    example: Path, tmp_path: Path, option: str
) -> None:
    recording = tmp_path / "perf.data"
    recording.write_bytes(shipped()["fields.data"])
    root = tmp_path / "root"
    libc = (example / "usr/lib/x86_64-linux-gnu/libc.so.6").read_bytes()
    for name, data in (
        ("tmp/burn/program", shipped()["program"]),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", libc),
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(data)
    command = ("-m", "unwind.cli.perf", str(recording), "--script")
    whole = python(*command, "--sysroot", str(root))
    (tmp_path / "empty").mkdir()
    bare = (*command, "--sysroot", str(tmp_path / "empty"))
    assert "qsort_r" in whole.stdout
    assert "qsort_r" not in python(*bare).stdout
    with Server(shop(shipped()["program"], libc)) as server:
        fetched = python(
            *bare,
            option,
            "--debuginfod-http",
            DEBUGINFOD_URLS=server.url,
            DEBUGINFOD_CACHE_PATH=str(tmp_path / "cache"),
        )
        asked = set(server.asked)
    assert fetched.stdout == whole.stdout
    debug = {path for path in asked if path.endswith("debuginfo")}
    assert len(asked - debug) == 2
    assert python("-m", "unwind.cli.perf", "-", option).returncode == 2


def test_the_plain_command_loads_nothing_of_it(example: Path) -> None:
    code = (
        "import sys; from unwind.cli.core import main; main(sys.argv[1:]); "
        "print([name for name in sys.modules if 'debuginfod' in name or 'urllib' in name])"
    )
    done = python("-c", code, "--sysroot", str(example), str(example / "core"))
    assert done.stdout.splitlines()[-1] == "[]"
