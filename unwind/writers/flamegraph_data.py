"""What a flame graph draws: a call tree in, columns of numbers, of a bounded size, out.

The picture's script reads them as JSON; the static picture is drawn from them as well.
"""

from __future__ import annotations

from unwind.call_tree import call_tree, compare, kept
from unwind.writers.labels import label, short

__all__ = ["COLOURS", "CUT", "INLINED", "KERNEL", "OTHER", "PROCESS", "Columns", "columns", "json"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.breakdown import Function
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

    `functions` are (name, number of its file or -1, colour, flags, and a shorter name, "" where
    there is none). A node has its depth (that of the root is 0), function, weight with and without
    its callees, and samples; `guessed` the weight, by Trust, of frames not found by CFI; `base`
    the scaled weight in the other profile.
    `left_out` is how many nodes were too small to be drawn.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.functions: list[tuple[str, int, int, int, str]] = []
        self.depth: list[int] = []
        self.function: list[int] = []
        self.total: list[int] = []
        self.own: list[int] = []
        self.count: list[int] = []
        self.guessed: dict[int, dict[str, int]] = {}
        self.base: list[int] | None = None
        self.gone = 0.0
        self.left_out = 0


def columns(profile: Profile, base: Profile | None = None) -> Columns:
    """The columns for a profile, compared with `base` where one is given."""
    numbers: dict[Function, int] = {}
    root = call_tree(profile, numbers)
    found = Columns()
    if base is not None:
        found.gone = compare(root, call_tree(base, numbers))
        found.base = []
    nodes = kept(root, MOST_NODES, LEAST_SHARE)
    found.left_out = root.size - len(nodes)
    colours = _colours(profile)
    found.files = [label(name) for name in colours]
    files = dict(zip(colours, range(len(colours)), strict=True))
    drawn: dict[tuple[Function, bool], int] = {}
    for depth, node in nodes:
        function, cut = node.function, bool(node.cut)
        number = drawn.get((function, cut))
        if number is None:
            number = drawn[function, cut] = len(drawn)
            binary = function.binary
            file = -1 if binary is None else files[binary]
            colour = CUT if cut else _colour(function, file)
            name, less = label(function.name), label(short(function.name))
            drawable = less if less != name else ""
            found.functions.append((name, file, colour, function.inlined, drawable))
        if node.guessed:
            found.guessed[len(found.depth)] = dict(sorted(node.guessed.items()))
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
        "guessed": found.guessed,
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


def _colours(profile: Profile) -> list[str]:
    """The files of a profile, those in which most was spent first."""
    own = {site.binary.name: 0 for site in profile.sites if site.binary is not None}
    for stack in profile.stacks:
        binary = profile.sites[stack.sites[0]].binary if stack.sites else None
        if binary is not None:
            own[binary.name] += stack.weight
    return sorted(own, key=lambda name: (-own[name], name))


def _colour(function: Function, file: int) -> int:
    if function.kernel:
        return KERNEL
    if function.binary is None:
        return PROCESS if function.name != "[unknown]" else OTHER
    return min(file, OTHER)
