"""DWARF call frame information: section bytes in, rows out."""
