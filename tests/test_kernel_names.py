"""Names of the kernel's frames: by its vmlinux, wherever that lies and wherever the kernel lay."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import need
from tests.test_debug_files import by_id, identity, tool
from unwind.arch.x86_64 import ARCH
from unwind.cli.perf import main
from unwind.errors import SourceError
from unwind.files import Files
from unwind.perf.constants import CONTEXT, SAMPLE
from unwind.perf.processes import Mapped
from unwind.perf.vmlinux import Vmlinux
from unwind.testing.recording_files import Recording, Sampled

RIP, RSP = 16, 7
TEXT = 0xFFFF_FFFF_8100_0000  # where kernels are linked to
MOVED = 0x1600_0000  # KASLR
SOURCE = """
asm(".globl _text; _text:");
long __attribute__((noinline)) do_work(long n) { return n * n + 7; }
long start_kernel(long n) { return do_work(n) + do_work(n + 1); }
"""


@pytest.fixture(scope="module")
def vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel as far as its symbols go, linked to where kernels are."""
    need("gcc")
    where = tmp_path_factory.mktemp("kernel")
    (where / "kernel.c").write_text(SOURCE)
    words = ["-O1", "-ffreestanding", "-nostdlib", "-static", "-mcmodel=kernel", "-no-pie"]
    words += ["-fno-pie", f"-Wl,-Ttext={TEXT:#x}", "-Wl,--build-id", "-Wl,-e,start_kernel"]
    words += ["-fno-toplevel-reorder", "-fcf-protection=none"]
    tool(where, "gcc", *words, "-o", "vmlinux", "kernel.c")
    return where / "vmlinux"


def vaddr(vmlinux: Path, name: str) -> int:
    found = Files().image(str(vmlinux), None).image
    assert found is not None
    symbol = found.symbols.named(name)
    assert symbol is not None
    return symbol.vaddr


def named(vmlinux: Path, where: Path, moved: int, *addresses: int) -> list[str]:
    """What unwind-perf calls frames in the kernel, of a recording of a kernel that was moved."""
    built = Recording(ARCH, SAMPLE.callchain, 64, registers=(RSP, RIP))
    name, begin = "[kernel.kallsyms]_text", TEXT + moved
    built.mapping(0xFFFF_FFFF, 0, begin, 0x100_0000, name, begin)
    built.comm(7, 7, 1, "a")
    registers = {RSP: 0x7FFE_0000, RIP: 0x1000}
    chain = (CONTEXT.kernel, *addresses)
    built.sample(Sampled(7, 7, 3, registers, bytes(64), callchain=chain))
    (where / "data").write_bytes(built.build())
    options = ["--script", "-F", "sym,symoff,dso", "-o", str(where / "out")]
    assert main([str(where / "data"), "--kallsyms", str(vmlinux), *options]) == 0
    return (where / "out").read_text().splitlines()[: len(addresses)]


@pytest.mark.parametrize("moved", [0, MOVED])
def test_frames_have_names_wherever_the_kernel_lay(
    vmlinux: Path, tmp_path: Path, moved: int
) -> None:
    work, start = vaddr(vmlinux, "do_work"), vaddr(vmlinux, "start_kernel")
    assert work > TEXT - 1
    addresses = work + moved + 2, start + moved + 9, 0xFFFF_FFFF_C000_0000
    assert named(vmlinux, tmp_path, moved, *addresses) == [
        "\tdo_work+0x2 ([kernel.kallsyms])",
        "\tstart_kernel+0x9 ([kernel.kallsyms])",
        "\t[unknown] ([kernel.kallsyms])",
    ]


def test_another_kernel_is_refused(vmlinux: Path, tmp_path: Path) -> None:
    image = Files().image(str(vmlinux), None).image
    assert image is not None
    mapped = [Mapped(TEXT, TEXT + 0x1000, TEXT, "[kernel.kallsyms]_text")]
    assert Vmlinux(image, mapped, image.build_id).find(vaddr(vmlinux, "do_work"))
    with pytest.raises(SourceError, match="not the recorded kernel"):
        Vmlinux(image, mapped, bytes(20))
    tool(tmp_path, "strip", "-o", "vmlinux", str(vmlinux))
    bare = Files().image(str(tmp_path / "vmlinux"), None).image
    assert bare is not None
    with pytest.raises(SourceError, match="no symbols"):
        Vmlinux(bare, mapped, None)


@pytest.mark.parametrize(
    "place",
    [
        "usr/lib/debug/boot/vmlinux-6.1",
        "usr/lib/debug/lib/modules/6.1/vmlinux",
        "lib/modules/6.1/build/vmlinux",
        "boot/vmlinux-6.1",
        "",
    ],
)
def test_a_vmlinux_is_found_where_it_is_installed(
    vmlinux: Path, tmp_path: Path, place: str
) -> None:
    build_id = identity(vmlinux)
    stored = tmp_path / place if place else by_id(tmp_path / "usr/lib/debug", build_id)
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(vmlinux.read_bytes())
    files = Files(sysroot=str(tmp_path))
    found = files.kernel(build_id, "6.1")
    assert found is not None
    assert found.path == str(stored)
    assert files.kernel(bytes(20), "6.1") is None
    assert files.kernel(bytes(20), "../6.1") is None
    assert files.kernel(bytes(20), None) is None
