"""Call trees: stacks with a common beginning merged, from the outermost frame inwards.

Stacks that were cut have roots of their own, one for each reason: where their outer frames would
belong is not known, and a cut stack among complete ones would make a callee look like a caller.
"""

from __future__ import annotations

from unwind.breakdown import Function, frames_of
from unwind.frames import Trust

__all__ = ["Node", "call_tree", "compare", "head_of", "kept"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.profile import Profile, SampledStack


# Found as well as can be, or given by the source.
_SURE = {Trust.CONTEXT, Trust.CFI}


class Node:
    """A function in the context of its callers.

    `own` is what the stacks that end here weigh, `total` that of all that pass, in the profile's
    unit; `count` is the latter in samples. `guessed` is the weight, by Trust, of frames that were
    found in another way than by CFI, None where there are none. `base` is what the same node
    weighs in the profile compared with, scaled. `cut` is the reason below a root of cut stacks,
    empty elsewhere. `children` are the callees, by the numbers of their functions.
    """

    __slots__ = ("base", "children", "count", "cut", "function", "guessed", "own", "total")

    def __init__(self, function: Function, cut: str = ""):
        self.function = function
        self.cut = cut
        self.own = self.total = self.count = 0
        self.base = 0.0
        self.guessed: dict[str, int] | None = None
        self.children: dict[int, Node] = {}

    def walk(self, least: float = 0) -> Iterator[tuple[int, Node]]:
        """This node and those below it of at least a total, each before its children, in order.

        With their depths: this one's is 0.
        """
        waiting = [(0, self)]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node
            below = [child for child in node.children.values() if child.total >= least]
            below.sort(key=_order, reverse=True)
            waiting += [(depth + 1, child) for child in below]

    @property
    def size(self) -> int:
        """The number of nodes, this one counted."""
        waiting, size = [self], 0
        while waiting:
            size += 1
            waiting += waiting.pop().children.values()
        return size


def head_of(stack: SampledStack, process: bool = True) -> list[Function]:
    """What lies below a stack's outermost frame in a picture, from the root on.

    For a complete stack its process, where that is wanted; else first why it was cut.
    """
    head = [] if stack.complete else [Function(f"[truncated: {stack.end}]", None)]
    return [*head, Function(stack.thread.comm or "[unknown]", None)] if process else head


def call_tree(profile: Profile, numbers: dict[Function, int] | None = None) -> Node:
    """The tree of a profile; its root, `all`, has processes and reasons for cuts below it.

    Trees that are to be compared share `numbers`, those of functions.
    """
    numbers = {} if numbers is None else numbers

    def numbered(function: Function, trust: str = "") -> tuple[int, Function, str]:
        trust = "" if trust in _SURE else trust
        return numbers.setdefault(function, len(numbers)), function, trust

    sites = [
        [numbered(function, site.trust) for function in frames_of(site)] for site in profile.sites
    ]
    root = Node(Function("all", None))
    for stack in profile.stacks:
        node, weight, count = root, stack.weight, stack.count
        root.total += weight
        root.count += count
        cut = "" if stack.complete else stack.end
        head = [numbered(function) for function in head_of(stack)]
        for steps in (head, *[sites[number] for number in reversed(stack.sites)]):
            for number, function, trust in steps:
                child = node.children.get(number)
                if child is None:
                    child = node.children[number] = Node(function, cut)
                node = child
                node.total += weight
                node.count += count
                if trust:
                    node.guessed = guessed = node.guessed or {}
                    guessed[trust] = guessed.get(trust, 0) + weight
        node.own += weight
    return root


def compare(root: Node, base: Node) -> float:
    """Set `base` of all nodes by another tree, scaled to the same total; the share that is gone.

    Both were built with the same numbers. Gone is what the other tree has in nodes that this one
    lacks: 0 to 1 of its weight.
    """
    if not base.total:
        return 0.0
    scale = root.total / base.total
    gone = 0
    waiting = [(root, base)]
    while waiting:
        node, other = waiting.pop()
        node.base = other.total * scale
        for number, child in other.children.items():
            mine = node.children.get(number)
            if mine is None:
                gone += child.total
            else:
                waiting.append((mine, child))
    return gone / base.total


def kept(root: Node, limit: int, share: float) -> list[tuple[int, Node]]:
    """What of a walk is worth drawing: at most `limit` nodes, each of a `share` of the root's.

    A node weighs no more than its parent, so what is kept hangs together.
    """
    found = list(root.walk(root.total * share))
    if len(found) <= limit:
        return found
    heaviest = sorted(range(len(found)), key=lambda n: (-found[n][1].total, found[n][0], n))
    return [found[n] for n in sorted(heaviest[:limit])]


def _order(node: Node) -> tuple[object, ...]:
    function = node.function
    cut = bool(node.cut)  # after what is complete
    return cut, function.name, function.binary or "", function.kernel, function.inlined
