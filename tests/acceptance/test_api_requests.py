"""What a run may be asked, over HTTP: terms of its own, and calls that its caller makes."""

from __future__ import annotations

from typing import Any

import pytest

from durable import Client
from tests.acceptance.test_cli_end_to_end import durable
from tests.caller import Caller, assert_problem
from tests.deployment import Deployment, wait_for

RUNS = "/v1/agents/scripted/runs"
PAINT = {"name": "paint", "description": "Paints.", "parameters": {"type": "object"}}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_a_call_of_a_client_tool_waits_for_whoever_makes_it(caller: Caller) -> None:
    run_id = caller.submit('call paint {"color": "red"}', clientTools=[PAINT])
    wait_for(lambda: caller.look(run_id)["status"] == "suspended", what="the run to wait")
    [pending] = caller.look(run_id)["pending"]
    assert (pending["toolName"], pending["args"]) == ("paint", {"color": "red"})
    caller.post(f"/v1/runs/{run_id}/tool-calls/{pending['toolCallId']}/resume", json={"data": "a red wall"})
    assert caller.ended(run_id)["output"] == "The tool said a red wall "


def test_a_thread_goes_on_with_what_its_caller_has_done(caller: Caller) -> None:
    terms: dict[str, Any] = {"clientTools": [PAINT], "onClientTools": "end", "threadId": "asked-1"}
    first = caller.result('calls paint {}; add {"a": 1, "b": 2}', **terms)
    assert (first["status"], first["reason"]) == ("completed", "client_tools")
    assert caller.log(first["runId"])[-1]["payload"]["stepResult"]["reason"] == "tool-calls"
    result = {"part_kind": "tool-return", "tool_name": "paint", "content": "red", "tool_call_id": "call-0"}
    body = {"messages": [{"kind": "request", "parts": [result]}], **terms}
    second = caller.ended(caller.post(RUNS, json=body).json()["runId"])
    assert second["output"] == "The tool said red and 3 "
    told = caller.get("/v1/threads/asked-1/messages").json()["messages"]
    results = [(each["toolCallId"], each["result"]) for message in told for each in message.get("toolResults", [])]
    assert sorted(results) == [("call-0", "red"), ("call-1", 3)]


def test_a_run_returns_the_object_that_it_was_asked_for(caller: Caller) -> None:
    assert caller.result('call final_result {"city": "Basel"}', outputSchema=CITY)["output"] == {"city": "Basel"}


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"activeTools": ["add", "divide"]}, "activeTools"),
        ({"clientTools": [{**PAINT, "name": "add"}]}, "clientTools"),
        ({"outputSchema": {"type": "string"}}, "outputSchema"),
    ],
)
def test_what_can_not_be_done_is_refused_with_the_name_of_the_field(
    caller: Caller, asked: dict[str, Any], field: str
) -> None:
    answer = caller.post(RUNS, json={"prompt": "say one", **asked})
    assert_problem(answer, 400, "invalid_request")
    assert answer.json()["error"]["details"]["field"] == field


async def test_the_client_sends_all_of_it(deployment: Deployment) -> None:
    async with Client(deployment.url) as client:
        run = await client.submit(
            "scripted",
            'call final_result {"city": "Basel"}',
            instructions="Be brief.",
            active_tools=["add"],
            output_schema=CITY,
            output_mode="tool",
            client_tools=[PAINT],
            on_client_tools="suspend",
            client_tool_seconds=5,
        )
        assert await client.result(run.run_id) == {"city": "Basel"}


def test_the_command_line_asks_for_an_object_and_for_tools(caller: Caller) -> None:
    asked = ["--active-tool", "add", "--instructions", "Be brief.", "--output-schema", '{"type": "object"}']
    done = durable(caller, "run", "scripted", 'call final_result {"city": "Basel"}', *asked)
    assert done.returncode == 0, done.stderr
    assert "Basel" in done.stdout
    refused = durable(caller, "run", "scripted", "say one", "--active-tool", "divide")
    assert refused.returncode == 4
