"""Call trees keep every weight, and keep cut stacks apart from complete ones."""

from __future__ import annotations

from tests import profiles
from tests.profiles import MAIN
from unwind.breakdown import Function
from unwind.call_tree import Node, call_tree, compare, kept
from unwind.frames import End, Trust


def child(node: Node, *names: str) -> Node:
    """The node at the end of a path."""
    for name in names:
        [node] = [c for c in node.children.values() if c.function.name == name]
    return node


def test_stacks_with_a_common_beginning_are_merged() -> None:
    root = call_tree(profiles.small())
    work = child(root, "program", "_start", "main", "work")
    assert (work.own, work.total, work.count) == (5_000, 35_000, 35)
    leaf = child(work, "work", "leaf")
    assert (leaf.own, leaf.total) == (30_000, 30_000)
    assert leaf.guessed is None
    kernel = child(root, "program", "_start", "main", "write", "do_syscall_64")
    assert kernel.guessed == {Trust.RECORDED: 10_000}


def test_totals_are_those_of_the_children_and_their_own() -> None:
    for profile in (profiles.small(), profiles.many(), profiles.hostile(), profiles.empty()):
        root = call_tree(profile)
        assert (root.total, root.count) == (profile.weight, profile.count)
        for _, node in root.walk():
            assert node.total == node.own + sum(c.total for c in node.children.values())


def test_cut_stacks_have_roots_of_their_own() -> None:
    root = call_tree(profiles.small())
    tops = list(root.children.values())
    whole = {node.function.name for node in tops if not node.cut}
    cut = {node.function.name: node for node in tops if node.cut}
    assert whole == {"program", "worker"}
    assert set(cut) == {f"[truncated: {e}]" for e in ("memory-fault", "no-module", "no-row")}
    for name, top in cut.items():
        assert all(f"[truncated: {node.cut}]" == name for _, node in top.walk())
    assert not any(node.cut for name in whole for _, node in child(root, name).walk())


def test_a_walk_gives_parents_first_and_siblings_by_name() -> None:
    root = call_tree(profiles.small())
    seen = [(depth, node.function.name) for depth, node in root.walk()]
    assert seen[0] == (0, "all")
    tops = [name for depth, name in seen if depth == 1]
    assert tops[:2] == ["program", "worker"]
    assert tops[2:] == sorted(tops[2:])


def test_a_deep_stack_is_no_trouble() -> None:
    profile = profiles.by_hand([(MAIN, ["f"] * 20_000, End.OUTERMOST, 1)])
    depths = [depth for depth, _ in call_tree(profile).walk()]
    assert max(depths) == 20_001


def test_a_comparison_scales_the_base_to_the_same_total() -> None:
    numbers: dict[Function, int] = {}
    before = [(MAIN, "m a", End.OUTERMOST, 1), (MAIN, "m c", End.OUTERMOST, 3)]
    after = [(MAIN, "m a", End.OUTERMOST, 6), (MAIN, "m b", End.OUTERMOST, 2)]
    base = call_tree(profiles.by_hand(before), numbers)
    now = call_tree(profiles.by_hand(after), numbers)
    gone = compare(now, base)
    assert gone == 0.75
    m = child(now, "program", "m")
    assert (m.total, m.base) == (8_000, 8_000)
    assert (child(m, "a").total, child(m, "a").base) == (6_000, 2_000)
    assert (child(m, "b").total, child(m, "b").base) == (2_000, 0)


def test_what_is_kept_hangs_together() -> None:
    root = call_tree(profiles.many())
    nodes = kept(root, limit=500, share=0.0001)
    assert len(nodes) == 500
    assert nodes[0] == (0, root)
    order = [node for _, node in root.walk()]
    assert root.size == len(order)
    chosen = {node for _, node in nodes}
    assert [node for node in order if node in chosen] == [node for _, node in nodes]
    lightest = min(node.total for node in chosen)
    for node in order:
        if node not in chosen:
            assert node.total <= lightest
            assert not any(c in chosen for c in node.children.values())
