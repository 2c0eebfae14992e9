"""The allocator of a process in, what the programs of bpf/leaks.bpf.c know of it out.

The kernel keeps address -> (size, time, key of the stack) of what is outstanding, and sends the
stack of each key once, as an event whose cookie is the key. What a key stands on is told there.
"""

from __future__ import annotations

from unwind.bpf.btf import Btf
from unwind.bpf.libbpf import BpfError
from unwind.bpf.uprobe_multi import attach_all, expect_many, has_uprobe_multi
from unwind.elf import Elf
from unwind.errors import FormatError
from unwind.leaks.code import code_of
from unwind.leaks.objects import identity_of, objects_mapped_since
from unwind.leaks.records import Record
from unwind.values import Value

__all__ = ["Block", "Call", "Probes", "Sites", "Totals", "Wanted"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unwind.bpf.libbpf import BpfObject, Ring
    from unwind.events.points import Attached
    from unwind.leaks.code import Code
    from unwind.leaks.objects import Object
    from unwind.leaks.steps import Step
    from unwind.protocols import ByteOrder

_MOST_CODE = 8  # stretches: MOST_CODE of bpf/leaks.h
_FIRST = b"\0\0\0\0"
_LARGEST = (1 << 64) - 1
_TOTALS = (
    *("allocations", "frees", "dropped", "dropped_bytes", "replaced", "replaced_bytes"),
    "nowhere",
)
_PLAN = (
    *("serial", "exec_pages", "generation", "epoch", "smallest", "largest", "every", "traced"),
    "serial_again",
)
_MOST_STEPS = 60_000  # of 65,536 for which the kernel has room
_MOST_CALLS = 1 << 16  # that wait to be printed


class Wanted(Value):
    """What is looked at: allocations of a size from `smallest` to `largest`, one of `every`.

    `most` blocks have room in the kernel; `traced`: each call is told.
    """

    smallest: int = 0
    largest: int = _LARGEST
    every: int = 1
    most: int = 1 << 20
    traced: bool = False


class Block(Value):
    """An outstanding allocation. `time` is in nanoseconds of CLOCK_MONOTONIC."""

    address: int
    size: int
    time: int
    stack: int
    tid: int


class Sites(Value):
    """What the kernel has counted of one key: outstanding, and allocations since the beginning.

    `current`: by the program that runs now, and not by one before it.
    """

    stack: int
    size: int
    count: int
    events: int
    current: bool


class Totals(Value):
    """What has happened. `dropped` allocations are not among those outstanding, for want of room;
    of `replaced` ones the free was not seen, but their address was given out again. `nowhere`
    have no stack."""

    allocations: int
    frees: int
    dropped: int
    dropped_bytes: int
    replaced: int
    replaced_bytes: int
    nowhere: int


class Call(Value):
    """One call: `function` is the kind, as bpf/leaks.h has it; of a free, `size` is what went."""

    time: int
    address: int
    size: int
    stack: int
    tid: int
    function: str


class Probes:
    """Watches the allocator of process `pid`; for a RingBufferSource what a Point is.

    `only`: no other files than `objects` are, whatever is mapped later.
    """

    kind, name, object_name = "allocator", "malloc", "leaks"
    programs = ("on_enter", "on_leave", "on_exec")

    def __init__(self, pid: int, objects: Sequence[Object], wanted: Wanted, only: bool = False):
        self._only = only
        self.pid, self.objects, self.wanted = pid, objects, wanted
        self._serial = self.generation = 0
        self._known: set[tuple[int, bool]] = set()  # places whose steps the kernel has
        self._settled: tuple[Code | None, int] = None, -1  # what the kernel goes by
        self._calls: list[bytes] = []
        self._ring: Ring | None = None
        self._late: list[Attached] = []
        self.late: list[str] = []  # files that were mapped later, and are watched since
        known = [identity_of(place.path) for place in objects]
        self._files = {identity for identity in known if identity is not None}
        self.gone = 0  # blocks of earlier programs that were found in the map

    def prepare(self, object: BpfObject) -> None:
        """Before it is loaded: how much room there is; FormatError for another object."""
        object.resize("blocks", self.wanted.most)
        self._at_once = has_uprobe_multi()
        if self._at_once:
            for name in ("on_enter", "on_leave"):
                expect_many(object.programs[name])
        with open(object.path, "rb") as file:
            elf = Elf(file.read(), object.path)
        section = elf.section(".BTF")
        if section is None:
            raise FormatError("it has no section .BTF", elf.path)
        order = elf.header.byteorder
        btf = Btf(elf.data(section), order)
        self._order: ByteOrder = order
        self._kinds = btf.enum("allocator_function")
        self._names = {number: name for name, number in self._kinds.items()}
        self._block = Record(btf, "block", ("size", "time", "stack", "tid", "epoch"), order)
        self._site = Record(btf, "site", ("bytes", "count", "events", "epoch"), order)
        self._life = Record(btf, "life", ("epoch", "unsettled"), order)
        self._totals = Record(btf, "totals", _TOTALS, order)
        self._call = Record(
            btf, "call_told", ("time", "address", "size", "stack", "tid", "function"), order
        )
        names = (
            "serial",
            "exec_pages",
            "generation",
            "epoch",
            "smallest",
            "largest",
            "every",
            "traced",
        )
        self._plan = Record(btf, "plan", (*names, "serial_again"), order)
        self._place = Record(btf, "place", ("pc", "generation", "called"), order)
        self._step = Record(btf, "step", ("cfa", "pc", "fp", "flags"), order)
        self._flags = btf.enum("step_flag")
        self._code = btf.struct("plan").members["code"]

    def attach(self, object: BpfObject, pid: int | None, cookie: int) -> list[Attached]:
        """Attach to all functions; BpfError where that fails."""
        self._object = object
        self._blocks, self._sites = object.map("blocks"), object.map("sites")
        self._lives, self._plans = object.map("lives"), object.map("plans")
        self._steps = object.map("steps")
        if self.wanted.traced:
            self._ring = object.ring("told", self._take_call)
        self.settle(force=True)
        links: list[Attached] = []
        try:
            links.append(object.programs["on_exec"].attach_raw_tracepoint("sched_process_exec"))
            self._attach_all(self.objects, links)
        except BaseException:
            while links:
                links.pop().close()
            raise
        return links

    def _attach_all(self, places: Sequence[Object], links: list[Attached]) -> None:
        """Attach to all functions of these files."""
        # Nothing is seen to be made before it is seen to go, on the way in as on the way out:
        # links are closed from the last to the first. Nor is a call of which the return is not.
        self._attach(places, "on_enter", False, False, links)
        self._attach(places, "on_leave", True, True, links)
        self._attach(places, "on_enter", True, False, links)

    def _attach(
        self,
        places: Sequence[Object],
        name: str,
        makes: bool,
        returning: bool,
        links: list[Attached],
    ) -> None:
        """Attach a program to all functions that make allocations, or to those that free them."""
        program = self._object.programs[name]
        for place in places:
            wanted = [each for each in place.functions if each.returns == makes]
            kinds = [self._kinds[function.kind] for function in wanted]
            offsets = [function.offset for function in wanted]
            if self._at_once and wanted:
                links.append(attach_all(program, place.path, offsets, kinds, self.pid, returning))
            else:
                for offset, kind in zip(offsets, kinds, strict=True):
                    where = place.path, None, offset, self.pid
                    links.append(program.attach_uprobe(*where, kind, returning))

    def settle(self, force: bool = False) -> None:
        """Tell the kernel where code lies, if that has changed."""
        epoch, unsettled = self._lived()
        if not force and unsettled != self._serial and epoch == self._settled[1]:
            return
        found = code_of(self.pid, _MOST_CODE)
        if found is None and epoch == self._settled[1] and not force:
            return  # it has ended
        if (found, epoch) == self._settled and not force:
            return
        known, self._settled = self._settled[0], (found, epoch)
        wanted = self.wanted
        self._serial += 1
        if known is None or found is None or not known.mapped <= found.mapped:
            self.generation += 1
            self._forget_steps()
        plan = bytearray(
            self._plan.pack(
                self._serial,
                found.pages if found is not None else 0,
                self.generation,
                epoch,
                wanted.smallest,
                wanted.largest,
                wanted.every,
                int(wanted.traced),
                self._serial,
            )
        )
        for n, (start, end) in enumerate(found.stretches if found is not None else ()):
            at = self._code.offset + 16 * n
            plan[at : at + 8] = start.to_bytes(8, self._order)
            plan[at + 8 : at + 16] = (end - start).to_bytes(8, self._order)
        if found is not None and not self._only and not force:
            self._attach_late()
        self._plans.put((self._serial % 2).to_bytes(4, self._order), bytes(plan))

    def learn(self, step: Step) -> None:
        """Tell the kernel how to walk on from a place, so that it knows stacks by itself."""
        if (step.pc, step.called) in self._known or len(self._known) >= _MOST_STEPS:
            return
        self._known.add((step.pc, step.called))
        flags = sum([self._flags[f"STEP_{flag}"] for flag in step.flags])
        offsets = [n & 0xFFFF_FFFF for n in (step.cfa, step.saved_pc, step.saved_fp)]
        key = self._place.pack(step.pc, self.generation, int(step.called))
        self._steps.put(key, self._step.pack(*offsets, flags))

    def _attach_late(self) -> None:
        """Attach to allocators in files that the process has mapped since."""
        for place in objects_mapped_since(self.pid, self._files):
            try:
                self._attach_all([place], self._late)
            except BpfError:
                continue  # the process has ended, or runs another program by now
            self.late.append(place.name)

    def _forget_steps(self) -> None:
        """What led on from a place was there, perhaps, of code that is no more."""
        self._known.clear()
        for key, _ in self._steps.entries():
            self._steps.remove(key)

    @property
    def epoch(self) -> int:
        """How many programs the process has run before this one, since it is watched."""
        return self._lived()[0]

    def blocks(self) -> dict[int, Block]:
        """What is outstanding, by address. What an earlier program had is taken out of the map."""
        epoch, unpack, order = self.epoch, self._block.unpack, self._order
        found = {}
        for key, value in self._blocks.entries():
            size, time, stack, tid, of = unpack(value)
            if of == epoch:
                address = int.from_bytes(key, order)
                found[address] = Block(address, size, time, stack, tid)
            elif of < epoch:
                self._blocks.remove(key)
                self.gone += 1
        return found

    def sites(self) -> Iterator[Sites]:
        """What is counted by stacks."""
        epoch, order = self.epoch, self._order
        for key, value in self._sites.entries():
            size, count, events, of = self._site.unpack(value)
            yield Sites(int.from_bytes(key, order), size, count, events, of == epoch)

    def forget(self, site: Sites) -> None:
        """Take a key away of which nothing is outstanding; its stack is sent if it comes again."""
        self._sites.remove(site.stack.to_bytes(8, self._order))

    def totals(self) -> Totals:
        """What has happened since the beginning."""
        each = [self._totals.unpack(data) for data in self._object.each_cpu("totals")]
        return Totals(*[sum(column) for column in zip(*each, strict=True)])

    def calls(self) -> list[Call]:
        """The calls since this was asked last, in the order of time; none without `traced`."""
        if self._ring is None:
            return []
        self._ring.consume()
        taken, self._calls = self._calls, []
        found = []
        for data in taken:
            time, address, size, stack, tid, function = self._call.unpack(data)
            kind = self._names.get(function, "")
            found.append(Call(time, address, size, stack, tid, kind))
        return sorted(found, key=lambda call: call.time)

    def close(self) -> None:
        """Give back what the source does not know of; before it is closed."""
        while self._late:
            self._late.pop().close()
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _lived(self) -> tuple[int, ...]:
        return self._life.unpack(self._lives.get(_FIRST) or bytes(self._life.size))

    def _take_call(self, data: bytes) -> bool:
        self._calls.append(data)
        return len(self._calls) < _MOST_CALLS
