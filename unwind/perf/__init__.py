"""perf's recordings: bytes of perf.data in; events, processes and samples out."""
