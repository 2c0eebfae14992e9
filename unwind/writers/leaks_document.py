"""A report of outstanding allocations in, the JSON document unwind-leaks/1 out."""

from __future__ import annotations

from unwind.frames import End
from unwind.writers.json_document import frame_entries, module_entry, plain_text

__all__ = ["SCHEMA", "leaks_document"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unwind.architecture import Architecture
    from unwind.leaks.known import KnownStack
    from unwind.leaks.report import Leak, Report
    from unwind.modules import Module
    from unwind.symbols.names import Name

SCHEMA = "unwind-leaks/1"
_NO_STACK = {
    "frames": [],
    "end": {"reason": End.MEMORY_FAULT, "detail": "there was no room for this stack"},
}


def leaks_document(
    report: Report,
    arch: Architecture,
    name: Callable[[Module | None, int, int], Name],
    top: int | None = None,
    blocks: bool = False,
) -> dict[str, Any]:
    """As docs/leaks.schema.json has it: the `top` largest stacks, with `blocks` each allocation.

    The modules that frames lie in are listed behind the leaks.
    """
    totals, modules = report.totals, _Modules()
    leaks = [
        _leak(leak, blocks, lambda known: _stack(known, arch, modules, name))
        for leak in report.leaks[:top]
    ]
    return {
        "schema": SCHEMA,
        "pid": report.pid,
        "time": report.time,
        "events": totals.allocations,
        "dropped": totals.dropped,
        "complete": report.complete,
        "leaks": leaks,
        "outstanding": {"bytes": report.size, "count": report.count},
        "younger": {"bytes": report.young.size, "count": report.young.count},
        "freed": totals.frees,
        "gone": report.gone,
        "checked": report.checked,
        "mistaken": report.mistaken,
        "off": {
            "missing": {"bytes": totals.dropped_bytes, "count": totals.dropped},
            "too_much": {"bytes": totals.replaced_bytes, "count": totals.replaced},
        },
        "modules": [module_entry(module) for module in modules.listed],
    }


class _Modules:
    """Modules in the order in which frames name them."""

    def __init__(self) -> None:
        self.listed: list[Module] = []
        self.index: dict[int, int] = {}

    def add(self, module: Module | None) -> None:
        if module is not None and id(module) not in self.index:
            self.index[id(module)] = len(self.listed)
            self.listed.append(module)


def _leak(
    leak: Leak, blocks: bool, stack: Callable[[KnownStack], dict[str, Any]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": leak.size, "count": leak.count}
    if leak.oldest is not None:
        found["oldest"] = leak.oldest
    found["stack"] = stack(leak.stack) if leak.stack is not None else _NO_STACK
    if blocks:
        found["allocations"] = [
            {"address": hex(block.address), "bytes": block.size, "tid": block.tid}
            for block in leak.blocks
        ]
    return found


def _stack(
    known: KnownStack,
    arch: Architecture,
    modules: _Modules,
    name: Callable[[Module | None, int, int], Name],
) -> dict[str, Any]:
    stack = known.stack()
    for frame in stack.frames:
        modules.add(frame.module)
    end: dict[str, Any] = {"reason": stack.end}
    if stack.detail:
        end["detail"] = plain_text(stack.detail)
    frames = [
        entry for frame in stack.frames for entry in frame_entries(frame, arch, modules.index, name)
    ]
    return {"frames": frames, "end": end}
