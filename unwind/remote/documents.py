"""Documents: the XML that a stub sends in; its registers, threads and libraries out.

The GDB manual, appendix G "Target Descriptions" and E.14, E.15 for the lists. A document is
hostile: it declares no entities, and is bounded in size, in what it includes and in its elements.
"""

from __future__ import annotations

from unwind.errors import FormatError
from unwind.values import Value

__all__ = ["Description", "Field", "ThreadEntry", "description", "libraries", "threads"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Element = tuple[str, Mapping[str, str]]

_MOST_ELEMENTS = 1 << 18
_MOST_DOCUMENTS = 64  # that one description includes
_MOST_REGISTERS = 1 << 13
_LARGEST_REGISTER = 1 << 16  # bits; an SVE register has 2,048


class Field(Value):
    """One register: its number, and where its bytes lie in the reply to `g`."""

    name: str
    number: int
    offset: int
    size: int


class Description(Value):
    """What a stub says of its target: the architecture's name (BFD's, "" if none), registers."""

    architecture: str
    fields: tuple[Field, ...]


class ThreadEntry(Value):
    """One thread: its id as the protocol writes it, and its name, "" if it has none."""

    id: str
    name: str


def description(fetch: Callable[[str], bytes | None], where: str) -> Description | None:
    """The target's description, None where the stub has none.

    `fetch` gets a document by its name; the first is target.xml, others are those it includes.
    Raises FormatError for what is no description.
    """
    text = fetch("target.xml")
    if not text:
        return None
    reader = _Reader(fetch, where)
    reader.read(text, ("target.xml",))
    return Description(reader.architecture, _fields(reader.registers, where))


def threads(text: bytes, where: str) -> list[ThreadEntry]:
    """The threads of a qXfer:threads document."""
    found = (attributes for name, attributes in _elements(text, where) if name == "thread")
    return [ThreadEntry(a["id"], a.get("name", "")) for a in found if "id" in a]


def libraries(text: bytes, where: str) -> list[tuple[int, str, int]]:
    """The libraries of a qXfer:libraries-svr4 document: struct link_map's l_addr, l_name, l_ld."""
    found = []
    for name, attributes in _elements(text, where):
        if name == "library":
            try:
                bias, dynamic = int(attributes["l_addr"], 16), int(attributes["l_ld"], 16)
            except (KeyError, ValueError):
                raise FormatError("a library without its addresses", where) from None
            found.append((bias, attributes.get("name", ""), dynamic))
    return found


class _Reader:
    """Reads a description and the documents that it includes."""

    def __init__(self, fetch: Callable[[str], bytes | None], where: str):
        self.fetch, self.where = fetch, where
        self.architecture = ""
        self.registers: list[Mapping[str, str]] = []
        self.included = 0

    def read(self, text: bytes, names: tuple[str, ...]) -> None:
        """Take in the document `text`; `names` are its own and those that led to it."""
        for name, attributes in _elements(text, self.where):
            if name == "xi:include" and "href" in attributes:
                self._include(attributes["href"], names)
            elif name == "architecture":
                self.architecture = self.architecture or attributes[""].strip()
            elif name == "reg":
                self.registers.append(attributes)
                if len(self.registers) > _MOST_REGISTERS:
                    raise FormatError(f"more than {_MOST_REGISTERS} registers", self.where)

    def _include(self, name: str, names: tuple[str, ...]) -> None:
        self.included += 1
        if name in names or self.included > _MOST_DOCUMENTS:
            raise FormatError(f"the target description includes {name!r} without end", self.where)
        text = self.fetch(name)
        if text is None:
            raise FormatError(f"the target description lacks its part {name!r}", self.where)
        self.read(text, (*names, name))


def _fields(registers: list[Mapping[str, str]], where: str) -> tuple[Field, ...]:
    """The registers by their numbers, one behind the other: appendix G.2.7, `regnum`."""
    numbered, number = {}, 0
    for attributes in registers:
        try:
            number = int(attributes.get("regnum", str(number)), 0)
            bits = int(attributes["bitsize"], 0)
        except (KeyError, ValueError):
            raise FormatError("a register without its size", where) from None
        if not 0 <= number < _LARGEST_REGISTER or not 0 < bits <= _LARGEST_REGISTER:
            raise FormatError(f"register {number} of {bits} bits", where)
        numbered[number] = attributes.get("name", ""), (bits + 7) // 8
        number += 1
    found, offset = [], 0
    for number, (name, size) in sorted(numbered.items()):
        found.append(Field(name, number, offset, size))
        offset += size
    return tuple(found)


def _elements(text: bytes, where: str) -> list[Element]:
    """The elements of a document in their order: name, attributes, and the text within as ""."""
    from pyexpat import ExpatError, ParserCreate

    found: list[tuple[str, dict[str, str]]] = []
    open_ones: list[dict[str, str]] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        if len(found) >= _MOST_ELEMENTS:
            raise FormatError(f"more than {_MOST_ELEMENTS} elements", where)
        attributes[""] = ""
        found.append((name, attributes))
        open_ones.append(attributes)

    def end(_name: str) -> None:
        open_ones.pop()

    def data(piece: str) -> None:
        if open_ones:
            open_ones[-1][""] += piece

    def entity(*_declared: object) -> None:
        raise FormatError("a document that declares entities", where)

    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = data, entity
    try:
        parser.Parse(text, True)
    except ExpatError as error:
        raise FormatError(f"no XML: {error}", where) from None
    return list(found)
