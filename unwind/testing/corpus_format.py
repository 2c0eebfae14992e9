"""The corpus on disk: a chain in, the JSON that tells the truth about it out; and back, checked.

docs/corpus.md describes the format. Numbers that are addresses or registers are hexadecimal
strings, since not every reader of JSON has integers of 64 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unwind.errors import SourceError
from unwind.testing import model
from unwind.testing.chains import Chain
from unwind.testing.images import section_of
from unwind.writers.cfi_tables import json_row

__all__ = ["CASE", "FORMAT", "INDEX", "Case", "Expected", "cases", "index_text", "truth"]

FORMAT = "unwind-corpus/1"
INDEX, CASE = "corpus.json", "case.json"
_LARGEST = 16 << 20  # bytes of a file of ours


@dataclass(frozen=True)
class Expected:
    """A frame as it must be found. A trampoline has `signal`; some tools show no pc of it."""

    pc: int
    signal: bool


@dataclass(frozen=True)
class Case:
    """One program that stopped: where its files are, and its frames, innermost first."""

    name: str
    arch: str
    exe: Path
    core: Path
    frames: tuple[Expected, ...]


def truth(chain: Chain, facts: Mapping[str, object]) -> str:
    """The text of case.json: what is true of a chain, and `facts` about its files."""
    arch = chain.dialect.arch
    name = arch.register_name
    frames = [
        {
            "pc": f"{frame.pc:#x}",
            "cfa": f"{frame.cfa:#x}",
            "function": frame.function,
            "signal": frame.signal,
            "called": frame.called,
            "registers": {
                name(number): f"{value:#x}" for number, value in sorted(frame.registers.items())
            },
        }
        for frame in chain.frames
    ]
    functions = [
        {
            "name": function.name,
            "start": f"{function.start:#x}",
            "size": function.body.size,
            "rows": rows,
        }
        for function, rows in zip(chain.functions, _rows(chain), strict=True)
    ]
    return _text(
        {
            "format": FORMAT,
            "arch": arch.name,
            **facts,
            "end": "outermost",
            "frames": frames,
            "functions": functions,
        }
    )


def _rows(chain: Chain) -> list[list[dict[str, object]]]:
    """The rows of each function by the plain evaluator, as `unwind-cfi --json` writes rows."""
    arch = chain.dialect.arch
    section = section_of(chain, 0x1000)
    data = bytes(section.data)
    found = []
    for entry in model.read(data, 0x1000, "eh_frame", arch.byteorder, arch.word):
        if isinstance(entry, model.Fde):
            rows = model.rows(entry, aarch64=arch.name == "arm64")
            found.append([_row(json_row(row, arch.register_name)) for row in rows])
    return found


def _row(text: str) -> dict[str, object]:
    row: dict[str, object] = json.loads(text)
    # Where it stands in a section is the assembler's affair.
    return {key: value for key, value in row.items() if key not in ("section", "fde", "cie")}


def index_text(seed: int, count: int, archs: Mapping[str, str], names: list[str]) -> str:
    """The text of corpus.json; `archs` maps each architecture to its assembler's version."""
    return _text(
        {"format": FORMAT, "seed": seed, "count": count, "assemblers": archs, "cases": names}
    )


def cases(directory: Path) -> list[Case]:
    """The cases of a corpus; SourceError where it is none, or not as it was made."""
    index = _load(directory / INDEX)
    names = index.get("cases")
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise SourceError("no list of cases", str(directory / INDEX))
    return [_case(directory / name, name) for name in names]


def _is_name(name: object) -> bool:
    """Whether a case's name is no way out of the corpus."""
    return isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")


def _case(directory: Path, name: str) -> Case:
    document = _load(directory / CASE)
    try:
        frames = tuple(
            [Expected(int(frame["pc"], 16), bool(frame["signal"])) for frame in document["frames"]]
        )
        files = [str(document[key]) for key in ("exe", "core")]
        arch = str(document["arch"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"not as it was made: {error!r}", str(directory / CASE)) from None
    if not all(_is_name(file) for file in files):
        raise SourceError("its files lie elsewhere", str(directory / CASE))
    return Case(name, arch, directory / files[0], directory / files[1], frames)


def _load(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"not JSON: {error}", str(path)) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise SourceError(f"not of the format {FORMAT}", str(path), "`unwind-corpus make` makes it")
    return document


def _text(document: Mapping[str, object]) -> str:
    return json.dumps(document, indent=1) + "\n"
