"""Lines and inlined functions: the debug info of an ELF file in, source places by vaddr out."""
