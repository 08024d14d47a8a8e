"""A run's log as Server-Sent Events. Frames are bytes, and a page of entries is one write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from fastapi.responses import StreamingResponse

from durable.errors import DurableError
from durable.journal import Entry

from .closing import Closing

HEARTBEAT_SECONDS: Final = 10.0
HEADERS: Final = {
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


def encode(page: Sequence[Entry]) -> bytes:
    """Frames with the seq as their id, so that a reader's `Last-Event-ID` is its cursor."""
    return b"".join(
        b"id: %d\ndata: %b\n\n" % (seq, chunk) for entry in page for seq, chunk in enumerate(entry.wire, entry.first)
    )


def event_stream(pages: AsyncGenerator[list[Entry]], closing: Closing) -> StreamingResponse:
    """A response that ends with the run, when the server stops, or when Redis goes. In each case but the first the
    final chunk has not come, and the reader asks again from its cursor."""
    return StreamingResponse(_frames(pages, closing), media_type="text/event-stream", headers=HEADERS)


async def _frames(pages: AsyncGenerator[list[Entry]], closing: Closing) -> AsyncIterator[bytes]:
    going = asyncio.ensure_future(closing.wait())
    upcoming: asyncio.Task[list[Entry]] | None = None
    yield b": connected\n\n"
    async with aclosing(pages):
        try:
            while not closing.begun:
                upcoming = upcoming or asyncio.create_task(_next(pages))
                waited: set[asyncio.Future[Any]] = {upcoming, going}
                done, _ = await asyncio.wait(waited, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if upcoming in done:
                    page, upcoming = upcoming.result(), None
                    if not page:
                        return
                    yield encode(page)
                elif not done:
                    yield b": keep-alive\n\n"
        except DurableError:
            upcoming = None
        finally:
            going.cancel()
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)


async def _next(pages: AsyncGenerator[list[Entry]]) -> list[Entry]:
    """The next page; none at the end. (A task can't end with `StopAsyncIteration`.)"""
    return await anext(pages, [])
