"""The background tasks and sub-agents' runs that a run waits for, each with its own reason.

Invariant: nothing is changed by asking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from durable.announcements import Announcements
from durable.chunks.base import Json
from durable.diagnosis.standing import LIMIT_REACHED, NO_WORKER, views
from durable.runs import BACKGROUND, BUDGET_REACHED, RETRYING, TASK, RunRecord
from durable.store import Store, text
from durable.views import RunStatus

MOST_READ: Final = 1000
"""Children that are looked at, at most."""

_WAITS: Final = {BACKGROUND: "tasks of its own", BUDGET_REACHED: "its budget to be raised"}


@dataclass(frozen=True)
class Child:
    """A run that another one waits for.

    Attributes:
        record: Of the child.
        reason: Why it waits, as callers see it; None when it does not, or waits for a worker that is there.
    """

    record: RunRecord
    reason: str | None = None

    @property
    def named(self) -> dict[str, Json]:
        """What it is, for programs."""
        record = self.record
        found: dict[str, Json] = {
            "taskId": record.run_id,
            "toolName": text(record.fields["toolName"]),
            "toolCallId": record.parent_call_id,
            "disposition": text(record.fields["disposition"]),
            "status": record.status,
        }
        return found | ({} if self.reason is None else {"reason": self.reason})

    def words(self, again_at: str | None) -> str:
        """How it stands; `again_at` is when it is tried again, if it waits for that."""
        record, who = self.record, "its tool raised" if self.record.kind == TASK else "its model's provider failed"
        match record.status, self.reason:
            case RunStatus.RUNNING, _:
                return f"is being executed (attempt {record.token})"
            case RunStatus.QUEUED, reason if reason == NO_WORKER:
                return f"is queued: no live worker serves the agent {record.agent!r} and reads {record.queue!r}"
            case RunStatus.QUEUED, reason if reason == LIMIT_REACHED:
                return "is queued: as many background tasks are executed as may be"
            case RunStatus.QUEUED, reason if reason == RETRYING:
                return f"is queued: {who}, and it is tried again at {again_at}"
            case RunStatus.QUEUED, _:
                return "is queued: it waits for a worker to take it up"
        return f"is suspended: it waits for {_WAITS.get(self.reason or '', 'somebody to answer')}"


async def waited_for(store: Store, announcements: Announcements, record: RunRecord) -> list[Child]:
    """What a suspended run waits for of what it has started, in the order in which that was started.

    Raises:
        StoreUnavailable: Redis does not answer.
    """
    if record.status is not RunStatus.SUSPENDED or not record.begat:
        return []
    keys = store.keys
    async with store.guard(), store.redis.pipeline(transaction=True) as pipe:
        pipe.hgetall(keys.children(record.run_id))
        pipe.lrange(keys.children_order(record.run_id), 0, -1)
        states, order = cast("tuple[dict[bytes, bytes], list[bytes]]", await pipe.execute())
    live = [text(child) for child in order if states.get(child) == b"live"][:MOST_READ]
    async with store.guard(), store.redis.pipeline(transaction=False) as pipe:
        for child in live:
            pipe.hgetall(keys.run(child))
        rows = await pipe.execute()
    records = [
        RunRecord(child, {text(name): value for name, value in fields.items()})
        for child, fields in zip(live, rows, strict=True)
        if fields
    ]
    # One that waits for somebody's answer goes on with that, whatever becomes of its deferred calls.
    awaited = {b"awaited"} if record.reason != BACKGROUND else {b"awaited", b"deferred"}
    waits = [each for each in records if not each.status.ended and each.fields["disposition"] in awaited]
    seen = await views(store, announcements, waits)
    return [Child(each, view.reason) for each, view in zip(waits, seen, strict=True)]
