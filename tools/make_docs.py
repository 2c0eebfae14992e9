"""Man pages and shell completion: each command's argparse parser in, files under share/ out.

`python -m tools.make_docs` (or `make docs`) writes them; tests/test_docs.py compares them with the
parsers. Nothing but the parser and the version goes in, neither date nor width of a terminal, so
the same parser gives the same bytes everywhere.

What an argument completes to follows from its metavar: see FILES and DIRECTORIES.
"""

from __future__ import annotations

import argparse
import configparser
import importlib
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unwind.version import VERSION

ROOT = Path(__file__).resolve().parent.parent
FILES = {"CORE", "EXE", "FILE", "OLD=NEW", "PATH"}
DIRECTORIES = {"DIR"}


class Argument(NamedTuple):
    """An option or, when it has no names, a positional argument."""

    names: tuple[str, ...]
    value: str  # its metavar, "" for a switch
    usage: str  # the metavar as often as it may be given: `[FILE ...]`
    help: str
    choices: tuple[str, ...]
    repeats: bool


class Group(NamedTuple):
    title: str
    text: str
    arguments: tuple[Argument, ...]


class Page(NamedTuple):
    """All that is known of a command, or of a subcommand, from its parser."""

    name: str
    summary: str
    text: str
    groups: tuple[Group, ...]
    sections: tuple[tuple[str, str], ...]  # of the epilog: (title, its indented lines)
    subcommands: tuple[Page, ...]

    def arguments(self) -> Iterator[Argument]:
        for group in self.groups:
            yield from group.arguments

    def options(self) -> list[Argument]:
        return [argument for argument in self.arguments() if argument.names]

    def positionals(self) -> list[Argument]:
        return [argument for argument in self.arguments() if not argument.names]


def commands() -> dict[str, str]:
    """The module of each command, as setup.cfg lists them."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entries = setup["options.entry_points"]["console_scripts"].split("\n")
    pairs = (entry.split("=") for entry in entries if entry)
    return {name.strip(): target.strip().partition(":")[0] for name, target in pairs}


def documents() -> dict[str, str]:
    """The text of every generated file by its path in the repository."""
    names = commands()
    made = {}
    for name, module in names.items():
        page = page_of(importlib.import_module(module).parser())
        others = [other for other in names if other != name]
        made[f"share/man/man1/{name}.1"] = man(page, others)
        made[f"share/bash-completion/completions/{name}"] = bash(page)
        made[f"share/zsh/site-functions/_{name}"] = zsh(page)
    return made


def page_of(parser: argparse.ArgumentParser) -> Page:
    summary, _, text = (parser.description or "").strip().partition("\n")
    subcommands = [
        page_of(subparser)
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for subparser in dict.fromkeys(action.choices.values())
    ]
    return Page(
        name=parser.prog,
        summary=summary.strip().removesuffix("."),
        text=text.strip(),
        groups=tuple(_groups(parser)),
        sections=tuple(_sections(parser.epilog or "")),
        subcommands=tuple(subcommands),
    )


def man(page: Page, others: list[str]) -> str:
    """The manual page in the man macros."""
    lines = [
        f'.\\" Made from the parser of {page.name} by tools/make_docs.py.',
        f'.TH {_roff(page.name.upper())} 1 "" "unwind-core {VERSION}" "User Commands"',
        ".ad l",
        ".SH NAME",
        f"{_roff(page.name)} \\- {_roff(page.summary)}",
        ".SH SYNOPSIS",
        *_synopsis(page),
        ".SH DESCRIPTION",
        *_paragraphs(page.text or page.summary + "."),
        *_man_groups(page, ".SH OPTIONS", ".SS"),
    ]
    for command in page.subcommands:
        title = command.name.removeprefix(page.name).strip()
        lines += [f".SH {_roff(title.upper())}", *_synopsis(command), ".PP"]
        lines += [*_paragraphs(f"{command.summary}.\n\n{command.text}")]
        lines += [*_man_groups(command, "", ".SS"), *_man_sections(command, ".SS")]
    lines += _man_sections(page, ".SH")
    if others:
        references = [f".BR {_roff(name)} (1)" for name in others]
        lines += [".SH SEE ALSO", ",\n".join(references).replace("(1),", "(1),")]
    return "\n".join(line for line in lines if line) + "\n"


def bash(page: Page) -> str:
    """The completion for bash, one function for the command and one for each subcommand."""
    functions = [_bash_function(each) for each in (*page.subcommands, page)]
    head = f"# bash completion for {page.name}, made from its parser by tools/make_docs.py.\n"
    tail = f"complete -o default -F {_identifier(page)} {page.name}\n"
    return "\n".join([head, *functions, tail])


def zsh(page: Page) -> str:
    """The completion for zsh, one function for the command and one for each subcommand."""
    functions = [_zsh_function(each) for each in (*page.subcommands, page)]
    head = f"#compdef {page.name}\n# Made from its parser by tools/make_docs.py.\n"
    return "\n".join([head, *functions, f'{_identifier(page)} "$@"\n'])


# Reading a parser.


def _groups(parser: argparse.ArgumentParser) -> Iterator[Group]:
    for group in parser._action_groups:
        arguments = tuple(
            _argument(action, parser.prog)
            for action in group._group_actions
            if action.help is not argparse.SUPPRESS
            and not isinstance(action, argparse._SubParsersAction)
        )
        if arguments:
            yield Group(group.title or "", group.description or "", arguments)


def _argument(action: argparse.Action, prog: str) -> Argument:
    choices = tuple(str(choice) for choice in action.choices or ())
    value = ""
    if action.nargs != 0:
        named = action.metavar if isinstance(action.metavar, str) else None
        default = action.dest.upper() if action.option_strings else action.dest
        value = named or (f"{{{','.join(choices)}}}" if choices else default)
    fields = vars(action) | {"prog": prog, "choices": ", ".join(choices)}
    return Argument(
        names=tuple(action.option_strings),
        value=value,
        usage=_usage(value, action.nargs),
        help=" ".join(((action.help or "") % fields).split()),
        choices=choices,
        repeats=isinstance(action, argparse._AppendAction | argparse._CountAction),
    )


def _usage(value: str, nargs: int | str | None) -> str:
    match nargs:
        case "?":
            return f"[{value}]"
        case "*":
            return f"[{value} ...]"
        case "+":
            return f"{value} [{value} ...]"
        case int():
            return " ".join([value] * nargs)
        case _:
            return value


def _sections(epilog: str) -> Iterator[tuple[str, str]]:
    """An epilog's parts: a line that ends with a colon, and the indented lines after it."""
    for part in re.split(r"\n(?=\S)", epilog.strip("\n")):
        title, _, text = part.partition("\n")
        if title.strip():
            yield title.strip().removesuffix(":"), textwrap.dedent(text).strip("\n")


# Writing a manual page.


def _synopsis(page: Page) -> Iterator[str]:
    yield f".B {_roff(page.name, verbatim=True)}"
    yield "[\\fIoption\\fR ...]\\&"
    if page.subcommands:
        yield "\\fIcommand\\fR ...\\&"
    yield from (f"\\fI{_roff(argument.usage)}\\fR\\&" for argument in page.positionals())


def _man_groups(page: Page, heading: str, subheading: str) -> Iterator[str]:
    yield heading
    for group in page.groups:
        yield f"{subheading} {_roff(group.title[:1].upper() + group.title[1:])}"
        yield from _paragraphs(group.text)
        for argument in group.arguments:
            value = f"\\fI{_roff(argument.usage, verbatim=True)}\\fR" if argument.value else ""
            names = [f"\\fB{_roff(name, verbatim=True)}\\fR" for name in argument.names]
            yield ".TP"
            yield " ".join(part for part in (", ".join(names), value) if part)
            yield _roff(argument.help)


def _man_sections(page: Page, heading: str) -> Iterator[str]:
    for title, text in page.sections:
        yield f"{heading} {_roff(title.upper() if heading == '.SH' else title.capitalize())}"
        yield ".EX"
        yield from (_roff(line, verbatim=True) or ".sp" for line in text.split("\n"))
        yield ".EE"


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        yield ".PP" if number else ""
        yield _roff(" ".join(paragraph.split()))


def _roff(text: str, *, verbatim: bool = False) -> str:
    """`text` as roff source; in what is typed (all of it, or options in prose) - stays a minus."""
    text = text.replace("\\", "\\e")
    typed = r"-" if verbatim else r"(?<!\w)-[-\w]*"
    text = re.sub(typed, lambda found: found[0].replace("-", "\\-"), text)
    return "\\&" + text if text.startswith((".", "'")) else text


# Writing for shells.


def _identifier(page: Page) -> str:
    return "_" + re.sub(r"\W", "_", page.name)


def _subcommand(page: Page) -> str:
    return page.name.split()[-1]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bash_function(page: Page) -> str:
    words = [name for option in page.options() for name in option.names]
    cases = [
        f"        {'|'.join(option.names)}) {_bash_value(option)}return ;;"
        for option in page.options()
        if option.value
    ]
    body = []
    if page.subcommands:
        names = [_subcommand(each) for each in page.subcommands]
        body += ["    local word", '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do']
        body += ["        case $word in"]
        body += [
            f"            {_subcommand(each)}) {_identifier(each)}; return ;;"
            for each in page.subcommands
        ]
        body += ["        esac", "    done"]
        words += names
    body += [
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
        "    # `--option=value` arrives as three words.",
        "    if [[ $cur == = ]]; then cur=",
        "    elif [[ $prev == = ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi",
        "    COMPREPLY=()",
    ]
    if cases:
        body += ["    case $prev in", *cases, "    esac"]
    offer = _compgen("-W " + _quoted(" ".join(words)))
    if page.subcommands:
        body += [f"    {offer}"]
    else:
        body += ["    if [[ $cur == -* ]]; then", f"        {offer}"]
        if not any(a.value in FILES | DIRECTORIES for a in page.positionals()):
            body += ["    else", "        compopt +o default"]
        body += ["    fi"]
    return "\n".join([f"{_identifier(page)}() {{", *body, "}", ""])


def _bash_value(argument: Argument) -> str:
    """What completes an option's value; files are what readline does by default."""
    if argument.choices:
        return _compgen("-W " + _quoted(" ".join(argument.choices))) + "; "
    if argument.value in DIRECTORIES:
        return f"{_compgen('-d')}; compopt -o filenames; "
    return "" if argument.value in FILES else "compopt +o default; "


def _compgen(what: str) -> str:
    return f'mapfile -t COMPREPLY < <(compgen {what} -- "$cur")'


def _zsh_function(page: Page) -> str:
    specs = [_zsh_option(option) for option in page.options()]
    if page.subcommands:
        choices = " ".join(_subcommand(each) for each in page.subcommands)
        specs += [f"'1:command:({choices})'", "'*::argument:->rest'"]
    specs += [_zsh_positional(argument) for argument in page.positionals()]
    lines = [f"{_identifier(page)}() {{", "    local curcontext=$curcontext state line"]
    lines += ["    _arguments -s -S -C : \\", *(f"        {spec} \\" for spec in specs[:-1])]
    lines += [f"        {specs[-1]}"]
    if page.subcommands:
        lines += ["    case $state:$line[1] in"]
        lines += [
            f"        rest:{_subcommand(each)}) {_identifier(each)} ;;" for each in page.subcommands
        ]
        lines += ["    esac"]
    return "\n".join([*lines, "}", ""])


def _zsh_option(option: Argument) -> str:
    text = re.sub(r"([\[\]\\:])", r"\\\1", option.help)
    described = f"[{text}]{_zsh_value(option)}"
    signs = {
        name: ("=" if name.startswith("--") else "+") if option.value else ""
        for name in option.names
    }
    names = [name + sign for name, sign in signs.items()]
    once = "*" if option.repeats else f"({' '.join(option.names)})" if len(names) > 1 else ""
    if len(names) == 1:
        return _quoted(once + names[0] + described)
    return (_quoted(once) if once else "") + "{" + ",".join(names) + "}" + _quoted(described)


def _zsh_positional(argument: Argument) -> str:
    many = "*" if "..." in argument.usage else ":" if argument.usage.startswith("[") else ""
    return _quoted(many + _zsh_value(argument))


def _zsh_value(argument: Argument) -> str:
    if not argument.value:
        return ""
    name = argument.value.replace(":", "\\:")
    if argument.choices:
        return f":{name}:({' '.join(argument.choices)})"
    if argument.value in DIRECTORIES:
        return f":{name}:_files -/"
    if argument.value in FILES:
        return f":{name}:" + ("{compset -P '*='; _files}" if "=" in name else "_files")
    return f":{name}: "


def main() -> None:
    for path, text in documents().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
        print(path)


if __name__ == "__main__":
    main()
