"""A recording in, the build-ids of the modules that its stacks are cut in out."""

from __future__ import annotations

from unwind.cli.plumbing import Progress
from unwind.cli.stacks import sources_of
from unwind.errors import SourceError
from unwind.frames import End
from unwind.sampling import Sampler
from unwind.transports.perf_data import TRANSPORT
from unwind.unwinder import DEFAULT_LIMIT, Unwinder

__all__ = ["allow_cut_modules"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options
    from unwind.files import Files
    from unwind.transports.perf_data import PerfSource

_MOST_ROUNDS = 20  # each finds the next module outwards


def allow_cut_modules(options: Options, files: Files) -> None:
    """Have servers asked for the modules that stacks of the recording are cut in.

    The recording is walked for that until no stack is cut in another module, so it is no pipe.
    """
    if options.file == "-":
        raise SourceError("--debuginfod=auto reads a recording more than once", "standard input")
    progress = Progress("looking for cut stacks")
    for _ in range(_MOST_ROUNDS):
        with TRANSPORT.open(options.file, files) as source:
            cut = _cut_in(options, source, progress) - files.cut
        if not cut:
            break
        files.cut |= cut
    progress.close()


def _cut_in(options: Options, source: PerfSource, progress: Progress) -> set[bytes]:
    """The build-ids of modules without file or debug file that stacks end in."""
    unwinder = Unwinder(source.arch, sources_of(options, source.arch), DEFAULT_LIMIT)
    sampler, call_before = Sampler(source.snapshot, unwinder), source.arch.call_before
    found: set[bytes] = set()
    seen: set[int] = set()
    for n, sample in enumerate(source.samples()):
        if not n & 0xFF:
            progress(source.records.done, len(source.records.data))
        pcs, end, _, _ = sampler.walk(sample)
        if end not in (End.NO_MODULE, End.NO_ROW) or not pcs or pcs[-1] in seen:
            continue
        seen.add(pcs[-1])
        module = sample[6].find(call_before(pcs[-1]) if len(pcs) > 1 else pcs[-1])
        if module is None or module.build_id is None:
            continue
        if module.image is None or module.image.debug is None:
            found.add(module.build_id)
    return found
