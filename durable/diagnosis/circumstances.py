"""What the store knows of a run and of what surrounds it.

Invariant: what is told was true at one moment; nothing is changed by asking. Moments are by the store's own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from durable.announcements import Announcement, Announcements
from durable.decisions import Call, read_calls
from durable.diagnosis.children import Child, waited_for
from durable.diagnosis.standing import held, needs_worker
from durable.errors import UnknownAgent
from durable.runs import TASK, RunRecord, Runs
from durable.settings import Settings
from durable.store import Store, text
from durable.views import RunStatus

MOST_COUNTED: Final = 1000
"""Older queued runs that are looked at, at most."""
# Workers show themselves every 2.5 seconds, or more often.
_SILENT_SECONDS: Final = 4.0


@dataclass(frozen=True)
class Circumstances:
    """What the store knows of a run at one moment. Moments are ms since 1970.

    Attributes:
        record: The run.
        now: The store's clock.
        workers: Live workers that serve its agent.
        silences: For each of them that has not shown itself for longer than usual, for how many seconds.
        lease_until: Until when the lease of its newest attempt holds; None without a lease.
        wakeup_at: When a wake-up that is lost is repeated; None without one.
        ahead: Older queued runs of the same queue, counted up to a limit.
        swept: Whether some process looks for lost runs.
        thread_run: The run of its thread that it waits for; None when it waits for none.
        max_attempts: Claims without progress after which it fails.
        calls: Its tool calls that wait, or waited, for an answer.
        agent: What is known of its agent, if it is a background task.
        held: Whether it waits for a place under a limit.
        children: What it waits for of what it has started.
    """

    record: RunRecord
    now: int
    workers: int = 0
    silences: Sequence[float] = ()
    lease_until: int | None = None
    wakeup_at: int | None = None
    ahead: int = 0
    swept: bool = True
    thread_run: str | None = None
    max_attempts: int = 5
    calls: Sequence[Call] = ()
    agent: Announcement | None = None
    held: bool = False
    children: Sequence[Child] = ()

    @property
    def unserved(self) -> bool:
        """Whether nobody is there to execute it. Who executes a `durable` agent need not be a worker."""
        return self.workers == 0 and needs_worker(self.record, self.agent)

    @property
    def at_last_attempt(self) -> bool:
        """Whether its next attempt without progress is the last one, after others that were lost."""
        claims = self.record.claims
        return claims > 0 and claims + 1 == self.max_attempts


async def examine(
    store: Store, runs: Runs, announcements: Announcements, settings: Settings, run_id: str
) -> Circumstances:
    """Look at a run and what surrounds it.

    Raises:
        UnknownRun, RunExpired: There is no such run.
        StoreUnavailable: Redis does not answer.
    """
    keys = store.keys
    record = await runs.get(run_id)
    while True:
        async with store.guard(), store.redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.run(run_id))
            pipe.zscore(keys.leases, f"{run_id}:{record.token}")
            pipe.zscore(keys.wakeups, run_id)
            pipe.exists(keys.sweeper)
            pipe.hgetall(keys.calls(run_id))
            pipe.time()
            fields, lease, wakeup, swept, calls, (seconds, micros) = await pipe.execute()
        if not fields:
            record = await runs.get(run_id)  # it has just expired
            continue
        token, record = record.token, RunRecord(run_id, {text(name): value for name, value in fields.items()})
        if record.token == token:
            break  # else the lease is that of an attempt before
    silences = await announcements.silences(record.agent, record.queue)
    return Circumstances(
        record,
        now=int(seconds) * 1000 + int(micros) // 1000,
        workers=len(silences),
        silences=[silence for silence in silences if silence > _SILENT_SECONDS],
        lease_until=None if lease is None else int(lease),
        wakeup_at=None if wakeup is None else int(wakeup),
        ahead=await _ahead(store, record) if record.status is RunStatus.QUEUED else 0,
        swept=bool(swept),
        thread_run=(await runs.thread(record.thread_id)).get("live") if record.behind and record.thread_id else None,
        max_attempts=settings.max_attempts,
        calls=read_calls(calls),
        agent=await _agent_of(announcements, record),
        held=run_id in await held(store, [record]),
        children=await waited_for(store, announcements, record),
    )


async def _agent_of(announcements: Announcements, record: RunRecord) -> Announcement | None:
    if record.kind != TASK:
        return None
    try:
        return await announcements.get(record.agent)
    except UnknownAgent:
        return None


async def _ahead(store: Store, record: RunRecord) -> int:
    """How many queued runs of the same queue are older."""
    keys, created = store.keys, int(record.fields["createdAt"])
    async with store.guard():
        index = keys.runs(status=RunStatus.QUEUED)
        older = await store.redis.zrangebyscore(index, "-inf", f"({created}", start=0, num=MOST_COUNTED)
        async with store.redis.pipeline(transaction=False) as pipe:
            for run_id in cast("list[bytes]", older):
                pipe.hget(keys.run(text(run_id)), "queue")
            queues = await pipe.execute()
    return sum(1 for queue in queues if queue is not None and text(queue) == record.queue)
