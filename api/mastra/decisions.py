"""The routes of people in the loop: approve, decline and resume the calls of a run, and follow what comes of it.

The answer to such a request begins with the chunk that tells of the decision, also when it is sent again.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from durable.backend import Backend
from durable.decisions import Answer
from durable.runs import RunRecord

from ..dependencies import TheBackend
from .answers import answered, resumed
from .bodies import NOT_SUPPORTED, OTHER_TERMS, Sent, read_terms
from .framing import stream
from .log import run_of, told
from .outcome import outcome
from .problems import asks_nothing, refuse

router = APIRouter(prefix="/agents/{agent}")


@router.post("/approve-tool-call")
async def approve(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Let a call be made, and follow its run."""
    return await _followed(backend, *await _approve(backend, agent, body))


@router.post("/approve-tool-call-generate")
async def approve_generate(agent: str, body: Sent, backend: TheBackend, request: Request) -> Response:
    """Let a call be made, and wait for what its run comes to."""
    record, _ = await _approve(backend, agent, body)
    return await outcome(backend, record, request)


@router.post("/decline-tool-call")
async def decline(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Let a call not be made, and follow its run."""
    return await _followed(backend, *await _decline(backend, agent, body))


@router.post("/decline-tool-call-generate")
async def decline_generate(agent: str, body: Sent, backend: TheBackend, request: Request) -> Response:
    """Let a call not be made, and wait for what its run comes to."""
    record, _ = await _decline(backend, agent, body)
    return await outcome(backend, record, request)


@router.post("/resume-stream")
async def resume(agent: str, body: Sent, backend: TheBackend) -> Response:
    """Give a call what it waits for, and follow its run."""
    return await _resume(backend, agent, body, until_idle=False)


@router.post("/resume-stream-until-idle")
async def resume_until_idle(agent: str, body: Sent, backend: TheBackend) -> Response:
    """The same of a run that goes on when its background tasks end."""
    return await _resume(backend, agent, body, until_idle=True)


async def _approve(backend: Backend, agent: str, body: Sent) -> tuple[RunRecord, int]:
    run_id, call = _named(body)
    record = await run_of(backend, agent, run_id)
    return record, await answered(backend, record, call, Answer(kind="approve"))


async def _decline(backend: Backend, agent: str, body: Sent) -> tuple[RunRecord, int]:
    run_id, call = _named(body, "reason")
    reason = body.get("reason")
    if not isinstance(reason, str | None):
        raise refuse(("reason", "A reason is a text."))
    record = await run_of(backend, agent, run_id)
    return record, await answered(backend, record, call, Answer(kind="decline", reason=reason or None))


async def _resume(backend: Backend, agent: str, body: Sent, *, until_idle: bool) -> Response:
    if "resumeData" not in body:
        raise refuse(("resumeData", "Field required"))
    asked = read_terms(body, "resumeData", "toolCallId", until_idle=until_idle)
    call = body.get("toolCallId")
    if asked.run_id is None:
        raise refuse(("runId", "Field required"))
    if not isinstance(call, str | None):
        raise refuse(("toolCallId", "A call's id is a text."))
    record = await run_of(backend, agent, asked.run_id)
    differing = asked.differing(await backend.runs.request(record.run_id))
    if differing:
        raise refuse(*((name, OTHER_TERMS) for name in differing))
    if asked.request.max_idle is not None:
        await backend.wait_for_tasks(record.run_id, asked.request.max_idle)
    return await _followed(backend, record, await resumed(backend, record, call, body["resumeData"]))


async def _followed(backend: Backend, record: RunRecord, after: int) -> Response:
    return stream(told(backend, await backend.runs.get(record.run_id), after))


def _named(body: dict[str, Any], *also: str) -> tuple[str, str]:
    """The run and the call that a body names."""
    known = {"runId", "toolCallId", *also}
    unknown = [name for name, value in body.items() if name not in known and not asks_nothing(value)]
    if body.get("format") == "mastra":
        unknown.remove("format")
    if unknown:
        raise refuse(*((name, NOT_SUPPORTED) for name in unknown))
    missing = [name for name in ("runId", "toolCallId") if not isinstance(body.get(name), str)]
    if missing:
        raise refuse(*((name, "Field required") for name in missing))
    return body["runId"], body["toolCallId"]
