"""What a flame graph draws: a call tree in, columns of numbers, of a bounded size, out.

The picture's script reads them as JSON; the static picture is drawn from them as well.
"""

from __future__ import annotations

from unwind.call_tree import call_tree, compare, kept
from unwind.writers.labels import label

__all__ = ["COLOURS", "CUT", "INLINED", "KERNEL", "OTHER", "PROCESS", "Columns", "columns", "json"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.breakdown import Function
    from unwind.call_tree import Node
    from unwind.profile import Profile

# What there is no more of than this, and nothing narrower: a picture is 1,000 pixels wide, and a
# part of it that is looked at closely a hundredth.
MOST_NODES = 50_000
LEAST_SHARE = 1 / 20_000

# How a frame is coloured: by its file, the heaviest ones each in a colour of its own.
COLOURS = 7
OTHER, KERNEL, PROCESS, CUT = COLOURS, COLOURS + 1, COLOURS + 2, COLOURS + 3

INLINED = 1  # flags of a function


class Columns:
    """The nodes of a tree, each before its callees, and what they point to.

    `functions` are (name, number of its file or -1, colour, flags). A node has its depth (that of
    the root is 0), function, weight with and without its callees, and samples; `trusts` how its
    frames were found, where that is not CFI alone; `base` the scaled weight in the other profile.
    `left_out` is how many nodes were too small to be drawn.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.functions: list[tuple[str, int, int, int]] = []
        self.depth: list[int] = []
        self.function: list[int] = []
        self.total: list[int] = []
        self.own: list[int] = []
        self.count: list[int] = []
        self.trusts: dict[int, dict[str, int]] = {}
        self.base: list[int] | None = None
        self.gone = 0.0
        self.left_out = 0


def columns(profile: Profile, base: Profile | None = None) -> Columns:
    """The columns for a profile, compared with `base` where one is given."""
    root = call_tree(profile)
    found = Columns()
    if base is not None:
        found.gone = compare(root, call_tree(base))
        found.base = []
    nodes = kept(root, MOST_NODES, LEAST_SHARE)
    colours = _colours(root)
    found.files = [label(name) for name in colours]
    files = dict(zip(colours, range(len(colours)), strict=True))
    numbers: dict[tuple[Function, bool], int] = {}
    for depth, node in root.walk():
        if node not in nodes:
            found.left_out += 1
            continue
        function, cut = node.function, bool(node.cut)
        number = numbers.get((function, cut))
        if number is None:
            number = numbers[function, cut] = len(numbers)
            binary = function.binary
            file = -1 if binary is None else files[binary]
            colour = CUT if cut else _colour(function, file)
            found.functions.append((label(function.name), file, colour, function.inlined))
        if set(node.trusts) - {"cfi", "context"}:
            found.trusts[len(found.depth)] = dict(sorted(node.trusts.items()))
        found.depth.append(depth)
        found.function.append(number)
        found.total.append(node.total)
        found.own.append(node.own)
        found.count.append(node.count)
        if found.base is not None:
            found.base.append(round(node.base))
    return found


def json(profile: Profile, found: Columns, title: str) -> Iterator[str]:
    """One JSON object in pieces, of ASCII that means nothing in HTML or XML."""
    from json import dumps

    about = {
        "title": title,
        "event": label(profile.event),
        "unit": label(profile.unit),
        "complete": sum([stack.count for stack in profile.stacks if stack.complete]),
        "files": found.files,
        "functions": found.functions,
        "trusts": found.trusts,
        "gone": found.gone,
        "leftOut": found.left_out,
        "base": found.base,
        "depth": found.depth,
        "function": found.function,
        "total": found.total,
        "own": found.own,
        "count": found.count,
    }
    for n, (key, value) in enumerate(about.items()):
        text = dumps(value, separators=(",", ":"))
        for char in "<>&":
            text = text.replace(char, f"\\u{ord(char):04x}")
        yield f'{"," if n else "{"}\n"{key}":{text}'
    yield "}\n"


def _colours(root: Node) -> list[str]:
    """The files of a tree, those in which most was spent first."""
    own: dict[str, int] = {}
    for _, node in root.walk():
        if node.function.binary is not None:
            own[node.function.binary] = own.get(node.function.binary, 0) + node.own
    return sorted(own, key=lambda name: (-own[name], name))


def _colour(function: Function, file: int) -> int:
    if function.kernel:
        return KERNEL
    if function.binary is None:
        return PROCESS if function.name != "[unknown]" else OTHER
    return min(file, OTHER)
