"""The kill loop: real workers, an API and a Redis are killed and frozen while runs of random programs go through them.

At the end every run has ended as its program says, each log is one, everybody who followed it saw the same bytes, and
nothing that was recorded was done again. Calls that wait are answered by two who never agree: one of them decides, and
what was decided is done once. A loop in which too little happened proves nothing: it fails as void.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final, Self

from pydantic import SecretStr

from durable import Backoff, Client
from durable.backend import Backend
from durable.decisions import Answer
from durable.dev.ports import free_port
from durable.dev.redis_server import PrivateRedis
from durable.dev.services import api_service
from durable.dev.stack import Child, Stack
from durable.errors import AlreadyDecided, DurableError, RunEnded, StoreUnavailable
from durable.journal import read
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store
from tests.chaos import effects
from tests.chaos.chance import seeded
from tests.chaos.crew import ROOT, Crew, Worker
from tests.chaos.judge import Followed, Judge, Verdict, sight
from tests.chaos.programs import Program
from tests.conftest import eventually
from tests.deployment import Log

LEASE: Final = 1.0
WORKERS: Final = 4
DECIDERS: Final = ("alice", "bob")
PATIENT: Final = Backoff(patience=120.0)
_LOST: Final = re.compile(r"lease \d+ lost")
_REFUSED: Final = re.compile(r"was refused")


@dataclass(frozen=True)
class Plan:
    """How hard it gets. Times are seconds.

    Attributes:
        seconds: How long faults go on; the runs that are left may then end.
        seed: Of all chance.
        at_once: Runs under way at a time.
        kill: Between two SIGKILLs of a worker, from … to.
        freeze: Between two SIGSTOPs of a worker.
        freezers: How many freeze workers at the same time.
        redis: Between two SIGKILLs of Redis.
        api: Between two restarts of the API.
        cancelled: Share of the runs that somebody cancels.
        stuck: Without progress for so long, the loop fails.
        floor: What must have happened at least.
        sabotage: What is broken on purpose; "" for nothing.
    """

    seconds: float
    seed: int
    at_once: int = 20
    kill: tuple[float, float] = (0.4, 1.2)
    freeze: tuple[float, float] = (1.0, 2.0)
    freezers: int = 1
    redis: tuple[float, float] = (6.0, 9.0)
    api: tuple[float, float] = (9.0, 12.0)
    cancelled: float = 0.05
    stuck: float = 60.0
    floor: Mapping[str, int] = field(default_factory=dict)
    sabotage: str = ""


class Void(AssertionError):
    """Too little happened to prove anything."""


class Stuck(AssertionError):
    """Runs no longer end."""


class KillLoop:
    """One loop. An async context manager: `async with KillLoop(plan) as loop: verdict = await loop.run()`."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.programs: dict[str, Program] = {}
        self.cancelled: set[str] = set()
        self.followed: list[Followed] = []
        self.accepted: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.fallen: list[str] = []
        self._say = say
        self._cleanup = ExitStack()
        self._ended: set[str] = set()
        self._over = asyncio.Event()
        self._output = Log()

    async def __aenter__(self) -> Self:
        self._folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="durable-chaos-")))
        self._redis = self._cleanup.enter_context(PrivateRedis())
        self._stack = Stack(self._output)  # type: ignore[arg-type]  # enough of a text file
        self._cleanup.enter_context(self._stack)
        agents = "tests.chaos.sabotaged_programs" if self.plan.sabotage else "tests.chaos.programs"
        self._env = {
            "DURABLE_REDIS_URL": self._redis.url,
            "DURABLE_PREFIX": "chaos",
            "DURABLE_AGENTS": agents,
            "DURABLE_LEASE_SECONDS": str(LEASE),
            "DURABLE_HEARTBEAT_SECONDS": str(LEASE / 4),
            "DURABLE_SWEEP_SECONDS": "0.3",
            "DURABLE_CONCURRENCY": "40",
            "DURABLE_MAX_ATTEMPTS": "50",
            "PYTHONPATH": str(ROOT),
            effects.VARIABLE: str(self._folder / "effects"),
            "CHAOS_SABOTAGE": self.plan.sabotage,
        }
        self._crew = self._cleanup.enter_context(Crew(self._env, self._folder))
        for _ in range(WORKERS):
            self._crew.start()
        self._port = free_port()
        self._api = await asyncio.to_thread(self._start_api)
        self._settings = Settings(
            redis_url=SecretStr(self._redis.url), prefix="chaos", lease_seconds=LEASE, heartbeat_seconds=LEASE / 4
        )
        self._store = Store.of(self._settings)
        self._runs = Runs(self._store, self._settings)
        self._client = Client(f"http://127.0.0.1:{self._port}", retry=PATIENT, reconnect=PATIENT)
        await self._until(lambda: all(worker.ready for worker in self._crew.live), "the workers to be ready")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        await self._store.aclose()
        await asyncio.to_thread(self._cleanup.close)

    async def run(self) -> Verdict:
        """Let it all happen, then judge.

        Raises:
            Stuck: Runs no longer end.
            Void: Too little happened.
        """
        started, plan = time.monotonic(), self.plan
        async with asyncio.TaskGroup() as tasks:
            faults = [
                tasks.create_task(self._again_and_again(each, between))
                for each, between in (
                    (self._kill_worker, plan.kill),
                    (self._kill_redis, plan.redis),
                    (self._restart_api, plan.api),
                    *[(self._freeze_worker, plan.freeze)] * plan.freezers,
                )
            ]
            callers = [tasks.create_task(self._call(number)) for number in range(plan.at_once)]
            others = [tasks.create_task(self._watch(started)), *map(tasks.create_task, map(self._decide, DECIDERS))]
            await asyncio.sleep(plan.seconds)
            await self._enough(started + 2 * plan.seconds)
            self._over.set()
            await asyncio.wait(faults)
            await self._heal()
            await asyncio.wait(callers)
            for task in others:
                task.cancel()
        await self._tasks_ended()
        self.counts["runs"] = len(self.programs)
        self.counts["seconds"] = round(time.monotonic() - started)
        return await self._judge()

    # What goes through it.

    async def _call(self, number: int) -> None:
        """A caller: one run after the other, followed by somebody, until the time is over."""
        chance, serial = seeded(f"{self.plan.seed} caller {number}"), 0
        while not self._over.is_set():
            serial += 1
            name = f"r{number}-{serial}"
            program = Program.random(chance, name)
            self.programs[name] = program
            await self._client.submit("program", program.prompt, run_id=name, until_idle=120)
            async with asyncio.TaskGroup() as tasks:
                for each in range(chance.choice((1, 1, 2))):
                    tasks.create_task(self._follow(name, seeded(f"{self.plan.seed} {name} {each}")))
                if chance.random() < 0.25:
                    tasks.create_task(self._read_raw(name, seeded(f"{self.plan.seed} {name} raw")))
                if chance.random() < self.plan.cancelled:
                    tasks.create_task(self._cancel(name, chance.uniform(0, 1)))
            self._ended.add(name)

    async def _follow(self, run_id: str, chance: Random) -> None:
        """Follow a run, and lose the connection now and then."""
        seen: list[bytes] = []
        while True:
            patience = chance.randint(1, 60)
            async with aclosing(self._client.observe(run_id, len(seen))) as chunks:
                async for chunk in chunks:
                    seen.append(sight(chunk))
                    patience -= 1
                    if chunk.final:
                        self.followed.append(Followed(run_id, seen))
                        return
                    if patience == 0:
                        self.counts["reconnects"] += 1
                        break

    async def _read_raw(self, run_id: str, chance: Random) -> None:
        """Read a run's log as it lies in Redis, page by page."""
        seen: list[bytes] = []
        while True:
            try:
                entries = await read(self._store, run_id, len(seen), limit=chance.randint(1, 20))
            except StoreUnavailable:
                entries = []
            chunks = [chunk for entry in entries for chunk in entry.chunks()]
            seen += [sight(chunk) for chunk in chunks]
            if chunks and chunks[-1].final:
                self.followed.append(Followed(run_id, seen))
                return
            await asyncio.sleep(chance.uniform(0, 0.2))

    async def _cancel(self, run_id: str, after: float) -> None:
        await asyncio.sleep(after)
        with contextlib.suppress(RunEnded):
            await self._client.cancel(run_id)
            self.cancelled.add(run_id)

    async def _decide(self, actor: str) -> None:
        """Answer what waits, and always in another way than the others do."""
        answers = {
            "approval": Answer(kind="approve" if actor == DECIDERS[0] else "decline", actor=actor),
            "resume": Answer(kind="resume", data=actor, actor=actor),
        }
        chance = seeded(f"{self.plan.seed} decider {actor}")
        async with Backend(Store.of(self._settings), self._settings) as backend:
            while True:
                try:
                    calls, _ = await backend.decisions.page()
                    for call in chance.sample(calls, len(calls)):
                        await self._answer(backend, call.run_id, call.tool_call_id, answers[str(call.kind)])
                except StoreUnavailable:
                    self.counts["answers without a reply"] += 1
                await asyncio.sleep(chance.uniform(0, 0.05))

    async def _answer(self, backend: Backend, run_id: str, call: str, answer: Answer) -> None:
        try:
            await backend.decide(run_id, call, answer)
            self.accepted[run_id, call].add(str(answer.actor))
        except AlreadyDecided:
            self.counts["answers refused"] += 1
        except RunEnded:
            self.counts["answers too late"] += 1

    # What happens to it.

    async def _again_and_again(self, fault: Callable[[Random], Awaitable[None]], between: tuple[float, float]) -> None:
        chance = seeded(f"{self.plan.seed} {fault.__name__}")
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), chance.uniform(*between))
                return
            await fault(chance)

    def _some(self, chance: Random) -> Worker | None:
        """A worker that works; one of them is always left alone."""
        working = [worker for worker in self._crew.live if worker.ready and not worker.frozen]
        return chance.choice(working) if len(working) > 1 else None

    async def _kill_worker(self, chance: Random) -> None:
        self._look_for_fallen()
        worker = self._some(chance)
        if worker is not None:
            self._crew.kill(worker)
            self.counts["kills"] += 1
        while len(self._crew.live) < WORKERS:
            self._crew.start()

    async def _freeze_worker(self, chance: Random) -> None:
        worker = self._some(chance)
        if worker is None:
            return
        worker.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(2.5 * LEASE)
        finally:
            worker.send(signal.SIGCONT)
        self.counts["zombies"] += 1

    async def _kill_redis(self, _: Random) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.to_thread(self._redis.start)
        self.counts["redis kills"] += 1

    async def _restart_api(self, chance: Random) -> None:
        how = chance.choice((signal.SIGKILL, signal.SIGTERM))
        self._api.send_signal(how)
        await self._until(lambda: self._api.exit_code is not None, "the API to end")
        self._api = await asyncio.to_thread(self._start_api)
        self.counts["API restarts"] += 1

    async def _enough(self, deadline: float) -> None:
        """On a busy machine less happens in the same time: go on until as much of what comes of faults has happened as
        has to, or twice as long."""
        while time.monotonic() < deadline:
            self._read_logs()
            of_faults = self.plan.floor.keys() & {"kills", "zombies", "redis kills", "API restarts", "writes refused"}
            if all(self.counts[name] >= self.plan.floor[name] for name in of_faults):
                return
            await asyncio.sleep(0.5)

    async def _heal(self) -> None:
        """No more faults."""
        self._look_for_fallen()
        while len(self._crew.live) < WORKERS:
            self._crew.start()

    async def _tasks_ended(self) -> None:
        """Wait for the tasks of cancelled runs: they are told to end, and nobody follows them."""
        keys, redis = self._store.keys, self._store.redis

        async def none_left() -> bool:
            return not await redis.exists(*(keys.tasks(status=status) for status in ("queued", "running", "suspended")))

        await eventually(none_left, seconds=30, what="all tasks to end")

    def _look_for_fallen(self) -> None:
        """Workers must not end by themselves."""
        for worker in self._crew.fallen().values():
            self.fallen.append(f"worker {worker.pid} ended by itself: {worker.log.read_text(errors='replace')[-6000:]}")

    def _start_api(self) -> Child:
        service = api_service(self._redis.url, port=self._port, env={**self._env, "DURABLE_AGENTS": ""})
        return self._stack.start(replace(service, cwd=ROOT))

    # What is made of it.

    async def _watch(self, started: float) -> None:
        """Tell how it goes, and see to it that it goes."""
        ended, since = -1, time.monotonic()
        while True:
            await asyncio.sleep(1)
            if len(self._ended) > ended:
                ended, since = len(self._ended), time.monotonic()
            elif time.monotonic() - since > self.plan.stuck:
                raise Stuck(await self._dump())
            told = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
            self._say(f"{time.monotonic() - started:5.0f} s  {ended} of {len(self.programs)} runs ended; {told}")

    async def _dump(self) -> str:
        lines = [f"no run has ended for {self.plan.stuck:g} s; seed {self.plan.seed}"]
        for run_id in sorted(set(self.programs) - self._ended)[:20]:
            with contextlib.suppress(DurableError):
                record = await self._runs.get(run_id)
                entries = await read(self._store, run_id, max(record.last_seq - 5, 0))
                lines += [f"{run_id}: {dict(record.fields)}", *(str(entry.bodies)[:500] for entry in entries)]
        redis: Any = self._store.redis
        for index in (self._store.keys.leases, self._store.keys.wakeups):
            lines.append(f"{index}: {await redis.zrange(index, 0, 50, withscores=True)}")
        lines += [f"{worker.pid}: {worker.log.read_text(errors='replace')[-1500:]}" for worker in self._crew.live]
        return "\n".join(lines)

    def _read_logs(self) -> None:
        logs = "".join(worker.log.read_text(errors="replace") for worker in self._crew.all)
        self.counts["leases lost by living owners"] = len(_LOST.findall(logs))
        self.counts["writes refused"] = len(_REFUSED.findall(logs))

    async def _judge(self) -> Verdict:
        self._read_logs()
        judge = Judge(self._store, self._runs, effects.read(self._folder / "effects"), self.accepted)
        verdict = await judge.all(self.programs, self.cancelled, self.followed)
        verdict.counts.update(self.counts)
        self._look_for_fallen()
        verdict.faults += self.fallen
        lacking = {name: least for name, least in self.plan.floor.items() if verdict.counts[name] < least}
        if lacking and not verdict.faults:
            raise Void(f"too little happened: {dict(verdict.counts)}, but at least {lacking} is needed")
        return verdict

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what}")
            await asyncio.sleep(0.02)
