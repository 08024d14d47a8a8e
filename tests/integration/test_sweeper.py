"""The sweeper depends on no single process, and a long queue does not keep it from runs that lost their worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from durable.backend import Backend
from durable.chunks import Usage
from durable.errors import LeaseLost
from durable.fold import fold_text
from durable.leases import Refusal, claim, release
from durable.runs import RunRecord, Runs
from durable.store import Store, text
from durable.sweeper import StandIn, Sweeper
from durable.writer import RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, delta, on, step_start

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


async def told_to_end(bench: Workbench) -> RunWriter:
    """The writer of a run that was told to end in the middle of a response, and then lost its worker."""
    writer = await bench.writer()
    writer.write(step_start())
    writer.write(delta("half an ans"))
    await writer.flush()
    assert await bench.runs.cancel(writer.lease.run_id, reason="enough", actor="ada")
    assert (await bench.runs.get(writer.lease.run_id)).status == "running", "its worker is believed to live"
    await lose(bench, writer.lease.run_id, writer.lease.token)
    return writer


async def is_cancelled(bench: Workbench, run_id: str) -> None:
    """A run that was told to end has ended as any that is cancelled in mid-stream."""
    chunks = await bench.chunks(run_id)
    assert [chunk.type for chunk in chunks] == ["step-start", "text-delta", "abort", "finish"]
    assert (chunks[-2].payload.reason, chunks[-2].payload.actor) == ("enough", "ada")
    assert chunks[-1].payload.step_result.reason == "abort"
    assert [chunk.seq for chunk in chunks if chunk.final] == [4]
    assert fold_text(chunks) == "half an ans", "what was said stays"
    view = (await bench.runs.get(run_id)).view()
    assert (view.status, view.attempt) == ("cancelled", 1)
    assert await bench.store.redis.zcard(bench.store.keys.leases) == 0
    assert await bench.store.redis.zcard(bench.store.keys.wakeups) == 0


async def test_a_lost_run_that_was_told_to_end_waits_for_no_worker(bench: Workbench) -> None:
    writer, woken = await told_to_end(bench), Woken()
    run_id = writer.lease.run_id
    assert await Sweeper(bench.store, bench.settings, woken, "me").sweep() == 0
    assert woken.run_ids == []
    await is_cancelled(bench, run_id)
    log = await bench.wire(run_id)
    writer.write(delta("wer"))
    with pytest.raises(LeaseLost):
        await writer.flush()
    assert await claim(bench.store, bench.settings, run_id, "late") == Refusal("ended")
    assert await Sweeper(bench.store, bench.settings, woken, "me").sweep() == 0
    assert await bench.wire(run_id) == log


async def test_a_run_whose_worker_only_seemed_lost_is_ended_by_that(bench: Workbench) -> None:
    writer = await told_to_end(bench)
    keys = bench.store.keys
    await bench.store.redis.zadd(keys.leases, {writer.lease.member: 2**50})  # as a late renewal does
    sweeper = Sweeper(bench.store, bench.settings, Woken(), "me")
    await sweeper._end_cancelled([writer.lease.run_id])  # what was due a moment before
    assert (await bench.runs.get(writer.lease.run_id)).status == "running"
    writer.write(delta("wer"))
    await writer.flush()
    assert await bench.texts(writer.lease.run_id) == ["half an ans", "wer"]


async def test_a_worker_that_claims_it_at_the_same_moment_ends_it_instead(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, used, claimed = (await told_to_end(bench)).lease.run_id, Runs._used, list[int]()

    async def claims_meanwhile(self: Runs, run_id: str) -> tuple[RunRecord, Usage | None]:
        found = await used(self, run_id)
        claimed.append((await bench.claim(run_id)).token)
        return found

    monkeypatch.setattr(Runs, "_used", claims_meanwhile)
    woken = Woken()
    assert await Sweeper(bench.store, bench.settings, woken, "me").sweep() == 0
    assert claimed == [2]
    record = await bench.runs.get(run_id)
    assert (record.status, record.token, record.cancel_requested) == ("running", 2, True)
    assert [chunk.type for chunk in await bench.chunks(run_id)] == ["step-start", "text-delta"]


async def test_a_run_that_was_handed_back_when_it_was_told_to_end_waits_for_no_worker(bench: Workbench) -> None:
    run_id, woken = await bench.create(), Woken()
    lease = await bench.claim(run_id)
    assert await bench.runs.cancel(run_id, reason="enough")
    assert await release(bench.store, lease, wake_after=0)
    assert await Sweeper(bench.store, bench.settings, woken, "me").sweep() == 0
    assert woken.run_ids == []
    assert [chunk.type for chunk in await bench.chunks(run_id)] == ["abort", "finish"]
    assert (await bench.runs.get(run_id)).status == "cancelled"


async def test_who_asked_first_is_who_has_cancelled_a_lost_run(bench: Workbench) -> None:
    run_id = (await told_to_end(bench)).lease.run_id
    assert await bench.runs.cancel(run_id, reason="still there?", actor="bob")
    await is_cancelled(bench, run_id)


async def test_a_cancel_between_the_look_and_the_end_is_not_forgotten(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, used, looks = await bench.writer(), Runs._used, list[str]()
    run_id = writer.lease.run_id

    async def another_cancels(self: Runs, run_id: str) -> tuple[RunRecord, Usage | None]:
        looks.append(run_id)
        found = await used(self, run_id)
        if len(looks) == 1:
            await bench.store.redis.hset(bench.store.keys.run(run_id), "cancelRequested", '{"actor":"ada"}')
        return found

    await lose(bench, run_id, writer.lease.token)
    monkeypatch.setattr(Runs, "_used", another_cancels)
    assert await bench.runs.cancel(run_id, actor="bob")
    abort, _ = await bench.chunks(run_id)
    assert (abort.payload.actor, len(looks)) == ("ada", 2)


async def test_where_nobody_sweeps_others_end_what_was_told_to_end_and_nothing_else(bench: Workbench) -> None:
    told, lost, queued = (await told_to_end(bench)).lease.run_id, await bench.create(), await overdue(bench)
    await lose(bench, lost, (await bench.claim(lost)).token)
    settings = bench.settings
    async with Backend(Store.of(settings), settings, celery=False):

        async def ended() -> bool:
            return (await bench.runs.get(told)).status == "cancelled"

        await eventually(ended, what="the run to end")
    assert [(await bench.runs.get(run_id)).status for run_id in (lost, queued)] == ["running", "queued"]
    assert not await bench.store.redis.exists(bench.store.keys.sweeper), "it does not seem that somebody sweeps"


async def test_where_somebody_sweeps_others_leave_it_at_that(bench: Workbench) -> None:
    assert await Sweeper(bench.store, bench.settings, Woken(), "me")._is_due()
    assert not await StandIn(bench.store, bench.settings)._is_due()


async def test_a_sweeper_ends_though_a_cancellation_of_it_is_swallowed(bench: Workbench) -> None:
    """As clients of Redis do that are cancelled just when an answer is there."""
    swallowed, looking = list[int](), asyncio.Event()

    class Deaf(Sweeper):
        async def _is_due(self) -> bool:
            looking.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed:
                    raise
                swallowed.append(1)
            return False

    sweeper = Deaf(bench.store, bench.settings, Woken(), "me")
    sweeper.start()
    async with asyncio.timeout(10):
        await looking.wait()
        await sweeper.stop()
    assert swallowed == [1]
    assert sweeper._task is not None
    assert sweeper._task.done()
