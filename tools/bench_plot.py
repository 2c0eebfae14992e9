"""Series of figures in, an SVG of small panels side by side out: light or dark as its reader is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Panel", "Series", "plot"]

_WIDTH, _HEIGHT, _GAP = 210, 190, 46
_STYLE = """\
text{font:11px system-ui,sans-serif;fill:#333}.title{font-weight:600}.axis{stroke:#bbb;fill:none}
.a{stroke:#2a6fb0}.b{stroke:#c46a1b}polyline{fill:none;stroke-width:2}circle{fill:#fff;stroke-width:2}
text.a{fill:#2a6fb0;stroke:none}text.b{fill:#c46a1b;stroke:none}
@media(prefers-color-scheme:dark){text{fill:#ccc}.axis{stroke:#555}circle{fill:#111}
.a{stroke:#6fb1ee}.b{stroke:#eba05c}text.a{fill:#6fb1ee}text.b{fill:#eba05c}}"""


@dataclass(frozen=True)
class Series:
    """A line: (how large what grows is, microseconds a sample)."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Panel:
    """What grows, on a logarithmic axis, and the lines; each has at least one point."""

    title: str
    series: Sequence[Series]


def plot(panels: Sequence[Panel]) -> str:
    """The picture; all panels share the vertical axis, which begins at zero."""
    most = max(y for panel in panels for series in panel.series for _, y in series.points)
    step = _step(most)
    top = step * math.ceil(most / step)
    width, height = len(panels) * (_WIDTH + _GAP) + _GAP // 2, _HEIGHT + 70
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    parts = [head, "<title>What unwinding a sample costs</title>", f"<style>{_STYLE}</style>"]
    for n, panel in enumerate(panels):
        left = _GAP + n * (_WIDTH + _GAP)
        parts += [f'<g transform="translate({left},30)">', *_panel(panel, top, step), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, step: float) -> Iterator[str]:
    sizes = sorted({x for series in panel.series for x, _ in series.points})
    low, high = math.log(sizes[0]), math.log(sizes[-1])

    def place(x: int, y: float) -> tuple[float, float]:
        across = (math.log(x) - low) / (high - low) if high > low else 0.5
        return round(across * _WIDTH, 1), round(_HEIGHT * (1 - y / top), 1)

    yield f'<text class="title" x="0" y="-14">by {panel.title}</text>'
    value = 0.0
    while value <= top + step / 2:
        _, y = place(sizes[0], value)
        yield f'<path class="axis" d="M0 {y}H{_WIDTH}"/>'
        yield f'<text x="-6" y="{y + 4}" text-anchor="end">{value:g}</text>'
        value += step
    for size in sizes:
        x, _ = place(size, 0)
        yield f'<text x="{x}" y="{_HEIGHT + 16}" text-anchor="middle">{size:,}</text>'
    for series, name in zip(panel.series, "ab", strict=False):
        places = [place(x, y) for x, y in series.points]
        line = " ".join(f"{x},{y}" for x, y in places)
        yield f'<polyline class="{name}" points="{line}"/>'
        for (x, y), (size, us) in zip(places, series.points, strict=True):
            told = f"{series.name}, {panel.title} {size:,}: {us:.1f} us a sample"
            yield f'<circle class="{name}" cx="{x}" cy="{y}" r="3"><title>{told}</title></circle>'
    for n, (series, name) in enumerate(zip(panel.series, "ab", strict=False)):
        yield f'<text class="{name}" x="{100 * n}" y="{_HEIGHT + 34}">{series.name}, us</text>'


def _step(most: float) -> float:
    """A round distance of four to eight lines."""
    step = 10 ** math.floor(math.log10(max(most, 1e-3) / 4))
    return next(step * n for n in (1, 2, 5, 10) if most / (step * n) <= 6)
