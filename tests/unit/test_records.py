"""Records are named tuples in all that the code uses of them."""

from __future__ import annotations

import pickle

import pytest

from shimd.records import Record


class Point(Record):
    x: int
    y: int = 2
    name: str = ""

    def sum(self) -> int:
        return self.x + self.y


class Labelled(Point):
    def label(self) -> str:
        return f"{self.name}: {self.sum()}"


def test_fields_by_position_name_and_default() -> None:
    assert Point(1) == Point(x=1) == Point(1, 2, "") == (1, 2, "")
    assert Point(1, name="a").name == "a"
    assert Point._fields == ("x", "y", "name")
    assert Point(3, 4).sum() == 7


def test_it_is_a_plain_immutable_tuple() -> None:
    point = Point(1)
    x, y, name = point
    assert (x, y, name) == tuple(point)
    assert hash(point) == hash((1, 2, ""))
    assert not hasattr(point, "__dict__")
    with pytest.raises(AttributeError):
        point.x = 5  # type: ignore[misc]


def test_replace_make_and_dictionary() -> None:
    point = Point(1)._replace(y=5)
    assert point == (1, 5, "")
    assert isinstance(point, Point)
    assert point._asdict() == {"x": 1, "y": 5, "name": ""}
    assert Point._make([7, 8, "b"]) == Point(7, 8, "b")
    with pytest.raises(ValueError, match="z"):
        point._replace(z=1)  # type: ignore[call-arg]


def test_a_subclass_adds_methods() -> None:
    labelled = Labelled(1, name="sum")
    assert labelled.label() == "sum: 3"
    assert repr(labelled) == "Labelled(x=1, y=2, name='sum')"


def test_matching_and_pickling() -> None:
    match Point(1, 2, "a"):
        case Point(x, _, name):
            assert (x, name) == (1, "a")
    assert pickle.loads(pickle.dumps(Point(1))) == Point(1)


@pytest.mark.parametrize(
    ("values", "named", "text"),
    [
        ((), {}, "needs 'x'"),
        ((1, 2, "a", 4), {}, "takes 3"),
        ((1,), {"z": 1}, "not take z"),
        ((1,), {"x": 1}, "not take x"),
    ],
)
def test_wrong_arguments(values: tuple[object, ...], named: dict[str, object], text: str) -> None:
    with pytest.raises(TypeError, match=text):
        Point(*values, **named)  # type: ignore[arg-type]
