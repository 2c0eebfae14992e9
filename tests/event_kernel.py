"""unwind-memleak under a kernel that has kprobes: Debian's, booted under qemu-system.

`make test-kernel` boots it with this machine's own files as its root, over 9p, and runs the command
there while short-lived processes come and go.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.events import objects_built
from tests.foreign import ARM64
from tests.kernel import DOWNLOADS, Machine, download, newc
from tests.support import ROOT, need
from tests.test_memleak import counts, stacks_of

MACHINE = Machine(
    "x86_64",
    ARM64,  # nothing is built for it
    "amd64",
    "linux-image-amd64",
    tuple("qemu-system-x86_64 -cpu max -m 1024 -smp 1 -no-user-config".split()),
    "ttyS0",
)
# In the order in which they need one another.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("netfs", "fscache", "9pnet", "9pnet_virtio", "9p"),
)
LIBC = "/lib/x86_64-linux-gnu/libc.so.6"
CLOCK = "cpu-clock@50"
PLACES = ("do_exit", "sched:sched_process_exec", f"{LIBC}:exit", CLOCK)
SECONDS = 5


def guest(kernel: Path, busybox: Path) -> bytes:
    """A root that mounts the host's and runs the command at each place, one after another."""
    found = {path.stem: path for path in (kernel.parent.parent / "lib").rglob("*.ko")}
    modules = [name for name in MODULES if name in found]
    lines = [
        "#!/bin/busybox sh",
        "export PATH=/bin",
        "/bin/busybox --install /bin",
        "mkdir -p /sys /h",
        "mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev",
        *[f"insmod /lib/{name}.ko" for name in modules],
        "mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /h",
        "for d in proc sys dev; do mount --bind /$d /h/$d; done",
        "mount -t tracefs tracefs /h/sys/kernel/tracing",
        "echo KALLSYMS; grep ' do_exit$' /proc/kallsyms",
        "(while :; do chroot /h /bin/true; sleep 0.2; done) &",
    ]
    for place in PLACES:
        command = f"{sys.executable} -m unwind.cli.memleak --symbol {place} --duration {SECONDS}"
        command = f"cd '{ROOT}' && PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 {command}"
        lines += [f"echo '<<< {place}'", f'chroot /h /bin/sh -c "{command}"', "echo '>>>'"]
    lines.append("poweroff -f")
    members = {f"lib/{name}.ko": found[name].read_bytes() for name in modules}
    members |= {"init": "\n".join(lines).encode() + b"\n", "bin/busybox": busybox.read_bytes()}
    return newc(members)


def boot(kernel: Path, initrd: Path) -> str:
    """What the guest printed until it was powered off."""
    share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    command = [*MACHINE.qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd)]
    command += ["-virtfs", share, "-append"]
    command += [f"console={MACHINE.console} quiet panic=-1 rdinit=/init mitigations=off"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    return (ran.stdout + ran.stderr).decode("latin-1").replace("\r", "")


def faults(printed: str) -> Iterator[str]:
    """What is not as it should be in what the guest printed."""
    told = re.search(r"KALLSYMS\n([0-9a-f]+) ", printed)
    runs = dict(re.findall(r"<<< (\S+)\n(.*?)>>>", printed, re.DOTALL))
    for place in PLACES:
        said = "\n".join(
            line
            for line in runs.get(place, "").splitlines()
            if not line.startswith(("unwind-memleak: warning", "[warn]"))
        )
        if not said:
            yield f"{place}: it printed nothing"
            continue
        found = counts(said)
        yield from (f"{place}: {name}" for name in ("events", "complete") if not found.get(name))
        if found.get("dropped"):
            yield f"{place}: dropped {found['dropped']}"
        if place != CLOCK:  # which may meet anything
            yield from (f"{place}: {fault}" for fault in _faults_of(stacks_of(said)))
    where = re.findall(r"\[event\] .* pc=0x([0-9a-f]+)", runs.get("do_exit", ""))
    start = int(told[1], 16) if told else 0
    yield from (f"do_exit: pc={pc}" for pc in where if not 0 <= int(pc, 16) - start < 32)


def _faults_of(events: list[tuple[int, str, list[tuple[str, str, str]]]]) -> Iterator[str]:
    stacks = [frames for _, comm, frames in events if comm in ("true", "sleep", "chroot")]
    if len(stacks) < 3:
        yield f"{len(stacks)} stacks of short-lived processes"
    yield from (str(frames) for frames in stacks if frames[-1][0] != "-")
    yield from (str(frames) for frames in stacks if "partial" in frames[-1][1])


def main() -> None:
    """Boots and compares; the exit code tells whether all is well."""
    need(MACHINE.qemu[0])
    objects_built()
    kernel, busybox = download(MACHINE, DOWNLOADS)
    with TemporaryDirectory() as scratch:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(guest(kernel, busybox))
        printed = boot(kernel, initrd)
    wrong = list(faults(printed))
    print("\n".join(wrong) or f"events at {len(PLACES)} places of {kernel.name} are right")
    if wrong:
        print(printed)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    try:
        main()
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
