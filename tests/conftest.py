"""Hypothesis profiles, and strict mode, in which a test that cannot run has failed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import hypothesis
import pytest

from tests.support import ROOT, STRICT, python

# Where a script has started us in the background, its shell has us ignore ^C, and so would all
# commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# One machine's run is another's: examples follow from the test itself, and a slow neighbour on a
# shared core is no failure. `HYPOTHESIS_PROFILE=explore` looks further, at random.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped example of x86_64, unpacked: `core` and a sysroot around it."""
    where = tmp_path_factory.mktemp("an example")
    archive = ROOT / "examples/x86_64-crash.tar.xz"
    python("-W", "ignore", "-m", "tarfile", "-e", archive, where).check_returncode()
    return where


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Covers `pytest.skip`, skipif and importorskip inside a test or a fixture."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Covers a module that skips itself while it is imported."""
    return _judged((yield))


def _judged(report: Report) -> Report:
    """The report as it is, but a skip in strict mode becomes a failure with the skip's reason."""
    if STRICT and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"cannot run here, and UNWIND_STRICT=1 allows no skips: {reason}"
    return report
