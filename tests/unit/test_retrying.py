from __future__ import annotations

import pytest
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    ModelTimeoutError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)

from durable.execution.failures import ToolFailure
from durable.execution.retrying import LONGEST, is_passing, postponement, retry_after

BUSY = ModelHTTPError(429, "m")


def asking(seconds: float) -> ModelAPIError:
    error = ModelHTTPError(503, "m")
    error.retry_after = seconds
    return error


@pytest.mark.parametrize(
    "error",
    [
        *(ModelHTTPError(status, "m") for status in (408, 429, 500, 502, 503, 504, 529)),
        ModelConnectionError("m", "refused"),
        ModelTimeoutError("m", "timed out"),
        ModelAPIError("m", "a release without kinds"),
        ExceptionGroup("all models failed", [ModelHTTPError(401, "m"), BUSY]),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    found = postponement(error, retries=1, used=0)
    assert found is not None
    assert found.error.code == "model_error"


@pytest.mark.parametrize(
    "error",
    [
        *(ModelHTTPError(status, "m") for status in (400, 401, 403, 404, 413, 422)),
        ModelQuotaExceededError("m", "no credit"),
        ModelRequestRejectedError("m", "no"),
        UnexpectedModelBehavior("nonsense"),
        UsageLimitExceeded("too much"),
        ToolFailure("tool", "tool_failed", "it raised"),
        ValueError("a bug"),
        ExceptionGroup("all models failed", [ModelHTTPError(400, "m"), ModelHTTPError(401, "m")]),
    ],
    ids=repr,
)
def test_what_waiting_does_not_help_is_not_tried_again(error: Exception) -> None:
    assert not is_passing(error)
    assert postponement(error, retries=9, used=0) is None


def test_a_tool_that_asks_a_model_of_its_own_does_not_make_the_run_ask_again() -> None:
    failure = ToolFailure("tool", "tool_failed", "it raised")
    failure.__cause__ = BUSY
    assert postponement(failure, retries=9, used=0) is None


def test_retries_are_counted() -> None:
    assert postponement(BUSY, retries=0, used=0) is None
    second = postponement(BUSY, retries=2, used=1)
    assert second is not None
    assert second.retry == 2
    assert second.fields["retriesUsed"] == "2"
    assert postponement(BUSY, retries=2, used=2) is None


def test_pauses_are_random_and_grow_to_a_cap() -> None:
    def longest(used: int) -> float:
        found = [postponement(BUSY, retries=100, used=used) for _ in range(300)]
        pauses = {each.delay for each in found if each is not None}
        assert len(pauses) > 200
        return max(pauses)

    assert longest(0) <= 2 < longest(3) <= 16 < longest(50) <= 60


def test_a_provider_is_left_alone_for_as_long_as_it_asks() -> None:
    found = [postponement(asking(30), retries=1, used=0) for _ in range(50)]
    assert all(each is not None and 30 <= each.delay <= 32 for each in found)
    assert postponement(asking(LONGEST + 1), retries=1, used=0) is None


def test_of_several_providers_the_first_that_is_ready_counts() -> None:
    group = ExceptionGroup("all models failed", [asking(30), asking(5), ModelHTTPError(401, "m")])
    assert retry_after(group) == 5
