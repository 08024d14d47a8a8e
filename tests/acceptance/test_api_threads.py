"""Threads as a caller of the API sees them."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable import Client
from tests.caller import Caller, assert_problem
from tests.deployment import Deployment

RUNS = "/v1/agents/scripted/runs"


def test_runs_of_a_thread_follow_each_other_and_are_listed(caller: Caller) -> None:
    slow = caller.post(RUNS, json={"prompt": "slowly 300 a b", "threadId": "api-1", "resourceId": "alice"}).json()
    body = {"prompt": "say two", "threadId": "api-1", "resourceId": "alice"}
    second = caller.post(RUNS, json=body).json()
    assert (second["status"], second["reason"], second["threadId"]) == ("queued", "thread_busy", "api-1")
    caller.ended(second["runId"])
    assert caller.ended(slow["runId"])["finishedAt"] <= caller.ended(second["runId"])["startedAt"]
    listed = caller.get("/v1/runs", params={"threadId": "api-1"}).json()["runs"]
    assert [run["runId"] for run in listed] == [second["runId"], slow["runId"]]
    assert caller.get("/v1/runs", params={"threadId": "api-none"}).json() == {"runs": [], "next": None}


def test_the_messages_of_a_thread_are_those_of_its_runs_with_lasting_ids(caller: Caller) -> None:
    runs = [caller.result(prompt, threadId="api-2")["runId"] for prompt in ("say one", 'call add {"a": 1, "b": 2}')]
    messages = caller.get("/v1/threads/api-2/messages").json()["messages"]
    told = [(message["role"], message["content"], message["runId"]) for message in messages]
    assert told == [
        ("user", "say one", runs[0]),
        ("assistant", "one ", runs[0]),
        ("user", 'call add {"a": 1, "b": 2}', runs[1]),
        ("assistant", "", runs[1]),
        ("tool", "", runs[1]),
        ("assistant", "The tool said 3 ", runs[1]),
    ]
    assert messages[3]["toolCalls"][0]["toolName"] == "add"
    ids = [message["id"] for message in messages]
    assert len(set(ids)) == len(ids)
    caller.result("say three", threadId="api-2")
    again = caller.get("/v1/threads/api-2/messages").json()["messages"]
    assert [message["id"] for message in again][: len(ids)] == ids
    native = caller.get("/v1/threads/api-2/messages", params={"format": "pydantic-ai"}).json()["messages"]
    assert len(ModelMessagesTypeAdapter.validate_python(native)) == 8
    assert len(caller.get(f"/v1/runs/{runs[1]}/messages").json()["messages"]) == 6


def test_a_long_thread_is_read_in_pages(caller: Caller) -> None:
    messages = [{"role": "user" if n % 2 else "assistant", "content": f"m{n}"} for n in range(1, 120)]
    run = caller.post(
        RUNS, json={"messages": [*messages[:-1], {"role": "user", "content": "say end"}], "threadId": "api-5"}
    )
    assert caller.ended(run.json()["runId"])["status"] == "completed"
    path = "/v1/threads/api-5/messages"
    for form, order in ((form, order) for form in ("roles", "pydantic-ai") for order in ("oldest", "newest")):
        asked = {"format": form, "order": order}
        pages = [caller.get(path, params=asked).json()]
        assert len(pages[0]["messages"]) == 50, "not all of it, unless asked for"
        while pages[-1]["next"] is not None:
            pages.append(caller.get(path, params={**asked, "limit": 40, "cursor": pages[-1]["next"]}).json())
        found = [message for page in pages for message in page["messages"]]
        texts = [str(message["content"] if form == "roles" else message["parts"][0]["content"]) for message in found]
        assert len(texts) == 120
        assert texts[:: 1 if order == "oldest" else -1][:3] == ["m1", "m2", "m3"]
    for wrong in ({"limit": 0}, {"limit": 201}, {"order": "random"}, {"cursor": "none"}):
        assert_problem(caller.get(path, params=wrong), 400, "invalid_request")


async def test_the_client_reads_a_thread_in_pages(deployment: Deployment) -> None:
    async with Client(deployment.url) as client:
        for prompt in ("say one", "say two"):
            await client.result((await client.submit("scripted", prompt, thread_id="api-6")).run_id)
        first = await client.thread_messages("api-6", limit=3)
        rest = await client.thread_messages("api-6", limit=3, cursor=first.next)
        newest = await client.thread_messages("api-6", newest_first=True)
    assert (rest.next, newest.next) == (None, None)
    assert [message.content for message in first.messages + rest.messages] == ["say one", "one ", "say two", "two "]
    assert newest.messages == (first.messages + rest.messages)[::-1]


def test_what_a_thread_refuses(caller: Caller) -> None:
    caller.result("say one", threadId="api-3", resourceId="alice")
    for wrong in ({}, {"resourceId": "bob"}):
        answer = caller.post(RUNS, json={"prompt": "say mine", "threadId": "api-3", **wrong})
        assert_problem(answer, 409, "thread_conflict")
    path = "/v1/threads/api-3/messages"
    assert_problem(caller.get(path, params={"resourceId": "bob"}), 409, "thread_conflict")
    assert caller.get(path, params={"resourceId": "alice"}).status_code == 200
    assert_problem(caller.get("/v1/threads/api-none/messages"), 404, "unknown_thread")
    assert_problem(caller.get(path, params={"format": "xml"}), 400, "invalid_request")
    held = caller.post(RUNS, json={"prompt": 'call wait {"ms": 60000}', "threadId": "api-4"}).json()["runId"]
    answer = caller.post(RUNS, json={"prompt": "say two", "threadId": "api-4", "onBusy": "reject"})
    details = assert_problem(answer, 409, "thread_busy")
    assert details["runId"] == held
    caller.post(f"/v1/runs/{held}/cancel")
    assert caller.result("say two", threadId="api-4", onBusy="queue")["status"] == "completed"


@pytest.mark.parametrize("name", ["a%20b", "a%3Ab", "%7Ba%7D", "x" * 129, "%C3%A4", "a%0A"])
def test_a_name_that_is_no_thread_is_refused(caller: Caller, name: str) -> None:
    assert_problem(caller.get(f"/v1/threads/{name}/messages"), 400, "invalid_request")
    assert_problem(caller.get(f"/v1/runs?threadId={name}"), 400, "invalid_request")


@pytest.mark.parametrize(
    "fields",
    [
        {"threadId": "a b"},
        {"threadId": ""},
        {"threadId": 7},
        {"threadId": "t", "resourceId": "a/b"},
        {"resourceId": "alice"},
        {"onBusy": "queue"},
        {"threadId": "t", "onBusy": "jump"},
    ],
    ids=str,
)
def test_a_submit_that_says_garbage_of_a_thread_is_refused(caller: Caller, fields: dict[str, object]) -> None:
    assert_problem(caller.post(RUNS, json={"prompt": "say x", **fields}), 400, "invalid_request")
