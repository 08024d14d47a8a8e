"""What runs tell beside text, from a worker to the client: structured outputs, sub-agents, changes of their state."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from durable import Client, Folder
from durable.chunks import Chunk, ObjectChunk, ObjectResult, StepOutput, ToolOutput, Watch
from durable.views import RunView
from tests.deployment import Deployment

CITY = {"name": "Lisbon", "facts": ["It lies on the Tagus, near the sea.", "It has trams.", "Fado is sung there."] * 9}


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[Client]:
    async with Client(deployment.url) as client:
        yield client


async def whole(client: Client, view: RunView | str) -> list[Chunk]:
    """A run's log, to its end."""
    return [chunk async for chunk in client.observe(view if isinstance(view, str) else view.run_id)]


def folded(chunks: list[Chunk]) -> Folder:
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder


def types(chunks: list[Chunk]) -> list[str]:
    return [chunk.type for chunk in chunks]


async def test_text_is_framed(client: Client) -> None:
    log = await whole(client, await client.submit("scripted", "say so"))
    assert types(log)[2:5] == ["text-start", "text-delta", "text-end"]
    assert {chunk.payload.id for chunk in log[2:5]} == {"a1p1"}


async def test_a_call_is_framed_and_a_tool_speaks(client: Client) -> None:
    log = await whole(client, await client.submit("scripted", 'call wait {"ms": 1}'))
    kinds = types(log)
    begin = kinds.index("tool-call-input-streaming-start")
    assert kinds[begin : begin + 3] == [
        "tool-call-input-streaming-start",
        "tool-call-delta",
        "tool-call-input-streaming-end",
    ]
    assert kinds.index("tool-call") < kinds.index("tool-output") < kinds.index("tool-result")


@pytest.mark.parametrize("agent", ["by-tool", "by-native", "by-prompted"])
async def test_a_structured_output_is_told_while_it_streams_and_once_it_is_valid(client: Client, agent: str) -> None:
    log = await whole(client, await client.submit(agent, json.dumps(CITY)))

    parts = [chunk.object for chunk in log if isinstance(chunk, ObjectChunk)]
    assert parts[-1] == CITY
    assert all(
        part["name"] == "Lisbon" and CITY["facts"][: len(part["facts"]) - 1] == part["facts"][:-1] for part in parts
    )
    assert types(log)[-2:] == ["object-result", "finish"]
    (result,) = [chunk.object for chunk in log if isinstance(chunk, ObjectResult)]
    assert result == log[-1].payload.output.object == CITY
    folder = folded(log)
    assert (folder.partial, folder.object) == (CITY, CITY)


async def test_chunks_without_a_payload_are_the_same_in_pages_and_as_events(
    client: Client, deployment: Deployment
) -> None:
    view = await client.submit("by-tool", json.dumps(CITY))
    log = await whole(client, view)
    async with httpx.AsyncClient(base_url=deployment.url, trust_env=False) as plain:
        page = (await plain.get(f"/v1/runs/{view.run_id}/chunks", params={"limit": 1000})).json()["chunks"]
    assert page == [chunk.to_wire() for chunk in log]
    told = [chunk for chunk in page if chunk["type"] in {"object", "object-result"}]
    assert told
    assert [chunk for chunk in told if "payload" in chunk] == []


async def test_an_output_that_is_text_is_told_as_text_alone(client: Client) -> None:
    log = await whole(client, await client.submit("scripted", 'say {"name": "Lisbon", "facts": ["It has trams"]}'))
    assert {"object", "object-result"} & set(types(log)) == set()


def within(log: list[Chunk], task: str) -> list[Any]:
    """The chunks of a sub-agent in the log of who asks."""
    nested = [chunk for chunk in log if isinstance(chunk, ToolOutput | StepOutput) and chunk.payload.task_id == task]
    steps = [chunk.payload.output["type"] for chunk in nested if isinstance(chunk, StepOutput)]
    assert steps == ["step-finish"] * len(steps)
    assert "step-finish" not in [chunk.payload.output["type"] for chunk in nested if isinstance(chunk, ToolOutput)]
    return [chunk.payload.output for chunk in nested]


async def test_a_sub_agent_is_told_chunk_by_chunk_in_the_log_of_who_asks(client: Client) -> None:
    prompt = json.dumps({"prompt": "slowly 20 " + " ".join(f"word{n}" for n in range(40))})
    log = await whole(client, await client.submit("reporter", f"call busy {prompt}"))

    (task,) = [chunk.payload.task_id for chunk in log if chunk.type == "background-task-started"]
    own = await whole(client, task)
    assert within(log, task) == [chunk.to_wire() for chunk in own]
    kinds = types(log)
    assert kinds.count("step-output") == 1
    assert max(n for n, chunk in enumerate(log) if "task_id" in chunk.payload.model_fields_set) == kinds.index(
        "background-task-completed"
    ), "nothing comes after its end"
    call = folded(log).calls["call-0"]
    assert (call.nested and call.nested.text, call.outputs) == (folded(own).text, [])


async def test_a_sub_agent_that_is_not_nested_is_not_told_so(client: Client) -> None:
    log = await whole(client, await client.submit("editor", 'call busy {"prompt": "say so"}'))
    assert {"tool-output", "step-output"} & set(types(log)) == set()


async def test_a_run_tells_each_change_of_its_state_where_that_is_asked_for(client: Client) -> None:
    view = await client.submit("gated", 'call refund {"amount": 3}', include=["watch"])
    log: list[Chunk] = []
    async for chunk in client.observe(view.run_id):
        log.append(chunk)
        if isinstance(chunk, Watch) and chunk.payload.workflow_state.status == "suspended":
            assert types(log)[-2] == "tool-call-approval"
            await client.approve(view.run_id, "call-0")

    states = [chunk.payload.workflow_state for chunk in log if isinstance(chunk, Watch)]
    pairs = "(queued running )+"  # one for each time that it was handed back
    told = "".join(f"{state.status} " for state in states)
    assert re.fullmatch(f"{pairs}suspended {pairs}completed ", told), told
    attempts = [state.attempt for state in states if state.status == "running"]
    assert attempts == list(range(1, len(attempts) + 1))
    assert [state.reason for state in states if state.status == "suspended"] == ["decision"]
    assert types(log)[:3] == ["watch", "watch", "start"]
    assert types(log)[-2:] == ["watch", "finish"]
    assert types(log).count("start") == 1
    moments = [chunk.payload.event_timestamp for chunk in log if isinstance(chunk, Watch)]
    assert moments == sorted(moments)


async def test_a_run_tells_no_change_of_its_state_unasked_and_nothing_else_can_be_asked_for(
    client: Client, deployment: Deployment
) -> None:
    assert "watch" not in types(await whole(client, await client.submit("scripted", "say so")))
    async with httpx.AsyncClient(base_url=deployment.url, trust_env=False) as plain:
        answer = await plain.post("/v1/agents/scripted/runs", json={"prompt": "say so", "include": ["all"]})
    assert answer.status_code == 400
