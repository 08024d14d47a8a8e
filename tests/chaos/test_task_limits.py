"""A limit of background tasks, over four workers that race for its places and are killed while they hold them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from durable.backend import Backend
from durable.dev.redis_server import PrivateRedis
from durable.journal import read
from durable.runs import NewRun, RunRequest
from durable.settings import Settings
from durable.store import Store
from tests.chaos import effects
from tests.chaos.chance import seeded
from tests.chaos.crew import ROOT, Crew
from tests.chaos.crowds import PLACES
from tests.chaos.effects import Effect
from tests.conftest import eventually

WORKERS = 4
TASKS = 60
KILLS = 6
PREFIX = "crowd"


def most_at_once(done: list[Effect], killed: dict[int, float]) -> int:
    """How many were executed at a time, at most. Whoever was killed has ended with that."""
    begun = {(effect.key, effect.attempt): effect.at for effect in done if effect.kind == "begin"}
    ended = {(effect.key, effect.attempt): effect.at for effect in done if effect.kind == "end"}
    moments = []
    for name, at in begun.items():
        until = ended.get(name, killed.get(int(name[0].split(" ")[0]), float("inf")))
        moments += [(at, 1), (until, -1)]
    most = now = 0
    for _, step in sorted(moments):
        now += step
        most = max(most, now)
    return most


@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_no_kill_and_no_race_lets_more_tasks_run_than_may_and_none_is_forgotten(
    own_redis: PrivateRedis, tmp_path: Path
) -> None:
    env = {
        "DURABLE_REDIS_URL": own_redis.url,
        "DURABLE_PREFIX": PREFIX,
        "DURABLE_AGENTS": "tests.chaos.crowds",
        "DURABLE_LEASE_SECONDS": "1",
        "DURABLE_HEARTBEAT_SECONDS": "0.25",
        "DURABLE_SWEEP_SECONDS": "0.2",
        "DURABLE_MAX_ATTEMPTS": "50",
        "PYTHONPATH": str(ROOT),
        effects.VARIABLE: str(tmp_path / "effects"),
    }
    settings = Settings(redis_url=SecretStr(own_redis.url), prefix=PREFIX, lease_seconds=1, heartbeat_seconds=0.25)
    chance, killed = seeded("crowd"), dict[int, float]()
    with Crew(env, tmp_path) as crew:
        for _ in range(WORKERS):
            crew.start()
        async with Backend(Store.of(settings), settings) as backend:

            async def all_ready() -> bool:
                return all(worker.ready for worker in crew.live)

            await eventually(all_ready, seconds=60, what="the workers to be ready")
            request = RunRequest(prompt=str(TASKS), max_idle=60, max_steps=1000)
            record, _ = await backend.submit(NewRun("crowd", "evented", f"{PREFIX}.crowd", request, retention=600))
            run_id = record.run_id

            async def over() -> bool:
                return (await backend.runs.get(run_id)).status.ended

            def at_work() -> int:
                return sum(effect.kind == "end" for effect in effects.read(tmp_path / "effects"))

            for kill in range(KILLS):

                async def further(least: int = kill * TASKS // KILLS) -> bool:
                    return at_work() >= least

                await eventually(further, seconds=30, what="the tasks to get on")
                await asyncio.sleep(chance.uniform(0, 0.2))
                worker = chance.choice([worker for worker in crew.live if worker.ready])
                crew.kill(worker)
                killed[worker.pid] = time.time()
                crew.start()
            await eventually(over, seconds=60, what="the run to end")
            await judge(backend, run_id, effects.read(tmp_path / "effects"), killed)


async def judge(backend: Backend, run_id: str, done: list[Effect], killed: dict[int, float]) -> None:
    record = await backend.runs.get(run_id)
    assert record.status == "completed"
    assert json.loads(str(record.json("output"))) == list(range(TASKS)), "each result is told once"
    assert most_at_once(done, killed) == PLACES
    calls = Counter(effect.key.split(" ")[1] for effect in done if effect.kind == "end")
    assert set(calls) == {f"{run_id}:1:c{n}" for n in range(TASKS)}
    chunks = [c for entry in await read(backend.store, run_id, 0, limit=10_000) for c in entry.chunks()]
    ends = Counter(c.payload.tool_call_id for c in chunks if c.type == "background-task-completed")
    assert ends == Counter({f"c{n}": 1 for n in range(TASKS)})
    redis: Any = backend.store.redis
    assert not await redis.keys(f"{PREFIX}:limit:*"), "all places are free, and nobody waits for one"
    assert len(killed) == KILLS
