"""Walked samples in, JSON lines out: a document without threads, then each sample as one of them.

A line is either an element of `threads` of unwind-stack/1, with `cpu` and `period` added, or
`{"modules": […]}` with modules that were not there before: their indices go on, and each has the
`pid` of the process that maps it. Frames of the kernel come first, marked by `kernel`.
"""

from __future__ import annotations

from unwind.frames import Frame, Trust
from unwind.registers import Registers
from unwind.writers.json_document import document, dumps, frame_entries, module_entry, plain_text

__all__ = ["SampleLines"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from unwind.frames import Stack
    from unwind.modules import Module
    from unwind.perf.samples import Sample
    from unwind.profile import How, Site
    from unwind.snapshot import Source
    from unwind.space import AddressSpace
    from unwind.symbols.names import Name

    _Text: TypeAlias = tuple[str, str]

_MOST_FRAMES = 1 << 18  # whose text is kept
_NO_REGISTERS = Registers()


class SampleLines:
    """The lines of a source's samples; `site` and `kernel_site` are those of `Places`."""

    def __init__(
        self,
        source: Source,
        name: Callable[[Module | None, int, int], Name],
        site: Callable[[AddressSpace, int, bool], Site],
        kernel_site: Callable[[int, bool], Site],
    ):
        self._name, self._site, self._kernel_site = name, site, kernel_site
        self._arch = source.arch
        self._source = source
        self._index: dict[int, int] = {}  # by the ids of modules that their spaces keep
        self._count = 0  # of modules so far
        self._frames: dict[AddressSpace, dict[tuple[object, ...], _Text]] = {}
        self._kept = 0  # frames whose text is kept
        self._met: tuple[Module, ...] = ()  # the modules of the last sample's space

    def head(self) -> str:
        """The first line."""
        return dumps(document(self._source, (), (), self._name)) + "\n"

    def meet(self, sample: Sample) -> str:
        """The line that must stand before a sample: with modules that were not there; "": none.

        Modules are listed when a sample is met in their space, whether it needs them or not: so
        their indices do not depend on who walks which samples.
        """
        modules = sample[6].modules
        if modules is self._met:
            return ""
        self._met = modules
        news = [module for module in modules if id(module) not in self._index]
        for module in news:
            self._index[id(module)] = self._count
            self._count += 1
        pid = sample[0].pid
        entries = [{**module_entry(module), "pid": pid} for module in news]
        return dumps({"modules": entries}) + "\n" if entries else ""

    def forget(self, space: AddressSpace) -> None:
        """Keep nothing of a space in which no sample will be any more."""
        for module in space.modules:
            self._index.pop(id(module), None)
        self._kept -= len(self._frames.pop(space, ()))

    def sample(
        self,
        sample: Sample,
        kernel: Sequence[int],
        walked: tuple[Sequence[int], str, How | None, Stack | None],
        extents: Sequence[tuple[int | None, int | None]],
        detail: str,
    ) -> str:
        """The line of a sample, which `meet` has met; `extents`: CFA and sp of user frames."""
        task, time, event, cpu, period, _, space = sample[:7]
        pcs, end, how, stack = walked
        frames = [self._kernel_frame(pc, n > 0) for n, pc in enumerate(kernel)]
        known = self._frames.setdefault(space, {})
        for n, pc in enumerate(pcs):
            trust, called = how[n] if how is not None else _plain(n)
            signal = stack is not None and stack.frames[n].signal
            key = pc, trust, called, signal
            text = known.get(key)
            if text is None:
                text = known[key] = self._frame(space, *key)
            cfa, sp = extents[n]
            more = f'"cfa":"{cfa:#x}",' if cfa is not None else ""
            more += f'"sp":"{sp:#x}",' if sp is not None else ""
            frames.append(text[0] + more + text[1])
        head: dict[str, Any] = {"tid": task.tid, "crashed": False, "pid": task.pid}
        if task.comm is not None:
            head["name"] = plain_text(task.comm)
        head |= {"time": time / 1e9, "event": plain_text(event.name)}
        if cpu is not None:
            head["cpu"] = cpu
        head["period"] = period
        reason = {"reason": end} | ({"detail": plain_text(detail)} if detail else {})
        return f'{dumps(head)[:-1]},"frames":[{",".join(frames)}],"end":{dumps(reason)}}}\n'

    def _frame(self, space: AddressSpace, pc: int, trust: str, called: bool, signal: bool) -> _Text:
        """The text of one frame before its CFA and behind it; most are met many times."""
        lookup_pc = self._arch.call_before(pc) if called else pc
        module = space.find(lookup_pc)
        frame = Frame(pc, lookup_pc, _NO_REGISTERS, module, trust, called, None, signal)
        *inlined, entry = frame_entries(frame, self._arch, self._index, self._name)
        if entry["function"] is None:
            site = self._site(space, pc, called)
            if site.function is not None:
                entry["function"] = plain_text(site.function)
                entry["offset"] = hex(site.offset or 0)
        if self._kept >= _MOST_FRAMES:
            for texts in self._frames.values():
                texts.clear()
            self._kept = 0
        self._kept += 1
        before, mark, behind = dumps(entry).partition('"inline":false,')
        return "".join([f"{dumps(call)}," for call in inlined]) + before + mark, behind

    def _kernel_frame(self, pc: int, called: bool) -> str:
        site = self._kernel_site(pc, called)
        function = plain_text(site.function) if site.function is not None else None
        entry: dict[str, Any] = {"pc": hex(pc), "trust": Trust.RECORDED, "inline": False}
        entry |= {"module": None, "function": function, "symbol": function}
        entry["offset"] = hex(site.offset) if site.offset is not None else None
        return dumps({**entry, "signal": False, "kernel": True})


def _plain(n: int) -> tuple[str, bool]:
    return (Trust.CFI, True) if n else (Trust.CONTEXT, False)
