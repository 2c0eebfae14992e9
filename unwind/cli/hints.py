"""Modules whose places got no names in, what would bring them out, on standard error."""

from __future__ import annotations

import sys

__all__ = ["print_hints"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unwind.cli.options import Options
    from unwind.modules import Module

_MOST = 10  # modules


def print_hints(
    prog: str,
    options: Options,
    unnamed: dict[Module, int],
    *,
    is_here: bool = True,
    most: int = _MOST,
) -> None:
    """A line for each module, most places first.

    `is_here`: they are of this machine or of --sysroot, whose packages can be looked at.
    """
    if not unnamed:
        return
    from unwind.advice import advice
    from unwind.writers.escape import escape

    by_name: dict[tuple[str, bytes | None], tuple[Module, int]] = {}
    for module, places in unnamed.items():  # processes have one each of the same file
        key = module.name, module.build_id
        by_name[key] = module, by_name.get(key, (module, 0))[1] + places
    root = (options.sysroot or "") if is_here else None
    said = 0
    for module, places in sorted(by_name.values(), key=lambda entry: -entry[1]):
        text = advice(module, places, root=root, servers=options.debuginfod)
        if text is not None and said < most:
            said += 1
            sys.stdout.flush()
            print(f"{prog}: hint: {escape(text)}", file=sys.stderr)
