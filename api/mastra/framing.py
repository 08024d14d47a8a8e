"""Streams as this protocol's client reads them, which is no reader of Server-Sent Events.

It splits at two line feeds and takes the blocks that begin with `data: `. So a block is one line of compact JSON, a
comment is a block of its own, and there is never an `id:`, an `event:` or a carriage return.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final

from fastapi.responses import StreamingResponse

from durable.errors import DurableError

from ..sse import HEADERS, HEARTBEAT_SECONDS

__all__ = ["DONE", "HEARTBEAT_SECONDS", "block", "listening", "stream"]

CONNECTED: Final = b": connected\n\n"
HEARTBEAT: Final = b": heartbeat\n\n"
DONE: Final = b"data: [DONE]\n\n"


def block(chunk: bytes) -> bytes:
    """One chunk, given as JSON on one line."""
    return b"data: %b\n\n" % chunk


def stream(blocks: AsyncGenerator[bytes]) -> StreamingResponse:
    """A response of blocks, which end it; it ends early, without a mark, when the store does not answer.

    Args:
        blocks: Whole blocks, several at a time. An empty piece tells that nothing happened for `HEARTBEAT_SECONDS`.
    """
    return StreamingResponse(_pieces(blocks), media_type="text/event-stream", headers=HEADERS)


async def listening(blocks: AsyncGenerator[bytes]) -> StreamingResponse:
    """The same, once the first piece is there: who has this response is told all that happens from then on.

    Raises:
        DurableError: What the blocks raise at first.
    """
    first = await anext(blocks, b"")
    return stream(_chained(first, blocks))


async def _chained(first: bytes, blocks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(blocks):
        yield first
        async for piece in blocks:
            yield piece


async def _pieces(blocks: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    yield CONNECTED  # the client has its response when the headers arrive, and they go out with the first bytes
    async with aclosing(blocks):
        try:
            async for piece in blocks:
                yield piece or HEARTBEAT
        except DurableError:
            return
