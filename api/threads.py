"""The door to threads: what was said in a conversation of several runs."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable.threads import thread_messages
from durable.transcripts import folded
from durable.views import ModelMessagePage, ThreadMessagePage, ThreadMessageView

from .dependencies import TheBackend
from .documentation import THREAD_MESSAGES, errors, example

router = APIRouter(prefix="/v1", tags=["threads"])


@router.get(
    "/threads/{thread_id}/messages",
    response_model=ThreadMessagePage | ModelMessagePage,
    summary="Read a conversation",
    responses=example(200, THREAD_MESSAGES) | errors(400, 404, 409, 503),
)
async def get_thread_messages(
    thread_id: str,
    backend: TheBackend,
    form: Annotated[
        Literal["roles", "pydantic-ai"],
        Query(alias="format", description="`pydantic-ai`: Pydantic AI's own message JSON."),
    ] = "roles",
    resource_id: Annotated[
        str | None, Query(alias="resourceId", description="Whose conversation it has to be.")
    ] = None,
) -> Response:
    """What the runs of a thread have said, in order. A run adds to it when it is suspended and when it ends."""
    exchanges = await thread_messages(backend.runs, thread_id, resource_id)
    if form == "pydantic-ai":
        messages = list(chain.from_iterable(said for _, said in exchanges))
        body = b'{"messages":%b}' % ModelMessagesTypeAdapter.dump_json(messages)
        return Response(body, media_type="application/json")
    views = [
        ThreadMessageView(id=f"{run_id}.{number}", run_id=run_id, **view.model_dump(exclude_unset=True))
        for run_id, said in exchanges
        for number, view in enumerate(folded(said), 1)
    ]
    return Response(ThreadMessagePage(messages=views).model_dump_json(by_alias=True), media_type="application/json")
