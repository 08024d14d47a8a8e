"""What the log tells of tools that a run's caller executes: whose turn it is, and each result once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable.agents import DurableAgent
from durable.agents.handle import RunHandle
from durable.execution.waits import Waits
from tests.conftest import eventually
from tests.scripted_agents import agent

LOOK = {"name": "look", "parameters": {"type": "object"}}


async def started(wrapped: DurableAgent, prompt: str) -> RunHandle:
    handle: RunHandle = await wrapped.stream(prompt, client_tools=[LOOK])
    return handle


async def types(handle: RunHandle) -> list[str]:
    return [chunk.type async for chunk in handle.observe()]


async def suspended(handle: RunHandle) -> None:
    async def so() -> bool:
        return (await handle.status()).status == "suspended"

    await eventually(so, what="the run to wait")


async def test_a_run_that_waits_for_its_caller_alone_has_ended_its_turn(
    connected: Callable[..., DurableAgent],
) -> None:
    async with connected(agent) as wrapped:
        handle = await started(wrapped, 'calls look; look; add {"a": 1, "b": 1}')
        await suspended(handle)
        await handle.resume("call-0", "one")
        await suspended(handle)  # for the other one, and the turn has ended already
        await handle.resume("call-1", "two")
        assert (await handle.result()).output.strip() == "The tool said one and two and 2"
        told = await types(handle)
    assert (told.count("finish"), told.count("tool-result"), told.count("tool-call-decided")) == (2, 3, 0)
    assert told.count("step-finish") == 2
    first = told.index("finish")
    assert told[first - 1 : first + 3] == ["step-finish", "finish", "tool-result", "tool-result"]


async def test_a_result_that_comes_as_the_run_is_about_to_wait_is_told_once(
    connected: Callable[..., DurableAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, handles = Waits.look, list[RunHandle]()

    async def after_an_answer(self: Waits) -> None:
        if self.asked and handles:
            await handles.pop().resume("call-0", "seen")
        await look(self)

    async with connected(agent) as wrapped:
        monkeypatch.setattr(Waits, "look", after_an_answer)
        handle = await started(wrapped, "call look")
        handles.append(handle)
        assert (await handle.result()).output.strip() == "The tool said seen"
        told: list[Any] = await types(handle)
    assert told.count("tool-result") == 1
