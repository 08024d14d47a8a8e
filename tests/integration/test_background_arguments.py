"""What a call that may be made in the background is made with: the same as in the run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import Strict
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, ToolApproved

from durable.errors import RunFailed
from tests.integration.test_background import calling, heard, started, told

DAY = "2026-11-24"


async def on(_: RunContext[Any], day: Annotated[date, Strict()]) -> str:
    """Takes a day, and nothing that only looks like one."""
    return f"{type(day).__name__} {day}"


@pytest.mark.parametrize(
    ("options", "chosen", "tasks"),
    [
        ({"background": "awaited"}, None, 1),
        ({"background": "awaited", "model_chooses": True}, None, 1),
        ({"background": "deferred", "model_chooses": True}, "awaited", 1),
        ({"background": "awaited", "model_chooses": True}, "foreground", 0),
        ({"background": "awaited", "model_chooses": True}, "nowhere", 1),
    ],
    ids=["a task", "with no choice", "chosen to be a task", "chosen to be none", "with a choice that is none"],
)
async def test_a_strict_tool_takes_the_models_json_wherever_its_call_is_made(
    connected: Any, options: dict[str, Any], chosen: str | None, tasks: int
) -> None:
    args = {"day": DAY} if chosen is None else {"day": DAY, "_background": chosen}
    agent = Agent(calling(("on", args)), name="support")
    agent.tool(metadata={"durable": options})(on)
    async with connected(agent) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == [["c1", "success", f"date {DAY}"]]
        assert len(await started(handle)) == tasks


def edited_by_a_handler(edited: dict[str, Any], body: Any = on, **options: Any) -> Agent[Any, str]:
    """An agent whose own handler approves the call `c1` at once, with other arguments."""

    async def decide(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        approved = {"c1": ToolApproved(override_args=edited)} if requests.approvals else {}
        return requests.build_results(approvals=approved)

    agent: Agent[Any, str] = Agent(
        calling(("on", {"day": DAY})), name="support", capabilities=[HandleDeferredToolCalls(decide)]
    )
    agent.tool(name="on", metadata={"durable": options}, requires_approval=True)(body)
    return agent


@pytest.mark.parametrize("background", ["foreground", "awaited"])
async def test_what_a_handler_makes_of_the_arguments_before_anybody_is_asked_is_what_the_call_is_made_with(
    connected: Any, background: str
) -> None:
    async with connected(edited_by_a_handler({"day": date(2027, 1, 1)}, background=background)) as durable:
        handle = await durable.stream("go")
        assert await told(handle) == [["c1", "success", "date 2027-01-01"]]
        assert len(await started(handle)) == (background == "awaited")


async def test_what_a_handler_makes_of_the_arguments_is_for_that_call_and_no_later_one_of_the_same_id(
    connected: Any,
) -> None:
    async def respond(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if sum(isinstance(message, ModelResponse) for message in messages) > 1:
            yield json.dumps(heard(messages))
        else:
            yield {1: DeltaToolCall(name="on", json_args=json.dumps({"day": DAY}), tool_call_id="c1")}

    edited = [ToolApproved(override_args={"day": date(2027, 1, 1)}), ToolApproved()]

    async def decide(_: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approvals={"c1": edited.pop(0)} if requests.approvals else {})

    agent: Agent[Any, str] = Agent(
        FunctionModel(stream_function=respond), name="support", capabilities=[HandleDeferredToolCalls(decide)]
    )
    agent.tool(metadata={"durable": {"background": "deferred"}}, requires_approval=True)(on)
    async with connected(agent) as durable:
        found = await told(await durable.stream("go", until_idle=True))
    results = sorted(each for each in found if isinstance(each, str))
    assert results == [f"completed. Its result: date {day}" for day in (DAY, "2027-01-01")]


async def test_no_task_is_given_arguments_of_a_handler_that_have_no_json_form(connected: Any) -> None:
    async def anything(_: RunContext[Any], day: Any) -> str:
        return str(day)

    async with connected(edited_by_a_handler({"day": object()}, anything, background="awaited")) as durable:
        handle = await durable.stream("go")
        with pytest.raises(RunFailed):
            await handle.result()
        view = await handle.status()
        assert view.error is not None
        assert view.error.code == "tool_result_invalid"
        assert await started(handle) == []
