"""Agents, tools, threads, messages and background tasks over Mastra's protocol, in plain HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from tests.caller import Body, Caller, said
from tests.deployment import Deployment, wait_for
from tests.mastra_caller import MastraCaller, assert_refused, blocks, new_id, text_of, types_of


@pytest.fixture(scope="module")
def mastra(deployment: Deployment) -> Iterator[MastraCaller]:
    """Calls the session's API server."""
    with MastraCaller(deployment.url) as found:
        yield found


def until(chunks: Iterator[Body], kind: str) -> list[Body]:
    """The chunks of an open stream up to one of a type."""
    found: list[Body] = []
    for chunk in chunks:
        found.append(chunk)
        if chunk["type"] == kind:
            return found
    raise AssertionError(f"the stream ended before {kind}")


def chunks_of(response: httpx.Response) -> Iterator[Body]:
    return (json.loads(block) for block in blocks(response))


def prompts_of(caller: Caller, run_id: str) -> list[str]:
    messages = caller.get(f"/v1/runs/{run_id}/messages").json()["messages"]
    return [message["content"] for message in messages if message["role"] == "user"]


def accepted(answer: httpx.Response) -> Body:
    assert answer.status_code == 200, answer.text
    body: Body = answer.json()
    assert body["accepted"] is True
    return body


def keep_repeats(redis_url: str) -> None:
    """Let requests be known again for as long as the test takes."""
    with Redis.from_url(redis_url) as redis:
        for name in redis.scan_iter("*:repeated:*"):
            redis.expire(name, 60)


def test_agents_are_told_with_their_tools(mastra: MastraCaller) -> None:
    agents = mastra.get("/agents").json()
    assert {"scripted", "gated", "busy"} <= set(agents)
    gated = agents["gated"]
    assert (gated["id"], gated["name"], gated["source"], gated["supportsMemory"]) == ("gated", "gated", "code", True)
    assert gated["tools"]["refund"]["requireApproval"] is True
    assert gated["tools"]["add"]["requireApproval"] is False
    schema = json.loads(gated["tools"]["refund"]["inputSchema"])["json"]
    assert schema["properties"]["amount"]["type"] == "integer"
    one = mastra.get("/agents/gated").json()
    assert one == {name: value for name, value in gated.items() if name != "id"}
    partial = mastra.get("/agents", params={"partial": "true"}).json()["gated"]["tools"]["refund"]
    assert partial == {"id": "refund", "description": "Give money back.", "requireApproval": True}
    assert mastra.get("/agents/gated/tools/refund").json() == gated["tools"]["refund"]
    assert_refused(mastra.get("/agents/nobody"), 404)
    assert_refused(mastra.get("/agents/gated/tools/none"), 404)


def test_a_tool_is_called_without_a_conversation(mastra: MastraCaller, caller: Caller) -> None:
    answer = mastra.ask("tools/add/execute", {"data": {"a": 1, "b": 2}})
    assert (answer.status_code, answer.json()) == (200, 3)
    assert "waited" in mastra.ask("tools/wait/execute", {"data": {"ms": 1}, "requestContext": {}}).json()
    assert "hunter2" not in assert_refused(mastra.ask("tools/explode/execute", {"data": {}}), 422)
    assert_refused(mastra.ask("tools/add/execute", {"data": {"a": "x"}}), 422)
    assert_refused(mastra.ask("tools/add/execute", {"data": [1, 2]}), 400, "data")
    assert_refused(mastra.ask("tools/add/execute", {"data": {}, "model": "m"}), 400, "model")
    assert_refused(mastra.ask("tools/none/execute", {"data": {}}), 404)
    for tool, args in (("refund", {"amount": 1}), ("paint", {})):
        assert_refused(mastra.ask(f"tools/{tool}/execute", {"data": args}, "gated"), 409)
    assert [call for call in caller.get("/v1/pending").json()["pending"] if call["toolCallId"] == "execute"] == []


def test_a_tool_whose_call_is_sent_again_by_the_client_is_called_once(
    mastra: MastraCaller, caller: Caller, deployment: Deployment
) -> None:
    body = {"data": {"ms": 300}, "requestContext": {"request": new_id()}}
    with Redis.from_url(deployment.redis_url) as redis, ThreadPoolExecutor(3) as threads:
        before = redis.zcard(f"{deployment.prefix}:tasks")
        answers = list(threads.map(lambda _: mastra.ask("tools/wait/execute", body), range(3)))
        assert redis.zcard(f"{deployment.prefix}:tasks") == before + 1
    assert [answer.json() for answer in answers] == ["waited 300 ms"] * 3
    calls = caller.get("/v1/background-tasks", params={"toolName": "wait"}).json()["tasks"]
    assert calls == [], "it is no background task of a run"


def test_runs_that_wait_are_listed_with_what_they_wait_for(mastra: MastraCaller) -> None:
    thread, resource = new_id(), new_id()
    memory = {"thread": thread, "resource": resource}
    run_id, _ = mastra.begin('calls refund {"amount": 7};paint {}', "gated", memory=memory)
    other, _ = mastra.begin('call refund {"amount": 8}', "gated")
    listed = mastra.get("/agents/gated/suspended-runs", params={"threadId": thread}).json()
    assert listed["total"] == 1
    [run] = listed["runs"]
    assert (run["runId"], run["status"], run["threadId"], run["resourceId"]) == (run_id, "suspended", thread, resource)
    calls = {call["toolName"]: call for call in run["toolCalls"]}
    assert calls["refund"]["requiresApproval"] is True
    assert calls["refund"]["args"] == {"amount": 7}
    assert calls["paint"]["requiresApproval"] is False
    assert calls["paint"]["suspendPayload"] == {"question": "Which colour?"}
    path = "/agents/gated/suspended-runs"
    every = mastra.get(path).json()
    assert {run_id, other} <= {each["runId"] for each in every["runs"]}
    page = mastra.get(path, params={"perPage": 1, "page": 1}).json()
    assert (page["runs"], page["total"]) == (every["runs"][1:2], every["total"])
    assert mastra.get(path, params={"resourceId": resource}).json()["total"] == 1
    late = {"threadId": thread, "fromDate": "2100-01-01T00:00:00.000Z"}
    assert mastra.get(path, params=late).json() == {"runs": [], "total": 0}
    assert mastra.get(path, params={**late, "fromDate": run["suspendedAt"]}).json()["total"] == 1
    assert_refused(mastra.get(path, params={"perPage": 0}), 400, "perPage")


def test_a_call_of_a_thread_is_answered_and_the_same_answer_again_is_taken(mastra: MastraCaller) -> None:
    thread = new_id()
    run_id, told = mastra.begin('call refund {"amount": 7}', "gated", memory={"thread": thread, "resource": "r"})
    call = told[-1]["payload"]["toolCallId"]
    body = {"threadId": thread, "resourceId": "r", "toolCallId": call, "approved": True}
    for _ in range(2):
        assert accepted(mastra.ask("send-tool-approval", body, "gated"))["runId"] == run_id
    assert "refunded 7" in text_of(mastra.chunks("observe", {"runId": run_id}, "gated"))
    assert accepted(mastra.ask("send-tool-approval", body, "gated"))["toolCallId"] == call
    assert_refused(mastra.ask("send-tool-approval", {**body, "approved": False}, "gated"), 409)
    assert_refused(mastra.ask("send-tool-approval", {**body, "threadId": new_id()}, "gated"), 404)
    assert_refused(mastra.ask("send-tool-approval", {**body, "resourceId": "s"}, "gated"), 409)
    assert_refused(
        mastra.ask("send-tool-approval", {**body, "streamOptions": {"maxSteps": 3}}, "gated"), 400, "streamOptions"
    )


def test_the_run_of_a_thread_is_aborted(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    body = {"threadId": thread, "resourceId": "r"}
    assert mastra.ask("threads/abort", body).json() == {"aborted": False}
    run_id = caller.submit("slowly 200 " + "a " * 200, threadId=thread, resourceId="r")
    caller.wait_for_text(run_id, "a")
    assert mastra.ask("threads/abort", {**body, "expectedRunId": new_id()}).json() == {"aborted": False}
    assert_refused(mastra.ask("threads/abort", {**body, "resourceId": "s"}), 409)
    assert mastra.ask("threads/abort", {**body, "expectedRunId": run_id}).json() == {"aborted": True}
    finish = mastra.observed(run_id)[-1]
    assert (finish["type"], finish["payload"]["stepResult"]["reason"]) == ("finish", "abort")
    assert mastra.ask("threads/abort", body).json() == {"aborted": False}


def test_who_follows_a_thread_is_told_all_chunks_of_all_its_runs_from_then_on(
    mastra: MastraCaller, caller: Caller
) -> None:
    thread = new_id()
    body = {"threadId": thread, "resourceId": "r"}
    with mastra.open("threads/subscribe", body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = chunks_of(response)
        runs = []
        for prompt in ("say one", 'call add {"a": 1, "b": 2}'):
            run_id, own = mastra.begin(prompt, memory={"thread": thread, "resource": "r"})
            runs.append(run_id)
            assert [next(seen) for _ in own] == own
        other = caller.submit("say nothing of this", threadId=new_id(), resourceId="r")
        caller.ended(other)
        slow = caller.submit("slowly 100 a b c d e f g h", threadId=thread, resourceId="r")
        behind = caller.submit("say last", threadId=thread, resourceId="r")
        told = until(seen, "finish") + until(seen, "finish")
        assert [chunk["runId"] for chunk in told if chunk["type"] == "start"] == [slow, behind]
        assert [chunk for chunk in told if chunk["runId"] == slow] == mastra.observed(slow)
    with mastra.open("threads/subscribe", body) as response:
        seen = chunks_of(response)
        run_id = caller.submit("say again", threadId=thread, resourceId="r")
        assert {chunk["runId"] for chunk in until(seen, "finish")} == {run_id}, "what was said before is not told"
    assert_refused(mastra.ask("threads/subscribe", {**body, "resourceId": "s"}), 409)
    assert_refused(mastra.ask("threads/subscribe", body, "nobody"), 404)
    assert_refused(mastra.ask("threads/subscribe", {}), 400, "threadId")


def test_who_follows_a_thread_late_is_told_the_rest_of_the_run_that_goes_on(
    mastra: MastraCaller, caller: Caller
) -> None:
    thread = new_id()
    run_id = caller.submit("slowly 100 a b c d e f g h", threadId=thread)
    caller.wait_for_text(run_id, "b")
    with mastra.open("threads/subscribe", {"threadId": thread}) as response:
        told = until(chunks_of(response), "finish")
    whole = mastra.observed(run_id)
    assert 0 < len(told) < len(whole)
    assert told == whole[-len(told) :]


def test_a_message_is_told_to_the_run_that_goes_on_and_begins_one_where_none_does(
    mastra: MastraCaller, caller: Caller
) -> None:
    thread = new_id()
    place = {"threadId": thread, "resourceId": "r"}
    body = {"message": "slowly 100 a b c d e", **place}
    first = accepted(mastra.ask("send-message", body))["runId"]
    assert accepted(mastra.ask("send-message", body))["runId"] == first, "the client's own retry"
    caller.wait_for_text(first, "a")
    more = {"message": {"contents": [{"type": "text", "text": "say more"}]}, **place}
    assert accepted(mastra.ask("send-message", more))["runId"] == first
    assert accepted(mastra.ask("send-message", more))["runId"] == first, "the client's own retry"
    signal = {"id": new_id(), "type": "user", "contents": "say brief"}
    answer = accepted(mastra.ask("signals", {"signal": signal, "runId": first}))
    assert answer["signal"] == signal
    assert caller.ended(first)["status"] == "completed"
    assert prompts_of(caller, first) == [
        "slowly 100 a b c d e", "say more", "say brief",
    ]  # fmt: skip
    told = [chunk["payload"]["content"] for chunk in mastra.observed(first) if chunk["type"] == "user-message"]
    assert told == ["say more", "say brief"]
    assert_refused(mastra.ask("signals", {"signal": {**signal, "id": new_id()}, "runId": first}), 409)


def test_a_message_is_queued_behind_the_run_that_goes_on(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    first = caller.submit("slowly 100 a b c d e f", threadId=thread, resourceId="r")
    body = {"message": "say next", "threadId": thread, "resourceId": "r"}
    second = accepted(mastra.ask("queue-message", body))["runId"]
    assert accepted(mastra.ask("queue-message", body))["runId"] == second, "the client's own retry"
    assert second != first
    third = accepted(mastra.ask("queue-message", {"message": "say third", "runId": first}))["runId"]
    assert caller.ended(second)["startedAt"] >= caller.ended(first)["finishedAt"]
    assert said(caller.log(second)) == "next "
    assert caller.ended(third)["threadId"] == thread
    alone = caller.submit("say alone")
    assert_refused(mastra.ask("queue-message", {"message": "say more", "runId": alone}), 400, "runId")


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("send-message", {"message": "m"}, "threadId"),
        ("send-message", {"threadId": "t"}, "message"),
        ("send-message", {"message": "m", "threadId": "t", "model": "x"}, "model"),
        ("send-message", {"message": "m", "threadId": "t", "ifActive": {"behavior": "persist"}}, "ifActive.behavior"),
        ("send-message", {"message": "m", "threadId": "t", "ifIdle": {"behavior": "persist"}}, "ifIdle.behavior"),
        ("send-message", {"message": "m", "threadId": "t", "ifIdle": {"attributes": {"a": 1}}}, "ifIdle.attributes"),
        ("send-message", {"message": {"contents": "m", "metadata": {"a": 1}}, "threadId": "t"}, "message.metadata"),
        ("send-message", {"message": {}, "threadId": "t"}, "message.contents"),
        ("signals", {"signal": {"type": "state", "contents": "m"}, "threadId": "t"}, "signal.type"),
        (
            "signals",
            {"signal": {"type": "user", "contents": "m", "transient": True}, "threadId": "t"},
            "signal.transient",
        ),
        ("queue-message", {"message": "m", "threadId": "t", "ifActive": {"behavior": "persist"}}, "ifActive.behavior"),
    ],
)
def test_what_a_message_asks_for_and_cannot_have_is_refused_by_its_name(
    mastra: MastraCaller, route: str, body: Body, field: str
) -> None:
    assert_refused(mastra.ask(route, body), 400, field)


def test_a_message_may_be_discarded_where_a_run_goes_on_or_none_does(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    idle = {"message": "say no", "threadId": thread, "ifIdle": {"behavior": "discard"}}
    assert accepted(mastra.ask("send-message", idle))["runId"] == ""
    assert caller.get("/v1/runs", params={"threadId": thread}).json()["runs"] == []
    run_id = caller.submit("slowly 100 a b c", threadId=thread)
    busy = {"message": "say no", "threadId": thread, "ifActive": {"behavior": "discard"}}
    assert accepted(mastra.ask("send-message", busy))["runId"] == run_id
    caller.ended(run_id)
    assert prompts_of(caller, run_id) == ["slowly 100 a b c"]


def test_a_run_that_a_message_begins_has_the_terms_that_come_with_it(mastra: MastraCaller, caller: Caller) -> None:
    thread, run_id = new_id(), new_id()
    options = {"runId": run_id, "maxSteps": 1, "memory": {"thread": thread, "resource": "r"}}
    body = {"threadId": thread, "resourceId": "r", "ifIdle": {"behavior": "wake", "streamOptions": options}}
    answer = mastra.ask("send-message", {"message": 'call add {"a": 1, "b": 2}', **body})
    assert accepted(answer)["runId"] == run_id
    assert caller.ended(run_id)["reason"] == "max_steps"
    other = {**options, "memory": {"thread": new_id()}}
    wrong = {"message": "say a", **body, "ifIdle": {"streamOptions": other}}
    assert_refused(mastra.ask("send-message", wrong), 400, "ifIdle.streamOptions.memory")


def test_a_message_that_is_sent_again_after_its_run_has_ended_is_told_once(
    mastra: MastraCaller, caller: Caller, redis_url: str
) -> None:
    thread, wanted = new_id(), new_id()
    run_id = caller.submit("slowly 50 a b c d e f", threadId=thread)
    body = {"message": "say more", "threadId": thread}
    assert accepted(mastra.ask("send-message", body))["runId"] == run_id
    keep_repeats(redis_url)
    caller.ended(run_id)
    assert accepted(mastra.ask("send-message", body))["runId"] == run_id
    options = {"runId": wanted, "memory": {"thread": thread}}
    begins = {"message": "slowly 50 a b", "threadId": thread, "ifIdle": {"streamOptions": options}}
    for _ in range(2):
        assert accepted(mastra.ask("send-message", begins))["runId"] == wanted
    caller.ended(wanted)
    assert len(prompts_of(caller, run_id)) == 2
    assert "user-message" not in types_of(mastra.observed(wanted))
    assert len(caller.get("/v1/runs", params={"threadId": thread}).json()["runs"]) == 2


def test_an_abort_that_is_sent_again_leaves_the_run_that_has_come_next(
    mastra: MastraCaller, caller: Caller, redis_url: str
) -> None:
    thread = new_id()
    first = caller.submit("slowly 100 " + "a " * 100, threadId=thread)
    caller.wait_for_text(first, "a")
    second = caller.submit("slowly 100 a b c d e f", threadId=thread)
    assert mastra.ask("threads/abort", {"threadId": thread}).json() == {"aborted": True}
    keep_repeats(redis_url)
    caller.wait_for_text(second, "a")
    assert mastra.ask("threads/abort", {"threadId": thread}).json() == {"aborted": True}
    assert (caller.ended(first)["status"], caller.ended(second)["status"]) == ("cancelled", "completed")


def test_a_run_is_told_something_only_where_its_sender_takes_it_to_be(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    run_id = caller.submit("slowly 50 a b c", threadId=thread, resourceId="r")
    body = {"message": "say more", "runId": run_id}
    for route in ("send-message", "queue-message"):
        assert_refused(mastra.ask(route, {**body, "threadId": new_id()}), 400, "threadId")
        assert_refused(mastra.ask(route, {**body, "resourceId": "s"}), 409)
    accepted(mastra.ask("send-message", {**body, "threadId": thread, "resourceId": "r"}))


@pytest.mark.parametrize("value", ['"\\ud800"', "123456789012345678901234567890"])
def test_what_can_not_be_stored_is_refused_once_and_for_all(mastra: MastraCaller, value: str) -> None:
    for route, body in (
        ("send-message", '{"threadId": "t", "message": %s}'),
        (
            "queue-message",
            '{"threadId": "t", "message": "m", "ifIdle": {"streamOptions": {"requestContext": {"a": %s}}}}',
        ),
        ("signals", '{"threadId": "t", "signal": {"type": "user", "contents": "m", "createdAt": %s}}'),
        ("tools/add/execute", '{"data": {"a": %s, "b": 1}}'),
        ("threads/abort", '{"threadId": "t", "resourceId": %s}'),
        ("resume-stream", '{"runId": "none", "resumeData": %s}'),
        ("stream", '{"messages": "m", "requestContext": {"a": %s}}'),
    ):
        answer = mastra.post(
            f"/agents/scripted/{route}", content=body % value, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code < 500, (route, answer.text)
        assert route in {"threads/abort", "resume-stream"} or answer.status_code == 400, (route, answer.text)


def test_background_tasks_are_listed_looked_at_and_followed(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    with mastra.stream("GET", "/background-tasks/stream", params={"threadId": thread}) as response:
        seen = chunks_of(response)
        run_id, _ = mastra.begin(
            'calls nap {"ms": 50};stumble {}', "busy", memory={"thread": thread, "resource": "r"}, untilIdle=True
        )
        told = until(seen, "background-task-failed")
    assert {chunk["payload"]["runId"] for chunk in told} == {run_id}
    assert {"background-task-running", "background-task-completed"} <= set(types_of(told))
    listed = mastra.get("/background-tasks", params={"threadId": thread}).json()
    assert (len(listed["tasks"]), listed["total"]) == (2, 2)
    tasks: dict[str, Any] = {task["toolName"]: task for task in listed["tasks"]}
    nap = tasks["nap"]
    assert (nap["status"], nap["args"], nap["result"]) == ("completed", {"ms": 50}, "slept 50")
    assert (nap["agentId"], nap["threadId"], nap["resourceId"], nap["runId"]) == ("busy", thread, "r", run_id)
    assert nap["createdAt"] <= nap["startedAt"] <= nap["completedAt"]
    assert (tasks["stumble"]["status"], tasks["stumble"]["maxRetries"]) == ("failed", 1)
    assert "hunter2" not in json.dumps(tasks["stumble"])
    assert mastra.get(f"/background-tasks/{nap['id']}").json() == nap
    asked: dict[str, str | int] = {"runId": run_id, "orderDirection": "desc", "perPage": 1}
    page = mastra.get("/background-tasks", params=asked).json()
    assert (page["tasks"], page["total"]) == (listed["tasks"][1:], 2)
    for narrowed in ({"toolCallId": nap["toolCallId"]}, {"status": "completed"}, {"toolName": "nap"}):
        assert mastra.get("/background-tasks", params={"runId": run_id, **narrowed}).json()["tasks"] == [nap]
    late = {"runId": run_id, "dateFilterBy": "completedAt", "fromDate": "2100-01-01T00:00:00Z"}
    assert mastra.get("/background-tasks", params=late).json() == {"tasks": [], "total": 0}
    unknown = mastra.get("/background-tasks/nope")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "Background task not found"})
    assert_refused(mastra.get("/background-tasks", params={"orderBy": "suspendedAt"}), 400, "orderBy")


def test_results_of_the_callers_tools_go_on_in_a_thread_that_is_followed(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    tools = {"weather": {"id": "weather", "description": "d", "inputSchema": {"type": "object", "properties": {}}}}
    place = {"threadId": thread, "resourceId": "r"}
    with mastra.open("threads/subscribe", place) as response:
        seen = chunks_of(response)
        begun = {"message": "call weather {}", **place, "ifIdle": {"streamOptions": {"clientTools": tools}}}
        first = accepted(mastra.ask("send-message", begun))["runId"]
        finish = until(seen, "finish")[-1]
        assert (finish["runId"], finish["payload"]["stepResult"]["reason"]) == (first, "tool-calls")
        result = {"type": "tool-result", "toolCallId": "call-0", "toolName": "weather"}
        content = [
            {"type": "tool-call", "toolCallId": "call-0", "toolName": "weather", "input": {}},
            {**result, "output": {"type": "json", "value": "sunny"}},
        ]
        options = {"memory": {"thread": thread, "resource": "r"}, "clientTools": tools}
        told = {"messages": [{"role": "assistant", "content": content}], "streamOptions": options}
        body = {**place, "toolCallId": "call-0", "approved": True, **told}
        second = accepted(mastra.ask("send-tool-approval", body))["runId"]
        assert accepted(mastra.ask("send-tool-approval", body))["runId"] == second
        assert "sunny" in text_of(until(seen, "finish"))
    wait_for(lambda: caller.look(second)["status"] == "completed", what="the run to end")
