"""The door to threads: what was said in a conversation of several runs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Response
from pydantic_ai.messages import ModelMessagesTypeAdapter

from durable.threads import thread_page
from durable.transcripts import folded
from durable.views import ThreadMessagePage, ThreadMessageView, ThreadModelMessagePage

from .dependencies import TheBackend
from .documentation import THREAD_MESSAGES, errors, example

router = APIRouter(prefix="/v1", tags=["threads"])


@router.get(
    "/threads/{thread_id}/messages",
    response_model=ThreadMessagePage | ThreadModelMessagePage,
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
    order: Annotated[Literal["oldest", "newest"], Query(description="Which messages come first.")] = "oldest",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before, of the same order and format.")] = None,
) -> Response:
    """What the runs of a thread have said. A run adds to it when it is suspended and when it ends."""
    page = partial(
        thread_page,
        backend.runs,
        thread_id,
        resource_id=resource_id,
        limit=limit,
        cursor=cursor,
        newest_first=order == "newest",
    )
    if form == "pydantic-ai":
        said, following = await page(list)
        messages = ModelMessagesTypeAdapter.dump_json([message for _, message in said])
        body = b'{"messages":%b,"next":%b}' % (messages, orjson.dumps(following))
        return Response(body, media_type="application/json")
    found, following = await page(folded)
    views = [
        ThreadMessageView(
            id=f"{place.run_id}.{place.number}", run_id=place.run_id, **view.model_dump(exclude_unset=True)
        )
        for place, view in found
    ]
    answer = ThreadMessagePage(messages=views, next=following)
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")
