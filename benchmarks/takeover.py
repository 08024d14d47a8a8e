"""How long after `kill -9` of a worker does an observer of one of its runs hear the next chunk?"""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console
from rich.status import Status

from benchmarks.agents import in_worker, prompt
from benchmarks.figures import Cell, Report, percentile
from benchmarks.following import submit
from benchmarks.system import System
from benchmarks.wire import Stream, follow
from durable.store import Store, text
from tests.chaos.crew import Crew

WORKERS: Final = 20
SLOTS: Final = 6
QUEUE: Final = 2000
HOLD_MS: Final = 3000
PAUSE_MS: Final = 200
QUEUE_AGES_SECONDS: Final = 2.5
LONGEST_SECONDS: Final = 60
COLUMNS = ("lease, queue", "kills", "runs", "first p50 s", "p95 s", "last p50 s", "p95 s", "worst s", "aim p95 s")
NOTES = (
    f"{WORKERS} workers execute as many observed runs. 5 or 10 workers are killed, each at a moment of its own.",
    "From the kill to the next attempt's first chunk at an observer: of the worker's first run that has one, and last.",
    f"Long: {QUEUE:,} runs of about {HOLD_MS / 1000:g} s wait for {WORKERS * SLOTS} slots; one frees every 30 ms.",
)
_ATTEMPT = re.compile(rb'"attempt":(\d+)')


@dataclass(frozen=True)
class _Case:
    """One row.

    Attributes:
        at_once: Kills before all that was lost has to go on again.
        within: Seconds between the first of them and the last; less than what is left of any lease.
        aim: Seconds that 95 % of the takeovers are meant to stay below.
    """

    name: str
    lease: float
    queue: int
    kills: int
    at_once: int
    within: float
    aim: float

    @property
    def env(self) -> dict[str, str]:
        return {
            "DURABLE_LEASE_SECONDS": f"{self.lease:g}",
            "DURABLE_HEARTBEAT_SECONDS": f"{self.lease / 3:g}",
            "DURABLE_MAX_ATTEMPTS": "1000",
            **({"DURABLE_CONCURRENCY": f"{SLOTS}"} if self.queue else {}),
        }


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    console, rows = Console(stderr=True), []
    workers = 4 if quick else WORKERS
    for case in _cases(quick=quick):
        with ExitStack() as cleanup:
            system = cleanup.enter_context(System(**case.env))
            system.start_server()
            logs = cleanup.enter_context(tempfile.TemporaryDirectory())
            crew = cleanup.enter_context(Crew(system.worker_env(), Path(logs)))
            status = cleanup.enter_context(console.status(case.name))
            rows.append(uvloop.run(_Trial(case, system, crew, workers, status).run()))
    return [Report("Takeover", COLUMNS, rows, NOTES, aim=(4, 8))]


def _cases(*, quick: bool) -> list[_Case]:
    if quick:
        return [_Case("1 s, none", 1, 0, 2, 2, 0.3, 2.5), _Case("1 s, long", 1, 100, 1, 1, 0.3, 2.5)]
    return [
        _Case("6 s (default), none", 6, 0, 50, 10, 1, 8),
        _Case("6 s (default), long", 6, QUEUE, 50, 10, 1, 8),
        _Case("1 s, none", 1, 0, 50, 5, 0.3, 2.5),
        _Case("1 s, long", 1, QUEUE, 50, 5, 0.3, 2.5),
    ]


class _Run:
    """An observed run: its newest attempt, as its observer has heard."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.attempt = 0
        self.since = 0
        self.stream = Stream(follow(run_id), self._hear)
        self._changed = asyncio.Event()

    async def later(self, attempt: int) -> None:
        """Wait for an attempt later than this one."""
        async with asyncio.timeout(LONGEST_SECONDS):
            while self.attempt <= attempt:
                self._changed.clear()
                await self._changed.wait()

    def _hear(self, at: int, data: bytes) -> None:
        for found in _ATTEMPT.finditer(data):
            if int(found[1]) > self.attempt:
                self.attempt, self.since = int(found[1]), at
        self._changed.set()


@dataclass
class _Kill:
    at: int
    seconds: list[float] = field(default_factory=list)


class _Trial:
    """One row of the table."""

    def __init__(self, case: _Case, system: System, crew: Crew, workers: int, status: Status) -> None:
        self._case = case
        self._system = system
        self._crew = crew
        self._workers = workers
        self._status = status
        self._chance = random.Random(case.name)
        self._store = Store.of(system.settings())
        self._runs: list[_Run] = []
        self._kills: list[_Kill] = []

    async def run(self) -> tuple[Cell, ...]:
        """Kill as often as the case wants; how long each takeover took."""
        await self._man()
        await self._begin()
        if self._case.queue:
            await self._fill()
        while len(self._kills) < self._case.kills:
            await self._kill_some()
            self._status.update(f"{self._case.name}: {len(self._kills)} of {self._case.kills} kills")
        await self._store.aclose()
        taken = [kill.seconds for kill in self._kills]
        first, last = [min(seconds) for seconds in taken], [max(seconds) for seconds in taken]
        shown = [percentile(values, percent) for values in (first, last) for percent in (50, 95)]
        return self._case.name, len(taken), sum(map(len, taken)), *shown, max(last), self._case.aim

    async def _man(self) -> None:
        """Let there be as many workers as there should be, all of them ready."""
        while len(self._crew.live) < self._workers:
            self._crew.start()
        async with asyncio.timeout(LONGEST_SECONDS):
            while not all(worker.ready for worker in self._crew.live):  # noqa: ASYNC110 - their logs tell
                await asyncio.sleep(0.1)

    async def _begin(self) -> None:
        """Let all observed runs speak."""
        for _ in range(self._workers):
            run = _Run(await submit(self._system.port, in_worker.name, prompt(deltas=100_000, pause_ms=PAUSE_MS)))
            await run.stream.open(self._system.port)
            self._runs.append(run)
        await asyncio.gather(*(run.later(0) for run in self._runs))

    async def _fill(self) -> None:
        """A queue that is old enough for its runs to be woken again."""
        for _ in range(self._case.queue):  # of different lengths, so that slots do not all become free at once
            await submit(
                self._system.port, in_worker.name, prompt(deltas=1, hold_ms=HOLD_MS * self._chance.uniform(0.5, 1.5))
            )
        await asyncio.sleep(QUEUE_AGES_SECONDS)

    async def _kill_some(self) -> None:
        """Kill workers that execute observed runs, and wait until all of these go on again."""
        owned = await self._owned()
        victims = [worker for worker in self._crew.live if worker.pid in owned]
        number = min(self._case.at_once, self._case.kills - len(self._kills), len(victims), self._workers // 2)
        takeovers = []
        for worker in self._chance.sample(victims, number):
            await asyncio.sleep(self._chance.uniform(0, 2 * self._case.within / number))
            kill = _Kill(time.monotonic_ns())
            self._crew.kill(worker)
            self._kills.append(kill)
            takeovers += [self._takeover(kill, run, run.attempt) for run in owned[worker.pid]]
        await asyncio.gather(*takeovers)
        await self._man()  # only now: to start takes the cores from those that take over

    async def _owned(self) -> dict[int, list[_Run]]:
        """The observed runs of each worker, by its process id."""
        owned: dict[int, list[_Run]] = defaultdict(list)
        for run in self._runs:
            owner = await self._store.redis.hget(self._store.keys.run(run.run_id), "owner")
            if owner is not None:
                owned[int(text(owner).split(":")[1])].append(run)
        return owned

    async def _takeover(self, kill: _Kill, run: _Run, attempt: int) -> None:
        await run.later(attempt)
        kill.seconds.append((run.since - kill.at) / 1e9)
