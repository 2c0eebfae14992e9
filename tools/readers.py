"""Damaged files for other readers: which of the same inputs crash, hang or surprise each program.

The files are those of tests/test_damage.py: small programs and their cores with something wrong in
them. Of a program with exit codes a signal counts as a crash; of a Python reader an exception that
its documentation does not name. `make oracle-damage` prints the table of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.test_damage import CASES, RECORDED, Base, Bench, build, put

ROOT = Path(__file__).resolve().parent.parent
HANGS = 20  # seconds
MEMORY = 4 << 30  # address space of a process

# Reads what pyelftools can: its own errors are exit code 2, all others 3.
_PYELFTOOLS = """
import sys
from elftools.common.exceptions import DWARFError, ELFError, ELFParseError
from elftools.elf.elffile import ELFFile
try:
    with open(sys.argv[1], "rb") as file:
        elf = ELFFile(file)
        for part in [*elf.iter_sections(), *elf.iter_segments()]:
            for walk in ("iter_symbols", "iter_notes", "iter_tags"):
                if hasattr(part, walk):
                    list(getattr(part, walk)())
        info = elf.get_dwarf_info()
        for has, entries in ((info.has_EH_CFI, "EH_CFI_entries"), (info.has_CFI, "CFI_entries")):
            if has():
                for entry in getattr(info, entries)():
                    if hasattr(entry, "get_decoded"):
                        entry.get_decoded()
except (ELFError, ELFParseError, DWARFError):
    sys.exit(2)
except Exception as error:
    print(type(error).__name__)
    sys.exit(3)
"""


@dataclass
class Tally:
    """What came of one reader."""

    sound: int = 0
    """Sound files that it fails on already; those are not broken for it."""
    inputs: int = 0
    crashes: int = 0
    hangs: int = 0
    untyped: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)


def commands(base: Base) -> dict[str, list[str]]:
    """The command of each reader for one base: it is given the damaged file, or its core."""
    directory = base.directory
    core, program, path = directory / "core", directory / "tiny", directory / base.target
    ours = [sys.executable, "-m", "unwind.cli.core", *base.arguments]
    gdb = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load no"]
    gdb += ["-iex", f"set substitute-path {RECORDED} {directory}/"]
    if base.target != "core":
        ours = [sys.executable, "-m", "unwind.cli.cfi", str(path)]
    found = {
        "unwind": ours,
        "gdb": [*gdb, "-ex", "thread apply all bt 100", str(program), str(core)],
        "eu-stack": ["eu-stack", f"--core={core}", f"--executable={program}"],
        "readelf": ["readelf", "-aW", "--debug-dump=frames-interp", str(path)],
        "pyelftools": [sys.executable, "-c", _PYELFTOOLS, str(path)],
    }
    if base.case.name in ("gzip", "xz"):  # nobody else unpacks cores
        return {"unwind": found["unwind"]}
    return found


def ask(reader: str, command: list[str], tally: Tally) -> Tally:
    """Run one reader on what lies there now, and count what comes of it."""
    limited = ["/bin/sh", "-c", f'ulimit -c 0 -v {MEMORY >> 10}; exec "$@"', "sh", *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "DEBUGINFOD_URLS": ""}
    start = time.monotonic()
    tally.inputs += 1
    try:
        done = subprocess.run(
            limited,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=HANGS,
        )
    except subprocess.TimeoutExpired:
        tally.hangs += 1
        tally.kinds["hang"] += 1
        return tally
    finally:
        tally.seconds = max(tally.seconds, time.monotonic() - start)
    if done.returncode < 0:
        tally.crashes += 1
        tally.kinds[signal.Signals(-done.returncode).name] += 1
    elif reader == "pyelftools" and done.returncode == 3:
        tally.untyped += 1
        tally.kinds[done.stdout.decode(errors="replace").strip()] += 1
    elif reader == "unwind" and b"Traceback" in done.stderr:
        tally.untyped += 1
        tally.kinds[done.stderr.decode(errors="replace").splitlines()[-1][:60]] += 1
    elif b"internal-error" in done.stderr or b"internal error" in done.stderr:
        tally.crashes += 1
        tally.kinds["internal error"] += 1
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    """Damage files and hand them round; 0 where our own commands keep their promise."""
    parser = argparse.ArgumentParser(prog="python -m tools.readers", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damaged files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    tallies: dict[str, Tally] = {}
    with TemporaryDirectory() as scratch:
        for case in CASES:
            build(case, Path(scratch) / case.name)
        bench = Bench(Path(scratch), options.seed)
        failing = set()
        for base in bench.bases:
            for name, command in commands(base).items():
                tallies.setdefault(name, Tally())
                if ask(name, command, Tally()).kinds:
                    failing.add((base.case.name, base.target, name))
        for *_, name in failing:
            tallies[name].sound += 1
        with ThreadPoolExecutor(options.jobs) as pool:
            for index in range(options.count):
                base, broken, _, _ = bench.make(index)
                put(base, broken)
                try:
                    asked = [
                        (name, command)
                        for name, command in commands(base).items()
                        if (base.case.name, base.target, name) not in failing
                    ]
                    # One input at a time: the file lies where its core says it does.
                    list(pool.map(lambda one: ask(one[0], one[1], tallies[one[0]]), asked))
                finally:
                    put(base, base.sound)
    heads = ["reader", "fails on sound files", "damaged files", "crashes", "hangs"]
    heads += ["untyped exceptions", "slowest", "of which"]
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * 6} --- |")
    for name, tally in tallies.items():
        kinds = ", ".join(f"{kind} {count}" for kind, count in tally.kinds.most_common())
        numbers = (tally.sound, tally.inputs, tally.crashes, tally.hangs, tally.untyped)
        told = " | ".join(f"{number:,}" for number in numbers)
        print(f"| {name} | {told} | {tally.seconds:.1f} s | {kinds or '–'} |")
    ours = tallies["unwind"]
    return int(ours.sound + ours.crashes + ours.hangs + ours.untyped > 0)


if __name__ == "__main__":
    sys.exit(main())
