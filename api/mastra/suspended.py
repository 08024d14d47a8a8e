"""The route of runs that wait for somebody."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from durable.backend import Backend
from durable.runs import RunRecord
from durable.views import PendingCall, RunStatus, RunView

from ..dependencies import TheBackend
from .agents import as_json
from .log import waits
from .pages import Page, PerPage, moment, paged

router = APIRouter(prefix="/agents/{agent}")

AT_ONCE = 200
"""Runs that are read at a time."""


@router.get("/suspended-runs")
async def suspended_runs(
    agent: str,
    backend: TheBackend,
    thread_id: Annotated[str, Query(alias="threadId")] = "",
    resource_id: Annotated[str, Query(alias="resourceId")] = "",
    from_date: Annotated[datetime | None, Query(alias="fromDate")] = None,
    to_date: Annotated[datetime | None, Query(alias="toDate")] = None,
    per_page: PerPage = None,
    page: Page = 0,
) -> Response:
    """An agent's runs that wait for somebody, newest first, with the calls that wait."""
    await backend.announcements.get(agent)
    found = []
    for record, view in await _waiting(backend, agent):
        since = _since(view)
        wanted = thread_id in {"", record.thread_id} and resource_id in {"", record.resource_id}
        begun = from_date is None or since >= moment(from_date)
        if wanted and begun and (to_date is None or since <= moment(to_date)):
            found.append(_told(record, view, since))
    return as_json({"runs": paged(found, page, per_page), "total": len(found)})


async def _waiting(backend: Backend, agent: str) -> list[tuple[RunRecord, RunView]]:
    found: list[tuple[RunRecord, RunView]] = []
    cursor: str | None = None
    while True:
        records, cursor = await backend.runs.page(status=RunStatus.SUSPENDED, agent=agent, limit=AT_ONCE, cursor=cursor)
        records = [record for record in records if waits(record)]
        found += zip(records, await backend.views(records), strict=True)
        if cursor is None:
            return found


def _since(view: RunView) -> datetime:
    """Since when it waits: for its call that waits longest, if any does."""
    return min((call.since for call in view.pending or [] if call.since), default=view.started_at or view.created_at)


def _told(record: RunRecord, view: RunView, since: datetime) -> dict[str, Any]:
    told = {
        "runId": view.run_id,
        "status": "suspended",
        "threadId": record.thread_id,
        "resourceId": record.resource_id,
        "suspendedAt": since,
        "toolCalls": [_call(call) for call in view.pending or []],
    }
    return {name: value for name, value in told.items() if value is not None}


def _call(call: PendingCall) -> dict[str, Any]:
    told = {
        "toolCallId": call.tool_call_id,
        "toolName": call.tool_name,
        "args": call.args,
        "requiresApproval": call.kind == "approval",
        "suspendPayload": call.payload,
    }
    return {name: value for name, value in told.items() if value is not None}
