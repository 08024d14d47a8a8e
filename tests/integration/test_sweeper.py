"""The sweeper depends on no single process, and a long queue does not keep it from runs that lost their worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from durable.runs import RunRecord
from durable.store import text
from durable.sweeper import Sweeper
from tests.conftest import eventually
from tests.workbench import Workbench, on

QUEUED = 5


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url, sweep_seconds=0.2)) as found:
        yield found


async def overdue(bench: Workbench) -> str:
    """A queued run whose wake-up is taken for lost."""
    run_id = await bench.create()
    await bench.store.redis.zadd(bench.store.keys.wakeups, {run_id: 1})
    return run_id


async def lose(bench: Workbench, run_id: str, token: int) -> None:
    """Let the lease of a run have run out."""
    await bench.store.redis.zadd(bench.store.keys.leases, {f"{run_id}:{token}": 1})


class Woken:
    """The runs that were woken, in order. To wake one may take long."""

    def __init__(self, seconds: float = 0) -> None:
        self.run_ids: list[str] = []
        self._seconds = seconds

    async def __call__(self, record: RunRecord) -> None:
        self.run_ids.append(record.run_id)
        await asyncio.sleep(self._seconds)

    async def has(self, run_id: str) -> bool:
        return run_id in self.run_ids


async def test_runs_that_lost_their_worker_come_before_all_that_are_queued(bench: Workbench) -> None:
    queued, run_id = [await overdue(bench) for _ in range(QUEUED)], await bench.create()
    await lose(bench, run_id, (await bench.claim(run_id)).token)
    woken = Woken()
    assert await Sweeper(bench.store, bench.settings, woken, "me").sweep() == QUEUED + 1
    assert woken.run_ids[0] == run_id
    assert sorted(woken.run_ids[1:]) == sorted(queued)


async def test_a_sweep_leaves_a_long_queue_to_the_next_ones(bench: Workbench) -> None:
    queued, run_id = [await overdue(bench) for _ in range(QUEUED)], await bench.create()
    lease = await bench.claim(run_id)
    woken = Woken(seconds=bench.settings.sweep_seconds)
    sweeper = Sweeper(bench.store, bench.settings, woken, "me")
    assert await sweeper.sweep() == 1
    await lose(bench, run_id, lease.token)  # while the queue is being woken
    for _ in range(QUEUED - 1):
        assert await sweeper.sweep() in {1, 2}
    assert woken.run_ids[1] == run_id
    assert sorted(woken.run_ids[:1] + woken.run_ids[2:]) == sorted(queued)


async def test_the_loss_of_the_process_that_swept_last_delays_nothing(redis_url: str) -> None:
    settings = on(redis_url, sweep_seconds=60, lease_seconds=0.5, heartbeat_seconds=0.2)
    async with Workbench(settings) as bench:
        run_id, woken = await overdue(bench), Woken()
        # It was killed 40 s after its last sweep: its mark is still there.
        await bench.store.redis.set(bench.store.keys.sweeper, "gone", px=140_000)
        sweeper = Sweeper(bench.store, bench.settings, woken, "me")
        await eventually(sweeper._trustworthy, what="Redis to be up for longer than a lease")
        sweeper.start()
        await eventually(lambda: woken.has(run_id), what="the run to be woken")
        await sweeper.stop()


async def test_a_sweep_that_was_just_begun_by_one_process_is_not_repeated_by_another(bench: Workbench) -> None:
    one, other = [Sweeper(bench.store, on(bench.settings.store_url, sweep_seconds=60), Woken(), "me") for _ in range(2)]
    assert await one._is_due()
    assert not await other._is_due()


async def test_expired_runs_leave_the_indexes_though_nobody_lists_them(bench: Workbench) -> None:
    keys, redis = bench.store.keys, bench.store.redis
    kept, asked = await bench.create(retention=60), {"thread_id": "t"}
    short, lost = [await bench.create(retention=1, asked=asked) for _ in range(2)]
    for run_id in (kept, short):
        assert await bench.runs.cancel(run_id)
    sweeper = Sweeper(bench.store, bench.settings, Woken(), "me")

    async def forgotten() -> bool:
        await sweeper.sweep()
        return not await redis.exists(keys.run(short)) and await redis.zcard(keys.expiries) == 1

    await eventually(forgotten, what="the retention to pass")
    for index, left in (
        (keys.runs(), {kept, lost}),
        (keys.runs(agent="nobody"), {kept, lost}),
        (keys.runs(thread="t"), {lost}),
        (keys.runs(status="cancelled"), {kept}),
        (keys.runs(status="queued"), {lost}),
    ):
        assert {text(member) for member in await redis.zrange(index, 0, -1)} == left
