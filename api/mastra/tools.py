"""The routes of an agent's tools: look at one, and call it without a conversation.

A call is a run of its own that makes it, as a background task is; so it is recorded, and taken over when its worker is
lost. Nobody is there to be asked: a call that would wait for somebody is given up, and the caller is told.
"""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from durable.backend import Backend
from durable.errors import RunEnded, StoreUnavailable
from durable.runs import TASK, NewRun, RunRecord, RunRequest, ToolCallRequest
from durable.views import RunStatus, ToolView

from ..dependencies import TheBackend
from .agents import as_json, tool_of
from .bodies import NOT_SUPPORTED, Sent
from .log import pauses
from .outcome import CLOSED
from .problems import Refused, asks_nothing, refuse
from .repeats import KNOWN_SECONDS, Repeats

router = APIRouter(prefix="/agents/{agent}/tools/{tool}")

LONGEST_CALL: Final = 600
"""Seconds for which a call that is under way is known again."""
LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the caller is still there."""
WAITS: Final = "The tool waits for an approval or for data, and nobody can be asked without a conversation."


@router.get("")
async def get_tool(agent: str, tool: str, backend: TheBackend) -> Response:
    """A tool, with the JSON schema of its arguments."""
    return as_json(tool_of(await _known(backend, agent, tool)))


@router.post("/execute")
async def execute(agent: str, tool: str, body: Sent, backend: TheBackend, request: Request) -> Response:
    """Call a tool and wait for its result."""
    unknown = [
        name for name, value in body.items() if name not in {"data", "requestContext"} and not asks_nothing(value)
    ]
    if unknown:
        raise refuse(*((name, NOT_SUPPORTED) for name in unknown))
    args, context = body.get("data", {}), body.get("requestContext")
    if not isinstance(args, dict):
        raise refuse(("data", "The arguments of a tool are an object."))
    if not isinstance(context, dict | None):
        raise refuse(("requestContext", "This is an object."))
    await _known(backend, agent, tool)
    repeats = Repeats(backend, "execute", agent, tool, args, context)
    record = await _begin(backend, agent, await repeats.id(LONGEST_CALL), tool, args, context)
    if await _is_past(backend, record):
        record = await _begin(backend, agent, await repeats.anew(LONGEST_CALL), tool, args, context)
    ended = await _settled(backend, record, request)
    if ended is None:
        return Response(status_code=CLOSED)
    await repeats.answered()
    return as_json(await _result(backend, ended))


async def _known(backend: Backend, agent: str, tool: str) -> ToolView:
    announced = await backend.announcements.get(agent)
    found = next((each for each in announced.view.tools if each.name == tool), None)
    if found is None:
        raise Refused(404, "Tool not found")
    return found


async def _is_past(backend: Backend, record: RunRecord) -> bool:
    """Whether a call was over, long before this request, that nobody has waited for to the end."""
    [view] = await backend.views([record])
    return view.finished_at is not None and datetime.now(UTC) - view.finished_at > timedelta(seconds=KNOWN_SECONDS)


async def _begin(
    backend: Backend, agent: str, run_id: str, tool: str, args: dict[str, Any], context: dict[str, Any] | None
) -> RunRecord:
    call = ToolCallRequest(tool_name=tool, tool_call_id="execute", args=args, idempotency_key=run_id, unasked=True)
    announced = await backend.announcements.get(agent)
    new = NewRun(
        agent=announced.name,
        kind=TASK,
        queue=announced.queue,
        request=RunRequest(tool_call=call, deps=context or None),
        retention=backend.settings.task_retention_seconds,
        retention_failed=backend.settings.failed_task_retention_seconds,
        run_id=run_id,
    )
    record, _ = await backend.submit(new)
    return record


async def _settled(backend: Backend, record: RunRecord, request: Request) -> RunRecord | None:
    """The run once it has ended, or waits for somebody; None when its caller has gone. It goes on then.

    Raises:
        StoreUnavailable: Redis does not answer, or this server stops: the same request may be sent again.
    """
    reading = backend.observer.pages(record.run_id, silence=LOOK_SECONDS, pauses=partial(pauses, backend))
    async with aclosing(reading) as pages:
        async for page in pages:
            if not page and await request.is_disconnected():
                return None
    record = await backend.runs.get(record.run_id)
    if not (record.status.ended or await pauses(backend, record)):
        raise StoreUnavailable("This server stops. The call goes on: ask again.")
    return record


async def _result(backend: Backend, record: RunRecord) -> Any:
    if record.status is RunStatus.SUSPENDED:
        try:
            await backend.cancel(record.run_id, reason=WAITS)
        except RunEnded:
            record = await backend.runs.get(record.run_id)  # somebody was faster
        else:
            raise Refused(409, WAITS)
    if record.status is RunStatus.COMPLETED:
        return record.json("output")
    error = record.json("error") or {}
    raise Refused(422, error.get("message", "The tool call was cancelled."))
