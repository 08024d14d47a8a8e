"""How long does the replay of a long run take beside the same bytes sent from memory by the same server?"""

from __future__ import annotations

import asyncio
import time

import uvloop

from benchmarks.figures import Cell, Report, median
from benchmarks.system import System
from benchmarks.wire import Stream, follow, get
from benchmarks.written import write_run
from durable.settings import Settings
from durable.store import Store

CHUNKS = 10_000
LAYOUTS = (1, 500)
COLUMNS = ("log", "bytes", "memory ms", "run ms", "run / memory", "chunks/s", "MB/s")
NOTES = ("Medians, from the request to the last byte; the two alternate. The log is read from Redis each time.",)


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    with System() as system:
        system.start_server()
        return [uvloop.run(_measure(system.settings(flush_ms=0), system.port, quick=quick))]


async def _measure(settings: Settings, port: int, *, quick: bool) -> Report:
    chunks, times = (500, 3) if quick else (CHUNKS, 15)
    store = Store.of(settings)
    rows: list[tuple[Cell, ...]] = []
    for layout in LAYOUTS:
        run_id = await write_run(store, settings, chunks, chunks_an_entry=layout)
        from_memory, from_log, size = [], [], 0
        for number in range(-1, times):
            size, in_memory = await _read(port, get(f"/floor/replay/{run_id}", "text/event-stream"))
            same, replayed = await _read(port, follow(run_id))
            if number >= 0:
                from_memory.append(in_memory)
                from_log.append(replayed)
            if abs(same - size) > 1000:  # headers and the opening comment differ
                raise RuntimeError("the two streams differ")
        memory, run = median(from_memory), median(from_log)
        entries = -(-chunks // layout)
        name = f"{chunks:,} chunks in {entries:,} entries"
        rows.append((name, size, memory, run, run / memory, chunks / run * 1000, size / run / 1000))
    await store.aclose()
    return Report("Replay", COLUMNS, rows, NOTES)


async def _read(port: int, request: bytes) -> tuple[int, float]:
    """Read a response to its end: its bytes, and ms."""
    sizes: list[int] = []
    begun = time.monotonic()
    stream = await Stream(request, lambda _, data: sizes.append(len(data))).open(port)
    async with asyncio.timeout(60):
        await stream.ended.wait()
    return sum(sizes), (time.monotonic() - begun) * 1000
