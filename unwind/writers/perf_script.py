"""Walked samples in, the text of `perf script` out, which many tools read."""

from __future__ import annotations

from _weakref import ref  # what `weakref` wraps, at a tenth of its cost at start-up

from unwind.errors import SourceError
from unwind.writers.escape import escape

__all__ = ["DEFAULT_FIELDS", "ScriptWriter"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unwind.perf.samples import Sample
    from unwind.profile import How, Site
    from unwind.space import AddressSpace

DEFAULT_FIELDS = ("comm", "pid", "tid", "time", "event", "ip", "sym", "dso")
_FIELDS = (*DEFAULT_FIELDS, "cpu", "period", "symoff")
_OF_FRAMES = frozenset({"ip", "sym", "dso", "symoff"})


class ScriptWriter:
    """The lines of each sample: what `fields` name, as `perf script -F` does.

    `site(space, pc, called)` names the user's places, `kernel_site(pc, called)` the kernel's. An
    address is where a frame stands, and that is what a call returns to; perf prints, by version,
    that or the byte before it, in the process or in the file.
    """

    def __init__(
        self,
        fields: Sequence[str],
        site: Callable[[AddressSpace, int, bool], Site],
        kernel_site: Callable[[int, bool], Site],
    ):
        unknown = [field for field in fields if field not in _FIELDS]
        if unknown:
            known = ", ".join(_FIELDS)
            raise SourceError(f"no field {unknown[0]!r}", "--fields", f"there are {known}")
        self.fields = frozenset(fields)
        self._site, self._kernel_site = site, kernel_site
        self._is_named = bool(self.fields & {"sym", "dso", "symoff"})
        self._form = _form(self.fields)
        self._has_head = bool(self.fields - _OF_FRAMES)
        self._space: AddressSpace | None = None
        self._lines: dict[int, tuple[_Lines, _Lines, ref[AddressSpace] | None]] = {}
        self._innermost, self._callers = self._lines_of(None)
        self._kernel = _Lines(lambda pc: self._line(pc, kernel_site(pc, False)))
        self._kernel_callers = _Lines(lambda pc: self._line(pc, kernel_site(pc, True)))

    def write(
        self,
        sample: Sample,
        kernel: Sequence[int],
        pcs: Sequence[int],
        how: How | None,
        into: list[str],
    ) -> None:
        """Put the lines of one sample, its empty one included, behind what is in `into`."""
        space = sample[6]
        if space is not self._space:
            self._space = space
            self._innermost, self._callers = self._lines_of(space)
        if self._has_head:
            into.append(self._head(sample))
        if kernel:
            into.append(self._kernel[kernel[0]])
            into += map(self._kernel_callers.__getitem__, kernel[1:])
        innermost, callers = self._innermost, self._callers
        if how is not None:
            for pc, (_, called) in zip(pcs, how, strict=True):
                into.append(callers[pc] if called else innermost[pc])
        elif innermost is callers:
            into += map(callers.__getitem__, pcs)
        elif pcs:
            into.append(innermost[pcs[0]])
            into += map(callers.__getitem__, pcs[1:])
        into.append("\n")

    def _head(self, sample: Sample) -> str:
        """The line above the frames."""
        task, time, event, cpu, period = sample[:5]
        fields, words = self.fields, []
        if "comm" in fields:
            words.append(escape(task.comm) if task.comm is not None else f":{task.tid}")
        ids = [f"{task.pid:5}"] if "pid" in fields else []
        ids += [f"{task.tid:<5}" if ids else f"{task.tid:5}"] if "tid" in fields else []
        words += ["/".join(ids)] if ids else []
        if "cpu" in fields and cpu is not None:
            words.append(f"[{cpu:03}]")
        if "time" in fields:
            words.append(f"{time // 1_000_000_000:5}.{time // 1000 % 1_000_000:06}:")
        if "period" in fields:
            words.append(f"{period:10}")
        if "event" in fields:
            words.append(f"{escape(event.name)}:")
        return " ".join(words) + " \n"

    def _lines_of(self, space: AddressSpace | None) -> tuple[_Lines, _Lines]:
        """The lines for innermost pcs of a space, and those for return addresses.

        They go when the space does: processes come and go.
        """
        found = self._lines.get(id(space))
        if found is None:
            lines, key = self._lines, id(space)

            def forget(_: object) -> None:
                lines.pop(key, None)

            weak = ref(space, forget) if space is not None else None
            innermost = callers = _Lines(self._maker(weak, True))
            if self._is_named:  # only then is the place within the call, or where it stands
                innermost = _Lines(self._maker(weak, False))
            found = lines[key] = innermost, callers, weak
        return found[:2]

    def _maker(self, weak: ref[AddressSpace] | None, called: bool) -> Callable[[int], str]:
        """What makes the line of a pc."""
        if self.fields & _OF_FRAMES == {"ip"}:
            return lambda pc: f"\t{pc:16x}\n"
        if weak is None or not self._is_named:
            return lambda pc: self._line(pc, None)

        def make(pc: int) -> str:
            space = weak()
            return self._line(pc, self._site(space, pc, called) if space is not None else None)

        return make

    def _line(self, pc: int, site: Site | None) -> str:
        symbol, binary, offset, inlined = "[unknown]", "[unknown]", "", ""
        if site is not None:
            if site.function is not None:
                symbol, offset = escape(site.function), f"+{site.offset or 0:#x}"
            if site.binary is not None:
                binary = escape(site.binary.name)
            if site.inlined and "sym" in self.fields:
                inlined = "".join([self._inlined(pc, name, offset) for name in site.inlined])
        return inlined + self._form % {
            "ip": f"{pc:16x}",
            "sym": symbol,
            "symoff": offset,
            "dso": binary,
        }

    def _inlined(self, pc: int, name: str, offset: str) -> str:
        """The line of a function that was inlined at a pc, as perf script has it."""
        symbol = escape(name)
        return self._form % {"ip": f"{pc:16x}", "sym": symbol, "symoff": offset, "dso": "inlined"}


class _Lines(dict[int, str]):
    """The line of a frame by its pc, made when first asked for."""

    def __init__(self, make: Callable[[int], str]):
        self._make = make

    def __missing__(self, pc: int) -> str:
        text = self[pc] = self._make(pc)
        return text


def _form(fields: frozenset[str]) -> str:
    """How a frame's line is put together."""
    words = ["%(ip)s"] if "ip" in fields else []
    if "sym" in fields:
        words.append("%(sym)s%(symoff)s" if "symoff" in fields else "%(sym)s")
    if "dso" in fields:
        words.append("(%(dso)s)")
    return "\t" + " ".join(words) + "\n" if words else ""
