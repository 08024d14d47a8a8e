"""The routes of background tasks: list them, look at one, follow all of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from durable.backend import Backend
from durable.background.feed import News
from durable.errors import RunExpired, UnknownRun
from durable.runs import RunRecord
from durable.views import TaskStatus, TaskView

from ..dependencies import TheBackend
from .agents import as_json
from .framing import HEARTBEAT_SECONDS, block, listening
from .pages import Page, PerPage, moment, paged
from .problems import Refused

router = APIRouter(prefix="/background-tasks")

AT_ONCE = 200
"""Tasks that are read at a time."""
REMEMBERED = 1000
"""Runs that one request remembers."""
Moment = Literal["createdAt", "startedAt", "completedAt"]
_FIELDS: dict[str, str] = {"createdAt": "created_at", "startedAt": "started_at", "completedAt": "completed_at"}
Id = Annotated[str, Query(max_length=256)]


@router.get("")
async def list_tasks(
    backend: TheBackend,
    agent_id: Annotated[Id, Query(alias="agentId")] = "",
    status: TaskStatus | None = None,
    run_id: Annotated[Id, Query(alias="runId")] = "",
    thread_id: Annotated[Id, Query(alias="threadId")] = "",
    resource_id: Annotated[Id, Query(alias="resourceId")] = "",
    tool_name: Annotated[Id, Query(alias="toolName")] = "",
    tool_call_id: Annotated[Id, Query(alias="toolCallId")] = "",
    from_date: Annotated[datetime | None, Query(alias="fromDate")] = None,
    to_date: Annotated[datetime | None, Query(alias="toDate")] = None,
    date_filter_by: Annotated[Moment, Query(alias="dateFilterBy")] = "createdAt",
    order_by: Annotated[Moment, Query(alias="orderBy")] = "createdAt",
    order_direction: Annotated[Literal["asc", "desc"], Query(alias="orderDirection")] = "asc",
    page: Page = 0,
    per_page: PerPage = None,
) -> Response:
    """Those that fit, oldest first if nobody says otherwise."""
    places = _Places(backend)
    found: list[TaskView] = []
    cursor: str | None = None
    while True:
        tasks, cursor = await backend.tasks.page(
            status=status, agent=agent_id, run=run_id, tool=tool_name, limit=AT_ONCE, cursor=cursor
        )
        for task in tasks:
            at = getattr(task, _FIELDS[date_filter_by])
            within = (from_date is None or (at is not None and at >= moment(from_date))) and (
                to_date is None or (at is not None and at <= moment(to_date))
            )
            if within and tool_call_id in {"", task.tool_call_id} and await places.fit(task, thread_id, resource_id):
                found.append(task)
        if cursor is None:
            break
    name = _FIELDS[order_by]
    found.sort(
        key=lambda task: (getattr(task, name) or task.created_at, task.task_id), reverse=order_direction == "desc"
    )
    shown = [await _whole(backend, task) for task in paged(found, page, per_page)]
    return as_json({"tasks": [await _told(backend, places, task) for task in shown], "total": len(found)})


@router.get("/stream")
async def stream_tasks(
    backend: TheBackend,
    agent_id: Annotated[Id, Query(alias="agentId")] = "",
    run_id: Annotated[Id, Query(alias="runId")] = "",
    thread_id: Annotated[Id, Query(alias="threadId")] = "",
    resource_id: Annotated[Id, Query(alias="resourceId")] = "",
    task_id: Annotated[Id, Query(alias="taskId")] = "",
) -> Response:
    """Those that are being executed, and from then on what becomes of tasks; without an end."""
    return await listening(_news(backend, agent_id, run_id, thread_id, resource_id, task_id))


@router.get("/{task_id}")
async def get_task(task_id: str, backend: TheBackend) -> Response:
    """One of them, with its result."""
    try:
        task = await backend.tasks.get(task_id)
    except (UnknownRun, RunExpired):
        raise Refused(404, "Background task not found") from None
    return as_json(await _told(backend, _Places(backend), task))


async def _news(backend: Backend, agent: str, run: str, thread: str, resource: str, task: str) -> AsyncGenerator[bytes]:
    places = _Places(backend)
    begun = False
    while not backend.hub.dismissed:
        # A reader that may have missed something begins anew.
        pages = backend.feed.pages(agent=agent, run=run, silence=HEARTBEAT_SECONDS)
        async with aclosing(pages):
            async for page in pages:
                wanted = [
                    news
                    for news in page
                    if task in {"", news.task_id} and await places.of_run_fit(news.run_id, thread, resource)
                ]
                if wanted or not page or not begun:
                    begun = True
                    yield _blocks(wanted)


async def _whole(backend: Backend, task: TaskView) -> TaskView:
    """A task with its result, which lists have not."""
    if task.status is not TaskStatus.COMPLETED:
        return task
    try:
        return await backend.tasks.get(task.task_id)
    except (UnknownRun, RunExpired):
        return task


def _blocks(page: Sequence[News]) -> bytes:
    return b"".join([block(news.wire) for news in page])


class _Places:
    """The threads of the runs that have started tasks, each asked for once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: dict[str, RunRecord | None] = {}

    async def of(self, run_id: str) -> tuple[str | None, str | None]:
        """The thread and the resource of a run."""
        if run_id not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            try:
                self._known[run_id] = await self._backend.runs.get(run_id)
            except (UnknownRun, RunExpired):
                self._known[run_id] = None
        record = self._known[run_id]
        return (None, None) if record is None else (record.thread_id, record.resource_id)

    async def of_run_fit(self, run_id: str, thread: str, resource: str) -> bool:
        """Whether a run is of a thread and a resource; "" stands for any."""
        if not (thread or resource):
            return True
        found = await self.of(run_id)
        return thread in {"", found[0]} and resource in {"", found[1]}

    async def fit(self, task: TaskView, thread: str, resource: str) -> bool:
        """The same of the run that has started a task."""
        return await self.of_run_fit(task.run_id, thread, resource)


async def _told(backend: Backend, places: _Places, task: TaskView) -> dict[str, Any]:
    thread, resource = await places.of(task.run_id)
    try:
        call = (await backend.runs.request(task.task_id)).tool_call
    except UnknownRun:
        call = None
    told = {
        "id": task.task_id,
        "status": task.status,
        "toolName": task.tool_name,
        "toolCallId": task.tool_call_id,
        "args": task.args,
        "agentId": task.agent,
        "threadId": thread,
        "resourceId": resource,
        "runId": task.run_id,
        "retryCount": task.retries_used,
        "maxRetries": 0 if call is None else call.retries,
        "timeoutMs": 0,
        "createdAt": task.created_at,
        "startedAt": task.started_at,
        "completedAt": task.completed_at,
        "result": task.result,
        "error": None if task.error is None else {"message": task.error.message},
        "suspendPayload": None if not task.pending else task.pending[0].payload,
    }
    return {name: value for name, value in told.items() if value is not None}
