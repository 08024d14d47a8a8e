"""How runs stand, as callers see them: what a record alone does not tell of one that waits.

Invariant: nothing is changed by asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from durable.announcements import Announcement, Announcements
from durable.runs import TASK, RunRecord
from durable.store import Store
from durable.views import RunStatus, RunView

LIMIT_REACHED: Final = "limit_reached"
"""The reason of a background task that waits for a place under a limit."""
NO_WORKER: Final = "no_worker"
"""The reason of a queued run whose agent no live worker serves."""


async def views(store: Store, announcements: Announcements, records: Sequence[RunRecord]) -> list[RunView]:
    """Runs as callers see them; one that waits because nobody serves its agent, or for a place under a limit, says so.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    waiting = [record for record in records if record.status is RunStatus.QUEUED]
    kinds = {record.kind for record in waiting}
    workers = await announcements.workers() if kinds & {"evented", TASK} else []
    known = {item.name: item for item in await announcements.all()} if TASK in kinds else {}
    without_place = await held(store, waiting)
    found = []
    for record in records:
        view = record.view()
        served = any(worker.serves(record.agent, record.queue) for worker in workers)
        waits = record.status is RunStatus.QUEUED and needs_worker(record, known.get(record.agent))
        reason = LIMIT_REACHED if record.run_id in without_place else view.reason
        if waits and not served and reason in {None, LIMIT_REACHED}:
            reason = NO_WORKER
        found.append(view if reason == view.reason else view.model_copy(update={"reason": reason}))
    return found


async def held(store: Store, records: Sequence[RunRecord]) -> set[str]:
    """Those of some runs that wait for a place under a limit.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    asked = [(record.run_id, name) for record in records if record.status is RunStatus.QUEUED for name in record.limits]
    if not asked:
        return set()
    async with store.guard(), store.redis.pipeline(transaction=False) as pipe:
        for run_id, name in asked:
            pipe.zscore(store.keys.limit_waiting(name), run_id)
        found = await pipe.execute()
    return {run_id for (run_id, _), score in zip(asked, found, strict=True) if score is not None}


def needs_worker(record: RunRecord, agent: Announcement | None) -> bool:
    """Whether only a worker executes a run: also the task of an agent that workers execute, or one in a queue of its
    own."""
    if record.kind != TASK or agent is None:
        return record.kind == "evented"
    return agent.kind == "evented" or agent.queue != record.queue
