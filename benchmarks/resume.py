"""How long does it take to go on with a long run, from its claim to its first new chunk?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import uvloop

from benchmarks.figures import Cell, Report, median, percentile
from benchmarks.steps import create, nobody, stepping
from benchmarks.system import System
from durable.execution import Engine, Outcome
from durable.probes import Point
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store

LENGTHS: Final = (0, 10, 50, 200)
ROUNDS: Final = 30
COLUMNS = ("completed steps", "p50 ms", "p95 ms", "/ no step", "CPU ms p50", "checkpoint bytes")
NOTES = (
    "From the claim's way to Redis until Redis has acknowledged the first chunk of the attempt. One run at a time.",
    "An attempt reads checkpoints, ledger and the rest of the log; then Pydantic AI makes its request out of them.",
)


@dataclass
class _Clock:
    """A probe: when a claim was begun, and when the first chunk after it was in the log."""

    claimed: tuple[float, float] = (0, 0)
    written: tuple[float, float] | None = None
    wrote: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, point: Point) -> None:
        if point is Point.CLAIM_BEFORE:
            self.claimed, self.written = _now(), None
            self.wrote.clear()
        elif point is Point.APPEND_AFTER and self.written is None:
            self.written = _now()
            self.wrote.set()

    def milliseconds(self) -> tuple[float, float]:
        """Of this attempt: of time, and of CPU time."""
        if self.written is None:
            raise RuntimeError("nothing was written")
        (begun, cpu), (written, later) = self.claimed, self.written
        return (written - begun) * 1000, (later - cpu) * 1000


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    lengths, rounds = ((0, 3), 2) if quick else (LENGTHS, ROUNDS)
    with System() as system:
        return [uvloop.run(_measure(system.settings(), lengths, rounds))]


async def _measure(settings: Settings, lengths: Sequence[int], rounds: int) -> Report:
    store = Store.of(settings)
    trials = [await _Parked.at(store, settings, steps) for steps in lengths]
    for number in range(-2, rounds):
        for trial in trials:
            await trial.go_on(counts=number >= 0)  # caches fill in the first ones
    floor = median(trials[0].times)
    rows: list[tuple[Cell, ...]] = []
    for trial in trials:
        p50, stored = median(trial.times), sum(map(len, await trial.runs.checkpoints(trial.run_id)))
        rows.append((str(trial.steps), p50, percentile(trial.times, 95), p50 / floor, median(trial.cpu), stored))
        await trial.engine.stop()
    await store.aclose()
    return Report("Resume", COLUMNS, rows, NOTES)


@dataclass
class _Parked:
    """A run that has so many steps behind it, and whose model never answers any more."""

    steps: int
    runs: Runs
    engine: Engine
    clock: _Clock
    run_id: str
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @classmethod
    async def at(cls, store: Store, settings: Settings, steps: int) -> _Parked:
        """Bring a run so far."""
        definition, clock, parked = stepping(steps + 1, parks=True), _Clock(), asyncio.Event()
        begun = 0

        def probe(point: Point) -> None:
            nonlocal begun
            clock(point)
            begun += point is Point.MODEL_BEFORE
            if begun > steps:
                parked.set()

        runs = Runs(store, settings)
        engine = Engine(store, settings, {definition.name: definition}, redispatch=nobody, probe=probe)
        await engine.start()
        trial = cls(steps, runs, engine, clock, (await create(runs)).run_id)
        await trial._attempt(parked)
        return trial

    async def go_on(self, *, counts: bool) -> None:
        """Make an attempt at it: until its first chunk."""
        await self._attempt(self.clock.wrote)
        if counts:
            elapsed, cpu = self.clock.milliseconds()
            self.times.append(elapsed)
            self.cpu.append(cpu)

    async def _attempt(self, until: asyncio.Event) -> None:
        self.clock.wrote.clear()
        attempt, reached = (asyncio.ensure_future(each) for each in (self.engine.execute(self.run_id), until.wait()))
        await asyncio.wait((attempt, reached), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        self.engine.hand_back(self.run_id)
        outcome = await attempt
        if outcome is not Outcome.HANDED_BACK:
            raise RuntimeError(f"an attempt ended as {outcome}")


def _now() -> tuple[float, float]:
    """The time, and this process's CPU time."""
    return time.monotonic(), time.process_time()
