"""What does the way of a chunk cost, from the model's delta to the log, in CPU time and in memory of Redis?"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import uvloop
from pydantic_ai import Agent
from pydantic_ai.agent import AbstractAgent

from benchmarks.agents import in_process, prompt
from benchmarks.figures import Cell, Report, median
from benchmarks.sampling import Sampler
from benchmarks.system import System
from benchmarks.written import write_run
from durable.backend import Backend
from durable.runs import NewRun, RunRequest
from durable.settings import Settings
from durable.store import Store

ROUNDS = 3
CPU_COLUMNS = ("way", "deltas", "chunks", "CPU µs/delta", "more than bare", "/ bare", "more µs/chunk", "Redis µs/chunk")
NOTES = (
    "10 runs with a delta every 5 ms each leave the process idle now and then; 20 with one every 3 ms fill a core.",
    f"Medians of {ROUNDS}. A bare agent is agent.iter() alone. CPU is that of its process; Redis's is told apart.",
)
MEMORY_COLUMNS = ("log", "chunks", "entries", "payload B/chunk", "memory B/chunk", "more than payload B/chunk")
PROFILE_COLUMNS = ("part", "bare agent µs/delta", "engine µs/delta")
PLACES = (
    ("durable: writer and appender", "/durable/writer"),
    ("durable: writer and appender", "/durable/appender"),
    ("durable: translation", "/durable/translate/"),
    ("durable: chunks", "/durable/chunks/"),
    ("durable: the rest", "/durable/"),
    ("redis-py", "/redis/"),
    ("pydantic-ai", "/pydantic_ai/"),
    ("pydantic-ai", "/pydantic_graph/"),
    ("the model", "/benchmarks/"),
    ("asyncio", "/asyncio/"),
)


@dataclass(frozen=True)
class _Load:
    runs: int
    deltas: int
    pause_ms: int

    @property
    def total(self) -> int:
        return self.runs * self.deltas

    @property
    def order(self) -> str:
        return prompt(deltas=self.deltas, pause_ms=self.pause_ms)


@dataclass(frozen=True)
class _Cost:
    """CPU seconds of this process and of Redis, and the chunks that came out."""

    here: float
    redis: float = 0
    chunks: int = 0


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    light, full = (_Load(3, 20, 5), _Load(5, 20, 5)) if quick else (_Load(10, 400, 5), _Load(20, 300, 3))
    with System() as system:
        return uvloop.run(_measure(system, light, full, 200 if quick else 5000))


async def _measure(system: System, light: _Load, full: _Load, longest: int) -> list[Report]:
    merging, single = system.settings(prefix="merging"), system.settings(prefix="single", flush_ms=0)
    rows: list[tuple[Cell, ...]] = []
    for load in (light, full):
        bare, merged, alone = [], [], []
        for _ in range(ROUNDS):
            bare.append(await _bare(load))
            merged.append(await _engine(merging, load))
            alone.append(await _engine(single, load))
        floor = median([cost.here for cost in bare]) / load.total * 1e6
        rows.append((f"{load.runs} runs, bare agent", load.total, None, floor, None, 1.0, None, None))
        for name, costs in ((f"flush {merging.flush_ms:g} ms", merged), ("flush 0", alone)):
            rows.append(_row(f"{load.runs} runs, {name}", costs, load, floor))
    cpu = Report("CPU per chunk", CPU_COLUMNS, rows, NOTES)
    return [cpu, await _profile(single, full), await _memory(single, (100, 1000, longest))]


def _row(name: str, costs: list[_Cost], load: _Load, floor: float) -> tuple[Cell, ...]:
    here = median([cost.here for cost in costs]) / load.total * 1e6
    chunks = int(median([cost.chunks for cost in costs]))
    redis = median([cost.redis for cost in costs]) / chunks * 1e6
    more = here - floor
    return name, load.total, chunks, here, more, here / floor, more * load.total / chunks, redis


async def _bare(load: _Load) -> _Cost:
    before = time.process_time()
    await asyncio.gather(*(_drive(in_process.agent, load.order) for _ in range(load.runs)))
    return _Cost(time.process_time() - before)


async def _drive(agent: AbstractAgent[Any, Any], order: str) -> None:
    async with agent.iter(order) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for _ in stream:
                        pass


async def _engine(settings: Settings, load: _Load) -> _Cost:
    async with _backend(settings) as backend:
        run_ids = [await _create(backend, load.order) for _ in range(load.runs)]
        redis_before, before = await _redis_cpu(backend.store), time.process_time()
        await _execute(backend, run_ids)
        here, redis = time.process_time() - before, await _redis_cpu(backend.store) - redis_before
        records = [await backend.runs.get(run_id) for run_id in run_ids]
        return _Cost(here, redis, sum(record.last_seq for record in records))


def _backend(settings: Settings) -> Backend:
    return Backend(Store.of(settings), settings, {in_process.name: in_process.definition}, celery=False)


async def _create(backend: Backend, order: str) -> str:
    new = NewRun(in_process.name, "durable", "none", RunRequest(prompt=order), retention=3600)
    record, _ = await backend.runs.create(new)
    return record.run_id


async def _execute(backend: Backend, run_ids: list[str]) -> None:
    engine = backend.engine
    if engine is None:
        raise RuntimeError("this backend executes nothing")
    outcomes = await asyncio.gather(*(engine.execute(run_id) for run_id in run_ids))
    if set(outcomes) != {"completed"}:
        raise RuntimeError(f"the runs ended as {set(outcomes)}")


async def _redis_cpu(store: Store) -> float:
    info: dict[str, Any] = await store.redis.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


async def _profile(settings: Settings, load: _Load) -> Report:
    with Sampler(PLACES) as alone:
        bare = await _bare(load)
    with Sampler(PLACES) as whole:
        engine = await _engine(settings, load)
    floor = {name: share * bare.here / load.total * 1e6 for name, share in alone.shares()}
    rows: list[tuple[Cell, ...]] = [
        (name, floor.get(name), share * engine.here / load.total * 1e6) for name, share in whole.shares()
    ]
    notes = (
        "A sample each ms of CPU time counts for the innermost frame of a known part; C code counts for its caller.",
    )
    return Report("Where the CPU time goes, flush 0", PROFILE_COLUMNS, rows, notes)


async def _memory(settings: Settings, lengths: tuple[int, ...]) -> Report:
    store = Store.of(settings)
    rows: list[tuple[Cell, ...]] = []
    for length in lengths:
        run_id = await write_run(store, settings, length, chunks_an_entry=1)
        rows.append((f"{length:,} deltas, each an entry", *await _log_memory(store, run_id)))
    await store.aclose()
    notes = (
        "Payload is the stored JSON of a chunk; memory is MEMORY USAGE of the log. At most 32 bytes more are meant.",
    )
    return Report("Memory of Redis per chunk, flush 0", MEMORY_COLUMNS, rows, notes)


async def _log_memory(store: Store, run_id: str) -> tuple[int, int, float, float, float]:
    key = store.keys.log(run_id)
    used = int(await store.redis.memory_usage(key, samples=0) or 0)
    entries: Any = await store.redis.xrange(key)
    bodies = [body for _, fields in entries for body in fields[b"c"].split(b"\n")]
    payload = sum(map(len, bodies)) / len(bodies)
    memory = used / len(bodies)
    return len(bodies), len(entries), payload, memory, memory - payload
