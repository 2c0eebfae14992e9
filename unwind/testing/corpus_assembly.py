"""A chain in, assembly of its functions with .cfi_* directives out, for GNU as and LLVM's.

An assembler has ideas of its own about CFI: it chooses the opcodes, and gas moves what stands
before the first advance into the CIE. So a file that it made is no copy of what our own assembler
would have written, but it must come to the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from unwind.dwarf.constants import DW_CFA
from unwind.dwarf.instructions import Instruction
from unwind.testing.assembler import assemble
from unwind.testing.bodies import ADVANCES
from unwind.testing.chains import Chain, Function
from unwind.testing.dialects import Dialect

__all__ = ["assembly", "origin"]

_HEADS = {
    "x86_64": (),
    "arm64": (),
    "mips32": (".set noreorder", ".set nomacro"),
    "mips32el": (".set noreorder", ".set nomacro"),
}
_CALLS = {
    "x86_64": ("call {0}",),
    "arm64": ("bl {0}",),
    "mips32": ("jal {0}", "nop"),
    "mips32el": ("jal {0}", "nop"),
}


def assembly(chain: Chain, sections: str) -> str:
    """The source of a program whose .text begins at `origin(chain)`.

    `sections` is what `.cfi_sections` names: .eh_frame, .debug_frame, or both.
    """
    name = chain.dialect.arch.name
    lines = [*_HEADS[name], f".cfi_sections {sections}", ".text"]
    here = origin(chain)
    calls = _callees(chain)
    for function in chain.functions:
        lines += _nops(chain.dialect, function.start - here)
        lines += _function(chain.dialect, function, calls.get(function.name, ""))
        here = function.start + function.body.size
    # A return address may lie behind the last function, where no other begins.
    lines += _nops(chain.dialect, 16 * len(chain.dialect.nop))
    # gdb ends a backtrace in the function with the entry point, so that is none of ours.
    lines += [".globl _start", ".type _start, %function", "_start:", "nop", "nop"]
    return "".join(f"{line}\n" if line.endswith(":") else f"\t{line}\n" for line in lines)


def origin(chain: Chain) -> int:
    """Where .text begins: gas wants it aligned to 16 bytes on MIPS."""
    return chain.functions[0].start & -16


def _callees(chain: Chain) -> dict[str, str]:
    """Whom each function calls: the one that runs within it."""
    inner, found = "", {}
    for frame in chain.frames:
        found[frame.function] = inner or frame.function
        inner = frame.function
    return found


def _function(dialect: Dialect, function: Function, callee: str) -> Iterator[str]:
    """One function: directives at their offsets, nops between them, the call at its place."""
    name, body = function.name, function.body
    yield f".type {name}, %function"
    yield f"{name}:"
    # gas says "def_cfa_register sp" for MIPS; all of ours begin with what it says by itself.
    yield ".cfi_startproc"
    if "S" in function.cie.augmentation:
        yield ".cfi_signal_frame"
    if function.handles:
        # The encoding of compilers, pcrel and sdata4; that these are no such things, no unwinder
        # for debuggers minds.
        yield f".cfi_personality 0x1b, {name}"
        yield f".cfi_lsda 0x1b, {name}"
    if function.cie.return_address != dialect.arch.return_address:
        yield f".cfi_return_column {function.cie.return_address}"
    here, end = 0, body.size
    call_at = body.site - len(dialect.call) if function.calls else None
    for at, directive in _directives(dialect, body.program):
        if call_at is not None and here <= call_at < at:
            yield from _nops(dialect, call_at - here)
            yield from (line.format(callee) for line in _CALLS[dialect.arch.name])
            here, call_at = body.site, None
        yield from _nops(dialect, at - here)
        here = at
        yield directive
    if call_at is not None:
        yield from _nops(dialect, call_at - here)
        yield from (line.format(callee) for line in _CALLS[dialect.arch.name])
        here = body.site
    yield from _nops(dialect, end - here)
    yield ".cfi_endproc"
    yield f".size {name}, .-{name}"


def _nops(dialect: Dialect, size: int) -> Iterator[str]:
    count = size // len(dialect.nop)
    if count:
        yield f".rept {count}"
        yield "nop"
        yield ".endr"


def _directives(dialect: Dialect, program: tuple[Instruction, ...]) -> Iterator[tuple[int, str]]:
    """Each instruction as a directive, with its offset in the function."""
    here = 0
    for instruction in program:
        if instruction.opcode in ADVANCES:
            here += instruction.number * dialect.code_align
        else:
            yield here, _directive(dialect, instruction)


def _directive(dialect: Dialect, instruction: Instruction) -> str:
    register, number = instruction.register, instruction.number
    factored = number * dialect.data_align
    match instruction.opcode:
        case DW_CFA.def_cfa:
            return f".cfi_def_cfa {register}, {number}"
        case DW_CFA.offset | DW_CFA.offset_extended_sf:
            return f".cfi_offset {register}, {factored}"
        case DW_CFA.val_offset | DW_CFA.val_offset_sf:
            return f".cfi_val_offset {register}, {factored}"
        case DW_CFA.undefined:
            return f".cfi_undefined {register}"
        case DW_CFA.same_value:
            return f".cfi_same_value {register}"
        case DW_CFA.register:
            return f".cfi_register {register}, {number}"
        case DW_CFA.restore | DW_CFA.restore_extended:
            return f".cfi_restore {register}"
        case DW_CFA.remember_state:
            return ".cfi_remember_state"
        case DW_CFA.restore_state:
            return ".cfi_restore_state"
        case DW_CFA.GNU_window_save:
            return ".cfi_negate_ra_state"
    escaped = ", ".join(f"{byte:#x}" for byte in assemble([instruction], dialect.target))
    return f".cfi_escape {escaped}"
