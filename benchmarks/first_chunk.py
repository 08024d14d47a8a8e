"""How long after a submit does an observer have the first chunk, and the first word less the model's own time?"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict

import uvloop

from benchmarks.agents import ASKED, SAID, in_process, in_worker, prompt
from benchmarks.figures import Cell, Report, median, percentile
from benchmarks.system import AGENTS, System
from benchmarks.wire import Connection, Stream, follow, post

MODEL_MS = 20
COLUMNS = ("from → to", "worker p50 ms", "p99 ms", "in API p50 ms", "p99 ms", "worker / empty route")
STAGES = (
    "empty route → its answer",
    "submit → its answer",
    "submit → the model is asked",
    "submit → first chunk at the observer",
    "model's first word → observer",
    "submit → first word, less the model",
)
NOTES = (
    f"The model takes {MODEL_MS} ms for its first word. An observer attaches when it has the answer to its submit.",
    "One run at a time; 'worker' goes through Celery, 'in API' is a durable agent that the server hosts.",
)

Times = defaultdict[str, list[float]]


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    with System() as system:
        system.start_server(AGENTS)
        system.start_worker()
        return [uvloop.run(_measure(system.port, 5 if quick else 150))]


async def _measure(port: int, runs: int) -> Report:
    worker: Times = defaultdict(list)
    hosted: Times = defaultdict(list)
    connection = await Connection.open(port)
    for number in range(-3, runs):
        for name, times in ((in_worker.name, worker), (in_process.name, hosted)):
            stages = await _one(connection, port, name)
            if number < 0:
                continue  # connections and caches fill
            for stage, milliseconds in zip(STAGES, stages, strict=True):
                times[stage].append(milliseconds)
    connection.close()
    empty = median(worker[STAGES[0]])
    rows: list[tuple[Cell, ...]] = [
        (
            stage,
            median(worker[stage]),
            percentile(worker[stage], 99),
            median(hosted[stage]),
            percentile(hosted[stage], 99),
            median(worker[stage]) / empty,
        )
        for stage in STAGES
    ]
    return Report("First chunk", COLUMNS, rows, NOTES)


async def _one(connection: Connection, port: int, agent: str) -> list[float]:
    """One run. The stages' times in ms."""
    begun = time.monotonic_ns()
    await connection.ask(post("/floor/empty", b"{}"))
    empty = time.monotonic_ns() - begun
    body = json.dumps({"prompt": prompt(deltas=2, hold_ms=MODEL_MS)}).encode()
    submitted = time.monotonic_ns()
    status, answer = await connection.ask(post(f"/v1/agents/{agent}/runs", body))
    answered = time.monotonic_ns()
    if status != 202:
        raise RuntimeError(f"the server answered {status}")
    arrivals: list[tuple[int, bytes]] = []
    stream = Stream(follow(json.loads(answer)["runId"]), lambda at, data: arrivals.append((at, data)))
    await stream.open(port)
    async with asyncio.timeout(30):
        await stream.ended.wait()
    first = next(at for at, data in arrivals if b"id: 1\n" in data)
    heard, asked, said = _first_word(arrivals)
    moments = (empty, answered - submitted, asked - submitted, first - submitted, heard - said)
    stages = [*moments, heard - submitted - (said - asked)]
    return [nanoseconds / 1e6 for nanoseconds in stages]


def _first_word(arrivals: list[tuple[int, bytes]]) -> tuple[int, int, int]:
    """When it was heard, when the model was asked, when it said it."""
    for at, data in arrivals:
        asked, said = ASKED.search(data), SAID.search(data)
        if asked and said:
            return at, int(asked[1]), int(said[1])
    raise RuntimeError("the model said nothing")
