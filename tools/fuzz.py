"""Fuzzing: `make fuzz TIME=seconds` looks for bytes that break the promise about bad input.

    seeds of strategies ──libFuzzer by atheris──> executions ──> findings, each made small

Each way in of tests/entry_points.py gets TIME seconds, one after another; more if the last five
minutes brought new coverage, with --until-dry. What is found goes to tests/findings/ENTRY/, where
`make test` tries it for ever after. What libFuzzer knows is kept in .fuzz/ for the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / ".fuzz"
FINDINGS = ROOT / "tests/findings"
SEEDS = 300
LONGEST = 1 << 14  # bytes of an input
DRY = 300  # seconds without new coverage after which there is no more to be had


@dataclass
class Report:
    """What came of fuzzing one way in."""

    entry: str
    seconds: float
    executions: int
    coverage: int
    quiet: float
    """Seconds since the coverage last grew."""
    findings: list[str]

    def __str__(self) -> str:
        return (
            f"{self.entry:<14}{self.seconds:>9.0f}{self.executions:>13,}{self.coverage:>10,}"
            f"{self.quiet:>8.0f}{len(self.findings):>10}"
        )


HEAD = f"{'':<14}{'seconds':>9}{'executions':>13}{'coverage':>10}{'quiet':>8}{'findings':>10}"


def fuzz(entry: str, seconds: int, until_dry: bool) -> Report:
    """Fuzzes one way in, in a process of its own: instrumented code is slow for all else."""
    found = Report(entry, 0, 0, 0, 0, [])
    while True:
        more = _session(entry, seconds)
        found.seconds += more.seconds
        found.executions += more.executions
        found.coverage = max(found.coverage, more.coverage)
        found.quiet = more.quiet
        found.findings += more.findings
        if not until_dry or found.quiet >= DRY:
            return found
        seconds = DRY


def _session(entry: str, seconds: int) -> Report:
    start = grew = time.monotonic()
    known, executions, coverage, findings = 0, 0, 0, list[str]()
    command = [sys.executable, "-m", "tools.fuzz", "--session", entry, "--time", str(seconds)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        tail: list[str] = []
        for line in process.stdout:
            tail = [*tail[-20:], line]
            if line.startswith("finding: "):
                findings.append(line.strip())
                print(line, end="", file=sys.stderr, flush=True)
            if said := re.match(r"#(\d+)\s.*?cov: (\d+)", line):
                executions, coverage = int(said[1]), int(said[2])
                if coverage > known:
                    known, grew = coverage, time.monotonic()
    end = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{entry} ended with {process.returncode}:\n{''.join(tail)}")
    return Report(entry, end - start, executions, coverage, end - grew, findings)


def _run_session(name: str, seconds: int) -> None:
    """The loop of libFuzzer, in this process."""
    import atheris

    # values.py makes code from code, which instrumentation would put out of step.
    with atheris.instrument_imports(include=["unwind"], exclude=["unwind.values"]):
        from tests.entry_points import ENTRY_POINTS, broken
    entry = ENTRY_POINTS[name]
    home = CORPUS / name
    home.mkdir(parents=True, exist_ok=True)
    for seed in seeds(entry.seeds):
        _put(home, seed)
    known: set[str] = set()

    def one(data: bytes) -> None:
        what = broken(entry, data, traced=False)
        if what and _kind(what) not in known:
            known.add(_kind(what))
            # What grows a process once does not do so again; memory is judged by what is traced.
            kind = _kind(what) if not what.endswith("MB") else ""
            small = (
                minimised(data, lambda less: _kind(broken(entry, less)) == kind) if kind else data
            )
            (FINDINGS / name).mkdir(parents=True, exist_ok=True)
            path = _put(FINDINGS / name, small)
            print(f"finding: {name}: {what}: {path.relative_to(ROOT)}", flush=True)

    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, "-rss_limit_mb=4096", "-verbosity=1", str(home)], one)
    atheris.Fuzz()


def seeds(strategy: object) -> Iterator[bytes]:
    """What a strategy makes, the same each time."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.strategies import SearchStrategy

    assert isinstance(strategy, SearchStrategy)
    made: list[bytes] = []

    @settings(
        max_examples=SEEDS,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(data: bytes) -> None:
        made.append(data)

    collect()
    yield from made


def minimised(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """The shortest bytes that still fail, as far as taking pieces away leads; then more zeroes."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            less = data[:at] + data[at + size :]
            if fails(less):
                data = less
            else:
                at += size
        size //= 2
    for at in range(len(data)):
        less = data[:at] + b"\0" + data[at + 1 :]
        if less != data and fails(less):
            data = less
    return data


def _kind(what: str) -> str:
    """What two findings share that have one cause."""
    if re.fullmatch(r"[\d.]+ s", what):
        return "slow"
    return "large" if re.fullmatch(r"\d+ MB", what) else what.partition(": ")[0]


def _put(home: Path, data: bytes) -> Path:
    path = home / hashlib.sha1(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz all ways in; 0 where nothing is found."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help="ways in; all if none is named")
    parser.add_argument("--time", type=int, default=60, metavar="SECONDS", help="for each")
    parser.add_argument("--until-dry", action="store_true", help="until no coverage is gained")
    parser.add_argument("--session", metavar="ENTRY", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.session:
        _run_session(options.session, options.time)
        return 0
    from tests.entry_points import ENTRY_POINTS

    print(HEAD)
    found = 0
    for entry in options.entries or ENTRY_POINTS:
        report = fuzz(entry, options.time, options.until_dry)
        print(report, flush=True)
        found += len(report.findings)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
