"""The numbers of perf's recordings, by the names of the kernel's and perf's headers.

Linux v6.13 include/uapi/linux/perf_event.h, tools/lib/perf/include/perf/event.h,
tools/perf/Documentation/perf.data-file-format.txt.
"""

from __future__ import annotations

__all__ = ["CONTEXT", "FEATURE", "MISC", "RECORD", "SAMPLE", "event_name"]


class RECORD:
    """Kinds of records: the kernel's, then (from 64 on) perf's own."""

    mmap = 1
    lost = 2
    comm = 3
    exit = 4
    throttle = 5
    unthrottle = 6
    fork = 7
    read = 8
    sample = 9
    mmap2 = 10
    aux = 11
    itrace_start = 12
    lost_samples = 13
    switch = 14
    switch_cpu_wide = 15
    namespaces = 16
    ksymbol = 17
    bpf_event = 18
    cgroup = 19
    text_poke = 20
    aux_output_hw_id = 21

    header_attr = 64
    header_event_type = 65
    header_tracing_data = 66
    header_build_id = 67
    finished_round = 68
    id_index = 69
    auxtrace_info = 70
    auxtrace = 71
    auxtrace_error = 72
    thread_map = 73
    cpu_map = 74
    stat_config = 75
    stat = 76
    stat_round = 77
    event_update = 78
    time_conv = 79
    header_feature = 80
    compressed = 81
    finished_init = 82
    compressed2 = 83


class MISC:
    """Bits of a record's `misc`; the last three share theirs, by the kind of record."""

    cpumode = 7
    kernel = 1
    user = 2
    mmap_build_id = 1 << 14
    build_id_size = 1 << 15
    mmap_data = 1 << 13
    comm_exec = 1 << 13


class SAMPLE:
    """Bits of `sample_type`, in the order in which most of the fields lie in a sample."""

    identifier = 1 << 16
    ip = 1 << 0
    tid = 1 << 1
    time = 1 << 2
    addr = 1 << 3
    id = 1 << 6
    stream_id = 1 << 9
    cpu = 1 << 7
    period = 1 << 8
    read = 1 << 4
    callchain = 1 << 5
    raw = 1 << 10
    branch_stack = 1 << 11
    regs_user = 1 << 12
    stack_user = 1 << 13


class FEATURE:
    """The feature sections that are read here."""

    build_id = 2
    hostname = 3
    osrelease = 4
    arch = 6
    cmdline = 11
    event_desc = 12
    compressed = 27


class CONTEXT:
    """Marks in a callchain: from here on the addresses are of the kernel, of the user, …"""

    hv = (1 << 64) - 32
    kernel = (1 << 64) - 128
    user = (1 << 64) - 512
    first = (1 << 64) - 4095  # marks lie from here on


_HARDWARE = (
    "cycles instructions cache-references cache-misses branches branch-misses bus-cycles "
    "stalled-cycles-frontend stalled-cycles-backend ref-cycles"
).split()
_SOFTWARE = (
    "cpu-clock task-clock page-faults context-switches cpu-migrations minor-faults major-faults "
    "alignment-faults emulation-faults dummy bpf-output cgroup-switches"
).split()


def event_name(kind: int, config: int) -> str:
    """What perf calls an event of PERF_TYPE `kind` whose name the file does not have."""
    names = (_HARDWARE, _SOFTWARE)[kind] if kind < 2 else []
    return names[config] if config < len(names) else f"event-{kind}:{config:#x}"
