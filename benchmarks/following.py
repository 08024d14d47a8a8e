"""A run as an observer sees it: submitted over HTTP, followed as Server-Sent Events, each word with its moment."""

from __future__ import annotations

import asyncio
import json
from typing import Self

from benchmarks.wire import Connection, Stream, follow, post


async def submit(port: int, agent: str, order: str, **options: object) -> str:
    """Submit a run on a connection of its own; its id.

    Args:
        port: The server's.
        agent: Executes it.
        order: Its prompt.
        options: More fields of the request.

    Raises:
        RuntimeError: The server did not accept it.
    """
    connection = await Connection.open(port)
    body = json.dumps({"prompt": order, **options}).encode()
    status, answer = await connection.ask(post(f"/v1/agents/{agent}/runs", body))
    connection.close()
    if status != 202:
        raise RuntimeError(f"the server answered {status}")
    return str(json.loads(answer)["runId"])


class Followed:
    """A run, and when its observer heard something."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._heard = bytearray()
        self._at: list[tuple[int, int]] = []
        self._changed = asyncio.Event()
        self.stream = Stream(follow(run_id), self._hear)

    @classmethod
    async def begin(cls, port: int, agent: str, order: str, **options: object) -> Self:
        """Submit a run and follow it. Takes and raises what `submit` does."""
        run = cls(await submit(port, agent, order, **options))
        await run.stream.open(port)
        return run

    async def heard(self, what: bytes) -> int:
        """When a text was there as a whole, of `time.monotonic_ns()`."""
        async with asyncio.timeout(30):
            while (place := self._heard.find(what)) < 0:
                self._changed.clear()
                await self._changed.wait()
        return next(at for at, length in self._at if length >= place + len(what))

    @property
    def all_heard(self) -> bytes:
        """What came until now."""
        return bytes(self._heard)

    def _hear(self, at: int, data: bytes) -> None:
        self._heard += data
        self._at.append((at, len(self._heard)))
        self._changed.set()
