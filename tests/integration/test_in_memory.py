"""The store in memory is the same store: what looks after runs there looks after them here."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from durable import create_durable_agent
from durable.errors import StoreUnavailable
from durable.settings import Settings
from tests.conftest import eventually


async def test_a_run_in_memory_is_tried_again_when_its_provider_failed() -> None:
    asked: list[int] = []

    async def once_away(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
        asked.append(len(messages))
        if len(asked) == 1:
            raise ModelHTTPError(503, "scripted")
        yield "here again"

    agent = create_durable_agent(Agent(FunctionModel(stream_function=once_away), name="memory"))
    handle = await agent.stream("Hi", retries=1)
    async with asyncio.timeout(30):
        result = await handle.result()
    await agent.aclose()

    assert result.output == "here again"
    assert len(asked) == 2


async def test_the_log_names_no_place_for_a_tools_failure_that_was_told_with_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> str:
        raise ValueError

    caplog.set_level(logging.WARNING, logger="durable.execution")  # a worker in this process may have set the root's
    async with create_durable_agent(Agent(TestModel(), name="memory", tools=[broken])) as agent:
        handle = await agent.stream("Hi")
        assert [chunk.type async for chunk in handle][-1] == "finish"
    assert f"run {handle.run_id} failed: ToolFailure" in caplog.messages


async def test_leaving_the_agent_closes_all_that_it_opened() -> None:
    async def answer(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        yield "done"

    tasks = asyncio.all_tasks()

    async def closed() -> bool:
        return asyncio.all_tasks() == tasks

    async with asyncio.timeout(30):
        async with create_durable_agent(Agent(FunctionModel(stream_function=answer), name="memory")) as agent:
            assert asyncio.all_tasks() > tasks
            assert (await agent.generate("Hi")).output == "done"
        await eventually(closed, what="the end of the agent's tasks")


async def test_no_more_runs_are_executed_at_a_time_than_the_settings_allow() -> None:
    under_way = most = 0

    async def counted(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        yield "counted"

    agent = create_durable_agent(
        Agent(FunctionModel(stream_function=counted), name="memory"), cache=Settings(concurrency=2)
    )
    async with asyncio.timeout(30):
        results = await asyncio.gather(*(agent.generate("Hi") for _ in range(10)))
    await agent.aclose()

    assert [result.output for result in results] == ["counted"] * 10
    assert most == 2


def _keepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "lease-keeper"}


def test_event_loops_that_were_closed_leave_no_threads_and_no_backends() -> None:
    async def speak(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        yield "hello"

    before = _keepers()
    settings = Settings(lease_seconds=1, heartbeat_seconds=0.1)
    agent = create_durable_agent(Agent(FunctionModel(stream_function=speak), name="memory"), cache=settings)
    for _ in range(20):
        assert asyncio.run(agent.generate("Hi")).output == "hello"
    assert len(agent._backends) == 1, "that of the last loop, which nobody has come after"

    deadline = time.monotonic() + 15
    for thread in _keepers() - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not _keepers() - before


async def test_a_result_is_never_that_of_a_run_that_goes_on() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def held(_: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str]:
        asked.set()
        await go_on.wait()
        yield "at last"

    agent = create_durable_agent(Agent(FunctionModel(stream_function=held), name="memory"))
    handle = await agent.stream("Hi")

    async def ended() -> bool:
        return (await handle.status()).status.ended

    async with asyncio.timeout(30):
        waiting = asyncio.create_task(handle.result())
        await asked.wait()
        (await agent._backend()).hub.dismiss()
        with pytest.raises(StoreUnavailable):
            await waiting
        go_on.set()
        await eventually(ended, what="the run's end")
        assert (await handle.result()).output == "at last"
    await agent.aclose()
