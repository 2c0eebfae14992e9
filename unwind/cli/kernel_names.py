"""The option --kallsyms and a recording in, who names the kernel's addresses out."""

from __future__ import annotations

from unwind.errors import SourceError
from unwind.perf.constants import FEATURE
from unwind.perf.kallsyms import is_elf, read_kallsyms, recorded_kallsyms
from unwind.places import KERNEL

__all__ = ["kernel_names"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options
    from unwind.files import Files
    from unwind.perf.kallsyms import Kallsyms
    from unwind.perf.vmlinux import Vmlinux
    from unwind.transports.perf_data import PerfSource


def kernel_names(
    options: Options, source: PerfSource, files: Files | None
) -> Kallsyms | Vmlinux | None:
    """By the list of symbols that the option names, or by a vmlinux.

    `recorded`: what perf kept of the recorded kernel, else the running one's list if it is the
    same, else its vmlinux where that is installed or can be fetched. SourceError without any.
    """
    from unwind.perf.vmlinux import Vmlinux

    path, header = options.kallsyms, source.header
    build_id, mapped = header.build_ids.get(KERNEL), source.processes.kernel
    if path != "recorded":
        if not is_elf(path):
            return read_kallsyms(path)
        from unwind.elf import Elf
        from unwind.image import Image
        from unwind.unpack import load

        return Vmlinux(Image(Elf(memoryview(load(path).data), path), path), mapped, build_id)
    try:
        return read_kallsyms(recorded_kallsyms(build_id))
    except SourceError:
        release = header.facts.get(FEATURE.osrelease)
        image = files.kernel(build_id, release) if files is not None and build_id else None
        if image is None:
            raise
        return Vmlinux(image, mapped, build_id)
