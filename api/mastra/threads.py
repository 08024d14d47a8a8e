"""The routes of threads: follow all of a conversation, end its run, answer a call of it.

A thread has one run that has not ended, or none; that is the one that is meant.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from durable.backend import Backend
from durable.chunks.base import Json
from durable.decisions import Answer
from durable.errors import RunEnded, RunExpired, ThreadConflict, UnknownRun
from durable.runs import RunRecord, check_thread_id

from ..dependencies import TheBackend
from .agents import as_json
from .answers import answered, resumed
from .bodies import read_execution
from .framing import HEARTBEAT_SECONDS, listening
from .problems import Refused, refuse
from .repeats import Repeats
from .runs import begun

router = APIRouter(prefix="/agents/{agent}")

NO_RUN = "The thread has no run that waits for this call."


class ThreadBody(BaseModel):
    """A thread, and whose it has to be."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    thread_id: Annotated[str, Field(alias="threadId")]
    resource_id: Annotated[str | None, Field(alias="resourceId")] = None


class AbortBody(ThreadBody):
    """The thread whose run is ended; `expectedRunId` if only that one is meant."""

    expected_run_id: Annotated[str | None, Field(alias="expectedRunId")] = None


class ApprovalBody(ThreadBody):
    """The answer to a call. With `messages` it tells the results of calls that were left to the caller, and begins the
    run that goes on with them."""

    tool_call_id: Annotated[str, Field(alias="toolCallId")]
    approved: bool
    resume_data: Annotated[Json, Field(alias="resumeData")] = None
    messages: list[dict[str, Any]] | None = None
    stream_options: Annotated[dict[str, Any] | None, Field(alias="streamOptions")] = None
    request_context: Annotated[dict[str, Any] | None, Field(alias="requestContext")] = None
    format: str | None = None


@router.post("/threads/abort")
async def abort(agent: str, body: AbortBody, backend: TheBackend) -> Response:
    """End the run of a thread that has not ended."""
    record = await live_run(backend, agent, body.thread_id, body.resource_id)
    if record is None or body.expected_run_id not in {None, record.run_id}:
        return as_json({"aborted": False})
    if await Repeats(backend, "abort", agent, body.model_dump()).first(record.run_id) != record.run_id:
        return as_json({"aborted": True})  # it was for the run before, and that one has ended since
    try:
        await backend.cancel(record.run_id)
    except RunEnded:
        return as_json({"aborted": False})
    return as_json({"aborted": True})


@router.post("/threads/subscribe")
async def subscribe(agent: str, body: ThreadBody, backend: TheBackend) -> Response:
    """Follow all runs of a thread from now on: the one that has not ended, and each that begins."""
    await backend.announcements.get(agent)
    return await listening(_said(backend, body))


@router.post("/send-tool-approval")
async def send_tool_approval(agent: str, body: ApprovalBody, backend: TheBackend) -> Response:
    """Answer a call of a thread's run. What comes of it is told to those who follow the thread."""
    if body.format not in {None, "mastra"}:
        raise refuse(("format", "This server has one format."))
    known = await _thread(backend, body.thread_id, body.resource_id)
    record = await _run(backend, agent, known.get("live") or known.get("last"))
    if record is None:
        raise Refused(404, NO_RUN)
    if body.messages:
        return await _go_on(agent, body, backend)
    if body.stream_options:
        raise refuse(("streamOptions", "The run goes on as it was begun."))
    if body.request_context:
        raise refuse(("requestContext", "The run goes on as it was begun."))
    if not body.approved:
        await answered(backend, record, body.tool_call_id, Answer(kind="decline"))
    elif body.resume_data is not None:
        await resumed(backend, record, body.tool_call_id, body.resume_data)
    else:
        await answered(backend, record, body.tool_call_id, Answer(kind="approve"))
    return as_json({"accepted": True, "runId": record.run_id, "toolCallId": body.tool_call_id})


async def live_run(backend: Backend, agent: str, thread_id: str, resource_id: str | None) -> RunRecord | None:
    """An agent's run of a thread that has not ended.

    Raises:
        UnknownAgent: There is no such agent.
        InvalidRequest: The thread's id is not one.
        ThreadConflict: The thread belongs to another resource.
        StoreUnavailable: Redis does not answer.
    """
    await backend.announcements.get(agent)
    known = await _thread(backend, thread_id, resource_id)
    record = await _run(backend, agent, known.get("live"))
    return None if record is None or record.status.ended else record


async def _thread(backend: Backend, thread_id: str, resource_id: str | None) -> dict[str, str]:
    known = await backend.runs.thread(check_thread_id(thread_id))
    if known and resource_id is not None and known["resource"] != resource_id:
        raise ThreadConflict
    return known


async def _run(backend: Backend, agent: str, run_id: str | None) -> RunRecord | None:
    if run_id is None:
        return None
    try:
        record = await backend.runs.get(run_id)
    except (UnknownRun, RunExpired):
        return None
    return record if record.agent == agent else None


async def _said(backend: Backend, body: ThreadBody) -> AsyncGenerator[bytes]:
    pages = backend.thread_feed.pages(body.thread_id, resource_id=body.resource_id, silence=HEARTBEAT_SECONDS)
    async with aclosing(pages):
        async for page in pages:
            yield b"".join([entry.blocks for entry in page])


async def _go_on(agent: str, body: ApprovalBody, backend: Backend) -> Response:
    """Begin the run that goes on with the results of calls that were left to the caller: the client tells them as parts
    of a message of the model."""
    results = [
        part
        for message in body.messages or []
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if isinstance(part, dict) and part.get("type") == "tool-result"
    ]
    if not results:
        raise refuse(("messages", "These tell the results of tools."))
    memory = {"thread": body.thread_id} | ({} if body.resource_id is None else {"resource": body.resource_id})
    context = {} if body.request_context is None else {"requestContext": body.request_context}
    asked = read_execution(
        {**context, **(body.stream_options or {}), "memory": memory, "messages": [{"role": "tool", "content": results}]}
    )
    run_id = await Repeats(backend, agent, body.model_dump()).id()
    record, _ = await begun(backend, agent, replace(asked, run_id=asked.run_id or run_id, results=[]))
    return as_json({"accepted": True, "runId": record.run_id, "toolCallId": body.tool_call_id})
