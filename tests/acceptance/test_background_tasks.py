"""Background tasks over plain HTTP: listed, looked at, followed, cancelled and resumed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

import httpx
from typer.testing import CliRunner

from durable import Client
from durable.chunks import BackgroundTaskRunning
from durable.cli import app
from durable.dev.redis_server import PrivateRedis
from tests.caller import STREAM, Body, Caller, assert_problem
from tests.deployment import Deployment, wait_for

TASKS = "/v1/background-tasks"


def tasks(caller: Caller, **params: Any) -> list[Body]:
    """All tasks that fit, page by page."""
    found: list[Body] = []
    cursor: dict[str, str] = {}
    while True:
        answer = caller.get(TASKS, params=params | cursor)
        assert answer.status_code == 200, answer.text
        found += answer.json()["tasks"]
        if answer.json()["next"] is None:
            return found
        cursor = {"cursor": answer.json()["next"]}


def task(caller: Caller, task_id: str) -> Body:
    """A task as it is now."""
    answer = caller.get(f"{TASKS}/{task_id}")
    assert answer.status_code == 200, answer.text
    view: Body = answer.json()
    return view


def begun(caller: Caller, prompt: str, count: int = 1, agent: str = "busy", **fields: Any) -> list[Body]:
    """The tasks of a run that was just submitted, in the order of its calls."""
    run_id = caller.submit(prompt, agent, **fields)
    wait_for(lambda: len(tasks(caller, run=run_id)) == count, what=f"the tasks of {run_id}")
    return sorted(tasks(caller, run=run_id), key=lambda view: str(view["toolCallId"]))


def until(caller: Caller, task_id: str, status: str) -> Body:
    """The task, once it is in this state."""
    wait_for(lambda: task(caller, task_id)["status"] == status, what=f"{task_id} to be {status}")
    return task(caller, task_id)


def test_a_task_tells_its_call_its_run_and_its_result(caller: Caller) -> None:
    [listed] = begun(caller, 'call nap {"ms": 1}')
    view = until(caller, listed["taskId"], "completed")
    assert (view["toolName"], view["toolCallId"], view["args"]) == ("nap", "call-0", {"ms": 1})
    assert (view["agent"], view["disposition"], view["result"]) == ("busy", "deferred", "slept 1")
    assert view["attempt"] >= 1
    assert view["createdAt"] <= view["startedAt"] <= view["completedAt"]
    assert caller.get(view["links"]["run"]).json()["runId"] == view["runId"] == listed["runId"]
    assert caller.get(view["links"]["chunks"]).json()["final"]
    assert caller.get(view["links"]["self"]).json() == view
    [listed] = tasks(caller, run=view["runId"])
    assert listed == {name: value for name, value in view.items() if name != "result"}


def test_a_task_that_took_too_long_and_one_that_failed_differ_in_status(caller: Caller) -> None:
    slow, failed = begun(caller, "calls dawdle; stumble", 2)
    slow = until(caller, slow["taskId"], "timed_out")
    assert slow["error"]["code"] == "tool_timeout"
    failed = until(caller, failed["taskId"], "failed")
    assert failed["error"]["code"] == "tool_failed"
    assert failed["retriesUsed"] == 1
    assert "hunter2" not in json.dumps(failed)
    for status, view in (("timed_out", slow), ("failed", failed)):
        [found] = tasks(caller, run=slow["runId"], status=status)
        assert found["taskId"] == view["taskId"]
        in_all = [found["taskId"] for found in tasks(caller, status=status, limit=200)]
        assert [view["taskId"] in in_all, {slow["taskId"], failed["taskId"]} <= set(in_all)] == [True, False]


def test_lists_are_narrowed_and_read_page_by_page_newest_first(caller: Caller) -> None:
    views = begun(caller, "calls " + ";".join(['nap {"ms": 1}'] * 4 + ["ask"]), 5)
    run_id = views[0]["runId"]
    for limit in (1, 2, 3):
        found = tasks(caller, run=run_id, limit=limit)
        assert sorted(view["taskId"] for view in found) == sorted(view["taskId"] for view in views)
        created = [view["createdAt"] for view in found]
        assert created == sorted(created, reverse=True)
    assert [view["toolName"] for view in tasks(caller, run=run_id, toolName="ask")] == ["ask"]
    assert tasks(caller, run=run_id, agent="scripted") == []
    assert len(tasks(caller, run=run_id, agent="busy")) == 5
    assert {view["taskId"] for view in views} <= {view["taskId"] for view in tasks(caller, agent="busy", limit=7)}
    assert tasks(caller, run="nobody") == []
    assert_problem(caller.get(TASKS, params={"cursor": "x"}), 400, "invalid_request")
    assert_problem(caller.get(TASKS, params={"status": "queued"}), 400, "invalid_request")


def test_a_task_is_not_there_for_who_asks_for_a_plain_run(caller: Caller) -> None:
    run_id = caller.submit("say hello")
    for path in (run_id, "nobody"):
        assert_problem(caller.get(f"{TASKS}/{path}"), 404, "unknown_run")
        assert_problem(caller.post(f"{TASKS}/{path}/cancel"), 404, "unknown_run")
        assert_problem(caller.post(f"{TASKS}/{path}/resume", json={"data": 1}), 404, "unknown_run")
        assert_problem(caller.get(f"{TASKS}/stream", params={"task": path}), 404, "unknown_run")
    caller.ended(run_id)


def test_a_task_that_waits_is_resumed_and_the_same_answer_again_is_fine(caller: Caller) -> None:
    [view] = begun(caller, "call ask")
    path = f"{TASKS}/{view['taskId']}"
    view = until(caller, view["taskId"], "suspended")
    assert view["reason"] == "decision"
    [call] = view["pending"]
    assert (call["toolName"], call["payload"]) == ("ask", {"question": "Which colour?"})
    assert_problem(caller.post(f"{path}/resume", json={"data": {"colour": 1}}), 400, "invalid_request")
    for _ in range(2):
        answer = caller.post(f"{path}/resume", json={"data": {"colour": "red"}, "actor": "ada"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["taskId"] == view["taskId"]
    assert_problem(caller.post(f"{path}/resume", json={"data": {"colour": "blue"}}), 409, "already_decided")
    assert until(caller, view["taskId"], "completed")["result"] == "answered red"


def test_a_task_is_cancelled_whether_it_waits_or_is_executed_and_its_run_goes_on(caller: Caller) -> None:
    nap, ask = begun(caller, 'calls nap {"ms": 60000}; ask', 2, untilIdle=True)
    run_id = nap["runId"]
    until(caller, nap["taskId"], "running")
    until(caller, ask["taskId"], "suspended")
    for view in (ask, nap):
        answer = caller.post(f"{TASKS}/{view['taskId']}/cancel", json={"reason": "enough"})
        assert answer.status_code == 202, answer.text
        until(caller, view["taskId"], "cancelled")
        assert caller.post(f"{TASKS}/{view['taskId']}/cancel").status_code == 200
    assert caller.ended(run_id)["status"] == "completed"
    [done] = begun(caller, 'call nap {"ms": 0}')
    until(caller, done["taskId"], "completed")
    assert_problem(caller.post(f"{TASKS}/{done['taskId']}/cancel"), 409, "run_ended")


def test_a_task_says_that_it_waits_for_a_place(caller: Caller) -> None:
    views = begun(caller, 'calls alone {"ms": 60000}; alone {"ms": 60000}', 2)
    run_id = views[0]["runId"]

    def states() -> list[tuple[str, str | None]]:
        return sorted((view["status"], view.get("reason")) for view in tasks(caller, run=run_id))

    wait_for(lambda: states() == [("pending", "limit_reached"), ("running", None)], what="one to wait")
    for view in views:
        caller.post(f"{TASKS}/{view['taskId']}/cancel")
    for view in views:
        until(caller, view["taskId"], "cancelled")


@contextmanager
def following(caller: Caller, **params: str) -> Iterator[Callable[[], list[Body]]]:
    """Follow the feed in a thread; gives what has come so far."""
    heard: list[Body] = []
    connected = threading.Event()
    response: list[httpx.Response] = []

    def read() -> None:
        with (
            httpx.Client(base_url=caller.base_url, trust_env=False, timeout=30) as client,
            client.stream("GET", f"{TASKS}/stream", params=params, headers=STREAM) as stream,
        ):
            response.append(stream)
            try:
                for line in stream.iter_lines():
                    connected.set()
                    if line.startswith("data: "):
                        heard.append(json.loads(line.removeprefix("data: ")))
            except (httpx.ReadError, httpx.StreamClosed):
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert connected.wait(15)
    yield lambda: list(heard)
    heard.append({"type": "left", "payload": {}})


def of_task(heard: list[Body], task_id: str) -> list[str]:
    """What was told of a task."""
    return [chunk["type"] for chunk in heard if chunk["payload"].get("taskId") == task_id]


def test_the_feed_tells_what_is_executed_and_then_what_becomes_of_tasks(caller: Caller) -> None:
    [old] = begun(caller, 'call nap {"ms": 60000}')
    until(caller, old["taskId"], "running")
    with following(caller) as heard, following(caller, run=old["runId"]) as of_run:
        wait_for(lambda: of_task(heard(), old["taskId"]) == ["background-task-running"], what="the one under way")
        [new] = begun(caller, 'call nap {"ms": 1}')
        ends = ["background-task-running", "background-task-completed"]
        wait_for(lambda: of_task(heard(), new["taskId"]) == ends, what="the new one to end")
        caller.post(f"{TASKS}/{old['taskId']}/cancel")
        wait_for(lambda: "background-task-cancelled" in of_task(of_run(), old["taskId"]), what="the old one to end")
        assert of_task(of_run(), new["taskId"]) == []
        [first, *_] = [chunk for chunk in heard() if chunk["payload"].get("taskId") == old["taskId"]]
        assert (first["runId"], first["from"], first["payload"]["args"]) == (old["runId"], "AGENT", {"ms": 60_000})
        assert first["payload"]["startedAt"][:19] == task(caller, old["taskId"])["startedAt"][:19]


def test_the_feed_of_one_task_ends_with_it(caller: Caller) -> None:
    [view] = begun(caller, "call ask")
    path, params = f"{TASKS}/stream", {"task": view["taskId"]}
    until(caller, view["taskId"], "suspended")
    with caller.stream("GET", path, params=params) as stream:
        lines = stream.iter_lines()
        assert next(lines) == ": connected"
        caller.post(f"{TASKS}/{view['taskId']}/resume", json={"data": {"colour": "red"}})
        told = [json.loads(line.removeprefix("data: "))["type"] for line in lines if line.startswith("data: ")]
    assert told == ["background-task-resumed", "background-task-completed"]
    assert caller.get(path, params=params).status_code == 204


async def test_the_client_follows_the_tasks_of_a_run_and_one_task_to_its_end(caller: Caller) -> None:
    [view] = begun(caller, 'call nap {"ms": 60000}')
    task_id, run_id = view["taskId"], view["runId"]
    until(caller, task_id, "running")
    async with Client(str(caller.base_url)) as client, aclosing(client.follow_tasks(run_id=run_id)) as of_run:
        first = await anext(of_run)
        assert isinstance(first, BackgroundTaskRunning)
        assert (first.run_id, first.payload.task_id, first.payload.args) == (run_id, task_id, {"ms": 60_000})
        told = []
        async for chunk in client.follow_tasks(task_id=task_id):
            told.append(chunk.type)
            if len(told) == 1:
                await client.cancel_task(task_id)
        assert told == ["background-task-running", "background-task-cancelled"]
        assert (await anext(of_run)).type == "background-task-cancelled"
        assert [chunk async for chunk in client.follow_tasks(task_id=task_id)] == []


def waits_for_tasks(caller: Caller, run_id: str) -> bool:
    """Whether a run is suspended until its tasks end."""
    run = caller.look(run_id)
    return (run["status"], run.get("reason")) == ("suspended", "background")


def test_a_run_that_is_not_to_use_the_background_makes_all_calls_itself(caller: Caller) -> None:
    run = caller.result('call nap {"ms": 1}', "busy", background=False)
    assert run["output"].strip() == "The tool said slept 1"
    assert tasks(caller, run=run["runId"]) == []


def test_a_run_waits_for_its_tasks_as_long_as_its_submit_says(caller: Caller) -> None:
    run = caller.result('call nap {"ms": 60000}', "busy", untilIdle={"maxIdleMs": 50})
    assert run["output"].strip().startswith("The tool said Background task started.")
    kinds = [chunk["type"] for chunk in caller.log(run["runId"])]
    assert kinds.count("background-task-progress") == 1
    run = caller.result('call nap {"ms": 200}', "busy", untilIdle=True)
    assert run["output"].strip() == "Heard of a task"
    for wrong in ({"maxIdleMs": 0}, {"maxIdle": 1}, {}, 5, "yes"):
        answer = caller.post("/v1/agents/busy/runs", json={"prompt": "say hello", "untilIdle": wrong})
        assert_problem(answer, 400, "invalid_request")


def test_who_observes_a_run_can_have_it_wait_for_its_tasks(caller: Caller) -> None:
    run_id = caller.submit('calls nap {"ms": 60000}; check', "busy")
    wait_for(lambda: bool(caller.look(run_id).get("pending")), what="the call to wait")
    assert caller.get(f"/v1/runs/{run_id}/chunks", params={"untilIdle": "true"}).status_code == 200
    assert caller.post(f"/v1/runs/{run_id}/tool-calls/call-1/approve").status_code == 200
    wait_for(lambda: waits_for_tasks(caller, run_id), what="the run to wait for its task")
    [task_id] = [view["taskId"] for view in tasks(caller, run=run_id)]
    caller.post(f"{TASKS}/{task_id}/cancel")
    assert caller.ended(run_id)["output"].strip() == "Heard of a task"


def test_to_have_an_ended_run_wait_changes_nothing(caller: Caller) -> None:
    run = caller.result("say hello", "busy")
    assert caller.get(f"/v1/runs/{run['runId']}/chunks", params={"maxIdleMs": 5000}).json()["final"]
    assert caller.look(run["runId"]) == run


def test_who_answers_a_call_can_have_the_run_wait_for_its_tasks(caller: Caller) -> None:
    run_id = caller.submit('calls nap {"ms": 60000}; check', "busy")
    wait_for(lambda: bool(caller.look(run_id).get("pending")), what="the call to wait")
    answer = caller.post(f"/v1/runs/{run_id}/tool-calls/call-1/approve", json={"untilIdle": {"maxIdleMs": 30000}})
    assert answer.status_code == 200, answer.text
    wait_for(lambda: waits_for_tasks(caller, run_id), what="the run to wait for its task")
    [task_id] = [view["taskId"] for view in tasks(caller, run=run_id)]
    caller.post(f"{TASKS}/{task_id}/cancel")
    assert caller.ended(run_id)["output"].strip() == "Heard of a task"


def test_a_run_that_waits_for_its_tasks_waits_longer_when_somebody_wants_that(caller: Caller) -> None:
    run_id = caller.submit('call nap {"ms": 2500}', "busy", untilIdle={"maxIdleMs": 1500})
    wait_for(lambda: waits_for_tasks(caller, run_id), what="the run to wait for its task")
    caller.get(f"/v1/runs/{run_id}/chunks", params={"maxIdleMs": 60_000})
    assert caller.ended(run_id)["output"].strip() == "Heard of a task"


def asked(caller: Caller, run_id: str, *children: str) -> list[Body]:
    """The calls of these children that wait, as the run tells of them."""

    def waiting() -> list[Body]:
        return [call for call in caller.look(run_id).get("pending", []) if call.get("runId") in children]

    wait_for(lambda: len(waiting()) == len(children), what="the calls to wait")
    return waiting()


def test_a_call_of_a_task_waits_with_its_run_too_and_is_answered_there(caller: Caller) -> None:
    [view] = begun(caller, "call ask", untilIdle=True)
    [call] = asked(caller, view["runId"], view["taskId"])
    assert (call["toolCallId"], call["toolName"]) == ("call-0", "ask")
    assert call["links"]["run"] == f"/v1/runs/{view['taskId']}"
    assert call["links"]["resume"].startswith(f"/v1/runs/{view['taskId']}/tool-calls/")
    [in_inbox] = [
        each
        for each in caller.get("/v1/pending", params={"agent": "busy", "limit": 200}).json()["pending"]
        if each["runId"] == view["taskId"]
    ]
    assert in_inbox["questionId"] == call["questionId"]

    path = f"/v1/runs/{view['runId']}/tool-calls/call-0"
    assert_problem(caller.post(f"{path}/resume", json={"data": {"colour": 1}}), 400, "invalid_request")
    for _ in range(2):
        answer = caller.post(f"{path}/resume", json={"data": {"colour": "red"}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["runId"] == view["runId"]
    assert_problem(caller.post(f"{path}/decline"), 409, "already_decided")
    assert_problem(caller.post(f"/v1/runs/{view['runId']}/tool-calls/call-9/decline"), 404, "unknown_call")
    assert until(caller, view["taskId"], "completed")["result"] == "answered red"
    caller.ended(view["runId"])


def test_a_call_of_a_sub_agent_is_answered_at_the_run_and_one_that_is_not_clear_is_refused(caller: Caller) -> None:
    prompt = json.dumps({"prompt": "call check"})
    views = begun(caller, f"calls busy {prompt}; busy {prompt}", 2, agent="editor")
    run_id, children = views[0]["runId"], [view["taskId"] for view in views]
    asked(caller, run_id, *children)
    path = f"/v1/runs/{run_id}/tool-calls/call-0"
    details = assert_problem(caller.post(f"{path}/approve"), 409, "ambiguous_call")
    assert {each["runId"] for each in details["candidates"]} == set(children)
    assert {each["toolName"] for each in details["candidates"]} == {"check"}

    assert caller.post(f"/v1/runs/{children[0]}/tool-calls/call-0/approve").status_code == 200
    assert caller.post(f"{path}/approve").status_code == 200
    assert caller.ended(run_id)["output"].strip() == "The tool said The tool said checked and The tool said checked"
    assert [until(caller, child, "completed")["agent"] for child in children] == ["busy", "busy"]


def test_a_task_whose_call_was_approved_before_it_began_is_answered_at_the_run_when_it_waits(caller: Caller) -> None:
    run_id = caller.submit("call choose", "busy")
    path = f"/v1/runs/{run_id}/tool-calls/call-0"
    wait_for(lambda: bool(caller.look(run_id).get("pending")), what="the approval to be asked for")
    [approval] = caller.look(run_id)["pending"]
    assert "runId" not in approval
    assert caller.post(f"{path}/approve", json={"questionId": approval["questionId"]}).status_code == 200
    wait_for(lambda: bool(caller.look(run_id).get("pending")), what="the task to wait")
    [question] = caller.look(run_id)["pending"]
    # Named, it is the question of the run that is meant, and that has had its answer.
    late = caller.post(f"{path}/decline", json={"questionId": approval["questionId"]})
    assert_problem(late, 409, "already_decided")
    told = CliRunner().invoke(
        app, ["--url", str(caller.base_url), "resume", run_id, "call-0", "--data", '{"colour": "red"}']
    )
    assert told.exit_code == 0, told.output
    assert question["runId"] in told.output
    assert caller.ended(run_id)["output"].strip() == "The tool said chose red"


def command(caller: Caller, *args: str) -> str:
    """What the command line says."""
    told = CliRunner().invoke(app, ["--url", str(caller.base_url), *args])
    assert told.exit_code == 0, told.output
    return told.output


def test_the_command_line_lists_shows_resumes_and_cancels_tasks(caller: Caller) -> None:
    ask, nap = begun(caller, 'calls ask; nap {"ms": 60000}', 2, untilIdle=True)
    run_id, asks, naps = ask["runId"], ask["taskId"], nap["taskId"]
    until(caller, asks, "suspended")
    until(caller, naps, "running")
    listed = command(caller, "tasks", "--run", run_id)
    assert listed.index(naps) > 0
    assert "suspended (decision)" in listed
    assert "nap(ms=60000)" in listed
    assert asks not in command(caller, "tasks", "--run", run_id, "--status", "running")
    assert "ask waits (call call-0)" in command(caller, "tasks", "show", asks)
    assert f"task {asks} is resumed" in command(caller, "tasks", "resume", asks, "--data", '{"colour": "red"}')
    until(caller, asks, "completed")
    assert "answered red" in command(caller, "tasks", "show", asks)
    assert f"task {naps} is" in command(caller, "tasks", "cancel", naps)
    caller.ended(run_id)
    told = command(caller, "observe", run_id)
    for words in (
        f"ask in the background: task {asks}",
        "waits for 2 background tasks",
        f"ask in the background waits:  durable tasks show {asks}",
        "ask in the background has ended: answered red",
        "nap in the background was cancelled",
    ):
        assert words in told
    assert json.loads(command(caller, "tasks", "show", asks, "--json")) == task(caller, asks)


def test_a_task_waits_until_a_worker_reads_its_queue_and_says_so(own_redis: PrivateRedis) -> None:
    with Deployment(own_redis.url, env={"DURABLE_LEASE_SECONDS": "2", "DURABLE_HEARTBEAT_SECONDS": "0.5"}) as found:
        found.start_api()
        light = found.worker_service()
        found.start(replace(light, argv=(*light.argv, "--queues", f"{found.prefix}.busy")))
        with Caller(found.url) as caller:
            wait_for(lambda: caller.get("/readyz").json().get("workers") == 1, what="the worker")
            [view] = begun(caller, "call lift")
            task_id = view["taskId"]
            caller.ended(view["runId"])
            view = task(caller, task_id)
            assert (view["status"], view["reason"], view["queue"]) == ("pending", "no_worker", "durable.heavy")
            told = command(caller, "why", task_id)
            assert "no live worker serves the agent 'busy' and reads 'durable.heavy'" in told

            found.start(replace(light, name="heavy", argv=(*light.argv, "--queues", "durable.heavy")))
            assert until(caller, task_id, "completed")["result"] == "lifted"
            served = {view["name"]: view["workers"] for view in caller.get("/v1/agents").json()["agents"]}
            assert (served["busy"], served["scripted"]) == (1, 0)


def test_a_worker_reads_the_queues_that_its_tools_name(caller: Caller) -> None:
    [view] = begun(caller, "call lift")
    assert until(caller, view["taskId"], "completed")["result"] == "lifted"


def test_why_a_task_waits_for_a_place_is_said(caller: Caller) -> None:
    views = begun(caller, 'calls alone {"ms": 60000}; alone {"ms": 60000}', 2)

    def held() -> list[str]:
        return [
            view["taskId"] for view in tasks(caller, run=views[0]["runId"]) if view.get("reason") == "limit_reached"
        ]

    wait_for(lambda: len(held()) == 1, what="one to wait")
    assert caller.get(f"/v1/runs/{held()[0]}/diagnosis").json()["reason"] == "limit_reached"
    assert caller.get(f"/v1/runs/{held()[0]}").json()["reason"] == "limit_reached"
    for view in views:
        caller.post(f"{TASKS}/{view['taskId']}/cancel")
    for view in views:
        until(caller, view["taskId"], "cancelled")
