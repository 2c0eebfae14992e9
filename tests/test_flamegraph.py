"""A flame graph holds the profile, is one sound file, and no name in it means anything to it.

How it looks and what it does in a browser is asked in tests/pictures.py.
"""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from tests import profiles
from tests.profile_readers import Stacks, expected
from tests.profiles import HOSTILE, MAIN
from unwind.frames import End, Trust
from unwind.profile import Profile
from unwind.writers import flamegraph_data
from unwind.writers.flamegraph import flamegraph_html, flamegraph_svg
from unwind.writers.flamegraph_data import CUT, KERNEL

MADE: dict[str, Callable[[], Profile]] = {
    "small": profiles.small,
    "empty": profiles.empty,
    "hostile": profiles.hostile,
    "many": profiles.many,
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=list(MADE))
def profile(request: pytest.FixtureRequest) -> Profile:
    return MADE[request.param]()


class Page(HTMLParser):
    """The elements of a page: tags with their attributes, and the text of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data


def data_of_page(text: str) -> dict[str, Any]:
    page = Page(text)
    assert page.open == []
    assert Counter(tag for tag, _ in page.tags) == {
        **dict.fromkeys(("html", "head", "title", "style", "body", "noscript", "div"), 1),
        "meta": 4,
        "script": 2,
    }
    return dict(json.loads(page.scripts[0]))


def data_of_picture(text: str) -> dict[str, Any]:
    root = ElementTree.fromstring(text)
    [script] = [one for one in root.iter(f"{SVG}script") if one.get("type") == "application/json"]
    assert script.text
    return dict(json.loads(script.text))


def stacks(data: dict[str, Any]) -> Stacks:
    """What the columns say, by paths below the root."""
    path: list[str] = []
    found: Stacks = Counter()
    for depth, function, own in zip(data["depth"], data["function"], data["own"], strict=True):
        path[depth:] = [data["functions"][function][0]]
        if own:
            found[tuple(path[1:])] += own
    return found


def nodes(data: dict[str, Any]) -> Iterator[tuple[list[str], int]]:
    """The path of each node, and its number."""
    path: list[str] = []
    for n, (depth, function) in enumerate(zip(data["depth"], data["function"], strict=True)):
        path[depth:] = [data["functions"][function][0]]
        yield list(path), n


@pytest.mark.parametrize(
    ("write", "read"), [(flamegraph_html, data_of_page), (flamegraph_svg, data_of_picture)]
)
def test_a_picture_holds_the_profile(
    write: Callable[[Profile], Iterator[str]],
    read: Callable[[str], dict[str, Any]],
    profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flamegraph_data, "LEAST_SHARE", 0)
    monkeypatch.setattr(flamegraph_data, "MOST_NODES", 10**9)
    data = read("".join(write(profile)))
    assert +stacks(data) == +expected(profile, process=True)
    assert data["leftOut"] == 0
    assert data["complete"] == sum(s.count for s in profile.stacks if s.complete)


def test_what_is_too_small_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flamegraph_data, "MOST_NODES", 1_000)
    data = data_of_page("".join(flamegraph_html(profiles.many())))
    assert len(data["depth"]) == 1_000
    assert data["leftOut"] > 1_000
    for before, depth in itertools.pairwise(data["depth"]):
        assert depth <= before + 1, "every node has its caller"


def test_the_same_profile_gives_the_same_picture(profile: Profile) -> None:
    for write in (flamegraph_html, flamegraph_svg):
        assert list(write(profile, "t")) == list(write(profile, "t"))


@pytest.mark.parametrize("title", HOSTILE)
def test_names_are_no_markup(title: str) -> None:
    profile = profiles.hostile()
    assert data_of_page("".join(flamegraph_html(profile, title)))
    text = "".join(flamegraph_svg(profile, title))
    root = ElementTree.fromstring(text)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        *("svg", "title", "style", "g", "rect", "text", "script"),
    }
    for markup in ("<img", "<script>alert", "onerror=alert(1)>"):
        assert markup not in text.replace("<script><![CDATA[", "")
        assert markup not in "".join(flamegraph_html(profile, title))


def test_nothing_is_fetched(profile: Profile) -> None:
    page = "".join(flamegraph_html(profile))
    picture = "".join(flamegraph_svg(profile))
    for text in (page, picture):
        for word in ("src=", "href=", "url(", "@import", "fetch(", "XMLHttpRequest", "import("):
            assert word not in text.replace("img src=x", ""), word
    assert "default-src 'none'" in page


def test_cut_stacks_and_the_kernel_have_their_own_colours() -> None:
    data = data_of_page("".join(flamegraph_html(profiles.small())))
    for path, n in nodes(data):
        cut = len(path) > 1 and path[1].startswith("[truncated: ")
        assert (data["functions"][data["function"][n]][2] == CUT) == cut
    kernel = {name for name, _, colour, *_ in data["functions"] if colour == KERNEL}
    assert kernel == {"do_syscall_64"}


def test_trust_is_told_where_it_is_not_cfi_alone() -> None:
    guessed = profiles.site_at("guessed", trust=Trust.FRAME_POINTER)
    sure = profiles.site_at("guessed")
    profile = profiles.by_hand(
        [
            (MAIN, ["main", guessed], End.OUTERMOST, 1),
            (MAIN, ["main", sure], End.OUTERMOST, 3),
        ]
    )
    data = data_of_page("".join(flamegraph_html(profile)))
    [n] = [n for path, n in nodes(data) if path[-1] == "guessed"]
    assert data["total"][n] == 4_000
    assert data["guessed"] == {str(n): {"frame_pointer": 1_000}}


def test_a_comparison_colours_what_changed() -> None:
    base = profiles.by_hand([(MAIN, "m a", End.OUTERMOST, 10), (MAIN, "m b", End.OUTERMOST, 10)])
    now = profiles.by_hand([(MAIN, "m a", End.OUTERMOST, 3), (MAIN, "m c", End.OUTERMOST, 1)])
    data = data_of_page("".join(flamegraph_html(now, base=base)))
    found = {path[-1]: (data["total"][n], data["base"][n]) for path, n in nodes(data)}
    assert found["m"] == (4_000, 4_000)
    assert found["a"] == (3_000, 2_000)
    assert found["c"] == (1_000, 0)
    assert data["gone"] == 0.5
    picture = ElementTree.fromstring("".join(flamegraph_svg(now, base=base)))
    classes = {}
    for group in picture.iter(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title"), group.find(f"{SVG}rect")
        if title is not None and rect is not None:
            classes[(title.text or "").partition(":")[0]] = rect.get("class")
    assert (classes["m"], classes["a"], classes["c"]) == ("frame dp0", "frame dp1", "frame dp4")


def test_rectangles_of_the_static_picture_lie_within_their_callers() -> None:
    picture = ElementTree.fromstring("".join(flamegraph_svg(profiles.many())))
    rows: dict[float, list[tuple[float, float]]] = {}
    for rect in picture.iter(f"{SVG}rect"):
        if (rect.get("class") or "").startswith("frame"):
            x, y, width = (float(rect.get(key) or 0) for key in ("x", "y", "width"))
            rows.setdefault(y, []).append((x, x + width))
    assert len(rows) > 20
    for y, row in rows.items():
        for (_, end), (start, _) in itertools.pairwise(row):
            assert end <= start + 0.02
        below = rows.get(y + 18)
        for start, end in row:
            assert below is None or any(a - 0.02 <= start and end <= b + 0.02 for a, b in below)
