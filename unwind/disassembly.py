"""Disassembly: code in, instructions as capstone's text out; it is loaded by the first use."""

from __future__ import annotations

import os
import sys
from struct import Struct

from unwind.errors import MissingPackage

__all__ = ["disassembler"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unwind.machine import CodeModel, Disassemble, Instruction

# capstone 5.0 include/capstone/capstone.h: cs_arch, cs_mode, cs_opt_type, cs_opt_value, and
# cs_insn: id, address, size, bytes, mnemonic, op_str, detail.
_MAJOR = 5
_NUMBERS = {
    "CS_ARCH_ARM64": 1,
    "CS_ARCH_MIPS": 2,
    "CS_ARCH_X86": 3,
    "CS_MODE_LITTLE_ENDIAN": 0,
    "CS_MODE_MIPS32": 1 << 2,
    "CS_MODE_64": 1 << 3,
    "CS_MODE_BIG_ENDIAN": 1 << 31,
}
_SKIPDATA, _ON = 5, 3
_INSTRUCTION = Struct("@8xQH24x32s160s6x8x")


def disassembler(model: CodeModel) -> Disassemble:
    """A function from code and its vaddr to the instructions in it, past bytes that are none.

    MissingPackage where there is no capstone. Its plain texts are used: they cost 1 us an
    instruction, its operands as objects 25.
    """
    return _of_library(model) or _of_package(model)


def _of_library(model: CodeModel) -> Disassemble | None:
    """By the library in capstone's package, which is not imported; None where that is another one.

    The package loads twelve architectures with all their instructions: 30 ms, 12 MB. For one frame
    in assembler among a million that would be a tenth of all.
    """
    library = _library()
    family, modes = model.capstone
    if library is None or not _NUMBERS.keys() >= {family, *modes}:
        return None
    from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p, string_at

    mode = sum(_NUMBERS[name] for name in modes)
    library.cs_disasm.argtypes = (
        *(c_size_t, c_char_p, c_size_t, c_uint64, c_size_t),
        POINTER(c_void_p),
    )
    library.cs_disasm.restype = c_size_t
    library.cs_option.argtypes = c_size_t, c_int, c_size_t
    library.cs_free.argtypes = c_void_p, c_size_t
    library.cs_free.restype = None
    engine = c_size_t()
    if library.cs_open(_NUMBERS[family], c_int(mode), byref(engine)) != 0:
        return None
    handle = engine.value  # for as long as this process lives
    library.cs_option(handle, _SKIPDATA, _ON)

    def disassemble(code: bytes, vaddr: int) -> list[Instruction]:
        first = c_void_p()
        count = library.cs_disasm(handle, code, len(code), vaddr, 0, byref(first))
        if not count:
            return []
        found = string_at(first.value or 0, count * _INSTRUCTION.size)
        library.cs_free(first, count)
        return [
            (address, size, name.partition(b"\0")[0].decode(), text.partition(b"\0")[0].decode())
            for address, size, name, text in _INSTRUCTION.iter_unpack(found)
        ]

    return disassemble


def _library() -> Any:
    """The library that lies in the package's folder, None where there is none of that version."""
    from ctypes import CDLL
    from importlib.machinery import PathFinder

    is_barred = sys.modules.get("capstone", sys) is None  # as for `import`: so one leaves it out
    spec = None if is_barred else PathFinder.find_spec("capstone")
    if spec is None or spec.origin is None:
        return None
    path = os.path.join(os.path.dirname(spec.origin), "lib", "libcapstone.so")
    try:
        library = CDLL(path)
        return library if library.cs_version(None, None) >> 8 == _MAJOR else None
    except (OSError, AttributeError):
        return None


def _of_package(model: CodeModel) -> Disassemble:
    """By capstone's own package, of whatever version."""
    try:
        import capstone
    except ImportError:
        raise MissingPackage("capstone", "the analysis of code") from None
    family, modes = model.capstone
    mode = 0
    for name in modes:
        mode |= getattr(capstone, name)
    engine = capstone.Cs(getattr(capstone, family), mode)
    engine.skipdata = True

    def disassemble(code: bytes, vaddr: int) -> list[Instruction]:
        return list(engine.disasm_lite(code, vaddr))

    return disassemble
