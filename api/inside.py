"""The door to what is inside of a run: its conversation, and why it stands where it stands."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Response
from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable.diagnosis import diagnose, examine
from durable.files import UNKNOWN_TYPE, RunFile
from durable.transcripts import folded, transcript
from durable.views import Diagnosis, MessagePage, ModelMessagePage

from .dependencies import TheBackend
from .documentation import DIAGNOSIS, MESSAGES, errors, example

router = APIRouter(prefix="/v1", tags=["runs"])

_FILE: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The file.",
        "content": {UNKNOWN_TYPE: {"schema": {"type": "string", "format": "binary"}, "example": "\u0089PNG…"}},
    }
}
_SAVED: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; sandbox"}
"""A model has made it: no browser is to take it for a page of this server."""


@router.get(
    "/runs/{run_id}/messages",
    response_model=MessagePage | ModelMessagePage,
    summary="Read a run's conversation",
    responses=example(200, MESSAGES) | errors(400, 404, 410, 503),
)
async def get_messages(
    run_id: str,
    backend: TheBackend,
    form: Annotated[
        Literal["roles", "pydantic-ai"],
        Query(alias="format", description="`pydantic-ai`: Pydantic AI's own message JSON."),
    ] = "roles",
) -> Response:
    """What was said so far, with the history that the run was given. A model response that is under way, or was lost
    with its worker, is not part of it."""
    messages = await transcript(backend.runs, run_id)
    if form == "pydantic-ai":
        body = b'{"messages":%b}' % ModelMessagesTypeAdapter.dump_json(messages)
    else:
        body = MessagePage(messages=folded(messages)).model_dump_json(by_alias=True).encode()
    return Response(body, media_type="application/json")


@router.get(
    "/runs/{run_id}/files/{file_id}",
    response_class=Response,
    summary="Fetch a file of a run",
    responses=_FILE | errors(404, 410, 503),
)
async def get_file(run_id: str, file_id: str, backend: TheBackend) -> Response:
    """A file that the model has made, and that a `file` chunk names by its `fileId`."""
    file = await backend.runs.file(run_id, file_id)
    return Response(file.data, headers=_SAVED | _named(file))


def _named(file: RunFile) -> dict[str, str]:
    return {"Content-Type": file.mime_type, "Content-Disposition": f'attachment; filename="{file.filename}"'}


@router.get(
    "/runs/{run_id}/diagnosis",
    response_model=Diagnosis,
    summary="Ask why a run stands where it stands",
    responses=example(200, DIAGNOSIS) | errors(404, 410, 503),
)
async def get_diagnosis(run_id: str, backend: TheBackend) -> Response:
    """For a run that makes no progress: what it waits for, who holds it, what became of its attempts."""
    found = await examine(backend.store, backend.runs, backend.announcements, backend.settings, run_id)
    return Response(diagnose(found).model_dump_json(by_alias=True), media_type="application/json")
