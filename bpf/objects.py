"""The BPF objects that are installed with the library: an architecture in, an object's path out.

They are built by `make bpf`, which takes clang, and lie in wheels; an installation from source
without clang goes without them.
"""

from __future__ import annotations

import os

from unwind.errors import SourceError

__all__ = ["built_in"]


def built_in(arch: str, name: str = "unwind") -> str:
    """The path of an object for an architecture; SourceError that says how to come by it.

    `name` is that of its source, NAME.bpf.c.
    """
    path = os.path.join(os.path.dirname(__file__), f"{name}.{arch}.bpf.o")
    if not os.path.exists(path):
        raise SourceError(
            f"the BPF programs for {arch} are not built",
            hint="they were left out as there was no clang when this was installed: "
            "apt install clang, then install it anew, or `make bpf` in the source tree",
        )
    return path
