"""A crash in: that a snapshot of it, alone, gives the same document as core and files did."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support import validate
from unwind.cli import core as unwind_core
from unwind.files import Files

MOST = 100_000  # bytes of a snapshot, whatever the core's size
FRAMES = "1500"  # of a thread: the program that overflows its stack has 87,000


def assert_replayed(core: Path, snapshot: Path, *options: str, files: list[str]) -> None:
    """Fails unless the snapshot of a core gives its document, and no file was wanted for that."""
    asked = ("--json", "--registers", "--explain", "-n", FRAMES, *options)
    whole = printed(core, *asked, *files, "--record", str(snapshot))
    with patch.object(Files, "_open", refuse):
        alone = printed(snapshot, *asked)
    validate(alone)
    assert whole["source"].pop("kind") == "core"
    assert alone["source"].pop("kind") == "snapshot"
    assert whole["source"].pop("path") == str(core)
    assert alone["source"].pop("path") == str(snapshot)
    assert list(differences(whole, alone)) == []
    assert snapshot.stat().st_size < MOST


def printed(*arguments: str | Path) -> Any:
    """The document that the command prints."""
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = unwind_core.main([str(argument) for argument in arguments])
    assert code == 0, errors.getvalue()
    return json.loads(out.getvalue())


def refuse(_files: Files, path: str) -> Any:
    raise AssertionError(f"{path} is opened")


def differences(one: Any, other: Any, place: str = "") -> Any:
    """Where two documents differ, the first few places, with both values."""
    if one == other:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differences(one.get(key), other.get(key), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for n, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from differences(first, second, f"{place}[{n}]")
    else:
        yield f"{place}: {str(one)[:200]} became {str(other)[:200]}"
