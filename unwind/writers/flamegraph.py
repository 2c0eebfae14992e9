"""Flame graphs: a profile in, a picture that is one file and needs no other, as HTML or SVG, out.

Both hold the numbers as JSON and the same script, which draws, zooms and searches. The SVG has a
static picture too, for where no script runs: in a page's <img>, or in print.
"""

from __future__ import annotations

import os

from unwind.writers.amounts import amount, share
from unwind.writers.flamegraph_data import CUT, Columns, columns, json
from unwind.writers.labels import label

__all__ = ["flamegraph_html", "flamegraph_svg"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unwind.profile import Profile

_WIDTH, _ROW, _HEAD, _MARGIN = 1200, 18, 48, 8  # pixels of the static picture
_INSIDE = _WIDTH - 2 * _MARGIN
_NARROWEST = 0.8  # pixels that are still drawn
_CHARACTER = 6.7  # pixels, in the font of the style sheet; a little more than most are wide

_NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def flamegraph_html(
    profile: Profile, title: str = "", base: Profile | None = None
) -> Iterator[str]:
    """A page in pieces; with `base`, colours tell what grew and what shrank against it."""
    found = columns(profile, base)
    title = label(title) or label(profile.event)
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_NO_NETWORK}">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield f"<title>{_text(title)}</title>\n<style>\n{_part('flamegraph.css')}</style>\n</head>\n"
    yield "<body>\n<noscript>This picture is drawn by its script.</noscript>\n"
    yield '<div id="flamegraph"></div>\n<script type="application/json" id="profile">'
    yield from json(profile, found, title)
    yield f"</script>\n<script>\n{_part('flamegraph.js')}</script>\n</body>\n</html>\n"


def flamegraph_svg(profile: Profile, title: str = "", base: Profile | None = None) -> Iterator[str]:
    """The same as an SVG file, in pieces."""
    found = columns(profile, base)
    title = label(title) or label(profile.event)
    rectangles = list(_rectangles(found))
    height = _HEAD + (max([depth for _, depth, _, _ in rectangles]) + 1) * _ROW + _MARGIN
    yield '<?xml version="1.0" encoding="UTF-8"?>\n<svg xmlns="http://www.w3.org/2000/svg"'
    yield f' id="flamegraph" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">\n'
    yield f"<title>{_text(title)}</title>\n<style>\n{_text(_part('flamegraph.css'))}</style>\n"
    yield f'<g id="static">\n<rect class="paper" width="{_WIDTH}" height="{height}"/>\n'
    head = _shortened(title, _INSIDE)
    yield f'<text class="title" x="{_MARGIN}" y="20">{_text(head)}</text>\n'
    yield f'<text class="note" x="{_MARGIN}" y="38">{_text(_note(profile))}</text>\n'
    for n, depth, x, width in rectangles:
        yield _drawn(profile, found, n, x, height - _MARGIN - (depth + 1) * _ROW, width)
    yield '</g>\n<script type="application/json" id="profile">'
    yield from json(profile, found, title)
    yield f"</script>\n<script><![CDATA[\n{_part('flamegraph.js')}]]></script>\n</svg>\n"


def _rectangles(found: Columns) -> Iterator[tuple[int, int, float, float]]:
    """Number, depth, place and width of each node that is wide enough for the static picture."""
    scale = _INSIDE / max(found.total[0], 1)
    next_at = [0] * (max(found.depth) + 2)  # by depth: where the next node begins
    for n, depth in enumerate(found.depth):
        start, total = next_at[depth], found.total[n]
        next_at[depth], next_at[depth + 1] = start + total, start
        if n == 0 or total * scale >= _NARROWEST:
            yield n, depth, _MARGIN + start * scale, total * scale


def _drawn(profile: Profile, found: Columns, n: int, x: float, y: int, width: float) -> str:
    """A node of the static picture: what a pointer on it tells, a rectangle and its label."""
    name, total = found.functions[found.function[n]][0], found.total[n]
    told = f"{name}: {share(total, found.total[0])}, {amount(total, profile.unit)}"
    shown = _shortened(found.functions[found.function[n]][4] or name, width - 6)
    text = f'<text x="{x + 4:.2f}" y="{y + 13}">{_text(shown)}</text>' if shown else ""
    return (
        f'<g><title>{_text(told)}</title><rect class="{_classes(found, n)}" x="{x:.2f}"'
        f' y="{y}" width="{max(width - 0.5, 0.2):.2f}" height="{_ROW - 1}" rx="2"/>{text}</g>\n'
    )


def _classes(found: Columns, n: int) -> str:
    """The classes of a rectangle: the colour of its file, or how it compares."""
    colour = found.functions[found.function[n]][2]
    if found.base is None or colour == CUT:
        return f"frame c{colour} s{found.function[n] % 5}"
    # From -1, all gone, by steps of a quarter to 1, all new.
    now, before = found.total[n], found.base[n]
    step = round(4 * (now - before) / (max(now, before) or 1))
    return f"frame d{'m' if step < 0 else 'p'}{abs(step)}"


def _note(profile: Profile) -> str:
    count = profile.count
    complete = sum([stack.count for stack in profile.stacks if stack.complete])
    weight = "" if profile.unit == "samples" else f", {amount(profile.weight, profile.unit)}"
    return f"{count} samples{weight}, {share(complete, count)} with a complete stack"


def _shortened(text: str, width: float) -> str:
    """As much of a text as fits in so many pixels, or nothing where that would say nothing."""
    room = int(width / _CHARACTER)
    if len(text) <= room:
        return text
    return text[: room - 1] + "…" if room > 3 else ""


def _text(text: str) -> str:
    """`text` as HTML and XML have it, between tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _part(name: str) -> str:
    """A file that lies beside this one."""
    with open(os.path.join(os.path.dirname(__file__), name), encoding="utf-8") as file:
        return file.read()
