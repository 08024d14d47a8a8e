"""Cursors of a run with its children: they say where a reader stands, and stay short."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.errors import InvalidRequest
from durable.trees.places import DEEPEST, LONGEST, MOST_CHILDREN, Place, read_place


def places(children: st.SearchStrategy[Place]) -> st.SearchStrategy[Place]:
    """Places of runs that have such children."""
    numbers = st.integers(0, 40)
    begun = st.dictionaries(numbers, children, max_size=4)
    return st.builds(_place, st.integers(0, 10**9), st.sets(numbers), begun)


def _place(seq: int, done: set[int], begun: dict[int, Place]) -> Place:
    return Place(seq, sum(1 << number for number in done - begun.keys()), begun)


def state(place: Place) -> object:
    return place.seq, place.done, {number: state(child) for number, child in place.begun.items()}


TREES = st.recursive(st.builds(Place, st.integers(0, 10**6)), places, max_leaves=12)


@given(TREES)
def test_a_cursor_says_where_its_reader_stands(place: Place) -> None:
    assert state(read_place(str(place))) == state(place)


@given(TREES, st.integers(0, 10**6))
def test_the_cursors_of_one_page_differ_in_one_number(place: Place, seq: int) -> None:
    child = next(iter(place.begun.values()), place)
    before, after = place.around(child)
    child.seq = seq
    assert f"{before}{seq}{after}" == str(place)


def test_a_number_is_a_cursor_of_a_reader_who_has_nothing_of_the_children() -> None:
    assert state(read_place("12")) == (12, 0, {})


def test_a_cursor_tells_the_children_that_are_begun_and_those_that_are_done() -> None:
    assert str(Place(12, 0b0011, {2: Place(7), 4: Place(1, 0, {0: Place(3)})})) == "12.2(2:7,4:1(0:3))"
    assert str(Place(12, 0b1011)) == "12.2~Ag"


@pytest.mark.parametrize(
    "cursor",
    ["", "-1", "x", "1.", "1.x", "1()", "1(2)", "1(2:)", "1(2:3", "1(2:3,)", "1(2:3)4", "1(2:3,2:4)", "1.2(1:3)", "1 ",
     "1.1~A", "٣", "1\n", "1" * 16, "1(0:" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1), "1" + "." * LONGEST],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        read_place(cursor)


def test_a_thousand_children_take_few_characters() -> None:
    half = sum(1 << number for number in range(0, 1000, 2))
    assert len(str(Place(10**6, half))) < 200


@pytest.mark.parametrize(
    "cursor",
    [
        f"1.{MOST_CHILDREN + 1}",
        f"1(0:1.{MOST_CHILDREN},1:1.1)",
        "1(" + ",".join(f"{n}:0.999999" for n in range(99)) + ")",
    ],
)
def test_a_short_cursor_costs_no_more_memory_than_many_children(cursor: str) -> None:
    with pytest.raises(InvalidRequest):
        read_place(cursor)
    assert read_place(f"1.{MOST_CHILDREN}").done.bit_length() == MOST_CHILDREN
