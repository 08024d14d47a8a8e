"""A run's log, and the news of background tasks, as Server-Sent Events. Frames are bytes, and a page is one write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final

from fastapi.responses import StreamingResponse

from durable.background.feed import News
from durable.errors import DurableError
from durable.journal import Entry
from durable.observer import Observer

HEARTBEAT_SECONDS: Final = 10.0
HEADERS: Final = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


def encode(page: Sequence[Entry]) -> bytes:
    """Frames with the seq as their id, so that a reader's `Last-Event-ID` is its cursor."""
    return b"".join([entry.frames for entry in page])


def event_stream(observer: Observer, run_id: str, cursor: int) -> StreamingResponse:
    """A response that ends with the run, when the server stops, or when Redis goes. In each case but the first the
    final chunk has not come, and the reader asks again from its cursor."""
    pages = observer.pages(run_id, cursor, silence=HEARTBEAT_SECONDS)
    return StreamingResponse(_frames(pages), media_type="text/event-stream", headers=HEADERS)


def feed_stream(pages: AsyncGenerator[list[News]]) -> StreamingResponse:
    """A response that tells what happens, without a cursor: whoever asks again is told anew what is under way."""
    return StreamingResponse(_news(pages), media_type="text/event-stream", headers=HEADERS)


async def _news(pages: AsyncGenerator[list[News]]) -> AsyncIterator[bytes]:
    yield b": connected\n\n"
    async with aclosing(pages):
        try:
            async for page in pages:
                yield b"".join([news.frame for news in page]) if page else b": keep-alive\n\n"
        except DurableError:
            return


async def _frames(pages: AsyncGenerator[list[Entry]]) -> AsyncIterator[bytes]:
    yield b": connected\n\n"
    async with aclosing(pages):
        try:
            async for page in pages:
                yield encode(page) if page else b": keep-alive\n\n"
        except DurableError:
            return
