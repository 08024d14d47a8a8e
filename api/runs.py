"""The door for runs: submit, look, list, follow, cancel, retry."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Request, Response

from durable.backend import Backend
from durable.conversation import read_conversation
from durable.errors import InvalidRequest
from durable.journal import Entry, read, read_cursor
from durable.runs import NewRun, RunRecord, check_policy, check_thread_id
from durable.views import ChunkPage, RunPage, RunStatus, RunView

from .bodies import LONGEST_IDLE_MS, CancelBody, Idle, MessageBody, SubmitBody, seconds_of
from .dependencies import TheBackend
from .documentation import CHUNKS_RESPONSES, NEW_RUN, RUN, RUN_UNDER_WAY, RUNS, errors, example, known
from .links import linked
from .sse import event_stream, tree_stream

router = APIRouter(prefix="/v1", tags=["runs"])


async def look(backend: Backend, run_id: str) -> RunView:
    """A run as it is now; one that waits for a worker says so when there is none."""
    [view] = await backend.views([await backend.runs.get(run_id)])
    return linked(view)


def as_json(body: RunView | RunPage, status: int = 200, **headers: str) -> Response:
    """A view as a response."""
    return Response(
        body.model_dump_json(by_alias=True, exclude_unset=isinstance(body, RunPage)),
        status,
        headers,
        media_type="application/json",
    )


@router.post(
    "/agents/{agent}/runs",
    status_code=202,
    response_model=RunView,
    summary="Submit a run",
    responses=example(202, NEW_RUN)
    | known("The same request was submitted before; this is its run.", RunView)
    | errors(400, 404, 409, 410, 413, 503),
)
async def submit(
    agent: str,
    body: SubmitBody,
    backend: TheBackend,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Makes it safe to repeat.")
    ] = None,
) -> Response:
    """The answer comes at once; from then on the run is in the store, and will end, whatever happens to the caller or
    to this server. Repeating the request with the same `runId` or `Idempotency-Key` finds the run that is there."""
    request = body.request()
    read_conversation(request)
    announced = await backend.announcements.get(agent)
    check_policy(request, announced.approval_policies)
    announced.abilities.check(request)
    new = NewRun(
        agent=announced.name,
        kind=announced.kind,
        queue=announced.queue,
        request=request,
        retention=announced.retention or backend.settings.retention_seconds,
        run_id=body.run_id,
        idempotency_key=idempotency_key,
        metadata=body.metadata,
    )
    record, created = await backend.submit(new)
    return as_json(linked(record.view()), 202 if created else 200, Location=f"/v1/runs/{record.run_id}")


@router.get(
    "/runs",
    response_model=RunPage,
    summary="List runs",
    response_model_exclude_unset=True,
    responses=example(200, RUNS) | errors(400, 503),
)
async def list_runs(
    backend: TheBackend,
    status: Annotated[RunStatus | None, Query(description="Only runs in this state.")] = None,
    agent: Annotated[str, Query(max_length=128, description="Only runs of this agent.")] = "",
    thread_id: Annotated[str | None, Query(alias="threadId", description="Only runs of this thread.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(max_length=160, description="`next` of the page before.")] = None,
) -> Response:
    """Newest first, without their outputs."""
    thread = "" if thread_id is None else check_thread_id(thread_id)
    records, following = await backend.runs.page(
        status=status or "", agent=agent, thread=thread, limit=limit, cursor=cursor
    )
    shown = await backend.views(records)
    return as_json(RunPage(runs=[linked(view) for view in shown], next=following))


@router.get(
    "/runs/{run_id}",
    response_model=RunView,
    summary="Look at a run",
    responses=example(200, RUN) | errors(404, 410, 503),
)
async def get_run(run_id: str, backend: TheBackend) -> Response:
    """Its state, and when it has ended its output or error."""
    return as_json(await look(backend, run_id))


@router.post(
    "/runs/{run_id}/cancel",
    status_code=202,
    response_model=RunView,
    summary="Cancel a run",
    responses=example(202, {**NEW_RUN, "status": "cancelled"})
    | known("It is cancelled already.", RunView, status="cancelled")
    | errors(400, 404, 409, 410, 413, 503),
)
async def cancel_run(run_id: str, backend: TheBackend, body: CancelBody | None = None) -> Response:
    """A run that waits ends now; one that is being executed is told to end, and keeps what it has said."""
    body = body or CancelBody()
    await backend.runs.get(run_id)
    requested = await backend.cancel(run_id, reason=body.reason, actor=body.actor)
    return as_json(await look(backend, run_id), 202 if requested else 200)


@router.post(
    "/runs/{run_id}/messages",
    status_code=202,
    response_model=RunView,
    summary="Tell the model something while its run is under way",
    responses=example(202, RUN_UNDER_WAY)
    | known("The same message was sent before; this is its run.", RunView)
    | errors(400, 404, 409, 410, 413, 503),
)
async def send_message(run_id: str, body: MessageBody, backend: TheBackend) -> Response:
    """The model is told before its next request; if it was about to end, it goes on. One whose calls wait for an
    answer is told when it goes on. A run that fails, is cancelled or reaches a limit ends all the same."""
    told = await backend.send(run_id, body.content, message_id=body.message_id, actor=body.actor)
    return as_json(await look(backend, run_id), 202 if told else 200)


@router.post(
    "/runs/{run_id}/retry",
    status_code=202,
    response_model=RunView,
    summary="Retry a run",
    responses=example(202, {**NEW_RUN, "retryOf": "hZ7dF0Qy4o2m1x3PpTnYQg"})
    | known("The same request was made before; this is its run.", RunView, retryOf="hZ7dF0Qy4o2m1x3PpTnYQg")
    | errors(400, 404, 409, 410, 503),
)
async def retry_run(
    run_id: str,
    backend: TheBackend,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Makes it safe to repeat.")
    ] = None,
) -> Response:
    """Starts a new run where a failed or cancelled one stopped: from its last completed model response, with what its
    tools returned. The old run stays as it is."""
    record, created = await backend.retry(run_id, idempotency_key=idempotency_key)
    return as_json(linked(record.view()), 202 if created else 200, Location=f"/v1/runs/{record.run_id}")


@router.get(
    "/runs/{run_id}/chunks",
    response_model=ChunkPage,
    summary="Follow a run, or read a part of it",
    responses=CHUNKS_RESPONSES | errors(400, 404, 410, 503),
)
async def get_chunks(
    request: Request,
    run_id: str,
    backend: TheBackend,
    *,
    after: Annotated[str, Query(description="The cursor: the seq of the last chunk that the reader has.")] = "0",
    tree: Annotated[bool, Query(description="SSE only: with the chunks of all runs that it has started.")] = False,
    limit: Annotated[int, Query(ge=1, le=1000, description="JSON only.")] = 200,
    wait: Annotated[float, Query(ge=0, le=30, description="JSON only: seconds to wait for news.")] = 0,
    last_event_id: Annotated[str | None, Header(description="The cursor, as `EventSource` sends it.")] = None,
    until_idle: Annotated[
        bool, Query(alias="untilIdle", description="Whether the run goes on when background tasks end after its turn.")
    ] = False,
    max_idle_ms: Annotated[
        int | None, Query(alias="maxIdleMs", ge=1, le=LONGEST_IDLE_MS, description="The same, for so long in a row.")
    ] = None,
) -> Response:
    """With `Accept: text/event-stream` the run's chunks as Server-Sent Events, replayed from the cursor and followed to
    the final chunk. Otherwise a page of JSON. With `tree=true` each frame's `id` is the cursor, which only the server
    reads."""
    place = last_event_id if last_event_id is not None else after
    streams = "text/event-stream" in request.headers.get("accept", "")
    idle = seconds_of(until_idle if max_idle_ms is None else Idle(max_idle_ms=max_idle_ms))
    if tree:
        return await _tree(backend, run_id, place, idle, streams=streams)
    cursor = read_cursor(place)
    record = await backend.observer.check(run_id, cursor)
    if idle is not None:
        await backend.wait_for_tasks(run_id, idle)
    if streams:
        if record.status.ended and cursor == record.last_seq:
            return Response(status_code=204)
        return event_stream(backend.observer, run_id, cursor)
    entries = await read(backend.store, run_id, cursor, limit=limit)
    if not entries and wait and not record.status.ended:
        entries = await _first_page(backend, run_id, cursor, wait)
    return _page(await backend.runs.get(run_id), entries, cursor, limit)


async def _tree(backend: Backend, run_id: str, cursor: str, idle: float | None, *, streams: bool) -> Response:
    """A run with its children."""
    if not streams:
        raise InvalidRequest("A run with its children is told as Server-Sent Events only.")
    record, place = await backend.trees.check(run_id, cursor)
    if idle is not None:
        await backend.wait_for_tasks(run_id, idle)
    if record.status.ended and place.seq == record.last_seq:
        return Response(status_code=204)
    return tree_stream(backend.trees, run_id, cursor)


async def _first_page(backend: Backend, run_id: str, cursor: int, seconds: float) -> list[Entry]:
    """The next entries, or none in that time."""
    try:
        async with asyncio.timeout(seconds), aclosing(backend.observer.pages(run_id, cursor)) as pages:
            async for page in pages:
                return page
    except TimeoutError:
        pass
    return []


def _page(record: RunRecord, entries: list[Entry], cursor: int, limit: int) -> Response:
    chunks: list[Any] = [chunk for entry in entries for chunk in entry.wire][:limit]
    following = cursor + len(chunks)
    final = record.status.ended and following == record.last_seq
    body = b'{"runId":%b,"chunks":[%b],"next":%d,"final":%b}' % (
        orjson.dumps(record.run_id),
        b",".join(chunks),
        following,
        b"true" if final else b"false",
    )
    return Response(body, media_type="application/json")
