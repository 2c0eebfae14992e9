"""Call trees: stacks with a common beginning merged, from the outermost frame inwards.

Stacks that were cut have roots of their own, one for each reason: where their outer frames would
belong is not known, and a cut stack among complete ones would make a callee look like a caller.
"""

from __future__ import annotations

from unwind.breakdown import Function, frames_of

__all__ = ["Node", "call_tree", "compare", "head_of", "kept"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.profile import Profile, SampledStack


class Node:
    """A function in the context of its callers.

    `own` is what the stacks that end here weigh, `total` that of all that pass, in the profile's
    unit; `count` is the latter in samples. `trusts` is how the frames were found: weight by
    Trust. `base` is what the same node weighs in the profile compared with, scaled.
    `cut` is the reason below a root of cut stacks, empty elsewhere.
    """

    __slots__ = ("base", "children", "count", "cut", "function", "own", "total", "trusts")

    def __init__(self, function: Function, cut: str = ""):
        self.function = function
        self.cut = cut
        self.own = self.total = self.count = 0
        self.base = 0.0
        self.trusts: dict[str, int] = {}
        self.children: dict[Function, Node] = {}

    def child(self, function: Function, cut: str = "") -> Node:
        """The node of a callee, made when it is first asked for."""
        found = self.children.get(function)
        if found is None:
            found = self.children[function] = Node(function, cut or self.cut)
        return found

    def walk(self) -> Iterator[tuple[int, Node]]:
        """This node and all below it with their depths, each before its children, in order."""
        waiting = [(0, self)]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node
            below = sorted(node.children.values(), key=_order, reverse=True)
            waiting += [(depth + 1, child) for child in below]


def head_of(stack: SampledStack, process: bool = True) -> list[Function]:
    """What lies below a stack's outermost frame in a picture, from the root on.

    For a complete stack its process, where that is wanted; else first why it was cut.
    """
    head = [] if stack.complete else [Function(f"[truncated: {stack.end}]", None)]
    return [*head, Function(stack.thread.comm or "[unknown]", None)] if process else head


def call_tree(profile: Profile) -> Node:
    """The tree of a profile; its root, `all`, has processes and reasons for cuts below it."""
    root = Node(Function("all", None))
    steps = [[(function, site.trust) for function in frames_of(site)] for site in profile.sites]
    for stack in profile.stacks:
        node, weight, count = root, stack.weight, stack.count
        root.total += weight
        root.count += count
        cut = "" if stack.complete else stack.end
        head = [(function, "") for function in head_of(stack)]
        for step in (head, *[steps[number] for number in reversed(stack.sites)]):
            for function, trust in step:
                node = node.child(function, cut)
                node.total += weight
                node.count += count
                if trust:
                    node.trusts[trust] = node.trusts.get(trust, 0) + weight
        node.own += weight
    return root


def compare(root: Node, base: Node) -> float:
    """Set `base` of all nodes by another tree, scaled to the same total; the share that is gone.

    Gone is what the other tree has in nodes that this one lacks: 0 to 1 of its weight.
    """
    if not base.total:
        return 0.0
    scale = root.total / base.total
    gone = 0
    waiting = [(root, base)]
    while waiting:
        node, other = waiting.pop()
        node.base = other.total * scale
        for function, child in other.children.items():
            mine = node.children.get(function)
            if mine is None:
                gone += child.total
            else:
                waiting.append((mine, child))
    return gone / base.total


def kept(root: Node, limit: int, share: float) -> set[Node]:
    """The nodes worth drawing: at most `limit`, each at least `share` of the root's total.

    A node weighs no more than its parent, so what is kept hangs together.
    """
    least = root.total * share
    found = [(depth, node) for depth, node in root.walk() if node.total >= least]
    found.sort(key=lambda entry: (-entry[1].total, entry[0]))  # stable: in the order of the walk
    return {node for _, node in found[:limit]}


def _order(node: Node) -> tuple[object, ...]:
    function = node.function
    cut = bool(node.cut)  # after what is complete
    return cut, function.name, function.binary or "", function.kernel, function.inlined
