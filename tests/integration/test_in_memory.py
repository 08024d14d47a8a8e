"""The store in memory is the same store: what looks after runs there looks after them here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, FunctionModel

from durable import create_durable_agent


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
