"""Following runs, and all background tasks, over HTTP, through lost connections and restarted servers.

Invariant: every chunk after the cursor is given out once and in order. A duplicate is skipped; a gap, a broken frame
or a stream that ends without the final chunk is a drop, and the log is asked again from the cursor.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

import httpx
from pydantic_core import from_json

from durable.chunks import Chunk
from durable.chunks.background import TASK_ENDS
from durable.client.answers import PASSING, error_of, failure_of, retry_after
from durable.client.backoff import Backoff
from durable.client.remote import Remote
from durable.errors import DurableError, ServerUnreachable
from durable.sse import Frame, Parser
from durable.views import read_chunk

_HEADERS: Final = {"accept": "text/event-stream", "cache-control": "no-store"}
# The server breaks a silence every 10 seconds; three missed comments are a lost connection.
_SILENCE_SECONDS: Final = 30.0
# Streams that broke the rules, in a row and without a single new chunk, before it is given up.
_MAX_FAULTS: Final = 5
# The server's own fault may pass, and asking again harms nothing.
_AGAIN: Final = PASSING | {408, 500}


class _Drop(Exception):
    """The connection is of no more use; the run goes on."""

    def __init__(self, failure: DurableError | None = None, *, pause: float = 0.0, fault: bool = False) -> None:
        super().__init__()
        self.failure = failure
        self.pause = pause
        self.fault = fault


class Subscription:
    """One observer of one run.

    Attributes:
        cursor: That of the last chunk that was given out.
    """

    def __init__(
        self, server: Remote, path: str, *, after: int | str, backoff: Backoff, params: Mapping[str, str] | None = None
    ) -> None:
        """Connects when it is read.

        Args:
            server: Where the run is.
            path: The run's chunks.
            after: The cursor after which to begin.
            backoff: How to reconnect.
            params: What else to ask for.
        """
        self.cursor = str(after)
        self._http = server.http
        self._server = server.name
        self._outage = server.outage
        self._asked: float | None = None  # when it was asked what it has not answered yet
        self._path = path
        self._params = params or {}
        self._tries = backoff.start()
        self._cap = backoff.cap
        self._timeout = httpx.Timeout(server.timeout, read=max(_SILENCE_SECONDS, server.timeout))
        self._faults = 0
        self._over = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """The chunks, until the final one.

        Raises:
            DurableError: The server refused for good, or it was not to be reached for longer than the backoff's
                patience.
        """
        while not self._over:
            try:
                async with aclosing(self._connection()) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except _Drop as drop:
                await self._wait(drop)

    async def _wait(self, drop: _Drop) -> None:
        """Wait before the next try.

        Raises:
            DurableError: There will be none.
        """
        self._faults += drop.fault
        after = f" after chunk {self.cursor}" if self.cursor else ""
        failure = drop.failure or ServerUnreachable(f"The stream from {self._server} keeps breaking{after}.")
        delay = self._tries.pause(at_least=drop.pause)
        if delay is None or self._faults >= _MAX_FAULTS:
            raise failure
        await self._outage.pause(delay, failure, since=self._asked)

    async def _connection(self) -> AsyncGenerator[Chunk, None]:
        """What one connection yields. Returns after the final chunk; raises `_Drop` at any other end."""
        request = self._http.build_request(
            "GET", self._path, params={**self._params, **self._after()}, headers=_HEADERS, timeout=self._timeout
        )
        self._asked = time.monotonic()
        try:
            response = await self._http.send(request, stream=True)
            try:
                if not await self._opened(response):
                    return
                async with aclosing(self._read(response)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                await response.aclose()
        except httpx.RequestError as error:
            failure = failure_of(error, self._server)
            if not isinstance(failure, ServerUnreachable):
                raise failure from error
            raise _Drop(failure) from error

    async def _opened(self, response: httpx.Response) -> bool:
        """Whether a stream follows. If not, the run has ended and the cursor is at its end."""
        if response.status_code == httpx.codes.NO_CONTENT:
            self._answered()
            self._over = True
            return False
        if response.status_code != httpx.codes.OK:
            await response.aread()
            failure = error_of(response)
            if response.status_code in _AGAIN:
                raise _Drop(failure, pause=retry_after(response))
            raise failure
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise _Drop(fault=True)
        self._answered()
        self._tries.reached()
        return True

    def _answered(self) -> None:
        self._asked = None
        self._outage.over()

    async def _read(self, response: httpx.Response) -> AsyncGenerator[Chunk, None]:
        parser = Parser()
        opened = time.monotonic()
        async for piece in response.aiter_bytes():
            for frame in parser.feed(piece):
                # Frames with a type of their own are not chunks, as for the browser's `onmessage`.
                if frame.event == "message" and (chunk := self._next(frame)) is not None:
                    yield chunk
                    if self._over:
                        return
        if time.monotonic() - opened > self._cap:
            # It served its time: what cut it was a limit on the way, not a server in trouble.
            self._tries.succeeded()
        raise _Drop(pause=(parser.retry_ms or 0) / 1000)

    def _next(self, frame: Frame) -> Chunk | None:
        """The chunk of one frame, with the cursor moved on to it; None for a duplicate."""
        try:
            chunk = read_chunk(from_json(frame.data))
        except ValueError as error:
            raise _Drop(fault=True) from error
        known = self._known(chunk)
        if known is not None and chunk.seq <= known:
            return None
        if known is not None and chunk.seq != known + 1:
            raise _Drop(fault=True)
        self.cursor = self._take(chunk, frame)
        self._faults = 0
        self._tries.succeeded()
        return chunk

    def _after(self) -> dict[str, str]:
        """Where to go on, as a query."""
        return {"after": self.cursor}

    def _known(self, chunk: Chunk) -> int | None:  # noqa: ARG002 - all are of one run
        """The last seq of a chunk's run that was given out; None when that is not known."""
        return int(self.cursor)

    def _take(self, chunk: Chunk, frame: Frame) -> str:  # noqa: ARG002 - its cursor is its seq
        """Count a chunk as given out; returns the cursor."""
        self._over = bool(chunk.final)
        return str(chunk.seq)


class TreeSubscription(Subscription):
    """One observer of a run and of all that it has started. The cursor is what the server says."""

    def __init__(
        self,
        server: Remote,
        path: str,
        *,
        root: str,
        after: int | str,
        backoff: Backoff,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Connects when it is read. `root` is the run; the rest is as of `Subscription`."""
        super().__init__(server, path, after=after, backoff=backoff, params={**(params or {}), "tree": "true"})
        self._root = root
        self._seqs: dict[str, int] = {}

    def _known(self, chunk: Chunk) -> int | None:
        return self._seqs.get(chunk.run_id)

    def _take(self, chunk: Chunk, frame: Frame) -> str:
        self._seqs[chunk.run_id] = chunk.seq
        self._over = bool(chunk.final) and chunk.run_id == self._root
        chunk.at(frame.id)
        return frame.id


class FeedSubscription(Subscription):
    """One reader of what all background tasks do. There is no cursor: who comes back is told anew what is executed."""

    def __init__(self, server: Remote, path: str, *, backoff: Backoff, params: Mapping[str, str]) -> None:
        """Connects when it is read. With a `task` among the `params` it ends with that."""
        super().__init__(server, path, after="", backoff=backoff, params=params)
        self._ends = "task" in params

    def _after(self) -> dict[str, str]:
        return {}

    def _known(self, chunk: Chunk) -> int | None:  # noqa: ARG002 - nobody counts them
        return None

    def _take(self, chunk: Chunk, frame: Frame) -> str:  # noqa: ARG002 - it says all itself
        self._over = self._ends and chunk.type in TASK_ENDS
        return ""
