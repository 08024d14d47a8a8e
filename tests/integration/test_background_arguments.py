"""What a call that may be made in the background is made with: the same as in the run."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import Strict
from pydantic_ai import Agent, RunContext

from tests.integration.test_background import calling, started, told

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
