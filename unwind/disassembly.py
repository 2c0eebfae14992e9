"""Disassembly: code in, instructions as capstone's text out; it is loaded by the first use."""

from __future__ import annotations

from unwind.errors import MissingPackage

__all__ = ["disassembler"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.machine import CodeModel, Disassemble, Instruction


def disassembler(model: CodeModel) -> Disassemble:
    """A function from code and its vaddr to the instructions in it, past bytes that are none.

    MissingPackage where there is no capstone. Its plain texts are used: they cost 1 us an
    instruction, its operands as objects 25.
    """
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
