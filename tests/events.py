"""What tests of kernel events share: a built object, and whether this kernel takes it."""

from __future__ import annotations

import functools
import subprocess

from tests.support import ROOT, cannot, need, need_root


@functools.cache
def objects_built() -> None:
    """`make bpf`: builds what is older than its sources. Skips the test without clang."""
    need("clang", "make")
    subprocess.run(["make", "-s", "-C", ROOT / "bpf"], check=True, stdout=subprocess.DEVNULL)


def need_bpf() -> None:
    """Skips the test where no BPF program can be loaded."""
    need_root()
    objects_built()
    try:
        from unwind.bpf.libbpf import load_library

        load_library()
    except Exception as error:
        cannot(f"{error} (apt install libbpf1)")
