"""The doctor on background tasks: what they came to is known, and what they took is given back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import RunContext

from durable import create_durable_agent, ledger
from durable.chunks import BackgroundTaskStarted, TaskPayload
from durable.doctor import Doctor
from durable.leases import suspend
from durable.runs.reports import Report
from durable.settings import Settings
from durable.store import text
from durable.writer import Ending, Note
from tests.integration.test_background import Gate, agent_of, idle, told
from tests.integration.test_background_faults import task_of
from tests.workbench import Workbench, finish, step_start


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Workbench]:
    async with Workbench(settings) as found:
        yield found


async def found(bench: Workbench) -> list[tuple[str, str]]:
    """What is wrong: runs and checks."""
    return [(each.run_id, each.check) async for each in Doctor(bench.store).findings()]


class Family:
    """A run that waits for its one task, under a limit, which is executed.

    Attributes:
        run_id: The run.
        task: The task.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    async def begin(self) -> None:
        bench = self.bench
        writer = await bench.writer()
        lease = writer.lease
        record, _ = await bench.runs.create(task_of(lease.run_id, lease.token, limits={"one": 1}))
        self.run_id, self.task = lease.run_id, record.run_id
        entry = ledger.encode(ledger.Outcome(value="later", task=ledger.Task(self.task, "work")))
        payload = TaskPayload(task_id=self.task, tool_name="work", tool_call_id="c1")
        writer.write(step_start(1))
        writer.write(BackgroundTaskStarted(payload=payload), Note(field=ledger.key(1, "c1"), value=entry))
        await writer.flush()
        self.writer = await bench.writer(self.task)
        assert await suspend(bench.store, lease, 0, {"reason": "background"}) == "suspended"

    async def end(self) -> None:
        """The task ends, and its run is told."""
        told = Report(await self.bench.runs.get(self.task)).completed(ledger.Outcome(value=1))
        await self.writer.finish(Ending("completed", b"", {**told}), finish())


@pytest.fixture
async def family(bench: Workbench) -> Family:
    made = Family(bench)
    await made.begin()
    return made


async def test_a_run_and_its_task_are_sound_at_each_moment(bench: Workbench, family: Family) -> None:
    assert await found(bench) == []
    await family.end()
    assert await found(bench) == []
    assert (await bench.runs.get(family.run_id)).status == "queued"
    assert await bench.store.redis.lrange(bench.store.keys.woken, 0, -1)


async def test_whole_runs_with_tasks_and_agents_that_are_asked_are_sound(settings: Settings, bench: Workbench) -> None:
    gate = Gate()
    agent = create_durable_agent(agent_of(gate.work, background=True, calls=5, max_concurrency=2), cache=settings)
    handle = await agent.stream("go", until_idle=True)
    await idle(handle)
    assert await found(bench) == []
    gate.open.set()
    await told(handle)
    other = await agent.stream("go", until_idle=True)
    await other.cancel()
    assert await found(bench) == []
    await agent.aclose()


async def test_a_run_that_never_hears_what_its_task_came_to_is_told(bench: Workbench, family: Family) -> None:
    await family.end()
    await bench.store.redis.hdel(bench.store.keys.ledger(family.run_id), ledger.answer_key(1, "c1", 0))
    await bench.store.redis.hset(bench.store.keys.run(family.run_id), "decisions", "0")
    assert (family.task, "tasks") in await found(bench)


async def test_a_run_that_counts_an_ended_task_as_under_way_is_told(bench: Workbench, family: Family) -> None:
    await family.end()
    await bench.store.redis.hset(bench.store.keys.children(family.run_id), family.task, "live")
    assert await found(bench) == [(family.task, "tasks")]


async def test_a_run_that_waits_for_tasks_of_which_none_is_under_way_is_told(bench: Workbench, family: Family) -> None:
    await bench.store.redis.hset(bench.store.keys.children(family.run_id), family.task, "ended")
    assert await found(bench) == [(family.run_id, "tasks")]


async def test_a_place_of_a_task_that_has_ended_or_is_gone_is_told(bench: Workbench, family: Family) -> None:
    redis, keys = bench.store.redis, bench.store.keys
    assert [text(each) for each in await redis.smembers(keys.limit("one"))] == [family.task]
    await family.end()
    await redis.sadd(keys.limit("one"), family.task, "task-gone")
    await redis.zadd(keys.limit_waiting("one"), {family.task: 1, "task-lost": 1})
    assert sorted(await found(bench)) == sorted(
        [(family.task, "limit"), (family.task, "limit"), ("task-gone", "limit"), ("task-lost", "limit")]
    )


async def test_a_run_that_is_to_be_woken_and_is_gone_is_told(bench: Workbench, family: Family) -> None:
    await bench.store.redis.rpush(bench.store.keys.woken, family.run_id, "gone", *["run"] * 300)
    assert await found(bench) == [("gone", "state"), ("run", "state")]


async def test_a_retry_need_not_be_told_what_it_has_made_anew(settings: Settings, bench: Workbench) -> None:
    """A task whose tool raised is started again by the retry, which has adopted the old one."""

    async def raises(_: RunContext[Any], n: int) -> str:
        raise RuntimeError(n)

    wrapped = create_durable_agent(agent_of(raises, background="awaited"), cache=settings)
    handle = await wrapped.stream("go")
    async for _chunk in handle.observe():
        pass
    assert (await handle.status()).status == "failed"
    retried, _ = await bench.runs.retry(handle.run_id)
    assert await found(bench) == []
    await bench.runs.cancel(retried.run_id)
    assert await found(bench) == []
    await wrapped.aclose()
