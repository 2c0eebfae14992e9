"""Options: what a command declares and the words of a command line in, the values out.

A command declares its options once, by argparse's methods. Two parsers understand that: argparse's
own, for help, man page and complaints, and `PlainParser`, for command lines without a surprise.
To load and to build the former takes 5 ms, as long as to read a small core and to walk its stacks.
"""

from __future__ import annotations

__all__ = ["Options", "PlainParser", "argument_parser", "parse"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Container, Mapping, Sequence
    from typing import Any


class Options:
    """The values of options and arguments, as attributes; `prog` is the command's name."""

    prog = ""

    def __init__(self, values: Mapping[str, object]):
        vars(self).update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def parse(prog: str, declare: Callable[[Parser], None], words: Sequence[str]) -> Options:
    """What `words` say to the command `prog`; SystemExit after --help, --version or a complaint."""
    plain = PlainParser()
    declare(plain)
    values = plain.parse(words)
    if values is not None:
        return Options(values)
    return argument_parser(prog, declare).parse_args(words, Options({}))


def argument_parser(prog: str, declare: Callable[[Parser], None]) -> ArgumentParser:
    """argparse's parser of the options that `declare` declares."""
    import argparse

    made = argparse.ArgumentParser(
        prog, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    declare(made)
    return made


class PlainParser:
    """Knows command lines that are plain; options are declared by argparse's methods.

    Plain is: each option spelled out, its value in the word behind it, nothing missing and nothing
    to complain about. Of any other, also a good one, `parse` says None: argparse decides.
    """

    description: str | None = None
    epilog: str | None = None

    def __init__(self) -> None:
        self._arguments: list[_Argument] = []
        self._rivals: PlainParser | None = None
        self._is_plain = True

    def add_subparsers(self, *, metavar: str, dest: str, required: bool) -> PlainParser:
        """What makes the parsers of subcommands. A line with one is left to argparse."""
        self._is_plain = False
        return PlainParser()

    def add_parser(self, name: str, *, description: str, add_help: bool) -> PlainParser:
        """The parser of one subcommand, which nothing asks."""
        return PlainParser()

    def add_argument_group(self, title: str) -> PlainParser:
        """The parser itself: groups are for the help."""
        return self

    def add_mutually_exclusive_group(self) -> PlainParser:
        """What puts arguments into this parser of which one may be given."""
        group = PlainParser()
        group._arguments, group._rivals = self._arguments, group
        return group

    def add_argument(
        self,
        *names: str,
        action: str = "store",
        default: object = None,
        type: Callable[[str], object] = str,
        choices: Container[object] | None = None,
        nargs: int | str | None = None,
        metavar: str = "",
        help: str = "",
        version: str = "",
        required: bool = False,
        dest: str = "",
    ) -> None:
        """An option or, where the name begins with no dash, an argument by its position."""
        self._is_plain = self._is_plain and not required  # whether it is there, argparse sees
        if nargs is not None and names[0][:1] == "-":
            action = "several"  # of one that is given, argparse makes a list
        elif nargs == "*":
            self._is_plain = False
        made = _Argument(names, action, default, type, choices, self._rivals)
        made.name = dest or made.name
        self._arguments.append(made)

    def parse(self, words: Sequence[str]) -> dict[str, object] | None:
        """The values by their names, or None where the line is not plain."""
        if not self._is_plain:
            return None
        known = [argument for argument in self._arguments if argument.action in _PLAIN]
        several = [argument for argument in self._arguments if argument.action == "several"]
        values = {argument.name: argument.default for argument in [*known, *several]}
        options = {name: argument for argument in known for name in argument.options}
        positions = [argument for argument in known if not argument.options]
        given: list[PlainParser] = []  # the groups of rivals that have spoken
        waiting = iter(words)
        for word in waiting:
            if word[:1] == "-" and word != "-":
                argument = options.get(word)
                if argument is not None and argument.action != "store_true":
                    word = next(waiting, "-")
                    argument = argument if word[:1] != "-" else None
            else:
                argument = positions.pop(0) if positions else None
            if argument is None or argument.rivals in given or not argument.put(word, values):
                return None
            if argument.rivals is not None:
                given.append(argument.rivals)
        return None if positions else values


class _Argument:
    """One declared option or argument."""

    __slots__ = ("action", "choices", "default", "name", "options", "rivals", "type")

    def __init__(
        self,
        names: tuple[str, ...],
        action: str,
        default: object,
        type: Callable[[str], object],
        choices: Container[object] | None,
        rivals: PlainParser | None,
    ):
        long = [name for name in names if name[:2] == "--"]
        self.name = (long or names)[0].lstrip("-").replace("-", "_")
        self.options = names if names[0][:1] == "-" else ()
        self.action = action
        self.default = False if action == "store_true" else default
        self.type = type
        self.choices = choices
        self.rivals = rivals

    def put(self, word: str, values: dict[str, object]) -> bool:
        """Put what `word` means into `values`; False where argparse may complain."""
        try:
            value = self.type(word)
        except (TypeError, ValueError):
            return False
        if self.choices is not None and value not in self.choices:
            return False
        match self.action:
            case "store":
                values[self.name] = value
            case "append":
                before = values[self.name]
                values[self.name] = [*(before if isinstance(before, list) else ()), value]
            case "store_true":
                values[self.name] = True
        return True


_PLAIN = {"append", "store", "store_true"}  # help and version do something instead


if TYPE_CHECKING:
    Parser = ArgumentParser | PlainParser
