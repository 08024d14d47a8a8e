"""The API server with what its figures are compared with: routes of the same app that do next to nothing.

`POST /floor/empty` is an empty route. `GET /floor/replay/{run}` sends a run's event stream from memory. `GET
/floor/ticks` streams what `POST /floor/ticks` tells all its listeners, without Redis.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from api.app import create_app
from api.dependencies import TheBackend
from api.server import serve
from api.sse import HEADERS, encode
from durable.settings import Settings

router = APIRouter(prefix="/floor")

PADDING = b"." * 80
"""Makes a tick as long as the frame of a run's delta."""


class Ticks:
    """Frames that go to all listeners at once."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[bytes]] = set()

    async def listen(self) -> AsyncIterator[bytes]:
        """The frames, up to an empty one."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield b"id: 0\ndata: {}\n\n"
            while frame := await queue.get():
                yield frame
        finally:
            self._listeners.discard(queue)

    async def tell(self, ticks: int, pause_ms: float) -> None:
        """Send so many frames, with their moments, and then end."""
        for number in range(ticks):
            self._put(
                b'id: %d\ndata: {"type":"text-delta","text":"%b said @%d@ "}\n\n'
                % (number, PADDING, time.monotonic_ns())
            )
            await asyncio.sleep(pause_ms / 1000)
        self._put(b"")

    def _put(self, frame: bytes) -> None:
        for queue in self._listeners:
            queue.put_nowait(frame)


class Memory:
    """Event streams of ended runs, page by page as the API sends them."""

    def __init__(self) -> None:
        self._pages: dict[str, list[bytes]] = {}

    async def pages(self, run_id: str, backend: Any) -> list[bytes]:
        """The pages of a run; read once."""
        if run_id not in self._pages:
            self._pages[run_id] = [encode(page) async for page in backend.observer.pages(run_id)]
        return self._pages[run_id]


@router.post("/empty")
async def empty() -> dict[str, str]:
    """Do nothing."""
    return {}


@router.get("/ticks")
async def listen(request: Request) -> StreamingResponse:
    """Listen to the ticks."""
    return StreamingResponse(request.app.state.ticks.listen(), media_type="text/event-stream", headers=HEADERS)


@router.post("/ticks")
async def tell(request: Request, ticks: int, pause_ms: float) -> dict[str, str]:
    """Send ticks to all that listen now."""
    await request.app.state.ticks.tell(ticks, pause_ms)
    return {}


@router.get("/replay/{run_id}")
async def replay(request: Request, run_id: str, backend: TheBackend) -> StreamingResponse:
    """A run's event stream, from memory from the second time on."""
    pages = await request.app.state.memory.pages(run_id, backend)
    return StreamingResponse(_each(pages), media_type="text/event-stream", headers=HEADERS)


async def _each(pages: list[bytes]) -> AsyncIterator[bytes]:
    for page in pages:
        yield page


def main() -> None:
    """Serve until told to stop."""
    settings = Settings()
    app = create_app(settings)
    app.state.ticks, app.state.memory = Ticks(), Memory()
    app.include_router(router)
    serve(settings, app)


if __name__ == "__main__":
    main()
