"""How long until a background task begins, and until its run goes on with what it came to; and how many can be done?"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import uvloop
from celery import Celery

from benchmarks.agents import LIMIT, delegating, in_worker, limited, prompt, spreading
from benchmarks.bare import NOTE, WORK, bare
from benchmarks.bodies import BEGUN, BODIES
from benchmarks.figures import Cell, Report, median, percentile
from benchmarks.following import Followed, submit
from benchmarks.system import System
from durable.store import Store

WORKERS: Final = 2
CALLS: Final = 50
LONGEST_SECONDS: Final = 300
COLUMNS: Final = ("from → to", "times", "p50 ms", "p95 ms", "p50 / yardstick", "p95 / yardstick")
BARE: Final = "bare: task is sent → its body"
CALLED: Final = "model calls → the task's body"
RUNNING: Final = "task started → task running, at an observer"
ORDINARY: Final = "ordinary: submit → first chunk at an observer"
TOLD: Final = "tool returns → task completed, at an observer"
CONTINUED: Final = "tool returns → continuation's first chunk at an observer"
ASKED_AGAIN: Final = "tool returns → model is asked again"
YARDSTICKS: Final = {
    BARE: BARE,
    CALLED: BARE,
    RUNNING: BARE,
    ORDINARY: ORDINARY,
    TOLD: ORDINARY,
    CONTINUED: ORDINARY,
    ASKED_AGAIN: ORDINARY,
}
NOTES: Final = (
    "One run and one task at a time; a worker of ours, one of bare Celery, both with free slots, on the same broker.",
    "The run waits for its task until idle. A continuation begins when the tool returns; its yardstick is a new run.",
)
MANY_COLUMNS: Final = ("body, who executes it", "tasks", "limit", "most at a time", "tasks/s", "/ bare")
MANY_NOTES: Final = (
    f"{WORKERS} workers. Bare Celery has as many threads as the limit allows tasks; ours have 200 slots each.",
    f"From the first submit or message to the end of the last body. Ours: runs whose models make {CALLS} calls each.",
    "How many are executed at a time is counted by the bodies, in Redis.",
)
_STAMP: Final = re.compile(rb"(called|begun|done|asked) @(\d+)@")

Times = defaultdict[str, list[float]]


def measure(*, quick: bool = False) -> list[Report]:
    """Ask.

    Raises:
        RuntimeError: More tasks were executed at a time than may be.
    """
    with System() as system:
        system.start_server()
        system.start_worker()
        system.start_bare_worker(LIMIT // WORKERS)
        latencies = uvloop.run(_measure(system, 5 if quick else 150))
        for _ in range(1, WORKERS):
            system.start_worker()
            system.start_bare_worker(LIMIT // WORKERS)
        cases = ((0, 100), (500, 100)) if quick else ((0, 1000), (1000, 1000))
        return [latencies, uvloop.run(_measure_many(system, cases))]


async def _measure(system: System, rounds: int) -> Report:
    store = Store.of(system.settings())
    times: Times = defaultdict(list)
    with bare(system.settings().celery_broker_url) as app:
        for number in range(-3, rounds):
            found = {
                BARE: await _bare(app, store.redis),
                ORDINARY: await _ordinary(system.port),
                **await _delegated(system.port, store.redis, f"bench:go:{number}"),
            }
            for name, milliseconds in found.items() if number >= 0 else ():  # connections and caches fill
                times[name].append(milliseconds)
    await store.aclose()
    rows: list[tuple[Cell, ...]] = []
    for name, yardstick in YARDSTICKS.items():
        mine, its = times[name], times[yardstick]
        p50, p95 = median(mine), percentile(mine, 95)
        rows.append((name, len(mine), p50, p95, p50 / median(its), p95 / percentile(its, 95)))
    return Report("Background tasks", COLUMNS, rows, NOTES)


async def _bare(app: Celery, redis: Any) -> float:
    sent = time.monotonic_ns()
    await asyncio.to_thread(app.send_task, NOTE)
    _, begun = await redis.blpop([BEGUN], timeout=30)
    return (int(begun) - sent) / 1e6


async def _ordinary(port: int) -> float:
    submitted = time.monotonic_ns()
    run = await Followed.begin(port, in_worker.name, prompt(deltas=1))
    first = await run.heard(b"id: 1\n")
    await run.stream.ended.wait()
    return (first - submitted) / 1e6


async def _delegated(port: int, redis: Any, until: str) -> dict[str, float]:
    """A run that waits for its one task; the task ends when the run is suspended."""
    run = await Followed.begin(port, delegating.name, until, untilIdle=True)
    started, running = [await run.heard(b'"background-task-%b"' % what) for what in (b"started", b"running")]
    await run.heard(b'"background-task-progress"')
    await redis.rpush(until, b"go")
    continued, told = [await run.heard(what) for what in (b'"attempt":2', b'"background-task-completed"')]
    await run.stream.ended.wait()
    at = {name.decode(): int(stamp) for name, stamp in _STAMP.findall(run.all_heard)}  # the last of a name
    nanoseconds = {
        CALLED: at["begun"] - at["called"],
        RUNNING: running - started,
        TOLD: told - at["done"],
        CONTINUED: continued - at["done"],
        ASKED_AGAIN: at["asked"] - at["done"],
    }
    return {name: value / 1e6 for name, value in nanoseconds.items()}


@dataclass(frozen=True)
class _Done:
    """So many tasks, done.

    Attributes:
        tasks: How many bodies have ended.
        at_once: How many were executed at a time, at most.
        rate: Of them in a second.
    """

    tasks: int
    at_once: int
    rate: float


async def _measure_many(system: System, cases: tuple[tuple[int, int], ...]) -> Report:
    rows: list[tuple[Cell, ...]] = []
    store = Store.of(system.settings())
    with bare(system.settings().celery_broker_url) as app:
        await _done(store, CALLS, partial(asyncio.to_thread, _send, app, CALLS, 0))
        await _done(store, 2 * CALLS, partial(_spread, system.port, spreading.name, 2 * CALLS, 0))  # caches fill
        for hold_ms, tasks in cases:
            name = f"{hold_ms} ms" if hold_ms else "nothing"
            floor = await _done(store, tasks, partial(asyncio.to_thread, _send, app, tasks, hold_ms))
            rows.append((f"{name}, bare Celery", tasks, None, floor.at_once, floor.rate, 1.0))
            for agent, limit in ((spreading.name, None), (limited.name, LIMIT)):
                done = await _done(store, tasks, partial(_spread, system.port, agent, tasks, hold_ms))
                if limit is not None and done.at_once > limit:
                    raise RuntimeError(f"{done.at_once} tasks were executed at a time, and {limit} may be")
                rows.append((f"{name}, {agent}", tasks, limit, done.at_once, done.rate, done.rate / floor.rate))
    await store.aclose()
    return Report("Many background tasks", MANY_COLUMNS, rows, MANY_NOTES)


async def _done(store: Store, tasks: int, begin: Callable[[], Awaitable[None]]) -> _Done:
    """Begin so many tasks, and wait until all of them are done."""
    redis = cast("Any", store.redis)
    await redis.delete(BODIES)
    begun = time.monotonic_ns()
    await begin()
    async with asyncio.timeout(LONGEST_SECONDS):
        while await redis.llen(BODIES) < tasks or await _under_way(store):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)
    bodies = [[int(part) for part in each.split()] for each in await redis.lrange(BODIES, 0, -1)]
    if len(bodies) != tasks:
        raise RuntimeError(f"{len(bodies)} bodies were executed for {tasks} tasks")
    most, last = (max(values) for values in zip(*bodies, strict=True))
    return _Done(tasks, most, tasks / ((last - begun) / 1e9))


async def _under_way(store: Store) -> int:
    """How many tasks have not ended."""
    counts = [await store.redis.zcard(store.keys.tasks(status=status)) for status in ("queued", "running")]
    return sum(counts)


def _send(app: Celery, tasks: int, hold_ms: int) -> None:
    for _ in range(tasks):
        app.send_task(WORK, args=[hold_ms])


async def _spread(port: int, agent: str, tasks: int, hold_ms: int) -> None:
    order = json.dumps({"calls": CALLS, "hold_ms": hold_ms})
    for _ in range(tasks // CALLS):
        await submit(port, agent, order)
