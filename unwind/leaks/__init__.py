"""Outstanding allocations: an allocator watched in the kernel in, what was not freed out."""
