"""Readers through the API cost what they must: one that is up to date asks Redis for nothing, one that goes leaves
nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing, suppress
from typing import Any

from durable.store import Store
from tests.conftest import eventually
from tests.workbench import Workbench, completed, delta, finish, on


async def calls(store: Store, command: str) -> int:
    """How often the server was asked for something."""
    stats: dict[str, Any] = await store.redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_a_reader_that_is_up_to_date_is_fed_without_asking_the_log(own_redis: Any) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        seen = 0

        async def read() -> None:
            nonlocal seen
            async with aclosing(bench.observer.pages(writer.lease.run_id)) as pages:
                async for page in pages:
                    seen += sum(len(entry.bodies) for entry in page)

        reader = asyncio.ensure_future(read())
        writer.write(delta("first "))
        await writer.flush()
        await eventually(lambda: _is(lambda: seen == 1), what="the first chunk")
        before = await calls(bench.store, "xrange")
        for number in range(100):
            writer.write(delta(f"w{number} "))
            await writer.flush()
        assert await writer.finish(completed(), finish())
        await reader

        assert seen == 102
        # A look after the first chunk, and one for each time that the slow timer was ahead of an announcement.
        assert await calls(bench.store, "xrange") - before <= 10


async def test_a_reader_that_is_cut_off_twice_leaves_no_subscription_behind(own_redis: Any) -> None:
    async with Workbench(on(own_redis.url)) as bench:
        writer = await bench.writer()
        channel = bench.store.keys.channel(writer.lease.run_id)

        async def read() -> None:
            async for _ in bench.observer.pages(writer.lease.run_id):
                pass

        async def subscriptions() -> int:
            ((_, count),) = await bench.store.redis.pubsub_numsub(channel)
            return int(count)

        reader = asyncio.ensure_future(read())
        await eventually(lambda: _equal(subscriptions(), 1), what="the subscription")
        async with bench.hub._lock:  # somebody else is subscribing meanwhile
            # A server that ends a request cancels it again at each further wait.
            for _ in range(5):
                reader.cancel()
                await asyncio.sleep(0)
            with suppress(asyncio.CancelledError):
                await reader

        await eventually(lambda: _equal(subscriptions(), 0), what="the subscription to end")


async def _equal(value: Awaitable[int], expected: int) -> bool:
    return await value == expected


async def _is(condition: Any) -> bool:
    return bool(condition())
