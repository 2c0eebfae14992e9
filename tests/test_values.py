"""Value: frozen, equal by class and fields, and without the cost of dataclasses."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from unwind.rules import Offset, ValOffset
from unwind.values import Value


class Point(Value):
    x: int
    y: int = 0


class Named(Point):
    name: str = "?"


def test_fields_come_from_the_annotations_in_their_order() -> None:
    assert (Point(1, 2).x, Point(1, 2).y) == (1, 2)
    assert Point(x=1, y=2) == Point(1, 2)


def test_a_default_serves_where_no_value_is_given() -> None:
    assert Point(1) == Point(1, 0)


def test_a_subclass_adds_its_fields_behind_the_inherited_ones() -> None:
    assert Named(1, 2, "a").name == "a"
    assert Named(1) == Named(1, 0, "?")


def test_values_of_two_classes_differ_even_when_their_fields_agree() -> None:
    assert Offset(8) != ValOffset(8)
    assert len({Offset(8), ValOffset(8), Offset(8)}) == 2


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="cannot be set"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del Point(1).x


def test_a_value_has_slots_and_no_dict() -> None:
    assert not hasattr(Point(1), "__dict__")


@pytest.mark.parametrize("before", [0, 100], ids=["first", "later"])
@pytest.mark.parametrize(
    ("words", "named", "complaint"),
    [
        ((), {}, "missing 1 required positional argument: 'a'"),
        ((1, 2, 3), {}, "takes from 2 to 3 positional arguments but 4 were given"),
        ((1,), {"a": 2}, "got multiple values for argument 'a'"),
        ((1,), {"c": 2}, "got an unexpected keyword argument 'c'"),
    ],
)
def test_what_is_no_set_of_values_is_refused(
    words: tuple[int, ...], named: dict[str, int], complaint: str, before: int
) -> None:
    class Pair(Value):
        a: int
        b: int = 0

    for n in range(before):
        assert Pair(n, b=1) == Pair(b=1, a=n)
    with pytest.raises(TypeError, match=complaint):
        Pair(*words, **named)


def test_repr_reads_like_the_call_that_makes_it() -> None:
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"


def test_replace_changes_a_copy() -> None:
    first = Point(1, 2)
    assert first.replace(y=5) == Point(1, 5)
    assert first == Point(1, 2)


def test_values_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Offset(-8))) == Offset(-8)


def test_values_need_neither_dataclasses_nor_typing() -> None:
    names = "('dataclasses', 'typing')"
    code = f"import sys, unwind.values; print([m for m in {names} if m in sys.modules])"
    output = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, check=True)
    assert output.stdout.strip() == b"[]"
