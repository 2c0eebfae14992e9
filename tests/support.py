"""What many tests share: programs they need, the tree they look at, subprocesses, the schema."""

from __future__ import annotations

import atexit
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534  # the id of an ordinary user
STRICT = os.environ.get("UNWIND_STRICT") == "1"


def cannot(reason: str) -> NoReturn:
    """Skips the test with `reason`; in strict mode tests/conftest.py makes a failure of it."""
    pytest.skip(reason, allow_module_level=True)


def need(*programs: str) -> None:
    """Skips the test when one of `programs` is not installed, naming the package to install."""
    for program in programs:
        if shutil.which(program) is None:
            package = _packages().get(program)
            remedy = f" (apt install {package})" if package else ""
            cannot(f"{program} is not installed{remedy}")


def need_root() -> None:
    """Skips the test when it does not run as root."""
    if os.geteuid() != 0:
        cannot("root is needed")


def need_plain_cores() -> None:
    """Skips the test where a crash leaves no file `core` in the crashed program's directory."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        cannot(f"core_pattern takes cores elsewhere: {pattern}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        cannot("the hard limit for core files is 0")


def git_files(*patterns: str) -> list[str]:
    """The repository's files that match `patterns`, as git lists them, new ones included.

    Listed by git since a walk through the tree sees what the links `unwind/arch` and so on lead
    to either twice or not at all.
    """
    need("git")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
    found = subprocess.run([*listing, *patterns], cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        cannot("this is no git checkout")
    names = sorted(set(found.stdout.split("\0")) - {""})
    return [name for name in names if os.path.lexists(ROOT / name)]


def run(
    *argv: str | os.PathLike[str],
    cwd: Path = ROOT,
    timeout: float = 120,
    input: str | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end and gives what it printed; it finds `unwind` in this tree.

    Its output is expected to be UTF-8. Keyword arguments are added to its environment.
    """
    return subprocess.run(
        argv,
        cwd=cwd,
        timeout=timeout,
        input=input,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.DEVNULL if input is None else None,
    )


def python(*arguments: str | os.PathLike[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the interpreter that runs the tests: `python("-m", "unwind.cli.core", core)`."""
    return run(sys.executable, *arguments, **options)


def complaints(stderr: str) -> str:
    """What a command said on standard error, but for what would bring names."""
    return "".join(line for line in stderr.splitlines(True) if ": hint: no names " not in line)


@functools.cache
def _tree_of_nobody() -> Path:
    """A copy of the package that every user can read: ours may lie in a home that is closed."""
    tree = Path(tempfile.mkdtemp(prefix="unwind-"))
    atexit.register(shutil.rmtree, tree, ignore_errors=True)
    tree.chmod(0o755)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "unwind", tree / "unwind", ignore=ignored)
    return tree


def as_nobody(
    module: str, *arguments: str, capabilities: str = "", stdin: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A module run by an ordinary user, with a capability where one is named.

    `stdin` is a file that comes to it through a pipe.
    """
    need("setpriv")
    need_root()
    words = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    if capabilities:
        words += ["--inh-caps", capabilities, "--ambient-caps", capabilities]
    interpreter = str(getattr(sys, "_base_executable", sys.executable))  # of the environment
    tree = str(_tree_of_nobody())
    words += [interpreter, "-B"]
    readable = run(*words, "-c", f"import {module}", cwd=Path("/"), PYTHONPATH=tree)
    if readable.returncode:
        cannot(f"user {NOBODY} cannot run {interpreter}: {readable.stderr.strip()[-200:]}")
    words += ["-m", module, *arguments]
    if stdin is not None:
        words = ["sh", "-c", 'file=$1; shift; cat "$file" | "$@"', "sh", str(stdin), *words]
    return run(*words, cwd=Path("/"), PYTHONPATH=tree)


def validate(document: object) -> None:
    """Raises jsonschema.ValidationError unless `document` follows docs/stack.schema.json."""
    _validator().validate(document)


def validate_leaks(document: object) -> None:
    """The same by docs/leaks.schema.json, which takes its frames from the other."""
    _validator("leaks").validate(document)


@functools.cache
def _validator(name: str = "stack") -> Any:
    import jsonschema
    from referencing import Registry, Resource

    known = {
        each: json.loads((ROOT / f"docs/{each}.schema.json").read_text())
        for each in ("stack", "leaks")
    }
    jsonschema.Draft202012Validator.check_schema(known[name])
    registry = Registry().with_resources(
        [(f"{each}.schema.json", Resource.from_contents(text)) for each, text in known.items()]
    )
    return jsonschema.Draft202012Validator(known[name], registry=registry)


@functools.cache
def _packages() -> dict[str, str]:
    """The Debian package of each program that tests/debian-packages.txt names."""
    packages: dict[str, str] = {}
    for line in (ROOT / "tests/debian-packages.txt").read_text().splitlines():
        package, _, programs = line.partition("#")
        if package.strip():
            packages |= dict.fromkeys(programs.split(), package.strip())
    return packages
