"""Runs that wait until they are tried again, and runs that lost their lease, in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from durable.announcements import Announcements
from durable.diagnosis import Circumstances, diagnose, examine
from durable.errors import UnknownRun
from durable.leases import Refusal, claim, release
from durable.runs import RunRecord
from durable.settings import Settings
from durable.sweeper import Sweeper
from durable.writer import Note, RunWriter
from tests.conftest import eventually
from tests.workbench import Workbench, delta, step_start

FIELDS = {"retriesUsed": "1", "lastError": '{"code":"model_error","message":"No."}'}


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def postponed(bench: Workbench, seconds: float) -> str:
    """A run that is tried again in so many seconds."""
    run_id = await bench.create()
    lease = await bench.claim(run_id)
    assert await release(bench.store, lease, wake_after=seconds, held=True, fields=FIELDS)
    return run_id


async def circumstances(bench: Workbench, run_id: str) -> Circumstances:
    return await examine(bench.store, bench.runs, Announcements(bench.store), bench.settings, run_id)


async def test_a_worker_that_fell_silent_is_told_from_one_that_has_just_shown_itself(bench: Workbench) -> None:
    run_id = await bench.create()
    agent = (await bench.runs.get(run_id)).agent
    for worker in ("silent", "busy"):
        await Announcements(bench.store).show(worker, [agent])
    [member] = [each async for each, _ in bench.store.redis.zscan_iter(bench.store.keys.workers, "*silent*")]
    await bench.store.redis.zincrby(bench.store.keys.workers, -6, member)
    found = await circumstances(bench, run_id)
    assert (found.workers, [round(silence) for silence in found.silences]) == (2, [6])


async def test_nobody_claims_a_run_before_its_time(bench: Workbench) -> None:
    run_id = await postponed(bench, 60)
    for _ in range(3):
        assert await claim(bench.store, bench.settings, run_id, "early") == Refusal("early")
    record = await bench.runs.get(run_id)
    assert (record.view().status, record.view().reason, record.retries_used) == ("queued", "retrying", 1)
    assert record.token == 1


async def test_the_sweeper_wakes_it_when_its_time_has_come_and_not_before(bench: Workbench) -> None:
    woken: list[str] = []

    async def dispatch(record: RunRecord) -> None:
        woken.append(record.run_id)

    sweeper = Sweeper(bench.store, bench.settings, dispatch, "test")
    later, soon = await postponed(bench, 60), await postponed(bench, 0.2)

    async def swept() -> bool:
        return bool(await sweeper.sweep())

    await eventually(swept, what="the run to be woken")
    assert woken == [soon]
    lease = await bench.claim(soon)
    assert lease.token == 2
    assert lease.claims == 1, "a run that is tried again did not lose its worker"
    record = await bench.runs.get(soon)
    assert record.view().reason is None
    assert record.retries_used == 1
    assert later not in woken


async def test_progress_makes_its_retries_whole_and_nothing_else_does(bench: Workbench) -> None:
    run_id = await postponed(bench, 0)
    writer = RunWriter(bench.appender, await bench.claim(run_id))
    writer.write(step_start())
    await writer.flush()
    assert (await bench.runs.get(run_id)).retries_used == 1
    writer.write(delta("x"), Note(checkpoint=b"{}"))
    await writer.flush()
    record = await bench.runs.get(run_id)
    assert record.retries_used == 0
    assert "lastError" not in record.fields


async def test_a_cancel_ends_it_at_once(bench: Workbench) -> None:
    run_id = await postponed(bench, 60)
    assert await bench.runs.cancel(run_id)
    assert (await bench.runs.get(run_id)).view().status == "cancelled"


async def test_a_run_that_was_told_to_end_meanwhile_does_not_wait(bench: Workbench) -> None:
    run_id = await bench.create()
    lease = await bench.claim(run_id)
    assert await bench.runs.cancel(run_id)
    assert await release(bench.store, lease, wake_after=60, held=True, fields=FIELDS)
    assert not isinstance(await claim(bench.store, bench.settings, run_id, "next"), Refusal)


async def test_a_lost_lease_is_seen_while_it_is_lost_and_remembered_after(bench: Workbench) -> None:
    run_id = await bench.create()
    await bench.claim(run_id, owner="host:1:a")
    found = diagnose(await circumstances(bench, run_id))
    assert "host:1:a holds its lease until" in found.facts[0].message

    async def lost() -> bool:
        return (await circumstances(bench, run_id)).record.status == "running" and diagnose(
            await circumstances(bench, run_id)
        ).facts[0].code == "lease_lost"

    await eventually(lost, what="the lease to run out")
    await bench.claim(run_id, owner="host:2:b")
    facts = {fact.code: fact for fact in diagnose(await circumstances(bench, run_id)).facts}
    assert facts["attempts"].details == {"attempt": 2, "withoutProgress": 2, "maxAttempts": 5}
    assert "lost_before" in facts


async def test_the_sweeper_notes_when_a_lease_was_lost(bench: Workbench) -> None:
    async def dispatch(_: RunRecord) -> None: ...

    sweeper = Sweeper(bench.store, bench.settings, dispatch, "test")
    run_id = await bench.create()
    await bench.claim(run_id)

    async def swept() -> bool:
        return bool(await sweeper.sweep())

    await eventually(swept, what="the run to be taken over")
    found = await circumstances(bench, run_id)
    assert found.record.status == "queued"
    assert abs(int(found.record.fields["lostAt"]) - found.now) < 10_000


async def test_older_runs_of_the_same_queue_are_counted(bench: Workbench) -> None:
    for _ in range(3):
        await bench.create()
        await asyncio.sleep(0.002)  # runs of one millisecond are of the same age
    assert (await circumstances(bench, await bench.create())).ahead == 3


async def test_what_is_no_run_has_no_circumstances(bench: Workbench) -> None:
    with pytest.raises(UnknownRun):
        await circumstances(bench, "nothing")
