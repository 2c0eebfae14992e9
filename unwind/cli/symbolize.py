"""unwind-symbolize: a file and addresses in, functions and places in source out."""

from __future__ import annotations

import sys

from unwind.cli.names import SYMBOLIZERS, symbolizer_of
from unwind.cli.plumbing import Command, add_common_options, warn
from unwind.cli.stacks import add_file_options, files_of
from unwind.errors import SourceError

__all__ = ["main", "parser", "program"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from unwind.cli.options import Options, Parser
    from unwind.files import Files
    from unwind.image import Image
    from unwind.modules import Module
    from unwind.symbols.names import Name

_PROG = "unwind-symbolize"
_EXAMPLES = """\
examples:
  unwind-symbolize -f -C -i program 0x401136 0x4011f0
      functions, with what is inlined there, and their lines, as addr2line prints them
  unwind-symbolize --llvm program.debug <addresses
      as llvm-symbolizer prints them
"""
_MANY = 100  # addresses, from which on a cache is worth its making


def _declare(parser: Parser) -> None:
    parser.description = (
        "Print the function and the place in source of addresses in a program, a library or a "
        "debug file. They are link-time addresses, in hexadecimal; without any they are read from "
        "standard input."
    )
    parser.epilog = _EXAMPLES
    group = parser.add_argument_group("what to look up")
    group.add_argument(
        "words",
        nargs="*",
        metavar="FILE",
        help="the file, unless -e names it, and addresses behind it",
    )
    group = parser.add_argument_group("what to print")
    group.add_argument(
        "-a", "--addresses", action="store_true", help="each address before what is there"
    )
    group.add_argument("-f", "--functions", action="store_true", help="the functions' names, too")
    group.add_argument(
        "-i",
        "--inlines",
        action="store_true",
        help="what is inlined, up to the function that is not",
    )
    group.add_argument("-C", "--demangle", action="store_true", help="names as in source")
    group.add_argument(
        "-p", "--pretty-print", action="store_true", help="each place on one line, for people"
    )
    group.add_argument(
        "-s", "--basenames", action="store_true", help="files without their directories"
    )
    group.add_argument(
        "--llvm",
        action="store_true",
        help="as llvm-symbolizer: with -f -i -C and columns, unless --no-inlines, --no-demangle",
    )
    group.add_argument("--json", action="store_true", help="a JSON object a line, with all of that")
    group.add_argument("--no-inlines", action="store_true", help="just the innermost function")
    group.add_argument("--no-demangle", action="store_true", help="names as in the symbol table")
    group.add_argument(
        "--symbolizer",
        choices=SYMBOLIZERS,
        default="auto",
        metavar="NAME",
        help="built-in, symbolic or symbols; auto: symbolic for many addresses without columns",
    )
    add_file_options(parser)
    add_common_options(parser)


def _command(options: Options) -> int:
    words = list(options.words)
    path = options.executable or (words.pop(0) if words else None)
    if path is None:
        raise SourceError("no file is given", hint="unwind-symbolize FILE ADDRESS...")
    with files_of(options) as files:
        module = _module(path, files)
        lines = iter(words) if words else (line.strip() for line in sys.stdin)
        many = not words or len(words) >= _MANY
        return _Report(options, files, module, many).print(lines)


def _module(path: str, files: Files) -> Module:
    """The file as a module at its link-time addresses."""
    from unwind.modules import Module

    files.executable = path
    found = files.image(path, main=True)
    image = found.image
    if image is None:
        image = _object_file(path)
    if image is None:
        reason = found.tried[0].removeprefix(f"{path}: ") if found.tried else "cannot be read"
        raise SourceError(reason, path)
    return Module(path, 0, ((0, 1 << 64),), image)


def _object_file(path: str) -> Image | None:
    """A relocatable file, which no process maps; its sections all begin at 0. None: no ELF file."""
    import mmap

    from unwind.elf import ET, Elf
    from unwind.errors import FormatError
    from unwind.image import Image

    try:
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            elf = Elf(data, path)
    except (FormatError, OSError, ValueError):
        return None
    return Image(elf, path) if elf.header.type == ET.REL else None


class _Report:
    """One run: what each address is called, in one of the forms."""

    def __init__(self, options: Options, files: Files, module: Module, many: bool):
        from unwind.symbols.names import Names
        from unwind.writers.places import Addr2line, as_json, as_llvm

        rich = options.llvm or options.json
        inlines = (options.inlines or rich) and not options.no_inlines
        self._module = module
        self._names = Names(
            symbolizer_of(options.symbolizer, files, many and not rich),
            source=True,
            inlines=True,
            declared=not rich,
            demangled=(options.demangle or rich) and not options.no_demangle,
        )
        self._form: Callable[[int, Name], Iterable[str]]
        self._echoes = options.llvm
        if options.json:
            self._form = lambda address, name: (as_json(address, name, inlines),)
        elif options.llvm:
            self._form = lambda _, name: as_llvm(name, inlines)
        else:
            assert module.image is not None
            self._form = Addr2line(
                addresses=options.addresses,
                functions=options.functions,
                pretty=options.pretty_print,
                base_names=options.basenames,
                inlines=inlines,
                digits=module.image.elf.header.elf_class // 4,
            ).lines

    def print(self, words: Iterator[str]) -> int:
        """Print what is at each address; whoever writes them one by one gets answers so."""
        is_asked = _is_asked()
        for word in words:
            address = _address(word)
            if address is None:
                warn(_PROG, f"{word[:40]!r} is no address")
                if self._echoes:
                    sys.stdout.write(f"{word}\n\n")
                    continue
            name = self._names.name(self._module, address or 0, address or 0)
            sys.stdout.write("".join([f"{line}\n" for line in self._form(address or 0, name)]))
            if is_asked:
                sys.stdout.flush()
        for problem in (*self._names.problems.values(), *self._names.damage):
            warn(_PROG, problem)
        return 0


def _is_asked() -> bool:
    """Whether somebody may wait for an answer before the next address: not where a file is read."""
    import os
    from stat import S_ISREG

    try:
        return not S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # closed
        return True


def _address(word: str) -> int | None:
    """A number in hexadecimal, with 0x or without, as addr2line reads it; None: it is none."""
    try:
        number = int(word, 16)
    except ValueError:
        return None
    return number if 0 <= number < 1 << 64 else None


COMMAND = Command(_PROG, _declare, _command)
main, parser, program = COMMAND.main, COMMAND.parser, COMMAND.program

if __name__ == "__main__":
    sys.exit(main())
