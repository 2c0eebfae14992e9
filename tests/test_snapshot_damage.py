"""Damaged snapshot files, all the way to printed frames: what test_damage.py asks of cores.

Snapshots of small programs, and of kernels' cores of arm64 and mips, are broken one by one: the
packed file, its head, any value of the document, the bytes behind it. `unwind-core` prints what it
can with the reason where a stack ends, or refuses with one line, and nothing takes long.

`python -m tests.test_snapshot_damage SEED INDEX` does again what input INDEX of a seed did, and
`python -m tests.test_snapshot_damage SEED FIRST END` tries a range.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests import kernel, test_damage
from tests.replay import differences
from tests.support import ROOT, need
from tests.test_damage import (
    RECORDED,
    TooLong,
    check_document,
    check_text,
    command_run,
    limit_process,
    time_is_up,
)
from unwind.cli import core as unwind_core
from unwind.recorded import HEAD, MAGIC, VERSION
from unwind.testing.damage import Area, Field, areas, damage

SEED = 1
COUNT = 800
REPLAYED = 150
CHOSEN = ("static", "dynamic", "memory", "no CFI")  # of test_damage's cases
CPU_SECONDS = 1
MOST_FAILURES = 5

# ----------------------------------------------------------------------------- sound snapshots


@dataclass(frozen=True, eq=False)
class Base:
    """A sound snapshot: its document, and the bytes behind it."""

    name: str
    document: Any = field(repr=False)
    rest: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, packed: bytes) -> Base:
        data = gzip.decompress(packed)
        magic, version, zero, size = HEAD.unpack_from(data)
        assert (magic, version, zero) == (MAGIC, VERSION, 0)
        end = HEAD.size + size
        return cls(name, json.loads(data[HEAD.size : end]), data[end:])

    def areas(self) -> list[Area]:
        """The pieces that the document points to, as areas of the bytes behind it."""
        found = []
        for name, (_, size, at) in pieces(self.document):
            words = tuple(Field("word", at + n, 8) for n in range(0, size - 7, 8))
            found.append(Area(name, at, at + size, words))
        return found


def pieces(value: Any, key: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Each [place, size, where] of the document with what it is a piece of."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from pieces(inner, name)
    elif key in ("spans", "bytes"):
        yield from ((key, piece) for piece in value if piece[1])
    elif key in ("pdr", "regions") and value[1]:
        yield key, value
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, dict):
                yield from pieces(inner, key)


def make_all(directory: Path) -> None:
    """Snapshots of some of test_damage's cases, and of cores that kernels wrote."""
    for case in test_damage.CASES:
        if case.name in CHOSEN:
            place = directory / case.name
            test_damage.build(case, place)
            options = ("--module", f"{RECORDED[:-1]}={place}")
            record(place / "core", directory / f"{case.name}.snapshot", *options)
    for machine in kernel.MACHINES:
        place = directory / machine.target.name
        place.mkdir()
        for crash in kernel.kept(machine.target, place):
            if "signals" in crash.case.name or "neither" in crash.case.name:
                record(crash.core, directory / f"{crash.case.name}.snapshot", *crash.options)


def record(core: Path, snapshot: Path, *options: str) -> None:
    _, refusal = command_run(unwind_core, [str(core), *options, "--record", str(snapshot)])
    assert not refusal


# ---------------------------------------------------------------------------------- the damage


def broken(base: Base, random: Random) -> tuple[bytes, str]:
    """A file with something wrong in it, and what."""
    way = random.choice((in_document, in_document, in_document, in_document, in_bytes, in_file))
    return way(base, random)


def in_document(base: Base, random: Random) -> tuple[bytes, str]:
    """One to three values of the document are other ones."""
    document = json.loads(json.dumps(base.document))
    said = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        nodes = list(containers(document))
        if not nodes:
            break
        depths = sorted({depth for depth, _, _ in nodes})
        depth = random.choice(depths)  # else nearly all would be regions
        node, place = random.choice([(n, p) for d, n, p in nodes if d == depth])
        key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        said.append(f"{place}[{key!r}]: {random.choice(CHANGES)(node, key, random)}")
    return file_of(document, base.rest), "; ".join(said)


def containers(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[int, Any, str]]:
    """The lists and objects of a document that have something in them."""
    if isinstance(value, dict | list) and value:
        yield depth, value, place
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from containers(inner, f"{place}[{key!r}]", depth + 1)


def other(node: Any, key: Any, random: Random) -> str:
    """A value of whatever type."""
    node[key] = deepcopy(random.choice(VALUES))
    return f"is {str(node[key])[:40]!r}"


def near(node: Any, key: Any, random: Random) -> str:
    """A number near the one that stands there, or at the edge of something."""
    old = node[key]
    hexadecimal = isinstance(old, str) and old[:2] == "0x" and len(old) > 2
    if not hexadecimal and (isinstance(old, bool) or not isinstance(old, int)):
        return other(node, key, random)
    number = int(old, 16) if hexadecimal else old
    edges = (0, 1, -1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 30)
    mine = (number + 1, number - 1, number * 2, -number, number + 4096, number ^ 1 << 3)
    new = random.choice((*edges, *mine))
    node[key] = hex(new) if hexadecimal else new
    return f"is {node[key]}, was {old}"


def gone(node: Any, key: Any, _random: Random) -> str:
    del node[key]
    return "is gone"


def doubled(node: Any, key: Any, random: Random) -> str:
    if isinstance(node, dict) or not isinstance(node[key], list | dict | str | int):
        return other(node, key, random)
    node[key:key] = [deepcopy(node[key]) for _ in range(random.choice((1, 2, 100)))]
    return "is there more than once"


def exchanged(node: Any, key: Any, random: Random) -> str:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    another = random.choice(keys)
    node[key], node[another] = node[another], node[key]
    return f"changes places with {another!r}"


DEEP: Any = 0
for _ in range(50):
    DEEP = [DEEP]
VALUES = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        1 << 40,
        -(1 << 40),
        0.5,
        1e300,
        "",
        "x",
        "0x",
        "0x0",
        "-0x1",
    ),
    *("0x" + "f" * 16, "0x" + "f" * 17, "0x1" + "0" * 16, [], {}, [[]], [{}], DEEP, "\x1b[31m\n"),
    *("\ud800", "\udcff", "é" * 100, "/" * 5000, ["0x0", 8, 0], {"reason": "no"}, "ok", "eh_frame"),
    *(["0x0", "0xffffffffffffffff", True, ""], ["expression", "2f0000"], ["register", 7, 8]),
)
Change = Callable[[Any, Any, Random], str]
CHANGES: tuple[Change, ...] = (other, near, near, near, near, gone, doubled, exchanged)


def in_bytes(base: Base, random: Random) -> tuple[bytes, str]:
    """The memory or the CFI is another one, or is not all there."""
    rest, said = damage(base.rest, base.areas(), random)
    return file_of(base.document, rest), said


def in_file(base: Base, random: Random) -> tuple[bytes, str]:
    """The file is broken as it lies there, packed or not."""
    data = file_of(base.document, base.rest)
    head = Area("head", 0, HEAD.size, (Field("version", 16, 4), Field("size", 24, 8)))
    if random.random() < 0.3:
        data = gzip.compress(data, 1, mtime=0)
        head = Area("gzip head", 0, 10)
    return damage(data, [head, Area("file", 0, len(data))], random)


def file_of(document: Any, rest: bytes) -> bytes:
    text = json.dumps(document).encode()
    return HEAD.pack(MAGIC, VERSION, 0, len(text)) + text + rest


# ----------------------------------------------------------------------------------- the tries

FORMS: tuple[tuple[str, ...], ...] = (
    *((), ("-r", "-m"), ("--explain",), ("--no-fallback", "-q"), ("--cross-check", "-n", "50")),
    *(("--json",), ("--json", "-r"), ("--json", "--explain"), ("--json", "--scan", "-n", "50")),
)


class Bench:
    """Tries damaged snapshots."""

    def __init__(self, directory: Path, seed: int):
        self.seed = seed
        self.scratch = directory / "tried"
        found = sorted(directory.glob("*.snapshot"))
        self.bases = [Base.of(path.stem, path.read_bytes()) for path in found]
        self._sound: dict[tuple[Base, tuple[str, ...]], str] = {}

    def make(self, index: int) -> tuple[Base, bytes, str, Random]:
        """Input number `index`, what was done to it, and the randomness that goes on."""
        random = Random(f"{self.seed}/{index}")
        base = random.choice(self.bases)
        data, said = broken(base, random)
        return base, data, f"{base.name}: {said}", random

    def judge(self, index: int) -> str:
        """What came of an input: unchanged, changed or refused."""
        base, data, _, random = self.make(index)
        form = random.choice(FORMS)
        sound = self._sound.get((base, form))
        if sound is None:
            sound, refusal = self.printed(file_of(base.document, base.rest), form)
            assert not refusal, f"the sound input is refused: {refusal}"
            self._sound[base, form] = sound
        text, refusal = self.printed(data, form)
        if refusal:
            return "refused"
        return "unchanged" if text == sound else "changed"

    def printed(self, data: bytes, form: Sequence[str]) -> tuple[str, str]:
        """What the command prints of a file, or its line when it refuses."""
        self.scratch.write_bytes(data)
        text, refusal = command_run(unwind_core, [str(self.scratch), *form])
        if "--json" not in form:
            check_text(text)
        elif not refusal:
            check_document(text)
        return text, refusal


def work(directory: Path, seed: int, first: int, end: int) -> Iterator[str]:
    """Tries inputs; yields a story of each that breaks the promise, then the counts as JSON."""
    limit_process()
    bench = Bench(directory, seed)
    counts: Counter[str] = Counter()
    failures = 0
    for index in range(first, end):
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            counts[bench.judge(index)] += 1
        except (Exception, TooLong) as problem:
            signal.setitimer(signal.ITIMER_PROF, 0)
            told = "".join(traceback.format_exception(problem, limit=-4))
            command = f"python -m tests.test_snapshot_damage {seed} {index}"
            yield f"{command}\n{bench.make(index)[2]}\n{told}"
            failures += 1
            if failures == MOST_FAILURES:
                break
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    yield json.dumps(counts)


def main(argv: Sequence[str]) -> int:
    """One input of a seed, or a range; `--in DIRECTORY` is for the test itself."""
    signal.signal(signal.SIGPROF, time_is_up)
    seed, first = int(argv[0]), int(argv[1])
    end = int(argv[2]) if argv[2:] else first + 1
    if argv[3:4] == ["--in"]:
        for line in work(Path(argv[4]), seed, first, end):
            print(line, flush=True)
        return 0
    with TemporaryDirectory() as scratch:
        make_all(Path(scratch))
        if end == first + 1:
            _, data, said, _ = Bench(Path(scratch), seed).make(first)
            kept = Path(f"damaged-{seed}-{first}.snapshot")
            kept.write_bytes(data)
            print(f"{said}\nkept as {kept}", flush=True)
        for line in work(Path(scratch), seed, first, end):
            print(line, flush=True)
    return 0


# ------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sound snapshots."""
    need("gcc", "objcopy", "strip", "readelf")
    directory = tmp_path_factory.mktemp("snapshots")
    make_all(directory)
    return directory


def test_a_damaged_snapshot_gives_what_is_left_or_one_line(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(SEED), "0", str(COUNT), "--in", str(sound))
    ran = subprocess.run(
        (sys.executable, "-m", "tests.test_snapshot_damage", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, f"it ended with {ran.returncode}: {ran.stderr}"
    *stories, last = ran.stdout.splitlines()
    assert not stories, "\n".join(stories)
    counts = Counter(json.loads(last))
    with capsys.disabled():
        shares = ", ".join(f"{n / COUNT:.0%} {what}" for what, n in sorted(counts.items()))
        print(f"\ndamaged snapshots: {counts.total()}: {shares}")
    assert counts.total() == COUNT
    assert all(counts[what] >= COUNT // 10 for what in ("unchanged", "changed", "refused"))


def test_a_snapshot_of_what_is_damaged_gives_the_same_document(sound: Path, tmp_path: Path) -> None:
    """Whatever an unwinder makes of a damaged core or file, a snapshot makes the same of it."""
    bases = []
    for case in test_damage.CASES:
        for target in case.targets if case.name in CHOSEN else ():
            data = (sound / case.name / target).read_bytes()
            base = test_damage.Base(case, sound / case.name, target, data, areas(data))
            bases.append(base)
    kept, options = tmp_path / "snapshot", ("--json", "-r", "--explain", "-n", "300")
    compared = 0
    for index in range(REPLAYED):
        random = Random(f"{SEED}/{index}")
        base = random.choice(bases)
        data, said = damage(base.sound, base.areas, random)
        test_damage.put(base, data)
        try:
            whole, refusal = command_run(
                unwind_core, [*base.arguments, *options, "--record", str(kept)]
            )
            if refusal:
                assert not whole, f"{said}: {refusal}"
                continue
            alone, refusal = command_run(unwind_core, [str(kept), *options])
            assert not refusal, f"{said}: {refusal}"
        finally:
            test_damage.put(base, base.sound)
        one, other = json.loads(whole), json.loads(alone)
        for document in (one, other):
            del document["source"]["kind"], document["source"]["path"]
        assert list(differences(one, other)) == [], said
        compared += 1
    assert compared > REPLAYED // 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
