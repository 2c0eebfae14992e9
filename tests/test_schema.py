"""The JSON schema that the repository keeps is a schema, and refuses what is no document."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from tests.support import validate


def document(**changes: Any) -> dict[str, Any]:
    frame = {"pc": "0x1000", "trust": "context", "inline": False}
    thread = {"tid": 1, "frames": [frame], "end": {"reason": "outermost"}}
    source = {"kind": "core", "arch": "x86_64"}
    empty = {"schema": "unwind-stack/1", "source": source, "modules": [], "threads": [thread]}
    return empty | changes


def test_the_smallest_document_is_valid() -> None:
    validate(document())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "unwind-stack/2"},
        {"threads": [{"tid": 1, "frames": []}]},
        {"threads": [{"tid": 1, "frames": [{"pc": 4096}], "end": {"reason": "outermost"}}]},
        {"threads": [{"tid": 1, "frames": [], "end": {"reason": "tired"}}]},
    ],
)
def test_a_wrong_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(document(**change))
