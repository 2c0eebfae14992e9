"""Checking an unwinder by a corpus: a command in, how its backtrace of each case did out.

The command's output is read by one rule: a line that begins with `#` and a number is a frame, and
its first hexadecimal number of four digits or more is the frame's pc. gdb, lldb, eu-stack,
libunwind's and glibc's samples, and sanitizers print such lines, and so does unwind-core. JSON in
unwind-core's own format (unwind-stack/1) is read as such.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryFile

from unwind.errors import SourceError
from unwind.testing.corpus_format import Case, Expected

__all__ = ["VERDICTS", "Result", "check", "frames_of", "judge", "table"]

VERDICTS = ("right", "short", "wrong", "crashed", "timed out")
_PLACEHOLDERS = ("core", "exe", "dir", "arch", "name")
_MOST = 8 << 20  # bytes of output that are read


@dataclass(frozen=True)
class Result:
    """How a command did on one case. `found` are the pcs it printed, None where it named none."""

    case: str
    arch: str
    verdict: str
    expected: int
    right: int  # frames, from the innermost on, before the first that is wrong or missing
    found: tuple[int | None, ...] = field(repr=False)
    status: int | None  # exit code, minus the signal's number, None: none within the time
    detail: str = ""


def check(case: Case, command: str, timeout: float = 60) -> Result:
    """Run `command` on a case, with the placeholders replaced, and judge what it prints.

    SourceError where the command cannot be run at all.
    """
    words = _words(command, case)
    text, status = _output(words, timeout)
    found = tuple(frames_of(text))
    verdict, right, detail = judge(found, case.frames, status)
    return Result(case.name, case.arch, verdict, len(case.frames), right, found, status, detail)


def _words(command: str, case: Case) -> list[str]:
    """The command's words; no shell runs it, and values are never split."""
    values = {
        "core": str(case.core.absolute()),
        "exe": str(case.exe.absolute()),
        "dir": str(case.core.parent.absolute()),
        "arch": case.arch,
        "name": case.name,
    }
    pattern = re.compile("{(" + "|".join(_PLACEHOLDERS) + ")}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise SourceError(f"--command: {error}") from None
    if not words:
        raise SourceError("--command: there is none")
    return [pattern.sub(lambda found: values[found[1]], word) for word in words]


def _output(words: Sequence[str], timeout: float) -> tuple[str, int | None]:
    """What a command prints, and its exit code; None where it did not end in time."""
    with TemporaryFile() as out:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that what it started ends with it
            )
        except OSError as error:
            raise SourceError(f"--command: {error.strerror}", words[0]) from None
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        return out.read(_MOST).decode("utf-8", "replace"), status


_FRAME = re.compile(r"^[\s*]*(?:frame )?#(\d+)[:\s](.*)")
_PC = re.compile(r"(?<![0-9A-Za-z_])(?:0x([0-9a-fA-F]+)|([0-9a-fA-F]{8,16}))(?![0-9A-Za-z_])")


def frames_of(text: str) -> Iterator[int | None]:
    """The pcs of the first stack in a text; None for a frame whose line shows none.

    The stack ends where a number is not the next one. gdb shows frame 0 once by itself before the
    backtrace: of stacks that begin with 0 the longest of one thread is meant, the first of those.
    """
    document = _json(text)
    if document is not None:
        yield from document
        return
    best: list[int | None] = []
    current: list[int | None] = []
    stacks = 0
    for line in text.splitlines():
        found = _FRAME.match(line)
        if found is None:
            continue
        number = int(found[1])
        if number == 0:
            stacks += 1
            if stacks > 2 or len(current) > 1:
                break  # another thread
            current = []
        if number == len(current):
            pc = _PC.search(found[2])
            current.append(int(pc[1] or pc[2], 16) if pc else None)
            best = max(best, current, key=len)
    yield from best


def _json(text: str) -> list[int | None] | None:
    """The pcs of the first thread in unwind-core's JSON, None where the text is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        frames = json.loads(text)["threads"][0]["frames"]
        return [int(str(frame["pc"]), 16) for frame in frames]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return []


def judge(
    found: Sequence[int | None], expected: Sequence[Expected], status: int | None
) -> tuple[str, int, str]:
    """The verdict, how many frames are right, and in words what is not.

    right: all frames and no other. short: right as far as it goes. wrong: a pc that is none, or
    frames beyond the outermost. A frame without a pc stands for a signal's trampoline only.
    crashed: ended by a signal, or failed without a frame.
    """
    right = 0
    for pc, frame in zip(found, expected, strict=False):
        if pc != frame.pc and not (pc is None and frame.signal):
            break
        right += 1
    if status is None:
        return "timed out", right, ""
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        known = {int(each) for each in signal.Signals}
        name = signal.Signals(number).name if number in known else str(number)
        return "crashed", right, f"by {name}"
    if not found and status:
        return "crashed", 0, f"exit code {status} and no frame"
    if right == len(found) == len(expected):
        return "right", right, ""
    if right == len(found):
        return "short", right, f"{right} of {len(expected)} frames"
    if right == len(expected):
        return "wrong", right, f"{len(found) - right} frames beyond the outermost"
    shown = found[right]
    said = "no pc" if shown is None else f"{shown:#x}"
    return "wrong", right, f"frame {right} is {said}, not {expected[right].pc:#x}"


def table(results: Sequence[Result]) -> str:
    """The counts by architecture, as text."""
    archs = list(dict.fromkeys(result.arch for result in results))
    rows = [["", "cases", *VERDICTS, "frames"]]
    for arch in [*archs, *(["all"] if len(archs) > 1 else [])]:
        mine = [each for each in results if arch in (each.arch, "all")]
        counts = [str(sum(each.verdict == verdict for each in mine)) for verdict in VERDICTS]
        good, wanted = sum(each.right for each in mine), sum(each.expected for each in mine)
        share = f"{good} of {wanted}"
        rows.append([arch, str(len(mine)), *counts, share])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
