"""Runs over Mastra's protocol, in plain HTTP: begun, followed, answered and waited for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from httpx import Response

from tests.caller import Body, Caller
from tests.deployment import Deployment, wait_for
from tests.mastra_caller import DONE, MastraCaller, assert_refused, blocks, new_id, text_of, types_of


@pytest.fixture(scope="module")
def mastra(deployment: Deployment) -> Iterator[MastraCaller]:
    """Calls the session's API server."""
    with MastraCaller(deployment.url) as found:
        yield found


def without_place(chunks: list[Body]) -> list[Body]:
    """Chunks as this door tells them."""
    return [
        {name: value for name, value in chunk.items() if name not in {"seq", "attempt", "final"}} for chunk in chunks
    ]


def chunks_of(response: Response) -> Iterator[Any]:
    """The chunks of a stream as they come, and the mark of its end."""
    for block in blocks(response):
        yield block if block == DONE else json.loads(block)


def test_a_stream_tells_the_runs_log_chunk_for_chunk_and_observe_tells_the_same(
    mastra: MastraCaller, caller: Caller
) -> None:
    run_id, streamed = mastra.begin([{"role": "user", "content": 'call add {"a": 1, "b": 2}'}])

    assert types_of(streamed)[0] == "start"
    assert types_of(streamed)[-1] == "finish"
    assert text_of(streamed).strip() == "The tool said 3"
    assert streamed == without_place(caller.log(run_id))
    assert all(set(chunk) == {"type", "runId", "from", "payload"} for chunk in streamed)
    assert mastra.observed(run_id) == streamed
    for offset in (1, len(streamed) - 1, len(streamed), len(streamed) + 5):
        assert mastra.observed(run_id, offset=offset) == streamed[offset:]


def test_the_same_request_again_attaches_to_its_run_and_another_one_is_refused(
    mastra: MastraCaller, caller: Caller
) -> None:
    run_id, streamed = mastra.begin("say hello")
    body = {"messages": "say hello", "runId": run_id}
    assert mastra.chunks("stream", body) == streamed
    assert mastra.ask("generate", body).json()["text"].strip() == "hello"
    assert caller.look(run_id)["attempt"] == 1

    assert_refused(mastra.ask("stream", body | {"messages": "say goodbye"}), 409)
    assert_refused(mastra.ask("stream", body | {"maxSteps": 3}), 409)


def test_a_run_goes_on_without_its_reader_and_can_be_followed_from_where_the_reader_left(
    mastra: MastraCaller, caller: Caller
) -> None:
    run_id, words = new_id(), " ".join(f"w{n}" for n in range(30))
    with mastra.open("stream", {"messages": f"slowly 30 {words}", "runId": run_id}) as response:
        seen = [block for block, _ in zip(chunks_of(response), range(5), strict=False)]
    rest = mastra.observed(run_id, offset=len(seen))

    assert [*seen, *rest] == without_place(caller.log(run_id))
    assert text_of([*seen, *rest]).split() == words.split()


def test_what_is_unknown_is_not_found_at_once(mastra: MastraCaller) -> None:
    run_id, _ = mastra.begin("say hello")
    for route in ("observe", "recover"):
        assert_refused(mastra.ask(route, {"runId": new_id()}), 404)
        assert_refused(mastra.ask(route, {"runId": run_id}, "gated"), 404)
        assert_refused(mastra.ask(route, {}), 400, "runId")
    assert_refused(mastra.ask("stream", {"messages": "say hello"}, "nobody"), 404)
    for verb in ("approve", "decline"):
        for form in ("", "-generate"):
            route = f"{verb}-tool-call{form}"
            assert_refused(mastra.ask(route, {"runId": new_id(), "toolCallId": "call-0"}), 404)
            assert_refused(mastra.ask(route, {"runId": run_id, "toolCallId": "call-0"}), 404)
            assert_refused(mastra.ask(route, {"runId": run_id}), 400, "toolCallId")
    assert_refused(mastra.ask("resume-stream", {"runId": new_id(), "resumeData": {}}), 404)
    assert_refused(mastra.ask("resume-stream", {"runId": run_id}), 400, "resumeData")
    for route in ("network", "approve-network-tool-call", "generate-legacy", "stream-legacy", "stream/vnext"):
        assert_refused(mastra.ask(route, {"messages": "say hello"}), 404)
    assert_refused(mastra.get("/workflows"), 404)


def test_a_stream_ends_where_the_run_waits_and_an_approval_tells_the_rest(mastra: MastraCaller, caller: Caller) -> None:
    run_id, first = mastra.begin('call refund {"amount": 5}', "gated")
    assert types_of(first)[-2:] == ["tool-call", "tool-call-approval"]

    decision = {"runId": run_id, "toolCallId": "call-0"}
    rest = mastra.chunks("approve-tool-call", decision, "gated")
    assert types_of(rest)[:2] == ["tool-call-decided", "tool-result"]
    assert text_of(rest).strip() == "The tool said refunded 5"
    assert [*first, *rest] == without_place(caller.log(run_id))
    assert mastra.observed(run_id, "gated") == [*first, *rest]

    assert mastra.chunks("approve-tool-call", decision, "gated") == rest
    assert_refused(mastra.ask("decline-tool-call", decision, "gated"), 409)
    assert mastra.chunks("stream", {"messages": 'call refund {"amount": 5}', "runId": run_id}, "gated") == [
        *first,
        *rest,
    ]


def test_a_declined_call_is_told_as_denied_and_not_made(mastra: MastraCaller) -> None:
    run_id, _ = mastra.begin('call refund {"amount": 5}', "gated")
    rest = mastra.chunks("decline-tool-call", {"runId": run_id, "toolCallId": "call-0", "reason": "too much"}, "gated")
    assert types_of(rest)[0] == "tool-output-denied"
    assert rest[0]["payload"]["approval"] == {"id": "call-0", "approved": False, "reason": "too much"}
    assert text_of(rest).strip() == "The tool said too much"


def test_a_stream_goes_on_while_other_tools_of_the_step_still_run(mastra: MastraCaller) -> None:
    _, chunks = mastra.begin('calls refund {"amount": 5}; add {"a": 1, "b": 1}', "gated")
    assert {"tool-call-approval", "tool-result"} <= set(types_of(chunks))


def test_a_suspended_call_is_resumed_and_asked_again_where_the_data_does_not_do(mastra: MastraCaller) -> None:
    run_id, first = mastra.begin("call paint", "gated")
    assert first[-1]["type"] == "tool-call-suspended"
    assert first[-1]["payload"]["suspendPayload"] == {"question": "Which colour?"}

    again = mastra.chunks("resume-stream", {"runId": run_id, "resumeData": {"colour": "tartan"}}, "gated")
    assert (again[0]["type"], again[-1]["type"]) == ("tool-call-decided", "tool-call-suspended")
    # The client's own retry is no answer to what the call asks next.
    repeated = mastra.chunks("resume-stream", {"runId": run_id, "resumeData": {"colour": "tartan"}}, "gated")
    assert repeated == again
    body = {"runId": run_id, "resumeData": {"colour": "blue"}, "toolCallId": "call-0"}
    rest = mastra.chunks("resume-stream", body, "gated")
    assert text_of(rest).strip() == "The tool said painted blue"
    assert mastra.chunks("resume-stream", body, "gated") == rest
    assert mastra.chunks("resume-stream", {"runId": run_id, "resumeData": {"colour": "blue"}}, "gated") == rest
    assert mastra.observed(run_id, "gated") == [*first, *again, *rest]


def test_a_run_whose_task_waits_for_somebody_is_told_up_to_there(mastra: MastraCaller) -> None:
    run_id, first = mastra.begin("call choose", "busy")
    assert first[-1]["type"] == "tool-call-approval"
    approval = {"runId": run_id, "toolCallId": "call-0"}
    asked = mastra.chunks("approve-tool-call", approval, "busy")
    assert "background-task-suspended" in types_of(asked)
    whole = mastra.ask("approve-tool-call-generate", approval, "busy").json()
    assert (whole["finishReason"], whole["suspendPayload"]["toolCallId"]) == ("suspended", "call-0")
    body = {"runId": run_id, "resumeData": {"colour": "red"}}
    rest = mastra.chunks("resume-stream", body, "busy")
    assert text_of(rest).strip() == "The tool said chose red"
    # The answer is told in the log of the task; what comes of it is the same when it is sent again.
    assert mastra.chunks("resume-stream", body, "busy") == rest
    assert mastra.observed(run_id, "busy") == [*first, *asked, *rest]


def test_an_answer_says_which_call_it_is_for_when_several_wait(mastra: MastraCaller) -> None:
    run_id, _ = mastra.begin("calls paint; paint", "gated")
    body = {"runId": run_id, "resumeData": {"colour": "red"}}
    assert_refused(mastra.ask("resume-stream", body, "gated"), 409, "toolCallId")
    one = mastra.chunks("resume-stream", body | {"toolCallId": "call-0"}, "gated")
    assert "finish" not in types_of(one)
    rest = mastra.chunks("resume-stream", body, "gated")
    assert text_of(rest).strip() == "The tool said painted red and painted red"


def test_an_approval_may_be_given_as_the_data_that_its_schema_asks_for(mastra: MastraCaller) -> None:
    run_id, _ = mastra.begin('call refund {"amount": 5}', "gated")
    body = {"runId": run_id, "resumeData": {"ok": True}}
    assert_refused(mastra.ask("resume-stream", body, "gated"), 400, "resumeData")
    rest = mastra.chunks("resume-stream", body | {"resumeData": {"approved": True}}, "gated")
    assert text_of(rest).strip() == "The tool said refunded 5"


def test_observe_follows_a_run_across_its_suspensions(mastra: MastraCaller) -> None:
    run_id, first = mastra.begin('call refund {"amount": 5}', "gated")
    with mastra.open("observe", {"runId": run_id}, "gated") as response:
        reading = chunks_of(response)
        seen = [next(reading) for _ in first]
        assert mastra.ask("approve-tool-call-generate", {"runId": run_id, "toolCallId": "call-0"}, "gated").is_success
        seen += list(reading)
    assert seen[-1] == DONE
    assert text_of([chunk for chunk in seen if isinstance(chunk, dict)]).strip() == "The tool said refunded 5"


def test_generate_tells_all_that_a_run_came_to(mastra: MastraCaller) -> None:
    run_id = new_id()
    full = mastra.ask("generate", {"messages": 'call add {"a": 1, "b": 2}', "runId": run_id}).json()
    assert (full["text"].strip(), full["finishReason"], full["runId"]) == ("The tool said 3", "stop", run_id)
    [call] = full["toolCalls"]
    assert (call["type"], call["payload"]["toolName"], call["payload"]["args"]) == (
        "tool-call",
        "add",
        {"a": 1, "b": 2},
    )
    [result] = full["toolResults"]
    assert result["payload"]["result"] == 3
    assert [step["finishReason"] for step in full["steps"]] == ["tool-calls", "stop"]
    assert full["usage"]["totalTokens"] == full["totalUsage"]["totalTokens"]


def test_generate_tells_what_a_run_waits_for_and_the_answer_what_it_came_to(mastra: MastraCaller) -> None:
    run_id = new_id()
    body = {"messages": 'call refund {"amount": 5}', "runId": run_id}
    full = mastra.ask("generate", body, "gated").json()
    assert full["finishReason"] == "suspended"
    assert full["suspendPayload"]["args"] == {"amount": 5}
    assert full["resumeSchema"] == full["suspendPayload"]["resumeSchema"]
    assert mastra.ask("generate", body, "gated").json() == full

    decision = {"runId": run_id, "toolCallId": "call-0"}
    for _ in range(2):
        answer = mastra.ask("approve-tool-call-generate", decision, "gated").json()
        assert (answer["text"].strip(), answer["finishReason"]) == ("The tool said refunded 5", "stop")


def test_a_run_that_failed_is_no_error_of_the_server(mastra: MastraCaller, caller: Caller) -> None:
    run_id = new_id()
    text = assert_refused(mastra.ask("generate", {"messages": "fail", "runId": run_id}), 422)
    assert "scripted" not in text
    assert caller.look(run_id)["status"] == "failed"
    chunks = mastra.observed(run_id)
    assert types_of(chunks)[-2:] == ["error", "finish"]
    assert chunks[-1]["payload"]["stepResult"]["reason"] == "error"


def test_a_cancelled_run_ends_its_stream_with_abort(mastra: MastraCaller, caller: Caller) -> None:
    run_id = new_id()
    with mastra.open("stream", {"messages": 'call wait {"ms": 60000}', "runId": run_id}) as response:
        reading = chunks_of(response)
        while next(reading)["type"] != "tool-output":
            pass
        assert caller.post(f"/v1/runs/{run_id}/cancel").status_code == 202
        rest = list(reading)
    assert rest[-1] == DONE
    assert (rest[-2]["type"], rest[-2]["payload"]["stepResult"]["reason"]) == ("finish", "abort")


def test_until_idle_goes_on_when_a_background_task_ends(mastra: MastraCaller) -> None:
    run_id = new_id()
    chunks = mastra.chunks("stream-until-idle", {"messages": 'call nap {"ms": 50}', "runId": run_id}, "busy")
    assert types_of(chunks).count("finish") == 2
    assert "background-task-completed" in types_of(chunks)
    assert text_of(chunks).strip().endswith("Heard of a task")
    _, turn = mastra.begin('call nap {"ms": 50}', "busy", untilIdle={"maxIdleMs": 60_000})
    assert types_of(turn).count("finish") == 2


def test_messages_of_each_form_reach_the_model(mastra: MastraCaller, caller: Caller) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "parts": [{"type": "text", "text": "say one"}], "id": "u1"},
        {"role": "assistant", "parts": [{"type": "step-start"}, {"type": "text", "text": "one"}], "id": "a1"},
        {"role": "user", "content": [{"type": "text", "text": "say two"}]},
    ]
    run_id, chunks = mastra.begin(said, context=[{"role": "user", "content": "Earlier."}], system="Speak English.")
    assert text_of(chunks).strip() == "two"
    told = caller.get(f"/v1/runs/{run_id}/messages").json()["messages"]
    assert [message["role"] for message in told if message["role"] != "system"] == [
        "user", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_a_run_of_a_thread_goes_on_with_it(mastra: MastraCaller, caller: Caller) -> None:
    thread = new_id()
    for memory in ({"thread": thread, "resource": "ada"}, {"thread": {"id": thread}, "resource": "ada"}):
        run_id, _ = mastra.begin("say hello", memory=memory)
        assert caller.look(run_id)["threadId"] == thread
    messages = caller.get(f"/v1/threads/{thread}/messages").json()["messages"]
    assert len(messages) == 4
    assert_refused(mastra.ask("stream", {"messages": "say no", "memory": {"thread": thread, "resource": "bob"}}), 409)


LOOK = {"look": {"description": "Look.", "inputSchema": {"type": "object"}}}


def result_of(chunks: list[Body], result: Any) -> Body:
    """The message that tells the result of the calls of a client's tool, as the client makes it."""
    calls = [
        chunk["payload"] for chunk in chunks if chunk["type"] == "tool-call" and chunk["payload"]["toolName"] == "look"
    ]
    return {"role": "tool", "content": [{"type": "tool-result", **call, "result": result} for call in calls]}


def test_a_clients_tools_are_turns_of_one_run_when_it_has_an_id(mastra: MastraCaller, caller: Caller) -> None:
    said = [{"role": "user", "content": 'calls look {"at": 1}; look {"at": 2}; add {"a": 1, "b": 1}'}]
    run_id, first = mastra.begin(said, clientTools=LOOK)
    assert types_of(first)[-1] == "finish"
    assert first[-1]["payload"]["stepResult"]["reason"] == "tool-calls"
    assert caller.look(run_id)["status"] == "suspended"

    body = {"messages": [*said, result_of(first, {"saw": "x"})], "runId": run_id, "clientTools": LOOK}
    rest = mastra.chunks("stream", body)
    assert rest[0]["type"] == "step-start"
    assert text_of(rest).strip() == 'The tool said {"saw":"x"} and {"saw":"x"} and 2'
    assert mastra.chunks("stream", body) == rest
    # What the client has told itself of the results has its place in the log, so that its count of chunks holds.
    told = {"toolName": "look", "result": {"saw": "x"}, "isError": False, "providerExecuted": False}
    own = [
        {"type": "tool-result", "runId": run_id, "from": "AGENT", "payload": {"toolCallId": call, **told}}
        for call in ("call-0", "call-1")
    ]
    assert [*first, *own, *rest] == without_place(caller.log(run_id)) == mastra.observed(run_id)
    assert types_of([*first, *rest]).count("finish") == 2

    assert_refused(mastra.ask("stream", body | {"messages": [result_of(first, {"saw": "y"})]}), 409)
    assert_refused(mastra.ask("stream", body | {"maxSteps": 2}), 400, "maxSteps")
    other = result_of([{"type": "tool-call", "payload": {"toolName": "look", "toolCallId": "other"}}], 1)
    assert_refused(mastra.ask("stream", body | {"messages": [other]}), 409)


def test_a_client_that_answers_one_call_at_a_time_is_told_which_are_left(mastra: MastraCaller) -> None:
    body: Body = {"messages": 'calls look {"at": 1}; look {"at": 2}', "runId": new_id(), "clientTools": LOOK}
    full = mastra.ask("generate", body).json()
    for left in (2, 1):
        assert (full["finishReason"], len(full["toolCalls"])) == ("tool-calls", left)
        call = full["toolCalls"][0]
        message = result_of([call], "seen")
        full = mastra.ask("generate", body | {"messages": [*full["response"]["messages"], message]}).json()
    assert (full["finishReason"], full["text"].strip()) == ("stop", "The tool said seen and seen")


@pytest.mark.parametrize("threaded", [False, True])
def test_a_clients_tools_end_a_run_without_an_id_and_the_next_one_goes_on(mastra: MastraCaller, threaded: bool) -> None:
    memory: Body = {"memory": {"thread": new_id()}} if threaded else {}
    said = [{"role": "user", "content": 'call look {"at": 1}'}]
    first = mastra.chunks("stream", {"messages": said, "clientTools": LOOK, **memory})
    assert first[-1]["payload"]["stepResult"]["reason"] == "tool-calls"

    call = next(chunk["payload"] for chunk in first if chunk["type"] == "tool-call")
    invocation = {"state": "call", "toolCallId": call["toolCallId"], "toolName": "look", "args": call["args"]}
    ours = {"role": "assistant", "parts": [{"type": "tool-invocation", "toolInvocation": invocation}]}
    messages = [result_of(first, "seen")] if threaded else [*said, ours, result_of(first, "seen")]
    rest = mastra.chunks("stream", {"messages": messages, "clientTools": LOOK, **memory})
    assert text_of(rest).strip() == "The tool said seen"
    assert rest[0]["runId"] != first[0]["runId"]


@pytest.mark.parametrize("threaded", [False, True])
def test_generate_leaves_a_clients_tools_to_it(mastra: MastraCaller, threaded: bool) -> None:
    body: Body = {"clientTools": LOOK} | ({"memory": {"thread": new_id()}} if threaded else {})
    said = [{"role": "user", "content": 'calls add {"a": 1, "b": 1}; look {"at": 1}'}]
    full = mastra.ask("generate", body | {"messages": said}).json()
    assert full["finishReason"] == "tool-calls"
    [call] = full["toolCalls"]
    answered = [*full["response"]["messages"], result_of([call], "seen")]
    full = mastra.ask("generate", body | {"messages": answered if threaded else [*said, *answered]}).json()
    assert full["text"].strip() in {"The tool said seen", "The tool said 2 and seen"}


def test_a_run_has_the_instructions_tools_and_output_that_are_asked_for(mastra: MastraCaller) -> None:
    assert_refused(mastra.ask("generate", {"messages": "say hello", "activeTools": ["nothing"]}), 400, "activeTools")
    _, chunks = mastra.begin("say hello", instructions="Be brief.", activeTools=["add"], toolChoice="none")
    assert text_of(chunks).strip() == "hello"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stopWhen": [{"x": 1}]}, ["stopWhen"]),
        ({"model": "openai/gpt"}, ["model"]),
        ({"nonsense": 1, "scorers": {"a": 1}}, ["nonsense", "scorers"]),
        ({"memory": {"thread": "t", "options": {"lastMessages": 3}}}, ["memory.options"]),
        ({"memory": {"resource": "r"}}, ["memory.thread"]),
        ({"modelSettings": {"temprature": 1}}, ["modelSettings.temprature"]),
        ({"providerOptions": {"openai": {"x": 1}}}, ["providerOptions.openai.x"]),
        ({"providerOptions": {"acme": {"x": 1}}}, ["providerOptions.acme"]),
        ({"toolChoice": "sometimes"}, ["toolChoice"]),
        ({"structuredOutput": {"schema": {"type": "object"}, "model": "x"}}, ["structuredOutput.model"]),
        ({"structuredOutput": {"schema": {"type": "array"}}}, ["structuredOutput.schema"]),
        ({"clientTools": {"a": {"inputSchema": {"type": "object"}, "requireApproval": True}}},
         ["clientTools.a.requireApproval"]),
        ({"maxSteps": 0}, ["maxSteps"]),
        ({"maxSteps": "many"}, ["maxSteps"]),
        ({"maxIdleMs": -1}, ["maxIdleMs"]),
        ({"requestContext": []}, ["requestContext"]),
        ({"runId": 7}, ["runId"]),
        ({"messages": [{"role": "robot", "content": "x"}]}, ["messages.0.role"]),
        ({"messages": [{"role": "assistant", "content": "x"}]}, ["messages"]),
        ({"messages": []}, ["messages"]),
        ({"messages": 7}, ["messages"]),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, ["messages.0.content.0.type"]),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_its_name(mastra: MastraCaller, fields: Body, named: list[str]) -> None:
    assert_refused(mastra.ask("stream", {"messages": "say hello", **fields}), 400, *named)


def test_what_asks_for_nothing_is_no_matter(mastra: MastraCaller) -> None:
    nothing = {
        "stopWhen": [],
        "savePerStep": False,
        "scorers": {},
        "tracingOptions": {},
        "toolsets": {},
        "versions": {},
    }
    nothing |= {"requestContext": {}, "untilIdle": False, "providerOptions": {"acme": {}}}
    chunks = mastra.chunks("stream", {"messages": "say hello", **nothing})
    assert text_of(chunks).strip() == "hello"


def test_a_body_that_is_none_is_refused(mastra: MastraCaller) -> None:
    for content in (b"{", b"[]", b"7", b""):
        answer = mastra.post("/agents/scripted/stream", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert answer.json()["error"] == "Invalid request body"


def test_the_run_is_there_while_it_waits_for_a_worker(mastra: MastraCaller, caller: Caller) -> None:
    run_id = new_id()
    with mastra.open("stream", {"messages": "slowly 20 a b c d e f", "runId": run_id}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
    wait_for(lambda: caller.look(run_id)["status"] == "completed", what="the run to complete without its reader")
