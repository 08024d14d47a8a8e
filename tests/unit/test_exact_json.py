from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import exact_json, ledger

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
    | st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**30, "9" * 25]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values)
def test_what_is_written_is_read_again_as_it_was(value: Any) -> None:
    found = exact_json.loads(exact_json.dumps(value))
    assert (found, repr(found)) == (value, repr(value)) or isinstance(value, float)


@given(values)
def test_equal_objects_have_equal_json_whatever_the_order_of_their_fields(value: Any) -> None:
    one, other = {"a": value, "b": 2**70}, {"b": 2**70, "a": value}
    assert exact_json.dumps(one, sort_keys=True) == exact_json.dumps(other, sort_keys=True)


def test_what_fits_is_written_as_by_the_fast_library() -> None:
    value = {"b": [1.5, float("nan"), "ü"], "a": 2**64 - 1}
    assert exact_json.dumps(value) == orjson.dumps(value)


@pytest.mark.parametrize("value", ["\ud800", object(), {"n": 2**70, "x": float("nan")}, {"n": 2**70, "s": "\ud800"}])
def test_what_has_no_json_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        exact_json.dumps(value)


def test_a_recorded_value_has_its_integers_again() -> None:
    found = ledger.decode(ledger.encode(ledger.Outcome(value={"n": [2**70, -(2**64)]})))
    assert found is not None
    assert found.value == {"n": [2**70, -(2**64)]}
