"""docs/testing.md: each of its examples is a test that passes, and each strategy has one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import ROOT

PAGE = (ROOT / "docs/testing.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
STRATEGIES = {"elves", "cores", "entries", "programs", "sections", "snapshots"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_passes(number: int) -> None:
    space: dict[str, Any] = {}
    exec(compile(EXAMPLES[number], f"docs/testing.md, example {number}", "exec"), space)
    tests = [made for name, made in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        if hasattr(test, "hypothesis"):
            quick = settings(max_examples=15, suppress_health_check=list(HealthCheck))
            test = quick(test)
        test()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_named_on_the_page(name: str) -> None:
    module = __import__(f"unwind.testing.{name}", fromlist=["__all__"])
    public = {each for each in module.__all__ if each.islower()}
    # What is no strategy: helpers of those that are.
    public -= {
        "core_of",
        "snapshot_of",
        "entry_areas",
        "elf_areas",
        "lawful",
        "reach",
        "extents",
        "base_of",
    }
    assert {each for each in public if f"`{each}" not in PAGE} == set()
