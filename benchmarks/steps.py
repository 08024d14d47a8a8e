"""Runs of many steps, executed in this process: an agent that calls tools step after step, and what executes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from pydantic_ai import Agent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from durable.definition import AgentDefinition, define
from durable.runs import NewRun, RunRecord, RunRequest, Runs

NAME: Final = "stepping"
RESULT: Final = "cloudy, 18 degrees, wind from the west; " * 5
Said = str | dict[int, DeltaToolCall]


def stepping(
    steps: int, calls: int = 1, *, parks: bool = False, capabilities: Sequence[AbstractCapability[Any]] = ()
) -> AgentDefinition:
    """An agent that is `steps` times asked, calls `calls` tools each time but the last, and then ends.

    Args:
        steps: Model requests.
        calls: Tool calls in each response.
        parks: Whether it stands still in its last request, for ever.
        capabilities: Of the agent.
    """

    async def say(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Said]:
        step = _last_step(messages) + 1
        if step < steps:
            yield "Let me look "
            yield "at the weather there, too."
            for index in range(calls):
                yield {index: DeltaToolCall("look", f'{{"place":"place {index}"}}', tool_call_id=f"{step}-{index}")}
            return
        if parks:
            await asyncio.Event().wait()
        yield "That is all."

    async def look(place: str) -> str:
        return f"{place}: {RESULT}"

    model = FunctionModel(stream_function=say)
    return define(Agent(model, name=NAME, tools=[look], capabilities=list(capabilities)), "durable", max_steps=1000)


def _last_step(messages: list[ModelMessage]) -> int:
    """The step whose tools have just returned; 0 when there is none."""
    for part in messages[-1].parts:
        if isinstance(part, ToolReturnPart):
            return int(part.tool_call_id.partition("-")[0])
    return 0


async def create(runs: Runs) -> RunRecord:
    """A run of such an agent, for whoever executes it."""
    request = RunRequest(prompt="What is the weather like?", usage_limits={"request_limit": None})
    record, _ = await runs.create(NewRun(NAME, "durable", "none", request, retention=3600))
    return record


async def nobody(_: RunRecord) -> None:
    """Wake nobody: what is measured is executed by hand."""
