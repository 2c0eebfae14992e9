"""Random C programs that know their own stacks: a seed in, a Program out, and its text.

A program is a handful of functions that call each other, and themselves, in many ways. Each
records itself (tests/programs/truth.h), so whatever the compiler makes of it, the truth is at hand
when the program crashes at one of its many points: the one whose number is its argument. Without
an argument it runs to its end and prints how many points it came by.

    program(seed, "arm64") ──source──> C text        smaller(program) ──> the same with less in it

A program that an unwinder gets wrong is reduced by `smaller`, which takes away functions,
statements, parameters and flags, whatever the text looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

__all__ = ["Call", "Function", "Program", "program", "smaller", "source"]


# ---------------------------------------------------------------------------------- the words


@dataclass(frozen=True)
class Room:
    """A local array of fixed size, aligned more than usual where `align` is above 16."""

    size: int
    align: int = 1


@dataclass(frozen=True)
class Dynamic:
    """Stack whose size is known at run time only: `alloca` or `vla`."""

    kind: str
    factor: int


@dataclass(frozen=True)
class Keep:
    """Values that live until the function returns, in registers as long as there are some."""

    count: int


@dataclass(frozen=True)
class Noise:
    """Code without calls of ours: `switch`, `loop`, `branches`, `leave` (an early return)."""

    kind: str


@dataclass(frozen=True)
class Point:
    """A place to crash at, and the way: one of `DEEDS`."""

    deed: str


@dataclass(frozen=True)
class Call:
    """A call of the function of that number; `moved`: by how many bytes assembler moves sp."""

    function: int
    way: str
    """One of `WAYS`."""
    moved: int = 0
    told: bool = False
    """The CFI is told that sp has moved."""


Statement = Room | Dynamic | Keep | Noise | Point | Call


@dataclass(frozen=True)
class Function:
    """A function of the program; it also takes a long, the calls that may still be nested."""

    number: int
    parameters: tuple[str, ...] = ()
    """`long`, `int`, `char`, `double`, or a number of bytes: a struct of that size."""
    varargs: int = 0
    """So many further longs by `...`."""
    returned: int = 0
    """Bytes of the struct that comes back; 0: a long."""
    static: bool = False
    noreturn: bool = False
    body: tuple[Statement, ...] = ()

    @property
    def name(self) -> str:
        return f"function_{self.number}"


@dataclass(frozen=True)
class Program:
    """Functions, and how they are compiled."""

    name: str
    target: str
    """`x86_64`, `arm64`, `mipsel` or `mips`."""
    compiler: str
    flags: tuple[str, ...]
    strip: bool
    functions: tuple[Function, ...]
    altstack: bool = False
    """Signal handlers have a stack of their own."""

    @property
    def cfi(self) -> bool:
        """Whether the compiler describes all of its code."""
        return NO_CFI[0] not in self.flags or "-g" in self.flags

    @property
    def keeps_cfi(self) -> bool:
        """Whether what it described is still there: `strip` takes .debug_frame away."""
        return self.cfi and not (self.strip and "-g" in self.flags)

    @property
    def pdr(self) -> bool:
        """Whether .pdr is all that describes its code."""
        mips = self.target in ("mips", "mipsel")
        return mips and not self.keeps_cfi and NO_PDR not in self.flags

    @property
    def frame_pointers(self) -> bool:
        return "-fomit-frame-pointer" not in self.flags


DEEDS = {
    "fault": "CRASH()",
    "null": "CRASHING_AT(0); *(volatile int *)nothing = 1",
    "trap": "CRASHING_AT(0); __builtin_trap()",
    "abort": 'CRASHING_AT(0); TRUTH_CALL(TRUTH_FOREIGN, "abort", (void (*)(void))abort)',
    "wild": 'CRASHING_AT(0); TRUTH_CALL(TRUTH_WILD, "", (void (*)(long))nothing, r)',
}
WAYS = ("direct", "pointer", "qsort", "lfind", "once", "signal", "moved")

NO_CFI = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-exceptions")
# The MIPS assembler describes each function in .pdr, as the compiler sees its frame.
NO_PDR = "-Wa,-mno-pdr"


# ------------------------------------------------------------------------------- made by chance


def program(seed: int, target: str) -> Program:
    """The program of that seed for `target`; the same on every machine."""
    random = Random(f"{target} {seed}")
    compiler = random.choice(("gcc", "gcc", "gcc", "clang"))
    flags, strip = _flags(random, target, compiler)
    bare = Program(f"{target}-{seed}", target, compiler, flags, strip, (), random.random() < 0.5)
    count = random.randint(2, 9)
    functions = [_function(random, number, count, bare) for number in range(count)]
    return replace(bare, functions=tuple(functions))


def _flags(random: Random, target: str, compiler: str) -> tuple[tuple[str, ...], bool]:
    """How to compile, and whether to strip."""
    flags = [random.choice(("-O0", "-O1", "-O2", "-O2", "-O3", "-Os", "-Og"))]
    flags.append(random.choice(("-fomit-frame-pointer", "-fno-omit-frame-pointer")))
    kind = random.choice(("eh_frame", "eh_frame", "debug_frame", "none"))
    flags += {
        # For MIPS gcc leaves CFI out by itself.
        "eh_frame": ["-fasynchronous-unwind-tables"],
        "debug_frame": ["-g", *NO_CFI],
        "none": NO_CFI,
    }[kind]
    if target in ("mips", "mipsel") and kind != "eh_frame" and random.random() < 0.5:
        flags.append(NO_PDR)
    links: list[tuple[str, ...]] = [(), (), ("-fno-pie", "-no-pie"), ("-static",)]
    if target in ("x86_64", "arm64"):  # Debian's other cross toolchains have no rcrt1.o
        links.append(("-static-pie", "-fPIE"))
    flags += random.choice(links)
    some = {
        "gcc": [
            *("-fno-shrink-wrap", "-fno-schedule-insns2", "-fno-jump-tables", "-funroll-loops"),
            *("-fstack-clash-protection", "-falign-functions=1", "-fno-ipa-ra", "-fno-ipa-sra"),
            *("-fno-reorder-blocks", "-fno-defer-pop", "-fno-optimize-sibling-calls"),
            *("-fno-dce", "-fno-tree-ter", "-fschedule-insns", "-fno-split-wide-types"),
        ],
        "clang": ["-fno-jump-tables", "-funroll-loops", "-fno-optimize-sibling-calls"],
    }[compiler]
    some += ["-fstack-protector-all", "-ffunction-sections", "-fno-stack-protector"]
    some += {
        ("x86_64", "gcc"): [
            *("-fcf-protection=none", "-mno-red-zone", "-maccumulate-outgoing-args"),
            *("-mno-push-args", "-mstackrealign", "-mtune=atom", "-fno-plt"),
        ],
        ("x86_64", "clang"): ["-mno-red-zone", "-mstackrealign", "-fcf-protection=full"],
        ("arm64", "gcc"): [
            *("-mbranch-protection=pac-ret", "-mbranch-protection=pac-ret+leaf"),
            *("-mbranch-protection=standard", "-mno-omit-leaf-frame-pointer", "-mcmodel=small"),
        ],
        ("arm64", "clang"): ["-mbranch-protection=pac-ret+leaf+b-key", "-fstack-clash-protection"],
        ("mips", "gcc"): [
            "-mxgot",
            "-mno-check-zero-division",
            "-mfix-24k",
            "-mno-split-addresses",
        ],
    }.get((target.removesuffix("el"), compiler), [])
    flags += random.sample(some, random.randint(0, min(4, len(some))))
    return tuple(flags), random.random() < 0.25


def _function(random: Random, number: int, count: int, program: Program) -> Function:
    kinds = ("long", "long", "int", "char", "double", "sized")
    parameters = tuple(
        kind if kind != "sized" else str(random.choice((1, 3, 8, 12, 16, 24, 65, 300)))
        for kind in random.choices(kinds, k=random.choice((0, 0, 1, 2, 3, 5, 8, 12)))
    )
    if number == 0:
        parameters = ()
    noreturn = number > 0 and random.random() < 0.08
    return Function(
        number,
        parameters,
        varargs=random.choice((0, 0, 0, 0, random.randint(1, 9))) if number else 0,
        returned=random.choice((0, 0, 0, 8, 16, 40, 500)) if number and not noreturn else 0,
        static=random.random() < 0.5,
        noreturn=noreturn,
        body=tuple(_body(random, count, program)),
    )


def _body(random: Random, count: int, program: Program) -> Iterator[Statement]:
    """Statements of one function: declarations first, then calls with code around them."""
    flexible = False
    if random.random() < 0.5:
        align = random.choice((1, 1, 1, 16, 32, 64, 256))
        flexible = align > 16
        yield Room(random.choice((1, 7, 40, 200, 1000, 5000, 12_000)), align)
    if random.random() < 0.3:
        flexible = True
        yield Dynamic(random.choice(("alloca", "vla")), random.randint(1, 60))
    if random.random() < 0.7:
        yield Keep(random.randint(1, 9))
    deeds = ("fault", "fault", "fault", *DEEDS)
    for _ in range(random.choice((1, 1, 2, 3))):
        if random.random() < 0.4:
            yield Noise(random.choice(("switch", "loop", "branches", "leave")))
        yield Point(random.choice(deeds))
        yield _call(random, random.randrange(count), flexible, program)
    yield Point(random.choice(deeds))


def _call(random: Random, function: int, flexible: bool, program: Program) -> Call:
    way = random.choice(("direct", "direct", "direct", "pointer", *WAYS))
    if way != "moved":
        return Call(function, way)
    told = _may_tell(program, flexible)
    if not told and not _may_be_silent(program, flexible):
        return Call(function, "pointer")
    return Call(function, way, 16 * random.choice((1, 2, 5, 100)), told)


def _may_tell(program: Program, flexible: bool) -> bool:
    """Whether the CFA surely hangs on the stack pointer."""
    return (
        program.cfi
        and not program.pdr
        and not program.frame_pointers
        and not flexible
        and "-mstackrealign" not in program.flags
    )


def _may_be_silent(program: Program, flexible: bool) -> bool:
    """Whether it surely hangs on the frame pointer, or nothing says where the CFA is.

    Not even where the frame is `flexible`: clang may take a third register then.
    """
    if not program.cfi:
        return not program.pdr
    return program.frame_pointers and not flexible and program.target == "x86_64"


# ------------------------------------------------------------------------------------- as text


_HEAD = """\
/* SPDX-License-Identifier: MIT */
/* {title} */
#include "truth.h"
#include "moved.h"

#include <pthread.h>
#include <search.h>
#include <stdarg.h>

/* Points so far, the one to crash at, and how many calls there may still be. */
static long ticks, stop, fuel = 300;
static void *volatile nothing;
static volatile long odd = 1;
TRUTH_UNUSED static long passed;
static void (*volatile handled)(void);

#define POINT(deed)						\\
	do {{							\\
		if (++ticks == stop) {{				\\
			deed;					\\
		}}						\\
	}} while (0)
#define MAY_CALL()	(n > 0 && fuel > 0 && fuel--)

static __attribute__((noreturn)) void finish(void)
{{
	char line[32];

	if (write(1, line, snprintf(line, sizeof(line), "%ld\\n", ticks)) < 0)
		_exit(1);
	_exit(0);
}}

TRUTH_UNUSED NOINLINE static void on_signal(int number, siginfo_t *info, void *context)
{{
	ENTER_HANDLER(context);
	(void)number;
	(void)info;
	handled();
}}
"""

_MAIN = """
int main(int argc, char **argv)
{{
	ENTER();
	struct sigaction action;
	static char other[384 << 10];
	stack_t stack;

	stop = argc > 1 ? atol(argv[1]) : 0;
	memset(&stack, 0, sizeof(stack));
	stack.ss_size = sizeof(other);
	stack.ss_sp = other;
	sigaltstack(&stack, NULL);
	memset(&action, 0, sizeof(action));
	action.sa_sigaction = on_signal;
	action.sa_flags = SA_SIGINFO | SA_NODEFER | {flags};
	sigaction(SIGUSR1, &action, NULL);
	function_0(12);
	finish();
}}
"""


def source(program: Program) -> str:
    """The program as C, all of it but the headers of tests/programs."""
    title = f"{program.name}: {program.compiler} {' '.join(program.flags)}"
    parts = [_HEAD.format(title=title)]
    sizes = {int(kind) for f in program.functions for kind in f.parameters if kind.isdigit()}
    sizes |= {f.returned for f in program.functions if f.returned}
    parts += [_STRUCT.format(size=size) for size in sorted(sizes)]
    parts.append("\n" + "".join(f"{_prototype(f)};\n" for f in program.functions))
    for function in program.functions:
        parts += _glues(program, function)
        parts.append("\n" + "\n".join(_definition(program, function)) + "\n")
    parts.append(_MAIN.format(flags="SA_ONSTACK" if program.altstack else "0"))
    return "".join(parts)


_STRUCT = """
struct s{size} {{
	char c[{size}];
}};

static inline struct s{size} make_s{size}(long n)
{{
	struct s{size} made;

	memset(&made, (int)n, sizeof(made));
	return made;
}}
"""


def _type(kind: str) -> str:
    return f"struct s{kind}" if kind.isdigit() else kind


def _prototype(function: Function) -> str:
    words = ["static"] * function.static
    words += ["__attribute__((noreturn))"] * function.noreturn
    back = _type(str(function.returned)) if function.returned else "long"
    taken = ["long n", *(f"{_type(kind)} p{n}" for n, kind in enumerate(function.parameters))]
    taken += ["long last", "..."] * bool(function.varargs)
    return f"{' '.join(['NOINLINE', *words, back])} {function.name}({', '.join(taken)})"


def _definition(program: Program, function: Function) -> Iterator[str]:
    yield _prototype(function)
    yield "{"
    # A cleanup would never run, and a landing pad for it make code of its own.
    yield "\tENTER_FOR_GOOD();" if function.noreturn else "\tENTER();"
    yield f"\tlong r = n + {function.number + 3};"
    for n, kind in enumerate(function.parameters):
        yield f"\tr += {f'p{n}.c[0]' if kind.isdigit() else f'(long)p{n}'};"
    if function.varargs:
        yield "\tva_list list;\n\tva_start(list, last);\n\tr += last;"
        yield f"\tfor (long i = 0; i < {function.varargs}; i++)\n\t\tr += va_arg(list, long);"
        yield "\tva_end(list);"
    ending: list[str] = []
    for n, statement in enumerate(function.body):
        yield from _statement(program, function, n, statement, ending)
    yield from ending
    yield f"\t{_give(function)}"
    yield "}"


def _give(function: Function) -> str:
    if function.noreturn:
        return "if (stop)\n\t\tCRASH();\n\tfinish();"
    return f"return make_s{function.returned}(r);" if function.returned else "return r;"


def _statement(
    program: Program, function: Function, n: int, statement: Statement, ending: list[str]
) -> Iterator[str]:
    """The lines of one statement; what it wants done at the function's end goes to `ending`."""
    match statement:
        case Room(size, align):
            yield f"\tvolatile char room{n}[{size}] __attribute__((aligned({align})));"
            yield f"\troom{n}[n % {size}] = (char)r;"
            ending.append(f"\tr += room{n}[n % {size}];")
        case Dynamic(kind, factor):
            bytes_ = f"(8 + (unsigned long)(n & 7) * {factor})"
            if kind == "vla":
                yield f"\tvolatile char space{n}[{bytes_}];"
            else:
                yield f"\tvolatile char *space{n} = (volatile char *)__builtin_alloca({bytes_});"
            yield f"\tspace{n}[0] = (char)r;"
            ending.append(f"\tr += space{n}[0];")
        case Keep(count):
            for k in range(count):
                yield f"\tlong kept{n}_{k} = (r + {k}) * (odd + {k});"
                ending.append(f"\tr ^= kept{n}_{k};")
        case Noise(kind):
            yield from _noise(function, kind)
        case Point(deed):
            yield f"\tPOINT({DEEDS[deed]});"
        case Call():
            yield from _calling(program, function, n, statement)


def _noise(function: Function, kind: str) -> Iterator[str]:
    match kind:
        case "switch":
            yield "\tswitch (r & 7) {"
            for case in range(7):
                yield f"\tcase {case}:\n\t\tr = r * {case + 3} + odd;\n\t\tbreak;"
            yield "\tdefault:\n\t\tr += ticks;\n\t}"
        case "loop":
            yield "\tfor (long i = 0; i < (n & 3) + 1; i++)\n\t\tr += odd * i;"
        case "branches":
            yield "\tif (r & odd)\n\t\tr -= ticks;\n\telse if (r & 2)\n\t\tr = -r;"
        case "leave":
            give = "finish();" if function.noreturn else _give(function)
            yield f"\tif (((r + ticks) & 7) == odd)\n\t\t{give}"


def _calling(program: Program, function: Function, n: int, call: Call) -> Iterator[str]:
    """A call, if there may be one; by way of a library its glue is called back."""
    glue = f"glue_{function.number}_{n}"
    yield "\tif (MAY_CALL()) {"
    match call.way:
        case "direct" | "pointer":
            yield f"\t\t{_plain(program, call, 'n - 1')}"
        case "moved":
            adjust = "TOLD" if call.told else "UNTOLD"
            yield f"\t\tr += MOVED_CALL({call.moved}, {adjust}, {glue}, n - 1);"
        case "qsort":
            yield "\t\tlong pair[2] = { 2, 1 };\n\t\tsize_t size = sizeof(*pair);"
            yield "\t\tpassed = n - 1;"
            yield f'\t\tTRUTH_CALL(TRUTH_FOREIGN, "qsort|qsort_r", qsort, pair, 2, size, {glue});'
        case "lfind":
            yield "\t\tlong key = 1, one = 1;\n\t\tsize_t count = 1;\n\t\tpassed = n - 1;"
            taken = f"&key, &one, &count, sizeof(one), {glue}"
            yield f'\t\tTRUTH_CALL(TRUTH_FOREIGN, "lfind", lfind, {taken});'
        case "once":
            yield "\t\tpthread_once_t once = PTHREAD_ONCE_INIT;\n\t\tpassed = n - 1;"
            names = "pthread_once|pthread_once_slow"
            yield f'\t\tTRUTH_CALL(TRUTH_FOREIGN, "{names}", pthread_once, &once, {glue});'
        case "signal":
            yield f"\t\tpassed = n - 1;\n\t\thandled = {glue};"
            yield '\t\tTRUTH_CALL(TRUTH_FOREIGN, "raise|gsignal", raise, SIGUSR1);'
    yield "\t}"


_GLUES = {
    "qsort": ("int", "const void *a, const void *b", "(void)a, (void)b"),
    "lfind": ("int", "const void *a, const void *b", "(void)a, (void)b"),
    "once": ("void", "void", ""),
    "signal": ("void", "void", ""),
    "moved": ("long", "long n", ""),
}


def _glues(program: Program, function: Function) -> Iterator[str]:
    """The functions that libraries or assembler call back for the calls of `function`."""
    for n, call in enumerate(function.body):
        if isinstance(call, Call) and call.way in _GLUES:
            back, taken, unused = _GLUES[call.way]
            depth = "n" if call.way == "moved" else "depth"
            lines = [f"NOINLINE static {back} glue_{function.number}_{n}({taken})", "{"]
            lines.append("\tENTER();")
            lines.append("\tlong r = 1;" if depth == "n" else "\tlong r = 1, depth = passed;")
            lines += [f"\t{unused};"] * bool(unused)
            lines.append(f"\t{_plain(program, replace(call, way='direct'), depth)}")
            lines += [f"\treturn ({back})r;"] * (back != "void")
            yield "\n" + "\n".join([*lines, "}"]) + "\n"


def _plain(program: Program, call: Call, depth: str) -> str:
    """The call expression as a statement that adds its result to `r`."""
    called = program.functions[call.function]
    given = [depth]
    for n, kind in enumerate(called.parameters):
        given.append(f"make_s{kind}(r + {n})" if kind.isdigit() else f"({kind})(r + {n})")
    given += [f"r + {n}" for n in range(called.varargs + bool(called.varargs))]
    name = called.name
    if call.way == "pointer":
        name = f"(*(__typeof__(&{name}) volatile *)&(__typeof__(&{name})){{ {name} }})"
    result = f"{name}({', '.join(given)})"
    return f"r += {result}.c[0];" if called.returned else f"r += {result};"


# ----------------------------------------------------------------------------------- made smaller


def smaller(program: Program) -> Iterator[Program]:
    """Programs with one thing less in them, those that lose most first."""
    yield from _with_fewer_functions(program)
    for flag in program.flags:
        if flag not in (*NO_CFI, NO_PDR, "-g"):
            yield replace(program, flags=tuple(f for f in program.flags if f != flag))
    if program.strip:
        yield replace(program, strip=False)
    for at, function in enumerate(program.functions):
        for less in _smaller_functions(function):
            functions = (*program.functions[:at], less, *program.functions[at + 1 :])
            yield replace(program, functions=functions)


def _with_fewer_functions(program: Program) -> Iterator[Program]:
    """Without one function: who called it does not, and the others move up."""
    for gone in range(len(program.functions) - 1, 0, -1):
        kept = []
        for function in program.functions[:gone] + program.functions[gone + 1 :]:
            body = tuple(
                replace(call, function=call.function - (call.function > gone))
                if isinstance(call, Call)
                else call
                for call in function.body
                if not (isinstance(call, Call) and call.function == gone)
            )
            number = function.number - (function.number > gone)
            kept.append(replace(function, number=number, body=body))
        yield replace(program, functions=tuple(kept))


def _smaller_functions(function: Function) -> Iterator[Function]:
    body = function.body
    for at, statement in enumerate(body):
        yield replace(function, body=body[:at] + body[at + 1 :])
        if isinstance(statement, Call) and statement.way != "direct":
            simple = Call(statement.function, "direct")
            yield replace(function, body=(*body[:at], simple, *body[at + 1 :]))
        if isinstance(statement, Point) and statement.deed != "fault":
            yield replace(function, body=(*body[:at], Point("fault"), *body[at + 1 :]))
        if isinstance(statement, Keep) and statement.count > 1:
            yield replace(function, body=(*body[:at], Keep(1), *body[at + 1 :]))
    for at in range(len(function.parameters)):
        parameters = function.parameters[:at] + function.parameters[at + 1 :]
        yield replace(function, parameters=parameters)
    if function.varargs:
        yield replace(function, varargs=0)
    if function.returned:
        yield replace(function, returned=0)
    if function.static:
        yield replace(function, static=False)
    if function.noreturn:
        yield replace(function, noreturn=False)
