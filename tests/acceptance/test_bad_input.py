"""What callers, tools and models do wrong: each has a clear error, and a run that began comes to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.caller import Body, Caller, assert_problem, of_type, said

RUNS = "/v1/agents/scripted/runs"
JSON = {"Content-Type": "application/json"}
LIMIT = 1_048_576


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        "null",
        "[]",
        '"zq9"',
        "1",
        "{",
        "",
        '{"prompt": ""}',
        '{"prompt": " \\n "}',
        '{"prompt": []}',
        '{"prompt": null}',
        '{"prompt": 1}',
        '{"prompt": {"zq9": 1}}',
        '{"prompt": ["say x", {"kind": "zq9"}]}',
        '{"prompt": "say zq9", "messages": [{"role": "user", "content": "say x"}]}',
        '{"messages": []}',
        '{"messages": {}}',
        '{"messages": ["zq9"]}',
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "zq9", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": ""}]}',
        '{"messages": [{"role": "user", "content": 7}]}',
        '{"messages": [{"role": "user", "content": "x", "zq9": 1}]}',
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "zq9"}]}',
        '{"messages": [{"kind": "zq9", "parts": []}]}',
        '{"messages": [{"kind": "response", "parts": [{"part_kind": "text", "content": "zq9"}]}]}',
        '{"messages": [{"kind": "request", "parts": []}, {"role": "user", "content": "zq9"}]}',
        '{"prompt": "say x", "runId": ""}',
        '{"prompt": "say x", "runId": "zq9/zq9"}',
        '{"prompt": "say x", "runId": "zq9\\u0000"}',
        '{"prompt": "say x", "runId": "zq9 "}',
        '{"prompt": "say x", "runId": "ä"}',
        '{"prompt": "say x", "runId": 1}',
        json.dumps({"prompt": "say x", "runId": "zq9" + "x" * 10_240}),
        '{"prompt": "say x", "metadata": []}',
        '{"prompt": "say x", "metadata": "zq9"}',
        json.dumps({"prompt": "say x", "metadata": {f"zq9{n}": n for n in range(51)}}),
        '{"prompt": "say x", "modelSettings": ["zq9"]}',
        '{"prompt": "say x", "usageLimits": {"request_limit": "zq9"}}',
        '{"prompt": "say x", "maxSteps": 0}',
        '{"prompt": "say x", "maxSteps": 1001}',
        '{"prompt": "say x", "maxSteps": "zq9"}',
        '{"prompt": "say x", "zq9": 1}',
        '{"prompt": "say \\ud800 zq9"}',
        '{"prompt": "say x", "metadata": {"zq9": "\\udfff"}}',
        '{"prompt": "say x", "metadata": {"\\ud800": 1}}',
        '{"prompt": "say x", "metadata": {"zq9": 18446744073709551616}}',
        f'{{"prompt": "say x", "metadata": {{"zq9": {"9" * 5000}}}}}',
        f'{{"prompt": "say x", "deps": {nested(900)}}}',
        nested(100_000),
    ],
)
def test_a_body_of_a_wrong_shape_is_refused_without_an_echo(caller: Caller, body: str) -> None:
    before = caller.get("/v1/runs?limit=1").json()["runs"]
    answer = caller.post(RUNS, content=body.encode(), headers=JSON)
    assert_problem(answer, 400, "invalid_request")
    assert "zq9" not in answer.text
    assert [run["runId"] for run in caller.get("/v1/runs?limit=1").json()["runs"]] == [run["runId"] for run in before]


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_has_a_length(caller: Caller, key: str) -> None:
    answer = caller.post(RUNS, json={"prompt": "say x"}, headers={"Idempotency-Key": key})
    assert_problem(answer, 400, "invalid_request")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_up_to_the_limit_is_taken_and_one_byte_more_is_too_large(caller: Caller, announced: bool) -> None:
    def post(size: int) -> Any:
        body = b'{"prompt": "say x", "deps": "%b"}' % (b"d" * (size - 31))
        assert len(body) == size
        content: bytes | Iterator[bytes] = body if announced else iter([body[: size // 2], body[size // 2 :]])
        return caller.post(RUNS, content=content, headers=JSON)

    accepted = post(LIMIT)
    assert accepted.status_code == 202
    assert_problem(post(LIMIT + 1), 413, "request_too_large")
    caller.ended(accepted.json()["runId"])


def test_other_media_types_are_refused(caller: Caller) -> None:
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = caller.post(RUNS, content=b'{"prompt": "say zq9"}', headers={"Content-Type": media})
        assert_problem(answer, 400, "invalid_request")
        assert "zq9" not in answer.text


def failed(caller: Caller, prompt: str, code: str) -> tuple[Body, list[Body]]:
    """A run that fails, and its log, which has to end with the failure."""
    run = caller.result(prompt)
    assert (run["status"], run["error"]["code"]) == ("failed", code)
    assert "output" not in run
    chunks = caller.log(run["runId"])
    assert [chunk["type"] for chunk in chunks[-2:]] == ["error", "finish"]
    assert chunks[-2]["payload"]["error"] == run["error"]
    assert chunks[-1]["payload"]["stepResult"]["reason"] == "error"
    assert [chunk["seq"] for chunk in chunks if chunk.get("final")] == [run["lastSeq"]]
    return run, chunks


class TestTools:
    """Tools that raise, and values that can't be recorded."""

    @pytest.mark.parametrize(
        ("tool", "code"),
        [("explode", "tool_failed"), ("opaque", "tool_result_invalid"), ("huge", "tool_result_invalid")],
    )
    def test_a_tool_without_a_value_fails_the_run_and_says_which(self, caller: Caller, tool: str, code: str) -> None:
        run, chunks = failed(caller, f"call {tool}", code)
        [outcome] = of_type(chunks, "tool-error")
        assert (outcome["toolCallId"], outcome["toolName"], outcome["error"]["code"]) == ("call-0", tool, code)
        assert tool in run["error"]["message"]
        assert sum(len(json.dumps(chunk)) for chunk in chunks) < 20_000

    @pytest.mark.parametrize("tool", ["explode", "opaque"])
    def test_a_forgiving_agent_tells_its_model_and_goes_on(self, caller: Caller, tool: str) -> None:
        run = caller.result(f"call {tool}", agent="forgiving")
        assert run["status"] == "completed"
        chunks = caller.log(run["runId"])
        assert len(of_type(chunks, "tool-error")) == 1
        assert len(of_type(chunks, "step-start")) == 2
        assert tool in run["output"], "the model was told which tool failed"

    def test_calls_beside_one_that_fails_keep_their_results(self, caller: Caller) -> None:
        run = caller.result('calls explode; add {"a": 1, "b": 2}', agent="forgiving")
        chunks = caller.log(run["runId"])
        assert [found["toolCallId"] for found in of_type(chunks, "tool-error")] == ["call-0"]
        assert [(found["toolCallId"], found["result"]) for found in of_type(chunks, "tool-result")] == [("call-1", 3)]

    def test_the_outcome_of_a_call_shows_what_the_model_asked_for(self, caller: Caller) -> None:
        _, chunks = failed(caller, "call explode", "tool_failed")
        [call], [outcome] = of_type(chunks, "tool-call"), of_type(chunks, "tool-error")
        assert outcome.get("args", {}) == call["args"] == {}

    def test_a_call_of_no_tool_or_with_wrong_arguments_comes_to_an_end(self, caller: Caller) -> None:
        for prompt in ("call nothing", 'call add {"a": "x"}', "call add {broken"):
            run = caller.result(prompt)
            assert run["status"] in {"completed", "failed"}
            caller.log(run["runId"])


class TestModels:
    """Models that fail."""

    def test_a_model_that_fails_at_once_fails_the_run(self, caller: Caller) -> None:
        _, chunks = failed(caller, "fail", "model_error")
        assert said(chunks) == ""

    def test_what_a_model_said_before_it_failed_stays(self, caller: Caller) -> None:
        _, chunks = failed(caller, "break these words stay", "model_error")
        assert said(chunks) == "these words stay "
        assert not of_type(chunks, "step-finish")
