"""The client's stream of all background tasks, against a server that misbehaves on purpose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.responses import Response

from durable import errors
from durable.chunks import BackgroundTaskRunning
from durable.client import Backoff, Client
from tests.scripted_api import DEADLINE_SECONDS, ScriptedApi, problem

FAST = Backoff(first=0.01, cap=0.05, patience=DEADLINE_SECONDS)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as server:
        yield server


def frames(*told: str, task: str = "task-1") -> bytes:
    """What a connection is sent: chunks of these types, as the server sends them."""
    found = [b": connected\n\n"]
    for kind in told:
        names = {"taskId": task, "toolName": "work", "toolCallId": "c1", "runId": "run-1", "agentId": "a"}
        more = {"startedAt": "2026-01-02T03:04:05Z"} if kind == "running" else {"completedAt": "2026-01-02T03:04:06Z"}
        chunk = {"runId": "run-1", "from": "AGENT", "type": f"background-task-{kind}", "payload": {**names, **more}}
        found.append(b"data: %b\n\n" % json.dumps(chunk).encode())
    return b"".join(found)


def client_of(api: ScriptedApi, **options: Any) -> Client:
    return Client(api.url, **{"reconnect": FAST, **options})


async def test_a_lost_stream_of_tasks_is_come_back_to_and_tells_anew_what_is_executed(api: ScriptedApi) -> None:
    api.feeds.extend(
        [
            frames("running"),
            problem(503, "store_unavailable"),
            frames("running") + b"data: {broken\n\n",
            frames("running", "completed"),
        ]
    )
    async with client_of(api) as client, aclosing(client.follow_tasks(agent="a b")) as chunks:
        told = []
        async for chunk in chunks:
            told.append(chunk.type.removeprefix("background-task-"))
            assert isinstance(chunk, BackgroundTaskRunning) == (told[-1] == "running")
            if told[-1] == "completed":
                break
    assert told == ["running", "running", "running", "completed"]
    assert {target for _, target, _, _ in api.requests} == {"/v1/background-tasks/stream?agent=a+b"}


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
async def test_the_stream_of_one_task_ends_with_it_wherever_it_was_cut(api: ScriptedApi, end: str) -> None:
    api.feeds.extend([frames("running"), frames("running", end, "running")])
    async with client_of(api) as client:
        told = [chunk.type async for chunk in client.follow_tasks(task_id="task-1", run_id="run-1")]
    assert told == [f"background-task-{each}" for each in ("running", "running", end)]
    assert {target for _, target, _, _ in api.requests} == {"/v1/background-tasks/stream?run=run-1&task=task-1"}


async def test_the_stream_of_an_ended_task_is_empty(api: ScriptedApi) -> None:
    api.feeds.append(Response(status_code=204))
    async with client_of(api) as client:
        assert [chunk async for chunk in client.follow_tasks(task_id="task-1")] == []


async def test_a_task_that_is_not_there_is_told(api: ScriptedApi) -> None:
    api.feeds.append(problem(404, "unknown_run"))
    async with client_of(api) as client:
        with pytest.raises(errors.UnknownRun):
            await anext(client.follow_tasks(task_id="task-1"))


async def test_a_stream_that_always_breaks_is_given_up(api: ScriptedApi) -> None:
    api.feeds.extend([b"data: {broken\n\n"] * 9)
    async with client_of(api) as client:
        with pytest.raises(errors.ServerUnreachable, match=r"keeps breaking\.$"):
            await anext(client.follow_tasks())
