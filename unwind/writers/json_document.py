"""One JSON document for a source and its stacks: the schema unwind-stack/1."""

from __future__ import annotations

import os

from unwind.writers.escape import escape

__all__ = [
    "SCHEMA",
    "document",
    "dumps",
    "frame_entries",
    "inlined_entries",
    "module_entry",
    "plain_text",
    "source_place",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from unwind.architecture import Architecture
    from unwind.explanation import Explanation, Opinion
    from unwind.frames import Frame, Stack
    from unwind.modules import Module
    from unwind.snapshot import Snapshot, Source
    from unwind.symbols.names import Inlined, Name

SCHEMA = "unwind-stack/1"


def document(
    source: Source,
    modules: Iterable[Module],
    threads: Iterable[tuple[Snapshot, Stack]],
    name: Callable[[Module | None, int, int], Name],
    *,
    registers: bool = False,
    explain: Callable[[Snapshot, Frame], Explanation] | None = None,
    cross_check: Callable[[Snapshot, Frame], tuple[Opinion, ...]] | None = None,
) -> dict[str, Any]:
    """The whole document as plain dicts and lists; addresses are hexadecimal strings."""
    listed = list(modules)
    index = {id(module): n for n, module in enumerate(listed)}
    arch = source.arch

    def frames_of(snapshot: Snapshot, frame: Frame) -> list[dict[str, Any]]:
        *inlined, found = frame_entries(frame, arch, index, name)
        if registers:
            found["registers"] = {
                arch.register_name(n): hex(value) for n, value in sorted(frame.registers.items())
            }
        if explain is not None:
            found["explain"] = explanation(explain(snapshot, frame))
        if cross_check is not None:
            opinions = [_opinion(opinion) for opinion in cross_check(snapshot, frame)]
            found.setdefault("explain", {})["cross_check"] = opinions
        return [*inlined, found]

    stacks = []
    for snapshot, stack in threads:
        frames = [entry for frame in stack.frames for entry in frames_of(snapshot, frame)]
        stacks.append({**_thread(snapshot), "frames": frames, "end": _end(stack)})
    return {
        "schema": SCHEMA,
        "source": _source(source),
        "modules": [module_entry(module) for module in listed],
        "threads": stacks,
    }


def dumps(value: dict[str, Any]) -> str:
    """The document as text that is valid UTF-8 whatever the source's names hold."""
    import json

    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def plain_text(text: str) -> str:
    """Only what UTF-8 cannot carry is escaped: JSON has its own way for control characters."""
    if text.isascii():
        return text
    try:
        # In the locale C Python reads paths as ASCII, which makes two surrogates of an é.
        text = os.fsencode(text).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    return "".join(c if not 0xD800 <= ord(c) <= 0xDFFF else escape(c) for c in text)


def _source(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": source.kind, "arch": source.arch.name}
    if source.path:
        found["path"] = plain_text(source.path)
    if source.pid is not None:
        found["pid"] = source.pid
    if source.command is not None:
        found["command"] = plain_text(source.command)
    if source.signal is not None:
        signal = source.signal
        found["signal"] = {"number": signal.number}
        if signal.number in source.arch.signals:
            found["signal"]["name"] = source.arch.signals[signal.number]
        if signal.code is not None:
            found["signal"]["code"] = signal.code
        if signal.address is not None:
            found["signal"]["address"] = hex(signal.address)
    found["warnings"] = [plain_text(warning) for warning in source.warnings]
    return found


def module_entry(module: Module) -> dict[str, Any]:
    """An element of `modules`."""
    image = module.image
    debug = image.debug.path if image is not None and image.debug is not None else None
    return {
        "start": hex(module.start),
        "end": hex(module.end),
        "bias": hex(module.bias & 0xFFFF_FFFF_FFFF_FFFF),
        "name": plain_text(module.name),
        "file": plain_text(module.file) if module.file is not None else None,
        "build_id": module.build_id.hex() if module.build_id is not None else None,
        "state": module.state,
        "unwind": list(image.unwind_kinds) if image is not None else [],
        "debug_file": plain_text(debug) if debug is not None else None,
    }


def _thread(snapshot: Snapshot) -> dict[str, Any]:
    found: dict[str, Any] = {"tid": snapshot.tid, "crashed": snapshot.crashed}
    if snapshot.pid:
        found["pid"] = snapshot.pid
    if snapshot.name is not None:
        found["name"] = plain_text(snapshot.name)
    if snapshot.time is not None:
        found["time"] = snapshot.time
    if snapshot.event is not None:
        found["event"] = snapshot.event
    if snapshot.cookie:
        found["cookie"] = snapshot.cookie
    return found


def frame_entries(
    frame: Frame,
    arch: Architecture,
    index: dict[int, int],
    name: Callable[[Module | None, int, int], Name],
) -> list[dict[str, Any]]:
    """Elements of a thread's `frames`: what is inlined at a frame, innermost first, and itself.

    `index` has the modules' indices by their ids.
    """
    module = frame.module
    found: dict[str, Any] = {"pc": hex(frame.pc), "trust": frame.trust, "inline": False}
    if frame.cfa is not None:
        found["cfa"] = hex(frame.cfa)
    if arch.sp in frame.registers:
        found["sp"] = hex(frame.registers[arch.sp])
    found["module"] = index.get(id(module)) if module is not None else None
    if module is not None:
        found["vaddr"] = hex(module.to_vaddr(frame.pc))
    called = name(module, frame.pc, frame.pc if frame.signal else frame.lookup_pc)
    found["function"] = plain_text(called.function) if called.function is not None else None
    found["symbol"] = plain_text(called.symbol) if called.symbol is not None else None
    found["offset"] = hex(called.offset) if called.offset is not None else None
    found["signal"] = frame.signal
    found |= source_place(called)
    keys = ("pc", "trust", "module", "vaddr")
    shared: dict[str, Any] = {key: found[key] for key in keys if key in found}
    return [*inlined_entries(shared, called), found]


def inlined_entries(shared: dict[str, Any], name: Name) -> list[dict[str, Any]]:
    """The entries of what is inlined at a place, innermost first; `shared`: what all have."""
    return [
        {
            **shared,
            "inline": True,
            "function": plain_text(call.function) if call.function is not None else None,
            "symbol": plain_text(call.symbol) if call.symbol is not None else None,
            **source_place(call),
        }
        for call in name.inlined
    ]


def source_place(place: Name | Inlined) -> dict[str, Any]:
    """`file`, `line` and `column`, as far as they are known."""
    if place.file is None:
        return {}
    found: dict[str, Any] = {"file": plain_text(place.file)}
    if place.line is not None:
        found["line"] = place.line
        if place.column is not None:
            found["column"] = place.column
    return found


def _end(stack: Stack) -> dict[str, Any]:
    end = {"reason": stack.end}
    if stack.detail:
        end["detail"] = plain_text(stack.detail)
    return end


def _opinion(opinion: Opinion) -> dict[str, Any]:
    found: dict[str, Any] = {"source": opinion.trust}
    if opinion.cfa is None:
        found["problem"] = plain_text(opinion.problem)
        return found
    found["cfa"], found["agrees"] = hex(opinion.cfa), opinion.agrees
    found["pc"] = hex(opinion.pc) if opinion.pc is not None else None
    return found


def explanation(said: Explanation) -> dict[str, Any]:
    """An Explanation as plain dicts and lists."""
    found: dict[str, Any] = {
        "refused": [
            {"source": trust, "reason": plain_text(no.reason)} for trust, no in said.refused
        ]
    }
    if said.row is None:
        return found
    origin = said.row.origin
    found["by"] = said.trust
    found["section"] = plain_text(origin.section)
    if origin.fde >= 0:
        found["fde"], found["cie"] = hex(origin.fde), hex(origin.cie)
    if origin.note:
        found["note"] = plain_text(origin.note)
    if said.row.end > said.row.start:
        found["row"] = {"start": hex(said.row.start), "end": hex(said.row.end)}
    found["rules"] = [
        {
            "register": rule.name,
            "formula": rule.formula,
            **({"address": hex(rule.address)} if rule.address is not None else {}),
            **({"value": hex(rule.value)} if rule.value is not None else {}),
            **({"problem": plain_text(rule.problem)} if rule.problem else {}),
        }
        for rule in said.rules
    ]
    return found
