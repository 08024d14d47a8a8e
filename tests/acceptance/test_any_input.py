"""Whatever a caller sends, the API answers in its one shape: never 422, never 500, never with what came in.

The inputs are made up by Hypothesis, the same in each run. Each text in them begins with a mark: an echo is seen.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.caller import ENDED, STREAM, Caller
from tests.deployment import wait_for

MARK = "zq9"
CODES = {
    400: {"invalid_request"},
    404: {"not_found", "unknown_run", "unknown_agent"},
    405: {"method_not_allowed"},
    409: {"run_conflict", "run_ended"},
    413: {"request_too_large"},
}
many = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

# Surrogates, control characters and all: JSON's escapes can say any of them.
texts = st.text(st.characters(codec=None), max_size=20).map(MARK.__add__)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([2**63, 2**64, -(10**40)]) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
roles = st.sampled_from(["user", "assistant", "system"])
messages = st.lists(st.fixed_dictionaries({"role": roles | values, "content": texts | values}) | values, max_size=3)
natives = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["request", "response"]) | values,
            "parts": st.lists(
                st.fixed_dictionaries(
                    {
                        "part_kind": st.sampled_from(
                            ["user-prompt", "text", "tool-call", "tool-return", "system-prompt"]
                        ),
                        "content": texts | values,
                    }
                )
                | values,
                max_size=2,
            )
            | values,
        }
    ),
    min_size=1,
    max_size=2,
)
bodies = (
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": texts | values,
            "messages": messages | natives | values,
            "runId": st.from_regex(r"[A-Za-z0-9_-]{1,3}", fullmatch=True) | texts | values,
            "metadata": st.dictionaries(texts, values, max_size=3) | values,
            "modelSettings": st.fixed_dictionaries({}, optional={"max_tokens": values, "temperature": values}) | values,
            "usageLimits": st.fixed_dictionaries({}, optional={"request_limit": values}) | values,
            "maxSteps": st.integers(0, 3) | values,
            "deps": values,
            f"{MARK}field": values,
        },
    )
    | st.fixed_dictionaries({"prompt": texts}, optional={"metadata": st.dictionaries(texts, values), "deps": values})
    | values
)
words = st.text(st.characters(codec="utf-8"), max_size=30).map(MARK.__add__)


def assert_in_shape(answer: httpx.Response) -> None:
    """An answer is a success, or an error in the one shape that says nothing of what came in."""
    if answer.is_success:
        return
    assert answer.status_code in CODES, answer.text
    error = answer.json()["error"]
    assert error["code"] in CODES[answer.status_code]
    assert MARK not in answer.text


@given(st.lists(bodies, min_size=1, max_size=1).map(lambda items: json.dumps(items[0]).encode()))
@many
def test_any_json_is_a_run_that_ends_or_a_refusal(caller: Caller, body: bytes) -> None:
    answer = caller.post("/v1/agents/scripted/runs", content=body, headers={"Content-Type": "application/json"})
    assert_in_shape(answer)
    if answer.is_success:
        run_id = answer.json()["runId"]
        wait_for(lambda: caller.look(run_id)["status"] in ENDED, seconds=10, what="the run to end")


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "multipart/form-data", "x", ""]))
@many
def test_any_bytes_are_refused(caller: Caller, body: bytes, media: str) -> None:
    answer = caller.post("/v1/agents/scripted/runs", content=body, headers={"Content-Type": media})
    assert_in_shape(answer)
    assert answer.status_code == 400


@given(values.map(lambda value: json.dumps(value).encode()))
@many
def test_any_json_cancels_or_is_refused(caller: Caller, body: bytes) -> None:
    answer = caller.post("/v1/runs/unknown/cancel", content=body, headers={"Content-Type": "application/json"})
    assert_in_shape(answer)
    assert answer.status_code in {400, 404}


@given(words, st.sampled_from(["", "/chunks", "/cancel", "/runs"]), st.sampled_from(["GET", "POST"]))
@many
def test_any_path_is_found_or_refused(caller: Caller, word: str, tail: str, method: str) -> None:
    for place in ("/v1/runs/", "/v1/agents/", "/"):
        answer = caller.request(method, place + quote(word, safe="") + tail)
        assert_in_shape(answer)
        assert answer.status_code in {400, 404, 405}


@given(words | st.integers().map(str), words | st.integers(-1, 1001).map(str), words | st.floats(-1, 0.01).map(str))
@many
def test_any_query_of_a_log_is_answered_or_refused(caller: Caller, after: str, limit: str, wait: str) -> None:
    params: dict[str, Any] = {"after": after, "limit": limit, "wait": wait}
    for headers in ({}, STREAM):
        assert_in_shape(caller.get("/v1/runs/unknown/chunks", params=params, headers=headers))


@given(
    words | st.sampled_from(["queued", "failed"]),
    words | st.integers(-1, 201).map(str),
    words | st.from_regex(r"[0-9]{1,16}\.[0-9]{1,7}", fullmatch=True),
    words,
)
@many
def test_any_query_of_the_list_is_answered_or_refused(
    caller: Caller, status: str, limit: str, cursor: str, agent: str
) -> None:
    for params in ({"status": status}, {"limit": limit}, {"cursor": cursor}, {"agent": agent, "cursor": cursor}):
        assert_in_shape(caller.get("/v1/runs", params=params))
