"""What pip calls (PEP 517): setuptools, with the BPF programs built first where there is clang.

Without clang a wheel goes without them, and the commands that want them say what to install.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def build_wheel(*arguments: Any, **more: Any) -> str:
    """A wheel with the BPF objects, if they can be built here."""
    _build_objects()
    return str(build_meta.build_wheel(*arguments, **more))


def build_editable(*arguments: Any, **more: Any) -> str:
    """The same for a tree that is used in place."""
    _build_objects()
    return str(build_meta.build_editable(*arguments, **more))


def _build_objects() -> None:
    missing = [name for name in ("clang", "make") if shutil.which(name) is None]
    if missing:
        print(f"no {' and no '.join(missing)}: the BPF programs are left out", file=sys.stderr)
    elif subprocess.run(["make", "-s", "-C", "bpf"], check=False).returncode:
        print("clang failed: the BPF programs are left out", file=sys.stderr)
