"""Events of this machine's own kernel, against programs that know their own stacks."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.crashes import Case, Crash, named
from tests.events import EXIT, PATIENCE, caught, need_bpf
from tests.running import CASES, running
from tests.test_crashes import assert_truth
from tests.truth import Ends
from unwind.symbols.names import Names
from unwind.symbols.table import TableSymbolizer
from unwind.unwinder import Unwinder
from unwind.writers.json_document import document

# Each for something that counts here; tests/test_live.py has them all.
NAMES = (
    *("recursion", "threads", "leader-gone", "handler-in-thread", "cold-part-has-called"),
    *("vfork-child", "destructor-unwinding", "stripped", "debug-frame-by-build-id", "neither-O2"),
    *(
        "frame-pointers",
        "static",
        "static-pie",
        "static-threads",
        "no-pie",
        "two-executable-segments",
    ),
    *("musl", "musl-threads", "dlopen"),
)
# What was copied does not reach: another stack than that of the stack pointer, a page that nobody
# has touched yet, variables in .data, a file that is gone by now.
SHORT = (
    *("handler-on-altstack", "vla-alloca-realigned", "hand-written-rules", "musl-handler"),
    "library-replaced-filter-33",
)
SHORTER = Ends(short=("memory-fault", "no-module", "no-row", "unknown-register"), at_least=2)


@pytest.fixture(autouse=True)
def _bpf() -> None:
    need_bpf()


def caught_at_exit(crash: Crash, **more: Any) -> dict[str, Any]:
    """The stacks of a process' threads at their end, as JSON."""
    pid = int(crash.core.name)
    with caught(EXIT, *crash.options, stack_size=1 << 18, **more) as source:
        os.kill(pid, signal.SIGKILL)
        unwinder, names = Unwinder(source.arch), Names(TableSymbolizer())
        walked = []
        for event in source.events(PATIENCE):
            if event.tid in crash.stacks:
                snapshot = source.snapshot(event)
                walked.append((snapshot, unwinder.unwind(snapshot)))
            if len(walked) == len(crash.stacks):
                break
        source.pid, source.command = pid, str(crash.executable)
        modules = {id(m): m for s, _ in walked for m in s.space.modules}.values()
        found = document(source, modules, walked, names.name)
        assert source.damaged == {}
        assert source.dropped() == 0
    return found


@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES + SHORT], ids=str)
def test_stacks_at_the_end_are_the_recorded_ones(case: Case, tmp_path: Path) -> None:
    with running(case, tmp_path) as crash:
        found = caught_at_exit(crash)
    if case.name in SHORT:
        short = {tid: replace(stack, ends=SHORTER) for tid, stack in crash.stacks.items()}
        crash = replace(crash, stacks=short)
    assert_truth(found, crash)


def test_records_of_old_kernels_sizes_hold_the_same(tmp_path: Path) -> None:
    with running(named("threads")[0], tmp_path) as crash:
        found = caught_at_exit(crash, buckets=True)
    assert_truth(found, crash)
