"""What does a submit cost beside an empty route of the same server?

No worker runs: a submit creates the run in Redis and sends the Celery message, and that is all that is measured.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import uvloop

from benchmarks.agents import in_worker
from benchmarks.figures import Cell, Report, percentile
from benchmarks.system import System
from benchmarks.wire import Connection, post
from durable.announcements import Announcements
from durable.settings import Settings
from durable.store import Store

CLIENTS = (1, 32)
ROUNDS = 3
BODY = b'{"prompt":"What is the weather in Basel?"}'
EMPTY = post("/floor/empty", BODY)
SUBMIT = post(f"/v1/agents/{in_worker.name}/runs", BODY)
COLUMNS = ("route, clients", "requests/s", "p50 ms", "p99 ms", "p50 / empty route", "requests/s of empty route")


@dataclass
class _Sample:
    seconds: float = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def row(self, name: str, floor: _Sample) -> tuple[Cell, ...]:
        p50, p99 = percentile(self.latencies, 50), percentile(self.latencies, 99)
        ratio = p50 / percentile(floor.latencies, 50)
        return name, self.rate, p50, p99, ratio, f"{self.rate / floor.rate:.0%}"


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    with System() as system:
        system.start_server()
        return [uvloop.run(_measure(system.settings(), system.port, 0.1 if quick else 2.0))]


async def _measure(settings: Settings, port: int, seconds: float) -> Report:
    store = Store.of(settings)
    await Announcements(store).announce([in_worker.definition])
    await store.aclose()
    rows: list[tuple[Cell, ...]] = []
    for clients in CLIENTS:
        empty, submit = _Sample(), _Sample()
        await _load(port, EMPTY, clients, seconds / 4, _Sample())
        await _load(port, SUBMIT, clients, seconds / 4, _Sample())
        for _ in range(ROUNDS):
            await _load(port, EMPTY, clients, seconds, empty)
            await _load(port, SUBMIT, clients, seconds, submit)
        rows.append(empty.row(f"empty, {clients}", empty))
        rows.append(submit.row(f"submit, {clients}", empty))
    return Report("Submit", COLUMNS, rows, ("No worker runs. Load and server share the cores.",))


async def _load(port: int, request: bytes, clients: int, seconds: float, sample: _Sample) -> None:
    """So many clients, each asking again as soon as it has its answer."""
    connections = [await Connection.open(port) for _ in range(clients)]
    begun = time.monotonic()
    await asyncio.gather(*(_client(connection, request, begun + seconds, sample) for connection in connections))
    sample.seconds += time.monotonic() - begun
    for connection in connections:
        connection.close()


async def _client(connection: Connection, request: bytes, until: float, sample: _Sample) -> None:
    while (sent := time.monotonic()) < until:
        status, _ = await connection.ask(request)
        sample.latencies.append((time.monotonic() - sent) * 1000)
        if status not in {200, 202}:
            raise RuntimeError(f"the server answered {status}")
