"""The background tasks of a deployment: listed, looked at, and followed all at once.

A task is a run that another one has started; here it is told as the call that it makes. Calls that are made as runs of
sub-agents are no tasks in the indexes: their runs are listed with all runs, and as tasks of the run that has started
them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, cast

from durable.announcements import Announcements
from durable.decisions import Decisions
from durable.diagnosis import views
from durable.errors import AmbiguousCall, UnknownCall, UnknownRun
from durable.positions import Position, batches
from durable.runs import TASK, RunRecord, RunRequest, Runs
from durable.runs.record import RUN_ID
from durable.store import Store, text
from durable.views import RunStatus, RunView, TaskStatus, TaskView

TIMED_OUT: Final = "tool_timeout"
"""The error of a task that took too long."""
UNKNOWN: Final = "There is no background task with this id."

_STATUSES: Final = {TaskStatus.PENDING: RunStatus.QUEUED, TaskStatus.TIMED_OUT: RunStatus.FAILED}


class Tasks:
    """The background tasks of a deployment."""

    def __init__(self, store: Store, runs: Runs, announcements: Announcements, decisions: Decisions) -> None:
        self._store = store
        self._runs = runs
        self._announcements = announcements
        self._decisions = decisions

    async def get(self, task_id: str) -> TaskView:
        """A task, with its result.

        Raises:
            UnknownRun, RunExpired: There is no such task.
            StoreUnavailable: Redis does not answer.
        """
        [view] = await self.shown([await self.record(task_id)])
        return view

    async def record(self, task_id: str) -> RunRecord:
        """The record of the run that a task is. Raises what `get` raises."""
        record = await self._runs.get(task_id)
        if record.parent_run_id is None:
            raise UnknownRun(UNKNOWN)
        return record

    async def call_of(self, task_id: str) -> str:
        """The call of a task that waits for an answer, or has waited.

        Raises:
            AmbiguousCall: Several wait, as it may be in the run of a sub-agent.
            UnknownCall: It is a sub-agent's, and none waits.
            UnknownRun, RunExpired: There is no such task.
            StoreUnavailable: Redis does not answer.
        """
        record = await self.record(task_id)
        if record.kind == TASK and record.parent_call_id is not None:
            return record.parent_call_id
        [calls] = await self._decisions.calls([task_id])
        waiting = [call for call in calls if call.answer is None]
        if not waiting:
            raise UnknownCall
        if len(waiting) > 1:
            raise AmbiguousCall(candidates=[{"runId": task_id, **call.named} for call in waiting])
        return waiting[0].tool_call_id

    async def page(
        self,
        *,
        status: TaskStatus | None = None,
        agent: str = "",
        run: str = "",
        tool: str = "",
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[TaskView], str | None]:
        """Tasks, newest first and without their results, and the cursor of the next page.

        Args:
            status: Only those in this state.
            agent: Only those that this agent executes.
            run: Only those that this run has started; then its sub-agents' runs are there, too.
            tool: Only those of this tool.
            limit: Tasks, at most.
            cursor: The next page of an earlier one.

        Raises:
            InvalidRequest: The cursor is not one of ours.
            StoreUnavailable: Redis does not answer.
        """
        seen, keys = Position.parse(cursor, RUN_ID), self._store.keys
        index = None
        if run:
            places = self._children(run, seen, size=limit)
        else:
            index = keys.tasks(status=_STATUSES.get(status, status)) if status else keys.tasks(agent=agent)
            places = batches(self._store, index, seen, size=limit, newest_first=True)

        def fits(record: RunRecord) -> bool:
            return (
                record.parent_run_id is not None
                and agent in {"", record.agent}
                and run in {"", record.parent_run_id}
                and tool in {"", text(record.fields["toolName"])}
                and status in {None, status_of(record)}
            )

        records, following = await self._runs.select(places, fits, limit=limit, index=index)
        return await self.shown(records), following

    async def running(self, *, agent: str = "", run: str = "") -> AsyncGenerator[list[TaskView]]:
        """The tasks that are being executed, some at a time. Raises what `page` raises."""
        cursor: str | None = None
        while True:
            found, cursor = await self.page(status=TaskStatus.RUNNING, agent=agent, run=run, limit=100, cursor=cursor)
            yield found
            if cursor is None:
                return

    async def shown(self, records: Sequence[RunRecord]) -> list[TaskView]:
        """Tasks as callers see them, by the records of their runs.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        if not records:
            return []
        asked = [record.run_id for record in records if record.asked]
        calls = dict(zip(asked, await self._decisions.calls(asked), strict=True))
        runs = await views(self._store, self._announcements, records)
        requests = await self._requests(records)
        found = []
        for record, run, request in zip(records, runs, requests, strict=True):
            waiting = [] if run.ended else [call for call in calls.get(record.run_id, []) if call.answer is None]
            view = _view(record, run)
            view["args"] = None if request is None else request.call_args
            view["pending"] = [call.pending() for call in waiting] or None
            found.append(TaskView(**view))
        return found

    async def _children(self, run_id: str, seen: Position | None, *, size: int) -> AsyncGenerator[list[Position]]:
        """The places of what a run has started, newest first, after one of them."""
        keys = self._store.keys
        async with self._store.guard():
            ids = [text(child) for child in cast("list[bytes]", await self._store.redis.hkeys(keys.children(run_id)))]
            async with self._store.redis.pipeline(transaction=False) as pipe:
                for child in ids:
                    pipe.hget(keys.run(child), "createdAt")
                created = await pipe.execute()
        every = (Position(int(at), child) for child, at in zip(ids, created, strict=True) if at is not None)
        places = sorted((place for place in every if seen is None or place < seen), reverse=True)
        for start in range(0, len(places), size):
            yield places[start : start + size]

    async def _requests(self, records: Sequence[RunRecord]) -> list[RunRequest | None]:
        async with self._store.guard():
            stored = await self._store.redis.mget([self._store.keys.request(record.run_id) for record in records])
        return [_read(value) for value in cast("list[bytes | None]", stored)]


def status_of(record: RunRecord) -> TaskStatus:
    """The state of a task, by that of its run."""
    match record.status:
        case RunStatus.QUEUED:
            return TaskStatus.PENDING
        case RunStatus.FAILED if (record.json("error") or {}).get("code") == TIMED_OUT:
            return TaskStatus.TIMED_OUT
        case status:
            return TaskStatus(status)


def _view(record: RunRecord, run: RunView) -> dict[str, Any]:
    return {
        "task_id": record.run_id,
        "status": status_of(record),
        "tool_name": text(record.fields["toolName"]),
        "tool_call_id": record.parent_call_id,
        "run_id": record.parent_run_id,
        "agent": record.agent,
        "disposition": text(record.fields["disposition"]),
        "queue": record.queue,
        "attempt": record.token,
        "retries_used": record.retries_used,
        "reason": run.reason,
        "result": run.output,
        "error": run.error,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "completed_at": run.finished_at,
    }


def _read(value: bytes | None) -> RunRequest | None:
    """What a task was asked to do; None when this version can't read it."""
    try:
        return None if value is None else RunRequest.model_validate_json(value)
    except ValueError:
        return None
