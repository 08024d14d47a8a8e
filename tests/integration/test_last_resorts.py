"""What must not happen, and ends well all the same: runs that defy the engine, a loop that stands still, lost words."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from durable import DurableAgent, RunHandle, Settings, create_durable_agent
from durable.errors import RunFailed
from durable.views import RunStatus
from tests.conftest import eventually


class PanicError(BaseException):
    """What some extension modules raise: no `Exception`."""


async def call_once(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Calls the tool `act`, then says so."""
    if len(messages) == 1:
        yield {0: DeltaToolCall(name="act", json_args="{}", tool_call_id="c1")}
    else:
        yield "acted"


def acting(settings: Settings, act: Callable[[], object]) -> DurableAgent:
    agent = Agent(FunctionModel(stream_function=call_once), name="acting")
    agent.tool_plain(act)
    return create_durable_agent(agent, cache=settings)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_seconds": 3.0, "heartbeat_seconds": 0.3, "sweep_seconds": 0.2})


async def test_a_tool_that_raises_what_is_no_exception_fails_its_run_once(settings: Settings) -> None:
    calls: list[int] = []

    async def act() -> str:
        calls.append(1)
        raise PanicError

    agent = acting(settings, act)
    handle = await agent.stream("go")
    with pytest.raises(RunFailed) as failure:
        await handle.result()
    await agent.aclose()

    assert failure.value.failure_code == "tool_failed"
    assert len(calls) == 1


async def test_half_a_character_from_the_model_is_stored_and_the_run_completes(settings: Settings) -> None:
    asked: list[int] = []

    async def torn(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[str]:
        asked.append(len(messages))
        yield "hello "
        yield "\ud83d"

    agent = create_durable_agent(Agent(FunctionModel(stream_function=torn), name="torn"), cache=settings)
    result = await agent.generate("go")
    await agent.aclose()

    assert result.output == "hello ?"
    assert len(asked) == 1


async def test_after_its_loop_stood_still_a_process_still_keeps_later_runs(redis_url: str, settings: Settings) -> None:
    settings = Settings(
        redis_url=SecretStr(redis_url),
        prefix=settings.prefix,
        lease_seconds=1.5,
        heartbeat_seconds=0.2,
        sweep_seconds=0.2,
        stall_seconds=0.4,
    )
    calls: list[str] = []

    async def act() -> str:
        calls.append("")
        if len(calls) == 1:
            time.sleep(1.0)  # noqa: ASYNC251 - the loop stands still
        else:
            await asyncio.sleep(2.5)  # longer than a lease
        return "done"

    agent = acting(settings, act)
    first = await agent.stream("go")
    await eventually(lambda: _attempt(first, 2), what="the run to be given up and taken again")
    second = await agent.stream("go on")
    async with asyncio.timeout(30):
        await second.result()
    view = await second.status()
    await agent.aclose()

    assert view.attempt == 1


async def test_a_cancel_whose_message_is_lost_is_noticed(settings: Settings) -> None:
    async def act() -> str:
        await asyncio.sleep(60)
        return "too late"

    agent = acting(settings, act)
    handle = await agent.stream("go")
    await eventually(lambda: _last_seq(handle, 5), what="the tool to be called")
    backend = handle._backend
    await backend.store.redis.hset(backend.store.keys.run(handle.run_id), "cancelRequested", "{}")
    await eventually(lambda: _ended(handle), what="the run to end")
    status = (await handle.status()).status
    await agent.aclose()

    assert status is RunStatus.CANCELLED


async def _attempt(handle: RunHandle, number: int) -> bool:
    return (await handle.status()).attempt >= number


async def _last_seq(handle: RunHandle, seq: int) -> bool:
    return (await handle.status()).last_seq >= seq


async def _ended(handle: RunHandle) -> bool:
    return (await handle.status()).ended
