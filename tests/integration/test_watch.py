"""A run tells each change of its state in its own log, in the same step, whoever changes it; never after its end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from durable.chunks import Start, Watch
from durable.leases import release
from durable.probes import Point
from durable.runs import RunRecord
from durable.sweeper import Sweeper
from tests.chaos.stage import Stage
from tests.workbench import Workbench, completed, delta, finish, on

WATCHED = {"include": ["watch"]}


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Workbench]:
    async with Workbench(on(redis_url)) as bench:
        yield bench


async def states(bench: Workbench, run_id: str) -> list[tuple[str, str | None, int]]:
    """What a run has told of its state; the last of it is how it is."""
    record = await bench.runs.get(run_id)
    found = [chunk.payload.workflow_state for chunk in await bench.chunks(run_id) if isinstance(chunk, Watch)]
    assert found[-1].status == record.status
    assert len(found) == record.watched
    return [(state.status, state.reason, state.attempt) for state in found]


async def test_a_writer_counts_on_from_what_was_told_and_the_end_is_told_before_the_last_chunks(
    bench: Workbench,
) -> None:
    run_id = await bench.create(asked=WATCHED)
    writer = await bench.writer(run_id)
    assert writer.next_seq == 3
    writer.write(delta("a"))
    await writer.finish(completed(), delta("b"), finish())
    assert [chunk.type for chunk in await bench.chunks(run_id)] == [
        *("watch", "watch", "text-delta", "watch", "text-delta", "finish")
    ]
    assert await states(bench, run_id) == [("queued", None, 0), ("running", None, 1), ("completed", None, 1)]


async def test_a_run_that_is_cancelled_before_it_began_says_so(bench: Workbench) -> None:
    run_id = await bench.create(asked=WATCHED)
    await bench.runs.cancel(run_id)
    assert [chunk.type for chunk in await bench.chunks(run_id)] == ["watch", "watch", "abort", "finish"]
    assert await states(bench, run_id) == [("queued", None, 0), ("cancelled", None, 0)]


async def test_a_queued_run_says_why_it_waits(bench: Workbench) -> None:
    first, second = [await bench.create(asked={**WATCHED, "thread_id": "talk"}) for _ in range(2)]
    assert await states(bench, second) == [("queued", "thread_busy", 0)]
    lease = await bench.claim(first)
    await release(bench.store, lease, wake_after=60, held=True)
    assert (await states(bench, first))[-1] == ("queued", "retrying", 1)


async def test_the_same_submit_again_tells_nothing_more(bench: Workbench) -> None:
    for _ in range(2):
        await bench.create(run_id="one-id", asked=WATCHED)
    assert await states(bench, "one-id") == [("queued", None, 0)]


async def test_a_run_says_nothing_of_it_unasked(bench: Workbench) -> None:
    run_id = await bench.create()
    assert (await bench.writer(run_id)).next_seq == 1
    assert await bench.chunks(run_id) == []


@pytest.mark.parametrize("point", [Point.MODEL_BEFORE, Point.APPEND_BEFORE, Point.CHECKPOINT_AFTER])
async def test_each_attempt_is_told_and_the_run_starts_once(stage: Stage, point: Point) -> None:
    bench = stage.bench
    run_id = await bench.create(prompt="2", agent="ticking", asked=WATCHED)
    await stage.crash(run_id, point)
    assert stage.resume(run_id) == "completed"

    told = await states(bench, run_id)
    running = [(status, attempt) for status, _, attempt in told if status == "running"]
    assert running == [("running", 1), ("running", 2)]
    assert told[-1][0] == "completed"
    log = await bench.chunks(run_id)
    assert len([chunk for chunk in log if isinstance(chunk, Start)]) == 1
    assert [chunk.seq for chunk in log] == list(range(1, len(log) + 1))
    assert log[-1].final


async def _nobody(record: RunRecord) -> None:
    """Wakes nobody."""


async def test_a_run_whose_worker_was_lost_is_told_to_be_queued_by_whoever_finds_it(bench: Workbench) -> None:
    run_id = await bench.create(asked=WATCHED)
    lease = await bench.claim(run_id)
    await bench.store.redis.zadd(bench.store.keys.leases, {f"{run_id}:{lease.token}": 1})
    await Sweeper(bench.store, bench.settings, _nobody, "me").sweep()
    assert await states(bench, run_id) == [("queued", None, 0), ("running", None, 1), ("queued", None, 1)]
    assert (await bench.writer(run_id)).next_seq == 5
