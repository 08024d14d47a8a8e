"""Runs that wait: they hold no worker, cost only their bytes, and outlive whatever is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from durable.backend import Backend
from durable.decisions import Answer
from durable.dev.redis_server import PrivateRedis
from durable.settings import Settings
from durable.store import Store
from tests.caller import Caller
from tests.deployment import Deployment, stop_child, wait_for

AGENTS = "tests.scripted_agents,tests.chaos.flows"
MANY = 1000

T = TypeVar("T")


@pytest.fixture
def site(own_redis: PrivateRedis) -> Iterator[Deployment]:
    env = {"DURABLE_LEASE_SECONDS": "1", "DURABLE_HEARTBEAT_SECONDS": "0.25", "DURABLE_CONCURRENCY": "4"}
    with Deployment(own_redis.url, agents=AGENTS, env=env) as found:
        yield found


def settings_of(site: Deployment) -> Settings:
    return Settings(redis_url=SecretStr(site.redis_url), prefix=site.prefix)


async def approve(site: Deployment, run_id: str, call: str) -> None:
    settings = settings_of(site)
    async with Backend(Store.of(settings), settings) as backend:
        await backend.decide(run_id, call, Answer(kind="approve", actor="alice"))


def test_a_run_that_waits_outlives_a_restart_of_redis_the_api_and_all_workers(
    own_redis: PrivateRedis, site: Deployment
) -> None:
    api, workers = site.start_api(), [site.start_worker(), site.start_worker()]
    with Caller(site.url) as caller:
        run_id = caller.submit("pay", "paying")
        wait_for(lambda: caller.look(run_id)["status"] == "suspended", what="the run to wait")
        before = caller.log(run_id)
    for child in (api, *workers):
        stop_child(child)
    own_redis.kill()
    own_redis.start()
    site.start_api()
    site.start_worker()
    with Caller(site.url) as caller:
        assert caller.look(run_id)["status"] == "suspended"
        assert caller.log(run_id) == before
        asyncio.run(approve(site, run_id, "c1"))
        ended = caller.ended(run_id)
        assert (ended["status"], ended["output"]) == ("completed", '{"c1": ["success", "paid 500"]}')
        assert caller.log(run_id)[: len(before)] == before


async def held(store: Store) -> tuple[int, int, int]:
    """Leases, wake-ups, and calls that wait."""
    redis, keys = store.redis, store.keys
    return await redis.zcard(keys.leases), await redis.zcard(keys.wakeups), await redis.zcard(keys.pending)


async def bytes_of(store: Store, run_id: str) -> int:
    """What Redis needs for all keys of a run."""
    redis: Any = store.redis
    names = [name async for name in redis.scan_iter(match=f"*{{{run_id}}}*", count=10_000)]
    return sum([await redis.memory_usage(name) for name in names])


def ask(site: Deployment, question: Callable[[Store], Awaitable[T]]) -> T:
    """Ask the site's store."""

    async def answer() -> T:
        store = Store.of(settings_of(site))
        try:
            return await question(store)
        finally:
            await store.aclose()

    return asyncio.run(answer())


@pytest.mark.timeout(120)
def test_a_thousand_runs_that_wait_hold_no_worker_and_cost_only_their_bytes(site: Deployment) -> None:
    site.start_api()
    site.start_worker()
    with Caller(site.url) as caller:
        run_ids = [caller.submit("pay", "paying") for _ in range(MANY)]
        wait_for(lambda: ask(site, held) == (0, 0, MANY), seconds=90, what="all of them to wait")
        assert caller.result("say hello")["status"] == "completed", "the worker's four slots are free"
        assert ask(site, lambda store: bytes_of(store, run_ids[-1])) < 20_000
