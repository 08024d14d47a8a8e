"""How long after a decision does a run go on, and after a cancel does it end; and what does waiting cost?"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import uvloop

from benchmarks.agents import asking, in_worker, prompt, waiting_in_tool
from benchmarks.figures import Cell, Report, percentile
from benchmarks.following import Followed, submit
from benchmarks.system import AGENTS, System
from durable.backend import Backend
from durable.decisions import Answer
from durable.store import Store

AIM_MS: Final = 150
CANCEL_AIM_MS: Final = 250
COLUMNS: Final = ("from → to", "runs", "p50 ms", "p95 ms", "aim p95 ms")
NOTES: Final = (
    "One run at a time, a worker with free slots. The process that measures decides, as an API server does.",
    "The first chunk of the resumed run is the approved tool's result.",
)
MEMORY_COLUMNS: Final = ("runs that wait", "Redis bytes", "bytes a run", "leases", "wake-ups")


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    with System() as system:
        system.start_server(AGENTS)
        system.start_worker()
        return uvloop.run(_measure(system, 5 if quick else 150, 50 if quick else 10_000))


async def _measure(system: System, runs: int, waiting: int) -> list[Report]:
    settings = system.settings()
    async with Backend(Store.of(settings), settings) as backend:
        asked = (
            ("decision → first chunk of the resumed run", _decided, AIM_MS),
            ("cancel → final chunk, of a run that waits", _cancelled, CANCEL_AIM_MS),
            ("cancel → final chunk, of a model that speaks", _stopped, CANCEL_AIM_MS),
            ("cancel → final chunk, of an asynchronous tool", _interrupted, CANCEL_AIM_MS),
        )
        times: dict[str, list[float]] = {name: [] for name, _, _ in asked}
        for number in range(-3, runs):
            for name, take, _ in asked:
                milliseconds = await take(system, backend)
                if number >= 0:  # connections and caches fill
                    times[name].append(milliseconds)
        rows: list[tuple[Cell, ...]] = [
            (name, runs, percentile(times[name], 50), percentile(times[name], 95), aim) for name, _, aim in asked
        ]
        memory = Report("Memory of runs that wait", MEMORY_COLUMNS, [await _memory(system, backend, waiting)])
    return [Report("Decisions", COLUMNS, rows, NOTES, aim=(3, 4)), memory]


async def _suspended(system: System, backend: Backend) -> Followed:
    run = await Followed.begin(system.port, asking.name, "pay")
    async with asyncio.timeout(30):
        while (await backend.runs.get(run.run_id)).status != "suspended":  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)
    return run


async def _decided(system: System, backend: Backend) -> float:
    run = await _suspended(system, backend)
    begun = time.monotonic_ns()
    await backend.decide(run.run_id, "c1", Answer(kind="approve", actor="bench"))
    milliseconds = (await run.heard(b'"attempt":2') - begun) / 1e6
    await run.stream.ended.wait()
    return milliseconds


async def _cancelled(system: System, backend: Backend) -> float:
    return await _cancel(backend, await _suspended(system, backend))


async def _stopped(system: System, backend: Backend) -> float:
    run = await Followed.begin(system.port, in_worker.name, prompt(deltas=10_000, pause_ms=20))
    await run.heard(b"said @")
    return await _cancel(backend, run)


async def _interrupted(system: System, backend: Backend) -> float:
    run = await Followed.begin(system.port, waiting_in_tool.name, "wait")
    await run.heard(b"the tool waits")
    return await _cancel(backend, run)


async def _cancel(backend: Backend, run: Followed) -> float:
    begun = time.monotonic_ns()
    await backend.runs.cancel(run.run_id)
    return (await run.heard(b'"final":true') - begun) / 1e6


async def _memory(system: System, backend: Backend, count: int) -> tuple[Cell, ...]:
    redis, keys = backend.store.redis, backend.store.keys
    before = await _used(redis)
    for start in range(0, count, 50):
        await asyncio.gather(*(submit(system.port, asking.name, "pay") for _ in range(start, min(start + 50, count))))
    async with asyncio.timeout(900):
        while await redis.zcard(keys.runs(status="suspended")) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
    used = await _used(redis) - before
    return count, used, used / count, await redis.zcard(keys.leases), await redis.zcard(keys.wakeups)


async def _used(redis: Any) -> int:
    return int((await redis.info("memory"))["used_memory"])
