"""How long after a chunk is written do all observers of its run have it, by the number of observers?"""

from __future__ import annotations

import asyncio
import json
import time

import uvloop

from benchmarks.agents import SAID, in_worker, prompt
from benchmarks.figures import Cell, Report, percentile
from benchmarks.system import System
from benchmarks.wire import Connection, Stream, follow, get, post

OBSERVERS = (1, 100, 500)
PAUSE_MS = 50
COLUMNS = ("source, observers", "deliveries", "p50 ms", "p99 ms", "p99 / memory")
NOTES = (
    f"A delta every {PAUSE_MS} ms. Its moment is taken as the model says it, and again as an observer's socket has it.",
    "'memory' is the same server telling as many listeners the same amount without Redis, worker or log.",
)


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    with System() as system:
        system.start_server()
        system.start_worker()
        sizes, deltas = ((1, 20), 5) if quick else (OBSERVERS, 60)
        return [uvloop.run(_measure(system.port, sizes, deltas))]


async def _measure(port: int, sizes: tuple[int, ...], deltas: int) -> Report:
    rows: list[tuple[Cell, ...]] = []
    for observers in sizes:
        memory = await _ticks(port, observers, deltas)
        run = await _run(port, observers, deltas)
        floor = percentile(memory, 99)
        for name, latencies in (("memory", memory), ("run", run)):
            p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
            rows.append((f"{name}, {observers}", len(latencies), p50, p99, p99 / floor))
    return Report("Fan-out", COLUMNS, rows, NOTES)


class _Audience:
    """Many observers of one stream, and what they have heard."""

    def __init__(self, request: bytes, observers: int) -> None:
        self._heard: list[tuple[int, bytes]] = []
        self._streams = [Stream(request, lambda at, data: self._heard.append((at, data))) for _ in range(observers)]

    async def attach(self, port: int) -> int:
        """Connect all of them; the moment from which all listen."""
        for start in range(0, len(self._streams), 50):
            await asyncio.gather(*(stream.open(port) for stream in self._streams[start : start + 50]))
        await asyncio.gather(*(stream.begun.wait() for stream in self._streams))
        return time.monotonic_ns()

    async def latencies(self, since: int) -> list[float]:
        """Milliseconds from each stamp later than `since` to its arrival, once all streams have ended."""
        async with asyncio.timeout(60):
            await asyncio.gather(*(stream.ended.wait() for stream in self._streams))
        found = ((at, int(stamp)) for at, data in self._heard for frame in _live(data) for stamp in SAID.findall(frame))
        return [(at - stamp) / 1e6 for at, stamp in found if stamp > since]


def _live(data: bytes) -> list[bytes]:
    """The frames that tell something new: the last chunks of a run repeat its whole text, and all stamps."""
    return [frame for frame in data.split(b"\n\n") if b'"text-delta"' in frame]


async def _ticks(port: int, observers: int, deltas: int) -> list[float]:
    audience = _Audience(get("/floor/ticks", "text/event-stream"), observers)
    since = await audience.attach(port)
    connection = await Connection.open(port)
    await connection.ask(post(f"/floor/ticks?ticks={deltas}&pause_ms={PAUSE_MS}", b""))
    connection.close()
    return await audience.latencies(since)


async def _run(port: int, observers: int, deltas: int) -> list[float]:
    order = prompt(deltas=deltas, hold_ms=300 + 4 * observers, pause_ms=PAUSE_MS)
    connection = await Connection.open(port)
    body = json.dumps({"prompt": order}).encode()
    _, answer = await connection.ask(post(f"/v1/agents/{in_worker.name}/runs", body))
    connection.close()
    audience = _Audience(follow(json.loads(answer)["runId"]), observers)
    return await audience.latencies(await audience.attach(port))
