"""What does a step cost, and a tool call, when each of them is recorded? And is the 200th as cheap as the tenth?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import uvloop
from pydantic_ai import Agent
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.messages import ModelMessage
from pydantic_ai.usage import UsageLimits
from rich.console import Console

from benchmarks.figures import Cell, Report, median
from benchmarks.steps import create, nobody, stepping
from benchmarks.system import System
from durable.definition import AgentDefinition
from durable.execution import Engine, Outcome
from durable.runs import Runs
from durable.settings import Settings
from durable.store import Store

LENGTHS: Final = (1, 10, 50, 200)
ROUNDS: Final = 3
CALLS: Final = 5
KEPT: Final = 20
COLUMNS = (
    "what",
    "in steps",
    "bare µs",
    "durable µs",
    "more µs",
    "/ bare",
    "Redis CPU µs",
    "sent to Redis B",
    "stored B",
)
NOTES = (
    f"Each row is the difference of two lengths of runs, divided by what lies between. Medians of {ROUNDS}.",
    "A step: a response with two deltas and one tool call of 200 bytes. A bare agent is agent.iter() alone.",
    "Pydantic AI goes through the whole conversation in each step: so the bare agent's cost grows, too.",
    f"A history processor that keeps the last {KEPT} messages makes each checkpoint keep so many anew.",
)


@dataclass(frozen=True)
class _Cost:
    """Of one run: CPU seconds of this process and of Redis, bytes to Redis, bytes that it has at the end."""

    here: float
    redis: float = 0
    sent: float = 0
    stored: float = 0


@dataclass(frozen=True)
class _Way:
    """A kind of run: how an agent of so many steps is made, and what a run costs with it, bare and durable."""

    name: str
    calls: int
    trims: bool = False

    def agent(self, steps: int) -> AgentDefinition:
        return stepping(steps, self.calls, capabilities=[ProcessHistory(_trim)] if self.trims else [])


Costs = dict[int, tuple[_Cost, _Cost]]
"""The median cost of a run by its steps: bare, and durable."""


def measure(*, quick: bool = False) -> list[Report]:
    """Ask."""
    lengths, total = ((1, 3, 5), 10) if quick else (LENGTHS, 120)
    with System() as system:
        return [uvloop.run(_measure(system.settings(), lengths, total))]


async def _measure(settings: Settings, lengths: Sequence[int], total: int) -> Report:
    one, many, trimming = _Way("a step", 1), _Way("", CALLS), _Way("a step, history trimmed", 1, trims=True)
    store, found = Store.of(settings), {}
    with Console(stderr=True).status("durability") as status:
        for way in (one, many, trimming):
            found[way] = await _costs(store, settings, way, lengths, total, status.update)
    await store.aclose()
    rows = [_row(way.name, found[way], *pair, 1) for way in (one, trimming) for pair in pairwise(lengths)]
    calls = {
        steps: tuple(_less(more, less) for more, less in zip(found[many][steps], found[one][steps], strict=True))
        for steps in lengths
    }
    rows += [_row("a tool call", calls, *pair, CALLS - 1) for pair in pairwise(lengths)]
    return Report("Cost of durability", COLUMNS, rows, NOTES)


async def _costs(store: Store, settings: Settings, way: _Way, lengths: Sequence[int], total: int, tell: Any) -> Costs:
    found: dict[int, list[tuple[_Cost, _Cost]]] = {steps: [] for steps in lengths}
    for number in range(ROUNDS + 1):
        for steps in lengths if number else lengths[:2]:  # the first round fills caches
            tell(f"durability: {way.calls} calls a step, {steps} steps, round {number} of {ROUNDS}")
            runs = max(1, total // steps // (1 if number else 10))
            bare = await _bare(way.agent(steps), min(runs, 20))
            kept = await _durable(store, settings, way.agent(steps), min(runs, 20))
            if number:
                found[steps].append((bare, kept))
    return {
        steps: (_middle([bare for bare, _ in costs]), _middle([kept for _, kept in costs]))
        for steps, costs in found.items()
    }


async def _bare(definition: AgentDefinition, runs: int) -> _Cost:
    before = time.process_time()
    for _ in range(runs):
        async with definition.agent.iter(
            "What is the weather like?", usage_limits=UsageLimits(request_limit=None)
        ) as run:
            async for node in run:
                if Agent.is_model_request_node(node) or Agent.is_call_tools_node(node):
                    async with node.stream(run.ctx) as stream:
                        async for _event in stream:
                            pass
    return _Cost((time.process_time() - before) / runs)


async def _durable(store: Store, settings: Settings, definition: AgentDefinition, count: int) -> _Cost:
    runs = Runs(store, settings)
    engine = Engine(store, settings, {definition.name: definition}, redispatch=nobody)
    await engine.start()
    records = [await create(runs) for _ in range(count)]
    redis, sent, here = *await _redis(store), time.process_time()
    for record in records:
        outcome = await engine.execute(record.run_id)
        if outcome is not Outcome.COMPLETED:
            raise RuntimeError(f"a run ended as {outcome}")
    here = time.process_time() - here
    redis_after, sent_after = await _redis(store)
    await engine.stop()
    stored = await _stored(store, records[-1].run_id)
    return _Cost(here / count, (redis_after - redis) / count, (sent_after - sent) / count, stored)


async def _redis(store: Store) -> tuple[float, float]:
    """CPU seconds of Redis so far, and the bytes that it was sent."""
    info: dict[str, Any] = await store.redis.info()
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"]), float(info["total_net_input_bytes"])


async def _stored(store: Store, run_id: str) -> float:
    keys = store.keys
    names = (keys.run(run_id), keys.request(run_id), keys.log(run_id), keys.checkpoints(run_id), keys.ledger(run_id))
    return float(sum([int(await store.redis.memory_usage(name, samples=0) or 0) for name in names]))


def _row(what: str, costs: Any, shorter: int, longer: int, each: int) -> tuple[Cell, ...]:
    """What each of those between two lengths costs."""
    bare, kept = (_less(costs[longer][way], costs[shorter][way]) for way in (0, 1))
    count = (longer - shorter) * each
    here, floor = kept.here / count * 1e6, bare.here / count * 1e6
    redis, sent, stored = kept.redis / count * 1e6, kept.sent / count, kept.stored / count
    return what, f"{shorter + 1} to {longer}", floor, here, here - floor, here / floor, redis, sent, stored


def _less(more: _Cost, less: _Cost) -> _Cost:
    return _Cost(more.here - less.here, more.redis - less.redis, more.sent - less.sent, more.stored - less.stored)


def _middle(costs: Sequence[_Cost]) -> _Cost:
    return _Cost(*(median([getattr(cost, name) for cost in costs]) for name in ("here", "redis", "sent", "stored")))


async def _trim(messages: list[ModelMessage]) -> list[ModelMessage]:
    """The prompt and the last steps."""
    return messages if len(messages) <= KEPT else [messages[0], *messages[-KEPT + 1 :]]
