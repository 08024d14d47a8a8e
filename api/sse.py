"""A run's log, and the news of background tasks, as Server-Sent Events. Frames are bytes, and a page is one write."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from fastapi.responses import StreamingResponse

from durable.background.feed import News
from durable.errors import DurableError
from durable.journal import Entry
from durable.observer import Observer
from durable.trees.observer import Sighting, TreeObserver

T = TypeVar("T")
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
    return StreamingResponse(_frames(pages, encode), media_type="text/event-stream", headers=HEADERS)


def feed_stream(pages: AsyncGenerator[list[News]]) -> StreamingResponse:
    """A response that tells what happens, without a cursor: whoever asks again is told anew what is under way."""
    return StreamingResponse(_frames(pages, _encode_news), media_type="text/event-stream", headers=HEADERS)


def _encode_news(page: Sequence[News]) -> bytes:
    """Frames without an id: the feed has no cursor."""
    return b"".join([b"data: %b\n\n" % news.wire for news in page])


def tree_stream(trees: TreeObserver, run_id: str, cursor: str) -> StreamingResponse:
    """The same of a run with its children; the id of a frame is the cursor of all of their logs."""
    pages = trees.pages(run_id, cursor, silence=HEARTBEAT_SECONDS)
    return StreamingResponse(_frames(pages, _encode_tree), media_type="text/event-stream", headers=HEADERS)


def _encode_tree(page: Sequence[Sighting]) -> bytes:
    return b"".join([b"id: %b\ndata: %b\n\n" % (seen.cursor.encode(), seen.wire) for seen in page])


async def _frames(pages: AsyncGenerator[list[T]], encoded: Callable[[Sequence[T]], bytes]) -> AsyncIterator[bytes]:
    yield b": connected\n\n"
    async with aclosing(pages):
        try:
            async for page in pages:
                yield encoded(page) if page else b": keep-alive\n\n"
        except DurableError:
            return
