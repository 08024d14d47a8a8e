"""A deploy: all workers are replaced, one by one, while runs go through them. It costs no run and repeats no call."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import pytest
from pydantic import SecretStr

from durable.backend import Backend
from durable.chunks import ResponseMetadata, StepStart
from durable.dev.redis_server import PrivateRedis
from durable.journal import read
from durable.runs import NewRun, RunRequest
from durable.settings import Settings
from durable.store import Store
from tests.chaos import effects
from tests.chaos.chance import seeded
from tests.chaos.crew import ROOT, Crew
from tests.chaos.programs import Program
from tests.conftest import eventually

WORKERS = 10
AT_ONCE = 12
PREFIX = "deploy"


class Callers:
    """Callers that have runs executed, one after the other, until the deploy is over."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.programs: dict[str, Program] = {}
        self.over = asyncio.Event()

    async def call(self, chance: Random, name: str) -> None:
        """One caller."""
        serial = 0
        while not self.over.is_set():
            serial += 1
            run_id = f"{name}-{serial}"
            self.programs[run_id] = Program.random(chance, run_id, alone=True)
            request = RunRequest(prompt=self.programs[run_id].prompt)
            new = NewRun("program", "evented", f"{PREFIX}.program", request, retention=600, run_id=run_id)
            record, _ = await self.backend.runs.create(new)
            await self.backend.dispatch(record)
            await eventually(partial(self._ended, run_id), seconds=60, what=f"{run_id} to end")

    async def _ended(self, run_id: str) -> bool:
        return (await self.backend.runs.get(run_id)).status.ended


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_a_deploy_of_ten_workers_one_by_one_repeats_nothing(own_redis: PrivateRedis, tmp_path: Path) -> None:
    env = {
        "DURABLE_REDIS_URL": own_redis.url,
        "DURABLE_PREFIX": PREFIX,
        "DURABLE_AGENTS": "tests.chaos.programs",
        "DURABLE_GRACE_SECONDS": "30",
        "DURABLE_CONCURRENCY": "4",
        "PYTHONPATH": str(ROOT),
        effects.VARIABLE: str(tmp_path / "effects"),
    }
    settings = Settings(redis_url=SecretStr(own_redis.url), prefix=PREFIX)
    with Crew(env, tmp_path) as crew:
        for _ in range(WORKERS):
            crew.start()
        async with Backend(Store.of(settings), settings) as backend:
            callers = Callers(backend)

            async def all_ready() -> bool:
                return all(worker.ready for worker in crew.live)

            await eventually(all_ready, seconds=60, what="the workers to be ready")
            async with asyncio.TaskGroup() as tasks:
                for number in range(AT_ONCE):
                    tasks.create_task(callers.call(seeded(f"deploy {number}"), f"r{number}"))
                for old in list(crew.live):
                    old.send(signal.SIGTERM)

                    async def gone(pid: int = old.pid) -> bool:
                        return pid in crew.fallen() or all(worker.pid != pid for worker in crew.live)

                    await eventually(gone, seconds=60, what=f"worker {old.pid} to end")
                    crew.start()
                    await eventually(all_ready, seconds=60, what="its successor to be ready")
                callers.over.set()
            handed_over = 0
            done = Counter(effect.key for effect in effects.read(tmp_path / "effects"))
            for run_id, program in callers.programs.items():
                record = await backend.runs.get(run_id)
                assert record.status == "completed", run_id
                chunks = [
                    chunk
                    for entry in await read(backend.store, run_id, 0, limit=10_000, max_bytes=2**28)
                    for chunk in entry.chunks()
                ]
                assert [chunk.seq for chunk in chunks] == list(range(1, record.last_seq + 1))
                answers = [chunk for chunk in chunks if isinstance(chunk, ResponseMetadata)]
                assert len(answers) == len(program.steps), "no model call was repeated"
                torn = [chunk for chunk in chunks if isinstance(chunk, StepStart) and chunk.payload.void is not None]
                assert not torn, "no model call was interrupted"
                assert {done[f"{run_id}:{name}"] for name in program.calls} <= {1}, "no tool call was repeated"
                handed_over += record.token > 1
    assert handed_over > 0, "some runs were under way in a worker that was replaced"
