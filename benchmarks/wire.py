"""The load's side of HTTP: as little as it takes to speak with our own server, so that the server is what is measured.

Connections to 127.0.0.1 only. Moments are `time.monotonic_ns()`, one clock for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Self, cast

from durable.dev.ports import LOOPBACK

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def get(path: str, accept: str = "application/json") -> bytes:
    """A GET request; the server closes the connection after its answer."""
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: {accept}\r\nConnection: close\r\n\r\n".encode()


def follow(run_id: str) -> bytes:
    """The request that follows a run as Server-Sent Events."""
    return get(f"/v1/runs/{run_id}/chunks", "text/event-stream")


def post(path: str, body: bytes) -> bytes:
    """A POST request with a JSON body; the connection stays open."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """A connection that stays open: one request at a time, answers with a length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, LOOPBACK, port)
        return connection

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; the status and the body of its answer.

        Raises:
            ConnectionError: The server closed the connection.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Disconnect."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))


class Stream(asyncio.Protocol):
    """A response that is read to its end as it comes.

    Args:
        request: What to ask for.
        hear: Called with the moment at which bytes came, and the bytes.
    """

    def __init__(self, request: bytes, hear: Callable[[int, bytes], None]) -> None:
        self._request = request
        self._hear = hear
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def open(self, port: int) -> Self:
        """Connect and send the request."""
        await asyncio.get_running_loop().create_connection(lambda: self, LOOPBACK, port)
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._hear(time.monotonic_ns(), data)
        if b"id: " in data:
            self.begun.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the end is the end
        """Called by the event loop."""
        self.begun.set()
        self.ended.set()
