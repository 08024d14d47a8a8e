"""The routes of runs: begin one, follow it, wait for it.

All of them read one list, a run's log, from a cursor. A run never depends on the request that began it: whoever sends
it again, with the same run id, finds the run that is there.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from durable.backend import Backend
from durable.conversation import read_conversation
from durable.errors import StoreUnavailable, UnknownRun
from durable.runs import NewRun, RunRecord

from ..dependencies import TheBackend
from .bodies import Asked, Sent, read_execution
from .client_tools import go_on
from .framing import stream
from .log import run_of, told
from .outcome import outcome
from .problems import Refused, refuse

router = APIRouter(prefix="/agents/{agent}")


class ObserveBody(BaseModel):
    """Which run is followed, and how many of its chunks the caller has."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    run_id: Annotated[str, Field(alias="runId")]
    offset: Annotated[int, Field(ge=0)] = 0


async def begun(backend: Backend, agent: str, asked: Asked) -> tuple[RunRecord, int]:
    """The run that a body asks for, made now or before, and the cursor before its first chunk; for results of tools
    that the caller has executed, the run that waits for them, and the cursor before what they bring about.

    Raises:
        DurableError: as `Backend.submit` and `Backend.decide` do.
        Refused: The run was begun on other terms.
    """
    announced = await backend.announcements.get(agent)
    if asked.run_id is not None and asked.results:
        found = await _known(backend, agent, asked)
        if found is not None:
            return found, await go_on(backend, found, asked)
    read_conversation(asked.request)
    announced.abilities.check(asked.request)
    new = NewRun(
        agent=announced.name,
        kind=announced.kind,
        queue=announced.queue,
        request=asked.request,
        retention=announced.retention or backend.settings.retention_seconds,
        run_id=asked.run_id,
    )
    record, _ = await backend.submit(new)
    return record, 0


async def _known(backend: Backend, agent: str, asked: Asked) -> RunRecord | None:
    """The run that goes on with results; None when the request is what begins it, or has begun it."""
    try:
        record = await run_of(backend, agent, asked.run_id or "")
    except UnknownRun:
        return None
    return None if record.asks_for(asked.request.digest(agent, None)) else record


@router.post("/stream")
async def post_stream(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Begin a run and follow it, to its end or until it waits for somebody."""
    record, after = await begun(backend, agent, read_execution(body))
    return stream(told(backend, record, after))


@router.post("/stream-until-idle")
async def post_stream_until_idle(agent: str, body: Sent, backend: TheBackend) -> Response:
    """The same of a run that goes on when its background tasks end."""
    record, after = await begun(backend, agent, read_execution(body, until_idle=True))
    return stream(told(backend, record, after))


@router.post("/generate")
async def post_generate(agent: str, body: Sent, backend: TheBackend, request: Request) -> Response:
    """Begin a run and wait for what it comes to."""
    asked = read_execution(body)
    record, _ = await begun(backend, agent, asked)
    try:
        return await outcome(backend, record, request)
    except StoreUnavailable:
        if asked.run_id is not None:
            raise
        # The client would send this again, and without a run id that would be another run.
        raise Refused(409, f"Nobody waits for the run {record.run_id} any more. It goes on: observe it.") from None


@router.post("/observe")
async def post_observe(agent: str, body: ObserveBody, backend: TheBackend) -> Response:
    """Follow a run to its end, from any place."""
    record = await run_of(backend, agent, body.run_id)
    return stream(told(backend, record, body.offset, to_the_end=True))


@router.post("/recover")
async def post_recover(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Follow a run from its start. Runs recover by themselves: there is nothing to be asked for."""
    run_id = body.get("runId")
    if not isinstance(run_id, str):
        raise refuse(("runId", "Field required"))
    return stream(told(backend, await run_of(backend, agent, run_id), 0))
