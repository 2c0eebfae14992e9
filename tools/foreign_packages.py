"""Debian's packages of another architecture, and sources, unpacked without being installed.

apt gets a state folder of its own for that: the host's list of architectures stays as it is.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["apt", "fetch", "fetch_source"]


def apt(architecture: str, home: Path) -> list[str]:
    """The options of apt-get and apt-cache for an architecture whose state lies in `home`."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    (home / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "Dir::State::lists": f"{home}/lists",
        "Dir::State::status": f"{home}/status",
        "Dir::Cache": f"{home}/cache",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def fetch(architecture: str, packages: Sequence[str], home: Path) -> Path:
    """Download packages of an architecture and unpack them into `home`/root, which comes back."""
    options, root = apt(architecture, home), home / "root"
    if not root.exists():
        subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
        subprocess.run(["apt-get", *options, "-qq", "download", *packages], cwd=home, check=True)
        for package in home.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
            package.unlink()
    return root


def fetch_source(package: str, home: Path) -> Path:
    """The unpacked source of a package, below `home`."""
    found = [path for path in home.glob(f"{package}-*") if path.is_dir()]
    if not found:
        parts = home / "sources.list.d"
        parts.mkdir(parents=True, exist_ok=True)
        for file in Path("/etc/apt/sources.list.d").glob("debian*.sources"):
            (parts / file.name).write_text(
                file.read_text().replace("Types: deb\n", "Types: deb-src\n")
            )
        options = [
            *apt("source", home / "apt"),
            *("-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={parts}"),
        ]
        subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
        command = ["apt-get", *options, "-qq", "source", package]
        subprocess.run(command, cwd=home, check=True, stdout=subprocess.DEVNULL)
        found = [path for path in home.glob(f"{package}-*") if path.is_dir()]
    return found[0]
