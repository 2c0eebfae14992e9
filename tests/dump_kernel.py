"""unwind-core as the handler of crashes, under a kernel that may be told so: Debian's, in qemu.

`make test-kernel` boots it with this machine's files over 9p. Programs crash there that record
their own stacks, and each report has to say the same, be the core smaller than the pipe, the
process in another pid namespace or under another root, or its memory refused.

    cases ──build──> guest ──console──> report + record ──> Crash, compared
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import crashes
from tests.crashes import Crash
from tests.event_kernel import MACHINES, boot, modules_of
from tests.kernel import DOWNLOADS, download, newc
from tests.support import ROOT, need, validate
from tests.truth import expected

STORE = "/mnt/store"
SLOW = 100  # seconds that a handler may take: an emulated processor is slow


@dataclass(frozen=True)
class Dump:
    """A case that crashes in the guest, and how."""

    name: str
    case: str
    before: str = ""
    """Words before the program's."""
    setting: str = ""
    """A shell's line before."""
    limit: int = 16
    """kernel.core_pipe_limit"""
    handler: str = "/handler"
    called: str = "program"
    inside: bool = False
    """Under the root of the initramfs, which is not the handler's."""
    reads_on: bool = False
    """Memory comes from the pipe, too."""


DUMPS = (
    Dump("threads", "threads"),
    Dump("pid-namespace", "threads", "unshare --pid --fork --mount-proc"),
    Dump("small", "recursion", setting="echo 0 >/proc/self/coredump_filter"),
    Dump("root", "static", inside=True),
    Dump("name", "handler-on-altstack", called="..;$(x)|'%n"),
    Dump("refused", "recursion", handler="/unprivileged", reads_on=True),
    Dump("unlimited", "in-prologue", limit=0),
)


def guest(built: dict[str, Path], kernel: Path, busybox: Path) -> bytes:
    """A root that mounts this machine's, and has each program crash in turn."""
    names, found = modules_of(kernel)
    handler = f"/usr/bin/env -i PYTHONDONTWRITEBYTECODE=1 {shlex.quote(f'PYTHONPATH={ROOT}')} "
    handler += f'{shlex.quote(sys.executable)} -m unwind.cli.core "$@"'
    lines = [
        "#!/bin/busybox sh",
        "export PATH=/bin",
        "/bin/busybox --install /bin",
        "mkdir -p /sys /h",
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev",
        *[f"insmod /lib/{name}.ko" for name in names],
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /h",
        "for d in proc sys dev; do mount --bind /$d /h/$d; done",
        "mount -t tmpfs tmpfs /h/mnt; mkdir -m 700 /h/mnt/store /h/mnt/open",
        "chown 65534 /h/mnt/open",
        "syslogd -O /messages",
        "ulimit -c unlimited",
        "export MALLOC_ARENA_MAX=1",
    ]
    for dump in DUMPS:
        lines += list(_commands(dump, built[dump.name]))
    lines += ["echo MESSAGES", "cat /messages", "poweroff -f"]
    members = {f"lib/{name}.ko": found[name].read_bytes() for name in names}
    members |= {"init": "\n".join(lines).encode() + b"\n", "bin/busybox": busybox.read_bytes()}
    for name, user in (("handler", ""), ("unprivileged", "--userspec=65534:65534 ")):
        text = f"#!/bin/busybox sh\nexec /bin/busybox chroot /h {handler}\n"
        if user:  # busybox' chroot has no --userspec
            text = text.replace("chroot /h", f"chroot /h /usr/sbin/chroot {user}/")
        members[name] = text.encode()
    for dump in DUMPS:
        if dump.inside:
            members[f"programs/{dump.called}"] = built[dump.name].read_bytes()
    return newc(members)


def _commands(dump: Dump, program: Path) -> Iterator[str]:
    [case] = crashes.named(dump.case)
    store = STORE if dump.handler == "/handler" else "/mnt/open"
    words = f"--from-kernel %P %I %s --store {store} --json --max-time {SLOW}"
    pattern = f"|{dump.handler} {words}"
    assert len(pattern) <= 127
    yield f"echo '{pattern}' >/proc/sys/kernel/core_pattern"
    yield f"echo {dump.limit} >/proc/sys/kernel/core_pipe_limit"
    path = f"/programs/{dump.called}" if dump.inside else str(program)
    record = "/h/mnt/truth" if dump.inside else "/mnt/truth"
    line = f"cd /; export UNWIND_TRUTH={record}; {dump.setting or ':'}; "
    line += f"{dump.before} {shlex.quote(path)} {' '.join(case.arguments)}"
    where = "" if dump.inside else "chroot /h "
    yield f"{where}/bin/sh -c {shlex.quote(line)} >/dev/null 2>&1"
    yield f"rm -f /h{store}/*.unshare.json"  # which ends as its child does
    if dump.limit == 0:  # nobody waits
        yield f"while [ ! -e /h{store}/*.json ]; do sleep 0.1; done"
    yield f"echo '<<< {dump.name}'; ls /h{store}"
    yield f"echo ===; gzip -c /h{store}/*.json | base64; echo ==="
    yield "gzip -c /h/mnt/truth | base64; echo '>>>'"
    yield f"rm -f /h{store}/* /h/mnt/truth"


def faults(printed: str, built: dict[str, Path], directory: Path) -> Iterator[str]:
    """What is not as it should be in what the guest printed."""
    from tests.test_crashes import assert_truth

    found = dict(re.findall(r"<<< (\S+)\n(.*?)>>>", printed, re.DOTALL))
    for dump in DUMPS:
        try:
            name, report, record = found[dump.name].split("===\n")
            document = json.loads(gzip.decompress(base64.b64decode(report)))
            crash = _crash(
                dump, built[dump.name], gzip.decompress(base64.b64decode(record)), directory
            )
            validate(document)
            assert_truth(document, crash)
            assert re.fullmatch(r"\d{8}T\d{6}\.\d+\.[A-Za-z0-9_-]+\.json\n", name), name
        except (AssertionError, KeyError, ValueError, EOFError, OSError) as error:
            yield f"{dump.name}: {error!r}"
            continue
        warnings = " ".join(document["source"]["warnings"])
        if ("memory comes from the core" in warnings) is not dump.reads_on:
            yield f"{dump.name}: warnings: {warnings}"
        if (dump.name == "pid-namespace") is not (document["source"]["pid"] < 10):
            yield f"{dump.name}: pid {document['source']['pid']}"
    messages = printed.partition("MESSAGES\n")[2]
    lines = re.findall(r"unwind-core: [_p]\S+\[\d+\] was ended by SIG\w+ \(\d+\): (.*)", messages)
    if len(lines) != len(DUMPS):
        yield f"{len(lines)} lines in the system log"


def _crash(dump: Dump, program: Path, record: bytes, directory: Path) -> Crash:
    [case] = crashes.named(dump.case)
    path = directory / f"{dump.name}.truth"
    path.write_bytes(record)
    stacks = expected(path, program, case.libc, case.nameless, case.ends)
    return Crash(case, directory, program, path, {stack.tid: stack for stack in stacks})


def run() -> tuple[list[str], str]:
    """What is wrong, and all that the guest printed."""
    need("qemu-system-x86_64", "unshare", "setpriv")
    machine = MACHINES[0]
    kernel, busybox = download(machine, DOWNLOADS)
    with TemporaryDirectory() as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)  # for the handler, which is nobody
        built: dict[str, Path] = {}
        for dump in DUMPS:
            [case] = crashes.named(dump.case)
            made = crashes.build(case, directory / dump.name)
            built[dump.name] = made.rename(made.with_name(dump.called))
        initrd = directory / "initrd"
        initrd.write_bytes(guest(built, kernel, busybox))
        printed = boot(machine, kernel, initrd, Path("/"))
        return list(faults(printed, built, directory)), printed


def main() -> None:
    """Boots and compares; the exit code tells whether all is well."""
    wrong, printed = run()
    print("\n".join(wrong) or f"{len(DUMPS)} crashes that a kernel handed over are unwound right")
    if wrong:
        print(printed)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    try:
        main()
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
