"""A Redis that answers, but refuses: callers are told to come again, and what runs in the background goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from api.app import _announce
from durable.announcements import Announcements, keep_announced
from durable.definition import AgentDefinition
from durable.dev.redis_server import PrivateRedis
from durable.errors import StoreUnavailable
from tests.conftest import eventually
from tests.workbench import Workbench, on

DEFINITION = AgentDefinition("assistant", Agent(TestModel(), name="assistant"), "evented")


@pytest.fixture
async def bench(own_redis: PrivateRedis) -> AsyncIterator[Workbench]:
    async with Workbench(on(own_redis.url)) as bench:
        yield bench


async def fill(bench: Workbench) -> None:
    """Let Redis have no memory left."""
    await bench.store.redis.config_set("maxmemory-policy", "noeviction")
    await bench.store.redis.config_set("maxmemory", 1)


async def relieve(bench: Workbench) -> None:
    await bench.store.redis.config_set("maxmemory", 0)


async def test_a_run_that_a_full_redis_refuses_can_be_submitted_later(bench: Workbench) -> None:
    await fill(bench)
    with pytest.raises(StoreUnavailable):
        await bench.create()

    await relieve(bench)
    run_id = await bench.create()
    assert (await bench.runs.get(run_id)).run_id == run_id


@pytest.mark.parametrize(
    "refusal", [BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError]
)
async def test_a_refusal_that_passes_is_told_as_unavailability(bench: Workbench, refusal: type[RedisError]) -> None:
    with pytest.raises(StoreUnavailable):
        async with bench.store.guard():
            raise refusal("no")


async def test_a_refusal_that_stays_is_not_told_as_unavailability(bench: Workbench) -> None:
    with pytest.raises(ResponseError):
        async with bench.store.guard():
            raise ResponseError("no")


@pytest.mark.parametrize("place", ["worker", "api"])
@pytest.mark.parametrize("refusal", ["full", "mistyped"])
async def test_agents_are_announced_after_redis_refused_it(
    bench: Workbench, caplog: pytest.LogCaptureFixture, place: str, refusal: str
) -> None:
    announcements, key = Announcements(bench.store), bench.store.keys.agents
    if refusal == "full":
        await fill(bench)
    else:
        await bench.store.redis.set(key, "not a hash")

    with caplog.at_level(logging.WARNING):
        if place == "worker":
            announcing = keep_announced(announcements, [DEFINITION], "w", bench.settings)
        else:
            announcing = _announce(announcements, {DEFINITION.name: DEFINITION})
        task = asyncio.ensure_future(announcing)

        async def refused() -> bool:
            return task.done() or "could not be announced" in caplog.text

        await eventually(refused, what="a refusal")
    assert not task.done()
    if refusal == "full":
        await relieve(bench)
    else:
        await bench.store.redis.delete(key)

    async def announced() -> bool:
        return [found.name for found in await announcements.all()] == ["assistant"]

    await eventually(announced, what="the agent to be announced")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
