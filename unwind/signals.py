"""Linux' signals by number, and what the commonest codes of a fault mean."""

from __future__ import annotations

__all__ = ["CODES", "LINUX", "MIPS"]

_NAMES = (
    "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP "
    "TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
)

# signal(7), the column of x86 and arm.
LINUX = {number: f"SIG{name}" for number, name in enumerate(_NAMES.split(), 1)}

_MIPS = (
    "HUP INT QUIT ILL TRAP ABRT EMT FPE KILL BUS SEGV SYS PIPE ALRM TERM USR1 USR2 CHLD PWR WINCH "
    "URG IO STOP TSTP CONT TTIN TTOU VTALRM PROF XCPU XFSZ"
)

# Linux v6.13 arch/mips/include/uapi/asm/signal.h
MIPS = {number: f"SIG{name}" for number, name in enumerate(_MIPS.split(), 1)}

# Linux v6.13 include/uapi/asm-generic/siginfo.h, by (signal, si_code).
CODES = {
    ("SIGSEGV", 1): "address not mapped",
    ("SIGSEGV", 2): "access not permitted",
    ("SIGSEGV", 3): "bounds check failed",
    ("SIGSEGV", 4): "protection key check failed",
    ("SIGSEGV", 128): "general protection fault, its address is not known",
    ("SIGBUS", 1): "misaligned address",
    ("SIGBUS", 2): "no such physical address",
    ("SIGBUS", 3): "hardware error",
    ("SIGFPE", 1): "integer division by zero",
    ("SIGFPE", 2): "integer overflow",
    ("SIGILL", 2): "illegal operand",
    ("SIGTRAP", 1): "breakpoint",
}
