"""What wants BPF under kernels that have kprobes: Debian's, booted under qemu-system.

`make test-kernel` boots them with a root over 9p and runs unwind-memleak there while short-lived
processes come and go, unwind-profile, and unwind-live --no-stop.

On x86_64 the root is this machine's own, on arm64 one of Debian's packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.events import objects_built
from tests.foreign import ARM64
from tests.kernel import DOWNLOADS, Machine, _run, download, newc
from tests.support import ROOT, need, validate_leaks
from tests.test_memleak import counts, stacks_of

MACHINES = (
    Machine(
        "x86_64",
        ARM64,  # nothing is built for it
        "amd64",
        "linux-image-amd64",
        tuple("qemu-system-x86_64 -cpu max -m 1024 -smp 1 -no-user-config".split()),
        "ttyS0",
    ),
    Machine(
        "arm64",
        ARM64,
        "arm64",
        "linux-image-arm64",
        tuple("qemu-system-aarch64 -M virt -cpu cortex-a57 -m 1024 -smp 1".split()),
        "ttyAMA0",
    ),
)
# In the order in which they need one another.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("netfs", "fscache", "9pnet", "9pnet_virtio", "9p"),
)
# What a root of another processor needs, with all that these depend on.
PACKAGES = ("python3-minimal", "libpython3.11-stdlib", "libbpf1", "dash", "coreutils")
CLOCK = "cpu-clock@50"
LOOK, PROFILE = "look", "profile"
LEAKS = "unwind-memleak"
SECONDS = 6


def places(machine: Machine) -> tuple[str, ...]:
    """A function of the kernel, a tracepoint, a function of the C library, and the clock."""
    triple = {"arm64": "aarch64"}.get(machine.name, machine.name)
    libc = f"/lib/{triple}-linux-gnu/libc.so.6"
    return "do_exit", "sched:sched_process_exec", f"{libc}:exit", CLOCK


def root_of(machine: Machine) -> tuple[Path, str]:
    """The root that a guest gets over 9p, and how the command is run there."""
    own = f"cd '{ROOT}' && PYTHONPATH=. {sys.executable}"
    if machine.name == os.uname().machine:
        return Path("/"), own
    home = DOWNLOADS / machine.architecture
    root = home / "root"
    if not root.exists():
        unpack(machine, root)
    shutil.rmtree(root / "tree", ignore_errors=True)
    shutil.copytree(ROOT / "unwind", root / "tree/unwind")  # links are followed
    return root, "cd /tree && /usr/bin/python3"


def unpack(machine: Machine, root: Path) -> None:
    """A root of Debian's packages, none of them configured; apt has the state of `download`."""
    home = root.parent
    scratch = home / "packages"
    scratch.mkdir(exist_ok=True)
    for directory in ("lists/partial", "cache/archives/partial"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    places = {"State::lists": "lists", "State::status": "status", "Cache": "cache"}
    options = [f"-oAPT::Architecture={machine.architecture}"]
    options += [f"-oAPT::Architectures::={machine.architecture}"]
    options += [f"-oDir::{key}={home / name}" for key, name in places.items()]
    _run("apt-get", *options, "-qq", "update")
    wanted = ("install", "--no-install-recommends", "--print-uris", "-qq", "-y")
    listed = _run("apt-get", *options, *wanted, *PACKAGES)
    names = [line.split()[1].partition("_")[0] for line in listed.splitlines() if line[:1] == "'"]
    _run("apt-get", *options, "-qq", "download", *names, cwd=scratch)
    made = home / "unpacking"
    for package in scratch.glob("*.deb"):
        _run("dpkg-deb", "-x", str(package), str(made))
    for name in ("proc", "sys", "dev", "tmp"):
        (made / name).mkdir(exist_ok=True)
    shutil.rmtree(scratch)
    made.rename(root)


def guest(kernel: Path, busybox: Path, command: str, places: Sequence[str]) -> bytes:
    """A root that mounts the other and runs the command at each place, one after another."""
    modules, found = modules_of(kernel)
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
        "chroot /h /bin/sleep 1000 & export SLEEPER=$!",
        "export PYTHONDONTWRITEBYTECODE=1",
    ]
    runs = {place: f"memleak --symbol {place} --duration {SECONDS}" for place in places}
    runs |= {LOOK: "live --no-stop --registers $SLEEPER"}
    runs |= {LEAKS: "memleak -c 'ls -l /bin/true' --json"}
    runs |= {PROFILE: f"profiler -a -F 50 --folded --duration {SECONDS}"}
    for name, words in runs.items():
        whole = f"{command} -m unwind.cli.{words}"
        lines += [f"echo '<<< {name}'", f'chroot /h /bin/sh -c "{whole}"', "echo '>>>'"]
    lines.append("poweroff -f")
    members = {f"lib/{name}.ko": found[name].read_bytes() for name in modules}
    members |= {"init": "\n".join(lines).encode() + b"\n", "bin/busybox": busybox.read_bytes()}
    return newc(members)


def modules_of(kernel: Path) -> tuple[list[str], dict[str, Path]]:
    """What a guest loads to reach the other root, in that order, and where all modules lie."""
    found = {path.stem: path for path in (kernel.parent.parent / "lib").rglob("*.ko")}
    return [name for name in MODULES if name in found], found


def boot(machine: Machine, kernel: Path, initrd: Path, root: Path) -> str:
    """What the guest printed until it was powered off."""
    share = f"local,path={root},mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    command = [*machine.qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot"]
    command += ["-serial", "stdio", "-kernel", str(kernel), "-initrd", str(initrd)]
    command += ["-virtfs", share, "-append"]
    command += [f"console={machine.console} quiet panic=-1 rdinit=/init mitigations=off"]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    return (ran.stdout + ran.stderr).decode("latin-1").replace("\r", "")


def faults(printed: str, places: Sequence[str]) -> Iterator[str]:
    """What is not as it should be in what the guest printed."""
    told = re.search(r"KALLSYMS\n([0-9a-f]+) ", printed)
    runs = dict(re.findall(r"<<< (\S+)\n(.*?)>>>", printed, re.DOTALL))
    for place in places:
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
    yield from _faults_of_look(runs.get(LOOK, ""))
    yield from _faults_of_leaks(runs.get(LEAKS, ""))
    if not re.search(r"^true;.*;_start;", runs.get(PROFILE, ""), re.M) and not re.search(
        r"^\S+;(_start|.*libc_start).* \d+$", runs.get(PROFILE, ""), re.M
    ):
        yield f"{PROFILE}: no stack from the beginning of a program"
    where = re.findall(r"\[event\] .* pc=0x([0-9a-f]+)", runs.get("do_exit", ""))
    start = int(told[1], 16) if told else 0
    yield from (f"do_exit: pc={pc}" for pc in where if not 0 <= int(pc, 16) - start < 32)


def _faults_of_leaks(printed: str) -> Iterator[str]:
    """A command's allocations, each with its whole stack."""
    found = re.search(r'^{"schema":"unwind-leaks/1".*', printed, re.M)
    if found is None:
        yield f"{LEAKS}: no report in {printed}"
        return
    report = json.loads(found[0])
    validate_leaks(report)
    if report["events"] < 20 or report["dropped"] or report["mistaken"]:
        yield f"{LEAKS}: {report}"
    left = sum(leak["count"] for leak in report["leaks"])
    if report["events"] != report["complete"] or report["events"] != report["freed"] + left:
        yield f"{LEAKS}: {report}"


def _faults_of_look(printed: str) -> Iterator[str]:
    """All registers of who sleeps, and a stack that is complete, or as far as the page goes."""
    registers = set(re.findall(r"^ +(\w+) 0x[0-9a-f]{16}", printed.partition("\n#1")[0], re.M))
    if len(registers) < 6:  # a column of them
        yield f"{LOOK}: registers {sorted(registers)}"
    if "nanosleep" not in printed or "stack ends here" in printed:
        yield f"{LOOK}: no complete stack"


def _faults_of(events: list[tuple[int, str, list[tuple[str, str, str]]]]) -> Iterator[str]:
    stacks = [frames for _, comm, frames in events if comm == "true"]
    if len(stacks) < 3:
        yield f"{len(stacks)} stacks of short-lived processes"
    yield from (str(frames) for frames in stacks if frames[-1][0] != "-")
    yield from (str(frames) for frames in stacks if "partial" in frames[-1][1])


def main(names: Sequence[str]) -> None:
    """Boots (these, or all) and compares; the exit code tells whether all is well."""
    objects_built()
    wrong = 0
    for machine in MACHINES:
        if names and machine.name not in names:
            continue
        need(machine.qemu[0])
        home = DOWNLOADS / machine.architecture
        if home.exists() and not (home / "lib").exists():  # of a time without kernel modules
            shutil.rmtree(home)
        kernel, busybox = download(machine, DOWNLOADS)
        root, command = root_of(machine)
        with TemporaryDirectory() as scratch:
            initrd = Path(scratch) / "initrd"
            initrd.write_bytes(guest(kernel, busybox, command, places(machine)))
            printed = boot(machine, kernel, initrd, root)
        found = list(faults(printed, places(machine)))
        wrong += len(found)
        print(
            "\n".join(found)
            or f"events at {len(places(machine))} places of {kernel.name} are right"
        )
        if found:
            print(printed)
    sys.exit(wrong != 0)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
