"""What a ledger has of a tool that raised."""

from __future__ import annotations

from typing import Any

import pytest

from durable import ledger
from durable.ledger import Outcome, Raised


def test_a_failure_is_known_by_our_own_words_and_its_class() -> None:
    raised = Raised("tool_failed", "It failed.", "ValueError")
    assert ledger.decode(ledger.encode(Outcome(raised=raised))) == Outcome(raised=raised)


@pytest.mark.parametrize("value", ["text", {"a": [1, None]}, None])
def test_what_hooks_made_of_a_failure_is_known_as_that(value: Any) -> None:
    assert ledger.decode(ledger.encode(Outcome(value=value, healed=True))) == Outcome(value=value, healed=True)
    assert ledger.decode(ledger.encode(Outcome(value=value))) == Outcome(value=value)


@pytest.mark.parametrize("outcome", [Outcome(retry="again", healed=True), Outcome(failed="no", healed=True)])
def test_what_hooks_told_the_model_is_known_as_that(outcome: Outcome) -> None:
    assert ledger.decode(ledger.encode(outcome)) == outcome
