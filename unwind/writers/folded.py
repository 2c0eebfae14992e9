"""Folded stacks: a line for each stack, its frames from the outermost on, then its weight.

The format of stackcollapse-perf.pl and flamegraph.pl (https://github.com/brendangregg/FlameGraph),
which speedscope, inferno and many others read.
"""

from __future__ import annotations

from unwind.breakdown import frames_of
from unwind.call_tree import head_of
from unwind.writers.labels import label

__all__ = ["folded"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.breakdown import Function
    from unwind.profile import Profile


def folded(profile: Profile) -> Iterator[str]:
    r"""The lines, sorted, without line ends: `process;main;work 12`.

    A `;` in a name is written as `\x3b`. Stacks that were cut begin with `[truncated: why]`.
    """
    words = [";".join([_word(function) for function in frames_of(site)]) for site in profile.sites]
    weights: dict[str, int] = {}
    for stack in profile.stacks:
        line = ";".join(
            [
                *[_word(function) for function in head_of(stack)],
                *[words[number] for number in reversed(stack.sites)],
            ]
        )
        weights[line] = weights.get(line, 0) + stack.weight
    for line, weight in sorted(weights.items()):
        yield f"{line} {weight}"


def _word(function: Function) -> str:
    return label(function.name).replace(";", "\\x3b")
