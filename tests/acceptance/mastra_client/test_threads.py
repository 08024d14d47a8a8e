"""Threads as Mastra's client sees them: what is remembered, who listens, and messages to a run that is under way."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.mastra_client.conftest import Site
from tests.acceptance.mastra_client.driver import Call, ClientFailed, MastraClient, date, function_that, new_id
from tests.caller import Body

pytestmark = pytest.mark.timeout(180)

ALICE = "alice"
REFUND = 'call refund {"amount": 5}'


def whose(thread: str) -> dict[str, str]:
    """A thread of Alice, as most methods name it."""
    return {"threadId": thread, "resourceId": ALICE}


def in_thread(thread: str) -> dict[str, Any]:
    """The option that puts a run into a thread of Alice."""
    return {"memory": {"thread": thread, "resource": ALICE}}


def said_in(call: Call, run_id: str) -> str:
    """The text of one run among those of a thread."""
    return "".join(
        chunk["payload"]["text"] for chunk in call.chunks if chunk["type"] == "text-delta" and chunk["runId"] == run_id
    )


def ended(*run_ids: str) -> Callable[[Call], bool]:
    """Whether these runs have ended, by the last chunk of each."""
    return lambda call: {*run_ids} <= {chunk["runId"] for chunk in call.chunks if chunk["type"] == "finish"}


def test_a_thread_remembers_what_was_said(roaming: MastraClient) -> None:
    for memory in ({"thread": new_id(), "resource": ALICE}, {"thread": {"id": new_id()}, "resource": ALICE}):
        roaming.stream("say one", memory=memory)
        told = json.loads(roaming.stream("tell", memory=memory).text)
        assert told["prompts"] == ["say one", "tell"]


def test_runs_of_one_thread_come_one_after_the_other(roaming: MastraClient) -> None:
    thread = new_id()
    first = roaming.begin("slowly 20 one two three", **in_thread(thread)).until_said("one")
    second = roaming.stream("tell", **in_thread(thread))
    assert first.is_over
    assert json.loads(second.text)["prompts"] == ["slowly 20 one two three", "tell"]


def test_a_thread_whose_run_waits_takes_no_other_and_is_aborted(client: MastraClient) -> None:
    thread = new_id()
    first = client.stream(REFUND, **in_thread(thread))
    with pytest.raises(ClientFailed) as failed:
        client.stream("say x", **in_thread(thread))
    assert failed.value.status == 409
    assert client.call("abortThread", whose(thread)) == {"aborted": True}
    assert client.observe(first.run_id).reason == "abort"
    assert json.loads(client.stream("tell", **in_thread(thread)).text)["prompts"] == [REFUND, "tell"]


def test_a_thread_belongs_to_one_person(client: MastraClient) -> None:
    thread = new_id()
    run_id = client.stream(REFUND, **in_thread(thread)).run_id
    mallory = {"threadId": thread, "resourceId": "mallory"}
    requests: list[tuple[str, tuple[Any, ...]]] = [
        ("stream", ("say x", {"memory": {"thread": thread, "resource": "mallory"}})),
        ("subscribeToThread", (mallory,)),
        ("sendMessage", ({"message": "x", **mallory},)),
        ("queueMessage", ({"message": "x", **mallory},)),
        ("sendToolApproval", ({"toolCallId": "call-0", "approved": True, **mallory},)),
        ("abortThread", (mallory,)),
    ]
    for method, args in requests:
        with pytest.raises(ClientFailed) as failed:
            client.start(method, *args).done()
        assert (method, failed.value.status) == (method, 409)
    assert client.call("listSuspendedRuns", {"threadId": thread})["runs"][0]["runId"] == run_id


def test_a_subscriber_hears_every_run_of_a_thread_from_then_on(roaming: MastraClient) -> None:
    thread = new_id()
    with roaming.open("subscribeToThread", whose(thread)) as subscriber:
        first = roaming.stream("say one two", **in_thread(thread))
        second = roaming.stream('call add {"a": 1, "b": 2}', **in_thread(thread))
        subscriber.until(ended(first.run_id, second.run_id))
        assert subscriber.chunks == first.chunks + second.chunks
        assert not subscriber.is_over
    assert subscriber.done().complaints == []


def test_a_subscriber_that_comes_back_goes_on(client: MastraClient) -> None:
    thread = new_id()
    with client.open("subscribeToThread", whose(thread), reconnect={"delayMs": 10}) as subscriber:
        call = client.stream("say one", **in_thread(thread))
        subscriber.until(ended(call.run_id))


def test_a_subscriber_aborts_the_threads_run(client: MastraClient) -> None:
    thread = new_id()
    with client.open("subscribeToThread", whose(thread)) as subscriber:
        call = client.begin("slowly 30 " + "word " * 400, **in_thread(thread))
        subscriber.until_said("word word")
        subscriber.tell("abortThread")
        assert subscriber.until(lambda listening: listening.did).did == [True]
        assert call.done().reason == "abort"
        subscriber.until(ended(call.run_id))


def test_a_queued_message_is_a_run_of_its_own_behind_the_one_that_goes_on(roaming: MastraClient) -> None:
    thread = new_id()
    with roaming.open("subscribeToThread", whose(thread)) as subscriber:
        first = roaming.begin("slowly 30 one two three four", **in_thread(thread)).until_said("one")
        queued = roaming.call("queueMessage", {"message": "tell", **whose(thread)})
        assert queued["accepted"] is True
        assert queued["runId"] != first.run_id
        subscriber.until(ended(first.run_id, queued["runId"]))
        prompts = json.loads(said_in(subscriber, queued["runId"]))["prompts"]
        assert prompts == ["slowly 30 one two three four", "tell"]
        order = [chunk["runId"] for chunk in subscriber.chunks]
        assert order == sorted(order, key=[first.run_id, queued["runId"]].index)


@pytest.mark.parametrize(
    ("method", "message"),
    [("sendMessage", {"message": "tell"}), ("sendSignal", {"signal": {"type": "user", "contents": "tell"}})],
    ids=["message", "signal"],
)
def test_a_message_to_a_run_that_goes_on_is_told_to_the_model(
    client: MastraClient, site: Site, method: str, message: dict[str, Any]
) -> None:
    thread, anywhere = new_id(), client.at(*site.servers)
    call = anywhere.begin('call wait {"ms": 800}', **in_thread(thread)).until_type("tool-output")
    target = {"runId": call.run_id} if method == "sendMessage" else whose(thread)
    sent = anywhere.call(method, {**message, **target})
    assert (sent["accepted"], sent["runId"]) == (True, call.run_id)
    assert json.loads(call.done().text)["prompts"][-1] == "tell"


def test_a_message_to_an_idle_thread_begins_a_run(client: MastraClient) -> None:
    thread = new_id()
    with client.open("subscribeToThread", whose(thread)) as subscriber:
        sent = client.call("sendMessage", {"message": "say hello", **whose(thread)})
        subscriber.until(ended(sent["runId"]))
        assert said_in(subscriber, sent["runId"]) == "hello "


def test_a_message_to_a_run_that_nobody_knows_is_refused(client: MastraClient) -> None:
    with pytest.raises(ClientFailed) as failed:
        client.call("sendMessage", {"message": "say hello", "runId": new_id()})
    assert failed.value.status == 404


@pytest.mark.parametrize(("approved", "said"), [(True, "refunded 5"), (False, "The tool said")], ids=["yes", "no"])
def test_an_approval_by_thread_goes_on_for_its_subscribers(roaming: MastraClient, approved: bool, said: str) -> None:
    thread = new_id()
    with roaming.open("subscribeToThread", whose(thread)) as subscriber:
        first = roaming.stream(REFUND, **in_thread(thread))
        answer = {**whose(thread), "toolCallId": "call-0", "approved": approved}
        for _ in range(2):
            sent = roaming.call("sendToolApproval", answer)
            assert sent == {"accepted": True, "runId": first.run_id, "toolCallId": "call-0"}
        subscriber.until(ended(first.run_id))
        assert said in subscriber.text
        assert subscriber.types.count("tool-result") == approved
        assert subscriber.chunks == roaming.observe(first.run_id).chunks


def test_a_subscriber_with_tools_of_the_application_executes_them(client: MastraClient) -> None:
    thread = new_id()
    tool = {"id": "locate", "description": "Find a place.", "execute": function_that(returns="here")}
    options = {"clientTools": {"locate": {**tool, "inputSchema": {"type": "object", "properties": {}}}}}
    with client.open("subscribeToThread", whose(thread)) as subscriber:
        message = {"message": "call locate {}", **whose(thread), "ifIdle": {"streamOptions": options}}
        assert client.call("sendMessage", message)["accepted"] is True
        subscriber.until_said("The tool said here")
        assert subscriber.executed == [{}]


class TestSuspendedRuns:
    """The runs that wait for somebody."""

    def test_a_run_that_waits_is_listed_with_all_that_it_takes_to_answer_it(self, roaming: MastraClient) -> None:
        thread = new_id()
        before = datetime.now(UTC) - timedelta(seconds=5)
        first = roaming.stream(REFUND, **in_thread(thread))
        listed = roaming.call("listSuspendedRuns", {"threadId": thread})
        [run] = listed["runs"]
        assert listed["total"] == 1
        assert (run["runId"], run["status"], run["threadId"], run["resourceId"]) == (
            *(first.run_id, "suspended", thread),
            ALICE,
        )
        assert before < datetime.fromisoformat(run["suspendedAt"]) < datetime.now(UTC) + timedelta(seconds=5)
        [call] = run["toolCalls"]
        assert (call["toolCallId"], call["toolName"], call["args"]) == ("call-0", "refund", {"amount": 5})
        assert call["requiresApproval"] is True
        roaming.start("approveToolCall", {"runId": run["runId"], "toolCallId": call["toolCallId"]}).done()
        assert roaming.call("listSuspendedRuns", {"threadId": thread}) == {"runs": [], "total": 0}

    def test_a_tool_that_asks_is_told_from_an_approval(self, client: MastraClient) -> None:
        first = client.stream("call paint {}")
        [call] = self.of_run(client, first.run_id)["toolCalls"]
        assert (call["requiresApproval"], call["suspendPayload"]) == (False, {"question": "Which colour?"})

    def test_they_are_listed_in_pages_of_an_agent_a_person_and_a_time(self, client: MastraClient) -> None:
        person = new_id()
        memories = [{"memory": {"thread": new_id(), "resource": person}} for _ in range(3)]
        runs = {client.stream(REFUND, **memory).run_id for memory in memories}
        pages = [
            client.call("listSuspendedRuns", {"resourceId": person, "perPage": 2, "page": page}) for page in (0, 1)
        ]
        assert [(len(page["runs"]), page["total"]) for page in pages] == [(2, 3), (1, 3)]
        assert {run["runId"] for page in pages for run in page["runs"]} == runs
        hour = timedelta(hours=1)
        for bounds, count in (
            ({"fromDate": -hour, "toDate": hour}, 3),
            ({"fromDate": hour}, 0),
            ({"toDate": -hour}, 0),
        ):
            dates = {name: date(datetime.now(UTC) + offset) for name, offset in bounds.items()}
            assert client.call("listSuspendedRuns", {"resourceId": person, **dates})["total"] == count

    def of_run(self, client: MastraClient, run_id: str) -> Body:
        """The run as it is listed."""
        [run] = [run for run in client.call("listSuspendedRuns")["runs"] if run["runId"] == run_id]
        found: Body = run
        return found
